import io
import math
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cuao3d.formats.images import (
    NoDepth,
    depth_size,
    image_size,
    jpeg,
    lens_of,
    open_frame,
    read_colors,
    read_depth,
    resize_nearest,
    usual_size,
)
from cuao3d.formats.lens import Distortion, Lens, distort, fold
from cuao3d.scene import Frame
from written import damage

POSE = torch.eye(4, dtype=torch.float64)
BARREL = (-0.2, 0.05, 0.004, -0.003, 0.01)
"""A bent lens: k1, k2, p1, p2, k3."""


def picture(seed: int = 0, size: tuple[int, int] = (7, 5)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def test_eight_bits_are_read_to_the_bit(tmp_path: Path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    colors = read_colors(tmp_path / "a.png")
    assert colors.equal(torch.from_numpy(picture().astype(np.float32) / 255).permute(2, 0, 1))
    assert image_size(tmp_path / "a.png") == (7, 5)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "I;16"])
def test_every_kind_of_pixel_becomes_rgb_as_its_own_conversion_says(mode: str, tmp_path: Path):
    if mode == "I;16":
        image = Image.fromarray(np.array([[0, 65535, 13107]] * 2, np.uint16))
        expected = np.repeat(np.array([[0, 1, 0.2]] * 2)[..., None], 3, axis=2)
    else:
        image = Image.fromarray(picture()).convert(mode)
        expected = np.asarray(image.convert("RGB")) / 255
    image.save(tmp_path / "a.png")
    np.testing.assert_allclose(read_colors(tmp_path / "a.png").permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_what_is_transparent_is_seen_over_white(tmp_path: Path):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0], pixels[0, 1], pixels[1, 0], pixels[1, 1] = (
        (9, 9, 9, 0),
        (255, 0, 0, 255),
        (0, 0, 0, 51),
        (0, 0, 0, 204),
    )
    Image.fromarray(pixels).save(tmp_path / "a.png")
    colors = read_colors(tmp_path / "a.png")
    torch.testing.assert_close(colors[:, 0, 0], torch.ones(3))
    torch.testing.assert_close(colors[:, 0, 1], torch.tensor([1.0, 0, 0]))
    torch.testing.assert_close(colors[:, 1], torch.tensor([[0.8, 0.2]] * 3))  # black of 20 % and of 80 %
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    palette.putpalette([0, 0, 255, 0, 255, 0])
    palette.save(tmp_path / "b.png", transparency=0)
    assert read_colors(tmp_path / "b.png")[:, 0].T.tolist() == [[1, 1, 1], [0, 1, 0]]


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright_as_their_exif_says(orientation: int, ending: str, tmp_path: Path):
    path = tmp_path / f"a.{ending}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(size=(16, 8))).save(path, exif=exif, lossless=True)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(eight(read_colors(path)), upright)
    assert image_size(path) == ((8, 16) if orientation >= 5 else (16, 8))


def test_depth_is_read_in_its_unit_and_the_largest_value_is_missing(tmp_path: Path):
    path = tmp_path / "d.png"
    Image.fromarray(np.array([[0, 1234], [65535, 65534]], np.uint16)).save(path)
    assert read_depth(path).equal(torch.tensor([[0, 1.234], [0, 65.534]]))
    torch.testing.assert_close(read_depth(path, 1 / 5000), torch.tensor([[0, 0.2468], [0, 13.1068]]))
    assert depth_size(path) == (2, 2)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_eight_bits_are_no_depth(mode: str, tmp_path: Path):
    Image.new(mode, (4, 4)).save(tmp_path / "d.png")
    for read in (read_depth, depth_size):
        with pytest.raises(ValueError, match=rf"d\.png has mode {mode}; expected 16-bit"):
            read(tmp_path / "d.png")


