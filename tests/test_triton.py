"""The Triton backend against the naive one: on a GPU where there is one, else in Triton's interpreter."""

import gc
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

import cuao3d
from cuao3d.sparse import KernelMap, VoxelSet, convolve
from cuao3d.sparse import triton as backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, which nothing here does before a test

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
only_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device: the interpreter multiplies no bfloat16")
computes = pytest.mark.gpu if DEVICE == "cuda" else needs_triton


def cube_of_voxels(edge: int = 5, keep: float = 0.4) -> VoxelSet:
    coords = torch.cartesian_prod(torch.arange(2), *[torch.arange(edge)] * 3)
    kept = torch.rand(len(coords), generator=torch.Generator().manual_seed(edge)) < keep
    return VoxelSet(coords[kept].to(DEVICE))


def map_of(voxels: VoxelSet, kind: str) -> KernelMap:
    return getattr(voxels, kind) if kind in ("down", "up") else voxels.neighbours(int(kind))


def operands(kernel_map: KernelMap, num_in: int, num_out: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    shapes = (kernel_map.num_inputs, num_in), (kernel_map.volume, num_in, num_out)
    return [torch.randn(shape).to(DEVICE, dtype).requires_grad_() for shape in shapes]


def results(x: Tensor, kernel: Tensor, kernel_map: KernelMap, backend: str) -> list[Tensor]:
    """Features and both gradients, for a gradient that differs from row to row and from channel to channel."""
    out = convolve(x, kernel, kernel_map, backend)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), (x, kernel))]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@computes
@pytest.mark.parametrize(
    ("kind", "num_in", "num_out"),
    [("1", 40, 20), ("3", 3, 5), ("3", 40, 20), ("5", 3, 20), ("down", 20, 70), ("up", 70, 5)],
)
def test_every_map_gives_the_rows_and_gradients_of_the_naive_form(kind, num_in, num_out):
    kernel_map = map_of(cube_of_voxels(4), kind)
    x, kernel = operands(kernel_map, num_in, num_out)
    expected = results(x.double(), kernel.double(), kernel_map, "naive")
    for found, wanted in zip(results(x, kernel, kernel_map, "triton"), expected, strict=True):
        assert found.dtype == torch.float32
        assert relative_error(found, wanted) < 1e-6


@computes
@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=only_gpu), torch.float16])
def test_half_precision_is_rounded_once_for_its_sums_are_single(dtype):
    kernel_map = cube_of_voxels().neighbours(3)
    x, kernel = operands(kernel_map, 20, 12, dtype)
    expected = results(x.double(), kernel.double(), kernel_map, "naive")
    found = results(x, kernel, kernel_map, "triton")
    assert {tensor.dtype for tensor in found} == {dtype}
    assert all(relative_error(a, b) < torch.finfo(dtype).eps for a, b in zip(found, expected, strict=True))


@computes
def test_a_sum_of_ones_does_not_stop_at_2048_in_float16():
    voxels = VoxelSet(torch.nn.functional.pad(torch.arange(3000)[:, None], (3, 0)).to(DEVICE))
    x = torch.ones(3000, 1, dtype=torch.float16, device=DEVICE)
    kernel = torch.zeros(27, 1, 1, dtype=torch.float16, device=DEVICE, requires_grad=True)
    convolve(x, kernel, voxels.neighbours(3), "triton").sum().backward()
    assert kernel.grad.flatten().nonzero().flatten().tolist() == [4, 13, 22]  # below, here, above; x is fastest
    assert kernel.grad[[4, 13, 22]].flatten().tolist() == [3000.0, 3000.0, 3000.0]  # so is 2999 in float16


@computes
def test_autocast_decides_the_type():
    kernel_map = cube_of_voxels(3, keep=1.0).neighbours(3)
    x, kernel = operands(kernel_map, 4, 4)
    with torch.autocast(DEVICE, torch.float16):
        out = convolve(x, kernel, kernel_map, "triton")
    assert out.dtype == torch.float16
    assert {gradient.dtype for gradient in torch.autograd.grad(out.sum(), (x, kernel))} == {torch.float32}


