"""Time and memory of the student: the naive twin, ours in float32 and ours in bfloat16, side by side in one run."""

import cuao3d  # noqa: F401 - before PyTorch, which looks at what it asks for when it is imported

# isort: split
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import tyro
from jaxtyping import Float, Int
from torch import Tensor

from common import (
    HEADS,
    keep_memory,
    peak,
    peak_of,
    product_speed,
    provenance,
    room,
    take_turns,
    write_section,
)
from cuao3d.sparse import BACKENDS
from cuao3d.student import ConvNorm, Student

What = Literal["forward", "train_body"]
Variant = Literal["naive", "fp32", "bf16"]
WHATS: tuple[What, ...] = ("forward", "train_body")
VARIANTS: tuple[Variant, ...] = ("naive", "fp32", "bf16")


@dataclass(frozen=True)
class Row:
    """One measurement."""

    voxels: int
    what: What
    variant: Variant
    seconds: float
    """Median of the repeats; sorting voxels and building kernel maps included."""
    peak_mb: float
    """Memory on top of the student and its input, measured in a process of its own."""
    flops: int
    """Multiplications and additions that occupied neighbours need; a training step counts them three times."""


def main(
    voxels: str = "20000,60000,150000",
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    architecture: str = "MinkUNet18A",
    variants: str = ",".join(VARIANTS),
    work: str = ",".join(WHATS),
    repeats: int = 5,
    readme: Path | None = None,
    title: str = "The student",
    memory_of: str | None = None,
    device: str = "cpu",
) -> None:
    """Measure forward with all heads, and a training step of the body.

    Args:
        voxels: Sizes of the scenes, with commas.
        json_file: Where to write the rows.
        architecture: Name of the student's network.
        variants: Which to compare, with commas; besides the usual ones a backend, such as triton or spconv_bf16.
        work: What to time, with commas.
        repeats: How often each is timed; the variants take turns.
        readme: Page to write the table into, with machine and date.
        title: Of the section there.
        memory_of: Only run this once and print its peak memory, megabytes; "what:variant".
        device: Where it runs.
    """
    sizes, compared = [int(size) for size in voxels.split(",")], variants.split(",")
    if memory_of:
        what, variant = memory_of.split(":")
        print(peak_of(prepare(*room(sizes[0]), architecture, what, variant, device)))  # type: ignore[arg-type]
        return
    keep_memory()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    ceilings = {"fp32": product_speed(torch.float32, device), "bf16": product_speed(torch.bfloat16, device)}
    print(", ".join(f"large {name} products: {speed / 1e9:.0f} GFLOP/s" for name, speed in ceilings.items()))
    rows = []
    for size in sizes:
        for what in cast(list[What], work.split(",")):
            rows += measure(size, what, compared, architecture, repeats, device)
            if json_file:
                json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
            for row in rows[-len(compared) :]:
                speed, ceiling = row.flops / row.seconds, ceiling_of(row, ceilings)
                print(
                    f"{row.voxels:>7} voxels  {row.what:<10}  {row.variant:<5}  {row.seconds:7.3f} s  "
                    f"{rows[-len(compared)].seconds / row.seconds:5.2f} x  {row.peak_mb:6.0f} MB  "
                    f"{speed / 1e9:5.0f} GFLOP/s  {speed / ceiling:5.0%} of large products"
                )
    if readme:
        options = [f"--variants {variants}"] * (variants != ",".join(VARIANTS))
        options += [f"--work {work}"] * (work != ",".join(WHATS)) + [f"--title '{title}'"] * (title != "The student")
        command = " ".join([f"python benchmarks/student.py --voxels {voxels} --repeats {repeats}", *options])
        lines = [f"## {title}", "", *provenance(f"{command} --readme benchmarks/README.md")]
        write_section(readme, title, lines + table(rows, ceilings, architecture, repeats))


def ceiling_of(row: Row, ceilings: dict[str, float]) -> float:
    """Speed of large products as a row computes them; in float32 where bfloat16 is emulated."""
    return max(ceilings.values()) if row.variant.endswith("bf16") else ceilings["fp32"]


