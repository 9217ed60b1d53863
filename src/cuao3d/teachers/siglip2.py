"""SigLIP 2, densely: every patch in the space of words, without training (Tschannen et al., 2025)."""

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cuao3d.download import CARDS
from cuao3d.teachers.options import LongSide
from cuao3d.teachers.patches import PatchTeacher, text_of


class SigLIP2(PatchTeacher):
    """SigLIP 2 whose patches are unit vectors that compare with those of its text encoder.

    Its image vector is made by a pooling head: a learned query attends to the patches, and what it gathers goes
    through a residual perceptron. Here the head is shown each patch alone. The weight of a lone token is 1 whatever
    the query asks, so what is gathered is the patch's value, projected; the rest of the head follows as it is. An
    image of a single patch thus gets exactly the model's own image vector.

    The models of one fixed size are read, whose `config.json` calls them "siglip"; SigLIP 1 is the same architecture
    and works too. Those of variable size (NaFlex) are another architecture and are not read. Positions were learned
    at one size, and are interpolated to that of the image.
    """

    licence = CARDS["siglip2"].licence
    classes = {"siglip": "SiglipVisionModel"}
    unused = ("text_model.", "logit_scale", "logit_bias")

    def __init__(
        self, weights: Path | None = None, *, name: str = "siglip2", long_side: LongSide | None = None
    ) -> None:
        """Load the network; of the folder's two sides, only that of images.

        Args:
            weights: Folder of the model; if not given, that of the weights called `name`.
            name: Name of the teacher: "siglip2" is ViT-B of 16 x 16 patches, learned at 512 x 512.
            long_side: Longer side, pixels, to which images are scaled; their own if not given.

        Raises:
            NotInstalledError: transformers is not installed.
            NotFoundError: The weights are not there.
            InputError: They are not those of a SigLIP of fixed size.
        """
        super().__init__(weights, name=name, long_side=long_side)
        self.text = text_of("siglip2", weights, name)
        self.network = _HeadOnEach(self.network)

    def _tokens(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N C"]:
        return F.normalize(self.network(images).float(), dim=2)


class _HeadOnEach(nn.Module):
    """SigLIP's image side, whose pooling head is shown one patch at a time."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.head = model.head
        del model.head
        model.use_head = False
        self.before = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the patches of normalised images in the space of words, (B, N, C)."""
        x = self.before(images, interpolate_pos_encoding=True).last_hidden_state
        attention = self.head.attention
        # Query, key and value lie below each other; a lone token needs its value only.
        value = F.linear(x, attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2])
        x = attention.out_proj(value)
        out: Tensor = x + self.head.mlp(self.head.layernorm(x))
        return out
