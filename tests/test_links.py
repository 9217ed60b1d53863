"""Links in captures and in outputs: none leads a reader or a writer where nobody sent it."""

import json
from pathlib import Path

import pytest
import torch

from cuao3d.check.options import fix
from cuao3d.cli import main
from cuao3d.errors import InputError
from cuao3d.files import reading_inside
from cuao3d.formats.images import Lens, open_frame
from cuao3d.readers import open_dataset
from cuao3d.readers.sevenscenes import write_capture


@pytest.fixture
def capture(synthetic_scene, tmp_path) -> Path:
    write_capture(synthetic_scene, tmp_path / "capture")
    return tmp_path / "capture"


def lead_out(path: Path) -> Path:
    """Put a link where a file was; it leads to the same file, outside of the capture."""
    target = path.parent.parent / f"elsewhere-{path.name}"
    path.rename(target)
    path.symlink_to(target)
    return target


@pytest.mark.parametrize("kind", ["color.png", "depth.png", "pose.txt"])
def test_a_frame_behind_a_link_that_leads_out_is_left_out_by_name(capture, kind):
    lead_out(capture / f"frame-000001.{kind}")
    scene = open_dataset(capture)[0]
    assert [frame.name for frame in scene.frames] == ["frame-000000"]
    (problem,) = scene.problems
    assert f"frame-000001.{kind} leads by a link out of {capture}" in problem.text


def test_a_confidence_image_behind_such_a_link_costs_its_frame(synthetic_scene, capture):
    lead_out(path := capture / "frame-000001.depth.png")
    color, depth = capture / "frame-000000.color.png", capture / "frame-000000.depth.png"
    lens, pose = Lens((40.0, 40.0), (31.5, 23.5), (64, 48)), torch.eye(4, dtype=torch.float64)
    with reading_inside(capture), pytest.raises(InputError, match=r"frame-000001.depth.png leads by a link out"):
        open_frame("0", pose, color=color, lens=lens, depth=depth, confidence=path)


@pytest.mark.parametrize("name", ["points.ply", "camera-intrinsics.txt", "scene.json"])
def test_a_capture_that_needs_a_file_behind_such_a_link_is_refused_by_name(capture, name):
    lead_out(capture / name)
    with pytest.raises(InputError, match=rf"{name} leads by a link out of .*, and is not read; copy the file"):
        open_dataset(capture)[0]


def test_a_folder_behind_such_a_link_is_not_read_either(synthetic_scene, tmp_path):
    write_capture(synthetic_scene, tmp_path / "seven")
    (tmp_path / "capture" / "pose").mkdir(parents=True)
    (tmp_path / "images").mkdir()
    for index in (0, 1):
        (tmp_path / "seven" / f"frame-00000{index}.color.png").rename(tmp_path / "images" / f"{index}.png")
    (tmp_path / "capture" / "color").symlink_to(tmp_path / "images")
    (tmp_path / "seven" / "camera-intrinsics.txt").rename(tmp_path / "capture" / "intrinsics.txt")
    with pytest.raises(InputError, match=r"color/\d.png leads by a link out of .*capture"):
        open_dataset(tmp_path / "capture")[0]


def test_links_within_a_capture_and_to_a_capture_are_followed(capture, tmp_path):
    (capture / "kept").mkdir()
    (capture / "frame-000001.color.png").rename(capture / "kept" / "a.png")
    (capture / "frame-000001.color.png").symlink_to("kept/a.png")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "room").symlink_to(capture)
    scene = open_dataset(tmp_path / "dataset")[0]
    assert (scene.name, len(scene.frames), scene.problems) == ("room", 2, ())


@pytest.mark.parametrize("is_there", [True, False])
def test_a_fix_writes_through_no_link_that_leads_out(capture, tmp_path, is_there):
    target = tmp_path / "settings"
    if is_there:
        target.write_text("{}")
    (capture / "capture.json").symlink_to(target)
    with pytest.raises(InputError, match=r"capture.json leads by a link out of"):
        fix(capture, {"depth_scale": 2.0})
    assert target.exists() == is_there
    (capture / "capture.json").unlink()
    (capture / ".capture.json.partial").symlink_to(target)  # the name that an earlier version wrote under
    fix(capture, {"depth_scale": 2.0})
    assert target.exists() == is_there
    assert json.loads((capture / "capture.json").read_text()) == {"depth_scale": 2.0}


@pytest.mark.parametrize(
    "arguments",
    [
        ["query", "STORE", "wall", "--out", "STORE/store.json"],
        ["query", "STORE", "wall", "--out", "STORE/scenes/synthetic/manifest.json"],
        ["evaluate", "STORE", "--json", "STORE/store.json"],
        ["compare", "STORE", "--json", "STORE/new.json"],
        ["check", "CAPTURE", "--json", "LINK"],
        ["check", "CAPTURE", "--html", "STORE/labels.html"],
        ["check", "CAPTURE", "--picture", "RUN/training.png"],
        ["evaluate", "STORE", "--json", "RUN/run.json"],
    ],
)
def test_an_output_inside_a_store_or_in_place_of_a_runs_file_is_refused(
    synthetic_store, capture, tmp_path, capsys, arguments
):
    (tmp_path / "link.json").symlink_to(synthetic_store.path / "store.json")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    places = {
        "STORE": synthetic_store.path,
        "CAPTURE": capture,
        "LINK": tmp_path / "link.json",
        "RUN": tmp_path / "run",
    }
    before = {path: path.read_bytes() for path in synthetic_store.path.rglob("*") if path.is_file()}
    typed = []
    for word in arguments:
        first, _, rest = word.partition("/")
        typed.append(str(places[first] / rest) if first in places else word)
    assert main(typed) == 2
    assert " lies in the store " in (said := capsys.readouterr().err) or " is a file of the run " in said
    assert {path: path.read_bytes() for path in synthetic_store.path.rglob("*") if path.is_file()} == before
