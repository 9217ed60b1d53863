import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cuao3d.formats.colmap import MODELS, read_cameras, read_images
from cuao3d.readers import open_dataset
from cuao3d.readers.colmap import Colmap
from cuao3d.scene import Scene
from written import damage, read_all, same_views, save_triangle, write_colmap


@pytest.fixture
def capture(synthetic_scene: Scene, tmp_path: Path) -> Path:
    return write_colmap(synthetic_scene, tmp_path / "capture")


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("model", ["PINHOLE", "SIMPLE_PINHOLE", "RADIAL"])
def test_a_written_capture_is_read_back(binary: bool, model: str, synthetic_scene: Scene, tmp_path: Path):
    scene = Colmap(write_colmap(synthetic_scene, tmp_path / "capture", binary=binary, model=model))[0]
    same_views(scene, synthetic_scene, depth_unit=0.001)
    assert scene.problems == ()
    assert [frame.name for frame in scene.frames] == ["a 0.png", "a 1.png"]


@pytest.mark.parametrize("place", [".", "sparse", "colmap/sparse/0"])
def test_the_model_may_lie_in_other_folders(place: str, capture: Path):
    (capture / place).mkdir(parents=True, exist_ok=True)
    for name in ("cameras.txt", "images.txt"):
        (capture / "sparse" / "0" / name).rename(capture / place / name)
    assert type(open_dataset(capture)) is Colmap
    assert len(Colmap(capture)[0].frames) == 2
    assert f"{place}/cameras.txt".removeprefix("./") in Colmap(capture).source(0).files


