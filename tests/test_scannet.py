"""Facts about raw ScanNet: what is written as a scan is read back, and the official lists and tables are whole."""

import json
import math
import pickle
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cuao3d.formats.ply import read_ply, write_ply
from cuao3d.geometry import move, visible_points
from cuao3d.labels import label_set
from cuao3d.readers import open_dataset
from cuao3d.readers.scannet import ScanNet
from cuao3d.readers.splits import categories, scenes, split_of
from cuao3d.scene import Scene
from cuao3d.worlds.rooms import make_room
from make_fixture_scannet import write_scan
from test_sens import recording, views

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_fixture_scannet.py"
NAME = "scene0568_00"
"""The first scan of the official validation list."""


@pytest.fixture(scope="module")
def room() -> Scene:
    return make_room(0, num_views=2)


@pytest.fixture
def scan(synthetic_scene: Scene, tmp_path: Path) -> Path:
    """The synthetic scene as a scan."""
    write_scan(synthetic_scene, tmp_path / "scans" / NAME, color="png", every=1)
    return tmp_path / "scans" / NAME


def put_views(scan: Path, content: bytes) -> Path:
    """Give a scan another recording."""
    (scan / f"{scan.name}.sens").write_bytes(content)
    return scan


def test_a_room_written_as_a_scan_is_read_back(room: Scene, tmp_path: Path):
    write_scan(room, tmp_path / "scans" / NAME, color="png", every=2)
    (back,) = ScanNet(tmp_path, every=2)
    assert (back.name, back.split, back.label_set, back.occlusion_tolerance) == (NAME, "val", "scannet20", 0.25)
    assert back.problems == ()
    assert back.points.equal(room.points)
    assert back.labels.equal(room.labels)
    torch.testing.assert_close(back.colors, room.colors, rtol=0, atol=0.5 / 255)
    assert [frame.name for frame in back.frames] == ["000000", "000002"]
    for one, other in zip(back.frames, room.frames, strict=True):
        difference = one.camera.world_from_camera - other.camera.world_from_camera
        assert difference.abs().max() < 1e-6
        torch.testing.assert_close(one.camera.focal, other.camera.focal, rtol=1e-7, atol=0)
        assert one.camera.center.equal(other.camera.center)
        assert one.read_depth().equal(other.read_depth())
        assert one.read_image().equal(other.read_image())


def test_colours_as_jpeg_are_nearly_the_same(room: Scene, tmp_path: Path):
    write_scan(replace(room, frames=room.frames[:1]), tmp_path / NAME, every=1)
    (frame,) = ScanNet(tmp_path)[0].frames
    assert (frame.read_image() - room.frames[0].read_image()).abs().mean() < 0.03


def test_every_folder_that_leads_to_a_scan_is_recognised(scan: Path, tmp_path: Path):
    test_scan = tmp_path / "scans_test" / "scene0707_00"
    scan.rename(test_scan.parent.with_name("b")).rename(scan.with_name(NAME))
    assert [type(open_dataset(path)) for path in (tmp_path, scan.parent, scan)] == [ScanNet] * 3
    assert [open_dataset(path).names for path in (tmp_path, scan.parent, scan)] == [(NAME,)] * 3
    with pytest.raises(FileNotFoundError, match=r"No scan in .*Expected ID/ID\.sens"):
        ScanNet(Path(__file__).parent)


def test_scans_are_sorted_and_know_their_split(synthetic_scene: Scene, tmp_path: Path):
    for name in ("scene0707_00", "scene0191_00", "holiday"):
        folder = "scans_test" if name == "scene0707_00" else "scans"
        write_scan(synthetic_scene, tmp_path / folder / name, every=1)
    dataset = ScanNet(tmp_path)
    assert dataset.names == ("holiday", "scene0191_00", "scene0707_00")
    assert [scene.split for scene in dataset] == ["train", "train", "test"]


