"""Where the time goes and what stops it: the layers of a forward pass, and the steps of one convolution."""

import cuao3d  # noqa: F401 - before PyTorch, which looks at what it asks for when it is imported

# isort: split
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
import tyro
from torch.nn import functional

from common import HEADS, product_speed, provenance, room, take_turns, write_section
from cuao3d.heads import Head
from cuao3d.sparse import convolve, runs, sort_voxels
from cuao3d.sparse.voxels import VoxelSet
from cuao3d.student import ConvNorm, Student
from cuao3d.threads import in_shares
from rival import NOT_INSTALLED, check_equal, load_ocnn, one_layer

STEPS = ("gather", "add up", "multiply")


def main(voxels: int = 60_000, channels: str = "32,96,128", repeats: int = 5, readme: Path | None = None) -> None:
    """Time the layers of MinkUNet18A, then a 3x3x3 convolution between layers of equal width, and its steps.

    Args:
        voxels: Voxels of the scene.
        channels: Widths, with commas.
        repeats: How often each is timed; the variants take turns.
        readme: Page to write the tables into, with machine and date.
    """
    ceiling = product_speed(torch.float32) / 1e9
    command = f"python benchmarks/convolution.py --voxels {voxels} --repeats {repeats} --readme benchmarks/README.md"
    sections = {
        "layers": layers_table(voxels, repeats, ceiling, command),
        "convolution": steps_table(voxels, [int(width) for width in channels.split(",")], repeats, ceiling, command),
    }
    for name, lines in sections.items():
        print("\n".join(lines))
        if readme:
            write_section(readme, name, lines)


