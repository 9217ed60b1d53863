"""DeepLabv3 on MobileNetV2, trained on ADE20K: 150 classes of things and stuff (Chen et al., 2018).

The weights were published as a TFLite file, whose tensors are read and laid into this network.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cuao3d.errors import InputError, NotInstalledError
from cuao3d.teachers.mobile import Conv, Convolution, InvertedResidual, load_in_order

CLASSES = 151
"""The first is "other"."""

BLOCKS = (
    (16, 1, 1, 1),
    *((24, 6, stride, 1) for stride in (2, 1)),
    *((32, 6, stride, 1) for stride in (2, 1, 1)),
    *((64, 6, 1, dilation) for dilation in (1, 2, 2, 2)),
    *((96, 6, 1, 2) for _ in range(3)),
    *((160, 6, 1, dilation) for dilation in (2, 4, 4)),
    (320, 6, 1, 4),
)
"""Channels, widening, stride and dilation of MobileNetV2's blocks, at an output stride of 8."""

FINE = 2
"""Block whose widened map, a quarter of the image's size, the decoder reads as well."""


class DeepLab(nn.Module):
    """The network; logits at every fourth pixel.

    Its convolutions are declared in the order in which the TFLite file runs them.
    """

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = Conv(3, 32, 3, stride=2)
        channels, blocks = 32, list[InvertedResidual]()
        for wide, expand, stride, dilation in BLOCKS:
            blocks.append(InvertedResidual(channels, wide, 3, expand=expand, stride=stride, dilation=dilation))
            channels = wide
        self.blocks = nn.ModuleList(blocks)
        self.whole = Conv(channels, 256, limit=math.inf)
        self.place = Conv(channels, 256, limit=math.inf)
        self.joined = Conv(512, 256, limit=math.inf)
        self.fine = Conv(6 * 24, 48, limit=math.inf)
        self.decoder = nn.Sequential(*_separable(304, 256), *_separable(256, 256))
        self.classify = Conv(256, num_classes, limit=None)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K h w"]:
        """Return the classes' logits of images in [-1, 1] whose sides are one more than a multiple of 8.

        Place i of the map is at pixel 4 * i.
        """
        x: Tensor = self.stem(images)
        for number, block in enumerate(self.blocks):
            assert isinstance(block, InvertedResidual)
            if number == FINE:
                fine = block.look(block.widen(x))
                x = x + block.narrow(fine)
            else:
                x = block(x)
        whole = self.whole(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        coarse = self.joined(torch.cat([whole, self.place(x)], dim=1))
        size = fine.shape[2:]
        coarse = F.interpolate(coarse, size, mode="bilinear", align_corners=True)
        logits: Tensor = self.classify(self.decoder(torch.cat([coarse, self.fine(fine)], dim=1)))
        return logits


def load_deeplab(path: Path) -> DeepLab:
    """Load the network from its TFLite file.

    Args:
        path: The file.

    Raises:
        NotInstalledError: The package that reads such files is not installed.
        InputError: The file is damaged, or of another network.
    """
    network = DeepLab()
    load_in_order(network, read_convolutions(path), str(path))
    return network


def read_convolutions(path: Path) -> list[Convolution]:
    """Read the convolutions of a TFLite file in the order in which they run, norms that follow them folded in.

    Raises:
        NotInstalledError: The package that reads such files is not installed.
        InputError: The file is damaged, or none.
    """
    try:
        import tflite
    except ImportError:
        raise NotInstalledError("TFLite files need a package to read them: pip install 'cuao3d[demo]'") from None
    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise InputError(f"{path} is no TFLite file. Download it again.")
    try:
        return list(_convolutions(tflite.Model.GetRootAsModel(content, 0), tflite))
    except InputError as error:
        raise InputError(f"{path} holds another network: {error}") from None
    except Exception as error:  # of the parser: what it finds at an offset of a damaged file can be anything
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}). Download it again.") from error


def _convolutions(model: Any, tflite: Any) -> Iterator[Convolution]:
    """List a TFLite model's convolutions; a product or sum with one number a channel belongs to the one before it."""
    graph, kinds = model.Subgraphs(0), tflite.BuiltinOperator
    origin = {}
    last: Convolution | None = None
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        inputs = [operator.Inputs(number) for number in range(operator.InputsLength())]
        if kind == kinds.DEQUANTIZE:
            origin[operator.Outputs(0)] = inputs[0]
        elif kind in (kinds.CONV_2D, kinds.DEPTHWISE_CONV_2D):
            if last:
                yield last
            weight, bias = (_constant(model, graph.Tensors(origin.get(one, one)), tflite) for one in inputs[1:3])
            order = (0, 3, 1, 2) if kind == kinds.CONV_2D else (3, 0, 1, 2)
            last = weight.permute(order).contiguous(), bias
        elif kind in (kinds.MUL, kinds.ADD) and last:
            number = _constant(model, graph.Tensors(inputs[1]), tflite)
            if number.shape == last[1].shape:
                weight, bias = last
                mul = kind == kinds.MUL
                last = (weight * number[:, None, None, None], bias * number) if mul else (weight, bias + number)
    if last:
        yield last


def _constant(model: Any, tensor: Any, tflite: Any) -> Tensor:
    """Return a constant of a TFLite model, dequantised; nothing for a tensor that is computed."""
    dtypes = {tflite.TensorType.FLOAT32: "<f4", tflite.TensorType.FLOAT16: "<f2", tflite.TensorType.INT8: "i1"}
    buffer = model.Buffers(tensor.Buffer())
    if not buffer.DataLength():
        return torch.zeros(0)
    if tensor.Type() not in dtypes:
        raise InputError(f"the numbers of {tensor.Name().decode()} are of a type that DeepLabv3's are not.")
    values = (
        np.frombuffer(buffer.DataAsNumpy(), dtypes[tensor.Type()]).reshape(tensor.ShapeAsNumpy()).astype(np.float32)
    )
    quantised = tensor.Quantization()
    if quantised is not None and quantised.ScaleLength():
        values = (values - quantised.ZeroPointAsNumpy()) * quantised.ScaleAsNumpy()
    return torch.from_numpy(values.astype(np.float32))


def _separable(in_channels: int, out_channels: int) -> tuple[Conv, Conv]:
    """Return a convolution in two: channel by channel, then place by place."""
    look = Conv(in_channels, in_channels, 3, groups=in_channels, limit=math.inf)
    return look, Conv(in_channels, out_channels, limit=math.inf)
