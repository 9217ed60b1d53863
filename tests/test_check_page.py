"""What a check leaves behind: a page, a capture.json that cures, an estimate, and JSON that keeps its shape."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cuao3d.check import check, cost
from cuao3d.check.cost import Prospect, estimate, prospects
from cuao3d.check.options import capture_options, fix
from cuao3d.check.page import write_page
from cuao3d.cli import main
from cuao3d.formats.ply import read_ply, write_ply
from cuao3d.readers import open_dataset
from cuao3d.readers.options import CaptureOptions
from cuao3d.scene import Scene

ROOT = Path(__file__).parents[1]


@pytest.fixture
def inverted(room_folder: Path, tmp_path: Path) -> Path:
    """A made room with its poses inverted."""
    folder = Path(shutil.copytree(room_folder, tmp_path / "capture" / "room"))
    for path in folder.glob("*.pose.txt"):
        np.savetxt(path, np.linalg.inv(np.loadtxt(path)), fmt="%.17g")
    return folder


@pytest.mark.slow
def test_the_command_names_cures_and_shows_what_is_wrong(inverted: Path, tmp_path: Path, capsys):
    files = {"--json": tmp_path / "check.json", "--html": tmp_path / "check.html", "--picture": tmp_path / "check.png"}
    arguments = [str(part) for pair in files.items() for part in pair]
    assert main(["check", str(inverted), *arguments, "--fix", "--teachers", "lseg"]) == 1
    said = capsys.readouterr().out
    assert "Poses look inverted" in said
    assert "hours unknown" in said
    assert json.loads((inverted / "capture.json").read_text()) == {"pose": "camera_from_world"}
    assert main(["check", str(inverted)]) == 0  # readers honour what was written
    page = files["--html"].read_text()
    assert page.count("data:image/") >= 5
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "inverse poses</b>" in page
    assert "{&#34;pose&#34;: &#34;camera_from_world&#34;}" in page
    assert files["--picture"].stat().st_size > 10_000


def test_json_has_the_documented_keys_and_no_others(inverted: Path, tmp_path: Path):
    main(["check", str(inverted), "--json", str(tmp_path / "check.json"), "--teachers", "lseg,dinov2-small"])
    content = json.loads((tmp_path / "check.json").read_text())
    documented = set(re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs" / "check.md").read_text(), re.MULTILINE))
    free = {"measurements.readings"}  # keys of these are names
    scene = content["scenes"].pop("room")
    found = {f"scene.{key}" for key in keys(scene, free)} | {key for key in keys(content, set()) if key != "scenes"}
    assert found == documented
    assert (scene["verdict"], scene["exit_code"], scene["causes"]) == ("probably wrong", 1, ["inverse poses"])


def test_every_cause_is_documented():
    page = (ROOT / "docs" / "check.md").read_text()
    source = "".join(path.read_text() for path in (ROOT / "src" / "cuao3d" / "check").glob("*.py"))
    causes = re.findall(r'Finding\(\s*"([a-z][\w ]+)"', source)
    assert len(causes) >= 6
    for cause in [*causes, "inverse poses", "OpenGL axes", "swapped focal lengths", "intrinsics of another image size"]:
        assert f'`"{cause}"`' in page, cause


def test_a_scene_without_a_view_has_a_page_too(synthetic_scene: Scene, tmp_path: Path):
    scene = replace(synthetic_scene, frames=())
    write_page(scene, check(scene), tmp_path / "check.html")
    assert "has no view that can be read" in (tmp_path / "check.html").read_text()


def test_a_folder_that_no_reader_can_read_is_unreadable(room_folder: Path, tmp_path: Path, capsys):
    folder = Path(shutil.copytree(room_folder, tmp_path / "room"))
    for pose in folder.glob("*.pose.txt"):
        pose.write_text("nan " * 16)
    assert main(["check", str(folder), "--json", str(tmp_path / "check.json")]) == 2
    assert "unreadable" in capsys.readouterr().out
    assert json.loads((tmp_path / "check.json").read_text())["scenes"]["room"]["exit_code"] == 2


def lose_poses(folder: Path) -> None:
    for pose in folder.glob("*.pose.txt"):
        pose.write_text("nan " * 16)


def lose_points(folder: Path) -> None:
    cloud = folder / "points.ply"
    write_ply(cloud, {name: column[:0] for name, column in read_ply(cloud).items()})


@pytest.mark.parametrize("damage", [lose_poses, lose_points, shutil.rmtree])
def test_nothing_of_an_earlier_check_stays_when_a_capture_has_become_unreadable(damage, room_folder: Path, tmp_path):
    folder = Path(shutil.copytree(room_folder, tmp_path / "room"))
    page, picture, content = (tmp_path / f"check.{suffix}" for suffix in ("html", "png", "json"))
    page.write_text("ok")
    picture.write_bytes(b"ok")
    content.write_text("ok")
    damage(folder)
    options = ["--html", str(page), "--picture", str(picture), "--json", str(content)]
    assert main(["check", str(folder), *options]) == 2
    assert "unreadable" in page.read_text()
    assert not picture.exists()
    assert json.loads(content.read_text())["scenes"]["room"]["verdict"] == "unreadable"


def test_a_scene_that_cannot_be_drawn_or_estimated_costs_no_other(room_folder: Path, tmp_path: Path, capsys):
    for name in ("a", "b"):
        shutil.copytree(room_folder, tmp_path / "rooms" / name)
    lose_points(tmp_path / "rooms" / "a")
    options = ["--picture", str(tmp_path / "a.png"), "--teachers", "lseg", "--cell", "1e-6"]
    assert main(["check", str(tmp_path / "rooms"), *options]) == 2
    said = capsys.readouterr().out
    assert "a: unreadable" in said
    assert "b: ok" in said
    assert "could not be estimated: Voxel coordinates" in said


@pytest.mark.parametrize(
    ("found", "there", "joined"),
    [
        ({"depth_scale": 0.1}, {}, {"depth_scale": 0.1}),
        ({"depth_scale": 4.0}, {"depth_scale": 0.25}, {}),
        ({"pose": "camera_from_world"}, {"pose": "camera_from_world"}, {}),
        ({"pose": "camera_from_world", "axes": "opengl"}, {}, {"pose": "camera_from_world", "axes": "opengl"}),
        ({"axes": "opengl"}, {"pose": "camera_from_world"}, {"pose": "camera_from_world", "axes": "opengl"}),
        ({"swap_focal": True}, {"swap_focal": True, "every": 5}, {"every": 5}),
        ({"up": "-z"}, {"up": "-y"}, {"up": "y"}),
        ({"up": "y"}, {"depth_scale": 0.001}, {"depth_scale": 0.001, "up": "y"}),
    ],
)
def test_findings_are_joined_to_the_options_that_were_honoured(found, there, joined):
    assert capture_options(found, CaptureOptions(**there)) == CaptureOptions(**joined)


def test_a_fix_keeps_what_the_file_says_and_drops_defaults(tmp_path: Path):
    (tmp_path / "own.csv").write_text("id,name,r,g,b\n0,wall,0,0,0\n")
    there = {"every": 2, "label_set": "own.csv", "occlusion_tolerance": 0.1, "pose": "camera_from_world", "up": "z"}
    (tmp_path / "capture.json").write_text(json.dumps(there))
    kept = {"every": 2, "label_set": "own.csv", "occlusion_tolerance": 0.1, "depth_scale": 0.001}
    assert fix(tmp_path, {"pose": "camera_from_world", "depth_scale": 0.001}) == kept
    assert json.loads((tmp_path / "capture.json").read_text()) == kept


def test_what_no_options_can_say_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="remove axes"):
        capture_options({"pose": "camera_from_world"}, CaptureOptions(axes="opengl"))
    (tmp_path / "capture.json").write_text("[")
    with pytest.raises(ValueError, match=r"capture\.json is not valid JSON"):
        fix(tmp_path, {"up": "y"})


def test_an_estimate_by_hand(synthetic_scene: Scene, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cost, "peak_memory", lambda: 500.0)  # megabytes; of no teacher that was measured
    # 441 + 144 points, a cell each; half of them seen, 100 + 200 channels: 2 bytes each on disk, 4 more while lifted.
    teachers = [Prospect("a", 100, 0.5, 1.0, 0.9), Prospect("b", 200, 1.3, 2.0, 1.7)]
    found = estimate(synthetic_scene, teachers, cell=0.01, seen=0.5)
    assert found.gigabytes == pytest.approx((585 / 2 * 300 * 2 + 585 * 28) / 1e9)
    assert found.memory == pytest.approx((585 / 2 * 300 * 6 + 585 * 28) / 1e9 + 1.7 + 1)  # the second one held 1.7 GB
    assert found.hours == pytest.approx(2 * 1.8 / 3600)
    unknown = [replace(teacher, seconds_per_view=None, memory=None) for teacher in teachers]
    assert estimate(synthetic_scene, [unknown[0], teachers[1]], cell=0.01, seen=0.5).hours is None
    neither = estimate(synthetic_scene, unknown, cell=0.01, seen=0.5).memory
    assert neither == pytest.approx((585 / 2 * 300 * 6 + 585 * 28) / 1e9 + 0.5 + 3)


def test_teachers_that_are_here_are_measured(room_folder: Path):
    scene = open_dataset(room_folder)[0]
    here, absent = prospects(["mini-dino", "lseg"], scene, cell=0.1)
    assert (here.num_channels, absent.num_channels, absent.seconds_per_view) == (160, 512, None)
    assert here.seconds_per_view is not None
    assert 0 < here.seconds_per_view < 30
    assert here.memory is not None
    assert here.memory > 0.1
    assert absent.memory is None
    with pytest.raises(ValueError, match="Unknown teacher 'lsg'"):
        prospects(["lsg"], scene, cell=0.1)


def test_estimates_are_close_to_what_a_store_takes(room_folder: Path, tmp_path: Path):
    scene = open_dataset(room_folder)[0]
    cell = 0.05
    main(["fuse", str(room_folder), "--teachers", "mini-dino", "--cell", str(cell), "--out", str(tmp_path / "store")])
    taken = sum(file.stat().st_size for file in (tmp_path / "store").rglob("*.safetensors"))
    seen = check(scene).measurements["coverage"]["seen"]
    found = estimate(scene, [Prospect("mini-dino", 128, 0.1, 0.0)], cell=cell, seen=seen)
    assert found.gigabytes * 1e9 == pytest.approx(taken, rel=0.3)


def keys(content: dict, free: set[str], above: str = "") -> list[str]:
    """List the paths of keys, to two levels, but of what `free` names."""
    found = []
    for key, value in content.items():
        path = f"{above}{key}"
        found.append(path)
        if isinstance(value, dict) and path not in free and path != "options":
            found += keys(value, free, f"{path}.")
    return found
