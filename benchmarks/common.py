"""What the benchmarks share: a scene of any size, variants that take turns, peak memory, a page of tables."""

import ctypes
import math
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cuao3d.geometry import voxelize
from cuao3d.products import describe, matmul
from cuao3d.progress import machine

HEADS = {"lseg": 512, "dinov2": 1024, "stable_diffusion": 3200}
"""Channels of the paper's teachers."""


def take_turns(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Run variants of some work one after the other, again and again, and return the median seconds of each."""
    seconds: dict[str, list[float]] = {variant: [] for variant in runs}
    for repeat in range(repeats + 1):
        for variant, run in runs.items():
            start = time.perf_counter()
            run()
            finish()
            if repeat:  # the first warms up
                seconds[variant].append(time.perf_counter() - start)
    return {variant: median(taken) for variant, taken in seconds.items()}


def finish() -> None:
    """Wait for what a GPU still has to compute."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def keep_memory() -> None:
    """Let this process keep the memory that it has once used, whatever is timed.

    Otherwise large tensors are new pages each time. A virtual machine may take seconds to find them, and whichever
    variant runs at that moment would pay.
    """
    if sys.platform == "linux":
        mmap_max, trim_threshold = -4, -1  # glibc's names for what is set
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def peak_in_own_process(arguments: Sequence[str]) -> float:
    """Run this benchmark again in a process of its own, which prints what `peak_of` returned; megabytes."""
    return float(subprocess.check_output([sys.executable, sys.argv[0], *arguments], text=True))


def peak(run: Callable[[], Any], device: str, arguments: Sequence[str]) -> float:
    """Return peak memory, megabytes: of a GPU, which counts its own, in this process, and else in one of its own."""
    return peak_in_own_process(arguments) if device == "cpu" else peak_of(run)


def peak_of(run: Callable[[], Any]) -> float:
    """Return what running something once adds to the peak memory, megabytes: the GPU's where data lie there."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # the peak so far was making the data
    before = _peak_kilobytes()
    run()
    return (_peak_kilobytes() - before) / 1024


def _peak_kilobytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def write_section(page: Path, name: str, lines: Sequence[str]) -> None:
    """Put a section of results into a page, in place of the one of that name if there is one."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = page.read_text() if page.exists() else "# Benchmarks\n"
    section = "\n".join([begin, *lines, end]) + "\n"
    if begin in text:
        text = text[: text.index(begin)] + section + text[text.index(end) + len(end) + 1 :]
    else:
        text += "\n" + section
    page.write_text(text)


def provenance(command: str) -> list[str]:
    """Say how a section came to be, on which day and machine."""
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_initialized() else ""
    return [f"Written by `{command}`", f"on {time.strftime('%Y-%m-%d')}, {gpu}{machine()},", f"{describe()}."]


def product_speed(dtype: torch.dtype, device: str = "cpu") -> float:
    """Operations a second of a product by `matmul` of 4096 x 4096 x 4096, or of a smaller one where it is emulated."""
    size = 256
    while True:
        a, b = torch.randn(2, size, size).to(device, dtype)
        matmul(a, b)
        finish()
        start = time.perf_counter()
        matmul(a, b)
        finish()
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
