"""Sparse convolutions against dense ones, the official kernel order, and voxel sets at their limits."""

import gc
import inspect
import json
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from cuao3d.geometry import MAX_COORDINATE
from cuao3d.sparse import KernelMap, VoxelSet, convolve, multiply, runs, sort_voxels

GOLDEN = Path(__file__).parent / "golden"
REACH = 3
"""The voxels of these tests lie within this many cells of the origin."""

voxel_sets = st.sets(st.tuples(st.integers(0, 1), *[st.integers(-REACH, REACH)] * 3), min_size=1, max_size=50).map(
    lambda coords: sort_voxels(torch.tensor(sorted(coords)))[0]
)


@pytest.mark.parametrize("backend", ["runs", "naive"])
@pytest.mark.parametrize(("size", "num_in"), [(1, 5), (3, 2), (3, 6), (5, 3), (5, 6)])
@settings(max_examples=5, deadline=None)
@given(voxels=voxel_sets, seed=st.integers(0, 99))
def test_submanifold_convolution_equals_the_dense_one(backend, size, num_in, voxels, seed):
    x, kernel = random_operands(len(voxels), size**3, num_in, seed)
    dense = functional.conv3d(to_grid(x, voxels), dense_kernel(kernel, size), padding=size // 2)
    assert_equal_with_gradients(
        convolve(x, kernel, voxels.neighbours(size), backend), from_grid(dense, voxels), x, kernel
    )


@pytest.mark.parametrize("backend", ["runs", "naive"])
@settings(max_examples=5, deadline=None)
@given(voxels=voxel_sets, seed=st.integers(0, 99))
def test_strided_convolution_equals_the_dense_one(backend, voxels, seed):
    x, kernel = random_operands(len(voxels), 8, 4, seed)
    dense = functional.conv3d(to_grid(x, voxels), dense_kernel(kernel, 2), stride=2)
    assert_equal_with_gradients(convolve(x, kernel, voxels.down, backend), from_grid(dense, voxels.coarse), x, kernel)


@pytest.mark.parametrize("backend", ["runs", "naive"])
@settings(max_examples=5, deadline=None)
@given(voxels=voxel_sets, seed=st.integers(0, 99))
def test_transposed_convolution_equals_the_dense_one(backend, voxels, seed):
    x, kernel = random_operands(len(voxels.coarse), 8, 4, seed)
    weight = dense_kernel(kernel, 2).transpose(0, 1)
    dense = functional.conv_transpose3d(to_grid(x, voxels.coarse), weight, stride=2)
    assert_equal_with_gradients(convolve(x, kernel, voxels.up, backend), from_grid(dense, voxels), x, kernel)


def test_float32_is_within_1e_5_of_float64():
    voxels = cube_of_voxels(8, keep=0.4)
    x, kernel = random_operands(len(voxels), 27, 32, seed=0)
    exact = convolve(x, kernel, voxels.neighbours(3))
    single = convolve(x.float(), kernel.float(), voxels.neighbours(3))
    assert (single - exact).norm() / exact.norm() < 1e-5
    for gradient, reference in zip(
        torch.autograd.grad(single.square().sum(), (x, kernel)),
        torch.autograd.grad(exact.square().sum(), (x, kernel)),
        strict=True,
    ):
        assert (gradient - reference).norm() / reference.norm() < 1e-5


@pytest.mark.parametrize("is_emulated", [True, False])
def test_bfloat16_is_within_one_percent(is_emulated, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not is_emulated)
    voxels = cube_of_voxels(6, keep=0.4)
    x, kernel = (t.detach().bfloat16().requires_grad_() for t in random_operands(len(voxels), 27, 16, seed=0))
    exact = convolve(x.double(), kernel.double(), voxels.neighbours(3))
    with torch.autocast("cpu", torch.bfloat16):
        half = convolve(x.float(), kernel.float(), voxels.neighbours(3))
    assert half.dtype == torch.bfloat16
    assert (half - exact).norm() / exact.norm() < 0.01
    for gradient, reference in zip(
        torch.autograd.grad(half.sum(), (x, kernel)), torch.autograd.grad(exact.sum(), (x, kernel)), strict=True
    ):
        assert (gradient - reference).norm() / reference.norm() < 0.02


@pytest.mark.parametrize("num_in", [3, 8], ids=["whole windows", "runs"])
def test_gradients_of_many_voxels_are_summed_in_single_precision(num_in, monkeypatch):
    # In bfloat16 a sum of ones stops at 256, and one of sixteens at 4096.
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(runs, "_num_rows_per_block", lambda *_: 16)
    voxels = VoxelSet(functional.pad(torch.arange(6000)[:, None], (3, 0)))
    x = torch.ones(6000, num_in, dtype=torch.bfloat16)
    kernel = torch.zeros(27, num_in, 4, dtype=torch.bfloat16, requires_grad=True)
    convolve(x, kernel, voxels.neighbours(3)).sum().backward()
    seen = torch.zeros(27, dtype=torch.bfloat16)
    seen[[4, 13, 22]] = torch.tensor([5999.0, 6000.0, 5999.0]).bfloat16()  # below, here and above; x is fastest
    assert torch.equal(kernel.grad, seen[:, None, None].expand(27, num_in, 4))


def test_half_precision_by_parts_gives_what_whole_gives(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    x, matrix = torch.randn(2500, 6).bfloat16(), torch.randn(6, 9).bfloat16()
    with torch.no_grad():
        by_parts = multiply(x, matrix)
    assert by_parts.dtype == torch.bfloat16
    assert torch.equal(by_parts, multiply(x, matrix))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_kernel_positions_are_in_minkowski_order(size):
    # From an output at `center`, kernel[k] sees the input at center + offsets[k], as in MinkowskiEngine.
    offsets = torch.tensor(json.loads((GOLDEN / "kernel_offsets.json").read_text())[f"offsets_{size}"])
    center = torch.tensor([6, -4, 2])
    inputs = functional.pad(center + offsets, (1, 0))
    voxels, row_of_voxel = sort_voxels(inputs)
    kernel_map = voxels.down if size == 2 else voxels.neighbours(size)
    outputs = voxels.coarse.coords[:, 1:] * 2 if size == 2 else voxels.coords[:, 1:]
    output = (outputs == center).all(dim=1).nonzero().item()
    positions = torch.arange(1.0, size**3 + 1)
    for k in range(0, size**3, 7):
        x = (row_of_voxel == k).float()[:, None]
        assert convolve(x, positions[:, None, None], kernel_map)[output].item() == positions[k]


def test_blocks_of_any_size_give_the_same(monkeypatch):
    voxels = cube_of_voxels(7, keep=0.5)
    x, kernel = random_operands(len(voxels), 27, 5, seed=1)
    whole = convolve(x, kernel, voxels.neighbours(3))
    monkeypatch.setattr(runs, "_num_rows_per_block", lambda *_: 16)
    assert_equal_with_gradients(convolve(x, kernel, voxels.neighbours(3)), whole, x, kernel)


def test_each_size_of_kernel_and_of_blocks_is_kept_by_itself():
    voxels = cube_of_voxels(6, keep=0.5)
    assert [voxels.neighbours(size).volume for size in (5, 3, 1, 5)] == [125, 27, 1, 125]
    windows = voxels.neighbours(3).windows
    for num_rows, multiple in ((16, 1), (64, 1), (16, 8), (16, 1)):
        blocks = windows.blocks(num_rows, multiple)
        assert len(blocks) == -(-len(voxels) // num_rows)
        sizes = [size for block in blocks for size in block.sizes]
        assert all(size % multiple == 0 for size in sizes)
        if multiple == 1:
            assert sum(sizes) == len(windows.row)


def test_same_bits_twice():
    voxels = cube_of_voxels(8, keep=0.5)
    x, kernel = (t.float().detach().requires_grad_() for t in random_operands(len(voxels), 27, 8, seed=1))

    def run() -> tuple[Tensor, ...]:
        out = convolve(x, kernel, VoxelSet(voxels.coords).neighbours(3))
        return out, *torch.autograd.grad(out.square().sum(), (x, kernel))

    assert all(torch.equal(first, second) for first, second in zip(run(), run(), strict=True))


def maps_of_every_kind(voxels: VoxelSet) -> list[tuple[KernelMap, Tensor, Tensor]]:
    """Kernel maps, each with features and a kernel to convolve."""
    maps = [*(voxels.neighbours(size) for size in (1, 3, 5)), voxels.down, voxels.up]
    return [(kernel_map, *random_operands(kernel_map.num_inputs, kernel_map.volume, 6, seed=0)) for kernel_map in maps]


def test_spconv_gives_the_same_rows():
    pytest.importorskip("spconv", reason="spconv is not installed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, its wheel for CPUs computes wrong rows
    try:
        with torch.no_grad():
            for kernel_map, x, kernel in maps_of_every_kind(cube_of_voxels(6, keep=0.4)):
                ours = convolve(x.float(), kernel.float(), kernel_map)
                theirs = convolve(x.float(), kernel.float(), kernel_map, "spconv")
                torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-4)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_spconv_gives_the_same_rows_and_gradients_on_a_gpu():
    pytest.importorskip("spconv", reason="spconv is not installed")
    on_gpu = VoxelSet(cube_of_voxels(6, keep=0.4).coords.cuda())
    for kernel_map, x, kernel in maps_of_every_kind(on_gpu):
        results = []
        for backend in ("runs", "spconv"):
            operands = [tensor.detach().float().cuda().requires_grad_() for tensor in (x, kernel)]
            out = convolve(*operands, kernel_map, backend)
            results.append((out, *torch.autograd.grad(out.square().sum(), operands)))
        for theirs, ours in zip(*results, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-2)


def test_spconv_is_refused_where_it_is_wrong_or_missing():
    voxels = cube_of_voxels(3, keep=1.0)
    x, kernel = random_operands(len(voxels), 27, 4, seed=0)
    with pytest.raises((ImportError, ValueError), match=r"needs spconv: pip install|correct on a GPU only"):
        convolve(x, kernel, voxels.neighbours(3), "spconv")


def test_far_apart_voxels_are_searched_and_convolve_as_near_ones_do():
    near = cube_of_voxels(5, keep=0.5)
    corner = torch.tensor([0, *[MAX_COORDINATE - 8] * 3])
    far, row_of_voxel = sort_voxels(torch.cat([near.coords + corner, torch.tensor([[0, *[-MAX_COORDINATE] * 3]])]))
    x, kernel = random_operands(len(near), 125, 6, seed=2)
    x_far = torch.cat([x, torch.zeros(1, 6)])[row_of_voxel]
    at_far = convolve(x_far, kernel, far.neighbours(5))[row_of_voxel.argsort()]
    assert torch.allclose(at_far[:-1], convolve(x, kernel, near.neighbours(5)), atol=1e-12)


@pytest.mark.parametrize("shift", [0, 1000])
def test_clouds_of_a_batch_do_not_mix(shift):
    cloud = cube_of_voxels(4, keep=0.5)
    both = VoxelSet(torch.cat([cloud.coords, cloud.coords + torch.tensor([2, 0, shift, -shift])]))
    x, kernel = random_operands(len(both), 27, 5, seed=3)
    alone = [convolve(part, kernel, cloud.neighbours(3)) for part in x.chunk(2)]
    assert torch.allclose(convolve(x, kernel, both.neighbours(3)), torch.cat(alone), atol=1e-12)


def test_coarse_voxels_are_floored_halves():
    voxels, _ = sort_voxels(torch.tensor([[0, -1, 0, 3], [0, -2, 1, 2], [0, -3, 0, 0], [1, 5, -4, 1]]))
    assert voxels.coarse.coords.tolist() == [[0, -2, 0, 0], [0, -1, 0, 1], [1, 2, -2, 0]]
    assert voxels.coarse.coarse.coords.tolist() == [[0, -1, 0, 0], [1, 1, -1, 0]]


def test_sorting_says_where_each_voxel_was():
    coords = torch.tensor([[1, 0, 0, 0], [0, 5, -2, 3], [0, -5, 2, 3]], dtype=torch.int32)
    voxels, row_of_voxel = sort_voxels(coords)
    assert voxels.coords.tolist() == [[0, -5, 2, 3], [0, 5, -2, 3], [1, 0, 0, 0]]
    assert row_of_voxel.tolist() == [2, 1, 0]


def test_maps_are_shared_and_freed_with_their_voxels():
    voxels = cube_of_voxels(3, keep=1.0)
    assert voxels.neighbours(3) is voxels.neighbours(3)
    assert voxels.up.windows is voxels.down.adjoint
    maps = [weakref.ref(kernel_map) for kernel_map in (voxels.neighbours(3), voxels.down, voxels.up)]
    gc.disable()  # without cycles, counting references is enough
    try:
        del voxels
        assert [kernel_map() for kernel_map in maps] == [None, None, None]
    finally:
        gc.enable()


def test_a_full_cube_has_as_many_pairs_as_counted_by_hand():
    # Along each axis 3 voxels see 2 + 3 + 2 neighbours within one cell.
    assert cube_of_voxels(3, keep=1.0).neighbours(3).num_pairs == 7**3


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        (torch.zeros(3, 4), "must be integers"),
        (torch.zeros(3, 3, dtype=torch.int64), "must be integers"),
        (torch.zeros(0, 4, dtype=torch.int64), "no voxels"),
        (torch.tensor([[0, 0, 0, MAX_COORDINATE + 1]]), "must lie within"),
        (torch.tensor([[-1, 0, 0, 0]]), r"Batch indices must lie in \[0, 65536\)"),
        (torch.tensor([[0, 1, 2, 3]] * 3 + [[0, 0, 0, 0]]), "2 of 4 voxels are duplicates"),
        (
            torch.tensor([[0, -(2**18), -(2**18), -(2**18)], [0, 2**18, 2**18, 2**18], [99, 0, 0, 0]]),
            "do not fit into one",
        ),
    ],
)
def test_bad_coordinates_are_refused(coords, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(sort_voxels)(coords)  # as a user calls it, without this suite's shape checks


def test_operands_that_do_not_fit_are_refused():
    voxels = cube_of_voxels(2, keep=1.0)
    with pytest.raises(ValueError, match="8 inputs and 27 kernel positions cannot convolve features of shape"):
        convolve(torch.ones(8, 3), torch.ones(8, 3, 5), voxels.neighbours(3))
    with pytest.raises(ValueError, match="Unknown backend 'magic'; choose from runs"):
        convolve(torch.ones(8, 3), torch.ones(27, 3, 5), voxels.neighbours(3), "magic")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["runs", "naive"])
def test_cuda_gives_what_the_cpu_gives(backend):
    voxels = cube_of_voxels(9, keep=0.4)
    x, kernel = random_operands(len(voxels), 27, 8, seed=5)
    on_gpu = VoxelSet(voxels.coords.cuda())
    x_gpu, kernel_gpu = x.detach().cuda().requires_grad_(), kernel.detach().cuda().requires_grad_()
    out, out_gpu = convolve(x, kernel, voxels.neighbours(3)), convolve(x_gpu, kernel_gpu, on_gpu.neighbours(3), backend)
    assert torch.allclose(out_gpu.cpu(), out, atol=1e-10)
    gradients = torch.autograd.grad(out.square().sum(), (x, kernel))
    gradients_gpu = torch.autograd.grad(out_gpu.square().sum(), (x_gpu, kernel_gpu))
    assert all(torch.allclose(b.cpu(), a, atol=1e-8) for a, b in zip(gradients, gradients_gpu, strict=True))


def random_operands(
    num_rows: int, volume: int, num_in: int, seed: int
) -> tuple[Float[Tensor, "N Cin"], Float[Tensor, "K Cin Cout"]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, num_in, dtype=torch.float64, generator=generator)
    kernel = torch.randn(volume, num_in, 3, dtype=torch.float64, generator=generator)
    return x.requires_grad_(), kernel.requires_grad_()


def cube_of_voxels(edge: int, keep: float) -> VoxelSet:
    coords = torch.cartesian_prod(torch.tensor([0]), *[torch.arange(edge)] * 3)
    kept = torch.rand(len(coords), generator=torch.Generator().manual_seed(edge)) < keep
    return VoxelSet(coords[kept])


def to_grid(x: Float[Tensor, "N C"], voxels: VoxelSet) -> Float[Tensor, "B C X Y Z"]:
    """Put rows into a dense grid that is zero elsewhere and starts at an even cell."""
    batch, cells = voxels.coords[:, 0], voxels.coords[:, 1:] + 2 * REACH
    grid = x.new_zeros(int(batch.max()) + 1, 4 * REACH, 4 * REACH, 4 * REACH, x.shape[1])
    return grid.index_put((batch, *cells.unbind(dim=1)), x).movedim(-1, 1)


def from_grid(grid: Float[Tensor, "B C X Y Z"], voxels: VoxelSet) -> Float[Tensor, "N C"]:
    """Read the rows of voxels, whatever the grid's cell, off a grid made by `to_grid` and its descendants."""
    origin = grid.shape[-1] // 2
    cells = voxels.coords[:, 1:] + origin
    return grid.movedim(1, -1)[(voxels.coords[:, 0], *cells.unbind(dim=1))]


def dense_kernel(kernel: Float[Tensor, "K Cin Cout"], size: int) -> Float[Tensor, "Cout Cin X Y Z"]:
    return kernel.view(size, size, size, *kernel.shape[1:]).permute(4, 3, 2, 1, 0)


def assert_equal_with_gradients(
    out: Float[Tensor, "M Cout"], expected: Float[Tensor, "M Cout"], x: Tensor, kernel: Tensor
) -> None:
    assert torch.allclose(out, expected, atol=1e-10)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    found = torch.autograd.grad((out * weights).sum(), (x, kernel), retain_graph=True)
    wanted = torch.autograd.grad((expected * weights).sum(), (x, kernel), retain_graph=True)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(found, wanted, strict=True))
