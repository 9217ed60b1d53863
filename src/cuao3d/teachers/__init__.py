"""Teachers: frozen image models that describe every pixel. A teacher is any object with a name, a width and a call."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from cuao3d.teachers.mini import MiniDiffusion, MiniDino, MiniLSeg


@runtime_checkable
class Teacher(Protocol):
    """What fusion asks of a teacher. `text` and `weights_sha256` are optional attributes.

    `text` names the encoder of `cuao3d.text` whose vectors live in the teacher's space; a teacher without it cannot
    be asked with words. `weights_sha256` is recorded by the store.
    """

    name: str
    """Name of the teacher in stores and heads."""
    num_channels: int
    """Channels of its maps, concatenated."""

    def __call__(self, image: Float[Tensor, "3 H W"], /) -> Float[Tensor, "C h w"] | tuple[Tensor, ...]:
        """Describe an image (RGB in [0, 1]) by a low-resolution map, or by several whose channels add up."""
        ...


TEACHERS: dict[str, Callable[[], Teacher]] = {
    "mini-lseg": MiniLSeg,
    "mini-dino": MiniDino,
    "mini-diffusion": MiniDiffusion,
}
"""Teachers that the command line knows by name."""


def load_teacher(name: str) -> Teacher:
    """Load a teacher by its name in `TEACHERS`.

    Raises:
        ValueError: There is no teacher of that name.
    """
    if name not in TEACHERS:
        raise ValueError(f"Unknown teacher {name!r}; choose from {sorted(TEACHERS)} or pass a teacher object.")
    return TEACHERS[name]()
