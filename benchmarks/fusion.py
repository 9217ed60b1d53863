"""Time and memory of lifting one view: the official form against ours, side by side."""

import cuao3d  # noqa: F401 - before PyTorch, which looks at what it asks for when it is imported

# isort: split
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor
from torch.nn import functional

from common import HEADS, finish, keep_memory, peak, peak_of, provenance, take_turns, write_section
from cuao3d.geometry import visible_points
from cuao3d.sampling import Mode
from cuao3d.scene import Camera
from cuao3d.sums import Sums

Variant = Literal["official", "bicubic", "bilinear", "pca:256"]
VARIANTS: tuple[Variant, ...] = ("official", "bicubic", "bilinear", "pca:256")

WIDTH, HEIGHT = 640, 480
"""Size of the view, pixels."""

MAPS = {
    "lseg": ((512, 240, 320),),
    "dinov2": ((1024, 34, 46),),
    "stable_diffusion": ((1280, 15, 20), (1280, 30, 40), (640, 60, 80)),
}
"""Channels, height and width of what each of the paper's teachers returns of a view of this size."""

RANK = 256
"""Channels that maps are projected to."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    teacher: str
    variant: Variant
    """`official`: maps upsampled to the image, read for all points, added where visible. `bicubic`: the same numbers by
    ours. `bilinear`: ours, at the exact position. `pca:256`: bicubic, of maps that are projected to 256 channels
    first."""
    seconds: float
    """Median of the repeats; of finding the visible points too."""
    peak_extra_mb: float
    """Memory on top of the maps and the sums, measured in a process of its own."""
    bound_seconds: float
    """What moving the bytes takes that any form moves: maps read once, rows of visible points read and written once."""


@dataclass(frozen=True)
class View:
    """A view of a scene."""

    points: Tensor
    """World positions (N, 3), metres."""
    camera: Camera
    depth: Tensor
    """Its depth image (H, W), metres."""


def main(
    points: int = 150_000,
    visible: int = 20_000,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    repeats: int = 5,
    teachers: tuple[str, ...] = tuple(MAPS),
    readme: Path | None = None,
    memory_of: str | None = None,
    device: str = "cpu",
) -> None:
    """Measure lifting one view of 640 x 480 by the teachers of the paper.

    Args:
        points: Points of the scene.
        visible: How many of them the view sees.
        json_file: Where to write the rows.
        repeats: How often each is timed; the variants take turns.
        teachers: Which of the teachers.
        readme: Page to write the table into, with machine and date.
        memory_of: Only run this once and print its peak memory, megabytes; "teacher:variant".
        device: Where maps and sums lie.
    """
    view = make_view(points, visible)
    if memory_of:
        teacher, _, variant = memory_of.partition(":")
        print(peak_of(prepare(view, teacher, variant, device)))
        return
    keep_memory()
    speed, rows = copy_speed(device), list[Row]()
    for teacher in teachers:
        runs = {variant: prepare(view, teacher, variant, device) for variant in VARIANTS}
        seconds = take_turns(runs, repeats)
        for variant in VARIANTS:
            arguments = ["--points", str(points), "--visible", str(visible), "--memory-of", f"{teacher}:{variant}"]
            extra = peak(runs[variant], device, arguments)
            rows.append(Row(teacher, variant, seconds[variant], extra, bytes_moved(teacher, variant, visible) / speed))
            print(f"{teacher:<16}  {variant:<8}  {seconds[variant]:7.3f} s  {extra:6.0f} MB", flush=True)
        del runs
    if json_file:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if readme:
        write_section(readme, f"lifting a view on {device}", section(rows, points, visible, repeats, device))


def section(rows: list[Row], points: int, visible: int, repeats: int, device: str) -> list[str]:
    """The rows as a section; every ratio is to the official form of the same teacher in the same run."""
    where = "" if device == "cpu" else f"--device {device} "
    lines = [
        f"## Lifting a view on {device}",
        "",
        *provenance(f"python benchmarks/fusion.py --repeats {repeats} {where}--readme benchmarks/README.md"),
        f"A view of {WIDTH} x {HEIGHT} that sees {visible:,} of {points:,} points; medians of {repeats}, variants",
        "taking turns in a process that keeps its memory. `official` upsamples the maps to the image, one after the",
        "other, reads them for all points and adds where the view sees the point; `bicubic` gives the same numbers,",
        f"`bilinear` reads at the exact position, `pca:{RANK}` projects maps first. *Bound* is what moving the bytes",
        "takes that any form has to move: maps read, rows of visible points read and written.",
        "",
        "| teacher | variant | seconds | times as fast | times the bound | extra memory, MB | of the official memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        first = next(other for other in rows if other.teacher == row.teacher)
        lines.append(
            f"| {row.teacher}, {HEADS[row.teacher]} | {row.variant} | {row.seconds:.3f} "
            f"| {first.seconds / row.seconds:.1f} | {row.seconds / row.bound_seconds:.1f} "
            f"| {row.peak_extra_mb:,.0f} | 1/{first.peak_extra_mb / max(row.peak_extra_mb, 1):.0f} |"
        )
    return lines


def make_view(num_points: int, num_visible: int) -> View:
    """A camera before a wall with the visible points; a fifth of all lie behind the wall, the rest at its back."""
    generator = torch.Generator().manual_seed(0)
    focal = torch.tensor([577.870605, 577.870605], dtype=torch.float64)
    center = torch.tensor([(WIDTH - 1) / 2, (HEIGHT - 1) / 2], dtype=torch.float64)
    camera = Camera(focal, center, WIDTH, HEIGHT, torch.eye(4, dtype=torch.float64))
    size = torch.tensor([WIDTH, HEIGHT], dtype=torch.float64)
    pixels = 11 + torch.rand(num_points, 2, generator=generator, dtype=torch.float64) * (size - 23)
    z = torch.full((num_points, 1), -2.0, dtype=torch.float64)
    z[:num_visible], z[num_visible : num_visible + num_points // 5] = 2.0, 4.0
    positions = torch.cat([(pixels - center) / focal * z, z], dim=1).float()
    order = torch.randperm(num_points, generator=generator)
    return View(positions[order], camera, torch.full((HEIGHT, WIDTH), 2.0))


def prepare(view: View, teacher: str, variant: str, device: str) -> Callable[[], Any]:
    """Maps of a teacher, sums to add them to, and what adds them."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(size, generator=generator).to(device) for size in MAPS[teacher]]
    width = HEADS[teacher]
    if variant == "official":
        total, count = torch.zeros(len(view.points), width, device=device), torch.zeros(len(view.points), 1)
        count = count.to(device)
        return lambda: lift_officially(view, maps, total, count)
    num_visible = len(visible_points(view.points, view.camera, view.depth).index)
    row_of_point = torch.zeros(len(view.points), dtype=torch.long)
    row_of_point[visible_points(view.points, view.camera, view.depth).index] = torch.arange(num_visible)
    sums = Sums(num_visible, RANK if variant.startswith("pca") else width)
    sums.restore({name: tensor.to(device) for name, tensor in sums.tensors().items()})
    basis = torch.linalg.qr(torch.randn(width, RANK, generator=generator)).Q.T.contiguous().to(device)
    mean = torch.randn(width, generator=generator).to(device)

    def run() -> None:
        seen = visible_points(view.points, view.camera, view.depth)
        mode: Mode = "bilinear" if variant == "bilinear" else "bicubic"
        projected = variant.startswith("pca")
        sums.add(
            project(maps, basis, mean) if projected else maps,
            row_of_point[seen.index],
            seen.pixels,
            (WIDTH, HEIGHT),
            mode=mode,
            summed=projected,
        )

    return run


