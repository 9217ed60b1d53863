"""Cosines of rows in half precision with a few texts, in about the time that reading the rows takes.

PyTorch widens rows to float32 in memory before it multiplies and measures them. Here a row is widened in registers, and
its norm and its products come from one reading. Numba compiles the loop (extra `view`); where it is not installed, on
other devices and for many texts, `query.scores` does it in PyTorch, which is the same to the last bits of float32.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Float16, Float32
from torch import Tensor

MOST_TEXTS = 16
"""Of more texts the product of blocks of rows is faster, for it reads each text less often."""

LEAST_NUMBERS = 1 << 29
"""Of fewer numbers (1 GB) the product takes less time than to compile the loop for them alone, or to load it."""

GROUP = 4
"""Texts that one reading of a row is multiplied with; their number must be a multiple of it."""


def load() -> None:
    """Compile the loop now, a second's work, or load it from disk: for those who will ask often."""
    if find_spec("numba") is not None:
        write_cosines(torch.zeros(1, 1, dtype=torch.float16), torch.zeros(GROUP, 1), torch.zeros(1, GROUP))


def fits(rows: Tensor, num_texts: int) -> bool:
    """Say whether the compiled loop can compare rows with so many texts, and is worth it."""
    is_plain = rows.device.type == "cpu" and rows.dtype == torch.float16 and rows.is_contiguous()
    if not is_plain or num_texts > MOST_TEXTS:
        return False
    return is_loaded() or (rows.numel() >= LEAST_NUMBERS and find_spec("numba") is not None)


def is_loaded() -> bool:
    """Say whether the loop is at hand."""
    return _loop.cache_info().currsize > 0


def write_cosines(
    rows: Float16[Tensor, "V C"], directions: Float32[Tensor, "K C"], out: Float32[Tensor, "V K"]
) -> None:
    """Write the cosine of each row with each text; 0 for a row of zeros.

    Args:
        rows: Features of any norm.
        directions: Unit vectors; their number is a multiple of `GROUP`.
        out: Where the cosines go.
    """
    _loop()(rows.view(torch.int16).numpy().view(np.uint16), directions.numpy(), out.numpy())


@cache
def _loop() -> Any:
    """Return the compiled loop."""
    from cuao3d.compiled import cosines

    return cosines
