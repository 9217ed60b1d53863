"""Parts of MobileNet's family: convolutions with their norms folded in, inverted residuals, and weights in order."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cuao3d.errors import InputError

Convolution = tuple[Float[Tensor, "_ _ _ _"], Float[Tensor, "_"]]
"""Weight (out, in, height, width) and bias of a convolution."""


class Conv(nn.Conv2d):
    """A convolution padded as TensorFlow does, and what follows it.

    With a stride, an even side is padded on its far edge only: the map then begins half a pixel late. A side of one
    more than a multiple of the stride is padded evenly, so that place i of the map is at pixel i * stride.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        limit: float | None = 6.0,
    ) -> None:
        """Make the convolution.

        Args:
            in_channels: Channels that it reads.
            out_channels: Channels that it makes.
            kernel: Side of its kernel.
            stride: Pixels from one place of its map to the next.
            dilation: Pixels from one place of its kernel to the next.
            groups: Groups of channels.
            limit: Values are clamped to 0 and this; infinity is ReLU, None leaves them alone.
        """
        super().__init__(in_channels, out_channels, kernel, stride, dilation=dilation, groups=groups)
        self.limit = limit

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Convolve, then clamp."""
        (stride, _), reach = self.stride, self.dilation[0] * (self.kernel_size[0] - 1)
        height, width = (max(0, (side - 1) // stride * stride + reach + 1 - side) for side in x.shape[2:])
        padding: tuple[int, int] = (height // 2, width // 2)
        if height % 2 or width % 2:
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
            padding = (0, 0)
        y = F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        return y if self.limit is None else y.clamp_(0, self.limit)


class InvertedResidual(nn.Module):
    """Widen each pixel, look at its neighbours channel by channel, narrow it again (MobileNetV2)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, expand: int, stride: int = 1, dilation: int = 1
    ) -> None:
        """Make the block.

        Args:
            in_channels: Channels that it reads.
            out_channels: Channels that it makes.
            kernel: Side of the kernel.
            expand: How many times wider it is inside.
            stride: Pixels from one place of its map to the next.
            dilation: Pixels from one place of the kernel to the next.
        """
        super().__init__()
        wide = expand * in_channels
        self.widen = Conv(in_channels, wide) if expand > 1 else nn.Identity()
        self.look = Conv(wide, wide, kernel, stride=stride, dilation=dilation, groups=wide)
        self.narrow = Conv(wide, out_channels, limit=None)
        self.adds = in_channels == out_channels and stride == 1

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Describe each pixel anew."""
        y: Tensor = self.narrow(self.look(self.widen(x)))
        return y.add_(x) if self.adds else y


def fold_norm(
    weight: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, epsilon: float
) -> Convolution:
    """Fold a batch norm into the convolution (out, in, height, width) before it."""
    factor = scale.double() / (variance.double() + epsilon).sqrt()
    folded = weight.double() * factor[:, None, None, None]
    return folded.float(), (shift.double() - mean.double() * factor).float()


def load_in_order(network: nn.Module, convolutions: Sequence[Convolution], source: str) -> None:
    """Give a network's convolutions their weights, in the order in which they were declared.

    Args:
        network: A network whose weights are those of its convolutions.
        convolutions: Weights and biases.
        source: Where they come from, for the error.

    Raises:
        InputError: They are too few, too many, or of other shapes.
    """
    own = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    if len(own) != len(convolutions):
        raise InputError(f"{source} holds another network: {len(convolutions)} convolutions, not {len(own)}.")
    for number, (module, (weight, bias)) in enumerate(zip(own, convolutions, strict=True), start=1):
        expected = tuple(module.weight.shape)
        if tuple(weight.shape) != expected or tuple(bias.shape) != expected[:1]:
            raise InputError(
                f"{source} holds another network: its convolution {number} is {tuple(weight.shape)}, not {expected}."
            )
        assert module.bias is not None
        with torch.no_grad():
            module.weight.copy_(weight)
            module.bias.copy_(bias)
    network.eval().requires_grad_(False)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