def test_a_motion_is_inverted_as_worked_out_by_hand(capture: Path):
    # A quarter turn about z, w first, takes the world's x to the camera's y; then t = (1, 2, 3).
    # The camera stands at -R^T t = (-2, 1, -3), its x is the world's -y, its y the world's x.
    half = 0.5**0.5
    (capture / "sparse/0/images.txt").write_text(f"1 {half} 0 0 {half} 1 2 3 7 a 0.png\n\n")
    pose = Colmap(capture)[0].frames[0].camera.world_from_camera
    expected = torch.tensor([[0, 1, 0, -2], [-1, 0, 0, 1], [0, 0, 1, -3], [0, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(pose, expected)


def test_parameters_of_opencv_stand_in_its_order_and_centres_count_from_the_corner(tmp_path: Path):
    (tmp_path / "cameras.txt").write_text("1 OPENCV 64 48 40 41 32 24 0.1 0.2 0.3 0.4\n2 SIMPLE_RADIAL 8 8 5 4 4 0.6\n")
    lens, simple = read_cameras(tmp_path).values()
    assert (lens.focal, lens.center, lens.distortion) == ((40, 41), (31.5, 23.5), (0.1, 0.2, 0.3, 0.4, 0))
    assert (simple.focal, simple.center, simple.distortion) == ((5, 5), (3.5, 3.5), (0.6, 0, 0, 0, 0))


@pytest.mark.parametrize("model", ["OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "FOV", "FULL_OPENCV"])
def test_a_fisheye_is_refused_by_name_with_the_cure(model: str, capture: Path):
    (capture / "sparse/0/cameras.txt").write_text(f"7 {model} 64 48 40 40 32 24 0 0 0 0\n")
    with pytest.raises(ValueError, match=rf"camera model {model} is .*not read; undistort .*colmap image_undistorter"):
        Colmap(capture)[0]


def test_a_fisheye_of_a_binary_model_is_named_too_and_the_other_cameras_are_read(tmp_path: Path):
    fisheye = struct.pack("<iiQQ8d", 1, 5, 64, 48, *range(8))
    plain = struct.pack("<iiQQ3d", 2, 0, 64, 48, 40, 32, 24)
    (tmp_path / "cameras.bin").write_bytes(struct.pack("<Q", 2) + fisheye + plain)
    cameras = read_cameras(tmp_path)
    assert "OPENCV_FISHEYE is a fisheye" in cameras[1]
    assert cameras[2].focal == (40, 40)


def test_without_depth_and_mesh_one_line_says_so_and_a_mesh_will_do(capture: Path):
    shutil.rmtree(capture / "depth")
    with pytest.raises(ValueError, match=r"has no depth/ and no mesh: .*16-bit depth images.*to mesh\.ply"):
        Colmap(capture)[0]
    save_triangle(capture / "mesh.ply")
    frame = Colmap(capture)[0].frames[0]
    torch.testing.assert_close(frame.read_depth(), torch.full((48, 64), 2.0))


def test_depth_is_found_by_stem_or_by_the_whole_name_and_named_where_it_is_missing(capture: Path):
    (capture / "depth" / "a 0.png").rename(capture / "depth" / "a 0.png.png")
    assert Colmap(capture)[0].problems == ()
    (capture / "depth" / "a 1.png").unlink()
    (problem,) = Colmap(capture)[0].problems
    assert "a 1.png left out: depth/a 1.png is missing" in problem.text


def test_photographs_reduced_since_have_their_lens_reduced(capture: Path):
    for path in (capture / "images").iterdir():
        Image.open(path).resize((32, 24)).save(path)
    frame = Colmap(capture)[0].frames[0]
    assert (frame.camera.width, frame.camera.focal[0].item()) == (64, 40)
    assert frame.read_image().shape == (3, 48, 64)


def test_photographs_that_the_model_lacks_are_told(capture: Path):
    shutil.copy(capture / "images" / "a 0.png", capture / "images" / "b.png")
    (problem,) = Colmap(capture)[0].problems
    assert problem.text == "1 photographs are not in the model (COLMAP could not place them): b.png"


@pytest.mark.parametrize(
    ("old", "new", "kind", "cause"),
    [
        (r"\n2 \S+", "\n2 nan", "pose", "the pose is lost"),
        (r"\n2 \S+", "\n2 7.7", "pose", "its quaternion has length"),
        (" 7 a 1.png", " 8 a 1.png", "frame", "there is no camera 8 in the model"),
        ("a 1.png", "a 9.png", "frame", "a 9.png is missing"),
        ("a 1.png", "../a.png", "frame", "leads out of the capture"),
    ],
)
def test_a_bad_image_is_left_out_and_named(old: str, new: str, kind: str, cause: str, capture: Path):
    path = capture / "sparse/0/images.txt"
    text, num_changed = re.subn(old, new, path.read_text())
    assert num_changed == 1
    path.write_text(text)
    scene = Colmap(capture)[0]
    assert len(scene.frames) == 1
    assert scene.problems[0].kind == kind
    assert cause in scene.problems[0].text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("cameras.txt", "7 PINHOLE 64 48 40 40 32\n", r"cameras\.txt, line 1: PINHOLE has 4 parameters, not 3"),
        ("cameras.txt", "7 PINHOLE 64\n", r"cameras\.txt, line 1: expected the number of a camera"),
        ("cameras.txt", "7 PINHOLE -1 48 1 1 1 1\n", r"line 1: -1 x 48 is no size"),
        ("cameras.txt", "7 PINHOLE 64 48 0 40 32 24\n", r"line 1: the focal lengths are 0 and 40"),
        ("images.txt", "1 1 0 0 0 1 2 3 7\n", r"images\.txt, line 1: expected the number of an image, qw qx"),
        ("images.txt", "", r"No usable frame"),
    ],
)
def test_a_wrong_line_is_named(name: str, text: str, message: str, capture: Path):
    (capture / "sparse/0" / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        Colmap(capture)[0]


@pytest.mark.parametrize(
    ("read", "name", "content", "message"),
    [
        (read_cameras, "cameras.bin", b"\1", "is empty or cut off"),
        (read_cameras, "cameras.bin", struct.pack("<Q", 1 << 60), "claims 1152921504606846976 entries"),
        (read_cameras, "cameras.bin", struct.pack("<QiiQQ", 1, 1, 4, 64, 48), "ends too early"),
        (read_cameras, "cameras.bin", struct.pack("<QiiQQ", 1, 1, 99, 64, 48), "has model 99 and 64 x 48"),
        (read_cameras, "cameras.bin", struct.pack("<QiiQQ", 1, 1, 1, 1 << 40, 48), "1099511627776 x 48"),
        (read_images, "images.bin", struct.pack("<QI7dI", 1, *range(9)) + b"a" * 20, "has no name"),
        (
            read_images,
            "images.bin",
            struct.pack("<QI7dI", 1, *range(9)) + b"a\0" + b"\xff" * 8,
            "ends within the points",
        ),
    ],
)
def test_a_binary_file_cannot_claim_more_than_it_holds(
    read: Callable[[Path], Any], name: str, content: bytes, message: str, tmp_path: Path
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_every_model_is_known_by_its_number_with_its_parameters():
    from cuao3d.formats.colmap import _BY_NUMBER

    assert all(len(MODELS[name]) == count for name, count in _BY_NUMBER if name in MODELS)


@pytest.mark.parametrize("name", ["cameras.txt", "images.txt", "cameras.bin", "images.bin"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_cleanly(name: str, synthetic_scene: Scene, tmp_path: Path):
    capture = write_colmap(synthetic_scene, tmp_path / "capture", binary=name.endswith("bin"))
    damage(capture / "sparse/0" / name, lambda: read_all(capture), times=60)
    assert Colmap(capture)[0].problems == ()
