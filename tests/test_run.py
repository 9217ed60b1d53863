"""The folder of a run: what it is compared with, what it goes on from, what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cuao3d.durable import LOCK, PREFIX, SUFFIX
from cuao3d.run import CHECKPOINT, begin_run
from cuao3d.training import TrainConfig

CONFIG = TrainConfig(voxel_size=0.1)


@pytest.fixture
def begin(tmp_path, synthetic_store):
    """Begins a run of the synthetic scene in a folder."""

    def begin(folder: str, resume: str | Path = "auto", **changes) -> bool:
        scenes = [synthetic_store["synthetic"]]
        return begin_run(tmp_path / folder, replace(CONFIG, **changes), synthetic_store, scenes, resume=resume)

    return begin


def leave(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("{}" if name == "run.json" else name)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_holds_one_run(begin, tmp_path):
    assert not begin("run")
    assert not begin("run")
    leave(tmp_path / "run", "run.json")
    assert begin("run")
    for resume in ("auto", "never"):
        with pytest.raises(ValueError, match=r"another configuration.*Choose another folder"):
            begin("run", resume, seed=3)
    with pytest.raises(ValueError, match=r"finer than the 0\.05 m cells"):
        begin("new", voxel_size=0.04)
    with pytest.raises(ValueError, match=r"3 scenes of a step .* by 1 processes in 2 parts\. Set .* multiple of 2"):
        begin("new", batch_size=3, num_parts=2)
    assert not (tmp_path / "new").exists()


def test_a_run_says_what_it_was_made_of(begin, tmp_path, synthetic_store):
    begin("run")
    said = json.loads((tmp_path / "run" / "config.json").read_text())
    assert said["config"]["voxel_size"] == 0.1
    assert said["scenes_sha256"] == {"synthetic": synthetic_store["synthetic"].sha256}
    assert len(said["code_sha256"]) == 64
    begin("again")
    assert (tmp_path / "run" / "config.json").read_bytes() == (tmp_path / "again" / "config.json").read_bytes()


def test_other_code_of_the_same_version_may_go_on(begin, tmp_path, monkeypatch):
    begin("run")
    leave(tmp_path / "run", CHECKPOINT)
    before = (tmp_path / "run" / "config.json").read_bytes()
    monkeypatch.setattr("cuao3d.run._code_sha256", lambda: "other")
    assert not begin("run")
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_what_was_interrupted_at_its_first_or_last_file_goes_on(begin, tmp_path):
    (tmp_path / "run").mkdir()
    leave(tmp_path / "run", LOCK, f"{PREFIX}0{SUFFIX}", "config.json")
    assert not begin("run")
    leave(tmp_path / "run", CHECKPOINT)
    (tmp_path / "run" / "run.json").write_text('{"teach')
    assert not begin("run")
    assert (tmp_path / "run" / CHECKPOINT).exists()
    leave(tmp_path / "run", "run.json")
    assert begin("run")
    assert not (tmp_path / "run" / CHECKPOINT).exists()


def test_never_begins_again_even_what_is_finished(begin, tmp_path):
    begin("run")
    own = (CHECKPOINT, "checkpoint-000400.safetensors", "best.safetensors", "metrics.jsonl")
    leave(tmp_path / "run", *own, "student.safetensors", "run.json", "notes.txt")
    (tmp_path / "run" / "tensorboard").mkdir()
    assert begin("run")
    assert not begin("run", "never")
    assert names(tmp_path / "run") == ["config.json", "notes.txt"]


@pytest.mark.parametrize("file", [CHECKPOINT, "checkpoint-000400.safetensors", ""])
def test_a_named_checkpoint_is_taken_with_its_metrics(begin, tmp_path, file):
    begin("old")
    leave(tmp_path / "old", CHECKPOINT, "checkpoint-000400.safetensors", "metrics.jsonl", "run.json")
    assert not begin("new", tmp_path / "old" / file)
    assert (tmp_path / "new" / CHECKPOINT).read_text() == (file or CHECKPOINT)
    assert names(tmp_path / "new") == [CHECKPOINT, "config.json", "metrics.jsonl"]
    assert len(names(tmp_path / "old")) == 5


def test_a_finished_run_is_gone_on_with_from_a_checkpoint_that_it_kept(begin, tmp_path):
    begin("run")
    leave(tmp_path / "run", "checkpoint-000400.safetensors", "metrics.jsonl", "student.safetensors", "run.json")
    assert not begin("run", str(tmp_path / "run" / "checkpoint-000400.safetensors"))
    assert (tmp_path / "run" / CHECKPOINT).read_text() == "checkpoint-000400.safetensors"
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_checkpoint_that_is_not_there_or_of_another_run_is_refused(begin, tmp_path):
    begin("old")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*old/checkpoint\.safetensors\. Name one"):
        begin("new", tmp_path / "old")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*nothing\. Name one"):
        begin("new", tmp_path / "nothing")
    leave(tmp_path / "old", CHECKPOINT)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is not of this run: .* another configuration"):
        begin("new", tmp_path / "old", seed=3)
    shutil.copy(tmp_path / "old" / CHECKPOINT, tmp_path / "alone.safetensors")
    with pytest.raises(ValueError, match=r"alone\.safetensors is not of this run: .*config\.json is missing"):
        begin("new", tmp_path / "alone.safetensors")
    assert not (tmp_path / "new").exists()
