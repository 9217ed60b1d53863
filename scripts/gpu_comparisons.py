"""Every layer, loss and teacher on a device against a CPU in float32: the largest relative error of each.

Teachers are tiny random checkpoints, as the tests write them; `photo` and its networks have their real weights, where
they are installed. A comparison that fails is recorded with its error, and the others go on.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import tyro
from torch import Tensor

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("tests", "benchmarks")]

from cuao3d.heads import Head
from cuao3d.objective import LossKind, fit_normalizer, make_weighting, teacher_loss, word_loss
from cuao3d.objective.normalizers import NormalizerKind
from cuao3d.objective.weightings import WeightingKind
from cuao3d.sparse import BACKENDS, VoxelSet, convolve, multiply, sort_voxels
from cuao3d.student import Norm, Student
from cuao3d.teachers import load_teacher

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Case = Callable[[str, torch.dtype], Sequence[Tensor]]
"""Computes results, and gradients where there are any, on a device in a type."""


@dataclass(frozen=True)
class Row:
    """One comparison."""

    kind: str
    """`layer`, `loss` or `teacher`."""
    name: str
    precision: str
    error: float | None
    """Largest difference of a result or a gradient, relative to the largest value of that tensor; None: it failed."""
    failure: str | None = None


def main(
    device: str = "cuda",
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    kinds: str = "layer,loss,teacher",
    voxels: int = 20_000,
) -> None:
    """Compare a device with a CPU.

    Args:
        device: Device to compare.
        json_file: Where to write the rows, one a line, each as soon as it is there.
        kinds: What to compare, with commas.
        voxels: Size of the room that layers see.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    makers = {"layer": partial(layers, voxels), "loss": losses, "teacher": teachers}
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds.split(","):
            for row in compare(kind, makers[kind](Path(folder)), device):
                said = f"{row.error:.1e}" if row.error is not None else row.failure
                print(f"{row.kind:<8} {row.precision}  {row.name:<40} {said}", flush=True)
                if json_file:
                    with json_file.open("a") as file:
                        file.write(json.dumps(asdict(row)) + "\n")


def compare(kind: str, cases: Iterator[tuple[str, Case]], device: str) -> Iterator[Row]:
    """Run cases on a CPU in float32, and on the device in all types."""
    for name, case in cases:
        wanted, failure = _run(case, "cpu", torch.float32)
        for precision, dtype in DTYPES.items():
            found, failure_there = (None, failure) if wanted is None else _run(case, device, dtype)
            if wanted is None or found is None:
                yield Row(kind, name, precision, None, failure_there)
            else:
                errors = [relative_error(a, b) for a, b in zip(found, wanted, strict=True)]
                yield Row(kind, name, precision, max(errors))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest value; infinite where values are not finite or shapes differ."""
    if found.shape != wanted.shape or not found.isfinite().all():
        return float("inf")
    wanted = wanted.double()
    return float((found.cpu().double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def _run(case: Case, device: str, dtype: torch.dtype) -> tuple[list[Tensor] | None, str | None]:
    torch.manual_seed(0)
    try:
        return [tensor.detach().cpu() for tensor in case(device, dtype)], None
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


def layers(voxels: int, _: Path) -> Iterator[tuple[str, Case]]:
    """Convolutions over every kind of map with every backend, other layers, and whole students."""
    from common import room

    coords, feats = room(voxels)
    backends = [name for name in BACKENDS if name not in ("triton", "spconv") or find_spec(name)]
    kinds = ("1", "3", "5", "down", "up")
    for backend in backends:
        for kind in kinds:
            yield f"convolution {kind}, {backend}", partial(_convolve, coords, kind, backend)
    yield "multiply", partial(_differentiate, lambda x, weight: multiply(x, weight), ((voxels, 96), (96, 64)))
    yield "batch norm", partial(_differentiate, _normalise, ((voxels, 32),))
    yield "head, linear", partial(_differentiate, partial(_predict, "linear"), ((voxels, 96),))
    yield "head, mlp", partial(_differentiate, partial(_predict, "mlp"), ((voxels, 96),))
    for backend in backends:
        yield f"student's forward pass, {backend}", partial(_answer, coords, feats, backend)
        yield f"student's training step, {backend}", partial(_learn, coords, feats, backend)


def losses(_: Path) -> Iterator[tuple[str, Case]]:
    """Losses of all kinds, of normalised targets, of words, and weightings."""
    shapes = ((500, 32), (32, 96))
    for kind in get_args(LossKind):
        yield f"{kind} loss", partial(_differentiate, partial(_lose, kind, None), shapes)
    for normalizer in get_args(NormalizerKind)[1:]:
        yield f"l2 loss, {normalizer}", partial(_differentiate, partial(_lose, "l2", normalizer), shapes)
    yield "loss of words", partial(_differentiate, _lose_words, shapes)
    for weighting in get_args(WeightingKind):
        yield f"weighting, {weighting}", partial(_differentiate, partial(_weigh, weighting), ((3,),))


def teachers(folder: Path) -> Iterator[tuple[str, Case]]:
    """Teachers with tiny random weights, and those whose real weights are installed."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["CUAO3D_OFFLINE"] = "1"
    specs = {name: name for name in ("mini-lseg", "mini-dino", "mini-diffusion")}
    for write in (_write_lseg, _write_transformers, _write_segmenters, _write_stable_diffusion):
        try:
            specs |= write(folder)
        except BaseException as reason:  # pytest's skipping is no Exception
            if isinstance(reason, KeyboardInterrupt):
                raise
            yield write.__name__.removeprefix("_write_"), partial(_fail, f"no checkpoint: {reason}")
    specs |= {f"{name}, its own weights": name for name in ("photo", "efficientnet", "ade20k")}
    for name, spec in specs.items():
        yield name, partial(_describe, spec)


