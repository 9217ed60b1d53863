"""A folder that no reader knows is answered with the nearest layout, and a recording with what makes frames of it."""

from pathlib import Path

import pytest

from cuao3d.readers import open_dataset
from cuao3d.readers.nearest import LAYOUTS, RECORDINGS
from cuao3d.scene import Scene
from written import WRITERS, write_folder, write_tum


def said(path: Path) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        open_dataset(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_one_piece_that_is_missing_is_named_with_its_cure(synthetic_scene: Scene, tmp_path: Path):
    folder = write_folder(synthetic_scene, tmp_path / "room")
    (folder / "pose").rename(tmp_path / "away")
    text = said(folder)
    assert "room comes nearest to plain folders: color/, depth/ and intrinsics.txt are here; pose/ is missing" in text
    assert "write a 4 x 4 file for each frame there (camera to world, metres)" in text
    assert text.endswith("holds color/, depth/, intrinsic/, points.ply.")
    assert text.count("missing") == 1
    (tmp_path / "away").rename(folder / "Camera_Poses")
    assert "pose/ is missing: if Camera_Poses/ is it, rename it to pose/" in said(folder)


def test_two_pieces_of_three_are_nearer_than_one_of_four(synthetic_scene: Scene, tmp_path: Path):
    folder = write_tum(synthetic_scene, tmp_path / "desk")
    (folder / "groundtruth.txt").unlink()
    text = said(folder)
    assert "nearest to TUM RGB-D: rgb.txt and depth.txt are here; groundtruth.txt is missing: write a row" in text


def test_a_folder_of_captures_is_looked_into(synthetic_scene: Scene, tmp_path: Path):
    folder = write_folder(synthetic_scene, tmp_path / "set" / "room")
    (folder / "pose").rename(tmp_path / "away")
    assert "room comes nearest to plain folders" in said(tmp_path / "set")


def test_a_capture_one_folder_further_up_or_down_is_pointed_at(synthetic_scene: Scene, tmp_path: Path):
    folder = write_folder(synthetic_scene, tmp_path / "a" / "b" / "room")
    assert f"In it lies {tmp_path / 'a' / 'b'}, which is read as folder; give that folder." in said(tmp_path / "a")
    assert f"It is a part of {folder}, which is read as folder; give that folder." in said(folder / "color")


@pytest.mark.parametrize(
    ("layout", "gone", "message"),
    [
        (
            "stray",
            "camera_matrix.csv",
            "Stray Scanner: odometry.csv and depth/ are here; camera_matrix.csv is missing",
        ),
        (
            "polycam",
            "keyframes/cameras",
            "export: keyframes/images/ is here; keyframes/cameras/ is missing: export",
        ),
        ("open3d", "scene/trajectory.log", "where the poses are in Open3D's trajectory.log, that file will do"),
        ("open3d", "color", "put the photographs there"),
        ("arkitscenes", "lowres_wide.traj", "lowres_wide.traj is missing: download it"),
        ("replica", "traj.txt", "Replica: results/ is here; traj.txt is missing: write a row of 16 numbers"),
        (
            "scannetpp",
            "iphone/pose_intrinsic_imu.json",
            "iphone/rgb/ is here; iphone/pose_intrinsic_imu.json is missing",
        ),
        (
            "hypersim",
            "_detail/metadata_scene.csv",
            "_detail/cam_00/camera_keyframe_positions.hdf5 and images/ are here; _detail/metadata_scene.csv is missing",
        ),
        ("nerfstudio", "transforms.json", "color/ is missing: if images/ is it, rename it to color/; pose/ is missing"),
        ("colmap", "sparse/0/cameras.txt", "images/ and sparse/0/images.bin are here; sparse/0/cameras.bin is missing"),
    ],
)
def test_what_each_layout_lacks_is_named(layout: str, gone: str, message: str, synthetic_scene: Scene, tmp_path: Path):
    folder = WRITERS[layout](synthetic_scene, tmp_path / "room")
    (folder / gone).rename(tmp_path / "away")
    assert message in said(folder)


def test_photographs_alone_lack_poses_and_depth(tmp_path: Path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    text = said(tmp_path)
    assert "no layout that is known" in text
    assert "poses is missing: find them with COLMAP" in text
    assert "holds holiday.jpg." in text


def test_a_folder_of_nothing_says_so(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    text = said(tmp_path)
    assert "Nothing there looks like photographs, depth or poses" in text
    assert text.endswith("holds notes.txt.")
    (tmp_path / "empty").mkdir()
    assert "Nothing there" in said(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        open_dataset(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("lab.bag", "rs-convert -i lab.bag"),
        ("lab.mkv", "azure_kinect_mkv_reader.py --input lab.mkv"),
        ("LAB.MOV", "ffmpeg -i LAB.MOV"),
        ("lab.r3d", "EXR + RGB"),
        ("lab.zip", "unpack it"),
    ],
)
def test_a_recording_is_told_as_one_alone_and_in_a_folder(name: str, tool: str, tmp_path: Path):
    (tmp_path / name).write_bytes(bytes(100))
    for path in (tmp_path / name, tmp_path):
        text = said(path)
        assert f"{name} is a" in text
        assert tool in text
        assert "pdal" not in text


def test_what_is_said_of_recordings_can_be_written_for_any_name():
    assert all("{" not in what.format(name="a.bag") for what in RECORDINGS.values())
    assert all(piece.patterns == tuple(map(str.lower, piece.patterns)) for one in LAYOUTS for piece in one.pieces)
