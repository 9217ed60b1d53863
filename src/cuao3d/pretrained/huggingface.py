"""Models of the transformers library: opened from a folder on this machine, offline, and only if every tensor fits."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import torch

from cuao3d.errors import InputError, NotFoundError, NotInstalledError
from cuao3d.files import read_json, sha256_of
from cuao3d.pickles import check_weights, some_of
from cuao3d.schema import Positive, fit

PILLOW_MODES = {2: "bilinear", 3: "bicubic"}
"""How images are resized, by the numbers that Pillow and so `preprocessor_config.json` give it."""

_CURE = "download it again"


class Preprocessing(NamedTuple):
    """How a model wants its images."""

    mean: tuple[float, ...]
    """Of RGB in [0, 1]; subtracted."""
    std: tuple[float, ...]
    """Divides what is left."""
    mode: str
    """How images are resized, with antialiasing: "bilinear" or "bicubic"."""


def open_model(
    folder: Path,
    classes: Mapping[str, str],
    *,
    unused: Sequence[str] = (),
    attention: str | None = "sdpa",
    **options: Any,
) -> Any:
    """Open a model, in fp32 and ready to describe images: no gradients, no dropout, fused attention.

    No code of the folder is run: a pickle is read for its tensors only, and refused if it holds anything else.

    Args:
        folder: Holds `config.json` and the weights.
        classes: The transformers class that opens each `model_type` which `config.json` may name; of one that names
            none, each architecture.
        unused: How the names of tensors start that do not matter: the weights may hold them or not, in any shape.
        attention: Implementation of attention; None: what the class prefers, of classes that have no choice.
        options: Further arguments of the class.

    Raises:
        NotInstalledError: transformers is not installed, or too old to have the class.
        NotFoundError: The folder lacks a file.
        InputError: A file is damaged, of another model, or its tensors do not fit.
    """
    settings = folder / "config.json"
    content: _Settings = fit(read_settings(folder), _Settings, str(settings), _CURE)
    kind = str(content.get("model_type") or next(iter(content.get("architectures") or []), "unknown"))
    if kind not in classes:
        raise InputError(f"{settings} describes a model of type {kind!r}; expected {' or '.join(classes)}.")
    name = classes[kind]
    transformers = import_transformers()
    if not hasattr(transformers, name):
        raise NotInstalledError(
            f"transformers {transformers.__version__} has no {name}; take a newer one: "
            "pip install -U 'cuao3d[teachers]'"
        )
    with quiet(transformers):
        for file in weight_files(folder):
            check_weights(file)
        try:
            model, report = getattr(transformers, name).from_pretrained(
                folder,
                local_files_only=True,
                dtype=torch.float32,
                attn_implementation=attention,
                output_loading_info=True,
                # Without this the first misfit is an error of transformers that does not name the file.
                ignore_mismatched_sizes=True,
                **options,
            )
        except Exception as error:  # The weights can be read, so what the settings ask for cannot be built.
            raise InputError(f"{settings} describes no {name} that can be built: {error}") from error
    if problems := misfits(report, unused):
        raise InputError(f"{_weights(folder)} does not fit {settings}: {some_of(problems)}.")
    return model.eval().requires_grad_(False)


class _Settings(TypedDict, total=False):
    """What is read of a `config.json`; transformers reads the rest."""

    model_type: str | None
    architectures: list[str] | None


class _Index(TypedDict):
    """What is read of the index of several files of weights."""

    weight_map: NotRequired[dict[str, str]]


class _Preprocessor(TypedDict):
    """What is read of a `preprocessor_config.json`."""

    image_mean: tuple[float, float, float]
    image_std: tuple[Positive, Positive, Positive]
    resample: int


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a model.

    Raises:
        NotFoundError: There is none.
        InputError: It is damaged.
    """
    return _read_json(folder / "config.json")


def weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of a model's weights; of several files, that of their hashes in the order of their names."""
    hashes = [sha256_of(file) for file in weight_files(folder)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """List the files of a model's weights, by name.

    Raises:
        NotFoundError: There are none, or some are missing.
        InputError: The index of the files is damaged.
    """
    weights = _weights(folder)
    if weights.suffix != ".json":
        return [weights]
    index: _Index = fit(_read_json(weights), _Index, str(weights), _CURE)
    files = sorted({folder / name for name in index.get("weight_map", {}).values()})
    if not files:
        raise InputError(f"{weights} does not say which file holds which tensor. Download it again.")
    for file in files:
        if file.parent != folder or ".." in file.parts:
            raise InputError(f"{weights} names {file}, which leads out of its folder; {_CURE}.")
        if not file.is_file():
            raise NotFoundError(f"{file} is missing; {weights.name} names it. Download it again.")
    return files


def read_preprocessing(folder: Path) -> Preprocessing:
    """Read how a model wants its images from its `preprocessor_config.json`.

    Raises:
        NotFoundError: There is no such file.
        InputError: It does not say it, or asks for a way of resizing other than bilinear and bicubic.
    """
    path = folder / "preprocessor_config.json"
    content: _Preprocessor = fit(_read_json(path), _Preprocessor, str(path), _CURE)
    if content["resample"] not in PILLOW_MODES:
        raise InputError(f"{path}: resample should be 2 (bilinear) or 3 (bicubic); it is {content['resample']}.")
    return Preprocessing(content["image_mean"], content["image_std"], PILLOW_MODES[content["resample"]])


def import_transformers() -> Any:
    """Return the library.

    Raises:
        NotInstalledError: It is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise NotInstalledError("This model needs transformers: pip install 'cuao3d[teachers]'") from None
    return transformers


def misfits(report: Mapping[str, Any], unused: Sequence[str] = ()) -> list[str]:
    """Name the tensors of a loading report that are missing, of another shape, or unknown.

    Args:
        report: What `from_pretrained` returns as its loading info.
        unused: How the names of tensors start that do not matter.
    """
    missing, unknown = (
        [name for name in sorted(report[key]) if not name.startswith(tuple(unused))]
        for key in ("missing_keys", "unexpected_keys")
    )
    mismatched = [found for found in sorted(report["mismatched_keys"]) if not found[0].startswith(tuple(unused))]
    return [
        *(f"missing {name}" for name in missing),
        *(f"{name} is {tuple(found)}, not {tuple(wanted)}" for name, found, wanted in mismatched),
        *(f"unknown {name}" for name in unknown),
    ]


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from drawing bars, and from reporting what we turn into errors."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _weights(folder: Path) -> Path:
    """Return the file of a model's weights, or the index of its files; safetensors where there is a choice."""
    names = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise NotFoundError(f"No weights in {folder}: expected {names[0]}, or one of {', '.join(names[1:])}.")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise NotFoundError(f"There is no {path}; give the folder of a model of the transformers library.")
    return read_json(path, _CURE)
