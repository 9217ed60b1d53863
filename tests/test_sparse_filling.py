"""Groups of runs filled up to a few sizes, as products in half precision want them."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cuao3d.sparse import KernelMap, VoxelSet, convolve, runs, sort_voxels


@pytest.fixture
def voxels() -> VoxelSet:
    cells = torch.randint(-6, 7, (900, 3), generator=torch.Generator().manual_seed(0)).unique(dim=0)
    return sort_voxels(functional.pad(cells, (1, 0)))[0]


@pytest.mark.parametrize("name", ["neighbours of 3", "neighbours of 5", "down", "up"])
def test_what_fills_up_changes_neither_values_nor_gradients(
    name: str, voxels: VoxelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel_map = {"down": voxels.down, "up": voxels.up}.get(name) or voxels.neighbours(int(name[-1]))
    monkeypatch.setattr(runs, "SMALL", 0)
    monkeypatch.setattr(runs, "_num_rows_multiple", lambda x: 64)
    for ours, obvious in zip(convolve_all(kernel_map, "runs"), convolve_all(kernel_map, "naive"), strict=True):
        torch.testing.assert_close(ours, obvious, rtol=0, atol=1e-10)


def convolve_all(kernel_map: KernelMap, backend: str) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(kernel_map.num_inputs, 6, dtype=torch.float64, generator=generator).requires_grad_()
    kernel = torch.randn(kernel_map.volume, 6, 5, dtype=torch.float64, generator=generator).requires_grad_()
    out = convolve(x, kernel, kernel_map, backend)
    weights = torch.randn(out.shape, dtype=torch.float64, generator=generator)
    return out.detach(), *torch.autograd.grad((out * weights).sum(), (x, kernel))


def test_groups_have_a_few_sizes(voxels: VoxelSet) -> None:
    windows = voxels.neighbours(3).windows
    for plain, filled in zip(windows.blocks(100), windows.blocks(100, 64), strict=True):
        assert plain.sizes == [count for _, _, count in plain.groups]
        assert all(
            size % 64 == 0 and 0 <= size - count < 64 for size, count in zip(filled.sizes, plain.sizes, strict=True)
        )
        assert torch.equal(filled.first[filled.place_of_run.long()], plain.first[plain.place_of_run.long()])


def test_half_precision_is_close_to_float32(voxels: VoxelSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "SMALL", 0)
    generator = torch.Generator().manual_seed(2)
    x, kernel = torch.randn(len(voxels), 32, generator=generator), torch.randn(27, 32, 32, generator=generator)
    exact = convolve(x, kernel, voxels.neighbours(3))
    rounded = convolve(x.bfloat16(), kernel.bfloat16(), voxels.neighbours(3))
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() < 0.01 * exact.norm()
