"""Matrix products: float32 by the fastest way of this processor, half precision where the hardware has it.

`torch.mm` of float32 calls MKL, which is half as fast as oneDNN on a processor of AMD with AVX-512 and as fast on
others. oneDNN is reached by a setting of PyTorch or by a private operator. The first product on a machine measures what
there is and compares it with float64; a way that rounds its operands is never taken. What was taken is kept, for all
processes of the machine: the ways differ in the last bits, so stores and students are the same bytes only by one way.
"""

import math
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from cuao3d.durable import LOCK, locked
from cuao3d.errors import UserError
from cuao3d.files import cache_folder, read_whole_json, write_json

Way = Literal["torch.mm", "oneDNN by PyTorch's setting", "oneDNN by its operator"]
MM: Way = "torch.mm"
SETTING: Way = "oneDNN by PyTorch's setting"
"""`torch.backends.mkldnn.matmul.fp32_precision = "bf16"`. PyTorch then calls oneDNN, which may round operands to
bfloat16. Without AMX it does not; with AMX it would."""
OPERATOR: Way = "oneDNN by its operator"
"""`torch.ops.mkldnn._linear_pointwise`, which is private: a version of PyTorch may lack it."""

MARGIN = 1.3
"""How many times as fast a way must be to replace one before it: noise decides nothing."""

MAX_ERROR = 1e-5
"""Largest difference from float64, as a share of the largest number. Rounding to bfloat16 gives 1e-3."""

SHAPES = ((1024, 96, 96), (2048, 288, 96))
"""Rows, inner and columns of the products that the ways are measured by: those of a convolution."""

KEPT = "products.json"
"""File in the cache that says how each machine multiplies."""

NUM_TIMES = 16
"""How often each product is timed by each way; the ways take turns, so that a busy moment slows all of them."""

LARGEST_RESULT = 2**23
"""Numbers that the operator may return at once: it always returns fresh memory, whose pages cost more than the work."""


@dataclass(frozen=True)
class Measured:
    """How a way of multiplying did."""

    gflops: float
    """Speed, 1e9 operations a second, of the threads that a caller has."""
    error: float
    """Largest difference from float64, as a share of the largest number."""


def matmul(a: Float[Tensor, "M K"], b: Float[Tensor, "K N"], out: Tensor | None = None) -> Float[Tensor, "M N"]:
    """Multiply two matrices of one type; `out`, if given, gets the result and no gradient is recorded."""
    if not _by_operator(a):
        return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)
    if out is None and torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        result: Tensor = _Product.apply(a, b)  # type: ignore[no-untyped-call]
        return result
    return _multiply_by_operator(a, b, out)


def add_product(total: Float[Tensor, "M N"], a: Float[Tensor, "M K"], b: Float[Tensor, "K N"]) -> None:
    """Add a @ b in place to a total, whose type may be wider."""
    if total.dtype == a.dtype and not _by_operator(a):
        total.addmm_(a, b)
    else:
        total.add_(matmul(a, b))


