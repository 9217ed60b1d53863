"""What lifting reads and holds: each image once for all teachers, no scene longer than its turn."""

import gc
import shutil
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL.ImageFile import ImageFile

from conftest import ColorTeacher
from cuao3d.cli import main
from cuao3d.errors import InputError
from cuao3d.pipeline import fuse
from cuao3d.readers import cloud, open_dataset
from cuao3d.scene import Problem
from cuao3d.store import Store


class Named(ColorTeacher):
    """The colour teacher under another name."""

    def __init__(self, name):
        self.name = name


class Scenes:
    """Scenes as a dataset."""

    def __init__(self, *scenes):
        self.scenes = scenes
        self.names = tuple(scene.name for scene in scenes)

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        return self.scenes[index]


@pytest.fixture
def decoded(monkeypatch):
    """How often PIL decoded the pixels of each colour image, by name of the file."""
    counts, prepare = Counter(), ImageFile.load_prepare

    def count(image):
        if ".color." in (name := Path(image.filename).name):
            counts[name] += 1
        prepare(image)

    monkeypatch.setattr(ImageFile, "load_prepare", count)
    return counts


def teachers(count):
    return [Named(f"color{index}") for index in range(count)]


@pytest.mark.parametrize("num_teachers", [0, 1, 3])
def test_an_image_is_decoded_once_for_all_teachers(room_folder, tmp_path, decoded, num_teachers):
    fuse(open_dataset(room_folder), teachers(num_teachers), tmp_path / "store", cell=0.1)
    assert decoded == ({f"frame-{index:06d}.color.png": 1 for index in range(6)} if num_teachers else {})


def without_cloud(folder, out):
    shutil.copytree(folder, out)
    (out / "points.ply").unlink()
    (out / "scene.json").unlink()
    return out


@pytest.mark.parametrize("num_teachers", [0, 1, 3])
def test_teachers_are_shown_what_was_decoded_for_the_cloud(room_folder, tmp_path, decoded, num_teachers):
    capture = without_cloud(room_folder, tmp_path / "room")
    fuse(open_dataset(capture), teachers(num_teachers), tmp_path / "store", cell=0.1)
    assert set(decoded.values()) == {1}


def test_images_of_a_large_capture_are_decoded_anew(room_folder, tmp_path, decoded, monkeypatch):
    monkeypatch.setattr(cloud, "KEPT", 2 * 3 * 4 * 320 * 240)
    capture = without_cloud(room_folder, tmp_path / "room")
    scene = open_dataset(capture)[0]
    fuse(Scenes(scene), teachers(1), tmp_path / "store", cell=0.1)
    assert sorted(decoded.values()) == [1, 1, 2, 2, 2, 2]
    assert torch.equal(scene.frames[0].read_image(), open_dataset(room_folder)[0].frames[0].read_image())


@pytest.mark.data
@pytest.mark.parametrize("num_teachers", [1, 3])
def test_the_lounge_is_decoded_once_for_all_teachers(lounge_folder, tmp_path, decoded, num_teachers):
    fuse(open_dataset(lounge_folder), teachers(num_teachers), tmp_path / "store", cell=0.1)
    assert len(decoded) == 5
    assert set(decoded.values()) == {1}


def unreadable(frame):
    """A frame whose colours cannot be read."""

    def read():
        raise InputError("frame-7.color.png is damaged")

    return replace(frame, name="7", read_image=read)


def test_a_broken_frame_costs_neither_the_scene_nor_one_teacher_alone_its_view(synthetic_scene, tmp_path):
    first, second = synthetic_scene.frames
    broken = replace(synthetic_scene, frames=(unreadable(first), second))
    alone = replace(synthetic_scene, frames=(second,))
    stores = [
        fuse(Scenes(scene), teachers(2), tmp_path / name, cell=0.05)
        for name, scene in (("broken", broken), ("alone", alone))
    ]
    one, other = (store["synthetic"] for store in stores)
    assert one.problems == (Problem("frame", "synthetic, frame 7 left out: frame-7.color.png is damaged"),)
    assert torch.equal(one.num_views, other.num_views)
    for teacher in ("color0", "color1"):
        assert torch.equal(one.features(teacher), other.features(teacher))
        assert stores[0].lifting("synthetic")[teacher].num_views == 1