def table(rows: list[Row], ceilings: dict[str, float], architecture: str, repeats: int) -> list[str]:
    """The rows as a table; every ratio is to the first variant of the same work in the same run."""
    lines = [
        f"{architecture} with heads of {', '.join(map(str, HEADS.values()))} channels; medians of {repeats}, variants",
        "taking turns in a process that keeps its memory; sorting voxels and building kernel maps included. `naive`",
        "gathers, multiplies and adds for each kernel position. A machine without bfloat16 arithmetic computes `bf16`",
        f"in float32. Large float32 products run at {ceilings['fp32'] / 1e9:.0f} GFLOP/s here, bfloat16 ones at "
        f"{ceilings['bf16'] / 1e9:.0f};",
        "the last column compares with those of the same type.",
        "",
        "| voxels | what | variant | seconds | times as fast | µs a voxel | extra MB | GFLOP/s | of large products |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        first = next(other for other in rows if (other.voxels, other.what) == (row.voxels, row.what))
        speed = row.flops / row.seconds
        lines.append(
            f"| {row.voxels:,} | {row.what} | {row.variant} | {row.seconds:.3f} | {first.seconds / row.seconds:.2f} "
            f"| {1e6 * row.seconds / row.voxels:.0f} | {row.peak_mb:,.0f} | {speed / 1e9:.0f} "
            f"| {speed / ceiling_of(row, ceilings):.0%} |"
        )
    bounds = [
        f"{row.seconds * ceilings['fp32'] / row.flops:.1f} ({row.what}, {row.voxels:,} voxels)"
        for row in rows
        if row.variant == "naive"
    ]
    if bounds:
        lines += [
            "",
            "At the speed of large products, the work would take less time than the naive form by a factor of",
        ]
        lines += [f"{'; '.join(bounds)}: no float32 form can be faster here."]
    return lines


def measure(
    num_voxels: int, what: What, variants: list[Any], architecture: str, repeats: int, device: str
) -> list[Row]:
    """Time the variants, taking turns."""
    coords, feats = room(num_voxels)
    runs = {variant: prepare(coords, feats, architecture, what, variant, device) for variant in variants}
    seconds = take_turns(runs, repeats)
    flops = count_flops(coords, feats, architecture, what)
    command = ["--voxels", str(num_voxels), "--architecture", architecture, "--device", device, "--memory-of"]
    return [
        Row(
            num_voxels,
            what,
            variant,
            seconds[variant],
            peak(runs[variant], device, [*command, f"{what}:{variant}"]),
            flops,
        )
        for variant in variants
    ]


def prepare(
    coords: Int[Tensor, "V 4"], feats: Float[Tensor, "V 3"], architecture: str, what: What, variant: str, device: str
) -> Callable[[], Any]:
    """A student, and what to do with it."""
    torch.manual_seed(0)
    backend = variant.removesuffix("_bf16")
    student = Student(HEADS, architecture).use_backend(backend if backend in BACKENDS else "runs").to(device)
    student.train(what == "train_body")
    coords, feats = coords.to(device), feats.to(device)

    def precision() -> AbstractContextManager[Any]:
        return torch.autocast(device, torch.bfloat16) if variant.endswith("bf16") else nullcontext()

    def forward() -> None:
        with torch.no_grad(), precision():
            student(coords, feats)

    def train_body() -> None:
        student.zero_grad()
        with precision():
            loss = student.hidden(coords, feats).float().square().mean()
        loss.backward()

    return forward if what == "forward" else train_body


def count_flops(coords: Int[Tensor, "V 4"], feats: Float[Tensor, "V 3"], architecture: str, what: What) -> int:
    """Floating-point operations of the convolutions, and of the heads where they take part."""
    student, total = Student({}, architecture).eval(), 0

    def count(module: ConvNorm, args: tuple[Any, ...]) -> None:
        nonlocal total
        x, kernel_map = args[:2]
        pairs = len(x) if kernel_map is None else kernel_map.num_pairs
        total += 2 * pairs * module.kernel.shape[-2] * module.kernel.shape[-1]

    for module in student.modules():
        if isinstance(module, ConvNorm):
            module.register_forward_pre_hook(count)
    with torch.no_grad():
        student.hidden(coords, feats)
    heads = 2 * len(coords) * student.num_hidden * sum(HEADS.values())
    return total + heads if what == "forward" else 3 * total


if __name__ == "__main__":
    tyro.cli(main)
