"""Four small teachers, trained from pixels, that stand in for LSeg, a supervised ViT, DINOv2 and Stable Diffusion.

`mini-lseg` learned to place pixels of rooms in a text space (LSeg's pixel-text objective). The others know no words and
learned from rooms and houses: `mini-vit` which kinds of things a patch shows, `mini-dino` the features of hidden
patches (self-distillation without labels), `mini-diffusion` to remove noise from images. Nothing else ever uses these
rooms and houses. The teachers were trained by `scripts/train_mini_teachers.py`; their weights and cards lie in
`weights/`.
"""

import hashlib
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors.torch import load_file
from torch import Tensor, nn

from cuao3d.errors import NotFoundError
from cuao3d.files import sha256_of
from cuao3d.teachers.network import Level, NetworkTeacher

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the weights that ship with the package."""

IMAGE_SIZE = (120, 160)
"""Height and width, pixels, that the networks look at; images are resized to it."""


class _MiniTeacher(NetworkTeacher):
    """Loads a network from a file and resizes images to what it was trained on."""

    about = "a small network trained on made rooms; its answers about real photographs are poor"
    """What it was trained on, for those who ask it."""
    licence = "Apache-2.0"

    def __init__(self, network: nn.Module, weights: Path | None) -> None:
        path = weights or WEIGHTS / f"{self.name.replace('-', '_')}.safetensors"
        if not path.is_file():
            raise NotFoundError(f"No weights at {path}; reinstall cuao3d, or run scripts/train_mini_teachers.py.")
        self.weights_sha256 = sha256_of(path)
        tensors = {key: value for key, value in load_file(path).items() if key != "text_mean"}
        network.load_state_dict(tensors)
        network.eval().requires_grad_(False)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _see(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 h w"]:
        """Resize images by area averages and centre their values about 0."""
        small = F.interpolate(images, IMAGE_SIZE, mode="area")
        return ((small - 0.5) * 2).contiguous(memory_format=torch.channels_last)


class MiniLSeg(_MiniTeacher):
    """Language-aligned segmenter: an embedding in the centred MiniLM space per 4 x 4 pixels of a 320 x 240 image."""

    name = "mini-lseg"
    num_channels = 384
    levels = (Level(384, 2),)
    text = "minilm-centred"

    def __init__(self, weights: Path | None = None) -> None:
        """Load the weights: those that come with the package, unless a file is given."""
        super().__init__(Segmenter(), weights)

    def __call__(self, image: Float[Tensor, "3 H W"]) -> Float[Tensor, "384 h w"]:
        """Describe an image by unit vectors on a grid of 80 x 60."""
        return self.batch(image[None])[0][0]

    def _describe(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B 384 h w"], ...]:
        return (F.normalize(self.network(self._see(images)).float(), dim=1),)


class _PatchTeacher(_MiniTeacher):
    """A transformer: a patch token per 16 x 16 pixels of a 320 x 240 image."""

    num_channels = 160
    levels = (Level(160, 8),)

    def __init__(self, weights: Path | None = None) -> None:
        """Load the weights: those that come with the package, unless a file is given."""
        super().__init__(Transformer(), weights)

    def __call__(self, image: Float[Tensor, "3 H W"]) -> Float[Tensor, "160 h w"]:
        """Describe an image by normalised patch tokens on a grid of 20 x 15."""
        return self.batch(image[None])[0][0]

    def _describe(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B 160 h w"], ...]:
        tokens = self.network(self._see(images))
        return (tokens.transpose(1, 2).reshape(len(images), self.num_channels, *Transformer.grid).contiguous(),)


class MiniVit(_PatchTeacher):
    """Supervised transformer."""

    name = "mini-vit"


class MiniDino(_PatchTeacher):
    """Self-supervised transformer."""

    name = "mini-dino"
    loss = "l1"


class MiniDiffusion(_MiniTeacher):
    """Denoising diffusion U-Net: activations of its three decoder blocks after one small noising step.

    A 320 x 240 image gives maps of 20 x 15 (128 channels), 40 x 30 (80) and 80 x 60 (40). The noise is drawn from a
    generator seeded by the image's content: the same image gives the same features.
    """

    name = "mini-diffusion"
    num_channels = 248
    levels = (Level(128, 8), Level(80, 4), Level(40, 2))
    loss = "demeaned-cosine"
    step = 60
    """Noising step that the image is taken to, of `Denoiser.num_steps`."""

    def __init__(self, weights: Path | None = None) -> None:
        """Load the weights: those that come with the package, unless a file is given."""
        super().__init__(Denoiser(), weights)

    def _describe(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B _ h w"], ...]:
        # One after the other: the network's last bits depend on how many it is shown.
        return tuple(torch.cat(maps) for maps in zip(*map(self._describe_one, images), strict=True))

    def _describe_one(self, image: Float[Tensor, "3 H W"]) -> tuple[Float[Tensor, "1 _ h w"], ...]:
        clean = self._see(image[None].cpu())  # on another device the last bits differ, and with them the noise
        content = (clean * 255).to(torch.int16).numpy().tobytes()
        seed = int.from_bytes(hashlib.sha256(content).digest()[:4], "little")
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(image.device)
        step = torch.tensor([self.step], device=image.device)
        network = self.network
        assert isinstance(network, Denoiser)
        return network.decode(network.add_noise(clean.to(image.device), noise, step), step)


class Segmenter(nn.Module):
    """Convolutional encoder with attention at the bottom and a decoder to half of its input's size."""

    def __init__(self, num_channels: int = 384) -> None:
        super().__init__()
        self.stem = _conv(3, 24, stride=2)
        self.middle = nn.Sequential(_conv(24, 48, stride=2), _Residual(48), _Residual(48))
        self.deep = nn.Sequential(_conv(48, 96, stride=2), _Residual(96), _Residual(96))
        self.position = nn.Parameter(torch.zeros(1, 96, IMAGE_SIZE[0] // 8, IMAGE_SIZE[1] // 8))
        self.context = nn.ModuleList([_Attention(96), _Attention(96)])
        self.up_middle = nn.Sequential(_conv(96 + 48, 64, kernel=1), _conv(64, 64))
        self.up_stem = nn.Sequential(_conv(64 + 24, 32, kernel=1), _conv(32, 96))
        self.head = nn.Conv2d(96, num_channels, 1, bias=False)

    def hidden(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 96 h w"]:
        """Return the features below the head, at half the image's size."""
        stem = self.stem(image)
        middle = self.middle(stem)
        deep = self.deep(middle) + self.position
        tokens = deep.flatten(2).transpose(1, 2)
        for block in self.context:
            tokens = block(tokens)
        deep = tokens.transpose(1, 2).reshape(deep.shape)
        middle = self.up_middle(torch.cat([_double(deep), middle], dim=1))
        fine: Tensor = self.up_stem(torch.cat([_double(middle), stem], dim=1))
        return fine

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Return the embedding of each cell, not normalised."""
        embedding: Tensor = self.head(self.hidden(image))
        return embedding


class Transformer(nn.Module):
    """Vision transformer with a convolutional stem; a token per 8 x 8 pixels of a 160 x 120 image."""

    grid = (IMAGE_SIZE[0] // 8, IMAGE_SIZE[1] // 8)

    def __init__(self, width: int = 160, depth: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _conv(3, width // 4, stride=2), _conv(width // 4, width // 2, stride=2), _conv(width // 2, width, stride=2)
        )
        self.position = nn.Parameter(torch.randn(1, self.grid[0] * self.grid[1], width) * 0.02)
        self.blocks = nn.ModuleList([_Attention(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def layers(self, image: Float[Tensor, "B 3 H W"], hidden: Bool[Tensor, "B N"] | None = None) -> list[Tensor]:
        """Return the tokens (B, N, C) after each block; those that are `hidden` are known by their place alone."""
        tokens = self.stem(image).flatten(2).transpose(1, 2)
        if hidden is not None:
            tokens = tokens.masked_fill(hidden[..., None], 0.0)
        tokens = tokens + self.position
        outputs = []
        for block in self.blocks:
            tokens = block(tokens)
            outputs.append(tokens)
        return outputs

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N C"]:
        """Return the normalised tokens of the last block."""
        tokens: Tensor = self.norm(self.layers(image)[-1])
        return tokens


class Denoiser(nn.Module):
    """DDPM U-Net that predicts the noise in an image; cosine schedule."""

    num_steps = 1000

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128))
        self.stem = _conv(3, 32, stride=2)
        self.middle = nn.Sequential(_conv(32, 64, stride=2), _Residual(64))
        self.deep = nn.Sequential(_conv(64, 128, stride=2), _Residual(128))
        self.context = nn.ModuleList([_Attention(128), _Attention(128)])
        self.up_deep = _Residual(128)
        self.up_middle = nn.Sequential(_conv(128 + 64, 80, kernel=1), _Residual(80))
        self.up_stem = nn.Sequential(_conv(80 + 32, 40, kernel=1), _conv(40, 40))
        self.head = nn.Conv2d(40, 12, 3, padding=1)

    def signal(self, step: Tensor) -> Float[Tensor, "B 1 1 1"]:
        """Return the share of the image's variance that is left after `step` noising steps."""
        angle = (step.float() / self.num_steps + 0.008) / 1.008 * math.pi / 2
        return (angle.cos() ** 2).clamp(min=1e-4)[:, None, None, None]

    def add_noise(self, image: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """Take images to a noising step."""
        signal = self.signal(step)
        return signal.sqrt() * image + (1 - signal).sqrt() * noise

    def decode(
        self, noisy: Float[Tensor, "B 3 H W"], step: Tensor, told: Float[Tensor, "B 128"] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the activations of the decoder's three blocks, coarse to fine; `told` is what a caption adds."""
        frequency = torch.exp(torch.arange(32, device=noisy.device) * (-math.log(1000.0) / 32))
        angle = step[:, None].float() * frequency
        time = self.time(torch.cat([angle.sin(), angle.cos()], dim=1))
        if told is not None:
            time = time + told
        stem = self.stem(noisy)
        middle = self.middle(stem)
        deep = self.deep(middle) + time[:, :, None, None]
        tokens = deep.flatten(2).transpose(1, 2)
        for block in self.context:
            tokens = block(tokens)
        deep = self.up_deep(tokens.transpose(1, 2).reshape(deep.shape))
        middle = self.up_middle(torch.cat([_double(deep), middle], dim=1))
        stem = self.up_stem(torch.cat([_double(middle), stem], dim=1))
        return deep, middle, stem

    def forward(
        self, noisy: Float[Tensor, "B 3 H W"], step: Tensor, told: Float[Tensor, "B 128"] | None = None
    ) -> Float[Tensor, "B 3 H W"]:
        """Predict the noise."""
        return F.pixel_shuffle(self.head(self.decode(noisy, step, told)[-1]), 2)


class _Residual(nn.Module):
    """Two 3 x 3 convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class _Attention(nn.Module):
    """Pre-norm transformer block with four heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        batch, count, width = tokens.shape
        q, k, v = self.qkv(self.norm_attention(tokens)).reshape(batch, count, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)
        tokens = tokens + self.out(mixed)
        result: Tensor = tokens + self.mlp(self.norm_mlp(tokens))
        return result


def _conv(in_channels: int, out_channels: int, *, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


def _double(x: Tensor) -> Tensor:
    """Double a map's size by nearest neighbour."""
    return F.interpolate(x, scale_factor=2, mode="nearest")
