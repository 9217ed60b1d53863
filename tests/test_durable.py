"""Facts about files that survive: what a crash, a full disk, a link or another process does to them."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from conftest import Alone, ColorTeacher
from cuao3d.batches import STILL
from cuao3d.distill import DistillConfig, distill
from cuao3d.durable import LOCK, PREFIX, SUFFIX, is_stream, locked, make_folder, remove, replacing, sweep
from cuao3d.errors import DiskFullError, InputError
from cuao3d.files import write_json, write_tensors, write_text, write_whole
from cuao3d.imported import import_features
from cuao3d.pipeline import fuse
from cuao3d.readers import open_dataset
from cuao3d.run import CHECKPOINT
from cuao3d.supervise import SuperviseConfig, supervise
from make_fixture_openscene import write_processed

WRITERS = {
    "text": lambda path: write_text(path, "new"),
    "whole": lambda path: write_whole(path, lambda temporary: temporary.write_text("new")),
}


@pytest.fixture(params=sorted(WRITERS))
def write(request):
    """Each way to write the text `new`."""
    return WRITERS[request.param]


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the system, in order: the names of the files and folders that are synced or replaced."""
    done, sync, replace = [], os.fsync, os.replace

    def note_sync(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append(("sync", path.name))
        sync(descriptor)

    def note_replace(source, target):
        done.append(("replace", Path(source).name, Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    return done


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_synced_before_its_rename_and_its_folder_after_it(tmp_path, calls, write):
    write(tmp_path / "new" / "a.json")
    (_, _), (_, temporary), (*_, source, target), (_, folder) = calls
    assert calls[0] == ("sync", tmp_path.name), "the new folder's entry"
    assert temporary == source
    assert source.startswith(PREFIX)
    assert (target, folder) == ("a.json", "new")
    calls.clear()
    write_text(tmp_path / "new" / "cached", "", durable=False)
    assert [call[0] for call in calls] == ["replace"]


def test_every_file_of_a_store_and_of_a_run_is_synced_around_its_rename(
    tmp_path, synthetic_scene, synthetic_store, calls, monkeypatch
):
    write = os.write

    def note_write(descriptor, content):
        calls.append(("write", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", note_write)
    fuse(Alone(synthetic_scene), [ColorTeacher()], tmp_path / "new", cell=0.1)
    changes = {"num_steps": 2, "checkpoint_every": 1, "keep_every": 1, "augmentation": STILL, "batch_size": 1}
    config = DistillConfig(teachers=("color",), voxel_size=0.1, architecture="MinkUNet14Mini", **changes)
    distill(synthetic_store, config, tmp_path / "run")
    of_scene = ["points.safetensors", "color.features.safetensors", "photographs.safetensors", "lifting.json"]
    targets = []
    for index, (kind, source, *rest) in enumerate(calls):
        if kind != "replace":
            continue
        targets += rest
        of_source = [earlier for earlier, name in (call[:2] for call in calls[:index]) if name == source]
        assert of_source == ["write"] * (len(of_source) - 1) + ["sync"], f"{rest} is not synced after it was written"
        if rest[0] in (*of_scene, "sources.json"):  # the folder is synced once, before the manifest says they are there
            rest_of_scene = calls[index : calls.index(next(call for call in calls if call[-1] == "manifest.json"))]
            assert ("sync", synthetic_scene.name) in rest_of_scene, f"the folder of {rest} is not synced"
        else:
            assert calls[index + 1][0] == "sync", f"the folder of {rest} is not synced"
    assert calls.count(("sync", synthetic_scene.name)) == 2
    kept = ["checkpoint-000001.safetensors", CHECKPOINT, "checkpoint-000002.safetensors", CHECKPOINT]
    of_store = ["store.json", "scenes.json", *of_scene, "sources.json", "manifest.json", "scenes.json"]
    of_run = ["config.json", "metrics.jsonl", *kept, "student.safetensors", "run.json"]
    assert targets == [*of_store, *of_run]
    synced = [name for kind, name, *_ in calls if kind == "sync"]
    assert synced.count("metrics.jsonl") == 2, "its lines are on disk before the checkpoints of a step"


def test_folders_and_deletions_are_synced(tmp_path, calls):
    make_folder(tmp_path / "a" / "b")
    assert calls == [("sync", tmp_path.name), ("sync", "a")]
    calls.clear()
    (tmp_path / "a" / "file").touch()
    remove(tmp_path / "a" / "file")
    remove(tmp_path / "a" / "file")
    assert calls == [("sync", "a")]
    assert names(tmp_path / "a") == ["b"]


def test_temporary_names_are_random_and_exclusive(tmp_path, monkeypatch):
    seen = []
    for _ in range(2):
        with replacing(tmp_path / "a") as (_, temporary):
            seen.append(temporary.name)
            assert temporary.name.startswith(PREFIX)
    assert seen[0] != seen[1]
    victim = tmp_path / "victim"
    victim.write_text("kept")
    monkeypatch.setattr("cuao3d.durable.secrets.token_hex", lambda _: "guessed")
    (tmp_path / f"{PREFIX}guessed{SUFFIX}").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "a", "new")
    assert victim.read_text() == "kept"


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path):
    (tmp_path / "a").write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error") as raised:
        write_whole(tmp_path / "a", fail)
    assert raised.value.filename == str(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, r"no space left on the disk: .*/a cannot be written; .* Make room"),
        (errno.EDQUOT, r"quota is used up: .*/a cannot be written"),
        (errno.EROFS, r"read-only: .*/a cannot be written"),
    ],
)
def test_a_disk_that_takes_nothing_more_is_one_error(tmp_path, monkeypatch, number, words):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(DiskFullError, match=words):
        write_text(tmp_path / "a", "new")
    assert names(tmp_path) == []


def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_are_not(tmp_path):
    dead = tmp_path / f"{PREFIX}0123456789abcdef{SUFFIX}"
    dead.write_text("half a file")
    (tmp_path / "other.partial").touch()
    with replacing(tmp_path / "slow") as (_, living):
        write_text(tmp_path / "a", "new")
        assert names(tmp_path) == sorted([living.name, "a", "other.partial"])
    assert names(tmp_path) == ["a", "other.partial", "slow"]


def test_a_writer_that_was_swept_before_its_lock_takes_another_name(tmp_path, monkeypatch):
    created, open_ = [], os.open

    def open_and_lose(path, flags, mode=0o777):
        descriptor = open_(path, flags, mode)
        if SUFFIX in str(path) and not created:
            created.append(path)
            sweep(tmp_path)
        return descriptor

    monkeypatch.setattr(os, "open", open_and_lose)
    write_text(tmp_path / "a", "new")
    assert created
    assert names(tmp_path) == ["a"]


def test_a_link_is_followed(tmp_path, write):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "target").write_text("old")
    (tmp_path / "link").symlink_to("real/target")
    (tmp_path / "dangling").symlink_to("real/new")
    for link, target in (("link", "target"), ("dangling", "new")):
        write(tmp_path / link)
        assert (tmp_path / link).is_symlink()
        assert (tmp_path / "real" / target).read_text() == "new"
    assert names(tmp_path / "real") == ["new", "target"]


