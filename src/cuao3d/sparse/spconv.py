"""spconv as a GPU backend: its gather, multiply and scatter kernels over our kernel maps."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cuao3d.errors import InputError, NotInstalledError
from cuao3d.sparse.voxels import KernelMap


def convolve_by_spconv(
    x: Float[Tensor, "N Cin"], kernel: Float[Tensor, "K Cin Cout"], kernel_map: KernelMap
) -> Float[Tensor, "M Cout"]:
    """Convolve features over a kernel map with spconv's native algorithm.

    Raises:
        NotInstalledError: spconv is not installed.
        InputError: The features are on a CPU, where spconv 2.3 computes wrong rows with two threads and has no
            backward pass.
    """
    try:
        from spconv.core import ConvAlgo
        from spconv.pytorch.functional import SparseConvFunction
    except ImportError:
        raise NotInstalledError("The spconv backend needs spconv: pip install 'cuao3d[gpu]'") from None
    if x.device.type == "cpu" and (torch.get_num_threads() > 1 or torch.is_grad_enabled()):
        raise InputError("spconv is correct on a GPU only; on a CPU choose the backend 'runs'.")
    pairs, counts = kernel_map.listed_pairs
    matrices = kernel.index_select(0, kernel_map.positions)  # z fastest, like the pairs
    filters = matrices.permute(2, 0, 1).reshape(kernel.shape[2], -1, 1, 1, kernel.shape[1]).contiguous()
    algorithm: Any = ConvAlgo.Native
    out: Tensor = SparseConvFunction.apply(
        x.contiguous(), filters, pairs, counts, kernel_map.windows.num_outputs, algorithm
    )
    return out
