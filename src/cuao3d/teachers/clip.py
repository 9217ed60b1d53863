"""CLIP, densely: every patch in the space of words, without training (Radford et al., 2021; Zhou et al., ECCV 2022)."""

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cuao3d.download import CARDS
from cuao3d.teachers.options import LongSide
from cuao3d.teachers.patches import PatchTeacher, text_of


class CLIPDense(PatchTeacher):
    """CLIP whose patches are unit vectors that compare with those of its text encoder.

    CLIP learned to place its class token among words. In the last block that token gathers the *values* of the
    patches; so a patch's own value, sent down the same way, is where it would pull the image to. This is the read-out
    of MaskCLIP, as in its released code: in the last block the attention of a token is its own value, projected;
    everything else is as in CLIP, that is the block's two residual sums, its perceptron, the norm after it and the
    projection to the words' space. (Variants in other projects drop the sums and the perceptron. With them the
    features are exactly what CLIP makes of a token that is alone in the last block, which is what it was trained
    on.) MaskCLIP's refinements, which compare patches by their keys and drop unlikely classes, are not done: they
    need the classes.

    Its positions were learned at one size, and are interpolated to that of the image.
    """

    licence = CARDS["clip"].licence
    classes = {"clip": "CLIPVisionModelWithProjection"}
    unused = ("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids")

    def __init__(self, weights: Path | None = None, *, name: str = "clip", long_side: LongSide | None = None) -> None:
        """Load the network; of the folder's two sides, only that of images.

        Args:
            weights: Folder of the model; if not given, that of the weights called `name`.
            name: Name of the teacher: "clip" is ViT-B of 16 x 16 patches.
            long_side: Longer side, pixels, to which images are scaled; their own if not given.

        Raises:
            NotInstalledError: transformers is not installed.
            NotFoundError: The weights are not there.
            InputError: They are not those of a CLIP.
        """
        super().__init__(weights, name=name, long_side=long_side)
        self.text = text_of("clip", weights, name)
        self._set_width(self.network.visual_projection.out_features)
        self.network = _ValueReadOut(self.network)

    def _tokens(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N C"]:
        return F.normalize(self.network(images).float(), dim=2)


class _ValueReadOut(nn.Module):
    """CLIP's image side, in whose last block every patch attends to itself alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.before, self.projection = model.vision_model, model.visual_projection
        blocks = self.before.encoder.layers
        self.last = blocks[-1]
        del blocks[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Return the patches of normalised images in the space of words, (B, N, C)."""
        x = self.before(images, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
        attention = self.last.self_attn
        x = x + attention.out_proj(attention.v_proj(self.last.layer_norm1(x)))
        x = x + self.last.mlp(self.last.layer_norm2(x))
        out: Tensor = self.projection(self.before.post_layernorm(x))
        return out
