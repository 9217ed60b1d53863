"""RADIO: one network that learned to stand for several teachers at once (Ranzinger et al., CVPR 2024)."""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from cuao3d.download import CARDS
from cuao3d.teachers.huggingface import Preprocessing
from cuao3d.teachers.patches import PatchTeacher

AS_THEY_ARE = Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")
"""RADIO normalises colours itself, by statistics among its weights."""


class RADIO(PatchTeacher):
    """RADIO's spatial features: tokens of the last block, which has no norm after it.

    C-RADIOv4 learned from SigLIP 2, DINOv3 and SAM 3. What is read is the architecture that transformers has built
    in, "radio". A folder whose `config.json` names no type asks for code of its own to be run; that is not done.

    It has no `text`. The adaptors that lead from RADIO to the space of a teacher's words (for C-RADIOv4 that of
    SigLIP 2) are not part of the architecture in transformers, and the published folders, as far as is known, hold the
    backbone alone; so words cannot be asked of these features. Adaptors that a folder does hold are passed over.

    Models called C-RADIO may be used commercially under the licence below; those called RADIO are not for commercial
    use, under a licence of their own.
    """

    licence = CARDS["radio"].licence
    classes = {"radio": "RadioModel"}
    unused = ("radio_model.adaptors.",)

    def __init__(self, weights: Path | None = None, *, name: str = "radio", long_side: int | None = None) -> None:
        """Load the network.

        Args:
            weights: Folder of the model; if not given, that of the weights called `name`.
            name: Name of the teacher: "radio" is C-RADIOv4-H.
            long_side: Longer side, pixels, to which images are scaled; their own if not given.

        Raises:
            NotInstalledError: transformers is not installed, or has no RADIO yet.
            NotFoundError: The weights are not there.
            InputError: They are not those of a RADIO that transformers can open.
        """
        super().__init__(weights, name=name, long_side=long_side, preprocessing=AS_THEY_ARE)

    def _tokens(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N C"]:
        tokens: Tensor = self.network(images).features
        return tokens
