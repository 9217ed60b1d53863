"""Teachers that are vision transformers: images are resized to whole patches, and every patch gets a feature."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cuao3d.download import CARDS, find
from cuao3d.pretrained.huggingface import Preprocessing, open_model, read_preprocessing, weights_sha256
from cuao3d.teachers.network import Level, NetworkTeacher
from cuao3d.teachers.options import LongSide


class PatchTeacher(NetworkTeacher):
    """Base of vision transformers of the transformers library.

    A member names its class, and describes patches in `_tokens`.
    """

    classes: Mapping[str, str]
    """The transformers class that opens each `model_type` which its `config.json` may name; see `open_model`."""
    unused: tuple[str, ...] = ()
    """How the names of tensors start that it does not need."""
    options: Mapping[str, Any] = {}
    """Further arguments of its class."""
    network: Any

    def __init__(
        self,
        weights: Path | None,
        *,
        name: str,
        long_side: LongSide | None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        """Load the network.

        Args:
            weights: Folder of the model; if not given, that of the weights called `name`.
            name: Name of the teacher.
            long_side: Longer side, pixels, to which images are scaled; their own if not given. Both sides are then
                rounded to whole patches, and the image is resized to that: the map covers all of it.
            preprocessing: How the model wants its images; if not given, as its `preprocessor_config.json` says.
        """
        self.name = name
        self.folder = Path(weights or find(name))
        self.network = open_model(self.folder, self.classes, unused=self.unused, **self._options())
        self.weights_sha256 = weights_sha256(self.folder)
        self.preprocessing = preprocessing or read_preprocessing(self.folder)
        self.long_side = long_side
        self.config = self.network.config
        self.patch = self.config.patch_size
        self._set_width(self.config.hidden_size)

    def _options(self) -> Mapping[str, Any]:
        """Return further arguments of its class."""
        return self.options

    def _set_width(self, num_channels: int) -> None:
        self.num_channels = num_channels
        self.levels = (Level(num_channels, self.patch),)

    def _describe(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B C h w"], ...]:
        whole = self._whole_patches(images)
        mean, std = (whole.new_tensor(values)[:, None, None] for values in self.preprocessing[:2])
        tokens = self._tokens((whole - mean) / std)
        rows, columns = (side // self.patch for side in whole.shape[2:])
        return (tokens.transpose(1, 2).reshape(len(tokens), -1, rows, columns),)

    def _whole_patches(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H2 W2"]:
        """Resize images so that their sides are multiples of a patch, the nearest ones."""
        height, width = images.shape[2:]
        scale = self.long_side / max(height, width) if self.long_side else 1.0
        size = [max(1, round(side * scale / self.patch)) * self.patch for side in (height, width)]
        resized = F.interpolate(images, size, mode=self.preprocessing.mode, align_corners=False, antialias=True)
        return resized.clamp(0, 1)  # bicubic overshoots at edges, which images that are resized as bytes cannot

    def _tokens(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N C"]:
        """Return the feature of each patch of normalised images, row by row."""
        raise NotImplementedError


def text_of(kind: str, weights: Path | None, name: str) -> str | None:
    """Return the text encoder beside an image encoder: of named weights as their card says, or of a folder."""
    return f"{kind}:{Path(weights).resolve()}" if weights else CARDS[name].text
