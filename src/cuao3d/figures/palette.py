"""The colours of what has no colours of its own: segments and questions, in figures, pages and the viewer."""

import torch
from jaxtyping import Float32
from torch import Tensor

from cuao3d.colors import NOTHING
from cuao3d.history import PALETTE


def palette() -> Float32[Tensor, "K 3"]:
    """Return the colours of segments and questions, RGB in [0, 1]; the last, -1, stands for none."""
    colors = [[int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)] for color in PALETTE]
    return torch.tensor([*colors, [NOTHING] * 3])
