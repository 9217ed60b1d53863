"""Half precision: products in bfloat16 where the hardware supports it, in float32 where it would be emulated."""

import torch
from jaxtyping import Float
from torch import Tensor


def autocast(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Cast to the type of the enclosing `torch.autocast`, if there is one."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def widen(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Cast half precision to float32 on a CPU without instructions for it: emulation is a hundred times slower."""
    is_emulated = x.device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported()
    return x.float() if is_emulated and x.dtype in (torch.bfloat16, torch.float16) else x


def add_product(total: Float[Tensor, "M N"], a: Float[Tensor, "M K"], b: Float[Tensor, "K N"]) -> None:
    """Add a @ b in place to a total, whose type may be wider."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)
