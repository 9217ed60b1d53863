"""Reference sparse convolution, one kernel position after another; the fast one is tested and timed against it."""

from jaxtyping import Float
from torch import Tensor

from cuao3d.products import matmul, widen
from cuao3d.sparse.voxels import KernelMap


def convolve_naively(
    x: Float[Tensor, "N Cin"], kernel: Float[Tensor, "K Cin Cout"], kernel_map: KernelMap
) -> Float[Tensor, "M Cout"]:
    """Gather, multiply and scatter-add for each kernel position."""
    wide, kernel = widen(x), widen(kernel)
    out = wide.new_zeros(kernel_map.windows.num_outputs, kernel.shape[2])
    for position, (in_rows, out_rows) in zip(kernel_map.positions, kernel_map.windows.pairs(), strict=True):
        out = out.index_add(0, out_rows, matmul(wide.index_select(0, in_rows), kernel[position]))
    return out.to(x.dtype)
