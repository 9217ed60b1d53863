"""DINOv3: features from self-supervision that stay sharp at high resolution (Simeoni et al., 2025)."""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from cuao3d.download import CARDS
from cuao3d.teachers.options import LongSide
from cuao3d.teachers.patches import PatchTeacher


class DINOv3(PatchTeacher):
    """DINOv3, the vision transformers: patch tokens after the final norm; class and register tokens are dropped.

    Its positions are rotations, so any size of image is as good as another. The convolutional models of the family
    are of another architecture and are not read.
    """

    licence = CARDS["dinov3"].licence
    classes = {"dinov3_vit": "DINOv3ViTModel"}

    def __init__(self, weights: Path | None = None, *, name: str = "dinov3", long_side: LongSide | None = None) -> None:
        """Load the network.

        Args:
            weights: Folder of the model; if not given, that of the weights called `name`.
            name: Name of the teacher: "dinov3" is ViT-L.
            long_side: Longer side, pixels, to which images are scaled; their own if not given.

        Raises:
            NotInstalledError: transformers is not installed.
            NotFoundError: The weights are not there.
            InputError: They are not those of a DINOv3.
        """
        super().__init__(weights, name=name, long_side=long_side)

    def _tokens(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N C"]:
        tokens: Tensor = self.network(images).last_hidden_state
        return tokens[:, 1 + self.config.num_register_tokens :]
