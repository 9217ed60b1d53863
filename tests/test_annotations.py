"""Facts about annotations: the label set that they are read in is the user's, and goes where they go."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cuao3d.cli import main
from cuao3d.formats.ply import read_ply, write_ply
from cuao3d.labels import label_set
from cuao3d.readers import open_dataset
from cuao3d.readers.matterport import Matterport
from cuao3d.readers.scannet import ScanNet
from cuao3d.readers.sevenscenes import write_capture
from cuao3d.scene import Scene
from cuao3d.store import Store
from make_fixture_matterport import write_building
from make_fixture_scannet import write_scan
from written import WRITERS

OWN = "id,name,r,g,b,nyu40id\n3,wall,174,199,232,1\n7,painting,196,156,148,11;5\n9,robot,0,0,0,\n"
"""A set of one's own: walls are 3, pictures 7."""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "sets" / "own.csv"
    path.parent.mkdir()
    path.write_text(OWN)
    return path


@pytest.fixture
def labels(synthetic_scene: Scene) -> torch.Tensor:
    """Labels of the synthetic scene in that set; the first point has none."""
    labels = torch.where(synthetic_scene.labels == 0, 3, 7)
    labels[0] = 255
    return labels


def with_labels(path: Path, labels: torch.Tensor) -> None:
    """Add a column of labels to a cloud."""
    write_ply(path, read_ply(path) | {"label": labels.numpy().astype(np.int32)})


def capture(layout: str, scene: Scene, folder: Path, labels: torch.Tensor) -> Path:
    """Write a scene in a layout whose cloud has a column of labels."""
    path = WRITERS[layout](replace(scene, labels=None, label_set=None), folder)
    cloud = {"nerfstudio": folder / "points.ply", "pointcloud": path}.get(layout, folder / "points.ply")
    if layout == "nerfstudio":
        shutil.copy(WRITERS["folder"](scene, folder.parent / "other") / "points.ply", cloud)
    with_labels(cloud, labels)
    return path


