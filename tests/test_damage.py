"""Whatever is damaged in a store or a run is refused by the name of the file, or changes no number."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cuao3d import pipeline, run
from cuao3d.cli import main
from cuao3d.distill import DistillConfig, distill
from cuao3d.errors import InputError, UserError
from cuao3d.readers import open_dataset
from cuao3d.seals import read_sealed, sha256_once, write_sealed
from cuao3d.store import Store
from cuao3d.store.revise import expect
from cuao3d.store.roll import Entry
from cuao3d.student import ARCHITECTURES, Architecture, Student
from test_distill import CONFIG, make_store
from written import damaged

TINY = replace(CONFIG, architecture="tiny", num_steps=2, checkpoint_every=1, keep_every=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store, a finished run that kept its checkpoints, and one that was interrupted; not to be changed."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as only_here:
        only_here.setitem(ARCHITECTURES, "tiny", Architecture((4,) * 8, (1,) * 8, num_stem=4))
        store = make_store(folder / "store")
        manifests = {path.parent.name: sha256_once(path) for path in store.path.glob("scenes/*/manifest.json")}
        expect(store, {name: Entry("", sha256=sha256) for name, sha256 in manifests.items()})
        distill(store, TINY, folder / "run")
        shutil.copytree(folder / "run", folder / "begun")
        for name in ("run.json", "student.safetensors"):
            (folder / "begun" / name).unlink()
        (folder / "begun" / "checkpoint-000001.safetensors").rename(folder / "begun" / run.CHECKPOINT)
        yield folder


def read_world(folder: Path, part: str) -> list:
    """All that a command reads of a part of a world, as hashes and texts: how it goes on is decided by it."""
    return {"store": read_store, "run": read_run, "begun": read_begun}[part](folder)


def read_store(folder: Path) -> list:
    read: list = []
    store = Store.open(folder / "store")
    for name in store.names():
        scene = store[name]
        read += [name, scene.split, scene.label_set, scene.points, scene.labels, scene.num_views]
        read += [scene.features(teacher) for teacher in store.teachers]
    return read


def read_run(folder: Path) -> list:
    finished = run.load_run(folder / "run")
    read = [finished.voxel_size, str(finished.teachers), *finished.student.state_dict().values()]
    return [*read, run.read_config(folder / "run", DistillConfig)]


def read_begun(folder: Path) -> list:
    alone = run.load_student(folder / "begun" / "alone.safetensors")
    read = [alone.voxel_size, str(alone.teachers), *alone.student.state_dict().values()]
    student = Student({"place": 6, "height": 4}, "tiny")
    learner = torch.nn.ModuleDict({"student": student})
    optimizer = torch.optim.AdamW(learner.parameters())
    with pytest.MonkeyPatch.context() as only_here:  # the learner's own names do not matter here
        only_here.setattr(learner, "load_state_dict", lambda tensors: read.extend(tensors.values()))
        only_here.setattr(optimizer, "load_state_dict", lambda states: read.extend(map(str, states["state"])))
        state = run.restore(folder / "begun", learner, optimizer)
    return [*read, state.step]


def same(one: list, other: list) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else str(a) == str(b)
        for a, b in pairs
    )


def test_damaged_files_are_refused_by_name_or_change_nothing(world, tmp_path):
    shutil.copyfile(world / "run" / "student.safetensors", world / "begun" / "alone.safetensors")
    expected = {part: read_world(world, part) for part in ("store", "run", "begun")}
    files = [path for path in world.rglob("*") if path.suffix in (".json", ".safetensors") and path.is_file()]
    rng, unnoticed, refused = np.random.default_rng(0), [], 0
    copy = shutil.copytree(world, tmp_path / "copy")
    for path in sorted(files) * 4:
        here = copy / path.relative_to(world)
        here.write_bytes(damaged(path.read_bytes(), rng))
        try:
            part = path.relative_to(world).parts[0]
            if not same(read_world(copy, part), expected[part]):
                unnoticed.append(f"{path.relative_to(world)}: other numbers")
        except (UserError, OSError) as error:
            refused += 1
            if here.name not in str(error) and here.parent.name not in str(error):
                unnoticed.append(f"{here}: {error}")
        shutil.copyfile(path, here)
    assert unnoticed == []
    assert refused > len(files)


def test_a_checkpoint_of_another_run_is_refused(world, tmp_path):
    other = shutil.copytree(world / "begun", tmp_path / "other")
    about = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(about | {"held_out": ["bb"]}))
    learner = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match=r"checkpoint\.safetensors is damaged \(it is of another run\)"):
        run.restore(other, learner, torch.optim.Adam(learner.parameters()))


def test_one_changed_bit_of_a_checkpoint_is_refused(world, tmp_path):
    copy = shutil.copytree(world / "begun", tmp_path / "copy")
    content = bytearray((copy / run.CHECKPOINT).read_bytes())
    content[-2] ^= 1  # of the last number; the file can still be parsed
    (copy / run.CHECKPOINT).write_bytes(content)
    learner = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match="do not have the SHA-256"):
        run.restore(copy, learner, torch.optim.Adam(learner.parameters()))


def test_a_finished_run_knows_its_configuration_and_its_voxels(world, tmp_path):
    finished = shutil.copytree(world / "run", tmp_path / "run")
    about = json.loads((finished / "config.json").read_text())
    about["config"]["voxel_size"] = 0.2
    (finished / "config.json").write_text(json.dumps(about))
    for read in (run.load_run, lambda path: run.read_config(path, DistillConfig)):
        with pytest.raises(InputError, match=r"config\.json is not the configuration of this run"):
            read(finished)
    summary = read_sealed(finished / "run.json", "") | {"config_sha256": sha256_once(finished / "config.json")}
    write_sealed(finished / "run.json", summary)
    with pytest.raises(InputError, match=r"trained with voxels of 0\.1 m, not of the 0\.2 m"):
        run.load_run(finished)


def test_other_code_that_resumes_is_said_and_noted(world, tmp_path, monkeypatch, capsys):
    begun = shutil.copytree(world / "begun", tmp_path / "begun")
    monkeypatch.setattr("cuao3d.run._code_sha256", lambda: "other")
    metrics = run.MetricsFile(begun, 1)
    for step in (1, 2):
        metrics.write({"step": step})
    metrics.close()
    assert "was begun with another code_sha256" in capsys.readouterr().err
    first, second = (json.loads(line) for line in (begun / "metrics.jsonl").read_text().splitlines()[-2:])
    assert first["resumed_with"] == {"code_sha256": "other"}
    assert "resumed_with" not in second


def test_the_command_verifies_a_store(world, tmp_path, capsys):
    store = shutil.copytree(world / "store", tmp_path / "store")
    assert main(["store", "verify", str(store)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 scenes"
    path = store / "scenes" / "bb" / "noise.features.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["store", "verify", str(store)]) == 2
    said = capsys.readouterr().err
    assert "noise.features.safetensors is damaged: its SHA-256 is not the manifest's" in said
    assert "1 of 4 scenes" in said


@pytest.mark.slow
@pytest.mark.data
def test_a_cured_capture_gives_the_store_of_a_fresh_one(lounge_folder, tmp_path, capsys):
    capture = shutil.copytree(lounge_folder, tmp_path / "lounge")
    for path in capture.rglob("*.pose.txt"):
        np.savetxt(path, np.linalg.inv(np.loadtxt(path)))

    def lift(out: str) -> dict[str, bytes]:
        pipeline.fuse(open_dataset(capture), [], tmp_path / out)
        return {path.name: path.read_bytes() for path in (tmp_path / out).rglob("*") if path.is_file()}

    wrong = lift("store")
    assert main(["check", str(capture), "--fix"]) in (0, 1)
    assert (capture / "capture.json").is_file()
    capsys.readouterr()
    cured = lift("store")
    assert "1 scene lifted again: lounge (capture.json is new)" in capsys.readouterr().err
    assert cured != wrong
    assert cured == lift("fresh")
    capsys.readouterr()
    assert lift("store") == cured
    assert capsys.readouterr().err == "1 scene was there already\n"
