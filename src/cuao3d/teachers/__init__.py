"""Teachers: frozen image models that describe every pixel. A teacher is any object with a name, a width and a call."""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from cuao3d.errors import InputError, NotFoundError
from cuao3d.teachers.clip import CLIPDense
from cuao3d.teachers.dinov2 import DINOv2
from cuao3d.teachers.dinov3 import DINOv3
from cuao3d.teachers.lseg import LSegTeacher
from cuao3d.teachers.mini import MiniDiffusion, MiniDino, MiniLSeg
from cuao3d.teachers.network import Precision
from cuao3d.teachers.radio import RADIO
from cuao3d.teachers.siglip2 import SigLIP2
from cuao3d.teachers.stable_diffusion import StableDiffusion
from cuao3d.teachers.vit import ViT


@runtime_checkable
class Teacher(Protocol):
    """What fusion asks of a teacher; all else is optional.

    - `text` names the encoder of `cuao3d.text` whose vectors live in the teacher's space; a teacher without it cannot
      be asked with words. `loss` is the distillation loss that suits it ("cosine" unless given).
    - `weights_sha256` and `licence` are recorded by the store.
    - `batch(images)` describes images (B, 3, H, W) at once, by a tuple of maps (B, C, h, w).
    - `to(device, precision)` moves it.
    """

    name: str
    """Name of the teacher in stores and heads."""
    num_channels: int
    """Channels of its maps, concatenated."""

    def __call__(self, image: Float[Tensor, "3 H W"], /) -> Float[Tensor, "C h w"] | tuple[Tensor, ...]:
        """Describe an image (RGB in [0, 1]) by a low-resolution map, or by several whose channels add up."""
        ...


TEACHERS: dict[str, Callable[..., Teacher]] = {
    "lseg": LSegTeacher,
    "mini-lseg": MiniLSeg,
    "mini-dino": MiniDino,
    "mini-diffusion": MiniDiffusion,
    "dinov2": DINOv2,
    "dinov2-small": partial(DINOv2, name="dinov2-small"),
    "dinov2-base": partial(DINOv2, name="dinov2-base"),
    "dinov2-giant": partial(DINOv2, name="dinov2-giant"),
    "dinov2-registers": partial(DINOv2, name="dinov2-registers"),
    "dinov2-small-registers": partial(DINOv2, name="dinov2-small-registers"),
    "dinov2-base-registers": partial(DINOv2, name="dinov2-base-registers"),
    "dinov2-giant-registers": partial(DINOv2, name="dinov2-giant-registers"),
    "dinov3": DINOv3,
    "dinov3-small": partial(DINOv3, name="dinov3-small"),
    "dinov3-base": partial(DINOv3, name="dinov3-base"),
    "clip": CLIPDense,
    "clip-large": partial(CLIPDense, name="clip-large"),
    "siglip2": SigLIP2,
    "siglip2-large": partial(SigLIP2, name="siglip2-large"),
    "radio": RADIO,
    "vit": ViT,
    "stable-diffusion": StableDiffusion,
    "stable-diffusion-2.1": partial(StableDiffusion, name="stable_diffusion_2_1"),
}
"""Teachers that the command line knows by name; each takes a file or folder of weights, or finds its own."""


def load_teacher(spec: str, *, device: str = "cpu", precision: Precision = "fp32") -> Teacher:
    """Load a teacher.

    Args:
        spec: A name in `TEACHERS` ("dinov2"); a name and where its weights lie ("dinov2=models/dinov2-large"); or a
            Python file and a class in it ("./my_teacher.py:MyTeacher"), which is made without arguments. Such a file
            is run: give none that you do not trust.
        device: Where it runs, if it can be moved.
        precision: What it computes in, if it can be moved.

    Raises:
        InputError: There is no teacher of that name, or the object is none.
        NotFoundError: The file or the weights are not there.
    """
    name, _, weights = spec.partition("=")
    if ".py:" in spec:
        teacher = _from_file(*spec.rsplit(":", 1))
    elif known := TEACHERS.get(name.replace("_", "-")):
        teacher = known(Path(weights)) if weights else known()
    else:
        raise InputError(
            f"Unknown teacher {name!r}; choose from {sorted(TEACHERS)}, "
            "or give a class of your own: my_teacher.py:MyTeacher."
        )
    if hasattr(teacher, "to"):
        teacher.to(device, precision)
    return teacher


def _from_file(file: str, name: str) -> Teacher:
    """Run a Python file and make the teacher that it defines."""
    path = Path(file)
    if not path.is_file():
        raise NotFoundError(f"There is no file {path} to take the teacher {name} from.")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise InputError(f"{path} defines no {name}.")
    teacher: Any = getattr(module, name)()
    if not isinstance(teacher, Teacher):
        raise InputError(f"{name} of {path} is no teacher: it needs a name, num_channels and __call__(image).")
    return teacher
