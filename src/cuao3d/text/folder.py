"""Folders as transformers writes them, found by name or place, and the tokenizers in them."""

from pathlib import Path
from typing import Any

from cuao3d.download import CARDS, find
from cuao3d.errors import InputError
from cuao3d.names import match_name
from cuao3d.pretrained.huggingface import quiet, weight_files

IMAGE_SIDE = ("vision_model.", "visual_projection.", "logit_scale", "logit_bias")
"""How the names of tensors start that a text side has no use for."""


def find_folder(kind: str, where: str) -> Path:
    """Return the folder of a model.

    Args:
        kind: Kind of the encoder, as a spec begins.
        where: A folder, or a name that `cuao3d.download.find` knows.

    Raises:
        InputError: It is neither.
        NotFoundError: Weights of that name are not on this machine, or the folder holds none.
    """
    if where and Path(where).is_dir():
        folder = Path(where)
    elif match_name(where, CARDS) in CARDS:
        folder = find(where)
    else:
        names = [name for name, card in CARDS.items() if card.text == f"{kind}:{name}"]
        raise InputError(
            f"Say where {kind} lies, {kind}:FOLDER, or a name: {', '.join(names)}; there is no folder {where!r}."
        )
    weight_files(folder)
    return folder


def load_tokenizer(folder: Path) -> Any:
    """Load what turns texts into a model's tokens.

    Raises:
        InputError: It is not there, or damaged.
    """
    import transformers

    try:
        with quiet(transformers):
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a library per format of vocabulary, each with errors of its own
        raise InputError(f"The tokenizer in {folder} cannot be read: {error}") from None
