"""Photographs in a store: which are kept, what they show, and where places lie in them."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import Alone, ColorTeacher, camera_at
from cuao3d import photographs as room
from cuao3d.errors import InputError
from cuao3d.fusion import View, Visibility, sample_cells, see
from cuao3d.geometry import project
from cuao3d.photographs import (
    Photograph,
    choose,
    encode_jpeg,
    outline,
    read_photographs,
    small_size,
    turned,
)
from cuao3d.pipeline import fuse
from cuao3d.scene import Frame, Scene
from cuao3d.store import PHOTOGRAPHS_FILE, Store
from cuao3d.worlds.rooms import Rooms, make_room


def seen_by(*samples: set[int]) -> Visibility:
    """Views of ten samples."""
    views = [
        View.of(frame, camera_at(0.0), torch.zeros(10, 3), torch.tensor(sorted(own), dtype=torch.int64))
        for frame, own in enumerate(samples)
    ]
    return Visibility(tuple(views), torch.ones(10, dtype=torch.int64))


def test_each_view_adds_more_than_any_other_would():
    # The second best alone adds but one sample to the best; the third, which sees less, adds two.
    visibility = seen_by({0, 1, 2}, {0, 1, 2, 3, 4}, {1, 2, 3, 4, 5}, {6, 7}, {6})
    assert [view.frame for view in choose(visibility)] == [1, 3, 2]
    assert [view.frame for view in choose(visibility, most=2)] == [1, 3]


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_that_of_the_slow_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    seen = torch.rand(12, 10, generator=generator) < 0.3
    sets = [set(row.nonzero()[:, 0].tolist()) for row in seen]
    expected, covered = [], set()
    while len(expected) < 4 and (best := max(range(12), key=lambda k: len(sets[k] - covered))) not in expected:
        if not sets[best] - covered:
            break
        expected.append(best)
        covered |= sets[best]
    assert [view.frame for view in choose(seen_by(*sets), most=4)] == expected


def test_nothing_seen_is_nothing_chosen():
    assert choose(seen_by()) == []
    assert choose(seen_by(set(), set())) == []


def test_a_store_keeps_what_its_teachers_saw(tmp_path):
    scene = make_room(1, num_views=14)
    store = fuse(Alone(scene), [ColorTeacher()], tmp_path / "store", cell=0.1)
    stored = store[scene.name]
    photographs = read_photographs(stored)
    assert 1 < len(photographs) <= 12
    frames = {frame.name: frame for frame in scene.frames}
    samples = sample_cells(scene.points, 0.1)
    views = {scene.frames[view.frame].name: view for view in see(scene, samples).views}
    for photograph in photographs:
        image, camera = frames[photograph.name].read_image(), frames[photograph.name].camera
        kept = np.asarray(Image.open(io.BytesIO(photograph.jpeg))).astype(int)
        assert np.abs(kept - 255 * image.permute(1, 2, 0).numpy()).mean() < 6
        assert torch.equal(photograph.sees.nonzero()[:, 0], views[photograph.name].sample)
        assert torch.equal(photograph.camera.world_from_camera, camera.world_from_camera)
        assert torch.equal(photograph.camera.focal, camera.focal)
        assert torch.equal(photograph.camera.center, camera.center)
    names = [photograph.name for photograph in photographs]
    assert names == [frame.name for frame in scene.frames if frame.name in names], "in capture order"
    manifest = json.loads((stored.folder / "manifest.json").read_text())
    assert PHOTOGRAPHS_FILE in manifest["files"]
    store.verify(scene.name)
    (stored.folder / PHOTOGRAPHS_FILE).write_bytes(b"x" * manifest["files"][PHOTOGRAPHS_FILE]["bytes"])
    with pytest.raises(InputError, match=rf"{PHOTOGRAPHS_FILE} is damaged"):
        read_photographs(stored)
    (stored.folder / PHOTOGRAPHS_FILE).unlink()
    with pytest.raises(InputError, match=rf"{PHOTOGRAPHS_FILE} is damaged: it is missing"):
        store[scene.name]


def test_an_unreadable_frame_leaves_no_photograph(synthetic_scene, tmp_path):
    def fail():
        raise InputError("frame.png is damaged")

    first, second = synthetic_scene.frames
    scene = replace(synthetic_scene, frames=(replace(first, read_image=fail), second))
    store = fuse(Alone(scene), [ColorTeacher()], tmp_path, cell=0.05)
    (photograph,) = read_photographs(store["synthetic"])
    assert photograph.name == second.name
    assert int(photograph.sees.sum()) == int(store["synthetic"].num_views.sum())


def test_a_store_without_teachers_keeps_none(tmp_path, synthetic_store):
    store = fuse(Rooms(range(1), num_views=1), [], tmp_path / "none", cell=0.1)
    (name,) = store.names()
    assert read_photographs(store[name]) == ()
    assert not (store[name].folder / PHOTOGRAPHS_FILE).exists()
    assert read_photographs(Store.open(synthetic_store.path)["synthetic"]) == (), "written before there were any"


def test_what_is_kept_is_small():
    assert small_size(4032, 3024) == (640, 480)
    assert small_size(1440, 1920) == (480, 640)
    assert small_size(320, 240) == (320, 240)
    assert small_size(20000, 3) == (640, 2)
    image = torch.linspace(0, 1, 1280).expand(3, 960, 1280)
    kept = Image.open(io.BytesIO(encode_jpeg(image)))
    assert kept.size == (640, 480)
    ramp = np.asarray(kept).astype(float).mean(axis=(0, 2))
    np.testing.assert_allclose(ramp, np.linspace(0, 255, 640), atol=2)


@pytest.mark.parametrize("quarters", range(4))
def test_a_camera_turns_with_its_image(quarters):
    focal, center = torch.tensor([[40.0, 50.0], [30.0, 20.0]], dtype=torch.float64)
    camera = replace(camera_at(0.1), focal=focal, center=center)
    points = torch.tensor([[0.3, 2.0, 1.2], [-0.4, 1.5, 0.7], [0.1, 3.0, 1.0]])
    pixels = project(points, camera)[0].round().long()
    assert (pixels >= 0).all()
    assert (pixels < torch.tensor([64, 48])).all()
    marks = torch.zeros(3, 48, 64)
    marks[torch.arange(3), pixels[:, 1], pixels[:, 0]] = 1
    image, after = marks.rot90(quarters, (1, 2)), turned(camera, quarters)
    assert image.shape == (3, after.height, after.width)
    column, row = project(points, after)[0].round().long().unbind(1)
    assert torch.equal(image[torch.arange(3), row, column], torch.ones(3))
    torch.testing.assert_close(project(points, after)[1], project(points, camera)[1])


def on_its_side(scene: Scene) -> Scene:
    """The scene as cameras photograph it that are turned by a quarter; z is known to be up."""

    def turn(frame: Frame) -> Frame:
        return replace(
            frame,
            camera=turned(frame.camera, 3),
            read_image=lambda: frame.read_image().rot90(3, (1, 2)),
            read_depth=lambda: frame.read_depth().rot90(3, (0, 1)),
        )

    world = torch.eye(4, dtype=torch.float64)
    return replace(scene, frames=tuple(map(turn, scene.frames)), capture_from_world=world)


@pytest.mark.parametrize("upright", [True, False])
def test_photographs_taken_on_the_side_are_kept_upright_unless_told(synthetic_scene, tmp_path, upright):
    plain, side = (
        read_photographs(fuse(Alone(scene), [ColorTeacher()], tmp_path / name, cell=0.05, upright=upright)["synthetic"])
        for name, scene in (("plain", synthetic_scene), ("side", on_its_side(synthetic_scene)))
    )
    assert [one.name for one in side] == [one.name for one in plain]
    for one, other in zip(side, plain, strict=True):
        camera = other.camera if upright else turned(other.camera, 3)
        assert Image.open(io.BytesIO(one.jpeg)).size == (one.camera.width, one.camera.height)
        assert (one.camera.width, one.camera.height) == (camera.width, camera.height)
        assert (one.jpeg == other.jpeg) == upright
        for name in ("focal", "center", "world_from_camera"):
            torch.testing.assert_close(getattr(one.camera, name), getattr(camera, name))


def test_fine_texture_is_averaged_when_it_is_made_smaller():
    stripes = (torch.arange(1920) % 3 == 0).float().expand(3, 1440, 1920)
    kept = np.asarray(Image.open(io.BytesIO(encode_jpeg(stripes)))).astype(int)
    assert np.abs(kept[:, 5:-5] - 85).max() < 8


def test_large_images_are_kept_with_a_camera_of_their_new_size(synthetic_scene, tmp_path):
    def enlarged(frame: Frame) -> Frame:
        def enlarge(image: Tensor) -> Tensor:
            return image.repeat_interleave(20, dim=-1).repeat_interleave(20, dim=-2)

        return replace(
            frame,
            camera=frame.camera.resized(1280, 960),
            read_image=lambda: enlarge(frame.read_image()),
            read_depth=lambda: enlarge(frame.read_depth()),
        )

    large = replace(synthetic_scene, frames=tuple(enlarged(frame) for frame in synthetic_scene.frames))
    stored = fuse(Alone(large), [ColorTeacher()], tmp_path, cell=0.05)["synthetic"]
    photographs = read_photographs(stored)
    assert len(photographs) == 2
    picture = torch.nonzero(stored.sample_points[:, 1] == 1).squeeze(1)
    for photograph in photographs:
        image = Image.open(io.BytesIO(photograph.jpeg))
        assert image.size == (photograph.camera.width, photograph.camera.height) == (640, 480)
        found = outline([photograph], stored.sample_points, picture)
        assert found is not None
        inside = image.crop((int(found.left) + 15, int(found.top) + 15, int(found.right) - 15, int(found.bottom) - 15))
        red, green, _ = np.asarray(inside).astype(int).mean(axis=(0, 1))
        assert green > 180 > 80 > red, "the picture is green"


def test_an_image_is_packed_once_for_all_teachers(synthetic_scene, tmp_path, monkeypatch):
    packed = []
    monkeypatch.setattr(room, "encode_jpeg", lambda image: packed.append(image.mean().item()) or encode_jpeg(image))
    teachers = [ColorTeacher(), ColorTeacher()]
    teachers[1].name = "again"
    fuse(Alone(synthetic_scene), teachers, tmp_path, cell=0.05)
    assert len(packed) == 2


def test_a_photograph_that_is_shown_anyway_is_taken_if_it_sees_nearly_as_much():
    points = torch.cartesian_prod(torch.linspace(-0.3, 0.3, 10), torch.tensor([2.0]), torch.linspace(0.7, 1.3, 10))
    place = torch.arange(100)
    sees = torch.ones(3, 100, dtype=torch.bool)
    sees[1, :20] = sees[2, :30] = False
    taken = [Photograph(str(k), b"", camera_at(0.0), sees[k]) for k in range(3)]

    def chosen(*shown: str) -> str:
        found = outline(taken, points, place, shown=shown)
        assert found is not None
        return found.photograph.name

    assert [chosen(), chosen("1"), chosen("2"), chosen("1", "2")] == ["0", "1", "0", "1"]


def test_a_place_is_outlined_where_most_of_it_is_seen():
    # Points of a square of 0.4 m, 2 m before cameras at x = 0 and 0.5: 40 pixels a metre at 1 m, so 20 at 2 m.
    grid = torch.cartesian_prod(torch.linspace(-0.2, 0.2, 51), torch.tensor([2.0]), torch.linspace(0.8, 1.2, 51))
    points = torch.cat([grid, torch.tensor([[0.0, 1.0, 5.0]])])
    place = torch.arange(10, len(grid))
    sees = torch.zeros(3, len(points), dtype=torch.bool)
    sees[0, place] = sees[1, place] = True
    sees[0, place[:1000]] = False
    sees[2, [0, -1]] = True
    photographs = [Photograph(str(k), b"", camera_at(x), sees[k]) for k, x in enumerate((0.0, 0.5, 0.0))]
    found = outline(photographs, points, place)
    assert found is not None
    assert found.photograph.name == "1"
    # It is 8 pixels across, which is smaller than an outline may be: the smallest one around its middle.
    assert (found.left, found.right) == pytest.approx((32 - 10 - 12, 32 - 10 + 12), abs=0.5)
    assert (found.top, found.bottom) == pytest.approx((24 - 12, 24 + 12), abs=0.5)
    assert outline(photographs[2:], points, place) is None
    assert outline([], points, place) is None


def test_an_outline_leaves_out_stray_points_and_stays_in_the_photograph():
    wall = torch.cartesian_prod(torch.linspace(-0.6, 0.6, 41), torch.tensor([1.0]), torch.linspace(0.8, 1.6, 41))
    stray = torch.tensor([[-0.7, 1.0, 0.5]]).expand(20, 3)
    points = torch.cat([wall, stray])
    everything = torch.arange(len(points))
    photograph = Photograph("0", b"", camera_at(0.0), torch.ones(len(points), dtype=torch.bool))
    found = outline([photograph], points, everything)
    assert found is not None
    # 48 pixels wide with 5 % on either side; from 24 above the middle, outside the image, to 8 below it.
    assert (found.left, found.right) == pytest.approx((32 - 26.4, 32 + 26.4), abs=1.5)
    assert (found.top, found.bottom) == pytest.approx((0, 24 + 9.6), abs=1.5)


def test_of_photographs_that_see_as_much_the_nearer_one_is_taken():
    points = torch.cartesian_prod(torch.linspace(-1, 1, 21), torch.tensor([3.0]), torch.linspace(0.5, 1.5, 21))
    pose = camera_at(0.0).world_from_camera.clone()
    pose[1, 3] = 1.0
    near = replace(camera_at(0.0), world_from_camera=pose)
    sees = torch.ones(len(points), dtype=torch.bool)
    photographs = [Photograph("far", b"", camera_at(0.0), sees), Photograph("near", b"", near, sees)]
    found = outline(photographs, points, torch.arange(len(points)))
    assert found is not None
    assert found.photograph.name == "near"


def test_the_same_photographs_give_the_same_bytes(tmp_path: Path):
    stores = [fuse(Rooms(range(1), num_views=3), [ColorTeacher()], tmp_path / name, cell=0.1) for name in "ab"]
    one, other = ((store[store.names()[0]].folder / PHOTOGRAPHS_FILE).read_bytes() for store in stores)
    assert one == other
