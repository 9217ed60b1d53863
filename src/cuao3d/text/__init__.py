"""Text encoders: words -> unit vectors, in the space of the features that they are compared with."""

import functools
from collections.abc import Callable

from cuao3d.errors import InputError
from cuao3d.names import match_name
from cuao3d.text.clip import ClipText
from cuao3d.text.encoder import BATCH, TextEncoder
from cuao3d.text.lseg import LSegText
from cuao3d.text.minilm import (
    CENTRE_FILE,
    MINILM_PACKAGE,
    MINILM_REPOSITORY,
    MINILM_SHA256,
    CentredText,
    MiniLM,
    minilm_centred,
)
from cuao3d.text.prompts import TEMPLATES, class_vectors
from cuao3d.text.siglip import SiglipText
from cuao3d.text.table import Table

__all__ = [
    "BATCH",
    "CENTRE_FILE",
    "MINILM_PACKAGE",
    "MINILM_REPOSITORY",
    "MINILM_SHA256",
    "TEMPLATES",
    "TEXT_ENCODERS",
    "CentredText",
    "ClipText",
    "LSegText",
    "MiniLM",
    "SiglipText",
    "Table",
    "TextEncoder",
    "class_vectors",
    "load_text_encoder",
    "minilm_centred",
]

TEXT_ENCODERS: dict[str, Callable[..., TextEncoder]] = {
    "minilm": MiniLM,
    "minilm-centred": minilm_centred,
    "clip": ClipText.cached,
    "lseg": LSegText.cached,
    "siglip2": SiglipText.cached,
    "table": Table.read,
}
"""Encoders by the kind that a spec begins with; each takes where it lies, and some find their own."""


@functools.cache
def load_text_encoder(spec: str) -> TextEncoder:
    """Load an encoder, once.

    Args:
        spec: A kind, and after a colon where it lies, if it does not find its own:
            "minilm", "minilm-centred" (`:FOLDER`); "lseg" (`:FILE`, LSeg's checkpoint); "clip:WHERE" and
            "siglip2:WHERE", a folder in transformers' format or the name of weights; "table:FILE" or
            "table:FILE@NAMES", vectors made elsewhere. A teacher's `text` is such a spec.

    Returns:
        The encoder.

    Raises:
        InputError: There is no such kind, or what lies there is something else.
        NotFoundError: There is nothing.
        NotInstalledError: The kind needs a package that is not installed.
    """
    kind, _, where = spec.partition(":")
    kind = match_name(kind, TEXT_ENCODERS)
    if kind not in TEXT_ENCODERS:
        raise InputError(f"Unknown text encoder {kind!r}; choose from {sorted(TEXT_ENCODERS)}.")
    return TEXT_ENCODERS[kind](where) if where else TEXT_ENCODERS[kind]()
