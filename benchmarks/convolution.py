"""Where the time of one sparse convolution goes, and what stops it: its steps, timed apart, beside large products."""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch.nn import functional

from common import product_speed, provenance, room, take_turns, write_section
from cuao3d.sparse import convolve, runs, sort_voxels
from cuao3d.sparse.voxels import KernelMap
from cuao3d.threads import in_shares

STEPS = ("gather", "add up", "multiply")


def main(voxels: int = 60_000, channels: str = "32,96,128", repeats: int = 5, readme: Path | None = None) -> None:
    """Time a 3x3x3 convolution between layers of equal width, and its steps.

    Args:
        voxels: Voxels of the scene.
        channels: Widths, with commas.
        repeats: How often each is timed; the variants take turns.
        readme: Page to write the table into, with machine and date.
    """
    kernel_map = sort_voxels(room(voxels)[0])[0].neighbours(3)
    ceiling = product_speed(torch.float32) / 1e9
    widths = [int(width) for width in channels.split(",")]
    rows = [(width, timed(kernel_map, width, repeats)) for width in widths]
    command = f"python benchmarks/convolution.py --voxels {voxels} --repeats {repeats}"
    lines = [
        "## Where a layer's time goes",
        "",
        *provenance(f"{command} --readme benchmarks/README.md"),
        f"One 3x3x3 convolution of {voxels:,} voxels that see {kernel_map.num_pairs / voxels:.1f} neighbours each, in",
        f"{len(kernel_map.windows.row) / voxels:.1f} runs along z; float32, medians of {repeats}, taking turns.",
        "The last columns are our steps, each done alone: what this way of computing can reach. GFLOP/s are of true",
        f"work; large products run at {ceiling:.0f} here.",
        "",
        f"| channels | naive, ms | ours, ms | times as fast | GFLOP/s | {', ms | '.join(STEPS)}, ms | its GFLOP/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for width, seconds in rows:
        work = 2 * kernel_map.num_pairs * width * width / 1e9
        apart = " | ".join(f"{1e3 * seconds[step]:.0f}" for step in STEPS)
        lines.append(
            f"| {width} | {1e3 * seconds['naive']:.0f} | {1e3 * seconds['ours']:.0f} "
            f"| {seconds['naive'] / seconds['ours']:.2f} | {work / seconds['ours']:.0f} | {apart} "
            f"| {work / seconds['multiply']:.0f} |"
        )
    print("\n".join(lines))
    if readme:
        write_section(readme, "convolution", lines)


@dataclass(frozen=True)
class Product:
    """One product of a share of the work."""

    first: torch.Tensor
    view: torch.Tensor
    kernel: torch.Tensor


def timed(kernel_map: KernelMap, channels: int, repeats: int) -> dict[str, float]:
    """Median seconds of the naive form, of ours, and of our steps alone, on all threads."""
    windows, voxels = kernel_map.windows, kernel_map.num_inputs
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

    def forward(backend: str) -> None:
        with torch.no_grad():
            convolve(x, kernel, kernel_map, backend)

    return take_turns(
        {
            "naive": lambda: forward("naive"),
            "ours": lambda: forward("runs"),
            "gather": lambda: in_shares(gather, x.device),
            "multiply": lambda: in_shares(multiply, x.device),
            "add up": lambda: in_shares(add_up, x.device),
        },
        repeats,
    )


if __name__ == "__main__":
    tyro.cli(main)
