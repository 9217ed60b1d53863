"""Training without a store: the student is the one of a store, and few features are kept at a time."""

import json
import time
from contextlib import suppress
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from conftest import ColorTeacher
from cuao3d import balance
from cuao3d.augment import Augmentation
from cuao3d.cli import main
from cuao3d.distill import DistillConfig, OnDemand, _take_features, distill, is_finished
from cuao3d.errors import InputError
from cuao3d.pipeline import fuse
from cuao3d.pipeline.on_demand import lifted_on_demand
from cuao3d.store import Store
from cuao3d.student import ARCHITECTURES, Architecture
from test_shards import Gray, Rooms

CONFIG = DistillConfig(
    teachers=("color", "gray"),
    normalizers=("standardize", "none"),
    voxel_size=0.1,
    architecture="tiny",
    num_steps=4,
    batch_size=2,
    num_held_out=1,
    optimizer="sgd",
    augmentation=Augmentation(rotation=10.0),
    checkpoint_every=2,
)
ONE_SCENE = 6e-6
"""Gigabytes for the features of one of the rooms and not of two, and twice of two and not of three: the first four have
3248, 4560, 4560 and 4384 bytes."""


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "tiny", Architecture((4,) * 8, (1,) * 8, num_stem=4))


def teachers():
    return [ColorTeacher(), Gray()]


def lifted(rooms, folder, cache_gb):
    return lifted_on_demand(rooms, teachers(), folder, cache_gb=cache_gb, cell=0.1)


def held(store):
    """Bytes of all features that are on disk."""
    return sum(path.stat().st_size for path in store.path.glob("scenes/*/*.features.safetensors"))


