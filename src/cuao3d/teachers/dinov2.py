"""DINOv2: features from self-supervision, smooth and the same for alike parts (Oquab et al., TMLR 2024)."""

from pathlib import Path
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from cuao3d.download import CARDS
from cuao3d.pretrained.huggingface import Preprocessing
from cuao3d.teachers.options import LongSide
from cuao3d.teachers.patches import PatchTeacher

Normalisation = Literal["imagenet", "clip"]

NORMALISATIONS = {
    "imagenet": Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic"),
    "clip": Preprocessing((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "bicubic"),
}


class DINOv2(PatchTeacher):
    """DINOv2 of any size, with or without registers: patch tokens after the final norm.

    A view of 320 x 240 is resized to 322 x 238, which is 23 x 17 patches. Class and register tokens are dropped.
    """

    loss = "l1"
    licence = CARDS["dinov2"].licence
    classes = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}

    def __init__(
        self,
        weights: Path | None = None,
        *,
        name: str = "dinov2",
        normalisation: Normalisation = "imagenet",
        long_side: LongSide | None = None,
    ) -> None:
        """Load the network.

        Args:
            weights: Folder of the model; its `config.json` says which size it is, and whether it has registers. If not
                given, that of the weights called `name`.
            name: Name of the teacher: "dinov2" is ViT-L.
            normalisation: Statistics by which colours are normalised: those the model was trained with, or CLIP's, as
                in the released code of CUA-O3D.
            long_side: Longer side, pixels, to which images are scaled; their own if not given.

        Raises:
            NotInstalledError: transformers is not installed.
            NotFoundError: The weights are not there.
            InputError: They are not those of a DINOv2.
        """
        super().__init__(weights, name=name, long_side=long_side, preprocessing=NORMALISATIONS[normalisation])
        self.normalisation = normalisation
        self.num_prefix = 1 + getattr(self.config, "num_register_tokens", 0)

    def _tokens(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N C"]:
        tokens: Tensor = self.network(images).last_hidden_state
        return tokens[:, self.num_prefix :]
