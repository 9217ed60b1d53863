"""Class probabilities become words: what a network with named classes sees, in the vectors of a text encoder.

At each place the names of the classes are mixed by their probabilities: a convex combination of semantic embeddings
(Norouzi et al., ICLR 2014). A place of which the network is sure lies near one name; what it is unsure of lies near no
name, and is short.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

from cuao3d.errors import InputError
from cuao3d.teachers.network import Level, NetworkTeacher

NAMES = Path(__file__).parent / "class_names"
"""Folder of the class names that come with the package."""

STRIDE = 4
"""Pixels of the scaled image from one place of a map to the next."""

COLUMNS = ["index", "name", "synonyms", "left_out"]


@dataclass(frozen=True)
class ClassNames:
    """What the classes of a network are called."""

    names: tuple[tuple[str, ...], ...]
    """Name and synonyms of each class, in the order of the network's outputs."""
    left_out: tuple[str, ...]
    """Why a class says nothing, such as "animal"; empty for one that does."""

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.names)


def read_class_names(path: Path) -> ClassNames:
    """Read the names of a network's classes.

    Args:
        path: CSV with the columns `index,name,synonyms,left_out`; synonyms are separated by semicolons. A class with a
            reason in `left_out` says nothing.

    Raises:
        InputError: It has other columns, or does not name each class once, in order.
    """
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        if table.fieldnames != COLUMNS:
            raise InputError(f"{path} should have the columns {','.join(COLUMNS)}; it has {table.fieldnames}.")
        rows = list(table)
    for expected, row in enumerate(rows):
        if row["index"] != str(expected) or not row["name"]:
            raise InputError(f"{path}: expected class {expected} and its name; got {row['index']!r}, {row['name']!r}.")
    synonyms = [[word.strip() for word in row["synonyms"].split(";") if word.strip()] for row in rows]
    return ClassNames(
        tuple((row["name"], *others) for row, others in zip(rows, synonyms, strict=True)),
        tuple(row["left_out"] for row in rows),
    )


def class_words(
    encoder: Callable[[Sequence[str]], Float[Tensor, "N C"]], classes: ClassNames
) -> Float32[Tensor, "K C"]:
    """Return the vector of each class: the unit mean of its names; zeros for one that is left out.

    Args:
        encoder: Turns texts into unit vectors.
        classes: The names.
    """
    spoken = [index for index, reason in enumerate(classes.left_out) if not reason]
    texts = [name for index in spoken for name in classes.names[index]]
    vectors = encoder(texts).float()
    of_class = torch.tensor([index for index in spoken for _ in classes.names[index]], dtype=torch.int64)
    words = torch.zeros(len(classes), vectors.shape[1]).index_add_(0, of_class, vectors)
    return F.normalize(words, dim=1)


def mix(probabilities: Float[Tensor, "B K h w"], words: Float[Tensor, "K C"]) -> Float[Tensor, "B C h w"]:
    """Mix words by the probabilities of their classes."""
    return torch.einsum("bkhw,kc->bchw", probabilities, words)


def at_centres(
    maps: Float[Tensor, "B C h w"], stride: int, seen: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "B C rows columns"]:
    """Read maps at the centres of the cells of a grid that covers the image.

    Args:
        maps: Place i of them is at pixel i * stride of the image.
        stride: Pixels from one place to the next.
        seen: Height and width of the image, pixels.
        size: Rows and columns of the grid.

    Returns:
        Values by linear interpolation; beyond the last place, that of the last place.
    """
    axes = []
    for cells, side, places in zip(size, seen, maps.shape[2:], strict=True):
        pixels = (torch.arange(cells, device=maps.device, dtype=torch.float64) + 0.5) * side / cells - 0.5
        axes.append((2 * pixels / (stride * max(1, places - 1)) - 1).float())
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack([columns, rows], dim=2).expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)