def test_names_of_objects_become_classes_of_scannet200(room: Scene, tmp_path: Path):
    write_scan(room, tmp_path / NAME, every=1)
    labels = ScanNet(tmp_path, annotations="scannet200")[0].labels
    names = label_set("scannet200").names
    for mine, theirs in {"wall": "wall", "floor": "floor", "cabinet": "cabinet", "bed": "bed", "door": "door"}.items():
        is_mine = room.labels == label_set("scannet20").names.index(mine)
        assert is_mine.any()
        assert labels[is_mine].unique().tolist() == [names.index(theirs)]


def test_segments_lead_to_names_and_names_to_classes(scan: Path):
    # Five of the points' segments; the second object has no class, the last one takes over segment 7.
    num_points = len(read_ply(scan / f"{NAME}_vh_clean_2.ply")["x"])
    groups = [("chair", [3, 7]), ("no such thing", [4]), ("stack of chairs", [5]), ("table", [7])]
    objects = {"segGroups": [{"label": label, "segments": segments} for label, segments in groups]}
    (scan / f"{NAME}.aggregation.json").write_text(json.dumps(objects))
    segments = [3, 7, 4, 5, 9] + [3] * (num_points - 5)
    (scan / f"{NAME}_vh_clean_2.0.010000.segs.json").write_text(json.dumps({"segIndices": segments}))
    names = label_set("scannet200").names
    labels = ScanNet(scan, annotations="scannet200")[0].labels
    chair, table = names.index("chair"), names.index("table")  # a stack of chairs has the id of a chair
    assert labels[:6].tolist() == [chair, table, 255, chair, 255, chair]


def test_nyu40_ids_become_classes_of_scannet20(scan: Path):
    path = scan / f"{NAME}_vh_clean_2.labels.ply"
    columns = read_ply(path)
    columns["label"][:6] = [0, 1, 14, 24, 39, 13]  # none, wall, desk, refrigerator, other furniture, blinds
    write_ply(path, columns)
    assert ScanNet(scan)[0].labels[:6].tolist() == [255, 0, 12, 14, 19, 255]


def test_the_official_lists_and_tables_are_whole():
    counts = [len(set(scenes("scannet", split))) for split in ("train", "val", "test")]
    assert counts == [1201, 312, 100]
    assert len({name for split in ("train", "val", "test") for name in scenes("scannet", split)}) == 1613
    assert [split_of("scannet", name) for name in ("scene0191_00", NAME, "scene0707_00")] == ["train", "val", "test"]
    rows = categories("scannet")
    assert len({row["raw_category"] for row in rows}) == len(rows) == 607
    assert set(label_set("scannet200").names) <= {row["raw_category"] for row in rows}
    assert {int(row["nyu40id"]) for row in rows} >= {
        nyu40 for covered in label_set("scannet20").nyu40 for nyu40 in covered
    }


def test_colour_is_taken_at_the_depths_grid(scan: Path):
    # Colour 8 x 6 and depth 4 x 3 to 2 x 3: pixel x is floor(x * 8 / 2) of the one, floor(x * 4 / 2) of the other.
    pixels = np.arange(144, dtype=np.uint8).reshape(6, 8, 3)
    depth = np.arange(12, dtype="<u2").reshape(3, 4)
    put_views(scan, recording([(np.eye(4), pixels.tobytes(), depth.tobytes())], kinds=(0, 0)))
    (frame,) = ScanNet(scan, size=(2, 3))[0].frames
    np.testing.assert_array_equal((frame.read_image() * 255).round(), pixels[::2, ::4].transpose(2, 0, 1))
    np.testing.assert_allclose(frame.read_depth(), depth[:, ::2] / 1000, rtol=1e-6)
    # Focal lengths 5 and 6, centre (1.5, 1.25), scaled by 2 / 4 and 3 / 3, and 1 / 3 and 2 / 2.
    assert frame.camera.focal.tolist() == [2.5, 6]
    assert frame.camera.center.tolist() == [0.5, 1.25]


