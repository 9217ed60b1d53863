"""Models in folders as transformers writes them: found by name or place, and loaded whole or not at all."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cuao3d.download import WEIGHTS, find


def find_folder(kind: str, where: str) -> Path:
    """Return the folder of a model.

    Args:
        kind: What is looked for, for the error.
        where: A folder, or a name that `cuao3d.download.find` knows.

    Raises:
        ValueError: It is neither.
        FileNotFoundError: Weights of that name are not on this machine, or the folder holds no model.
    """
    if where and Path(where).is_dir():
        folder = Path(where)
    elif where in WEIGHTS:
        folder = find(where)
    else:
        known = f", or a name: {', '.join(sorted(WEIGHTS))}" if WEIGHTS else ""
        raise ValueError(f"Say where {kind} lies, {kind}:FOLDER{known}; there is no folder {where!r}.")
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder} holds no model: a config.json and *.safetensors belong there.")
    return folder


def import_transformers() -> Any:
    """Return the library.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise ImportError("This text encoder needs transformers: pip install 'cuao3d[teachers]'") from None
    return transformers


def model_type(folder: Path) -> str:
    """Return what kind of model a folder says that it holds."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / 'config.json'} does not say its model_type; it is damaged.") from None


def load_model(model_class: Any, folder: Path) -> Any:
    """Load a model, ready to be used.

    Args:
        model_class: Class of transformers, with `from_pretrained`.
        folder: Its settings and weights; other parts of the same model may lie there too.

    Raises:
        ValueError: The weights are damaged, or some of the model's are not among them.
    """
    import torch
    import transformers

    with quiet(transformers):
        try:
            model, loaded = model_class.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ValueError(f"The weights in {folder} cannot be read: {error}") from None
    # transformers fills what is missing with random numbers, and goes on.
    missing = sorted(str(name) for key in ("missing_keys", "mismatched_keys") for name in loaded[key])
    if missing:
        raise ValueError(f"The weights in {folder} lack {', '.join(missing[:4])}; is this another model?")
    return model.eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> Any:
    """Load what turns texts into a model's tokens.

    Raises:
        ValueError: It is not there, or damaged.
    """
    import transformers

    try:
        with quiet(transformers):
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a library per format of vocabulary, each with errors of its own
        raise ValueError(f"The tokenizer in {folder} cannot be read: {error}") from None


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from drawing a bar over what takes a moment, and from reporting parts that nobody asked for."""
    logging = transformers.utils.logging
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
