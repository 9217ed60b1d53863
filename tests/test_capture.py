import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cuao3d.errors import PoseError
from cuao3d.files import read_json
from cuao3d.formats.entries import (
    by_number,
    inside,
    matrix,
    nearest_in_time,
    number,
    only_file,
    pose_entry,
    positive,
    read_numbers,
    read_pose,
    read_rows,
    whole,
)
from cuao3d.readers import DATASETS, open_dataset
from cuao3d.readers.options import CaptureOptions, read_options
from cuao3d.readers.sevenscenes import write_capture
from cuao3d.scene import Scene
from make_fixture_matterport import write_building
from make_fixture_scannet import write_scan
from written import WRITERS, same_views

OPENGL = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("name", WRITERS)
def test_a_written_capture_is_recognised_as_itself_and_as_nothing_else(
    name: str, synthetic_scene: Scene, tmp_path: Path
):
    path = WRITERS[name](synthetic_scene, tmp_path / "scene")
    assert [other for other, dataset in DATASETS.items() if dataset.recognises(path)] == [name]
    dataset = open_dataset(path)
    assert type(dataset) is DATASETS[name]
    assert (len(dataset), dataset[0].name) == (1, dataset.names[0])


@pytest.mark.parametrize("name", sorted(set(WRITERS) - {"pointcloud"}))
def test_a_folder_of_captures_is_many_scenes(name: str, synthetic_scene: Scene, tmp_path: Path):
    for room in ("b", "a"):
        WRITERS[name](synthetic_scene, tmp_path / "set" / room)
    (tmp_path / "set" / "empty").mkdir()
    (tmp_path / "set" / "notes.txt").write_text("mine")
    assert [other for other, dataset in DATASETS.items() if dataset.recognises(tmp_path / "set")] == [name]
    dataset = open_dataset(tmp_path / "set")
    assert dataset.names == ("a", "b")
    assert dataset[1].points.equal(dataset[0].points)


@pytest.mark.parametrize("name", sorted(set(WRITERS) - {"pointcloud", "sevenscenes"}))
def test_a_reader_of_another_layout_says_what_it_expected(name: str, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"No capture in .*Expected .*") as caught:
        DATASETS[name](tmp_path)
    assert DATASETS[name].layout in str(caught.value)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        DATASETS[name](tmp_path / "nowhere")