def layers_table(voxels: int, repeats: int, ceiling: float, command: str) -> list[str]:
    """Seconds of the layers of a forward pass, those of one kind and resolution together."""
    lines = [
        "## Where a forward pass's time goes",
        "",
        *provenance(command),
        f"The layers of MinkUNet18A with all heads, float32, medians of {repeats}; those of the same kernel and",
        f"resolution together. GFLOP/s are of true work; large products run at {ceiling:.0f} here. *Lost* is what a",
        "layer takes longer than its work would at that speed. What heads put out is fresh memory, hundreds of",
        "megabytes: a virtual machine may take longer to find its pages than to compute what they hold.",
        "",
        "| layers | kernel | voxels | GFLOP | ms | GFLOP/s | lost, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    totals = [0.0, 0.0, 0.0]
    for (kind, kernel, rows), (count, seconds, work) in timed_layers(voxels, repeats).items():
        figures = work / 1e9, 1e3 * seconds, 1e3 * seconds - work / 1e6 / ceiling
        totals = [total + figure for total, figure in zip(totals, figures, strict=True)]
        lines.append(
            f"| {count} {kind}{'s' * (count > 1)} | {kernel} | {rows:,} | {figures[0]:.2f} | {figures[1]:.0f} "
            f"| {work / seconds / 1e9:.0f} | {figures[2]:.0f} |"
        )
    lines.append(
        f"| all | | | {totals[0]:.1f} | {totals[1]:.0f} | {1e3 * totals[0] / totals[1]:.0f} | {totals[2]:.0f} |"
    )
    return lines


def timed_layers(voxels: int, repeats: int) -> dict[tuple[str, str, int], tuple[int, float, int]]:
    """(kind, kernel, output voxels) -> number of such layers, their seconds and their floating-point operations."""
    torch.manual_seed(0)
    student, (coords, feats) = Student(HEADS).eval(), room(voxels)
    seconds: dict[torch.nn.Module, list[float]] = defaultdict(list)
    kinds: dict[torch.nn.Module, tuple[str, str, int]] = {}
    works: dict[torch.nn.Module, int] = {}

    def before(layer: Any, args: tuple[Any, ...]) -> None:
        if layer not in works:
            pairs = len(args[0]) if isinstance(layer, Head) or args[1] is None else args[1].num_pairs
            weight = layer.weight if isinstance(layer, Head) else layer.kernel
            works[layer] = 2 * pairs * weight.shape[-2] * weight.shape[-1]
        seconds[layer].append(-time.perf_counter())

    def after(layer: Any, args: tuple[Any, ...], out: torch.Tensor) -> None:
        seconds[layer][-1] += time.perf_counter()
        weight = layer.weight if isinstance(layer, Head) else layer.kernel
        size = round(len(weight) ** (1 / 3)) if weight.dim() == 3 else 1
        widths = f"{weight.shape[-2]} to {weight.shape[-1]}"
        kinds[layer] = ("head" if isinstance(layer, Head) else "convolution", f"{size}³, {widths}", len(out))

    for layer in student.modules():
        if isinstance(layer, ConvNorm | Head):
            layer.register_forward_pre_hook(before)
            layer.register_forward_hook(after)
    voxel_set, row_of_voxel = sort_voxels(coords)
    with torch.no_grad():
        for _ in range(repeats + 1):  # the first warms up and builds the kernel maps
            hidden = student._run(voxel_set, feats[row_of_voxel])
            for head in student.heads.values():
                head(hidden)
    groups: dict[tuple[str, str, int], tuple[int, float, int]] = {}
    for layer, kind in kinds.items():
        count, taken, work = groups.get(kind, (0, 0.0, 0))
        groups[kind] = (count + 1, taken + median(seconds[layer][1:]), work + works[layer])
    return groups


def steps_table(voxels: int, widths: list[int], repeats: int, ceiling: float, command: str) -> list[str]:
    """Seconds of one convolution, of the naive form, and of our steps alone."""
    sorted_voxels, ocnn = sort_voxels(room(voxels)[0])[0], load_ocnn()
    kernel_map = sorted_voxels.neighbours(3)
    rivals = ("naive", *(["ocnn"] if ocnn else []))
    lines = [
        "## Where a layer's time goes",
        "",
        *provenance(command),
        f"One 3x3x3 convolution of {voxels:,} voxels that see {kernel_map.num_pairs / voxels:.1f} neighbours each, in",
        f"{len(kernel_map.windows.row) / voxels:.1f} runs along z; float32, medians of {repeats}, taking turns.",
        "The last columns are our steps, each done alone: what this way of computing can reach. GFLOP/s are of true",
        f"work; large products run at {ceiling:.0f} here.",
        "`ocnn` is that layer of ocnn at its fastest setting; its results were checked to be equal to ours."
        if ocnn
        else NOT_INSTALLED,
        "",
        f"| channels | {', ms | '.join(rivals)}, ms | ours, ms | times {' | times '.join(rivals)} | GFLOP/s "
        f"| {', ms | '.join(STEPS)}, ms | its GFLOP/s |",
        f"|---|---|---|{'---|---|' * len(rivals)}---|---|---|---|",
    ]
    for width in widths:
        seconds = timed(sorted_voxels, width, repeats, ocnn)
        work = 2 * kernel_map.num_pairs * width * width / 1e9
        cells = [f"{1e3 * seconds[name]:.0f}" for name in (*rivals, "ours")]
        cells += [f"{seconds[name] / seconds['ours']:.2f}" for name in rivals]
        cells += [f"{work / seconds['ours']:.0f}", *(f"{1e3 * seconds[step]:.0f}" for step in STEPS)]
        lines.append(f"| {width} | {' | '.join(cells)} | {work / seconds['multiply']:.0f} |")
    return lines


@dataclass(frozen=True)
class Product:
    """One product of a share of the work."""

    first: torch.Tensor
    view: torch.Tensor
    kernel: torch.Tensor


def timed(voxel_set: VoxelSet, channels: int, repeats: int, ocnn: ModuleType | None) -> dict[str, float]:
    """Median seconds of the naive form, of ocnn, of ours, and of our steps alone, on all threads."""
    kernel_map, voxels = voxel_set.neighbours(3), len(voxel_set)
    windows = kernel_map.windows
    x, kernel = torch.randn(voxels, channels), torch.randn(27, channels, channels)
    blocks = windows.blocks(runs._num_rows_per_block(channels, channels, voxels, x.device))
    views = [x.as_strided((voxels - n + 1, n * channels), (channels, 1)) for n in range(4)]
    work = [
        [
            Product(first, views[bits.bit_count()], runs._stack(kernel, 3, column, bits))
            for (column, bits, _), first in zip(
                block.groups, block.first.split_with_sizes([count for *_, count in block.groups]), strict=True
            )
        ]
        for block in blocks
    ]
    sums = torch.zeros(max(block.num_runs for block in blocks), channels)

    def gather(share: int, num_shares: int) -> None:
        for products in work[share::num_shares]:
            for product in products:
                product.view.index_select(0, product.first)

    def multiply(share: int, num_shares: int) -> None:
        largest = max(product.first.numel() * len(product.kernel) for products in work for product in products)
        gathered, out = torch.zeros(largest), torch.empty(len(sums), channels)
        for products in work[share::num_shares]:
            for product in products:  # the same memory again and again, as when rows were gathered just now
                rows = gathered[: len(product.first) * len(product.kernel)].view(len(product.first), -1)
                torch.mm(rows, product.kernel, out=out[: len(rows)])

    def add_up(share: int, num_shares: int) -> None:
        for block in blocks[share::num_shares]:
            functional.embedding_bag(
                block.place_of_run, sums, block.runs_before_row, mode="sum", include_last_offset=True
            )

    layer = {"ocnn": equal_layer(ocnn, voxel_set, x, kernel)} if ocnn else {}
    return take_turns(
        {
            "naive": lambda: convolve(x, kernel, kernel_map, "naive"),
            **layer,
            "ours": lambda: convolve(x, kernel, kernel_map),
            "gather": lambda: in_shares(gather, x.device),
            "multiply": lambda: in_shares(multiply, x.device),
            "add up": lambda: in_shares(add_up, x.device),
        },
        repeats,
    )


def equal_layer(
    ocnn: ModuleType, voxel_set: VoxelSet, x: torch.Tensor, kernel: torch.Tensor
) -> Callable[[], torch.Tensor]:
    """Return the convolution of ocnn after checking that it computes the same."""
    run, setting, row_of_voxel = one_layer(ocnn, voxel_set.coords, x, kernel)
    difference = check_equal(
        "results of a convolution", convolve(x, kernel, voxel_set.neighbours(3)), run()[row_of_voxel]
    )
    print(f"{x.shape[1]} channels: ocnn's {setting} is equal to ours up to {difference:.0e}")
    return run


if __name__ == "__main__":
    tyro.cli(main)
