"""What `capture.json` corrects: each option undoes one mistake, exactly."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from conftest import camera_at
from cuao3d.errors import InputError
from cuao3d.formats.images import NoDepth, lens_of
from cuao3d.readers import open_dataset
from cuao3d.readers.corrections import correct_frames, from_other_place, lengths_of_rays, through_lens
from cuao3d.readers.options import CaptureOptions, correct_pose
from cuao3d.readers.sevenscenes import write_capture
from cuao3d.scene import OPENGL, Scene
from written import same_views, write_folder

BODY_FROM_OPTICAL = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
FLIP_Y = torch.diag(torch.tensor([1.0, -1, 1, 1], dtype=torch.float64))


def transposed(pose: Tensor) -> Tensor:
    pose = pose.clone()
    pose[:3, :3] = pose[:3, :3].T.clone()
    return pose


def with_w_first(pose: Tensor) -> Tensor:
    """The pose that comes out if a file holds w x y z and x y z w is read."""
    x, y, z, w = Rotation.from_matrix(pose[:3, :3].numpy()).as_quat()
    pose = pose.clone()
    pose[:3, :3] = torch.from_numpy(Rotation.from_quat([w, x, y, z]).as_matrix())
    return pose


def scaled(pose: Tensor, factor: float) -> Tensor:
    pose = pose.clone()
    pose[:3, 3] *= factor
    return pose


def tilted(pose: Tensor) -> Tensor:
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", [0.3, -0.2, 0.5]).as_matrix())
    return pose @ turn


@pytest.mark.parametrize(
    ("spoil", "options"),
    [
        (lambda pose: pose @ torch.linalg.inv(BODY_FROM_OPTICAL), {"axes": "ros"}),
        (lambda pose: FLIP_Y @ pose @ FLIP_Y, {"axes": "unity"}),
        (transposed, {"rotation": "transposed"}),
        (with_w_first, {"quaternion": "w-first"}),
        (lambda pose: transposed(torch.linalg.inv(pose)), {"rotation": "transposed", "pose": "camera_from_world"}),
        (lambda pose: scaled(pose, 0.5), {"pose_scale": 2.0}),
    ],
)
def test_poses_of_other_conventions_are_put_right(spoil: Callable[[Tensor], Tensor], options: dict[str, Any]):
    pose = tilted(camera_at(0.25).world_from_camera)
    read = correct_pose(spoil(pose), CaptureOptions(**options))
    torch.testing.assert_close(read, pose, rtol=0, atol=1e-12)


def test_a_left_handed_world_is_mirrored_with_its_cloud(synthetic_scene: Scene, tmp_path: Path):
    # As Unity has it: y is mirrored, in every camera and in the world.
    mirror = FLIP_Y[:3, :3].float()
    frames = [
        replace(frame, camera=replace(frame.camera, world_from_camera=FLIP_Y @ frame.camera.world_from_camera @ FLIP_Y))
        for frame in synthetic_scene.frames
    ]
    write_capture(
        replace(synthetic_scene, frames=tuple(frames), points=synthetic_scene.points @ mirror), tmp_path / "u"
    )
    (tmp_path / "u" / "capture.json").write_text('{"axes": "unity"}')
    read = open_dataset(tmp_path / "u")[0]
    same_views(read, synthetic_scene, depth_unit=0.001)
    torch.testing.assert_close(read.points, synthetic_scene.points)
    assert read.capture_from_world is not None
    torch.testing.assert_close(read.capture_from_world, FLIP_Y)


@pytest.mark.parametrize(
    ("signs", "turn"),
    [((1, -1), FLIP_Y), ((-1, 1), OPENGL), ((-1, -1), torch.diag(torch.tensor([-1.0, -1, 1, 1]).double()))],
)
def test_negative_focal_lengths_are_turned_axes(
    signs: tuple[int, int], turn: Tensor, synthetic_scene: Scene, tmp_path: Path
):
    # ICL-NUIM: fy is negative, as y points up, in a left-handed world.
    world = FLIP_Y if signs == (1, -1) else torch.eye(4, dtype=torch.float64)
    frames = [
        replace(
            frame,
            camera=replace(
                frame.camera,
                focal=frame.camera.focal * torch.tensor(signs),
                world_from_camera=world @ frame.camera.world_from_camera @ turn,
            ),
        )
        for frame in synthetic_scene.frames
    ]
    points = synthetic_scene.points @ world[:3, :3].float()
    write_capture(replace(synthetic_scene, frames=tuple(frames), points=points), tmp_path / "icl")
    read = open_dataset(tmp_path / "icl")[0]
    same_views(read, synthetic_scene, depth_unit=0.001)
    torch.testing.assert_close(read.points, synthetic_scene.points)


def test_distances_along_rays_are_made_depth(synthetic_scene: Scene, tmp_path: Path):
    # A pixel in the corner of 64 x 48 looks along (31.5 / 40, 23.5 / 40, 1), which is 1.402 long.
    assert lengths_of_rays(camera_at(0.0))[0, 0].item() == pytest.approx(1.4018, abs=1e-4)
    frames = [
        replace(frame, read_depth=lambda frame=frame: frame.read_depth() * lengths_of_rays(frame.camera))
        for frame in synthetic_scene.frames
    ]
    write_capture(replace(synthetic_scene, frames=tuple(frames)), tmp_path / "rays")
    (tmp_path / "rays" / "capture.json").write_text('{"depth_along": "rays"}')
    same_views(open_dataset(tmp_path / "rays")[0], synthetic_scene, depth_unit=0.001)


def test_frames_are_skipped_by_name_and_said(room_folder: Path, tmp_path: Path):
    shutil.copytree(room_folder, tmp_path / "room")
    (tmp_path / "room" / "capture.json").write_text('{"skip": ["frame-000002"]}')
    scene = open_dataset(tmp_path / "room")[0]
    assert "frame-000002" not in [frame.name for frame in scene.frames]
    assert len(scene.frames) == 5
    assert any("frame-000002" in str(problem) and "skip" in str(problem) for problem in scene.problems)


def test_colours_of_a_later_frame_go_where_they_belong(room_folder: Path, tmp_path: Path):
    shutil.copytree(room_folder, tmp_path / "room")
    before = open_dataset(tmp_path / "room")[0]
    (tmp_path / "room" / "capture.json").write_text('{"color_lag": -1, "photographs": "mirrored"}')
    after = open_dataset(tmp_path / "room")[0]
    assert [frame.name for frame in after.frames] == [frame.name for frame in before.frames[1:]]
    torch.testing.assert_close(after.frames[0].read_image(), before.frames[0].read_image().flip(2))
    torch.testing.assert_close(after.frames[0].read_depth(), before.frames[1].read_depth())


def test_colours_of_another_lens_are_brought_to_that_of_depth():
    # A ramp over x; at pixel 41.5 of depth, 10 right of the middle, lie the colours of pixel 31.5 + 10 * 0.9 + 2.
    camera = replace(camera_at(0.0), center=torch.tensor([31.0, 23.0], dtype=torch.float64))
    ramp = torch.arange(64.0).expand(3, 48, 64)
    seen = through_lens(ramp, camera, 0.9, (2.0, 0.0))
    assert seen[0, 23, 41].item() == pytest.approx(31 + 10 * 0.9 + 2, abs=1e-4)


def test_a_matrix_that_was_written_column_by_column_is_read():
    matrix = torch.tensor([[50.0, 0, 31.5], [0, 51, 23.5], [0, 0, 1]], dtype=torch.float64)
    assert lens_of(matrix.T, (64, 48), "k.txt") == lens_of(matrix, (64, 48), "k.txt")
    four = torch.eye(4, dtype=torch.float64)
    four[:3, :3] = matrix.T
    assert lens_of(four, (64, 48), "k.txt").center == (31.5, 23.5)


def test_colours_of_a_lens_beside_the_depths_are_registered_exactly(synthetic_scene: Scene, tmp_path: Path):
    # A slanted wall, coloured by its place, seen by a turned pair of lenses 4 cm apart: by hand, where rays meet it.
    frame = synthetic_scene.frames[0]
    camera, normal, distance = frame.camera, torch.tensor([0.3, -0.1, 1.0]).double(), 2.0
    apart = torch.eye(4, dtype=torch.float64)
    apart[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", [0.01, -0.02, 0.015]).as_matrix())
    apart[:3, 3] = torch.tensor([-0.04, 0.01, 0.005])
    y, x = torch.meshgrid(torch.arange(camera.height), torch.arange(camera.width), indexing="ij")
    rays = torch.stack([(x - camera.center[0]) / camera.focal[0], (y - camera.center[1]) / camera.focal[1]], dim=-1)
    rays = torch.cat([rays, torch.ones_like(rays[..., :1])], dim=-1).double()

    def colors_of(places: Tensor) -> Tensor:
        return (0.5 + 0.15 * places).permute(2, 0, 1).float()

    depth = distance / (rays @ normal)
    in_color = torch.linalg.inv(apart)
    normal_there, origin = apart[:3, :3] @ normal, in_color[:3, 3]
    reach = (distance - origin @ normal) / (rays @ normal_there)
    photograph = colors_of((rays * reach[..., None]) @ in_color[:3, :3].T + origin)
    two = replace(frame, read_image=lambda: photograph, read_depth=lambda: depth.float())
    truth = colors_of(rays * depth[..., None])

    def seen(**options: Any) -> Tensor:
        (corrected,) = correct_frames([two], CaptureOptions(**options)).frames
        return corrected.read_image()[:, 4:-4, 4:-4]

    rows = tuple(tuple(row) for row in apart.tolist())
    assert (seen() - truth[:, 4:-4, 4:-4]).abs().max() > 5e-3
    torch.testing.assert_close(seen(color_from_depth=rows), truth[:, 4:-4, 4:-4], rtol=0, atol=2e-4)
    # The same photograph, taken through another lens: 0.9 of the focal length, and 2 pixels to the right.
    wide = through_lens(photograph, camera, 1 / 0.9, (-2 / 0.9, 0.0))
    two = replace(two, read_image=lambda: wide)
    other = seen(color_from_depth=rows, color_focal=0.9, color_shift=(2.0, 0.0))
    torch.testing.assert_close(other[:, 4:-4, 4:-4], truth[:, 8:-8, 8:-8], rtol=0, atol=2e-3)


def test_capture_json_holds_the_pose_of_the_colours_lens(synthetic_scene: Scene, tmp_path: Path):
    capture = write_folder(synthetic_scene, tmp_path / "capture")
    rows = [[1, 0, 0, -0.02], [0, 1, 0, 0], [0, 0, 1, 0]]
    (capture / "capture.json").write_text(json.dumps({"color_from_depth": rows}))
    moved, frame = open_dataset(capture)[0].frames[0], synthetic_scene.frames[0]
    pose = torch.tensor([*rows, [0, 0, 0, 1]], dtype=torch.float64)
    expected = from_other_place(frame.read_image(), moved.read_depth(), frame.camera, pose)
    torch.testing.assert_close(moved.read_image(), expected, rtol=0, atol=0.01)
    assert (moved.read_image() - frame.read_image()).abs().max() > 0.1
    pickle.dumps(moved)  # workers get it
    for wrong, cause in ((rows[:2], "list of 4 rows"), ([[2, 0, 0, 0], *rows[1:]], "color_from_depth.*no rotation")):
        (capture / "capture.json").write_text(json.dumps({"color_from_depth": wrong}))
        with pytest.raises(InputError, match=cause):
            open_dataset(capture)[0]


def test_without_depth_the_camera_moves_to_the_colours(synthetic_scene: Scene):
    frame = replace(synthetic_scene.frames[0], read_depth=NoDepth("none"))
    rows = ((1.0, 0.0, 0.0, -0.02), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    (moved,) = correct_frames([frame], CaptureOptions(color_from_depth=rows)).frames
    right = frame.camera.world_from_camera[:3, 0]
    shift = moved.camera.world_from_camera[:3, 3] - frame.camera.world_from_camera[:3, 3]
    torch.testing.assert_close(shift, 0.02 * right)
    assert moved.read_image is frame.read_image
