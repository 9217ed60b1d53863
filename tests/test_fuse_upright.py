"""Teachers see images upright; what they see lands where it would without turning."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from conftest import ColorTeacher, camera_at, turned
from cuao3d.cli import main
from cuao3d.errors import InputError
from cuao3d.fusion import lift, sample_cells, see
from cuao3d.geometry import quarters_to_upright
from cuao3d.gravity import up_of
from cuao3d.readers import open_dataset
from cuao3d.scene import Frame, Scene
from cuao3d.store import Store
from cuao3d.teachers import load_teacher
from cuao3d.worlds.rooms import make_room
from planted import turned as with_turned_world

Z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


class Watcher(ColorTeacher):
    """The colour teacher; it keeps the images that it is shown."""

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def __call__(self, image: Float[Tensor, "3 H W"]) -> Float[Tensor, "3 h w"]:
        self.shown.append(image)
        return super().__call__(image)


@pytest.fixture(scope="module")
def room() -> Scene:
    return make_room(0, num_views=6)


def with_frames_turned(scene: Scene, *quarters: int) -> Scene:
    """Turn the frames of a scene by quarters, in turn."""
    frames = [turned(frame, quarters[index % len(quarters)]) for index, frame in enumerate(scene.frames)]
    return replace(scene, frames=tuple(frames))


def with_coordinates_as_colours(frame: Frame) -> Frame:
    """Show the column, the row and a diagonal of the frame's pixels, in hundreds of pixels."""
    row, column = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    image = torch.stack([column, row, column + 2 * row]) / 100
    return replace(frame, read_image=lambda: image)


@pytest.mark.parametrize("quarters", range(4))
def test_a_turned_camera_is_turned_back(quarters: int, synthetic_scene: Scene):
    camera = turned(synthetic_scene.frames[0], quarters).camera
    assert quarters_to_upright([camera], Z) == [-quarters % 4]
    assert quarters_to_upright([camera], -Z) == [(2 - quarters) % 4]


@pytest.mark.parametrize(("pitch", "quarters"), [(69, 1), (71, 0), (-69, 1), (-71, 0)])
def test_a_camera_that_looks_straight_up_or_down_is_left_alone(pitch: float, quarters: int):
    tilt, pose = math.radians(pitch), camera_at(0.0).world_from_camera.clone()
    down = torch.tensor([[1, 0, 0], [0, math.cos(tilt), math.sin(tilt)], [0, -math.sin(tilt), math.cos(tilt)]])
    pose[:3, :3] = down.double() @ pose[:3, :3]
    frame = turned(Frame("tilted", replace(camera_at(0.0), world_from_camera=pose), lambda: None, lambda: None), 3)
    assert quarters_to_upright([frame.camera], Z) == [quarters]


@pytest.mark.parametrize("quarters", range(4))
def test_features_land_on_the_very_pixels_that_they_describe(quarters: int, synthetic_scene: Scene):
    # Colours are the pixels' coordinates, so bilinear interpolation reads each sample's own coordinates, exactly.
    frames = tuple(map(with_coordinates_as_colours, synthetic_scene.frames[:1]))
    points = synthetic_scene.points + 1e-3  # off the ties of rounding, which go another way in a turned image
    plain = replace(synthetic_scene, points=points, frames=frames, capture_from_world=torch.eye(4).double())
    scene = with_frames_turned(plain, quarters)
    samples, teacher = sample_cells(points, 0.05), Watcher()
    features = lift(scene, see(scene, samples), teacher, mode="bilinear")
    assert torch.equal(teacher.shown[0], frames[0].read_image())
    visibility = see(plain, samples)
    x, y = visibility.views[0].pixels.unbind(1)
    assert len(x) > 100
    torch.testing.assert_close(features, torch.stack([x, y, x + 2 * y], dim=1).float() / 100, rtol=0, atol=1e-5)
    torch.testing.assert_close(lift(scene, see(scene, samples), teacher), lift(plain, visibility, teacher))


def test_without_turning_teachers_see_images_as_they_are_stored(synthetic_scene: Scene):
    scene = with_frames_turned(replace(synthetic_scene, capture_from_world=torch.eye(4).double()), 1)
    visibility, teacher = see(scene, sample_cells(scene.points, 0.05)), Watcher()
    lift(scene, visibility, teacher, upright=False)
    assert [tuple(image.shape) for image in teacher.shown] == [(3, 64, 48)] * 2
    assert torch.equal(teacher.shown[0], scene.frames[0].read_image())