@pytest.mark.parametrize("own_cloud", [True, False])
def test_a_capture_with_every_usual_mistake_reads_like_the_clean_one_once_capture_json_names_them(
    own_cloud: bool, synthetic_scene: Scene, tmp_path: Path
):
    # Depth ten times too small, poses inverted, with OpenGL axes, y up, and fx and fy mixed up: all at once.
    focal = torch.tensor([41.0, 40.0], dtype=torch.float64)
    frames = [replace(frame, camera=replace(frame.camera, focal=focal)) for frame in synthetic_scene.frames]
    clean = replace(synthetic_scene, frames=tuple(frames))
    wrong = [
        replace(
            frame,
            camera=replace(frame.camera, focal=focal.flip(0)),
            read_depth=lambda frame=frame: frame.read_depth() / 10,
        )
        for frame in frames
    ]
    y_up_from_z_up = torch.tensor([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    lying = clean.points @ y_up_from_z_up[:3, :3].T.float()
    write_capture(clean, tmp_path / "clean")
    write_capture(replace(clean, frames=tuple(wrong), points=lying), tmp_path / "wrong")
    for path in sorted((tmp_path / "wrong").glob("*.pose.txt")):
        world_from_opengl = torch.from_numpy(np.loadtxt(path)) @ OPENGL
        np.savetxt(path, torch.linalg.inv(y_up_from_z_up @ world_from_opengl).numpy(), fmt="%.17g")
    if not own_cloud:
        (tmp_path / "clean" / "points.ply").unlink()
        (tmp_path / "wrong" / "points.ply").unlink()
    options = {"depth_scale": 10, "pose": "camera_from_world", "axes": "opengl", "up": "y", "swap_focal": True}
    (tmp_path / "wrong" / "capture.json").write_text(json.dumps(options))
    read, expected = open_dataset(tmp_path / "wrong")[0], open_dataset(tmp_path / "clean")[0]
    same_views(read, clean, depth_unit=0.01)
    torch.testing.assert_close(read.points, expected.points, rtol=0, atol=1e-5)


@pytest.mark.parametrize("write", [write_scan, lambda scene, folder: write_building([scene], folder)])
def test_published_datasets_heed_capture_json_too(
    write: Callable[[Scene, Path], None], synthetic_scene: Scene, tmp_path: Path
):
    inverted = [
        replace(
            frame,
            camera=replace(frame.camera, world_from_camera=torch.linalg.inv(frame.camera.world_from_camera)),
            read_depth=lambda frame=frame: frame.read_depth() / 10,
        )
        for frame in synthetic_scene.frames
    ]
    write(synthetic_scene, tmp_path / "clean")
    write(replace(synthetic_scene, frames=tuple(inverted)), tmp_path / "wrong")
    dataset = open_dataset(tmp_path / "wrong")
    assert dataset.folders[0] == tmp_path / "wrong"
    (tmp_path / "wrong" / "capture.json").write_text('{"pose": "camera_from_world", "depth_scale": 10}')
    read, expected = dataset[0], open_dataset(tmp_path / "clean")[0]
    assert len(read.frames) == len(synthetic_scene.frames)
    same_views(read, expected, depth_unit=0.01)
    assert read.labels is not None
    assert expected.labels is not None
    assert read.labels.equal(expected.labels)


def test_options_go_to_the_reader_that_has_them(synthetic_scene: Scene, tmp_path: Path):
    write_scan(synthetic_scene, tmp_path / "scan", every=20)
    num_frames = len(open_dataset(tmp_path / "scan")[0].frames)
    assert len(open_dataset(tmp_path / "scan", every=10)[0].frames) == 2 * num_frames
    assert open_dataset(tmp_path / "scan", annotations="scannet200").annotations == "scannet200"
    write_capture(synthetic_scene, tmp_path / "capture")
    with pytest.raises(ValueError, match=r"is read as sevenscenes, which does not take --every; it is for scannet"):
        open_dataset(tmp_path / "capture", every=10)


@pytest.mark.parametrize("up", ["x", "y", "z", "-x", "-y", "-z"])
def test_what_is_up_is_turned_to_z_for_poses_cloud_and_normals_alike(up: str, synthetic_scene: Scene, tmp_path: Path):
    normals = torch.nn.functional.normalize(torch.rand_like(synthetic_scene.points), dim=1)
    write_capture(replace(synthetic_scene, normals=normals), tmp_path / "room")
    (tmp_path / "room" / "capture.json").write_text(json.dumps({"up": up}))
    scene = open_dataset(tmp_path / "room")[0]
    axis, sign = "xyz".index(up[-1]), -1 if up[0] == "-" else 1
    assert scene.points[:, 2].equal(sign * synthetic_scene.points[:, axis])
    assert scene.normals is not None
    assert scene.normals[:, 2].equal(sign * normals[:, axis])
    for frame, before in zip(scene.frames, synthetic_scene.frames, strict=True):
        seen = frame.camera.camera_from_world(scene.points)
        torch.testing.assert_close(seen, before.camera.camera_from_world(synthetic_scene.points), rtol=0, atol=1e-6)
        assert torch.linalg.det(frame.camera.world_from_camera).item() == pytest.approx(1)


def test_every_third_frame_is_kept(synthetic_scene: Scene, tmp_path: Path):
    write_capture(replace(synthetic_scene, frames=synthetic_scene.frames * 4), tmp_path / "room")
    (tmp_path / "room" / "capture.json").write_text('{"every": 3}')
    names = [frame.name for frame in open_dataset(tmp_path / "room")[0].frames]
    assert names == ["frame-000000", "frame-000003", "frame-000006"]


def test_without_a_file_nothing_is_changed(tmp_path: Path):
    assert read_options(tmp_path) == CaptureOptions()
    (tmp_path / "capture.json").write_text("{}")
    assert read_options(tmp_path) == CaptureOptions()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "should hold a JSON object"),
        ("[" * 100_000, "not valid JSON"),
        ('{"scale": 2}', "'scale' is no option; choose from depth_scale, pose"),
        ('{"depth_scale": 0}', "depth_scale is 0; expected a number above 0"),
        ('{"depth_scale": true}', "depth_scale is True"),
        ('{"depth_scale": NaN}', "depth_scale is nan"),
        ('{"depth_scale": 1e-300}', "depth_scale is 1e-300"),
        ('{"pose": "inverted"}', "pose is 'inverted'; choose from 'world_from_camera', 'camera_from_world'"),
        ('{"axes": 3}', "axes is 3; choose from 'opencv', 'opengl'"),
        ('{"up": "w"}', "up is 'w'"),
        ('{"swap_focal": 1}', "swap_focal is 1; choose from True, False"),
        ('{"every": 0}', "every is 0; expected a whole number above 0"),
        ('{"every": 1.5}', "every is 1.5"),
    ],
)
def test_a_wrong_option_is_named(content: str, message: str, tmp_path: Path):
    (tmp_path / "capture.json").write_text(content)
    with pytest.raises(ValueError, match=r"capture\.json") as caught:
        read_options(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "../a.png",
        "a/../../b.png",
        "/etc/passwd",
        "C:\\a.png",
        "\\\\host\\a.png",
        "a\\..\\..\\b.png",
        "..",
        "",
        None,
        7,
        "a\x1b[2J.png",
        "\ud800.png",
    ],
)
def test_a_name_that_leads_out_of_the_capture_is_refused(name: object, tmp_path: Path):
    with pytest.raises(ValueError, match=r"^transforms\.json, frame 3, file_path is .*relative to"):
        inside(tmp_path, name, "transforms.json, frame 3, file_path")