def lift_officially(view: View, maps: list[Tensor], total: Tensor, count: Tensor) -> None:
    """Add a view as the released code does: all points are projected and read, and masked afterwards."""
    points = torch.cat([view.points.double(), view.points.new_ones(len(view.points), 1).double()], dim=1)
    points_camera = points @ torch.linalg.inv(view.camera.world_from_camera).T
    z = points_camera[:, 2]
    position = points_camera[:, :2] / z[:, None] * view.camera.focal + view.camera.center
    column, row = position.round().long().unbind(dim=1)
    inside = (column >= 10) & (row >= 10) & (column < WIDTH - 10) & (row < HEIGHT - 10) & (z > 0)
    surface = view.depth[row * inside, column * inside].double()
    visible = inside & ((z - surface).abs() <= 0.25 * surface)
    column, row, visible = ((one * visible).to(total.device) for one in (column, row, visible))
    count[visible] += 1
    for one, sums in zip(maps, torch.split(total, [len(one) for one in maps], dim=1), strict=True):
        large = functional.interpolate(one[None], (HEIGHT, WIDTH), mode="bicubic", align_corners=False)[0]
        of_points = large[:, row, column].permute(1, 0)
        sums[visible] += of_points[visible]


def project(maps: list[Tensor], basis: Tensor, mean: Tensor) -> list[Tensor]:
    """Project maps, whose channels lie side by side, into a basis (K, C); what is read of them adds up to the codes."""
    projected, parts = [], torch.split(basis, [len(one) for one in maps], dim=1)
    for one, part, centre in zip(maps, parts, torch.split(mean, [len(one) for one in maps]), strict=True):
        codes = torch.addmm((part @ -centre)[:, None], part, one.flatten(1))
        projected.append(codes.view(-1, *one.shape[1:]))
    return projected


def bytes_moved(teacher: str, variant: str, visible: int) -> float:
    """Bytes that any form of the work moves."""
    width = RANK if variant.startswith("pca") else HEADS[teacher]
    return 4.0 * (sum(torch.Size(size).numel() for size in MAPS[teacher]) + 2 * visible * width)


def copy_speed(device: str) -> float:
    """Bytes a second that a copy of 256 MB reads and writes."""
    source = torch.ones(1 << 26, device=device)
    copy, seconds = torch.empty_like(source), []
    for _ in range(6):
        start = time.perf_counter()
        copy.copy_(source)
        finish()
        seconds.append(time.perf_counter() - start)
    return 2 * 4 * len(source) / median(seconds[1:])


if __name__ == "__main__":
    tyro.cli(main)
