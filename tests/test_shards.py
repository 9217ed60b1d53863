"""Several processes fill one store: every scene is lifted once, and the store is that of a single process."""

import multiprocessing
import shutil
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import ColorTeacher, make_synthetic_scene
from cuao3d.cli import main
from cuao3d.durable import LOCK, is_own, locked
from cuao3d.errors import InputError
from cuao3d.pipeline import fuse, shards
from cuao3d.pipeline.shards import OtherTeachersError, Shard
from cuao3d.store import Store

UNTIMED = ("lifting.json",)
"""Files that hold how long something took."""


class Gray(ColorTeacher):
    """The colour teacher under another name."""

    name = "gray"


class Rooms:
    """Copies of the synthetic scene, some of them broken; `read` says which were read."""

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.names = tuple(f"room-{index}" for index in range(count))
        self.broken, self.read = broken, []

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):
        self.read.append(index)
        if index in self.broken:
            raise InputError(f"room {index} is broken")
        scene = make_synthetic_scene()
        return replace(scene, name=self.names[index], points=scene.points + 0.01 * index)


def content_of(store: Path) -> dict[str, bytes]:
    """All files of a store but those that hold times, and locks."""
    files = [path for path in store.rglob("*") if path.is_file() and path.name not in UNTIMED]
    return {str(path.relative_to(store)): path.read_bytes() for path in files if not is_own(path.name)}


def fill(out, *, count=5, broken=(), shard=None, teacher=ColorTeacher, ray=None):
    rooms = Rooms(count, broken)
    fuse(rooms, [teacher()], out, cell=0.1, shard=shard, ray=ray)
    return rooms.read


@given(st.integers(1, 20), st.integers(0, 50))
def test_shares_are_all_of_a_dataset_and_have_no_scene_in_common(count, num_scenes):
    shares = [Shard(number, count).of(num_scenes) for number in range(1, count + 1)]
    assert sorted(index for share in shares for index in share) == list(range(num_scenes))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "1", "a/b", "1/4/2", "-1/4", ""])
def test_a_share_that_is_none_is_refused(text):
    with pytest.raises(InputError, match=r"expected i/n, the i-th of n shares"):
        Shard.read(text)
    assert Shard.read("3/16") == Shard(3, 16)


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2, 3)])
def test_shares_one_after_another_make_the_store_of_one_process(tmp_path, order):
    fill(tmp_path / "serial", broken=(3,))
    for number in order:
        fill(tmp_path / "shared", broken=(3,), shard=Shard(number, 3))
    assert content_of(tmp_path / "shared") == content_of(tmp_path / "serial")
    assert Store.open(tmp_path / "shared").missing() == {"room-3": "room 3 is broken"}
    assert not list((tmp_path / "shared").glob(f"**/{LOCK}*"))


def test_scenes_of_other_shares_are_named_from_the_first_share_on(tmp_path):
    read = fill(tmp_path, shard=Shard(2, 3))
    assert read == [1, 4]
    store = Store.open(tmp_path)
    assert store.names() == ("room-1", "room-4")
    assert store.missing() == dict.fromkeys(("room-0", "room-2", "room-3"), "unfinished")


def test_a_run_without_shares_completes_the_store_and_a_second_finds_nothing_to_do(tmp_path, capsys):
    fill(tmp_path, shard=Shard(1, 2))
    capsys.readouterr()
    fill(tmp_path)
    assert "3 scenes were there already" in capsys.readouterr().err
    before = content_of(tmp_path)
    fill(tmp_path)
    assert "5 scenes were there already" in capsys.readouterr().err
    assert content_of(tmp_path) == before


def test_a_store_whose_teachers_change_counts_no_scene_of_the_old_ones(tmp_path):
    fill(tmp_path / "store", teacher=ColorTeacher)
    fill(tmp_path / "store", teacher=Gray, shard=Shard(1, 2))
    assert Store.open(tmp_path / "store").names() == ("room-0", "room-2", "room-4")
    fill(tmp_path / "store", teacher=Gray, shard=Shard(2, 2))
    fill(tmp_path / "serial", teacher=Gray)
    assert content_of(tmp_path / "store") == content_of(tmp_path / "serial")


class Switching(Rooms):
    """Rooms during whose first reading another process begins to fill the store with another teacher."""

    def __init__(self, out: Path) -> None:
        super().__init__(2)
        self.out = out

    def __getitem__(self, index):
        if not self.read:
            fill(self.out, count=2, teacher=Gray, shard=Shard(2, 2))
        return super().__getitem__(index)


def test_two_that_fill_one_store_with_other_teachers_do_not_mix(tmp_path):
    with pytest.raises(OtherTeachersError, match=r"store\.json has changed meanwhile: another command fills"):
        fuse(Switching(tmp_path), [ColorTeacher()], tmp_path, cell=0.1, shard=Shard(1, 1))