@pytest.mark.parametrize("name", ["a.png", "images/a.png", "./images/..a.png", "a..b/c d.png"])
def test_a_name_within_the_capture_is_its_file(name: str, tmp_path: Path):
    assert inside(tmp_path, name, "entry") == tmp_path / name


def test_what_a_message_shows_is_short_and_cannot_steer_a_terminal(tmp_path: Path):
    with pytest.raises(ValueError) as caught:
        inside(tmp_path, "/\x1b[2J\ud800" + "x" * 10_000, "entry")
    assert len(str(caught.value).replace(str(tmp_path), "")) < 200
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("entry", [None, "1", True, math.nan, math.inf, 10**400, [1.0], {}])
def test_an_entry_that_is_no_number_is_named(entry: object):
    for read in (number, whole, positive):
        with pytest.raises(ValueError, match=r"^here is .*; expected a "):
            read(entry, "here")


def test_entries_that_are_numbers_are_read():
    assert (number(3, "x"), number(-0.5, "x"), whole(640.0, "w"), positive(1e-3, "u")) == (3.0, -0.5, 640, 0.001)
    with pytest.raises(ValueError, match=r"w is 640\.5; expected a whole number"):
        whole(640.5, "w")


@pytest.mark.parametrize(
    "entry", [None, [], [[1, 2]], [[1, 2], [3]], [[1, 2], [3, "4"]], [[1, 2], [3, True]], [[1, 2], 3]]
)
def test_an_entry_that_is_no_matrix_is_named(entry: object):
    with pytest.raises(ValueError, match=r"^pose should be a list of 2 rows of 2 numbers; it is "):
        matrix(entry, "pose", rows=2, columns=2)
    assert matrix([[1, 2], [3, math.inf]], "pose", rows=2, columns=2).tolist() == [[1, 2], [3, math.inf]]