@pytest.mark.parametrize("name", ["mini-lseg", "mini-dino", "mini-diffusion"])
def test_a_room_of_turned_frames_lifts_to_the_same_features(name: str, room: Scene):
    teacher = load_teacher(name)

    def lifted(scene: Scene, upright: bool = True) -> Tensor:
        samples = sample_cells(scene.points, 0.1)
        visibility = see(scene, samples, border=12)
        features = torch.zeros(len(samples.index_of_sample), teacher.num_channels)
        features[visibility.seen_samples] = lift(scene, visibility, teacher, upright=upright)
        return features

    scene = with_frames_turned(room, 1, 2, 3)
    plain = lifted(room)
    same, sideways = (functional.cosine_similarity(plain, lifted(scene, upright)) for upright in (True, False))
    seen = plain.norm(dim=1) > 0
    assert same[seen].median() > 0.999
    assert sideways[seen].median() < 0.995


def unread() -> Tensor:
    raise AssertionError("depth is read only in doubt")


def test_up_is_z_where_cameras_say_so_or_the_capture_or_nothing(room: Scene):
    def blind(scene: Scene) -> Scene:
        return replace(scene, frames=tuple(replace(frame, read_depth=unread) for frame in scene.frames))

    assert up_of(blind(room)).equal(Z)
    assert up_of(blind(with_frames_turned(room, 0, 1, 2, 3))).equal(Z)
    lying = with_frames_turned(replace(room, capture_from_world=torch.eye(4, dtype=torch.float64)), 2)
    assert up_of(blind(lying)).equal(Z)
    assert up_of(replace(room, frames=())).equal(Z)


@pytest.mark.parametrize("quarters", [0, 2])
def test_where_cameras_are_held_about_another_direction_depth_tells_who_is_right(quarters: int, room: Scene):
    y_up = torch.tensor([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64).T
    for world in (y_up, torch.eye(4, dtype=torch.float64)):
        scene = with_turned_world(with_frames_turned(room, quarters), world)
        up = up_of(scene)
        assert up is not None
        assert float(up @ world[:3, 2]) > math.cos(math.radians(1))
        cameras = [frame.camera for frame in scene.frames]
        assert quarters_to_upright(cameras, up) == [quarters] * len(cameras)


@pytest.mark.slow
@pytest.mark.data
def test_frames_of_the_lounge_that_lie_on_their_side_are_seen_upright(
    lounge: Scene, lounge_folder: Path, tmp_path: Path
):
    # Its world has y up, as depth tells however the frames lie; where the capture says what is up, that counts.
    for quarters in range(4):
        scene = with_frames_turned(lounge, quarters)
        up = up_of(scene)
        assert up is not None
        assert float(up[1]) > math.cos(math.radians(3))
        assert quarters_to_upright([frame.camera for frame in scene.frames], up) == [-quarters % 4] * 5
    folder = Path(shutil.copytree(lounge_folder, tmp_path / "lounge", copy_function=shutil.copyfile))
    (folder / "capture.json").write_text('{"up": [-0.02225, 0.99941, -0.02634]}')
    level = open_dataset(folder)[0]
    samples, teacher = sample_cells(level.points, 0.1), load_teacher("mini-lseg")
    plain, sideways = (lift(one, see(one, samples), teacher) for one in (level, with_frames_turned(level, 3)))
    assert functional.cosine_similarity(plain, sideways).median() > 0.99


def test_where_depth_does_not_tell_images_stay_as_they_are(synthetic_scene: Scene):
    def broken() -> Tensor:
        raise InputError("depth is damaged")

    scene = with_frames_turned(synthetic_scene, 2)
    assert up_of(scene) is None
    assert up_of(replace(scene, frames=tuple(replace(frame, read_depth=broken) for frame in scene.frames))) is None


def test_a_store_does_not_mix_upright_images_with_others(room_folder: Path, tmp_path: Path, capsys):
    fuse = ["fuse", str(room_folder), "--teachers", "none", "--cell", "0.1", "--out", str(tmp_path / "store")]
    assert main([*fuse, "--no-upright"]) == 0
    assert Store.open(tmp_path / "store").settings["upright"] is False
    assert main(fuse) == 2
    assert "settings.upright is false, not true" in capsys.readouterr().err