class WordNetwork(nn.Module):
    """Base of networks of classes that know the words of their classes.

    A member describes images in `forward`.
    """

    words: Tensor

    def __init__(self, network: nn.Module, words: Float[Tensor, "K C"]) -> None:
        """Join the two.

        Args:
            network: The network.
            words: Vector of each of its classes.
        """
        super().__init__()
        self.network = network
        self.register_buffer("words", words)

    def forward(
        self, images: Float[Tensor, "B 3 H W"], long_side: int, size: tuple[int, int]
    ) -> Float[Tensor, "B C rows columns"]:
        """Describe images by words.

        Args:
            images: RGB in [0, 1].
            long_side: Longer side, pixels, to which they are scaled, unless the network has a size of its own.
            size: Rows and columns of the grid that covers them.
        """
        raise NotImplementedError


class LogitNetwork(WordNetwork):
    """A network that gives logits at every few pixels, from the first pixel to the last."""

    def __init__(
        self,
        network: nn.Module,
        words: Float[Tensor, "K C"],
        *,
        stride: int,
        multiple: int,
        grey: float = 127.5,
        scales: tuple[float, ...] = (1.0,),
    ) -> None:
        """Join network and words.

        Args:
            network: Gives logits of images in [-1, 1] whose sides are one more than a multiple; place i is at pixel
                i * stride.
            words: Vector of each class.
            stride: Pixels from one place of its map to the next.
            multiple: The multiple.
            grey: Value, 0 to 255, that the network sees as 0.
            scales: Sizes at which it looks at an image, as shares of the asked one; it says the mean.
        """
        super().__init__(network, words)
        self.stride, self.multiple, self.grey = stride, multiple, grey
        self.scales = scales

    def forward(
        self, images: Float[Tensor, "B 3 H W"], long_side: int, size: tuple[int, int]
    ) -> Float[Tensor, "B C rows columns"]:
        """Describe images by words."""
        total = torch.zeros(())
        for scale in self.scales:
            scaled = self._scaled(images, scale * long_side)
            probabilities = self.network(scaled).float().softmax(dim=1)
            seen = scaled.shape[2], scaled.shape[3]
            # Both steps are linear; the one that leaves fewer channels comes first.
            if len(self.words) < self.words.shape[1]:
                described = mix(at_centres(probabilities, self.stride, seen, size), self.words)
            else:
                described = at_centres(mix(probabilities, self.words), self.stride, seen, size)
            total = described + total
        return total / len(self.scales)

    def _scaled(self, images: Tensor, long_side: float) -> Tensor:
        scale = long_side / max(images.shape[2:])
        size = [max(1, round(side * scale / self.multiple)) * self.multiple + 1 for side in images.shape[2:]]
        resized = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        return ((resized * 255 - self.grey) / (255 - self.grey)).contiguous(memory_format=torch.channels_last)


class WordTeacher(NetworkTeacher):
    """Base of teachers that are networks of classes: the plain mean of what each says.

    The vectors are not made unit length: a network that is sure of a name speaks louder than one that is not.
    """

    num_channels = 384
    text: str = "minilm-centred"
    network: nn.ModuleList

    def __init__(self, networks: Sequence[WordNetwork], *, name: str, text: str, long_side: int) -> None:
        """Join networks.

        Args:
            networks: Networks whose words are vectors of the same text encoder.
            name: Name of the teacher.
            text: That text encoder.
            long_side: Longer side, pixels, to which images are scaled.
        """
        self.name, self.text, self.long_side = name, text, long_side
        self.network = nn.ModuleList(networks)
        self.num_channels = networks[0].words.shape[1]
        self.levels = (Level(self.num_channels, STRIDE),)

    def _describe(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B C h w"]]:
        scale = self.long_side / max(images.shape[2:])
        height, width = (max(1, round(side * scale / STRIDE)) for side in images.shape[2:])
        # On a processor several images at a time gain nothing, and need the memory of several.
        at_a_time = 1 if images.device.type == "cpu" else len(images)
        parts = [images[start : start + at_a_time] for start in range(0, len(images), at_a_time)]
        return (torch.cat([self._said(part, (height, width)) for part in parts]),)

    def _said(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        total = torch.zeros(())
        for network in self.network:
            total = network(images, self.long_side, size) + total
        return total / len(self.network)
