"""The student: a MinkUNet on sparse voxels with one bias-free linear head per teacher."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NotRequired, TypedDict, cast

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from cuao3d.errors import InputError, NotFoundError
from cuao3d.files import write_tensors
from cuao3d.heads import Head, HeadKind, Heads, tensor_name
from cuao3d.pickles import load_into, read_torch
from cuao3d.ranks import in_group, mean_over_ranks
from cuao3d.schema import Length, Width, parse
from cuao3d.seals import check_tensors, sealed
from cuao3d.sparse import KernelMap, VoxelSet, convolve, multiply, sort_voxels
from cuao3d.teachers import Calibration, canonical, known_card
from cuao3d.vocabulary import Vocabulary

OFFICIAL_VOXEL = 0.02
"""Edge of a voxel in the training of OpenScene and CUA-O3D, metres."""

NUM_INPUTS = 3
"""Channels of the input features; the constant (1, 1, 1) where only geometry is used."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of a MinkUNet: four stages down, four up."""

    planes: tuple[int, ...]
    """Channels of each stage."""
    num_blocks: tuple[int, ...]
    """Residual blocks of each stage."""
    num_stem: int = 32
    """Channels of the first convolution."""


_BLOCKS_14, _BLOCKS_18, _BLOCKS_34 = (1,) * 8, (2,) * 8, (2, 3, 4, 6, 2, 2, 2, 2)

ARCHITECTURES: dict[str, Architecture] = {
    "MinkUNet14A": Architecture((32, 64, 128, 256, 128, 128, 96, 96), _BLOCKS_14),
    "MinkUNet14B": Architecture((32, 64, 128, 256, 128, 128, 128, 128), _BLOCKS_14),
    "MinkUNet14C": Architecture((32, 64, 128, 256, 192, 192, 128, 128), _BLOCKS_14),
    "MinkUNet14D": Architecture((32, 64, 128, 256, 384, 384, 384, 384), _BLOCKS_14),
    "MinkUNet18A": Architecture((32, 64, 128, 256, 128, 128, 96, 96), _BLOCKS_18),
    "MinkUNet18B": Architecture((32, 64, 128, 256, 128, 128, 128, 128), _BLOCKS_18),
    "MinkUNet18D": Architecture((32, 64, 128, 256, 384, 384, 384, 384), _BLOCKS_18),
    "MinkUNet34A": Architecture((32, 64, 128, 256, 256, 128, 64, 64), _BLOCKS_34),
    "MinkUNet34B": Architecture((32, 64, 128, 256, 256, 128, 64, 32), _BLOCKS_34),
    "MinkUNet34C": Architecture((32, 64, 128, 256, 256, 128, 96, 96), _BLOCKS_34),
    "MinkUNet14Mini": Architecture((16, 32, 64, 128, 64, 64, 48, 48), _BLOCKS_14, num_stem=16),
}
"""Sizes of the reference implementation's networks, and a small one for quick runs."""