def test_the_official_camera_is_one_for_all_scans(scan: Path):
    official = ScanNet(scan, official=True)[0].frames[0].camera
    assert official.focal.tolist() == [577.870605 / 2] * 2
    assert official.center.tolist() == [159.5, 119.5]
    assert (official.width, official.height) == (320, 240)
    own = ScanNet(scan)[0].frames[0].camera
    assert own.focal.tolist() == [40 * 320 / 64, 40 * 240 / 48]
    assert own.world_from_camera.equal(official.world_from_camera)


def test_every_twentieth_frame_is_used(scan: Path):
    put_views(scan, recording(views(45)))
    frames = ScanNet(scan)[0].frames
    assert [frame.name for frame in frames] == ["000000", "000020", "000040"]
    assert [frame.camera.world_from_camera[0, 3].item() for frame in frames] == [0, 20, 40]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_frames_without_a_pose_are_left_out_and_named(scan: Path, value: float):
    made = views(3)
    made[1] = (np.full((4, 4), value), *made[1][1:])
    scene = ScanNet(put_views(scan, recording(made)), every=1)[0]
    assert [frame.name for frame in scene.frames] == ["000000", "000002"]
    assert tuple(map(str, scene.problems)) == ("000001 left out: the pose is lost (it holds NaN or infinity)",)


def test_a_scan_that_is_cut_keeps_its_frames(scan: Path):
    scene = ScanNet(put_views(scan, recording(views(5))[:-1]), every=2)[0]
    assert [frame.name for frame in scene.frames] == ["000000", "000002"]
    assert tuple(map(str, scene.problems)) == (f"{NAME}.sens ends within frame 4 of 5; copy it again.",)


def test_a_scan_without_a_usable_frame_says_why(scan: Path):
    lost = [(np.full((4, 4), -np.inf), b"", b"")] * 2
    with pytest.raises(ValueError, match=r"No usable frame in .*: 000000 left out: the pose is lost"):
        ScanNet(put_views(scan, recording(lost)), every=1)[0]
    with pytest.raises(ValueError, match=r"No usable frame in .*: there is none"):
        ScanNet(put_views(scan, recording([])))[0]


def test_axis_alignment_moves_points_and_poses_together(scan: Path):
    alignment = "0 -1 0 5 1 0 0 -2 0 0 1 0.5 0 0 0 1"
    (scan / f"{NAME}.txt").write_text(f"appVersionId = 1.0\naxisAlignment = {alignment} \ncolorHeight = 968\n")
    plain, aligned = ScanNet(scan, every=1)[0], ScanNet(scan, every=1, axis_align=True)[0]
    x, y, z = plain.points.unbind(1)
    torch.testing.assert_close(aligned.points, torch.stack([5 - y, x - 2, z + 0.5], dim=1))
    assert plain.capture_from_world is None
    assert aligned.capture_from_world is not None
    torch.testing.assert_close(move(aligned.points, aligned.capture_from_world), plain.points)
    for before, after in zip(plain.frames, aligned.frames, strict=True):
        torch.testing.assert_close(
            after.camera.camera_from_world(aligned.points),
            before.camera.camera_from_world(plain.points),
            rtol=0,
            atol=1e-5,
        )


@pytest.mark.parametrize("text", ["", "axisAlignment = 1 0 0\n", "axisAlignment = " + "2 " * 16, None])
def test_a_scan_that_cannot_be_aligned_stays_as_it_is(scan: Path, text: str | None):
    path = scan / f"{NAME}.txt"
    path.unlink() if text is None else path.write_text(text)
    scene = ScanNet(scan, axis_align=True)[0]
    assert scene.points.equal(ScanNet(scan)[0].points)
    assert scene.problems[0].text.startswith("The scan is not turned: ")
    assert path.name in scene.problems[0].text


