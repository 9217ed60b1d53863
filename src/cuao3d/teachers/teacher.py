"""What a teacher is, and what must be known of one: its card, which stores and runs keep."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.names import check_file_name
from cuao3d.plugins import code_sha256
from cuao3d.schema import Width
from cuao3d.teachers.options import Option, options_in_use


@runtime_checkable
class Teacher(Protocol):
    """What fusion asks of a teacher; all else is optional.

    - `text` names the encoder of `cuao3d.text` whose vectors live in the teacher's space; a teacher without it cannot
      be asked with words. `loss` is the distillation loss that suits it ("cosine" unless given).
    - `weights_sha256` and `licence` are recorded by the store. So are arguments of its constructor that are not the
      defaults, if it keeps them as attributes of the same names.
    - `batch(images)` describes images (B, 3, H, W) at once, by a map (B, C, h, w) or a tuple of maps.
    - `to(device, precision)` moves it.
    """

    name: str
    """Name of the teacher in stores and heads."""
    num_channels: int
    """Channels of its maps, concatenated."""

    def __call__(self, image: Float[Tensor, "3 H W"], /) -> Float[Tensor, "C h w"] | tuple[Tensor, ...]:
        """Describe an image.

        Args:
            image: RGB in [0, 1].

        Returns:
            A low-resolution map of the whole image, or several whose channels add up to `num_channels`.
        """
        ...


@dataclass(frozen=True)
class Calibration:
    """Relevance (see `cuao3d.query`) at which the verdicts about a teacher's features change, and where from."""

    here: float
    """A query is here from this relevance on."""
    absent: float
    """A query is absent below this relevance; between the two it is unsure."""
    measured_on: str
    """What they were measured on; ends a sentence that begins with "The verdicts were calibrated on"."""


DEFAULT = Calibration(0.3, 0.05, "lifted features of mini-lseg in synthetic rooms")
"""For teachers without a calibration of their own; `scripts/calibrate_verdicts.py` measures how often it is right."""


@dataclass(frozen=True)
class TeacherCard:
    """What must be known of a teacher to learn from its features and to ask them."""

    num_channels: Width
    """Width of its features."""
    text: str | None = None
    """Text encoder that shares the space of its features; None if it cannot be asked with words."""
    loss: str = "cosine"
    """Distillation loss that suits it."""
    weights_sha256: str | None = None
    """SHA-256 of its weights; None if it has none."""
    licence: str | None = None
    """Licence of its weights, as far as it is known; it may bind what is distilled from them."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """Options that its features were made with, where they are not the defaults; among them its precision."""
    code_sha256: str | None = None
    """SHA-256 of the code of a teacher that does not come with this package."""


NAMED_BY = {
    "text": 'the name of a text encoder, such as "minilm" or "table:FILE"',
    "loss": 'the name of a loss, such as "cosine"',
    "weights_sha256": "the SHA-256 of its weights",
    "licence": "the licence of its weights",
}
"""Optional attributes of a teacher that are one word."""


def card_of(teacher: Any) -> TeacherCard:
    """Make the card of a teacher.

    Raises:
        InputError: The object is not a teacher; the message names what is missing or wrong.
    """
    who = f"{type(teacher).__name__} is no teacher: it"
    name, width = getattr(teacher, "name", None), getattr(teacher, "num_channels", None)
    if not isinstance(name, str):
        raise InputError(f'{who} needs a name, such as name = "my-teacher"; got {name!r}.')
    check_file_name(name, "teacher")
    if "," in name or name != name.strip():
        raise InputError(f"{name!r} cannot be the name of a teacher: commas part the names in a list.")
    if isinstance(width, bool) or not isinstance(width, int | np.integer) or width < 1:
        raise InputError(f"{who} needs num_channels, how many channels its maps have together; got {width!r}.")
    if not callable(teacher):
        raise InputError(f"{who} needs __call__(image), which returns a map of {width} channels.")
    named: dict[str, Any] = {key: getattr(teacher, key, None) for key in NAMED_BY}
    for key, value in named.items():
        if not isinstance(value, str | None):
            raise InputError(f"{name}: {key} should be {NAMED_BY[key]}, as a string; it is a {type(value).__name__}.")
    named["loss"] = named["loss"] or TeacherCard.loss
    return TeacherCard(int(width), **named, options=options_in_use(teacher), code_sha256=code_sha256(type(teacher)))


def cards_of(teachers: Iterable[Any]) -> dict[str, TeacherCard]:
    """Make the cards of teachers, by name.

    Raises:
        InputError: An object is no teacher, or two have one name.
    """
    cards: dict[str, TeacherCard] = {}
    for teacher in teachers:
        card = card_of(teacher)
        if teacher.name in cards:
            raise InputError(f"Two teachers have the name {teacher.name!r}. Lift them into a store each.")
        cards[teacher.name] = card
    return cards
