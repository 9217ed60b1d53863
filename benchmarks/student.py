"""Time and memory of the student: the naive twin, ours in float32 and ours in bfloat16, side by side in one run."""

import json
import math
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import torch
import tyro
from jaxtyping import Float, Int
from torch import Tensor

from cuao3d.geometry import voxelize
from cuao3d.pipeline import machine
from cuao3d.student import ConvNorm, Student

HEADS = {"lseg": 512, "dinov2": 1024, "stable_diffusion": 3200}
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
    repeats: int = 5,
    readme: Path | None = None,
    memory_of: str | None = None,
) -> None:
    """Measure forward with all heads, and a training step of the body.

    Args:
        voxels: Sizes of the scenes, with commas.
        json_file: Where to write the rows.
        architecture: Name of the student's network.
        variants: Which to compare, with commas.
        repeats: How often each is timed; the variants take turns.
        readme: Where to write the table, with machine and date.
        memory_of: Only run this once and print its peak memory, megabytes; "what:variant".
    """
    sizes, compared = [int(size) for size in voxels.split(",")], variants.split(",")
    if memory_of:
        print(_peak_memory(sizes[0], architecture, *memory_of.split(":")))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    ceilings = {"fp32": product_speed(torch.float32), "bf16": product_speed(torch.bfloat16)}
    print(", ".join(f"large {name} products: {speed / 1e9:.0f} GFLOP/s" for name, speed in ceilings.items()))
    rows = []
    for size in sizes:
        for what in WHATS:
            rows += measure(size, what, compared, architecture, repeats)
            for row in rows[-len(compared) :]:
                speed = row.flops / row.seconds
                ceiling = ceilings["bf16" if row.variant == "bf16" else "fp32"]
                print(
                    f"{row.voxels:>7} voxels  {row.what:<10}  {row.variant:<5}  {row.seconds:7.3f} s  "
                    f"{rows[-len(compared)].seconds / row.seconds:5.2f} x  {row.peak_mb:6.0f} MB  "
                    f"{speed / 1e9:5.0f} GFLOP/s  {speed / ceiling:5.0%} of large products"
                )
    if json_file:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if readme:
        readme.write_text(page(rows, ceilings, architecture, repeats))