class Failing(Named):
    """The colour teacher, but for one image."""

    def __init__(self, name, at, with_):
        super().__init__(name)
        self.at, self.with_, self.num_shown = at, with_, 0

    def __call__(self, image):
        self.num_shown += 1
        return self.with_(super().__call__(image)) if self.num_shown == self.at else super().__call__(image)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_view_of_which_one_teacher_gives_no_finite_numbers_is_left_out_for_all(synthetic_scene, tmp_path, value):
    first, second = synthetic_scene.frames
    bad = Failing("bad", 1, lambda maps: maps.index_fill(1, torch.tensor([0]), value))
    store = fuse(Scenes(synthetic_scene), [Named("good"), bad], tmp_path / "bad", cell=0.05)
    alone = fuse(Scenes(replace(synthetic_scene, frames=(second,))), [Named("good")], tmp_path / "alone", cell=0.05)
    one, other = store["synthetic"], alone["synthetic"]
    (problem,) = one.problems
    assert str(problem).startswith(f"synthetic, frame {first.name} left out: Teacher 'bad' gave 48 of 576 values that")
    assert torch.equal(one.num_views, other.num_views)
    for name in ("good", "bad"):
        assert torch.equal(one.features(name), other.features("good"))


def test_a_scene_of_which_no_view_is_finite_is_left_out(synthetic_scene, tmp_path, capsys):
    bad = Failing("bad", 1, lambda maps: maps * float("nan"))
    alone = replace(synthetic_scene, name="alone", frames=synthetic_scene.frames[:1])
    store = fuse(Scenes(alone, synthetic_scene), [bad], tmp_path / "store", cell=0.05)
    assert store.names() == ("synthetic",)
    assert "no view is left. alone, frame x=-0.25 left out: Teacher 'bad' gave 576 of 576" in store.missing()["alone"]


def raises(maps):
    raise RuntimeError("no more")


@pytest.mark.parametrize(
    ("fails", "reason"),
    [(raises, "Teacher 'bad' failed"), (lambda maps: maps[:2], "'bad' promises 3 channels but gave 2")],
)
def test_a_teacher_that_fails_in_its_fifth_image_costs_that_scene_alone(synthetic_scene, tmp_path, fails, reason):
    first, second = synthetic_scene.frames
    scenes = [replace(synthetic_scene, name=name, frames=(first, second, first)) for name in "abc"]
    store = fuse(Scenes(*scenes), [Named("good"), Failing("bad", 5, fails)], tmp_path / "store", cell=0.05)
    assert store.names() == ("a", "c")
    assert reason in store.missing()["b"]


def test_a_teacher_that_keeps_no_promise_ends_the_command(synthetic_scene, tmp_path):
    scenes = Scenes(*(replace(synthetic_scene, name=name) for name in "ab"))
    with pytest.raises(InputError, match="'bad' promises 3 channels but gave 2"):
        fuse(scenes, [Failing("bad", 1, lambda maps: maps[:2])], tmp_path / "store", cell=0.05)


@pytest.fixture
def collect():
    """Frees what nothing refers to; what was there before the test is passed over, for it takes long."""
    gc.collect()
    gc.freeze()
    yield gc.collect
    gc.unfreeze()


def test_no_scene_is_held_after_its_turn(synthetic_scene, tmp_path, collect):
    held = []

    class Watched(Scenes):
        def __getitem__(self, index):
            collect()
            assert [scene for scene in held if scene() is not None] == []
            scene = replace(synthetic_scene, name=self.names[index], points=synthetic_scene.points.clone())
            held.extend((weakref.ref(scene), weakref.ref(scene.points)))
            return scene

    scenes = Watched(*(replace(synthetic_scene, name=name) for name in "abc"))
    fuse(scenes, teachers(1), tmp_path / "store", cell=0.05)
    collect()
    assert len(held) == 6
    assert [scene for scene in held if scene() is not None] == []


def test_the_summary_of_a_scene_is_what_its_files_hold_and_reads_none_of_them(synthetic_store, monkeypatch):
    scene = synthetic_store["synthetic"]
    monkeypatch.setattr("cuao3d.store.stored.safe_open", None)
    summary = synthetic_store.summary("synthetic")
    assert (summary.num_points, summary.num_samples) == (len(scene.points), len(scene.num_views))
    assert (summary.num_seen, summary.problems) == (len(scene.seen_samples), scene.problems)
    (scene.folder / "manifest.json").write_text('{"num_points": 3}')
    with pytest.raises(InputError, match=r"manifest\.json lacks .*num_samples"):
        synthetic_store.summary("synthetic")


def test_the_command_sums_up_without_opening_a_scene(room_folder, tmp_path, monkeypatch, capsys):
    def opened(store, name):
        raise AssertionError(f"{name} was opened")

    monkeypatch.setattr(Store, "__getitem__", opened)
    assert (
        main(["fuse", str(room_folder), "--teachers", "none", "--cell", "0.1", "--out", str(tmp_path / "store")]) == 0
    )
    summary = Store.open(tmp_path / "store").summary("room")
    assert f"1 scene, {summary.num_seen} of {summary.num_samples} samples seen" in capsys.readouterr().err
