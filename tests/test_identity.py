"""What a store was lifted from is known: what has changed is lifted again, what has not is not, and no name decides."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import Alone, ColorTeacher
from cuao3d import pipeline
from cuao3d.cli import main
from cuao3d.errors import InputError
from cuao3d.pipeline import fusing
from cuao3d.readers import open_dataset
from cuao3d.scene import Scene
from cuao3d.seals import read_sealed, write_sealed
from cuao3d.store import Store
from cuao3d.teachers import load_teacher
from cuao3d.worlds.rooms import Rooms
from written import WRITERS, read_all, write_sevenscenes

EDGE = 0.05


class Grey:
    """Toy teacher: the brightness of every 4 x 4 pixels, times a weight."""

    num_channels = 1

    def __init__(self, name="grey", weight=1.0):
        self.name, self.weight = name, weight

    def __call__(self, image):
        return self.weight * ColorTeacher()(image).mean(dim=0, keepdim=True)


class RedTeacher(ColorTeacher):
    """Toy teacher of the same name: other code."""

    def __call__(self, image):
        return ColorTeacher.__call__(self, image) * torch.tensor([1.0, 0.0, 0.0])[:, None, None]


@pytest.fixture
def captures(synthetic_scene: Scene, tmp_path: Path) -> Path:
    """Three captures of one scene, a, b and c."""
    for name in "abc":
        write_sevenscenes(synthetic_scene, tmp_path / "data" / name)
    return tmp_path / "data"


def fuse(data: Path, out: Path, teachers=None, **options) -> Store:
    teachers = [ColorTeacher()] if teachers is None else teachers
    return pipeline.fuse(open_dataset(data), teachers, out, cell=options.pop("cell", EDGE), **options)


def content(store: Store) -> dict[str, bytes]:
    """The bytes of all files of a store but those that hold how long something took."""
    files = {path.relative_to(store.path).as_posix(): path for path in store.path.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.endswith("lifting.json")}


def lifted(capsys) -> str:
    """What the last fuse said."""
    return capsys.readouterr().err


def put_pose_off(capture: Path) -> None:
    path = capture / "frame-000000.pose.txt"
    path.write_text(path.read_text().replace("-0.25", "-0.24", 1))


@pytest.fixture(scope="module")
def opened() -> list[str]:
    """Every file that Python opens, from now on."""
    names: list[str] = []
    sys.addaudithook(lambda event, arguments: names.append(str(arguments[0])) if event == "open" else None)
    return names


@pytest.mark.parametrize("layout", WRITERS)
def test_every_file_that_a_reader_opens_decides_the_scene(layout, synthetic_scene, tmp_path, opened):
    path = WRITERS[layout](synthetic_scene, tmp_path / "data" / "room")
    folder = path if path.is_dir() else path.parent
    (folder / "notes.md").write_text("mine")
    options = {"up": "z", "label_set": "own.csv"} if layout == "sevenscenes" else {"up": "z"}
    (folder / "own.csv").write_text("id,name,r,g,b\n0,wall,0,0,0\n10,picture,9,9,9\n")
    (folder / "capture.json").write_text(json.dumps(options))
    opened.clear()
    read_all(path)
    used = {Path(name) for name in opened if name.startswith(str(tmp_path))}
    source = open_dataset(path).source(0)
    assert len(used) > 4 or layout == "pointcloud"
    assert used <= set(source.files.values())
    assert "notes.md" not in source.files
    moved = shutil.copytree(tmp_path / "data", tmp_path / "moved")
    assert set(open_dataset(moved / path.relative_to(tmp_path / "data")).source(0).files) == set(source.files)


def test_what_has_not_changed_is_not_lifted_again(captures, tmp_path, capsys):
    before = content(fuse(captures, tmp_path / "store"))
    lifted(capsys)
    assert content(fuse(captures, tmp_path / "store")) == before
    assert lifted(capsys) == "3 scenes were there already\n"


def test_only_what_has_changed_is_lifted_again_and_the_store_is_as_a_fresh_one(captures, tmp_path, capsys):
    fuse(captures, tmp_path / "store")
    put_pose_off(captures / "b")
    (captures / "c" / "capture.json").write_text('{"occlusion_tolerance": 0.2}')
    shutil.copytree(captures / "a", captures / "d")
    lifted(capsys)
    store = fuse(captures, tmp_path / "store")
    assert lifted(capsys).splitlines() == [
        "1 scene was there already",
        "2 scenes lifted again: b (frame-000000.pose.txt has changed), c (capture.json is new)",
    ]
    assert content(store) == content(fuse(captures, tmp_path / "fresh"))


@pytest.mark.parametrize("kept", [False, True])
def test_a_file_of_another_time_is_compared_by_its_content(captures, tmp_path, capsys, kept):
    fuse(captures, tmp_path / "store")
    path = captures / "a" / "frame-000001.color.png"
    stat = path.stat()
    if kept:  # size and time are as before, the content is not
        path.write_bytes(path.read_bytes()[:-5] + b"12345")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + (not kept)))
    lifted(capsys)
    for _ in range(2):
        store = fuse(captures, tmp_path / "store")
    expected = ["3 scenes were there already"] * 2
    if kept:
        again = "1 scene lifted again: a (frame-000001.color.png has changed)"
        expected = ["2 scenes were there already", again, "3 scenes were there already"]
    assert lifted(capsys).splitlines() == expected
    assert content(store) == content(fuse(captures, tmp_path / "fresh"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"teachers": [Grey()]}, "its teachers are others"),
        ({"teachers": []}, "its teachers are others"),
        ({"teachers": [RedTeacher()]}, "color has other weights, options or code"),
    ],
)
def test_other_teachers_lift_every_scene_again(captures, tmp_path, capsys, change, reason):
    fuse(captures, tmp_path / "store")
    lifted(capsys)
    store = fuse(captures, tmp_path / "store", **change)
    assert lifted(capsys) == f"3 scenes lifted again: a ({reason}), b ({reason}), c ({reason})\n"
    assert content(store) == content(fuse(captures, tmp_path / "fresh", **change))
    assert content(Store.open(store.path)) == content(store)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"cell": 0.1}, "cell is 0.05, not 0.1"), ({"upright": False}, r"settings\.upright is true, not false")],
)
def test_a_store_of_another_cell_or_of_turned_images_is_refused(captures, tmp_path, change, words):
    before = content(fuse(captures, tmp_path / "store"))
    with pytest.raises(InputError, match=words):
        fuse(captures, tmp_path / "store", **change)
    assert content(Store.open(tmp_path / "store")) == before


def test_another_tolerance_lifts_again(captures, tmp_path, capsys):
    for tolerance in (0.1, 0.2):
        data = open_dataset(captures, tolerance=tolerance)
        store = pipeline.fuse(data, [], tmp_path / "store", cell=EDGE, settings={"tolerance": tolerance})
    assert "a (tolerance is 0.2, was 0.1)" in lifted(capsys)
    assert store.settings["tolerance"] == 0.2


def test_another_dataset_is_not_put_into_the_same_store(captures, tmp_path):
    fuse(captures, tmp_path / "store", settings={"data": "data"})
    with pytest.raises(InputError, match=r'settings\.data is "data", not "others"'):
        fuse(captures, tmp_path / "store", settings={"data": "others"})


def test_a_teacher_is_added_changed_and_dropped_without_the_others(captures, tmp_path, capsys):
    fuse(captures, tmp_path / "store")
    lifted(capsys)
    for teachers, said in (
        ([ColorTeacher(), Grey()], "3 scenes: only grey lifted\n"),
        ([ColorTeacher(), Grey(weight=2.0)], "3 scenes: only grey lifted\n"),
        ([Grey("second"), ColorTeacher(), Grey(weight=2.0)], "3 scenes: only second lifted\n"),
        ([ColorTeacher()], "3 scenes: features of other teachers dropped\n"),
    ):
        store = fuse(captures, tmp_path / "store", teachers)
        assert lifted(capsys) == said
        fresh = fuse(captures, tmp_path / f"fresh-{len(list(tmp_path.iterdir()))}", teachers)
        assert content(store) == content(fresh)
        assert store.lifting("a").keys() == fresh.lifting("a").keys() == {teacher.name for teacher in teachers}


def test_no_teacher_is_dropped_where_none_is_named(captures, tmp_path, capsys):
    before = content(fuse(captures, tmp_path / "store"))
    assert main(["fuse", str(captures), "--out", str(tmp_path / "store")]) == 2
    assert "--teachers color to go on" in " ".join(capsys.readouterr().err.split())
    assert content(Store.open(tmp_path / "store")) == before


def test_a_teacher_that_sees_other_views_lifts_the_scene_again_whole(captures, tmp_path, monkeypatch):
    fuse(captures / "a", tmp_path / "store")
    with monkeypatch.context() as only_now:  # as if a frame could not be read while the other teacher looks

        def unreadable(scene, *arguments, **options):
            def raise_():
                raise InputError("gone")

            frames = (replace(scene.frames[0], read_image=raise_), *scene.frames[1:])
            return lift_together(replace(scene, frames=frames), *arguments, **options)

        lift_together = fusing.lift_together
        only_now.setattr(fusing, "lift_together", unreadable)
        store = fuse(captures / "a", tmp_path / "store", [ColorTeacher(), Grey()])
    scene = store["a"]
    assert int(scene.num_views.max()) == 1
    assert len(scene.features("color")) == len(scene.features("grey")) == len(scene.seen_samples)


def test_other_code_of_a_plug_in_lifts_again(captures, tmp_path, capsys):
    plug_in, helper = tmp_path / "mine.py", tmp_path / "helps.py"
    plug_in.write_text(
        "class Mine:\n name, num_channels = 'mine', 3\n def __call__(self, image):\n"
        "  from helps import scale\n  return image[:, ::4, ::4] * scale\n"
    )
    expected = iter(["", "was there already", "mine has other weights, options or code", "mine has other weights"])
    for code, scale in (("", 1), ("", 1), ("#", 1), ("#", 2)):
        plug_in.write_text(plug_in.read_text() + code)
        helper.write_text(f"scale = {scale}")
        sys.modules.pop("helps", None)
        fuse(captures / "a", tmp_path / "store", [load_teacher(f"{plug_in}:Mine")])
        assert next(expected) in lifted(capsys)


def test_two_scenes_of_one_name_are_refused_by_both_their_places(synthetic_scene, tmp_path):
    cloud = (synthetic_scene.points.numpy(), 0, 255)
    for split in ("train", "val"):
        path = tmp_path / "scannet_3d" / split / "scene0000_00_vh_clean_2.pth"
        path.parent.mkdir(parents=True)
        torch.save(cloud, path)
    with pytest.raises(InputError, match=r"name 'scene0000_00': .*train/scene0000_00_\S* and .*val/scene0000_00_"):
        fuse(tmp_path / "scannet_3d", tmp_path / "store", [])
    assert not (tmp_path / "store").exists()


def test_another_capture_of_the_same_name_is_refused_while_the_first_is_there(captures, tmp_path, capsys):
    first, second = captures / "a", tmp_path / "other" / "a"
    fuse(first, tmp_path / "store")
    shutil.copytree(first, second)
    put_pose_off(second)
    with pytest.raises(InputError, match=r"holds a scene 'a' of .*data/a; that of .*other/a has the same name"):
        fuse(second, tmp_path / "store")
    assert Store.open(tmp_path / "store").names() == ("a",)
    shutil.copytree(first, tmp_path / "copy" / "a")
    fuse(tmp_path / "copy" / "a", tmp_path / "store")
    assert "1 scene was there already" in lifted(capsys)
    shutil.rmtree(tmp_path / "copy")
    fuse(second, tmp_path / "store")
    assert "lifted again: a (frame-000000.pose.txt has changed)" in lifted(capsys)


def test_made_rooms_are_known_by_their_seeds(tmp_path, capsys):
    for num_views in (1, 1, 2):
        pipeline.fuse(Rooms([0], num_views=num_views), [], tmp_path, cell=0.1)
    assert "1 scene was there already" in (said := lifted(capsys))
    assert "lifted again: train-bedroom-0 (num_views is 2, was 1)" in said


def test_scenes_of_a_dataset_that_tells_nothing_are_compared(synthetic_scene, tmp_path, capsys):
    for scene in (synthetic_scene, synthetic_scene, replace(synthetic_scene, points=synthetic_scene.points + 0.01)):
        pipeline.fuse(Alone(scene), [], tmp_path / "store", cell=EDGE)
    assert [line.split(" (")[0] for line in lifted(capsys).splitlines()] == [
        "1 scene was there already",
        "1 scene lifted again: synthetic",
    ]


def test_a_scene_that_cannot_be_lifted_again_does_not_count_any_more(captures, tmp_path, capsys):
    fuse(captures, tmp_path / "store")
    (captures / "b" / "camera-intrinsics.txt").write_text("none")
    store = fuse(captures, tmp_path / "store")
    assert store.names() == ("a", "c")
    assert "camera-intrinsics.txt" in store.missing()["b"]
    assert store.count_of_scenes() == "2 of 3 scenes; b left out"
    with pytest.raises(FileNotFoundError, match=r"'b' was left out: .*camera-intrinsics"):
        store["b"]


def test_a_fuse_that_stops_says_what_is_unfinished_and_goes_on(captures, tmp_path, monkeypatch, capsys):
    fuse(captures, tmp_path / "store")
    put_pose_off(captures / "b")
    put_pose_off(captures / "c")
    lift, done = fusing._lift_scene, []

    def stops(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(lift(*arguments))

    with monkeypatch.context() as only_now:
        only_now.setattr(fusing, "_lift_scene", stops)
        with pytest.raises(KeyboardInterrupt):
            fuse(captures, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.names() == ("a", "b")
    assert store.missing() == {"c": "unfinished"}
    assert store.count_of_scenes() == "2 of 3 scenes; c unfinished"
    lifted(capsys)
    assert content(fuse(captures, tmp_path / "store")) == content(fuse(captures, tmp_path / "fresh"))
    assert "2 scenes were there already\n1 scene lifted again: c " in lifted(capsys)


def read_features(path: Path) -> None:
    for name in (store := Store.open(path)).names():
        store[name].features("gray")


def edit(path: Path, change: Callable[[dict], object], *, sealed: bool = False) -> None:
    about = read_sealed(path, "") if sealed else json.loads(path.read_text())
    change(about)
    write_sealed(path, about) if sealed else path.write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda one, two: edit(one / "manifest.json", lambda about: about.update(split="val")),
            "SHA-256 that it states",
        ),
        (lambda one, two: (one / "manifest.json").write_text("{"), "not valid JSON"),
        (
            lambda one, two: shutil.copy(two / "manifest.json", one / "manifest.json"),
            "that of the scene 'b'|scenes.json",
        ),
        (lambda one, two: shutil.copy(two / "points.safetensors", one / "points.safetensors"), "points.* is damaged"),
        (lambda one, two: shutil.copy(one / "grey.features.safetensors", one / "gray.features.safetensors"), "gray"),
        (
            lambda one, two: edit(one.parents[1] / "store.json", lambda about: about.update(cell=0.02)),
            "store.json is dam",
        ),
        (
            lambda one, two: edit(one.parents[1] / "store.json", lambda about: about.update(cell=0.02), sealed=True),
            "cells",
        ),
        (
            lambda one, two: edit(one.parents[1] / "scenes.json", lambda about: about["scenes"].pop("b")),
            "scenes.json is",
        ),
        (
            lambda one, two: edit(one / "manifest.json", lambda about: about.update(split="val"), sealed=True),
            "not the one that .*scenes.json knows",
        ),
    ],
)
def test_what_does_not_belong_is_named_when_it_is_read(captures, tmp_path, damage, words):
    put_pose_off(captures / "b")
    store = fuse(captures, tmp_path / "store", [Grey("grey"), Grey("gray", 2.0)])
    fresh = content(store)
    damage(store.path / "scenes" / "a", store.path / "scenes" / "b")
    with pytest.raises(InputError, match=words):
        read_features(store.path)
    if words == "cells":  # of another store
        (store.path / "store.json").write_bytes(fresh["store.json"])
    again = fuse(captures, tmp_path / "store", [Grey("grey"), Grey("gray", 2.0)])
    if words in ("gray", "points.* is damaged"):  # of the size that they should have: they are to be deleted
        shutil.rmtree(store.path / "scenes" / "a")
        again = fuse(captures, tmp_path / "store", [Grey("grey"), Grey("gray", 2.0)])
    assert content(again) == fresh