def test_rows_of_numbers_are_read_without_comments_and_a_wrong_line_is_named(tmp_path: Path):
    path = tmp_path / "rows.txt"
    path.write_text("# time x\n\n1 2.5 # why\r\n3 nan\n")
    torch.testing.assert_close(
        read_rows(path, 2), torch.tensor([[1, 2.5], [3, math.nan]], dtype=torch.float64), equal_nan=True
    )
    path.write_text("1 2\n3 4 5\n")
    with pytest.raises(ValueError, match=r"rows\.txt, line 2: expected 2 numbers, got 3"):
        read_rows(path, 2)
    path.write_text("1 2\n\n3 x\n")
    with pytest.raises(ValueError, match=r"rows\.txt, line 3: expected 2 numbers, got '3 x'"):
        read_rows(path, 2)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"rows\.txt is no text"):
        read_rows(path, 2)
    with pytest.raises(ValueError, match=r"rows\.txt is not valid JSON"):
        read_json(path)
    path.write_text("1 2\n3")
    assert read_numbers(path, 3) == [1, 2, 3]
    with pytest.raises(ValueError, match=r"should hold 4 or 6 numbers; it holds \[1\.0, 2\.0, 3\.0\]"):
        read_numbers(path, 4, 6)


def test_the_nearest_in_time_is_found_as_by_looking_at_all():
    times, others = torch.rand(50, dtype=torch.float64), torch.rand(30, dtype=torch.float64)
    for within in (0.0, 0.01, 0.05, 1.0):
        expected = []
        for time in times.tolist():
            best = min(range(30), key=lambda index: abs(others[index].item() - time))
            expected.append(best if abs(others[best].item() - time) <= within else None)
        assert nearest_in_time(times, others, within=within) == expected
    assert nearest_in_time(times[:2], others[:0], within=1.0) == [None, None]


def test_names_with_numbers_are_in_the_order_of_the_numbers():
    names = ["10.png", "9.png", "a10.png", "a2.png", "b.png"]
    assert sorted(names, key=by_number) == ["a2.png", "a10.png", "b.png", "9.png", "10.png"]


def test_of_several_clouds_the_one_of_the_expected_name_counts(tmp_path: Path):
    assert only_file(tmp_path, "*.ply", "points.ply") is None
    (tmp_path / "scan.ply").touch()
    assert only_file(tmp_path, "*.ply", "points.ply") == tmp_path / "scan.ply"
    (tmp_path / "other.ply").touch()
    with pytest.raises(
        ValueError, match=r"2 files \*\.ply \(other\.ply, scan\.ply\); rename the right one to points\.ply"
    ):
        only_file(tmp_path, "*.ply", "points.ply")
    (tmp_path / "points.ply").touch()
    assert only_file(tmp_path, "*.ply", "points.ply") == tmp_path / "points.ply"


@pytest.mark.parametrize("layout", [name for name in WRITERS if name not in ("pointcloud", "arkitscenes")])
def test_a_lost_pose_and_an_unreadable_image_are_told_apart(synthetic_scene: Scene, tmp_path: Path, layout: str):
    first, second = synthetic_scene.frames
    pose = second.camera.world_from_camera.clone()
    pose[0, 3] = torch.nan
    lost = replace(second, camera=replace(second.camera, world_from_camera=pose))
    path = WRITERS[layout](replace(synthetic_scene, frames=(first, lost, second)), tmp_path / "capture")
    depths = sorted(path.rglob("*depth*/*.png")) or sorted(path.rglob("*depth*.png"))
    depths = depths or sorted(path.rglob("*depth*.hdf5")) or sorted(path.rglob("depth/*.npy"))
    depths[2].write_bytes(b"no image")
    scene = open_dataset(path)[0]
    assert len(scene.frames) == 1
    assert [problem.kind for problem in scene.problems] == ["pose", "frame"]


def test_a_pose_that_cannot_be_read_is_a_problem_of_the_pose(tmp_path: Path):
    assert pose_entry([[1, 0, 0, 5], [0, 1, 0, 6], [0, 0, 1, 7]], "a.json: pose", rows=3)[:3, 3].tolist() == [5, 6, 7]
    with pytest.raises(PoseError, match=r"^a\.json: pose should be a list of 4 rows of 4 numbers"):
        pose_entry([[1, 2], [3, 4]], "a.json: pose")
    path = tmp_path / "0.txt"
    for content in (None, "1 2\n3 4\n", "nan " * 16):
        if content is not None:
            path.write_text(content)
        with pytest.raises(PoseError, match=r"0\.txt"):
            read_pose(path)