class Student(nn.Module):
    """Sparse U-Net from voxels to features, with a head per teacher on top.

    Attributes:
        architecture: Its name in `ARCHITECTURES`.
        head: Kind of its heads.
        num_channels: Channels of each head, by teacher.
        num_hidden: Channels that the heads read.
        heads: One `Head` per teacher; `heads[name].weight` is (num_hidden, channels).
        noise: Predicts the log variance of each teacher from the same channels; None if not learned.
        voxel_size: Edge of the voxels that it was trained with, metres; None if unknown.
        teachers: Card of each teacher, as JSON; empty if unknown. With both, its file alone can answer text queries.
        vocabulary: Words that it was trained with; None if unknown.
        calibration: Relevance at which verdicts about its features change; None: as for its teacher.
    """

    voxel_size: float | None = None
    teachers: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    vocabulary: Vocabulary | None = None
    calibration: Calibration | None = None

    def __init__(
        self,
        heads: Mapping[str, int],
        architecture: str = "MinkUNet18A",
        *,
        head: HeadKind = "linear",
        noise: bool = False,
    ) -> None:
        """Make a student with fresh weights.

        Args:
            heads: Channels of each head, by teacher.
            architecture: A name in `ARCHITECTURES`.
            head: `linear`, as in the paper, or `mlp`: a hidden layer of the same width and a ReLU before it.
            noise: Whether it also predicts, for each voxel, the uncertainty about each teacher.

        Raises:
            InputError: There is no such architecture.
        """
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise InputError(f"Unknown architecture {architecture!r}; choose from {', '.join(ARCHITECTURES)}.")
        plan = ARCHITECTURES[architecture]
        down, up = plan.planes[:4], plan.planes[4:]
        skips = (plan.num_stem, *down[:3])  # channels at each resolution on the way down, finest first
        self.architecture = architecture
        self.num_channels = dict(heads)
        self.num_hidden = plan.planes[-1]
        self.stem = ConvNorm(NUM_INPUTS, plan.num_stem, size=5)
        self.downs = nn.ModuleList(ConvNorm(channels, channels, size=2) for channels in skips)
        self.ups = nn.ModuleList(
            ConvNorm(before, channels, size=2, transposed=True)
            for before, channels in zip((down[-1], *up), up, strict=False)
        )
        inputs = (*skips, *(channels + skip for channels, skip in zip(up, reversed(skips), strict=True)))
        self.stages = nn.ModuleList(
            Stage(Block(before if i == 0 else channels, channels) for i in range(num_blocks))
            for before, channels, num_blocks in zip(inputs, plan.planes, plan.num_blocks, strict=True)
        )
        self.head: HeadKind = head
        self.heads = Heads({name: Head(self.num_hidden, channels, head) for name, channels in heads.items()})
        self.noise = nn.Linear(self.num_hidden, len(heads)) if noise else None
        for parameter in () if self.noise is None else self.noise.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, coords: Int[Tensor, "V 4"], feats: Float[Tensor, "V 3"], heads: Iterable[str] | None = None
    ) -> dict[str, Float[Tensor, "V _"]]:
        """Predict each teacher's features.

        Args:
            coords: Distinct voxels [batch, x, y, z] in any order, in cells.
            feats: Input features of each voxel.
            heads: Teachers to predict; None: all. Heads that are left out cost nothing.

        Returns:
            Per teacher one row of features per voxel, in the order of `coords`.

        Raises:
            InputError: There is no such head, or the voxels or features are invalid.
        """
        names = list(self.heads) if heads is None else list(heads)
        unknown = [name for name in names if name not in self.heads]
        if unknown:
            raise InputError(f"This student has no head {', '.join(unknown)}; it has {', '.join(self.heads)}.")
        hidden = self.hidden(coords, feats)
        return {name: self.heads[name](hidden) for name in names}

    def unsureness(self, coords: Int[Tensor, "V 4"], feats: Float[Tensor, "V 3"]) -> dict[str, Float[Tensor, "V"]]:
        """Return the uncertainty about each teacher's features, by teacher a standard deviation per voxel.

        Args:
            coords: Voxels, as in `forward`.
            feats: Input features of each voxel.

        Raises:
            InputError: The student was not trained with the weighting `heteroscedastic`.
        """
        if self.noise is None:
            raise InputError(
                "This student did not learn noise per voxel; distil it with --config.weighting heteroscedastic."
            )
        sigmas = (self.noise(self.hidden(coords, feats).float()) / 2).exp()
        return dict(zip(self.heads, sigmas.unbind(dim=1), strict=True))

    def hidden(self, coords: Int[Tensor, "V 4"], feats: Float[Tensor, "V 3"]) -> Float[Tensor, "V H"]:
        """Return the features that the heads read; `coords` and `feats` as in `forward`.

        Raises:
            InputError: The features are not three finite numbers a voxel.
        """
        if feats.shape != (len(coords), NUM_INPUTS):
            raise InputError(
                f"{len(coords)} voxels need features of shape ({len(coords)}, {NUM_INPUTS}); got {tuple(feats.shape)}."
            )
        if not feats.isfinite().all():
            raise InputError(f"{int((~feats.isfinite()).any(dim=1).sum())} voxels have features that are not finite.")
        voxels, row_of_voxel = sort_voxels(coords)
        hidden = self._run(voxels, feats[row_of_voxel])
        voxel_of_row = torch.empty_like(row_of_voxel)
        voxel_of_row[row_of_voxel] = torch.arange(len(voxels), device=coords.device)
        return hidden.index_select(0, voxel_of_row)

    def _run(self, voxels: VoxelSet, x: Tensor) -> Tensor:
        """Run the U-Net on sorted voxels."""
        x = self.stem(x, voxels.neighbours(5))
        levels, skips = [], []
        for down, stage in zip(self.downs, self.stages[:4], strict=True):
            levels.append(voxels)
            skips.append(x)
            x, voxels = down(x, voxels.down), voxels.coarse
            x = stage(x, voxels.neighbours(3))
        for up, stage in zip(self.ups, self.stages[4:], strict=True):
            voxels = levels.pop()
            x = stage(torch.cat([up(x, voxels.up), skips.pop()], dim=1), voxels.neighbours(3))
        return x

    def use_backend(self, backend: str) -> Student:
        """Return this student with its convolutions switched to `backend`, one of `sparse.BACKENDS`."""
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.backend = backend
        return self

    def save(self, path: Path | str) -> None:
        """Write weights, architecture, heads, voxel size and teachers to `path` (.safetensors), atomically."""
        plan = {
            "architecture": self.architecture,
            "heads": self.num_channels,
            "head": self.head,
            "noise": self.noise is not None,
            "biased": [name for name, head in self.heads.items() if head.bias is not None],
            "voxel_size": self.voxel_size,
            "teachers": dict(self.teachers),
            "vocabulary": None if self.vocabulary is None else asdict(self.vocabulary),
            "calibration": None if self.calibration is None else asdict(self.calibration),
        }
        write_tensors(Path(path), self.state_dict(), {"student": sealed(self.state_dict(), plan)})

    @staticmethod
    def load(path: Path | str) -> Student:
        """Return the student in `path`: our `.safetensors`, or a `.pth.tar` of OpenScene or CUA-O3D.

        Raises:
            NotFoundError: There is no such file.
            InputError: It holds something else, or only a part of a student.
        """
        return read_checkpoint(path).student