@computes
def test_pairs_in_many_parts_sum_to_the_same(monkeypatch):
    x, kernel = operands(cube_of_voxels(3).neighbours(3), 6, 6)
    whole = results(x, kernel, cube_of_voxels(3).neighbours(3), "triton")
    monkeypatch.setattr(backend, "MIN_PAIRS_PER_PART", 5)
    in_parts = results(x, kernel, cube_of_voxels(3).neighbours(3), "triton")
    assert relative_error(in_parts[2], whole[2]) < 1e-6
    assert not torch.equal(in_parts[2], whole[2])  # another order of sums: there were parts
    assert torch.equal(in_parts[1], whole[1])


@computes
def test_the_same_bytes_twice():
    x, kernel = operands(cube_of_voxels(4).neighbours(3), 20, 12)
    first, second = (results(x, kernel, cube_of_voxels(4).neighbours(3), "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@computes
def test_only_the_gradients_that_are_needed_are_computed():
    kernel_map = cube_of_voxels(3, keep=1.0).neighbours(3)
    x, kernel = operands(kernel_map, 4, 4)
    convolve(x.detach(), kernel, kernel_map, "triton").sum().backward()
    convolve(x, kernel.detach(), kernel_map, "triton").sum().backward()
    assert (x.grad is None, kernel.grad is None) == (False, False)


def test_rows_that_see_the_same_positions_share_a_tile():
    # Positions of a column along z, below, here and above: 12, 13, 14 with z fastest. Ends of the three lines of three
    # see two of them, the middles three, and those alone one.
    voxels = VoxelSet(
        torch.nn.functional.pad(torch.tensor([[z] for z in (0, 1, 2, 10, 11, 12, 20, 30, 31, 32, 40)]), (3, 0))
    )
    tiles = backend._Tiles.of(voxels.neighbours(3).windows, 3)
    seen = tiles.seen.split(tiles.seen_before_tile.diff().tolist())
    assert tiles.row_of_slot.tolist() == [6, 10, 2, 5, 9, 0, 3, 7, 1, 4, 8, -1]
    assert [positions.tolist() for positions in seen] == [[12, 13], [12, 13, 14], [12, 13, 14], [12, 13, 14]]
    assert tiles.inputs[12:15].T.tolist()[:4] == [[-1, 6, -1], [-1, 10, -1], [1, 2, -1], [4, 5, -1]]
    assert tiles.inputs[:, -1].eq(-1).all()


def test_more_positions_than_a_word_has_bits_are_ordered_too(monkeypatch):
    windows = cube_of_voxels(4, keep=0.5).neighbours(3).windows
    whole = backend._Tiles._make(windows, 8)
    monkeypatch.setattr(backend, "POSITIONS_PER_WORD", 7)
    patterns = [(tiles.inputs >= 0).T.tolist() for tiles in (whole, backend._Tiles._make(windows, 8))]
    num_rows = windows.num_outputs
    changes = [sum(a != b for a, b in pairwise(rows[:num_rows])) for rows in patterns]
    assert changes[0] == changes[1] == len({tuple(row) for row in patterns[0][:num_rows]}) - 1  # each pattern once


def test_pairs_are_those_of_the_map():
    kernel_map = cube_of_voxels().neighbours(3)
    pairs = backend._Pairs.of(kernel_map.windows)
    sizes = pairs.before_position.diff().tolist()
    for (in_rows, out_rows), *found in zip(
        kernel_map.windows.pairs(), pairs.in_rows.split(sizes), pairs.out_rows.split(sizes), strict=True
    ):
        assert torch.equal(in_rows, found[0])
        assert torch.equal(out_rows, found[1])


def test_what_is_kept_of_a_map_is_freed_with_it():
    gc.collect()  # of earlier tests
    voxels = cube_of_voxels(3)
    kept = backend._tiles_of_windows, backend._pairs_of_windows
    before = [len(maps) for maps in kept]
    backend._Tiles.of(voxels.neighbours(3).windows, 16)
    backend._Pairs.of(voxels.neighbours(3).windows)
    assert [len(maps) for maps in kept] == [count + 1 for count in before]
    del voxels
    assert [len(maps) for maps in kept] == before


@pytest.mark.parametrize(("num_in", "num_out"), [(3, 32), (96, 96), (256, 128), (384, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tiles_are_what_tensor_cores_multiply_and_fit_into_shared_memory(num_in, num_out, dtype):
    tile = backend.Tile.of(num_in, num_out, dtype)
    for side in (tile.rows, tile.channels_in, tile.channels_out):
        assert side >= 16
        assert side & (side - 1) == 0
    staged = tile.channels_in * (tile.rows + tile.channels_out) * dtype.itemsize * tile.stages
    assert staged <= 99 * 1024  # what a program may have of it on the smallest GPUs of today, bytes


def test_the_cure_is_named_where_it_cannot_compute(monkeypatch):
    kernel_map = VoxelSet(torch.zeros(1, 4, dtype=torch.int64)).neighbours(1)
    x, kernel = torch.ones(1, 2), torch.ones(1, 2, 2)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backend.importlib, "import_module", lambda name: None)
    with pytest.raises(ValueError, match="needs features on a GPU; on a CPU choose the backend 'runs'"):
        convolve(x, kernel, kernel_map, "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="for float64 choose 'runs'"):
        convolve(x.double(), kernel.double(), kernel_map, "triton")
    with pytest.raises(ValueError, match="interpreter does not multiply bfloat16"):
        convolve(x.bfloat16(), kernel.bfloat16(), kernel_map, "triton")

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(backend.importlib, "import_module", missing)
    with pytest.raises(ImportError, match="needs triton, which PyTorch for GPUs brings along; elsewhere: pip install"):
        convolve(x, kernel, kernel_map, "triton")


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cuao3d.sparse import triton_kernels
from cuao3d.sparse.triton import Tile

def compile(kernel, arguments, sides, warps, capability):
    signature = arguments | dict.fromkeys(sides, "constexpr")
    target, options = GPUTarget("cuda", capability, 32), {"num_warps": warps, "num_stages": 3}
    compiled = triton.compile(ASTSource(kernel, signature, sides), target=target, options=options)
    assert compiled.asm["cubin"]
    return "mma" in compiled.asm["ptx"]

for dtype, name in ((torch.float32, "*fp32"), (torch.bfloat16, "*bf16"), (torch.float16, "*fp16")):
    tile = Tile.of(96, 96, dtype)
    sides = {"NUM_IN": 96, "NUM_OUT": 96, "PRECISION": "ieee"}
    sides |= {"TILE_IN": tile.channels_in, "TILE_OUT": tile.channels_out}
    rows = dict.fromkeys(("row_of_slot", "inputs", "seen", "seen_before_tile"), "*i32") | {"num_slots": "i32"}
    pairs = dict.fromkeys(("in_rows", "out_rows", "pairs_before_position"), "*i32") | {"num_pairs_per_part": "i32"}
    for capability in (80, 90):
        of_rows = {"x": name, "kernel": name, "out": name} | rows, sides | {"TILE_ROWS": tile.rows}, tile.warps
        of_pairs = {"x": name, "grad": name, "parts": "*fp32"} | pairs, sides | {"TILE_PAIRS": 32}, 4
        by_tensor_cores = {
            compile(triton_kernels.sum_over_positions, *of_rows, capability),
            compile(triton_kernels.sum_over_pairs, *of_pairs, capability),
        }
        assert by_tensor_cores == {dtype != torch.float32}
"""


@pytest.mark.slow
@needs_triton
def test_the_kernels_compile_for_gpus_that_are_not_there(tmp_path):
    # Compute capabilities 8.0 (A100) and 9.0 (H100, H200); half precision goes to their tensor cores.
    source = Path(cuao3d.__file__).parents[1]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(source)}
    script = tmp_path / "compile.py"
    script.write_text(COMPILE)
    done = subprocess.run([sys.executable, script], env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