def test_devices_and_pipes_are_written_and_not_replaced(tmp_path, write):
    write(Path("/dev/null"))
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(DiskFullError):
        write(Path("/dev/full"))
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write(tmp_path / "pipe")
    assert os.read(reader, 100) == b"new"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert is_stream(Path("/dev/stdout"))
    assert not is_stream(Path("/dev/shm/a.json"))
    assert not is_stream(tmp_path)


def test_a_lock_names_its_holder_and_ends_with_its_process(tmp_path):
    code = f"""if True:
        import sys
        from pathlib import Path
        from cuao3d.durable import locked
        with locked(Path({str(tmp_path)!r})):
            print("locked", flush=True)
            sys.stdin.read()
    """
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "locked\n"
    with pytest.raises(InputError, match=rf"is being written by process {child.pid} on "), locked(tmp_path):
        pass
    child.kill()
    child.communicate()
    assert names(tmp_path) == [LOCK]
    with locked(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()} "), locked(tmp_path):
        pass
    assert names(tmp_path) == []


def test_a_lock_leaves_no_folder_in_which_nothing_was_written(tmp_path):
    with locked(tmp_path / "new" / "run"):
        assert names(tmp_path / "new" / "run") == [LOCK]
    assert names(tmp_path / "new") == []
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    assert names(tmp_path / "run") == ["file"]
    with locked(tmp_path / "run" / "file"):
        pass  # it is no folder: whoever writes there says so