def autocast(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Cast to the type of the enclosing `torch.autocast`, if there is one."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def widen(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Cast half precision to float32 on a CPU without instructions for it: emulation is a hundred times slower.

    That is bfloat16 without AVX-512's instructions for it, and float16 always: PyTorch has no fast product for it.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float16):
        return x
    return x if x.dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported() else x.float()


def fast_layers(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which the linear layers of any network multiply as `matmul` does; not for training."""
    return _LinearByOperator() if device.type == "cpu" and chosen() == OPERATOR else nullcontext()


def chosen() -> Way:
    """Return how this process multiplies float32 on the CPU; the first call sets it, as `kept_way` says."""
    if _process.way is None:
        with _process.lock:
            if _process.way is None:
                _use(kept_way())
    assert _process.way is not None
    return _process.way


@contextmanager
def using(way: Way) -> Iterator[None]:
    """Multiply in one way, whatever is fastest, in all threads of this process."""
    before = chosen()
    _use(way)
    try:
        yield
    finally:
        _use(before)


def kept_way() -> Way:
    """Return the way that this machine took first; it is measured and kept where none was, or where it is not one.

    It is kept by processor, instruction set and version of PyTorch, in `products.json` of the cache: a home folder may
    serve several machines. Where nothing can be kept, each process measures.
    """
    machine = f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
    file = cache_folder() / KEPT
    try:
        with locked(file.parent, name=f"{LOCK}-products", on_wait=lambda _: None):  # one process measures, others wait
            kept = read_whole_json(file) or {}
            if kept.get(machine) not in candidates():
                kept[machine] = fastest(measured())
                write_json(file, kept, durable=False)
            way: Way = kept[machine]
            return way
    except (OSError, UserError):
        return fastest(measured())


def processor() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def fastest(measurements: Mapping[Way, Measured]) -> Way:
    """Return the way to take: `torch.mm`, or a later one that is exact and `MARGIN` times as fast as those before."""
    best = MM
    for way, measurement in measurements.items():
        if measurement.error <= MAX_ERROR and measurement.gflops > MARGIN * measurements[best].gflops:
            best = way
    return best


def ways(*, has_amx: bool, has_setting: bool, has_operator: bool) -> tuple[Way, ...]:
    """Return the ways of a processor and a PyTorch; with AMX the setting would round operands to bfloat16."""
    return (MM, *[SETTING] * (has_setting and not has_amx), *[OPERATOR] * has_operator)


@cache
def candidates() -> tuple[Way, ...]:
    """Return the ways of this processor and this PyTorch."""
    has_onednn: bool = torch._C._has_mkldnn
    return ways(
        has_amx=torch.cpu._is_amx_tile_supported(),
        has_setting=has_onednn and hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision"),
        has_operator=has_onednn and hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    )


@cache
def measured() -> dict[Way, Measured]:
    """Measure each way of this processor and this PyTorch, once; one that fails is left out."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        works = [way for way in candidates() if way == MM or _works(way)]
        return _measure({way: partial(_multiply_by, way) for way in works})


def describe() -> str:
    """Say in a line how this process multiplies float32 on the CPU, and how fast each way is."""
    speeds = ", ".join(f"{way} {measurement.gflops:.0f}" for way, measurement in measured().items())
    kept = f"kept in {cache_folder() / KEPT}" if (cache_folder() / KEPT).is_file() else "not kept"
    return f"float32 products by {chosen()} ({kept}; GFLOP/s of small products now: {speeds})"


def _works(way: Way) -> bool:
    try:
        _multiply_by(way, torch.ones(2, 3), torch.ones(3, 2))
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return True


def _multiply_by(way: Way, a: Tensor, b: Tensor) -> Tensor:
    try:
        _set(way == SETTING)
        return _multiply_by_operator(a, b) if way == OPERATOR else torch.mm(a, b)
    finally:
        _set(False)


def _measure(
    ways: Mapping[Way, Callable[[Tensor, Tensor], Tensor]], shapes: Sequence[tuple[int, int, int]] = SHAPES
) -> dict[Way, Measured]:
    """Time products by each way in turn, at its best, and compare them with float64, also of transposed operands."""
    generator = torch.Generator().manual_seed(0)
    work, seconds, errors = 0, dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    for rows, inner, columns in shapes:
        a, b = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
        best = dict.fromkeys(ways, math.inf)
        for way in list(ways) * NUM_TIMES:
            start = time.perf_counter()
            ways[way](a, b)
            best[way] = min(best[way], time.perf_counter() - start)
        for way, multiply in ways.items():
            result = multiply(a, b)
            for left, right, got in ((a, b, result), (a.T, result, multiply(a.T, result))):
                exact = left.double() @ right.double()
                errors[way] = max(errors[way], float((got - exact).abs().max() / exact.abs().max()))
            seconds[way] += best[way]
        work += 2 * rows * inner * columns
    return {way: Measured(work / seconds[way] / 1e9, errors[way]) for way in ways}


def _multiply_by_operator(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply by oneDNN's operator, some rows at a time where the result is large."""
    rows_at_a_time = max(1, LARGEST_RESULT // max(b.shape[1], 1))
    if len(a) <= rows_at_a_time:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
        return result if out is None else out.copy_(result)
    out = a.new_empty(len(a), b.shape[1]) if out is None else out
    for start in range(0, len(a), rows_at_a_time):
        rows = slice(start, start + rows_at_a_time)
        _multiply_by_operator(a[rows], b, out[rows])
    return out


class _Product(torch.autograd.Function):
    """a @ b by the operator, which records no gradient itself."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _multiply_by_operator(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (a, b), (wants_a, wants_b) = ctx.saved_tensors, ctx.needs_input_grad
        return matmul(grad, b.T) if wants_a else None, matmul(a.T, grad) if wants_b else None


class _LinearByOperator(TorchFunctionMode):
    """Replace `functional.linear` of float32 on the CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_linear if func is functional.linear else func)(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `functional.linear`, whose arguments have these names."""
    is_plain = not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
    if is_plain and input.device.type == "cpu" and input.dtype == torch.float32:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
        return result
    return functional.linear(input, weight, bias)


def _by_operator(a: Tensor) -> bool:
    """Choose how to multiply, and say whether it is by the operator."""
    return a.device.type == "cpu" and a.dtype == torch.float32 and chosen() == OPERATOR and a.numel() > 0


def _use(way: Way) -> None:
    _set(way == SETTING)
    _process.way = way


def _set(is_on: bool) -> None:
    """Switch PyTorch's setting on, or back to what it was before."""
    if is_on or _process.before is not None:
        matmul_of_onednn: Any = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009 - its stub lacks it
        if _process.before is None:
            _process.before = matmul_of_onednn.fp32_precision
        matmul_of_onednn.fp32_precision = "bf16" if is_on else _process.before


@dataclass
class _Process:
    """What this process chose."""

    way: Way | None = None
    before: str | None = None
    """PyTorch's setting before it was first changed."""
    lock: Any = field(default_factory=threading.Lock)


_process = _Process()
