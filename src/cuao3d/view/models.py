"""Who can be asked in the viewer: the lifted features of a store, and students."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.predictor import Predictor
from cuao3d.store import Store
from cuao3d.text import TextEncoder

ENCODING = threading.Lock()
"""Held while words are encoded: tokenizers of others cannot be used by two threads at once."""


@dataclass(frozen=True)
class OneAtATime:
    """A text encoder that one thread at a time uses."""

    encoder: TextEncoder

    @property
    def num_channels(self) -> int:
        """Channels of the vectors."""
        return self.encoder.num_channels

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "K C"]:
        """Return a unit vector for each text."""
        with ENCODING:
            return self.encoder(texts)

    def __getattr__(self, name: str) -> Any:
        """Return what else the encoder has, such as what it `reads`."""
        return getattr(self.encoder, name)


def open_models(
    store: Store,
    runs: Sequence[Path] = (),
    *,
    teacher: str | None = None,
    text: str | None = None,
    device: str = "cpu",
) -> dict[str, Predictor]:
    """Open everybody that can be asked about a store, the students first.

    Args:
        store: The store.
        runs: Folders of finished runs, or files of students.
        teacher: As of `Predictor.open`.
        text: As of `Predictor.open`.
        device: Where the students run.

    Returns:
        The predictors, by a name for the reader. Empty where there is no run and no teacher that can be asked with
        words: such a store can be looked at all the same. Viewers use them in threads of their own.

    Raises:
        UserError: As of `Predictor.open`.
    """
    found: dict[str, Predictor] = {}
    for run in runs:
        predictor = Predictor.open(store, run=run, teacher=teacher, text=text, device=device)
        found[_new_name(f"student {_name_of(run)}", found)] = predictor
    can_be_asked = any(card.text for card in store.teachers.values()) or text is not None or teacher is not None
    if not runs or (can_be_asked and teacher in (None, *store.teachers)):
        try:
            lifted = Predictor.open(store, teacher=teacher, text=text, device=device)
        except InputError:
            if can_be_asked and not runs:
                raise
        else:
            found[f"lifted features of {lifted.teacher}"] = lifted
    return {name: replace(one, encoder=OneAtATime(one.encoder)) for name, one in found.items()}


def _name_of(run: Path) -> str:
    """Return the name of a run, or of a file that is not called like any other student's."""
    return run.resolve().parent.name if run.name == "student.safetensors" else run.resolve().name


def _new_name(name: str, taken: dict[str, Predictor]) -> str:
    """Return a name that nobody has yet."""
    number = 2
    new = name
    while new in taken:
        new, number = f"{name} ({number})", number + 1
    return new
