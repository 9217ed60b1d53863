"""What teachers that are networks have in common: where they run, in which precision, and batches of images."""

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cuao3d.errors import InputError
from cuao3d.products import fast_layers

Precision = Literal["fp32", "bf16", "fp16"]
"""What a network computes in; its weights stay in fp32, its maps are fp32."""

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Level(NamedTuple):
    """One of the maps that a teacher returns."""

    channels: int
    """Width of its features."""
    stride: float
    """Pixels of the image, as the network sees it, from one feature to the next."""


class NetworkTeacher:
    """Base of teachers that are networks: one image is a batch of one.

    A member sets the attributes, loads `network` in its `__init__`, and describes batches in `_describe`.
    """

    name: str
    num_channels: int
    text: str | None = None
    """Encoder of `cuao3d.text` that shares its space."""
    loss: str = "cosine"
    """Distillation loss that suits it."""
    licence: str | None
    """Licence of its weights, by its SPDX name where it has one."""
    levels: tuple[Level, ...]
    """Its maps, in the order of their channels."""
    weights_sha256: str | None = None
    network: nn.Module
    device: torch.device = torch.device("cpu")
    precision: Precision = "fp32"

    def to(self, device: str | torch.device, precision: Precision = "fp32") -> "NetworkTeacher":
        """Move the network; from then on it computes there, in this precision.

        Raises:
            InputError: There is no such precision.
        """
        if precision not in get_args(Precision):
            raise InputError(f"--precision {precision}: choose from {', '.join(get_args(Precision))}.")
        self.device, self.precision = torch.device(device), precision
        self.network.to(self.device)
        return self

    def __call__(self, image: Float[Tensor, "3 H W"]) -> Float[Tensor, "_ _ _"] | tuple[Float[Tensor, "_ _ _"], ...]:
        """Describe an image (RGB in [0, 1]) by maps of the `levels`, on the network's device."""
        return tuple(one[0] for one in self.batch(image[None]))

    @torch.inference_mode()
    def batch(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Describe images of one size (RGB in [0, 1]), as `__call__` does each of them."""
        images = images.to(self.device, non_blocking=True)
        is_half = self.precision in DTYPES
        with fast_layers(self.device), torch.autocast(self.device.type, DTYPES.get(self.precision), enabled=is_half):
            return tuple(one.float() for one in self._describe(images))

    def _describe(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Describe images on the network's device; under autocast where the precision asks for it."""
        raise NotImplementedError