def page(rows: list[Row], ceilings: dict[str, float], architecture: str, repeats: int) -> str:
    """The rows as a page; every ratio is to the first variant of the same work in the same run."""
    sizes = ",".join(str(size) for size in dict.fromkeys(row.voxels for row in rows))
    command = f"python benchmarks/student.py --voxels {sizes} --repeats {repeats} --readme benchmarks/README.md"
    lines = [
        "# Benchmarks",
        "",
        f"Written by `{command}`",
        f"on {time.strftime('%Y-%m-%d')}, {machine()}.",
        f"{architecture} with heads of {', '.join(map(str, HEADS.values()))} channels; medians of {repeats}, variants",
        "taking turns; sorting voxels and building kernel maps included. `naive` gathers, multiplies and adds for each",
        "kernel position. A machine without bfloat16 arithmetic computes `bf16` in float32. Large float32 products run",
        f"at {ceilings['fp32'] / 1e9:.0f} GFLOP/s here, bfloat16 ones at {ceilings['bf16'] / 1e9:.0f}.",
        "",
        "| voxels | what | variant | seconds | times as fast | extra memory, MB | GFLOP/s | of large fp32 products |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        first = next(other for other in rows if (other.voxels, other.what) == (row.voxels, row.what))
        speed = row.flops / row.seconds
        lines.append(
            f"| {row.voxels:,} | {row.what} | {row.variant} | {row.seconds:.3f} | {first.seconds / row.seconds:.2f} "
            f"| {row.peak_mb:,.0f} | {speed / 1e9:.0f} | {speed / ceilings['fp32']:.0%} |"
        )
    return "\n".join(lines) + "\n"


def measure(num_voxels: int, what: What, variants: list[Any], architecture: str, repeats: int) -> list[Row]:
    """Time the variants, taking turns."""
    coords, feats = room(num_voxels)
    runs = {variant: prepare(coords, feats, architecture, what, variant) for variant in variants}
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for repeat in range(repeats + 1):
        for variant, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:  # the first warms up
                seconds[variant].append(time.perf_counter() - start)
    flops = count_flops(coords, feats, architecture, what)
    command = [sys.executable, __file__, "--voxels", str(num_voxels), "--architecture", architecture, "--memory-of"]
    peaks = [subprocess.check_output([*command, f"{what}:{variant}"], text=True) for variant in variants]
    return [
        Row(num_voxels, what, variant, median(seconds[variant]), float(peak), flops)
        for variant, peak in zip(variants, peaks, strict=True)
    ]


def prepare(
    coords: Int[Tensor, "V 4"], feats: Float[Tensor, "V 3"], architecture: str, what: What, variant: Variant
) -> Callable[[], Any]:
    """A student, and what to do with it."""
    torch.manual_seed(0)
    student = Student(HEADS, architecture).use_backend("naive" if variant == "naive" else "runs")
    student.train(what == "train_body")

    def precision() -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if variant == "bf16" else nullcontext()

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


def product_speed(dtype: torch.dtype) -> float:
    """Operations a second of a matrix product of 4096 x 4096 x 4096, or of a smaller one where it is emulated."""
    size = 256
    while True:
        a, b = torch.randn(2, size, size).to(dtype)
        torch.mm(a, b)
        start = time.perf_counter()
        torch.mm(a, b)
        seconds = time.perf_counter() - start
        if size == 4096 or seconds > 0.3:
            return 2 * size**3 / seconds
        size *= 2


def room(num_voxels: int, voxel_size: float = 0.02) -> tuple[Int[Tensor, "V 4"], Float[Tensor, "V 3"]]:
    """Voxels of a scanned room: floor, walls and a dozen boxes, turned, with sensor noise and holes.

    Args:
        num_voxels: How many; the room is as large as that needs.
        voxel_size: Edge of a voxel, metres.
    """
    generator = torch.Generator().manual_seed(0)
    edge = 3.0 * math.sqrt(num_voxels / 60_000)
    corners = torch.rand(12, 3, generator=generator) * torch.tensor([0.8, 0.8, 0.0]) * edge
    boxes = [(corner, 0.2 * edge * (0.4 + torch.rand(3, generator=generator))) for corner in corners]
    points = torch.cat(
        [_surface(torch.zeros(3), torch.full((3,), edge), voxel_size, generator)]
        + [_surface(corner, size, voxel_size, generator) for corner, size in boxes]
    )
    points += 0.15 * voxel_size * torch.randn(points.shape, generator=generator)
    angle = torch.tensor(0.5)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    points[:, :2] = points[:, :2] @ turn.T
    voxels = voxelize(points, voxel_size).coordinates
    if len(voxels) < num_voxels:
        raise ValueError(f"The room has only {len(voxels)} voxels.")
    distance = (voxels - voxels.double().mean(dim=0)).norm(dim=1)
    kept = voxels[distance.argsort(stable=True)[:num_voxels]]
    return torch.nn.functional.pad(kept, (1, 0)), torch.ones(num_voxels, 3)


def _surface(corner: Tensor, size: Tensor, voxel_size: float, generator: torch.Generator) -> Tensor:
    """Points on the faces of a box, two and a half a voxel."""
    faces = []
    for axis in range(3):
        a, b = (other for other in range(3) if other != axis)
        count = int(2.5 * size[a] * size[b] / voxel_size**2)
        for side in (0.0, 1.0):
            place = torch.rand(count, 3, generator=generator)
            place[:, axis] = side
            faces.append(corner + place * size)
    return torch.cat(faces)


def _peak_memory(num_voxels: int, architecture: str, what: Any, variant: Any) -> float:
    run = prepare(*room(num_voxels), architecture, what, variant)
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # the peak so far was making the room
    before = _peak_kilobytes()
    run()
    return (_peak_kilobytes() - before) / 1024


def _peak_kilobytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    tyro.cli(main)
