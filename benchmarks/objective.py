"""Time and memory of the objective and of a whole training step: the official form against ours, side by side."""

import cuao3d  # noqa: F401 - before PyTorch, which looks at what it asks for when it is imported

# isort: split
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor
from torch.nn import functional

from common import HEADS, keep_memory, peak, peak_of, provenance, room, take_turns, write_section
from cuao3d.objective import LossKind, make_weighting, teacher_loss
from cuao3d.products import MM, chosen, using
from cuao3d.student import Student

LOSSES: dict[str, LossKind] = {"lseg": "cosine", "dinov2": "l1", "stable_diffusion": "demeaned-cosine"}
What = Literal["objective", "step"]
Variant = Literal["official", "fp32", "bf16"]
WHATS: tuple[What, ...] = ("objective", "step")
VARIANTS: tuple[Variant, ...] = ("official", "fp32", "bf16")


@dataclass(frozen=True)
class Row:
    """One measurement."""

    what: What
    """`objective`: heads, losses and their gradients. `step`: a whole training step of MinkUNet18A with Adam."""
    variant: Variant
    """`official`: all outputs materialised, and the naive convolution in a step; the others are ours."""
    seconds: float
    """Median of the repeats."""
    peak_extra_mb: float
    """Memory on top of weights, optimiser state and loaded data, measured in a process of its own."""


def main(
    voxels: int = 60_000,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    repeats: int = 3,
    readme: Path | None = None,
    memory_of: str | None = None,
    device: str = "cpu",
) -> None:
    """Measure heads and losses, forward and backward, and a training step.

    Args:
        voxels: Voxels of the scene; all have targets of all three teachers, in half precision.
        json_file: Where to write the rows.
        repeats: How often each is timed; the variants take turns.
        readme: Page to write the table into, with machine and date.
        memory_of: Only run this once and print its peak memory, megabytes; "what:variant".
        device: Where it runs.
    """
    if memory_of:
        what, variant = memory_of.split(":")
        print(peak_of(prepare(voxels, what, variant, device)))
        return
    keep_memory()
    rows: list[Row] = []
    for what in WHATS:
        runs = {variant: prepare(voxels, what, variant, device) for variant in VARIANTS}
        seconds = take_turns(runs, repeats)
        for variant in VARIANTS:
            arguments = ["--voxels", str(voxels), "--memory-of", f"{what}:{variant}"]
            extra = peak(runs[variant], device, arguments)
            rows.append(Row(what, variant, seconds[variant], extra))
            print(f"{what:<9}  {variant:<8}  {seconds[variant]:7.3f} s  {extra:6.0f} MB")
    if json_file:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if readme:
        write_section(readme, "objective", section(rows, voxels, repeats))


def section(rows: list[Row], voxels: int, repeats: int) -> list[str]:
    """The rows as a section; every ratio is to the official form of the same work in the same run."""
    command = f"python benchmarks/objective.py --voxels {voxels} --repeats {repeats} --readme benchmarks/README.md"
    lines = [
        "## The objective and a whole step",
        "",
        *provenance(command),
        f"{voxels:,} voxels, teachers of {', '.join(map(str, HEADS.values()))} channels; medians of {repeats},",
        "variants taking turns in a process that keeps its memory. `objective` is heads, losses and their gradients;",
        "`step` a training step with Adam.",
        "`official` forms all outputs, and convolves naively. A machine without bfloat16 arithmetic computes `bf16`",
        "in float32.",
        "",
        "| what | variant | seconds | times as fast | extra memory, MB | of the official memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        first = next(other for other in rows if other.what == row.what)
        lines.append(
            f"| {row.what} | {row.variant} | {row.seconds:.3f} | {first.seconds / row.seconds:.2f} "
            f"| {row.peak_extra_mb:,.0f} | {row.peak_extra_mb / first.peak_extra_mb:.0%} |"
        )
    return lines


def prepare(voxels: int, what: str, variant: str, device: str) -> Callable[[], Any]:
    """Data, a student, and what to do with them."""
    generator = torch.Generator().manual_seed(0)
    targets = [torch.randn(voxels, channels, generator=generator).half().to(device) + 1 for channels in HEADS.values()]
    coords, feats = (tensor.to(device) for tensor in room(voxels))
    torch.manual_seed(0)
    student = Student(HEADS).use_backend("naive" if variant == "official" else "runs").train().to(device)
    hidden = torch.randn(voxels, student.num_hidden, generator=generator).to(device).requires_grad_()
    weighting = make_weighting("uncertainty", len(HEADS)).to(device)
    optimizer = torch.optim.Adam([*student.parameters(), *weighting.parameters()], lr=1e-4)
    for parameter in (group for groups in optimizer.param_groups for group in groups["params"]):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes the optimiser's state, which is no part of what is measured
    loss = official_loss if variant == "official" else teacher_loss

    def run() -> None:
        optimizer.zero_grad()
        hidden.grad = None
        with using(MM if variant == "official" else chosen()):
            compute()
        if what == "step":
            optimizer.step()

    def compute() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=variant == "bf16"):
            rows = student.hidden(coords, feats) if what == "step" else hidden
            if variant == "bf16":
                rows = rows.bfloat16()
            losses = [
                loss(rows, head.weight, of_teacher, LOSSES[name])
                for (name, head), of_teacher in zip(student.heads.items(), targets, strict=True)
            ]
            total = weighting(torch.stack(losses))
        total.backward()

    return run


def official_loss(hidden: Tensor, weight: Tensor, targets: Tensor, kind: str) -> Tensor:
    """The losses as the released code forms them."""
    outputs, targets = hidden @ weight, targets.float()
    if kind == "l1":
        return (outputs - targets).abs().mean()
    if kind == "demeaned-cosine":
        targets = targets - targets.mean(dim=1, keepdim=True)
    return (1 - functional.cosine_similarity(outputs, targets, dim=1)).mean()


if __name__ == "__main__":
    tyro.cli(main)
