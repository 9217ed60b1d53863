import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cuao3d.formats.video import extract_frames
from cuao3d.readers import open_dataset
from cuao3d.readers.stray import Stray
from cuao3d.scene import Scene
from written import damage, read_all, same_views, write_stray, write_video


@pytest.fixture
def capture(synthetic_scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))
    return write_stray(synthetic_scene, tmp_path / "capture")


def test_a_written_capture_is_read_back(capture: Path, synthetic_scene: Scene):
    scene = Stray(capture)[0]
    same_views(scene, synthetic_scene, depth_unit=0.001)
    assert scene.problems == ()


def test_frames_come_out_of_the_video_by_their_number(capture: Path, tmp_path: Path):
    for path in (capture / "rgb").iterdir():
        path.unlink()
    write_video(capture / "rgb.mp4", [40, 80, 120, 160, 200])
    text = (capture / "odometry.csv").read_text().replace(", 000001,", ", 000003,")
    (capture / "odometry.csv").write_text(text)
    for kind in ("depth", "confidence"):
        (capture / kind / "000001.png").rename(capture / kind / "000003.png")
    scene = Stray(capture)[0]
    assert scene.problems == ()
    grays = [frame.read_image().mean().item() * 255 for frame in scene.frames]
    np.testing.assert_allclose(grays, [40, 160], atol=4)
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*.jpg")) == ["000000.jpg", "000003.jpg"]


def test_a_video_is_decoded_once_and_again_only_for_frames_that_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))
    write_video(tmp_path / "a.mp4", [0, 50, 100], width=2048, height=64)
    frames = extract_frames(tmp_path / "a.mp4", [1])
    assert frames.size == (2048, 64)
    monkeypatch.setitem(sys.modules, "av", None)
    assert extract_frames(tmp_path / "a.mp4", [1]).files == frames.files
    with pytest.raises(ImportError, match=r"pip install 'cuao3d\[video\]'"):
        extract_frames(tmp_path / "a.mp4", [2])
    monkeypatch.undo()
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))
    assert list(extract_frames(tmp_path / "a.mp4", [2, 9]).files) == [2]
    monkeypatch.setitem(sys.modules, "av", None)
    assert list(extract_frames(tmp_path / "a.mp4", [1, 9]).files) == [1]  # it is known to end before


def test_a_full_disk_is_no_damaged_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))
    write_video(tmp_path / "a.mp4", [0, 50])

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("cuao3d.formats.video.write_chunks", full)
    with pytest.raises(OSError, match="No space left"):
        extract_frames(tmp_path / "a.mp4", [0, 1])


def test_large_frames_are_kept_small_and_seen_by_a_lens_reduced_alike(capture: Path):
    for path in (capture / "rgb").iterdir():
        path.unlink()
    write_video(capture / "rgb.mp4", [100, 100], width=2048, height=1536)
    matrix = np.array([[1280, 0, 1023.5], [0, 1280, 767.5], [0, 0, 1]])
    np.savetxt(capture / "camera_matrix.csv", matrix, delimiter=",")
    camera = Stray(capture)[0].frames[0].camera
    torch.testing.assert_close(camera.focal, torch.tensor([40.0, 40.0]).double())
    assert (camera.width, camera.height) == (64, 48)


def test_without_the_extra_one_line_names_it_and_the_command_that_makes_do(
    capture: Path, monkeypatch: pytest.MonkeyPatch
):
    for path in (capture / "rgb").iterdir():
        path.unlink()
    (capture / "rgb.mp4").write_bytes(bytes(100))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"rgb\.mp4 needs PyAV: pip .*ffmpeg -i rgb\.mp4 -start_number 0 rgb/%06d"):
        open_dataset(capture)[0]


@pytest.mark.parametrize("content", [b"", b"\0\0\0\x18ftypmp42" + bytes(100), b"#EXTM3U\nhttp://127.0.0.1/a.ts\n"])
def test_a_file_that_is_no_video_is_one_clear_line(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("av", reason="PyAV is not installed (the extra [video])")
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rgb.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"rgb\.mp4 cannot be read as a video \(.*its codec is not known\. Convert it"):
        extract_frames(tmp_path / "rgb.mp4", [0])
    with pytest.raises(FileNotFoundError, match="There is no file"):
        extract_frames(tmp_path / "gone.mp4", [0])


def test_a_video_whose_codec_is_not_known_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))
    write_video(video := tmp_path / "rgb.mp4", [50])
    video.write_bytes(video.read_bytes().replace(b"mp4v", b"zzzz").replace(b"esds", b"free"))
    with pytest.raises(
        ValueError, match=r"\(no decoder is here\): .*its codec is not known\. Convert it \(ffmpeg -i rgb"
    ):
        extract_frames(video, [0])


