"""Maps read at pixels: as if they had been upsampled, whether by products of tiles or one pixel at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from cuao3d import sampling
from cuao3d.sampling import MapReader

SIZE = (64, 48)


def read(maps, pixels, mode="bicubic", *, summed=False):
    """All values, in the order of the pixels."""
    reader = MapReader(maps, pixels, SIZE, mode=mode, summed=summed)
    values = torch.full((len(pixels), reader.num_channels), math.nan)
    for part in reader.parts:
        which, of_part = reader.read(*part)
        assert values[which].isnan().all()  # each pixel is in one part
        values[which] = of_part
    return values


def keys(t):
    """Keys' cubic kernel with a = -0.75, by its definition."""
    t = abs(t)
    if t <= 1:
        return 1.25 * t**3 - 2.25 * t**2 + 1
    return -0.75 * t**3 + 3.75 * t**2 - 6 * t + 3 if t < 2 else 0.0


def slowly(one, x, y, mode):
    """The value of a map at a pixel: a sum over all of its cells, those beyond the border repeating the last."""
    height, width = one.shape[1:]
    if mode == "bicubic":
        x, y = round(x), round(y)
    kernel = keys if mode == "bicubic" else lambda t: max(0.0, 1 - abs(t))
    u, v = (x + 0.5) * width / SIZE[0] - 0.5, (y + 0.5) * height / SIZE[1] - 0.5
    of_row = [kernel(v - row) for row in range(-3, height + 3)]
    of_column = [kernel(u - column) for column in range(-3, width + 3)]
    repeated = functional.pad(one.double()[None], (3, 3, 3, 3), mode="replicate")[0]
    return torch.einsum("chw,h,w->c", repeated, *(torch.tensor(w, dtype=torch.float64) for w in (of_row, of_column)))


@settings(deadline=None, max_examples=12)
@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 30), st.integers(1, 40)),
    st.sampled_from(["bicubic", "bilinear"]),
    st.sampled_from([0, 24, 10_000]),
)
def test_a_value_is_the_kernel_s_sum_over_all_cells(seed, size, mode, dense):
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, *size, generator=generator), torch.randn(3, 3, 4, generator=generator)]
    pixels = torch.rand(12, 2, generator=generator, dtype=torch.float64) * torch.tensor(SIZE) - 0.499
    pixels[:2] = torch.tensor([[-0.49, -0.49], [63.49, 47.49]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "DENSE", dense)  # none is read by products, those that are worth it, all
        found = read(maps, pixels, mode)
    expected = torch.stack([torch.cat([slowly(one, x, y, mode) for one in maps]) for x, y in pixels.tolist()])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("height", [3, 12, 48])
def test_reading_equals_upsampling_with_torch(height):
    generator = torch.Generator().manual_seed(height)
    one = torch.randn(5, height, height * 4 // 3, generator=generator)
    row, column = torch.meshgrid(torch.arange(48), torch.arange(64), indexing="ij")
    pixels = torch.stack([column, row], dim=-1).reshape(-1, 2).double()
    upsampled = functional.interpolate(one.double()[None], SIZE[::-1], mode="bicubic")[0].flatten(1).T
    torch.testing.assert_close(read([one], pixels).double(), upsampled, rtol=1e-5, atol=1e-5)


def test_maps_that_are_summed_add_up():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(4, *size, generator=generator) for size in ((3, 4), (40, 50))]
    pixels = torch.rand(900, 2, generator=generator, dtype=torch.float64) * torch.tensor([63.0, 47.0])
    side_by_side = read(maps, pixels)
    torch.testing.assert_close(read(maps, pixels, summed=True), side_by_side[:, :4] + side_by_side[:, 4:])


def test_no_pixels_have_no_parts():
    assert MapReader([torch.zeros(2, 3, 4)], torch.zeros(0, 2, dtype=torch.float64), SIZE).parts == []


def test_coarse_maps_are_read_by_products_and_fine_ones_are_not():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(20_000, 2, generator=generator, dtype=torch.float64) * torch.tensor([639.0, 479.0])
    for size, is_dense in (((15, 20), True), ((60, 80), True), ((240, 320), False)):
        parts = MapReader([torch.zeros(2, *size)], pixels, (640, 480)).parts
        assert (len(parts) > 100) == is_dense
