"""Files are found as people name them: case, padding, folders of other names, files that a system left behind."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cuao3d.coordinates import in_capture
from cuao3d.errors import InputError, PoseError
from cuao3d.formats.entries import read_numbers, read_pose
from cuao3d.formats.images import depth_size, read_depth
from cuao3d.formats.listing import entry_named, files_in, match_names, what_lies_in
from cuao3d.formats.ply import read_ply, write_ply
from cuao3d.readers import open_dataset
from cuao3d.readers.folder import Folder
from cuao3d.readers.replica import Replica
from cuao3d.readers.sevenscenes import SevenScenes, write_capture
from cuao3d.scene import Scene
from written import same_views, write_folder, write_replica

DEPTH = np.array([[1.0, 2.5, np.nan], [0.25, -1.0, np.inf]], np.float32)


def test_files_are_found_in_any_case_and_hidden_ones_are_not(tmp_path: Path):
    for name in ("0.JPG", "1.jpg", "1.PNG", "._1.jpg", ".DS_Store", "b.color.Png"):
        (tmp_path / name).touch()
    assert files_in(tmp_path, (".png", ".jpg")) == {
        "0": tmp_path / "0.JPG",
        "1": tmp_path / "1.PNG",  # the first ending counts
        "b.color": tmp_path / "b.color.Png",
    }
    assert files_in(tmp_path / "none", (".png",)) == files_in(None, (".png",)) == {}
    assert entry_named(tmp_path, "x.png", "0.jpg") == tmp_path / "0.JPG"
    (tmp_path / "sub").mkdir()
    assert what_lies_in(tmp_path) == "2 .jpg, 2 .png and the folder sub"


def test_frames_are_matched_by_name_and_else_by_number():
    files = {name: Path(name) for name in ("1", "2", "frame-03.pose", "4", "04", "x")}
    names = ["000001", "2", "frame-003", "000004", "x", "y"]
    assert match_names(names, files) == {
        "000001": Path("1"),
        "2": Path("2"),
        "frame-003": Path("frame-03.pose"),
        "x": Path("x"),  # but 4 might be either of two
    }


def test_a_capture_that_a_mac_copied_keeps_its_frames(synthetic_scene: Scene, tmp_path: Path):
    capture = write_folder(synthetic_scene, tmp_path / "capture")
    for path in [*capture.rglob("*.*")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0" * 9)
    shutil.copytree(capture, tmp_path / "._capture")
    dataset = open_dataset(tmp_path)
    assert dataset.names == ("capture",)
    assert dataset[0].problems == ()
    same_views(dataset[0], synthetic_scene, depth_unit=0.001)


def test_folders_and_files_of_other_names_are_read(synthetic_scene: Scene, tmp_path: Path):
    capture = write_folder(synthetic_scene, tmp_path / "capture")
    (capture / "color").rename(capture / "RGB")
    (capture / "pose").rename(capture / "poses")
    for path in [*(capture / "RGB").iterdir()]:
        path.rename(path.with_name(f"frame-00000{path.stem}.color.PNG"))
    for path in [*(capture / "depth").iterdir()]:
        depth = read_depth(path).numpy()
        np.save(path.with_name(f"00{path.stem}.npy"), np.where(depth > 0, depth, np.nan))
        path.unlink()
    for path in [*(capture / "poses").iterdir()]:
        rows = np.loadtxt(path)[:3]
        path.write_bytes("\ufeff".encode() + str(rows.tolist()).encode())
    assert open_dataset(tmp_path).names == ("capture",)
    scene = Folder(capture)[0]
    assert scene.problems == ()
    same_views(scene, synthetic_scene, depth_unit=1e-6)


def test_each_frame_may_have_intrinsics_of_its_own(synthetic_scene: Scene, tmp_path: Path):
    scene = replace(synthetic_scene, frames=synthetic_scene.frames[:2])
    capture = write_folder(scene, tmp_path / "capture")
    matrix = np.loadtxt(capture / "intrinsic" / "intrinsic_color.txt")
    shutil.rmtree(capture / "intrinsic")
    (capture / "intrinsic").mkdir()
    for index in range(2):
        np.savetxt(
            capture / "intrinsic" / f"{index}.txt",
            matrix * np.array([[1.0 + index], [1.0 + index], [1]])[: len(matrix)],
        )
    first, second = Folder(capture)[0].frames
    assert second.camera.focal.equal(2 * first.camera.focal)
    assert first.camera.focal.equal(scene.frames[0].camera.focal)


def test_photographs_that_are_not_read_are_named(synthetic_scene: Scene, tmp_path: Path):
    capture = write_folder(synthetic_scene, tmp_path / "capture")
    for path in [*(capture / "color").iterdir()]:
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(InputError, match=r"color holds 2 \.heic; none is read\. Convert"):
        Folder(capture)[0]


@pytest.mark.parametrize("reader", [SevenScenes, Replica])
def test_endings_in_capitals_are_read(reader, synthetic_scene: Scene, tmp_path: Path):
    capture = tmp_path / "capture"
    if reader is SevenScenes:
        write_capture(synthetic_scene, capture)
    else:
        write_replica(synthetic_scene, capture)
    for path in [*capture.rglob("*.png"), *capture.rglob("*.jpg")]:
        path.rename(path.with_suffix(path.suffix.upper()))
    scene = reader(capture)[0]
    assert (len(scene.frames), scene.problems) == (len(synthetic_scene.frames), ())


def test_depth_is_read_in_metres_from_floats(tmp_path: Path):
    OpenEXR = pytest.importorskip("OpenEXR")
    np.save(tmp_path / "a.npy", DEPTH.astype(np.float64))
    np.save(tmp_path / "b.npy", DEPTH[..., None])
    Image.fromarray(DEPTH).save(tmp_path / "c.tiff")
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"Z": DEPTH}).write(str(tmp_path / "d.exr"))
    np.save(tmp_path / "e.npy", np.array([[1000, 2500, 0], [250, 65535, 0]], np.uint16))
    for path in sorted(tmp_path.iterdir()):
        assert depth_size(path) == (3, 2)
        assert read_depth(path).equal(torch.tensor([[1.0, 2.5, 0], [0.25, 0, 0]])), path.name


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npy", b"\x93NUMPY no", "no readable array"),
        ("a.exr", b"v/1\x01 no", "no readable EXR"),
        ("a.npy", np.zeros((3, 4, 5)), r"shape \(3, 4, 5\)"),
        ("a.npy", np.array(["a"] * 4).reshape(2, 2), "no numbers"),
        ("a.npy", np.array([[{}, {}], [{}, {}]], object), "no readable array"),
    ],
)
def test_depth_that_cannot_be_read_is_named(name: str, content, words: str, tmp_path: Path):
    if isinstance(content, bytes):
        if name.endswith("exr"):
            pytest.importorskip("OpenEXR")
        (tmp_path / name).write_bytes(content)
    else:
        np.save(tmp_path / name, content, allow_pickle=True)
    for read in (depth_size, read_depth):
        with pytest.raises(InputError, match=rf"{name}.*{words}"):
            read(tmp_path / name)


POSE = "1,0,0,0.5\n0,1,0,0.25\n0,0,1,2\n"


@pytest.mark.parametrize(
    "text",
    [
        POSE,
        f"{POSE}0 0 0 1",
        POSE.replace("\n", " "),
        "[[1 0 0 0.5]\r\n [0 1 0 0.25]\r\n [0 0 1 2]\r\n [0 0 0 1]]",
        (POSE + "0 0 0 1").replace("\n", ";").encode("utf-16").decode("utf-16"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_pose_is_read_where_only_one_meaning_is_possible(text: str, encoding: str, tmp_path: Path):
    (tmp_path / "0.txt").write_bytes(text.encode(encoding))
    pose = read_pose(tmp_path / "0.txt")
    assert pose.tolist() == [[1, 0, 0, 0.5], [0, 1, 0, 0.25], [0, 0, 1, 2], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("text", "words"),
    [("1 2 3 0 0 0 1", r"1 x 7 numbers \(a position and a quaternion\?\)"), ("1 0 0\n0 1 0\n0 0 1\n", "3 x 3 numbers")],
)
def test_a_pose_of_another_form_is_named(text: str, words: str, tmp_path: Path):
    (tmp_path / "0.txt").write_text(text)
    with pytest.raises(PoseError, match=rf"0\.txt holds {words}.*expected 4 x 4"):
        read_pose(tmp_path / "0.txt")


def test_numbers_may_have_commas_and_brackets(tmp_path: Path):
    (tmp_path / "camera.txt").write_text("[525.5, 525.5, 319.5, 239.5]\n")
    assert read_numbers(tmp_path / "camera.txt", 4) == [525.5, 525.5, 319.5, 239.5]


def test_a_capture_far_from_the_origin_is_read_near_it(synthetic_scene: Scene, tmp_path: Path):
    capture = write_folder(synthetic_scene, tmp_path / "capture")
    far = np.array([206_494.75, 41_233.5, 12.0])
    for path in [*(capture / "pose").iterdir()]:
        pose = np.loadtxt(path)
        pose[:3, 3] += far
        np.savetxt(path, pose, fmt="%.17g")
    near = [frame.camera.world_from_camera[:3, 3] for frame in synthetic_scene.frames]
    for has_cloud in (True, False):
        if has_cloud:
            columns = read_ply(capture / "points.ply")
            write_ply(
                capture / "points.ply",
                {axis: columns[axis] + np.float64(shift) for axis, shift in zip("xyz", far, strict=True)},
            )
        else:
            (capture / "points.ply").unlink()
        scene = Folder(capture)[0]
        assert scene.points.abs().max() < 20
        assert scene.capture_from_world is not None
        for frame, expected in zip(scene.frames, near, strict=True):
            position = frame.camera.world_from_camera[:3, 3]
            assert position.abs().max() < 20
            back = scene.capture_from_world[:3, :3] @ position + scene.capture_from_world[:3, 3]
            assert back.numpy() == pytest.approx(expected.numpy() + far, abs=1e-9)
    assert in_capture(scene.points, scene.capture_from_world).numpy().mean(0) == pytest.approx(
        scene.points.numpy().mean(0) + scene.capture_from_world[:3, 3].numpy(), abs=1e-4
    )