def test_a_safetensors_file_has_the_bytes_of_its_library(tmp_path):
    tensors = {
        "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "a": torch.ones(3),
        "half/ü": torch.rand(5).half(),
        "brain": torch.rand(4).bfloat16(),
        "double": torch.rand(2, 2, dtype=torch.float64),
        "turned": torch.arange(6).reshape(2, 3).T.contiguous(),
        "small": torch.arange(3, dtype=torch.uint8),
        "short": torch.arange(3, dtype=torch.int16),
        "int": torch.arange(3, dtype=torch.int32),
        "byte": torch.arange(3, dtype=torch.int8),
        "flag": torch.tensor(True),
        "empty": torch.zeros(0, 3),
    }
    for metadata in (None, {"note": 'é "quoted"\n\x01'}):
        write_tensors(tmp_path / "a", tensors, metadata)
        assert (tmp_path / "a").read_bytes() == save(tensors, metadata)
    write_tensors(tmp_path / "turned", {"turned": torch.arange(6).reshape(2, 3).T})
    assert torch.equal(load_file(tmp_path / "turned")["turned"], tensors["turned"])
    write_tensors(tmp_path / "none", {})
    assert (tmp_path / "none").read_bytes() == save({})


def test_numbers_that_json_does_not_know_are_null(tmp_path):
    content = {"scores": [1.5, float("nan"), (float("inf"), -float("inf"))], "count": 3, "name": "NaN"}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "scores": [1.5, None, [None, None]],
        "count": 3,
        "name": "NaN",
    }


def test_whatever_writes_a_store_or_a_run_locks_it(tmp_path, synthetic_scene, synthetic_store):
    write_processed([replace(synthetic_scene, name="scene0000_00")], tmp_path)
    points = len(synthetic_scene.points)
    (tmp_path / "lseg").mkdir()
    content = {"feat": torch.ones(points, 3).half(), "mask_full": torch.ones(points, dtype=torch.bool)}
    torch.save(content, tmp_path / "lseg" / "scene0000_00_0.pt")
    bound = SuperviseConfig(voxel_size=0.1, architecture="MinkUNet14Mini", num_steps=0, augmentation=STILL)
    student = DistillConfig(
        teachers=("color",), voxel_size=0.1, architecture="MinkUNet14Mini", num_steps=0, augmentation=STILL
    )
    out = tmp_path / "out"
    for work in (
        lambda: fuse(Alone(synthetic_scene), [], out, cell=0.1),
        lambda: import_features({"lseg": tmp_path / "lseg"}, open_dataset(tmp_path / "scannet_3d"), out),
        lambda: distill(synthetic_store, student, out),
        lambda: supervise(synthetic_store, bound, out),
    ):
        with locked(out), pytest.raises(InputError, match=f"is being written by process {os.getpid()} on "):
            work()
        assert not out.exists()
        work()
        shutil.rmtree(out)


def test_the_lock_of_a_scene_whose_writer_died_after_its_manifest_is_removed(tmp_path, synthetic_scene):
    fuse(Alone(synthetic_scene), [ColorTeacher()], tmp_path / "store", cell=0.1)
    scene = tmp_path / "store" / "scenes" / synthetic_scene.name
    left = scene / LOCK
    left.write_text("process 1 on a machine that is off")
    fuse(Alone(synthetic_scene), [ColorTeacher()], tmp_path / "store", cell=0.1)
    assert not left.exists()
    with locked(scene):  # a living writer, as of another shard, keeps it
        fuse(Alone(synthetic_scene), [ColorTeacher()], tmp_path / "store", cell=0.1)
        assert left.exists()
