"""ViT: a vision transformer that learned from the labels of ImageNet (Dosovitskiy et al., ICLR 2021)."""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from cuao3d.download import CARDS
from cuao3d.teachers.options import LongSide
from cuao3d.teachers.patches import PatchTeacher


class ViT(PatchTeacher):
    """Supervised ViT: patch tokens after the final norm; the class token is dropped.

    Its positions were learned at one size, and are interpolated to that of the image.
    """

    licence = CARDS["vit"].licence
    classes = {"vit": "ViTModel"}
    unused = ("classifier.", "pooler.")
    options = {"add_pooling_layer": False}

    def __init__(self, weights: Path | None = None, *, name: str = "vit", long_side: LongSide | None = None) -> None:
        """Load the network.

        Args:
            weights: Folder of the model; if not given, that of the weights called `name`.
            name: Name of the teacher: "vit" is ViT-L of 16 x 16 patches.
            long_side: Longer side, pixels, to which images are scaled; their own if not given.

        Raises:
            NotInstalledError: transformers is not installed.
            NotFoundError: The weights are not there.
            InputError: They are not those of a ViT.
        """
        super().__init__(weights, name=name, long_side=long_side)

    def _tokens(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N C"]:
        tokens: Tensor = self.network(images, interpolate_pos_encoding=True).last_hidden_state
        return tokens[:, 1:]