def _convolve(coords: Tensor, kind: str, backend: str, device: str, dtype: torch.dtype) -> Sequence[Tensor]:
    voxels = VoxelSet(sort_voxels(coords)[0].coords.to(device))
    kernel_map = getattr(voxels, kind) if kind in ("down", "up") else voxels.neighbours(int(kind))
    num_in = 3 if kind == "5" else 48
    shapes = (kernel_map.num_inputs, num_in), (kernel_map.volume, num_in, 96)
    on_cpu = device == "cpu" and dtype == torch.float32  # what the others are compared with
    chosen = "naive" if on_cpu else backend
    return _differentiate(lambda x, kernel: convolve(x, kernel, kernel_map, chosen), shapes, device, dtype)


def _differentiate(
    run: Callable[..., Tensor], shapes: Sequence[tuple[int, ...]], device: str, dtype: torch.dtype
) -> Sequence[Tensor]:
    """Return the result of random operands and their gradients, for a gradient that differs from place to place."""
    operands = [torch.randn(shape).to(device, dtype).requires_grad_() for shape in shapes]
    out = run(*operands)
    weights = torch.linspace(-1, 1, out.numel(), device=device).view_as(out) if out.dim() else torch.ones_like(out)
    return [out, *torch.autograd.grad((out.float() * weights).sum(), operands)]


def _normalise(x: Tensor) -> Tensor:
    return Norm(x.shape[1]).to(x.device).train()(x)


def _predict(kind: Any, x: Tensor) -> Tensor:
    return Head(x.shape[1], 64, kind).to(x.device, x.dtype)(x)


def _student(backend: str, device: str, dtype: torch.dtype) -> Student:
    chosen = "naive" if device == "cpu" and dtype == torch.float32 else backend
    return Student({"teacher": 64}, "MinkUNet14A").to(device).use_backend(chosen)


def _answer(coords: Tensor, feats: Tensor, backend: str, device: str, dtype: torch.dtype) -> Sequence[Tensor]:
    student = _student(backend, device, dtype).eval()
    with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
        return list(student(coords.to(device), feats.to(device)).values())


def _learn(coords: Tensor, feats: Tensor, backend: str, device: str, dtype: torch.dtype) -> Sequence[Tensor]:
    student = _student(backend, device, dtype).train()
    feats = feats * torch.rand(len(feats), 1)
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        loss = student(coords.to(device), feats.to(device))["teacher"].float().square().mean()
    loss.backward()
    return [loss, student.heads["teacher"].weight.grad, student.stages[-1][-1].conv2.kernel.grad]


def _lose(kind: Any, normalizer: Any, hidden: Tensor, weight: Tensor) -> Tensor:
    targets = torch.randn(len(hidden), weight.shape[1], generator=torch.Generator().manual_seed(1)) + 0.5
    fitted = fit_normalizer(normalizer, [targets]) if normalizer else None
    on_device = fitted.to(torch.float32, hidden.device) if fitted else None
    return teacher_loss(hidden, weight, targets.half().to(hidden.device), kind, on_device)


def _lose_words(hidden: Tensor, weight: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    targets, words = (torch.randn(rows, weight.shape[1], generator=generator) for rows in (len(hidden), 10))
    return word_loss(hidden, weight, targets.to(hidden.device), (words / words.norm(dim=1)[:, None]).to(hidden.device))


def _weigh(kind: Any, losses: Tensor) -> Tensor:
    weighting = make_weighting(kind, len(losses), weights=(0.5, 1.0, 2.0)).to(losses.device)
    return weighting(losses.float().abs())


def _describe(spec: str, device: str, dtype: torch.dtype) -> Sequence[Tensor]:
    precision: Any = next(name for name, one in DTYPES.items() if one == dtype)
    maps = load_teacher(spec, device=device, precision=precision)(torch.rand(3, 96, 128))
    return maps if isinstance(maps, tuple) else [maps]


def _fail(reason: str, device: str, dtype: torch.dtype) -> Sequence[Tensor]:
    raise RuntimeError(reason)


def _write_lseg(folder: Path) -> dict[str, str]:
    from tiny_lseg import LONG_SIDE, image_side, save_published, text_side

    torch.manual_seed(0)
    save_published(folder / "demo_e200.ckpt", image_side() | text_side(width=64, depth=1, num_tokens=10))
    return {"lseg": f"lseg:long_side={LONG_SIDE}={folder / 'demo_e200.ckpt'}"}


def _write_transformers(folder: Path) -> dict[str, str]:
    from test_teachers_huggingface import KINDS, save_models

    save_models(folder)
    return {kind: f"{kind.partition('-')[0]}={folder / kind}" for kind in KINDS}


def _write_segmenters(folder: Path) -> dict[str, str]:
    from test_segmenter import SIZES, save_models

    save_models(folder)
    return {f"segmenter, {kind}": f"segmenter={folder / kind}" for kind in SIZES}


def _write_stable_diffusion(folder: Path) -> dict[str, str]:
    from test_stable_diffusion import save_checkpoint

    save_checkpoint(folder / "stable_diffusion")
    return {"stable_diffusion": f"stable_diffusion={folder / 'stable_diffusion'}"}


if __name__ == "__main__":
    tyro.cli(main)