class ConvNorm(nn.Module):
    """Sparse convolution without bias, then batch norm, then an optional sum and ReLU."""

    def __init__(self, num_in: int, num_out: int, size: int, transposed: bool = False) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(*(() if size == 1 else (size**3,)), num_in, num_out))
        self.norm = Norm(num_out)
        self.backend = "runs"
        if transposed:
            bound = (size**3 * num_out) ** -0.5
            nn.init.uniform_(self.kernel, -bound, bound)
        else:
            # The reference's fan-out of a 1x1x1 kernel is its number of inputs.
            nn.init.normal_(self.kernel, std=(2 / (num_in if size == 1 else size**3 * num_out)) ** 0.5)

    def forward(self, x: Tensor, kernel_map: KernelMap | None, plus: Tensor | None = None, relu: bool = True) -> Tensor:
        """Convolve x over a map (None: each voxel by itself), normalise, add `plus`, rectify."""
        if self.training:
            x = self.norm(self._convolve(x, self.kernel, kernel_map))
        else:
            scale, shift = self.norm.as_affine()
            x = self._convolve(x, self.kernel * scale, kernel_map)
            x += shift.to(x.dtype)
        if plus is not None:
            x += plus
        return F.relu(x, inplace=True) if relu else x

    def _convolve(self, x: Tensor, kernel: Tensor, kernel_map: KernelMap | None) -> Tensor:
        return multiply(x, kernel) if kernel_map is None else convolve(x, kernel, kernel_map, self.backend)