@pytest.mark.parametrize("name", ["scannet20", "scannet200"])
def test_labels_may_be_missing(scan: Path, name: str):
    for suffix in ("_vh_clean_2.labels.ply", ".aggregation.json"):
        (scan / f"{NAME}{suffix}").unlink()
    scene = ScanNet(scan, annotations=name)[0]
    assert (scene.labels, scene.label_set, scene.problems) == (None, None, ())


@pytest.mark.parametrize(
    ("name", "suffix", "content", "words"),
    [
        ("scannet20", "_vh_clean_2.labels.ply", b"ply\n", "no readable PLY file"),
        ("scannet20", "_vh_clean_2.labels.ply", None, "has no property 'label'"),
        ("scannet200", ".aggregation.json", b"{", "is not valid JSON"),
        ("scannet200", ".aggregation.json", b"[" * 100_000, "is not valid JSON"),
        ("scannet200", ".aggregation.json", b"[]", "should hold a JSON object"),
        (
            "scannet200",
            ".aggregation.json",
            b'{"segGroups": [{"segments": ["x"], "label": "wall"}]}',
            "segments[0] is 'x'",
        ),
        ("scannet200", "_vh_clean_2.0.010000.segs.json", b'{"segIndices": 5}', "segIndices is 5; expected a list"),
        ("scannet200", "_vh_clean_2.0.010000.segs.json", b'{"segIndices": [1, 2]}', "there are 2 for 585 points"),
    ],
)
def test_labels_that_cannot_be_read_are_reported(scan: Path, name: str, suffix: str, content: bytes | None, words: str):
    path = scan / f"{NAME}{suffix}"
    path.write_bytes((scan / f"{NAME}_vh_clean_2.ply").read_bytes() if content is None else content)
    scene = ScanNet(scan, annotations=name)[0]
    assert (scene.labels, scene.label_set) == (None, None)
    assert scene.problems[0].text.startswith(f"The labels of {NAME} are not used: ")
    assert words in scene.problems[0].text


def test_what_a_scan_needs_is_named(scan: Path):
    for suffix in (".sens", "_vh_clean_2.ply"):
        dataset, path = ScanNet(scan), scan / f"{NAME}{suffix}"
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(FileNotFoundError, match=rf"{path.name} is missing"):
            dataset[0]
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"--annotations is 'coco'; choose from scannet20, scannet200, or give"):
        ScanNet(scan, annotations="coco")
    with pytest.raises(ValueError, match=r"--annotations is 'nyu40'; choose from scannet20, scannet200, or give"):
        ScanNet(scan, annotations="nyu40")
    with pytest.raises(ValueError, match="every is 0"):
        ScanNet(scan, every=0)


def test_a_frame_travels_to_another_process(scan: Path):
    frame = ScanNet(scan)[0].frames[0]
    assert pickle.loads(pickle.dumps(frame)).read_depth().equal(frame.read_depth())


def test_a_scan_is_written_over_nothing_and_holds_only_scannet20(scan: Path, synthetic_scene: Scene, tmp_path: Path):
    with pytest.raises(ValueError, match="is not empty"):
        write_scan(synthetic_scene, scan)
    with pytest.raises(ValueError, match="labels of 'nyu40'"):
        write_scan(replace(synthetic_scene, label_set="nyu40"), tmp_path / "other")
    write_scan(replace(synthetic_scene, labels=None, label_set=None), tmp_path / "other")
    assert ScanNet(tmp_path / "other")[0].labels is None


def test_the_script_writes_a_miniature_of_both_splits(tmp_path: Path):
    runpy.run_path(str(SCRIPT))["main"](tmp_path, num_train=1, num_val=1, num_views=1, every=20)
    dataset = open_dataset(tmp_path)
    assert [(scene.name, scene.split) for scene in dataset] == [("scene0191_00", "train"), (NAME, "val")]
    for scene in dataset:
        (frame,) = scene.frames
        seen = visible_points(scene.points, frame.camera, frame.read_depth(), occlusion_tolerance=0.05).index
        assert len(seen) > 1000