def fuse(path: Path, out: Path, *options: object, teachers: str = "none", code: int = 0) -> Store:
    arguments = ["fuse", path, "--out", out, "--teachers", teachers, "--cell", 0.05, *options]
    assert main([str(argument) for argument in arguments]) == code
    return Store.open(out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must be refused; return what it says."""
    assert main([str(argument) for argument in arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("layout", ["sevenscenes", "folder", "nerfstudio", "pointcloud"])
@pytest.mark.parametrize("way", ["option", "capture.json"])
def test_captures_and_lone_clouds_keep_their_labels(synthetic_scene, labels, own, tmp_path, layout, way):
    path = capture(layout, synthetic_scene, tmp_path / "capture", labels)
    options = ("--annotations", own) if way == "option" else ()
    if way == "capture.json":
        (tmp_path / "capture" / "capture.json").write_text('{"label_set": "../sets/own.csv"}')
    store = fuse(path, tmp_path / "store", *options)
    scene = store[store.names()[0]]
    assert torch.equal(scene.labels, labels)
    assert label_set(scene.label_set).names == ("wall", "painting", "robot")
    assert scene.problems == ()


def test_labels_of_an_npz_file_are_kept(synthetic_scene, labels, own, tmp_path):
    np.savez(tmp_path / "cloud.npz", points=synthetic_scene.points.numpy(), labels=labels.numpy())
    scene = open_dataset(tmp_path / "cloud.npz", annotations=str(own))[0]
    assert torch.equal(scene.labels, labels)
    assert scene.label_set == str(own)


def test_the_description_of_a_capture_may_name_a_csv_beside_it(synthetic_scene, labels, own, tmp_path):
    write_capture(replace(synthetic_scene, labels=labels, label_set=str(own)), tmp_path / "room")
    assert json.loads((tmp_path / "room" / "scene.json").read_text())["label_set"] == "own.csv"
    own.unlink()
    shutil.move(tmp_path / "room", tmp_path / "moved")
    scene = open_dataset(tmp_path / "moved")[0]
    assert torch.equal(scene.labels, labels)
    assert scene.label_set == str(tmp_path / "moved" / "own.csv")


def test_the_option_is_stronger_than_capture_json_and_that_than_scene_json(synthetic_scene, own, tmp_path):
    write_capture(synthetic_scene, tmp_path / "room")
    assert open_dataset(tmp_path / "room")[0].label_set == "scannet20"
    (tmp_path / "room" / "capture.json").write_text('{"label_set": "nyu40"}')
    assert open_dataset(tmp_path / "room")[0].label_set == "nyu40"
    assert open_dataset(tmp_path / "room", annotations=str(own))[0].label_set == str(own)


TEACHER = """
import torch
class Color:
    name, num_channels, text = "color", 3, "table:words.npy"
    def __call__(self, image):
        return torch.nn.functional.avg_pool2d(image, 4)
"""


def test_later_commands_find_the_set_though_its_csv_is_gone(
    synthetic_scene, labels, own, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = capture("folder", synthetic_scene, tmp_path / "capture", labels)
    (tmp_path / "teacher.py").write_text(TEACHER)
    names = sorted({*label_set(own).names, *label_set("scannet20").names, "other"})
    (tmp_path / "words_names.txt").write_text("\n".join(names))
    np.save(tmp_path / "words.npy", torch.rand(len(names), 3).numpy())
    fuse(path, tmp_path / "store", "--annotations", own, teachers="teacher.py:Color")
    own.unlink()
    shutil.move(tmp_path / "store", tmp_path / "elsewhere")
    for name, classes in (("own", {"wall", "painting"}), ("scannet20", {"wall"})):  # a painting may be 11 or 5 there
        out = tmp_path / f"{name}.json"
        command = ["evaluate", tmp_path / "elsewhere", "--labels", name, "--split", "all", "--json", out]
        assert main([str(argument) for argument in command]) == 0
        row = json.loads(out.read_text())["rows"][0]
        assert (row["label_set"], set(row["iou"])) == (name, classes)
    said = refused(capsys, "evaluate", tmp_path / "elsewhere", "--labels", "garden", "--split", "all")
    assert "Unknown label set 'garden'" in said
    assert "The store keeps own." in said
    kept = tmp_path / "elsewhere" / "labels" / "own.csv"
    kept.write_text(OWN.replace("174", "175"))
    said = refused(capsys, "evaluate", tmp_path / "elsewhere", "--labels", "own", "--split", "all")
    assert "is not the label set that the scenes were stored with" in said


def test_two_sets_of_one_name_do_not_share_a_store(synthetic_scene, labels, own, tmp_path, capsys):
    for name in ("a", "b"):
        capture("folder", replace(synthetic_scene, name=name), tmp_path / "scans" / name, labels)
        shutil.copy(own, tmp_path / "scans" / name)
        (tmp_path / "scans" / name / "capture.json").write_text('{"label_set": "own.csv"}')
    assert fuse(tmp_path / "scans", tmp_path / "one").names() == ("a", "b")
    (tmp_path / "scans" / "b" / "own.csv").write_text(OWN.replace("robot", "lift"))
    assert fuse(tmp_path / "scans", tmp_path / "two", code=3).names() == ("a",)
    assert "keeps another label set own.csv" in " ".join(capsys.readouterr().err.split())


def test_labels_that_the_set_does_not_know_are_left_out_and_named(synthetic_scene, labels, own, tmp_path, capsys):
    raw = labels.clone()
    raw[1], raw[2], raw[3] = 1191, 0, -100  # an id of ScanNet's own table, and two that mean none
    path = capture("pointcloud", synthetic_scene, tmp_path / "capture", raw)
    store = fuse(path, tmp_path / "store", "--annotations", own)
    assert store["cloud"].labels.tolist() == [255] * 4 + labels[4:].tolist()
    said = " ".join(capsys.readouterr().err.split())
    assert "1 labels of the cloud are left out: own has no ids such as 1191;" in said
    assert "its own go from 3 to 9, and no set has ids above 254." in said


def test_annotations_that_cannot_be_used_are_named(synthetic_scene, labels, own, tmp_path, capsys):
    path = capture("pointcloud", synthetic_scene, tmp_path / "capture", labels)
    (problem,) = fuse(path, tmp_path / "no-set")["cloud"].problems
    assert problem.kind == "labels"
    assert "Name it: --annotations SET" in problem.text
    bare = WRITERS["pointcloud"](synthetic_scene, tmp_path / "bare")
    (problem,) = fuse(bare, tmp_path / "no-labels", "--annotations", own)["cloud"].problems
    assert "cloud.ply has no labels" in problem.text
    for arguments in (("fuse", path, "--out", tmp_path / "s", "--teachers", "none"), ("check", path)):
        assert "--annotations is 'coco'; choose from scannet20," in refused(capsys, *arguments, "--annotations", "coco")
        own.write_text("id,name,r,g,b\n1191,wall,0,0,0\n")
        assert "Ids go from 0 to 254" in refused(capsys, *arguments, "--annotations", own)
    assert not (tmp_path / "s").exists()


def test_raw_scans_are_read_in_a_set_of_ones_own_through_nyu40(synthetic_scene, own, tmp_path):
    expected = torch.where(synthetic_scene.labels == 0, 3, 7)
    write_scan(synthetic_scene, tmp_path / "scene0000_00")
    write_building([synthetic_scene], tmp_path / "building")
    for dataset in (ScanNet(tmp_path / "scene0000_00", annotations=str(own)), Matterport(tmp_path / "building")):
        if isinstance(dataset, Matterport):
            (tmp_path / "building" / "capture.json").write_text('{"label_set": "../sets/own.csv"}')
        scene = dataset[0]
        assert scene.label_set == str(own)
        assert torch.equal(scene.labels, expected)


def manifest(store: Store) -> dict:
    return json.loads((store.path / "scenes" / store.names()[0] / "manifest.json").read_text())


def test_the_tolerance_is_an_option_an_entry_or_the_layouts_own_and_is_recorded(synthetic_scene, tmp_path, capsys):
    path = WRITERS["folder"](synthetic_scene, tmp_path / "room")
    assert manifest(fuse(path, tmp_path / "a"))["occlusion_tolerance"] == 0.1
    (path / "capture.json").write_text('{"occlusion_tolerance": 0.125}')
    assert manifest(fuse(path, tmp_path / "b"))["occlusion_tolerance"] == 0.125
    assert manifest(fuse(path, tmp_path / "c", "--tolerance", 0.5))["occlusion_tolerance"] == 0.5
    main(["check", str(path), "--tolerance", "0.5", "--json", str(tmp_path / "check.json")])
    measured = json.loads((tmp_path / "check.json").read_text())["scenes"]["room"]["measurements"]
    assert measured["occlusion_tolerance"] == 0.5
    assert manifest(fuse(path, tmp_path / "c"))["occlusion_tolerance"] == 0.125
    assert "1 scene lifted again: room (tolerance is null, was 0.5)" in capsys.readouterr().err
    for wrong in (0, 1, 25):
        said = refused(capsys, "check", path, "--tolerance", wrong)
        assert f"--tolerance is {wrong}; expected a number between 0 and 1" in said


def test_capture_json_is_stronger_than_scene_json_and_than_a_recipe(synthetic_scene, tmp_path):
    write_capture(replace(synthetic_scene, occlusion_tolerance=0.4), tmp_path / "room")
    write_scan(synthetic_scene, tmp_path / "scene0000_00")
    for name, own in (("room", 0.4), ("scene0000_00", 0.25)):
        assert open_dataset(tmp_path / name)[0].occlusion_tolerance == own
        (tmp_path / name / "capture.json").write_text('{"occlusion_tolerance": 0.125}')
        assert open_dataset(tmp_path / name)[0].occlusion_tolerance == 0.125
        assert open_dataset(tmp_path / name, tolerance=0.5)[0].occlusion_tolerance == 0.5


def test_the_tolerance_decides_what_is_seen(synthetic_scene, tmp_path):
    # Depth that is a tenth too large lies 0.1 / 1.1 = 9.09 % of itself off the points.
    path = WRITERS["folder"](synthetic_scene, tmp_path / "room")
    (path / "capture.json").write_text('{"depth_scale": 1.1}')
    for tolerance, seen in ((0.09, False), (0.092, True)):
        store = fuse(path, tmp_path / f"store-{tolerance}", "--tolerance", tolerance)
        assert bool(store["room"].num_views.any()) is seen