class Norm(nn.BatchNorm1d):
    """Batch norm over voxels with exact batch statistics.

    On the CPU, PyTorch sums float32 rows one after another and is off by 1e-5 at 60,000 rows already. Processes that
    train together normalise over the voxels of all of them.
    """

    def forward(self, x: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """Normalise over the voxels of a batch and update the running statistics."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            mean, count = mean_over_ranks(x.mean(dim=0, dtype=self.weight.dtype), len(x))
            var, _ = mean_over_ranks((x - mean).square_().mean(dim=0), len(x))
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / max(count - 1, 1), self.momentum)
            self.num_batches_tracked.add_(1)
        out = _Normalise.apply(x, self.weight, self.bias, mean, var, self.eps)  # type: ignore[no-untyped-call]
        return cast(Tensor, out)

    def as_affine(self) -> tuple[Float[Tensor, "C"], Float[Tensor, "C"]]:
        """Return the scale and shift that the running statistics amount to."""
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class _Normalise(torch.autograd.Function):
    """Normalise by the mean and the biased variance over all processes, and differentiate through both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_deviation = ctx.saved_tensors
        if not in_group():
            return (
                *torch.ops.aten.native_batch_norm_backward(
                    grad.contiguous(), x, weight, None, None, mean, inverse_deviation, True, ctx.eps, [True, True, True]
                ),
                None,
                None,
                None,
            )
        unit, grad = (x - mean) * inverse_deviation, grad.to(weight.dtype)
        along, level = (grad * unit).mean(dim=0), grad.mean(dim=0)
        both, _ = mean_over_ranks(torch.cat([along, level]), len(x))
        mean_along, mean_level = both.chunk(2)
        grad_x = (grad - mean_level - unit * mean_along) * (weight * inverse_deviation)
        return grad_x.to(x.dtype), along * len(x), level * len(x), None, None, None


class Stage(nn.ModuleList):
    """Sequence of residual blocks."""

    def forward(self, x: Float[Tensor, "N C"], kernel_map: KernelMap) -> Float[Tensor, "N D"]:
        """Apply the blocks over the voxels of a map."""
        for block in self:
            x = block(x, kernel_map)
        return x


class Block(nn.Module):
    """Residual block: two 3x3x3 convolutions and a shortcut, which is a 1x1x1 convolution where the width changes."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(num_in, num_out, size=3)
        self.conv2 = ConvNorm(num_out, num_out, size=3)
        self.shortcut = ConvNorm(num_in, num_out, size=1) if num_in != num_out else None

    def forward(self, x: Float[Tensor, "N C"], kernel_map: KernelMap) -> Float[Tensor, "N D"]:
        """Apply the block over the voxels of a map."""
        shortcut = x if self.shortcut is None else self.shortcut(x, None, relu=False)
        out: Tensor = self.conv2(self.conv1(x, kernel_map), kernel_map, plus=shortcut)
        return out


@dataclass(frozen=True)
class Checkpoint:
    """A student read from a file, and which of the file's tensors it uses."""

    student: Student
    used: tuple[str, ...]
    """Names of the tensors that the student uses, as in the file."""
    left_over: tuple[str, ...]
    """Names of the tensors that it does not use: the heads of probes."""

    def describe(self) -> str:
        """Return architecture, heads and tensors in a few lines of text."""
        heads = ", ".join(f"{name} ({channels})" for name, channels in self.student.num_channels.items())
        lines = [f"architecture: {self.student.architecture}", f"heads: {heads or 'none'}"]
        lines += [f"tensors used: {len(self.used)}", f"tensors left over: {len(self.left_over)}"]
        return "\n".join(lines + [f"  {name} (a probe's head)" for name in self.left_over])


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read our `.safetensors` or a `.pth.tar` of OpenScene or CUA-O3D, without running code from a pickle.

    Raises:
        NotFoundError: There is no such file.
        InputError: It is damaged, or its tensors do not fit a student.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"There is no checkpoint {path}.")
    content = None if path.suffix == ".safetensors" else read_torch(path)
    try:
        return _read_ours(path) if content is None else convert_official(_state_dict(content))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def convert_official(state_dict: Mapping[str, Tensor]) -> Checkpoint:
    """Make a student from official tensors, whose names may start with `module.` or `net3d.`."""
    original = {re.sub(r"^(module\.|net3d\.)+", "", name): name for name in state_dict}
    named = [name for name in original if re.fullmatch(r"final(?!_seg)(_\w+)?\.kernel", name)]
    teacher_of = {name: _teacher_of_head(name, state_dict[original[name]]) for name in named}
    body = {name: state_dict[original[name]] for name in original if not name.startswith("final")}
    heads = {teacher: state_dict[original[name]] for name, teacher in teacher_of.items()}
    student = Student({teacher: kernel.shape[-1] for teacher, kernel in heads.items()}, _closest_architecture(body))
    ours_of = {_official_name(ours): ours for ours in student.state_dict() if not ours.startswith("heads.")}
    load_into(
        student,
        {ours_of.get(name, name): tensor for name, tensor in body.items()}
        | {f"heads.{tensor_name(teacher)}.weight": kernel for teacher, kernel in heads.items()},
        what=student.architecture,
        names={ours: theirs for theirs, ours in ours_of.items()},
    )
    left_over = tuple(original[name] for name in original.keys() - body.keys() - teacher_of.keys())
    used = tuple(name for name in state_dict if name not in left_over)
    student.voxel_size, student.vocabulary = OFFICIAL_VOXEL, Vocabulary()  # their losses know no words
    return Checkpoint(student, used, tuple(sorted(left_over)))


