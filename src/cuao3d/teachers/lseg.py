"""LSeg: per-pixel features in CLIP's text space, from a vision transformer read at four depths (Li et al., ICLR 2022).

The image side of the published checkpoint `demo_e200.ckpt`, in plain PyTorch. Parameters are named as in the
checkpoint, so its tensors are taken as they are. Its text side is `cuao3d.text.lseg`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cuao3d.download import CARDS, find
from cuao3d.errors import InputError
from cuao3d.files import sha256_of
from cuao3d.pickles import load_into
from cuao3d.pretrained.checkpoint import read_checkpoint
from cuao3d.teachers.network import Level, NetworkTeacher
from cuao3d.teachers.options import LongSide

Mirror = Literal["mean", "sum", "none"]
"""What an image's mirror image adds: the "mean" of both, their "sum" as in the official code, or nothing."""

PATCH = 16
"""Pixels along a patch."""

OTHER_SIDES = ("clip_pretrained.", "logit_scale", "pretrained.model.head.", "pretrained.model.norm.")
"""Tensors of a checkpoint that the features do not need: the text side, and what comes after the last depth read."""


class LSegTeacher(NetworkTeacher):
    """LSeg as a teacher: a vector in CLIP's text space for every 2 x 2 pixels, up to unit length."""

    name = "lseg"
    num_channels = CARDS["lseg"].num_channels
    licence = CARDS["lseg"].licence
    levels = (Level(512, 2.0),)

    def __init__(self, weights: Path | None = None, *, long_side: LongSide = 640, mirror: Mirror = "mean") -> None:
        """Load the weights.

        Args:
            weights: The checkpoint; by default where `cuao3d.download.find` finds it.
            long_side: Pixels to which an image's longer side is resized, a multiple of 32. The official code takes
                640 for ScanNet, 1280 for Matterport.
            mirror: What the image's mirror image adds.

        Raises:
            InputError: A setting is impossible, or the checkpoint is something else or damaged.
            NotFoundError: The checkpoint is not there.
        """
        if mirror not in get_args(Mirror):
            raise InputError(f"Unknown mirror {mirror!r}; choose from {get_args(Mirror)}.")
        if long_side < 1 or long_side % (2 * PATCH):
            raise InputError(f"LSeg needs a long_side that is a multiple of {2 * PATCH} pixels; got {long_side}.")
        path = weights or find("lseg")
        self.network = load_lseg(path)
        self.weights_sha256 = sha256_of(path)
        self.text = f"lseg:{weights.absolute()}" if weights else CARDS["lseg"].text
        self.long_side, self.mirror = long_side, mirror

    def _describe(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B 512 _ _"], ...]:
        features = self._see(images)
        if self.mirror == "none":
            return (features,)
        # Mirrored before it is padded, so that padding lies on the right both times. The official code mirrors the
        # padded square, which is the same for all images that are not higher than wide.
        features = features + self._see(images.flip(3)).flip(3)
        return (features / 2 if self.mirror == "mean" else features,)

    def _see(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 512 _ _"]:
        """Describe images in the upper left of a square, and cut out what belongs to them.

        A cell covers 2 x 2 pixels. Sides are even, so that the cells that are cut out cover the image, no more and no
        less; that changes its shape by a pixel at most.
        """
        scale = self.long_side / (2 * max(images.shape[2:]))
        rows, columns = (max(1, round(side * scale)) for side in images.shape[2:])
        resized = F.interpolate(images * 2 - 1, (2 * rows, 2 * columns), mode="bilinear", align_corners=True)
        padding = (0, self.long_side - 2 * columns, 0, self.long_side - 2 * rows)
        features: Tensor = self.network(F.pad(resized, padding, value=-1.0))
        return features[:, :, :rows, :columns].float()


def load_lseg(path: Path) -> "LSeg":
    """Load the network from its checkpoint.

    Args:
        path: As published; or its tensors alone, saved by PyTorch or as safetensors.

    Raises:
        NotFoundError: There is no such file.
        InputError: It is no checkpoint, a damaged one, one with code in it, or one of another model.
    """
    tensors = {name: tensor for name, tensor in read_checkpoint(path).items() if not name.startswith(OTHER_SIDES)}
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    try:
        return LSeg.from_official(floats)
    except ValueError as error:
        raise InputError(f"{path} holds another model. {error}") from None


class LSeg(nn.Module):
    """Image side of LSeg."""

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        depth: int,
        num_positions: int,
        hooks: Sequence[int],
        branches: Sequence[int],
        fused: int,
        num_channels: int,
    ) -> None:
        """Make the network with fresh weights.

        Args:
            width: Channels of the transformer.
            num_heads: Attention heads of each of its blocks.
            depth: Number of its blocks.
            num_positions: Learned positions, the class token's included; the others form a square.
            hooks: Blocks after which it is read, four, ascending.
            branches: Channels of each of the four readings.
            fused: Channels in which the readings are fused.
            num_channels: Channels of the features.
        """
        super().__init__()
        self.hooks = tuple(hooks)
        self.pretrained = nn.ModuleDict({"model": _Transformer(width, num_heads, depth, num_positions)})
        self.scratch = nn.ModuleDict({"head1": nn.Conv2d(fused, num_channels, 1)})
        for index, channels in enumerate(branches, start=1):
            self.pretrained[f"act_postprocess{index}"] = _Reading(index, width, channels)
            self.scratch[f"layer{index}_rn"] = nn.Conv2d(channels, fused, 3, padding=1, bias=False)
            self.scratch[f"refinenet{index}"] = _Fusion(fused)

    @staticmethod
    def from_official(
        state_dict: Mapping[str, Tensor], *, num_heads: int = 16, hooks: Sequence[int] = (5, 11, 17, 23)
    ) -> "LSeg":
        """Build the network that official tensors belong to; widths and depth are read off their shapes.

        Args:
            state_dict: Tensors by their official names, which may start with `net.`.
            num_heads: Attention heads, which no shape tells; 16 in ViT-L.
            hooks: Blocks after which the transformer is read, likewise; those of ViT-L.

        Raises:
            InputError: Tensors are missing, extra, or of another shape.
        """
        tensors = {name.removeprefix("net."): tensor for name, tensor in state_dict.items()}
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(OTHER_SIDES)}
        needed = [
            "pretrained.model.pos_embed",
            "scratch.head1.weight",
            *(f"pretrained.act_postprocess{i}.3.weight" for i in range(1, 5)),
        ]
        missing = [name for name in needed if name not in tensors]
        if missing:
            raise InputError(f"These are not the tensors of LSeg: {', '.join(missing)} are missing.")
        blocks = {int(match[1]) for name in tensors if (match := re.match(r"pretrained\.model\.blocks\.(\d+)\.", name))}
        if max(blocks, default=-1) < max(hooks):
            raise InputError(
                f"A transformer of {len(blocks)} blocks cannot be read after block {max(hooks)}; pass hooks."
            )
        positions, head = tensors[needed[0]], tensors[needed[1]]
        with torch.device(head.device):
            network = LSeg(
                width=positions.shape[2],
                num_heads=num_heads,
                depth=len(blocks),
                num_positions=positions.shape[1],
                hooks=hooks,
                branches=[tensors[name].shape[0] for name in needed[2:]],
                fused=head.shape[1],
                num_channels=head.shape[0],
            )
        load_into(network, tensors, what="LSeg", assign=True)
        return network.eval().requires_grad_(False)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Describe images by unit vectors at half their size.

        Args:
            image: RGB in [-1, 1]; both sides multiples of 32 pixels, so that the four readings fit each other.

        Raises:
            InputError: A side is no multiple of 32.
        """
        height, width = image.shape[2:]
        if height % (2 * PATCH) or width % (2 * PATCH):
            raise InputError(
                f"LSeg needs sides that are multiples of {2 * PATCH} pixels; got {width} x {height}. Pad them."
            )
        readings = self.pretrained["model"](image, self.hooks)
        fused: Tensor | None = None
        for index in (4, 3, 2, 1):
            grid = readings[index - 1].unflatten(1, (height // PATCH, width // PATCH))
            reading = self.pretrained[f"act_postprocess{index}"](grid)
            fused = self.scratch[f"refinenet{index}"](self.scratch[f"layer{index}_rn"](reading), fused)
        return F.normalize(self.scratch["head1"](fused), dim=1)


class _Transformer(nn.Module):
    """ViT, whose positions are resized to the image's grid."""

    def __init__(self, width: int, num_heads: int, depth: int, num_positions: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_positions, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, stride=PATCH)})
        self.blocks = nn.ModuleList(_Block(width, num_heads) for _ in range(depth))

    def forward(self, image: Tensor, hooks: Sequence[int]) -> list[Tensor]:
        """Return the class token beside every patch's, (B, patches, 2 width), after some of the blocks."""
        patches = self.patch_embed["proj"](image)
        x = torch.cat([self.cls_token.expand(len(image), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        x = x + self._positions(patches.shape[2], patches.shape[3])
        read = []
        for index, block in enumerate(self.blocks[: max(hooks) + 1]):
            x = block(x)
            if index in hooks:
                read.append(torch.cat([x[:, 1:], x[:, :1].expand_as(x[:, 1:])], dim=2))
        return read

    def _positions(self, height: int, width: int) -> Tensor:
        of_class, of_patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        side = round(of_patches.shape[1] ** 0.5)
        square = of_patches.transpose(1, 2).reshape(1, -1, side, side)
        resized = F.interpolate(square, (height, width), mode="bilinear", align_corners=False)
        return torch.cat([of_class, resized.flatten(2).transpose(1, 2)], dim=1)


class _Block(nn.Module):
    """Attention and a two-layer perceptron, each added to what it reads normalised."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.attn["proj"](attended)
        out: Tensor = x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return out


class _Reading(nn.Module):
    """Brings tokens that were read at one depth to its resolution: 4, 2, 1 and 1/2 times the grid of patches."""

    def __init__(self, index: int, width: int, channels: int) -> None:
        super().__init__()
        resize: dict[int, nn.Module] = {
            1: nn.ConvTranspose2d(channels, channels, 4, stride=4),
            2: nn.ConvTranspose2d(channels, channels, 2, stride=2),
            4: nn.Conv2d(channels, channels, 3, stride=2, padding=1),
        }
        # The numbers are places in the official nn.Sequential; those without parameters are left out.
        self.add_module("0", nn.ModuleDict({"project": nn.Sequential(nn.Linear(2 * width, width), nn.GELU())}))
        self.add_module("3", nn.Conv2d(width, channels, 1))
        self.add_module("4", resize.get(index, nn.Identity()))

    def forward(self, grid: Tensor) -> Tensor:
        """Turn tokens beside the class token, (B, h, w, 2 width), into a map."""
        tokens = self.get_submodule("0.project")(grid).permute(0, 3, 1, 2)
        out: Tensor = self.get_submodule("4")(self.get_submodule("3")(tokens))
        return out


class _Fusion(nn.Module):
    """Adds a finer reading to what the coarser ones became, and doubles the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(channels, channels, 1)
        self.resConfUnit1, self.resConfUnit2 = _Residual(channels), _Residual(channels)

    def forward(self, reading: Tensor, coarser: Tensor | None) -> Tensor:
        # The official block adds the finer one; the coarsest stands alone, and its first unit is never used.
        x = reading if coarser is None else coarser + self.resConfUnit1(reading)
        x = F.interpolate(self.resConfUnit2(x), scale_factor=2, mode="bilinear", align_corners=True)
        out: Tensor = self.out_conv(x)
        return out


class _Residual(nn.Module):
    """Two convolutions with batch norm, added to what they read."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn1(self.conv1(F.relu(x)))
        return x + self.bn2(self.conv2(F.relu(out)))  # type: ignore[no-any-return]