def without_times(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("cache_gb", [ONE_SCENE, 1.0])
def test_the_student_is_that_of_a_store_whatever_room_there_is(tmp_path, cache_gb):
    distill(fuse(Rooms(4), teachers(), tmp_path / "store", cell=0.1), CONFIG, tmp_path / "one")
    with lifted(Rooms(4), tmp_path / "cache", cache_gb) as store:
        distill(store, CONFIG, tmp_path / "two")
        num_lifted = store.num_lifted
    one, two = (load_file(tmp_path / run / "student.safetensors") for run in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert without_times(tmp_path / "one") == without_times(tmp_path / "two")
    assert (num_lifted == 4) == (cache_gb == 1.0)
    assert not (tmp_path / "cache").exists()
    configs = [json.loads((tmp_path / run / "config.json").read_text()) for run in ("one", "two")]
    assert configs[0]["scenes_sha256"] == configs[1]["scenes_sha256"]


def test_no_more_features_are_kept_than_there_is_room_for(tmp_path):
    with lifted(Rooms(4), tmp_path / "cache", ONE_SCENE) as store:
        assert isinstance(store, OnDemand)
        assert store.num_lifted == 4
        scenes = {name: store.take(store[name], ("color",)) for name in store.names()}
        for name in ("room-0", "room-2", "room-0"):
            assert scenes[name].targets[0].shape == (len(scenes[name].rows), 3)
            assert 0 < held(store) <= ONE_SCENE * 1e9
        assert store.num_lifted == 7


def test_features_stay_readable_after_they_were_dropped(tmp_path):
    with lifted(Rooms(2), tmp_path / "cache", ONE_SCENE) as store:
        first = store.take(store["room-0"], ("color",)).targets[0]
        before = first.clone()
        assert len(store.take(store["room-1"], ("color",)).targets) == 1
        assert not list(store.path.glob("scenes/room-0/*.features.safetensors"))
        assert torch.equal(first, before)


def until(is_so, seconds=20.0):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_scenes_of_the_next_turns_are_lifted_ahead_and_what_is_needed_last_is_dropped(tmp_path):
    names = [f"room-{index}" for index in range(4)]
    there = lambda: {path.parent.name for path in store.path.glob("scenes/*/color.features.safetensors")}  # noqa: E731
    with lifted(Rooms(4), tmp_path / "cache", 2 * ONE_SCENE) as store:
        scenes = {name: store.take(store[name], ("color",)) for name in names}
        store.follow(["room-0", "room-1", "room-2", "room-0"])
        until(lambda: there() == {"room-0", "room-1"})
        assert len(scenes["room-0"].targets) == 1
        until(lambda: there() == {"room-1", "room-2"})
        assert len(scenes["room-1"].targets) == 1
        until(lambda: there() == {"room-2", "room-0"})


def test_a_training_that_goes_on_lifts_ahead_from_where_it_does(tmp_path):
    store, turns = fuse(Rooms(4), teachers(), tmp_path / "store", cell=0.1), []
    store.take = lambda scene, names: _take_features(scene, names)[0]
    store.follow = turns.append

    def stop(done, *_):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(store, CONFIG, tmp_path / "run", on_step=stop)
    distill(store, CONFIG, tmp_path / "run")
    assert len(turns[0]) == CONFIG.num_steps * CONFIG.batch_size
    assert turns[1] == turns[0][2 * CONFIG.batch_size :]


def test_balancing_reads_each_scene_once_and_holds_no_features(tmp_path, monkeypatch):
    monkeypatch.setattr(balance, "WHOLE_VALUES", 400)
    with lifted(Rooms(4), tmp_path / "cache", ONE_SCENE) as store:
        store._read = Mock(wraps=store._read)
        scenes = [store.take(store[name], ("color",)) for name in store.names()]
        scenes, _ = balance.balanced(scenes, balance.Words(0, torch.eye(3), ("red", "green", "blue")), 1.0)
        assert store._read.call_count == 4
        assert len(scenes[0].chances()) == len(scenes[0].rows)
        assert scenes[0].chances() is scenes[0].chances()
        assert store._read.call_count == 5


class Changing(Rooms):
    """Rooms of which one looks otherwise when it is read again."""

    def __getitem__(self, index):
        scene, times = super().__getitem__(index), self.read.count(index)
        return replace(scene, points=scene.points * times) if index == 0 else scene


def test_a_scene_that_changed_meanwhile_ends_the_training(tmp_path):
    with lifted(Changing(2), tmp_path / "cache", ONE_SCENE) as store:
        scene = store.take(store["room-0"], ("color",))
        with pytest.raises(InputError, match="'room-0' has changed since it was lifted first"):
            assert scene.targets


def test_broken_scenes_are_left_out_and_said(tmp_path, capsys):
    with lifted(Rooms(3, (1,)), tmp_path / "cache", 1.0) as store:
        assert store.names() == ("room-0", "room-2")
        assert store.missing() == {"room-1": "room 1 is broken"}
    assert "left out room-1: room 1 is broken" in capsys.readouterr().err
    with (
        pytest.raises(InputError, match=r"No scene could be lifted\. room 0 is broken"),
        lifted(Rooms(1, (0,)), tmp_path / "none", 1.0),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Give either the folder of a store, or --lift DATA"),
        (["STORE", "--lift", "DATA"], "Give either the folder of a store, or --lift DATA"),
        (["--lift", "DATA"], "--lift needs the teachers: --teachers"),
    ],
)
def test_a_store_or_data_with_teachers_is_given_and_not_both(tmp_path, capsys, options, said):
    assert main(["distill", *options, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_makes_the_student_of_a_store(tmp_path, room_folder, monkeypatch):
    how = ["--steps", "1", "--voxel-size", "0.2", "--config.batch-size", "1", "--teachers", "mini-lseg"]
    assert main(["fuse", str(room_folder), "--out", str(tmp_path / "store"), "--teachers", "mini-lseg"]) == 0
    assert main(["distill", str(tmp_path / "store"), "--out", str(tmp_path / "one"), *how]) == 0
    again = ["distill", "--lift", str(room_folder), "--out", str(tmp_path / "two"), *how]
    assert main(again) == 0
    monkeypatch.setattr("cuao3d.pipeline.on_demand.lifted_on_demand", Mock(side_effect=AssertionError))
    assert main(again) == 0
    one, two = (load_file(tmp_path / run / "student.safetensors") for run in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "store", "two"]


def test_a_finished_run_is_known_without_its_scenes(tmp_path):
    store, run = fuse(Rooms(3), teachers(), tmp_path / "store", cell=0.1), tmp_path / "run"
    nowhere = Store(tmp_path / "none", 0.1, store.teachers, {})
    assert not is_finished(run, CONFIG, nowhere, store.names())
    distill(store, CONFIG, run)
    assert is_finished(run, CONFIG, nowhere, store.names())
    assert not is_finished(run, replace(CONFIG, seed=1), nowhere, store.names())
    assert not is_finished(run, CONFIG, nowhere, store.names()[:1])
    (run / "student.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="is not the student of this run"):
        is_finished(run, CONFIG, nowhere, store.names())


def test_a_training_that_was_interrupted_finds_the_clouds_again(tmp_path):
    with suppress(KeyboardInterrupt), lifted(Rooms(3), tmp_path / "cache", ONE_SCENE) as store:
        assert store.num_lifted == 3
        raise KeyboardInterrupt
    rooms = Rooms(3)
    with lifted(rooms, tmp_path / "cache", ONE_SCENE) as store:
        assert (store.num_lifted, rooms.read, len(store.names())) == (0, [0, 1, 2], 3)
        assert store.missing() == {}
        scene = store.take(store["room-0"], ("color",))
        assert len(scene.targets[0]) == len(scene.rows)
        assert rooms.read == [0, 1, 2, 0]


class Moved(Rooms):
    """Rooms of which one was captured anew."""

    def __getitem__(self, index):
        scene = super().__getitem__(index)
        return replace(scene, points=scene.points * 0.9) if index == 1 else scene


def test_a_scene_that_changed_before_a_training_goes_on_is_lifted_again(tmp_path, capsys):
    with suppress(KeyboardInterrupt), lifted(Rooms(3), tmp_path / "cache", ONE_SCENE):
        raise KeyboardInterrupt
    with lifted(Moved(3), tmp_path / "cache", ONE_SCENE) as store:
        assert store.num_lifted == 1
        assert torch.equal(store["room-1"].points, Moved(3)[1].points)


def test_a_folder_that_was_not_made_here_is_left_alone(tmp_path):
    store = fuse(Rooms(2), teachers(), tmp_path / "store", cell=0.1)
    with (
        pytest.raises(InputError, match=r"store is there already, and no training made it"),
        lifted(Rooms(2), store.path, ONE_SCENE),
    ):
        pass
    assert all(path.is_file() for path in (store["room-0"].folder / file for file in store["room-0"].files))