class _Plan(TypedDict):
    """What the metadata of our files say of a student."""

    architecture: str
    heads: dict[str, Width]
    head: NotRequired[HeadKind]
    noise: NotRequired[bool]
    biased: NotRequired[list[str]]
    voxel_size: NotRequired[Length | None]
    teachers: NotRequired[dict[str, dict[str, Any]]]
    vocabulary: NotRequired[Vocabulary | None]
    calibration: NotRequired[Calibration | None]


def _read_ours(path: Path) -> Checkpoint:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise InputError(f"not a safetensors file, or only a part of one ({error}).") from error
    if "student" not in metadata:
        raise InputError("is not a student of this package: its metadata lacks architecture and heads.")
    plan: _Plan = parse(metadata["student"], _Plan, "its metadata")
    check_tensors(tensors, metadata["student"])
    for name, channels in plan["heads"].items():  # before anything is made of that size
        weight = tensors.get(f"heads.{tensor_name(name)}.weight")
        if weight is None or weight.shape[-1:] != (channels,):
            raise InputError(f"its metadata and its tensors do not fit: no head {name!r} of {channels} channels.")
    kind, noise = plan.get("head", "linear"), plan.get("noise", False)
    student = Student(plan["heads"], plan["architecture"], head=kind, noise=noise)
    for name in plan.get("biased", ()):
        if name not in plan["heads"]:
            raise InputError(f"its metadata names no head {name!r}.")
        student.heads[name].bias = torch.zeros(plan["heads"][name])
    load_into(student, tensors, what=student.architecture)
    student.voxel_size, student.teachers = plan.get("voxel_size"), plan.get("teachers", {})
    student.vocabulary, student.calibration = plan.get("vocabulary"), plan.get("calibration")
    return Checkpoint(student, tuple(tensors), ())


def _state_dict(content: Any) -> Mapping[str, Tensor]:
    """Find the state dict in a loaded checkpoint."""
    state_dict = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state_dict, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state_dict.values()):
        raise InputError("holds no state dict of tensors.")
    return cast(Mapping[str, Tensor], state_dict)


def _closest_architecture(body: Mapping[str, Tensor]) -> str:
    """Find the architecture that shares the most stage sizes with official tensors."""
    convs = [sorted(name for name in body if re.fullmatch(rf"block{i}\.\d+\.conv1\.kernel", name)) for i in range(1, 9)]
    planes = [body[names[0]].shape[-1] if names else 0 for names in convs]
    num_stem = body["conv0p1s1.kernel"].shape[-1] if "conv0p1s1.kernel" in body else 0
    found = (*planes, *(len(names) for names in convs), num_stem)

    def num_differences(plan: Architecture) -> int:
        return sum(a != b for a, b in zip(found, (*plan.planes, *plan.num_blocks, plan.num_stem), strict=True))

    return min(ARCHITECTURES, key=lambda name: num_differences(ARCHITECTURES[name]))


def _official_name(ours: str) -> str:
    """Return the official name of a tensor of the U-Net."""
    match ours.split("."):
        case ["stem", *leaf]:
            conv, norm = "conv0p1s1", "bn0"
        case ["downs", i, *leaf]:
            conv, norm = f"conv{int(i) + 1}p{2 ** int(i)}s2", f"bn{int(i) + 1}"
        case ["ups", i, *leaf]:
            conv, norm = f"convtr{int(i) + 4}p{2 ** (4 - int(i))}s2", f"bntr{int(i) + 4}"
        case ["stages", i, j, "shortcut", *leaf]:
            conv, norm = (f"block{int(i) + 1}.{j}.downsample.{n}" for n in (0, 1))
        case ["stages", i, j, layer, *leaf]:
            conv, norm = (f"block{int(i) + 1}.{j}.{kind}{layer[-1]}" for kind in ("conv", "norm"))
        case _:
            raise AssertionError(ours)
    return f"{conv}.kernel" if leaf == ["kernel"] else f"{norm}.bn.{leaf[-1]}"


def _teacher_of_head(name: str, kernel: Tensor) -> str:
    """Return the teacher of an official head; `final` is a language teacher's, identified by its width."""
    teacher = name.removeprefix("final").removeprefix("_").removesuffix(".kernel")
    if not teacher:
        widths = {card.num_channels: name for name in ("lseg", "openseg") if (card := known_card(name))}
        return widths.get(kernel.shape[-1], "final")
    return canonical(teacher)