def claimed(width: int, height: int) -> bytes:
    """A PNG of 69 bytes that claims a size."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 9)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("size", [(8193, 8192), (60_000, 60_000), (1, 5), (5, 1), (0, 0)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_of_absurd_size_is_refused_by_its_header(size: tuple[int, int], tmp_path: Path):
    path = tmp_path / "bomb.png"
    path.write_bytes(claimed(*size))
    for read in (image_size, read_colors, depth_size, read_depth):
        with pytest.raises(ValueError, match=r"bomb\.png is (no readable image|\d+ x \d+; expected)"):
            read(path)
    path.write_bytes(claimed(8192, 8192).ljust(8192 * 8192 // 100 + 1, b"\0"))
    assert image_size(path) == (8192, 8192)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"bomb\.png is 8192 x 8192 and has too few bytes for that"):
        image_size(path)
    path.write_bytes(claimed(2048, 2048))
    assert image_size(path) == (2048, 2048)


def test_missing_damaged_and_other_files_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"gone\.png is missing"):
        read_colors(tmp_path / "gone.png")
    (tmp_path / "text.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"text\.png is no readable image"):
        read_colors(tmp_path / "text.png")
    (tmp_path / "drawing.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(ValueError, match=r"drawing\.png is no readable image"):
        read_colors(tmp_path / "drawing.png")
    for ending in ("png", "jpg"):
        path = tmp_path / f"cut.{ending}"
        Image.fromarray(picture(size=(64, 64))).save(path)
        path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(ValueError, match=rf"cut\.{ending} is damaged"):
            read_colors(path)


def test_damaged_images_are_refused_cleanly(tmp_path: Path):
    Image.fromarray(picture(size=(16, 12))).save(tmp_path / "a.png")
    Image.fromarray(picture(size=(16, 12))).save(tmp_path / "a.jpg", exif=Image.Exif())
    Image.fromarray(picture(size=(16, 12))).quantize(16).save(tmp_path / "p.png", transparency=3)
    Image.fromarray(np.arange(192, dtype=np.uint16).reshape(12, 16)).save(tmp_path / "d.png")
    for name, read in (("a.png", read_colors), ("a.jpg", read_colors), ("p.png", read_colors), ("d.png", read_depth)):
        raised = damage(tmp_path / name, partial(read, tmp_path / name), times=300)
        assert 0.15 < raised < 1


def test_the_size_of_most_images_is_the_usual_one(tmp_path: Path):
    for index, size in enumerate([(4, 4), (6, 4), (6, 4)]):
        Image.new("RGB", size).save(tmp_path / f"{index}.png")
    (tmp_path / "3.png").write_bytes(b"")
    paths = [tmp_path / f"{index}.png" for index in (3, 4, 0, 1, 2)]
    assert usual_size(paths, image_size) == (6, 4)
    with pytest.raises(ValueError, match=r"no image can be read: .*4\.png is missing"):
        usual_size(paths[:2], image_size)


def test_a_lens_bends_rays_by_the_numbers_of_its_model():
    rays = torch.tensor([[0.5, 0.0], [0.0, 0.0], [0.5, 1.0]], dtype=torch.float64)
    # r^2 = 0.25: 0.5 (1 + 0.1 / 4 + 0.2 / 16 + 0.3 / 64)
    assert distort(rays, (0.1, 0.2, 0, 0, 0.3))[0].tolist() == pytest.approx([0.52109375, 0])
    # r^2 = 1.25: x + 2 p1 x y + p2 (r^2 + 2 x^2), y + p1 (r^2 + 2 y^2) + 2 p2 x y
    assert distort(rays, (0, 0, 0.01, 0.02, 0))[2].tolist() == pytest.approx([0.5 + 0.01 + 0.035, 1 + 0.0325 + 0.02])
    assert distort(rays, BARREL)[1].tolist() == [0, 0]


def test_a_polynomial_folds_where_its_slope_is_zero():
    assert fold((-1, 0, 0, 0, 0)) == pytest.approx(1 / math.sqrt(3))  # r - r^3
    assert fold((0.1, 0.1, 9, 9, 0.1)) == math.inf
    assert fold((0, 0, 0.1, 0.1, 0)) == math.inf
    radii = np.linspace(0, 2, 20_001)
    k1, k2, _, _, k3 = BARREL
    shown = radii * (1 + k1 * radii**2 + k2 * radii**4 + k3 * radii**6)
    assert (np.diff(shown[radii < fold(BARREL)]) > 0).all()


def straight(bent: Tensor, distortion: Distortion) -> Tensor:
    """Undo `distort`, by small steps."""
    rays = bent.clone()
    for _ in range(200):
        rays = rays + 0.5 * (bent - distort(rays, distortion))
    return rays


def save_ramp(lens: Lens, color: Path, depth: Path) -> None:
    """Photograph a ramp: red is 0.5 + 0.8 x, green 0.5 + 0.8 y, depth 2 + x in directions (x, y)."""
    column, row = torch.meshgrid(
        torch.arange(lens.size[0], dtype=torch.float64), torch.arange(lens.size[1], dtype=torch.float64), indexing="xy"
    )
    position = torch.stack([column, row], dim=-1)
    rays = straight(
        (position - torch.tensor(lens.center).double()) / torch.tensor(lens.focal).double(), lens.distortion
    )
    ramp = torch.cat([0.5 + 0.8 * rays, torch.full_like(rays[..., :1], 0.25)], dim=-1)
    Image.fromarray((ramp * 255).round().clamp(0, 255).to(torch.uint8).numpy()).save(color)
    Image.fromarray(((2 + rays[..., 0]) * 1000).round().numpy().astype(np.uint16)).save(depth)


def directions(frame: Frame) -> tuple[Tensor, Tensor]:
    """x and y of the direction of each pixel of a frame."""
    camera = frame.camera
    x = (torch.arange(camera.width) - camera.center[0]) / camera.focal[0]
    y = (torch.arange(camera.height) - camera.center[1]) / camera.focal[1]
    x, y = torch.meshgrid(x, y, indexing="xy")
    return x.float(), y.float()


@pytest.mark.parametrize("distortion", [BARREL, (0.1, 0.02, 0.0, 0.0, 0.0)])
def test_a_bent_photograph_and_its_depth_are_straightened(distortion: Distortion, tmp_path: Path):
    lens = Lens((80.0, 82.0), (47.0, 36.5), (96, 72), distortion)
    color, depth = tmp_path / "c.png", tmp_path / "d.png"
    save_ramp(lens, color, depth)
    frame = open_frame("a", POSE, color=color, lens=lens, depth=depth)
    assert (frame.camera.focal.tolist(), frame.camera.center.tolist()) == ([80, 82], [47, 36.5])
    colors, metres = frame.read_image(), frame.read_depth()
    x, y = directions(frame)
    seen = metres > 0
    assert seen.float().mean() > 0.8
    inner = torch.nn.functional.max_pool2d((~seen).float()[None], 3, 1, 1)[0] == 0  # the border's pixels are repeated
    torch.testing.assert_close(colors[0][inner], 0.5 + 0.8 * x[inner], rtol=0, atol=1 / 255)
    torch.testing.assert_close(colors[1][inner], 0.5 + 0.8 * y[inner], rtol=0, atol=1 / 255)
    # Depth is the nearest pixel's: at most half a pixel off, so half of 1 / 80 (pixels are up to 1.6 times as wide).
    assert ((metres - 2 - x)[seen].abs() < 1.6 * 0.5 / 80 + 0.0006).all()
    assert (colors.sum(0)[~seen] == 0).all()
    raw = torch.from_numpy(np.asarray(Image.open(color)).astype(np.float32) / 255)
    assert (raw[..., 0] - (0.5 + 0.8 * x)).abs().max() > 5 / 255  # it was bent


@pytest.mark.parametrize(("width", "height"), [(24, 18), (96, 72), (64, 48), (120, 90)])
def test_colours_of_another_size_look_where_the_depths_pixels_look(width: int, height: int, tmp_path: Path):
    # The two cameras differ in size, focal length and centre; the ramp says where each pixel looks.
    lens = Lens((80.0, 80.0), (47.5, 35.5), (96, 72))
    seen = Lens((0.95 * width, 0.97 * width), (0.48 * width, 0.52 * height), (width, height))
    save_ramp(lens, tmp_path / "c.png", tmp_path / "unused.png")
    save_ramp(seen, tmp_path / "unused.jpg", tmp_path / "d.png")
    frame = open_frame("a", POSE, color=tmp_path / "c.png", lens=lens, depth=tmp_path / "d.png", depth_lens=seen)
    assert (frame.camera.width, frame.camera.height) == (width, height)
    x, y = directions(frame)
    torch.testing.assert_close(frame.read_image()[:2], 0.5 + 0.8 * torch.stack([x, y]), rtol=0, atol=1.2 / 255)
    torch.testing.assert_close(frame.read_depth(), 2 + x, rtol=0, atol=0.00051)


def test_reducing_a_photograph_averages_its_pixels(tmp_path: Path):
    checkers = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    Image.fromarray(np.repeat(checkers[..., None], 3, axis=2).astype(np.uint8)).save(tmp_path / "c.png")
    Image.fromarray(np.ones((16, 16), np.uint16)).save(tmp_path / "d.png")
    lens = Lens((60.0, 60.0), (31.5, 31.5), (64, 64))
    frame = open_frame("a", POSE, color=tmp_path / "c.png", lens=lens, depth=tmp_path / "d.png")
    torch.testing.assert_close(frame.read_image(), torch.full((3, 16, 16), 0.5))


def test_depth_without_colour_is_left_out(tmp_path: Path):
    lens, wide = Lens((40.0, 40.0), (15.5, 11.5), (32, 24)), Lens((20.0, 20.0), (15.5, 11.5), (32, 24))
    Image.new("RGB", (32, 24), "white").save(tmp_path / "c.png")
    Image.fromarray(np.full((24, 32), 1000, np.uint16)).save(tmp_path / "d.png")
    frame = open_frame("a", POSE, color=tmp_path / "c.png", lens=lens, depth=tmp_path / "d.png", depth_lens=wide)
    expected = torch.zeros(24, 32)
    expected[6:18, 8:24] = 1  # the colours see half of the width and half of the height
    assert frame.read_depth().equal(expected)
    assert frame.read_image().equal(expected.expand(3, 24, 32))


def test_depth_that_the_sensor_doubts_is_left_out(tmp_path: Path):
    lens = Lens((40.0, 40.0), (1.5, 0.5), (4, 2))
    Image.new("RGB", (4, 2)).save(tmp_path / "c.png")
    Image.fromarray(np.full((2, 4), 1500, np.uint16)).save(tmp_path / "d.png")
    confidence = tmp_path / "s.png"
    Image.fromarray(np.array([[0, 1, 2, 0], [2, 2, 1, 1]], np.uint8)).save(confidence)
    frame = open_frame("a", POSE, color=tmp_path / "c.png", lens=lens, depth=tmp_path / "d.png", confidence=confidence)
    assert frame.read_depth().tolist() == [[0, 1.5, 1.5, 0], [1.5, 1.5, 1.5, 1.5]]
    Image.new("L", (4, 4)).save(confidence)
    with pytest.raises(ValueError, match=r"s\.png is 4 x 4, the intrinsics are for 4 x 2"):
        frame.read_depth()


def test_views_whose_parts_do_not_fit_are_refused(tmp_path: Path):
    lens = Lens((40.0, 40.0), (15.5, 11.5), (32, 24))
    color, depth = tmp_path / "c.png", tmp_path / "d.png"
    Image.new("RGB", (32, 24)).save(color)
    Image.fromarray(np.full((24, 24), 1000, np.uint16)).save(depth)
    with pytest.raises(ValueError, match=r"c\.png and .*d\.png: 32 x 24 and 24 x 24 pixels cannot show one view"):
        open_frame("a", POSE, color=color, lens=lens, depth=depth)
    with pytest.raises(ValueError, match=r"c\.png is 32 x 24, the intrinsics are for 64 x 48"):
        open_frame("a", POSE, color=color, lens=lens.at((64, 48)), depth=depth)
    lost = POSE.clone()
    lost[0, 3] = math.nan
    with pytest.raises(ValueError, match="the pose is lost"):
        open_frame("a", lost, color=color, lens=lens, depth=depth)
    for focal in ((0.0, 40.0), (math.inf, 40.0), (40.0, 0.0)):
        with pytest.raises(ValueError, match=r"focal lengths are|intrinsics are lost"):
            Lens(focal, (15.5, 11.5), (32, 24))
    with pytest.raises(ValueError, match=r"k\.txt holds no focal lengths .*expected fx 0 cx"):
        lens_of(torch.zeros(3, 3, dtype=torch.float64), (32, 24), "k.txt")


def eight(colors: Tensor) -> np.ndarray:
    return (colors.permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)


def test_a_pixel_of_a_resized_image_is_the_one_whose_corner_it_begins_at():
    # floor(x * old / new): of 5 columns 0, 1, 3 become three; of 3 rows 0, 0, 1, 1, 2 become five.
    image = torch.arange(15.0).reshape(3, 5)
    assert resize_nearest(image, 3, 5).tolist() == [
        [row * 5 + column for column in (0, 1, 3)] for row in (0, 0, 1, 1, 2)
    ]
    assert torch.equal(resize_nearest(torch.stack([image, -image]), 3, 5)[1], -resize_nearest(image, 3, 5))


def test_a_jpeg_holds_the_picture():
    picture = np.full((8, 6, 3), (200, 30, 60), dtype=np.uint8)
    np.testing.assert_allclose(np.asarray(Image.open(io.BytesIO(jpeg(picture)))).astype(int), picture, atol=3)


@pytest.mark.parametrize("orientation", [6, 8])
def test_a_photograph_that_exif_turns_away_from_its_intrinsics_is_taken_as_stored(orientation: int, tmp_path: Path):
    here, stored = torch.eye(4, dtype=torch.float64), picture(size=(16, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(np.full((4, 8), 1000, np.uint16)).save(tmp_path / "d.png")
    assert image_size(tmp_path / "a.png") == image_size(tmp_path / "a.png", fitting=(8, 16)) == (8, 16)
    assert image_size(tmp_path / "a.png", fitting=(16, 8)) == (16, 8)
    assert image_size(tmp_path / "a.png", fitting=(32, 16)) == (8, 16)  # neither fits
    # As a folder's matrix: for images of the size that is seen, with the middle of those that are stored.
    matrix = torch.tensor([[10, 0, 7.5], [0, 10, 3.5], [0, 0, 1]], dtype=torch.float64)
    lens = lens_of(matrix, image_size(tmp_path / "a.png"), "K")
    assert lens.size == (16, 8)
    frame = open_frame("a", here, color=tmp_path / "a.png", lens=lens, depth=tmp_path / "d.png")
    assert (frame.camera.width, frame.camera.height) == (8, 4)
    shown = eight(frame.read_image()).astype(int)
    assert np.abs(shown - stored.reshape(4, 2, 8, 2, 3).mean(axis=(1, 3))).max() <= 1
    Image.fromarray(np.full((8, 16), 1000, np.uint16)).save(tmp_path / "large.png")
    same = open_frame("a", here, color=tmp_path / "a.png", lens=lens, depth=tmp_path / "large.png")
    np.testing.assert_array_equal(eight(same.read_image()), stored)
    upright = lens_of(torch.tensor([[10, 0, 3.5], [0, 10, 7.5], [0, 0, 1]]).double(), (8, 16), "K")
    assert upright.size == (8, 16)
    frame = open_frame("a", here, color=tmp_path / "a.png", lens=upright, depth=NoDepth("none"))
    assert frame.read_image().shape == (3, 16, 8)
    wide = lens_of(torch.tensor([[10, 0, 5.5], [0, 10, 5.5], [0, 0, 1]]).double(), (8, 16), "K")
    assert wide.size == (8, 16)  # off the middle of both: nothing is turned