def test_the_intrinsics_of_a_row_count_for_its_frame(capture: Path):
    first, one, two = (capture / "odometry.csv").read_text().splitlines()
    lines = [f"{first}, fx, fy, cx, cy, distortion_center_x", f"{one}, 50, 51, 30, 20, ", f"{two}, , , , , "]
    (capture / "odometry.csv").write_text("\n".join(lines))
    cameras = [frame.camera for frame in Stray(capture)[0].frames]
    assert [camera.focal.tolist() for camera in cameras] == [[50, 51], [40, 40]]
    assert cameras[0].center.tolist() == [30, 20]


def test_odometry_without_names_is_known_by_the_number_of_its_columns(capture: Path):
    rows = [line.split(",") for line in (capture / "odometry.csv").read_text().splitlines()[1:]]
    for start in (0, 2):  # the older app wrote no timestamp and no frame
        (capture / "odometry.csv").write_text("\n".join(",".join(row[start:]) for row in rows))
        assert [frame.name for frame in Stray(capture)[0].frames] == ["000000", "000001"]


def test_photographs_that_ffmpeg_counted_from_one_are_understood(capture: Path, synthetic_scene: Scene):
    for path in sorted((capture / "rgb").iterdir(), reverse=True):
        path.rename(path.with_name(f"{int(path.stem) + 1:06d}.png"))
    same_views(Stray(capture)[0], synthetic_scene, depth_unit=0.001)


def test_what_has_no_partner_is_told(capture: Path):
    lines = (capture / "odometry.csv").read_text().splitlines()
    (capture / "odometry.csv").write_text("\n".join([*lines, lines[1], lines[2].replace(" 000001,", " 000007,")]))
    (capture / "depth" / "000009.png").write_bytes(b"")
    (capture / "rgb" / "000001.png").unlink()
    scene = Stray(capture)[0]
    assert [str(problem) for problem in scene.problems] == [
        "1 frames are not in the video, or not in rgb/: 000001",
        "1 frames of odometry.csv have no depth image: 000007",
        "1 depth images have no pose: 000009.png",
        "1 frames stand in odometry.csv again; the first row counts: 0",
    ]


@pytest.mark.parametrize(("values", "cause"), [("nan, 0, 0, 0, 0, 0, 1", "is lost"), ("0,0,0,0,0,0,3", "length 3")])
def test_a_bad_pose_is_left_out_and_named(values: str, cause: str, capture: Path):
    lines = (capture / "odometry.csv").read_text().splitlines()
    (capture / "odometry.csv").write_text("\n".join([*lines[:2], f"1, 1, {values}"]))
    (problem,) = Stray(capture)[0].problems
    assert problem.kind == "pose"
    assert "odometry.csv, frame 1" in problem.text
    assert cause in problem.text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("odometry.csv", "x, y\n1, 2", r"odometry\.csv, line 2: there is no column z, qx, qy, qz, qw; expected"),
        ("odometry.csv", "1, 2, 3", r"odometry\.csv, line 1: there is no column x, y"),
        ("odometry.csv", "x,y,z,qx,qy,qz,qw\n1,2,3,a,0,0,1", r"odometry\.csv, line 2: expected 7 numbers: x, y"),
        ("odometry.csv", "x,y,z,qx,qy,qz,qw\n1,2", r"odometry\.csv, line 2: expected 7 numbers"),
        ("odometry.csv", "", r"No usable frame in .*2 depth images have no pose"),
        ("camera_matrix.csv", "1, 2, 3", r"camera_matrix\.csv should hold 3 lines of 3 numbers, commas between"),
        ("camera_matrix.csv", "0,0,1\n0,0,1\n0,0,1", r"camera_matrix\.csv holds no focal lengths"),
    ],
)
def test_wrong_tables_are_named(name: str, text: str, message: str, capture: Path):
    (capture / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        Stray(capture)[0]


def test_missing_folders_are_named(capture: Path):
    for path in (capture / "rgb").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no rgb\.mp4 and no rgb/ in"):
        Stray(capture)[0]
    for path in (capture / "depth").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no depth image in .*depth; record with LiDAR"):
        Stray(capture)[0]


@pytest.mark.parametrize("name", ["odometry.csv", "camera_matrix.csv"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_cleanly(name: str, capture: Path):
    damage(capture / name, lambda: read_all(capture), times=60)
    assert Stray(capture)[0].problems == ()


def test_a_damaged_video_is_refused_cleanly(capture: Path):
    for path in (capture / "rgb").iterdir():
        path.unlink()
    write_video(capture / "rgb.mp4", [100, 150])
    damage(capture / "rgb.mp4", lambda: read_all(capture), times=40)
