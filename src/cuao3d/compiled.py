"""The loop of `half_rows`, compiled; importing this needs Numba."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


@intrinsic  # type: ignore[untyped-decorator]
def widen(context: Any, bits: Any) -> Any:
    """Return the float32 of the bits of a half: Numba has no half precision on CPUs, processors have."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), build


def _cosines(rows: Any, directions: Any, out: Any) -> None:
    zero, least = np.float32(0), np.float32(1e-24)  # the square of the least norm of `query.scores`
    for i in range(rows.shape[0]):
        square = zero
        for first in range(0, directions.shape[0], 4):
            a, b, c, d = zero, zero, zero, zero
            if first == 0:
                for j in range(rows.shape[1]):
                    x = widen(rows[i, j])
                    square += x * x
                    a += x * directions[0, j]
                    b += x * directions[1, j]
                    c += x * directions[2, j]
                    d += x * directions[3, j]
            else:
                for j in range(rows.shape[1]):
                    x = widen(rows[i, j])
                    a += x * directions[first, j]
                    b += x * directions[first + 1, j]
                    c += x * directions[first + 2, j]
                    d += x * directions[first + 3, j]
            scale = np.float32(1) / np.sqrt(max(square, least))
            out[i, first] = a * scale
            out[i, first + 1] = b * scale
            out[i, first + 2] = c * scale
            out[i, first + 3] = d * scale


def _compile(**options: Any) -> Any:
    return njit(nogil=True, fastmath={"reassoc", "contract", "nsz"}, **options)(_cosines)  # NaN stays NaN


try:
    cosines = _compile(cache=True)
except RuntimeError:  # there is no folder to keep it in
    cosines = _compile()
