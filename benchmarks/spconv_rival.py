"""spconv-triton as a backend to measure against on a GPU: its masked implicit GEMM over our kernel maps.

Run like `student.py`, with the variants spconv_triton and spconv_triton_bf16. The package is installed by hand:
`pip install spconv-triton`. Its tables are built once for a map, as ours are.
"""

import cuao3d  # noqa: F401 - before PyTorch, which looks at what it asks for when it is imported

# isort: split
from typing import Any
from weakref import WeakKeyDictionary

import torch
import tyro
from torch import Tensor

import student
from cuao3d.sparse import BACKENDS, KernelMap
from cuao3d.sparse.triton import _list_inputs

_kept: "WeakKeyDictionary[KernelMap, Any]" = WeakKeyDictionary()


def convolve_by_spconv_triton(x: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """Convolve features over a kernel map."""
    from spconv_triton.pytorch.functional import SparseImplicitGemmFunction

    if kernel_map not in _kept:
        forward, backward = tables(kernel_map)
        _kept[kernel_map] = forward, backward, masks(forward), masks(backward)
    forward, backward, (mask, order), (mask_back, order_back) = _kept[kernel_map]
    filters = kernel.index_select(0, kernel_map.positions).permute(2, 0, 1).contiguous()
    pairs = forward, backward, [mask], [mask_back], [order], [order_back]
    mirrored = kernel_map.mirrored
    with torch.autocast(x.device.type, enabled=False):  # it would turn bfloat16 into float16
        out: Tensor = SparseImplicitGemmFunction.apply(
            x.contiguous(), filters[:, :, None, None], *pairs, kernel_map.windows.num_outputs, [None], True, mirrored
        )
    return out


def tables(kernel_map: KernelMap) -> tuple[Tensor, Tensor]:
    """Per kernel position, z fastest, the input row of each output row and the output row of each input row, or -1."""
    backward = _list_inputs(kernel_map.adjoint)
    return _list_inputs(kernel_map.windows), backward.flip(0) if kernel_map.mirrored else backward


def masks(table: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted occupancy of the rows, up to 32 positions as the bits of an int32, and the row of each."""
    bits = (table[:32] >= 0).long() << torch.arange(min(len(table), 32), device=table.device)[:, None]
    ordered, order = bits.sum(dim=0).sort(stable=True)
    return ordered.to(torch.int32), order.int()


if __name__ == "__main__":
    BACKENDS["spconv_triton"] = convolve_by_spconv_triton
    tyro.cli(student.main)
