"""The student out of the layers of ocnn, another library of sparse convolutions in plain PyTorch."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from common import take_turns
from cuao3d.student import ConvNorm, Student

NUM_LEVELS = 4
"""Steps down of a U-Net. Coordinates move by a multiple of 2**NUM_LEVELS, so that the same voxels share a cell."""

NOT_INSTALLED = "ocnn is not installed (pip install --no-deps ocnn): it is left out."

TOLERANCE = 1e-5
"""By how much results may differ, as a share of the largest."""


def load_ocnn() -> ModuleType | None:
    """Import ocnn; None where it is not installed.

    One of its models imports torchvision. Nothing here uses that model, so an empty module stands in while ocnn is
    imported.
    """
    if find_spec("ocnn") is None:
        return None
    empty = {name: ModuleType(name) for name in ("torchvision", "torchvision.models") if name not in sys.modules}
    for module in empty.values():
        module.resnet18 = None  # type: ignore[attr-defined]
    sys.modules.update(empty)
    try:
        return importlib.import_module("ocnn")
    finally:
        for name in empty:
            del sys.modules[name]


@dataclass(frozen=True)
class Setting:
    """How ocnn computes its convolutions."""

    method: str
    """Whether neighbourhoods are gathered at once (`explicit_gemm`) or a block at a time (`block_gemm`)."""
    max_buffer: int = int(2e8)
    """Largest block, numbers; the default is ocnn's."""

    def __str__(self) -> str:
        return self.method + f", blocks of {self.max_buffer:.0e} numbers" * (self.method == "block_gemm")


SETTINGS = (Setting("explicit_gemm"), *(Setting("block_gemm", int(size)) for size in (2e8, 2e7, 2e6)))
"""Those that run on a CPU."""


class OctreeStudent(nn.Module):
    """A student's U-Net and heads made of ocnn's own modules, with the student's weights.

    The shape is the same but for the stem: ocnn has no kernel of 5x5x5, so its stem is 3x3x3, with the weights in the
    middle of the student's.
    """

    def __init__(self, ocnn: ModuleType, student: Student) -> None:
        super().__init__()
        self._ocnn, modules = ocnn, ocnn.modules
        self.stem = modules.OctreeConvBnRelu(*_widths(student.stem), nempty=True)
        self.downs = nn.ModuleList(
            modules.OctreeConvBnRelu(*_widths(down), [2], 2, nempty=True) for down in student.downs
        )
        self.ups = nn.ModuleList(modules.OctreeDeconvBnRelu(*_widths(up), [2], 2, nempty=True) for up in student.ups)
        for down, up in zip(self.downs, self.ups, strict=True):  # ocnn's faster layers of this kernel
            down.conv = ocnn.nn.OctreeConvK2(down.conv.in_channels, down.conv.out_channels, nempty=True)
            up.deconv = ocnn.nn.OctreeDeconvK2(up.deconv.in_channels, up.deconv.out_channels, nempty=True)
        self.stages = nn.ModuleList(
            modules.OctreeResBlocks(
                _widths(stage[0].conv1)[0],
                _widths(stage[0].conv1)[1],
                len(stage),
                bottleneck=1,
                nempty=True,
                resblk=modules.OctreeResBlock2,
            )
            for stage in student.stages
        )
        self.heads = nn.ModuleList(modules.Conv1x1(*head.weight.shape) for head in student.heads.values())
        with torch.no_grad():
            for ours, theirs in pairs_of_layers(student, self):
                theirs.bn.load_state_dict(ours.norm.state_dict())
                _weight(theirs).copy_(_as_theirs(ours.kernel, theirs))
            for head, linear in zip(student.heads.values(), self.heads, strict=True):
                linear.linear.weight.copy_(head.weight.T)

    def use(self, setting: Setting) -> "OctreeStudent":
        """Return this network with all its convolutions set so."""
        for module in self.modules():
            if isinstance(module, self._ocnn.nn.OctreeConv):
                module.method, module.max_buffer = setting.method, setting.max_buffer
        return self

    def forward(self, coords: Int[Tensor, "V 4"], feats: Float[Tensor, "V 3"]) -> list[Float[Tensor, "V _"]]:
        """Predict each teacher's features."""
        hidden = self.hidden(coords, feats)
        return [head(hidden) for head in self.heads]

    def hidden(self, coords: Int[Tensor, "V 4"], feats: Float[Tensor, "V 3"]) -> Float[Tensor, "V H"]:
        """Return the features that the heads read, in the order of `coords`."""
        octree, node_of_voxel = build_octree(self._ocnn, coords, feats)
        depth, skips = octree.depth, []
        x = self.stem(octree.features[depth], octree, depth)
        for down, stage in zip(self.downs, self.stages[:NUM_LEVELS], strict=True):
            skips.append(x)
            x = down(x, octree, depth)
            depth -= 1
            x = stage(x, octree, depth)
        for up, stage in zip(self.ups, self.stages[NUM_LEVELS:], strict=True):
            x = up(x, octree, depth)
            depth += 1
            x = stage(torch.cat([x, skips.pop()], dim=1), octree, depth)
        return x.index_select(0, node_of_voxel)


def build_octree(
    ocnn: ModuleType, coords: Int[Tensor, "V 4"], feats: Float[Tensor, "V C"]
) -> tuple[Any, Int[Tensor, "V"]]:
    """Return the octree of the voxels of one scene, with all neighbours, and the node of each voxel."""
    if coords[:, 0].any():
        raise ValueError("The octree of this benchmark holds one scene.")
    cells = coords[:, 1:]
    cells = cells - (cells.amin(dim=0) >> NUM_LEVELS << NUM_LEVELS)
    octree = ocnn.octree.Octree(max(int(cells.max()).bit_length(), NUM_LEVELS + 1))
    points = ocnn.octree.Points(cells + 0.5, features=feats)
    node_of_voxel = octree.build_octree(points, 0.0, 2.0**octree.depth)
    octree.construct_all_neigh()
    return octree, node_of_voxel