class SwitchingLate(Switching):
    """Rooms whose only one that is read is read before the other process begins; it has none to lift after."""

    def __getitem__(self, index):
        scene = Rooms.__getitem__(self, index)
        frames = [replace(frame, read_image=self.late(frame.read_image)) for frame in scene.frames]
        return replace(scene, frames=tuple(frames))

    def late(self, read):
        def read_image():
            if len(self.read) == 1:
                self.read.append(None)
                fill(self.out, count=2, teacher=Gray, shard=Shard(2, 2))
            return read()

        return read_image


def test_a_share_that_ends_last_does_not_take_the_store_back(tmp_path):
    with pytest.raises(OtherTeachersError, match=r"store\.json has changed meanwhile"):
        fuse(SwitchingLate(tmp_path), [ColorTeacher()], tmp_path, cell=0.1, shard=Shard(1, 2))
    assert list(Store.open(tmp_path).teachers) == ["gray"]


class Counting(ColorTeacher):
    """The colour teacher; it counts the views that it is shown."""

    def __init__(self) -> None:
        self.num_views = 0

    def __call__(self, image):
        self.num_views += 1
        return super().__call__(image)


class Waiting(Rooms):
    """Rooms of which the first waits until a file is there."""

    def __init__(self, count: int, go: Path) -> None:
        super().__init__(count)
        self.go = go

    def __getitem__(self, index):
        (self.go.parent / f"reading-{index}-{threading.get_ident()}").touch()
        while not self.go.exists():
            time.sleep(0.01)
        return super().__getitem__(index)


def test_a_scene_that_another_process_lifts_is_waited_for_and_not_lifted_twice(tmp_path):
    go, out, teacher = tmp_path / "go", tmp_path / "store", Counting()
    threads = []
    for _ in range(2):
        work = {"target": fuse, "args": (Waiting(2, go), [teacher], out)}
        threads.append(threading.Thread(**work, kwargs={"cell": 0.1, "shard": Shard(1, 2)}))
        threads[-1].start()
        time.sleep(0.2)
    assert len(list(tmp_path.glob("reading-*"))) == 1
    with pytest.raises(InputError, match=r"is being written by process .* Wait until it ends"):
        fill(out, count=2)
    go.touch()
    for thread in threads:
        thread.join(timeout=30)
    assert teacher.num_views == len(make_synthetic_scene().frames)
    assert Store.open(out).names() == ("room-0",)


def test_who_waits_for_the_list_of_scenes_says_for_whom_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shards, "PATIENCE", 0.0)

    def hold(_folder, *, name, on_wait):
        for _ in range(3):
            on_wait("process 7")
        return nullcontext()

    monkeypatch.setattr(shards, "locked", hold)
    with shards.roll_locked(tmp_path):
        pass
    assert capsys.readouterr().err.count("waits for process 7") == 1


def share_in_process(out, number):
    torch.set_num_threads(1)
    fill(out, count=6, shard=Shard(number, 3))


@pytest.mark.slow
def test_shares_at_the_same_time_make_the_store_of_one_process(tmp_path):
    fill(tmp_path / "serial", count=6)
    spawn = multiprocessing.get_context("spawn")
    numbers = [1, 2, 3, 1, 2, 3]  # each of them twice
    processes = [spawn.Process(target=share_in_process, args=(tmp_path / "shared", number)) for number in numbers]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0] * 6
    assert content_of(tmp_path / "shared") == content_of(tmp_path / "serial")


def test_locks_that_are_shared_keep_out_those_that_are_not(tmp_path):
    with locked(tmp_path, shared=True), locked(tmp_path, shared=True):
        with pytest.raises(InputError, match="is being written by process"), locked(tmp_path):
            pass
        with locked(tmp_path, name=f"{LOCK}-other"):
            pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path), pytest.raises(InputError, match="is being written"), locked(tmp_path, shared=True):
        pass


def test_a_lock_that_is_waited_for_names_its_holder(tmp_path):
    told, holds = [], threading.Event()

    def hold():
        with locked(tmp_path):
            holds.set()
            time.sleep(0.15)

    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait(10)
    with locked(tmp_path, on_wait=told.append):
        assert told
        assert told[0].startswith("process ")
    thread.join()


def test_the_exit_code_is_about_the_share(tmp_path, room_folder, capsys):
    for name in ("a", "b"):
        shutil.copytree(room_folder, tmp_path / "data" / name)
    (tmp_path / "data" / "b" / "points.ply").write_text("no cloud")
    fuse = ["fuse", str(tmp_path / "data"), "--out", str(tmp_path / "store"), "--teachers", "none", "--cell", "0.1"]
    assert [main([*fuse, "--shard", share]) for share in ("1/3", "2/3", "3/3")] == [0, 3, 0]
    said = capsys.readouterr().err
    assert "share 1/3: 1 of 2 scenes, 0 left out" in said
    assert "share 2/3: 1 of 2 scenes, 1 left out" in said
    assert "b: " in said