def to_ocnn(kernel: Float[Tensor, "K Cin Cout"]) -> Float[Tensor, "L Cin Cout"]:
    """Return a kernel with z fastest, as ocnn wants it; of 5x5x5 positions the 3x3x3 in the middle."""
    size = round(len(kernel) ** (1 / 3))
    cube = kernel.unflatten(0, (size,) * 3).permute(2, 1, 0, 3, 4)
    return (cube[1:4, 1:4, 1:4] if size == 5 else cube).flatten(0, 2)


def pairs_of_layers(student: Student, rival: OctreeStudent) -> list[tuple[ConvNorm, Any]]:
    """Convolutions with their batch norm: the student's, and those of ocnn's modules, which come in the same order."""
    ours = [module for module in student.modules() if isinstance(module, ConvNorm)]
    return list(zip(ours, (module for module in rival.modules() if hasattr(module, "bn")), strict=True))


def fastest_setting(use: Callable[[Setting], Any], run: Callable[[], Any]) -> Setting:
    """Return the setting with which some work takes the least time; `use` switches to one."""

    def run_with(setting: Setting) -> None:
        use(setting)
        run()

    names = {str(setting): setting for setting in SETTINGS}
    seconds = take_turns({name: lambda s=setting: run_with(s) for name, setting in names.items()}, repeats=2)
    return names[min(seconds, key=lambda name: seconds[name])]


def one_layer(
    ocnn: ModuleType, coords: Int[Tensor, "V 4"], x: Float[Tensor, "V Cin"], kernel: Float[Tensor, "27 Cin Cout"]
) -> tuple[Callable[[], Float[Tensor, "V Cout"]], Setting, Int[Tensor, "V"]]:
    """Prepare a 3x3x3 convolution by ocnn at its fastest setting, its octree built before.

    Returns:
        What convolves, in ocnn's order of rows; the setting; the row of each voxel in that order.
    """
    octree, row_of_voxel = build_octree(ocnn, coords, x)
    layer = ocnn.nn.OctreeConv(*kernel.shape[1:], [3], nempty=True).requires_grad_(False)
    layer.weights.copy_(to_ocnn(kernel))

    def run() -> Tensor:
        out: Tensor = layer(octree.features[octree.depth], octree, octree.depth)
        return out

    def use(setting: Setting) -> None:
        layer.method, layer.max_buffer = setting.method, setting.max_buffer

    setting = fastest_setting(use, run)
    use(setting)
    return run, setting, row_of_voxel


def check_equal(name: str, ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference as a share of the largest number; raise a ValueError if it exceeds `TOLERANCE`."""
    difference = float((theirs - ours).abs().max() / ours.abs().max())
    if not difference <= TOLERANCE:
        raise ValueError(f"ocnn computes something else: {name} differ by {difference:.0e}.")
    return difference


def largest_difference(ocnn: ModuleType, coords: Int[Tensor, "V 4"], architecture: str) -> float:
    """Compute the same with both libraries: features of the U-Net, and the gradients of the weights of all layers.

    The outer positions of the student's stem are zero here, and batch norm is that of evaluation: in training, PyTorch
    adds up its statistics less exactly than ours. Gradients are of float64: where rounding moves a number across the
    threshold of a ReLU, those of float32 jump.

    Returns:
        The largest difference, as a share of the largest number of its tensor.

    Raises:
        ValueError: It is larger than `TOLERANCE`.
    """
    torch.manual_seed(0)
    student, feats = Student({}, architecture).eval(), torch.randn(len(coords), 3)
    with torch.no_grad():
        outer = torch.nn.functional.pad(torch.zeros(3, 3, 3, dtype=torch.bool), (1,) * 6, value=True)
        student.stem.kernel[outer.flatten()] = 0
        for ours in (module for module in student.modules() if isinstance(module, ConvNorm)):
            ours.norm.running_mean.normal_(std=0.1)
            ours.norm.running_var.uniform_(0.5, 2)
    rival = OctreeStudent(ocnn, student).eval()
    networks: list[Any] = [student, rival]
    with torch.no_grad():
        differences = [check_equal("features", *(network.hidden(coords, feats) for network in networks))]
    for network in networks:
        network.double().hidden(coords, feats.double()).square().mean().backward()
    for place, (ours, theirs) in enumerate(pairs_of_layers(student, rival)):
        grads = _as_theirs(ours.kernel.grad, theirs), _weight(theirs).grad
        differences.append(check_equal(f"gradients of convolution {place}", *grads))
    return max(differences)


def _as_theirs(kernel: Tensor, layer: Any) -> Tensor:
    """Kernel of the student, or its gradient, in the layout of a layer of ocnn."""
    if kernel.dim() == 2:
        return kernel.T
    return to_ocnn(kernel).transpose(1, 2) if hasattr(layer, "deconv") else to_ocnn(kernel)


def _weight(layer: Any) -> Tensor:
    """Weights of the convolution in a module of ocnn."""
    convolution = layer.deconv if hasattr(layer, "deconv") else layer.conv
    weight: Tensor = convolution.linear.weight if hasattr(convolution, "linear") else convolution.weights
    return weight


def _widths(layer: ConvNorm) -> tuple[int, int]:
    """Channels that go in and come out."""
    return layer.kernel.shape[-2], layer.kernel.shape[-1]
