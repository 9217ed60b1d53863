"""The program as its users meet it: what it prints, what it writes, and what it says to mistakes."""

import errno
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cuao3d.cli import COMMANDS, main
from cuao3d.durable import write_all
from cuao3d.files import sha256_of
from cuao3d.store import LIFTING_FILE
from cuao3d.student import Student
from test_student import as_official
from written import write_folder


@pytest.fixture
def capture(room_folder, tmp_path):
    """A copy of a capture to break."""
    return Path(shutil.copytree(room_folder, tmp_path / "room"))


@pytest.fixture(scope="module")
def store(room_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "store"
    assert main(["fuse", str(room_folder), "--teachers", "mini-lseg", "--cell", "0.05", "--out", str(path)]) == 0
    return path


def says(capsys, arguments, *words):
    """Run a command that must fail: exit code 2, one line on standard error that holds some words, no traceback."""
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error")
    assert "Traceback" not in error
    for word in words:
        assert str(word) in error, error


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "usage: cuao3d" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.data
def test_a_real_capture_is_checked_fused_and_asked(lounge_folder, tmp_path):
    assert main(["check", str(lounge_folder)]) == 0
    store, out = tmp_path / "store", tmp_path / "heat.json"
    assert main(["fuse", str(lounge_folder), "--teachers", "mini-lseg", "--cell", "0.05", "--out", str(store)]) == 0
    assert main(["query", str(store), "somewhere to sit", "--out", str(out)]) == 0
    assert list(json.loads(out.read_text())["answers"]) == ["somewhere to sit"]


def test_a_capture_is_fused_and_asked(store, tmp_path):
    for ending in (".json", ".ply", ".html"):
        out = tmp_path / f"heat{ending}"
        assert main(["query", str(store), "somewhere to sit", "a whiteboard", "--out", str(out)]) == 0
        assert out.stat().st_size > 100
    answers = json.loads((tmp_path / "heat.json").read_text())["answers"]
    assert list(answers) == ["somewhere to sit", "a whiteboard"]


def test_words_may_come_from_a_file(store, tmp_path, capsys):
    words, out = tmp_path / "words.txt", tmp_path / "places.json"
    words.write_bytes("\ufeffa caf\u00e9 table\r\n\r\n# a comment\n  a sofa  \na lamp # not a comment".encode())
    assert main(["query", str(store), "a bed", "a sofa", "--words", str(words), "--out", str(out)]) == 0
    answers = json.loads(out.read_text())["answers"]
    assert list(answers) == ["a bed", "a sofa", "a caf\u00e9 table", "a lamp # not a comment"]
    assert main(["query", str(store), "--words", str(words), "--out", str(out)]) == 0
    assert len(json.loads(out.read_text())["answers"]) == 3
    words.write_text("\n# only a comment\n")
    says(capsys, ["query", store, "--words", words, "--out", out], "--words", words, "holds no words")
    words.write_bytes("a sofa".encode("utf-16"))
    assert main(["query", str(store), "--words", str(words), "--out", str(out)]) == 0
    says(capsys, ["query", store, "  ", "--out", out], "A question is blank")
    words.write_bytes(b"\xffa\x00")
    says(capsys, ["query", store, "--words", words, "--out", out], "--words", words, "UTF-8")
    says(capsys, ["query", store, "--words", tmp_path / "no.txt", "--out", out], "--words", tmp_path / "no.txt")


def test_words_of_another_width_than_the_features_are_refused(store, capsys, tmp_path):
    np.save(tmp_path / "table.npy", np.eye(20, 512))
    table = f"table:{tmp_path / 'table.npy'}@scannet20"
    arguments = ["query", store, "a sofa", "--text", table, "--out", tmp_path / "x.json"]
    says(capsys, arguments, "512 channels", "mini-lseg 384")


def test_the_same_question_twice_gives_the_same_bytes(store, tmp_path):
    for name in ("one.json", "two.json", "one.ply", "two.ply"):
        main(["query", str(store), "a sofa", "--out", str(tmp_path / name)])
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert (tmp_path / "one.ply").read_bytes() == (tmp_path / "two.ply").read_bytes()


def test_fusing_again_changes_nothing(room_folder, store):
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.safetensors")}
    assert main(["fuse", str(room_folder), "--teachers", "mini-lseg", "--cell", "0.05", "--out", str(store)]) == 0
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*.safetensors")} == before


PLUG_IN = """
class Gray:
    name, num_channels = "gray", 1

    def __init__(self):
        self.mean = lambda image: image.mean(dim=0, keepdim=True)  # which cannot be pickled

    def __call__(self, image):
        return self.mean(image)
"""


@pytest.mark.slow
def test_the_store_is_the_same_whatever_the_number_of_workers(synthetic_scene, tmp_path):
    for name in ("a", "b", "c"):
        write_folder(synthetic_scene, tmp_path / "data" / name)
    (tmp_path / "plug_in.py").write_text(PLUG_IN)
    teachers = f"mini-dino,{tmp_path / 'plug_in.py'}:Gray"
    for workers in ("1", "2"):
        command = ["fuse", str(tmp_path / "data"), "--teachers", teachers, "--workers", workers]
        assert main([*command, "--out", str(tmp_path / workers)]) == 0
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "1", tmp_path / "2")
    )
    assert sum(path.name == "gray.features.safetensors" for path in one) == 3
    assert {path: one[path] for path in one if path.name != LIFTING_FILE} == {
        path: two[path] for path in two if path.name != LIFTING_FILE
    }


def test_a_full_disk_stops_the_lifting_at_the_first_scene(synthetic_scene, tmp_path, capsys, monkeypatch):
    for name in ("a", "b"):
        write_folder(synthetic_scene, tmp_path / "data" / name)
    tried = []

    def fill(descriptor, content):
        if b"dtype" in bytes(content):  # the header of a safetensors file
            tried.append(descriptor)
            raise OSError(errno.ENOSPC, "No space left on device")
        write_all(descriptor, content)

    monkeypatch.setattr("cuao3d.files.write_all", fill)
    command = ["fuse", tmp_path / "data", "--teachers", "none", "--out", tmp_path / "store"]
    says(capsys, command, "error There is no space", "points.safetensors")
    assert len(tried) == 1


def test_a_good_capture_passes_the_check(room_folder, tmp_path):
    assert main(["check", str(room_folder), "--json", str(tmp_path / "check.json")]) == 0
    assert json.loads((tmp_path / "check.json").read_text())


def test_a_bad_frame_is_left_out_and_named(capture, tmp_path, capsys):
    (capture / "frame-000003.depth.png").unlink()
    assert main(["fuse", str(capture), "--teachers", "none", "--out", str(tmp_path / "store")]) == 0
    assert "frame-000003" in capsys.readouterr().err


def test_a_capture_without_a_good_frame_is_refused(capture, tmp_path, capsys):
    for pose in capture.glob("*.pose.txt"):
        pose.write_text("nan " * 16)
    says(capsys, ["fuse", capture, "--teachers", "none", "--out", tmp_path / "store"], "pose")


def test_mistakes_get_one_line_that_names_the_file_and_the_cure(capture, store, tmp_path, capsys):
    says(capsys, ["fuse", capture, "--teachers", "mini-lsg", "--out", tmp_path / "s"], "mini-lsg", "mini-lseg")
    says(capsys, ["fuse", tmp_path / "nothing", "--out", tmp_path / "s"], tmp_path / "nothing")
    says(capsys, ["evaluate", tmp_path], "cuao3d fuse")
    says(capsys, ["query", store, "a sofa", "--out", tmp_path / "heat.png"], ".html")
    says(capsys, ["query", store, "--out", tmp_path / "heat.ply"], "look for")
    says(capsys, ["query", store, "a sofa", "--scene", "cellar", "--out", tmp_path / "heat.ply"], "cellar")
    says(
        capsys, ["query", store, "a sofa", "--run", tmp_path / "run", "--out", tmp_path / "heat.ply"], "cuao3d distill"
    )
    says(capsys, ["distill", store, "--teachers", "mini-dino", "--out", tmp_path / "run"], "mini-dino", "mini-lseg")
    says(capsys, ["evaluate", store, "--labels", "scannet21"], "scannet21")


def test_a_run_goes_on_begins_again_or_takes_a_checkpoint_as_resume_says(store, tmp_path, capsys):
    command = ["distill", str(store), "--steps", "1", "--voxel-size", "0.2", "--out", str(tmp_path / "run")]
    says(capsys, [*command, "--resume", tmp_path / "nothing"], "no checkpoint", tmp_path / "nothing")
    assert not (tmp_path / "run").exists()
    assert main(command) == 0
    student = tmp_path / "run" / "student.safetensors"
    made, content = student.stat().st_mtime_ns, student.read_bytes()
    assert main([*command, "--resume", "auto"]) == 0
    assert student.stat().st_mtime_ns == made
    assert main([*command, "--resume", "never"]) == 0
    assert student.stat().st_mtime_ns > made
    assert sha256_of(student) == hashlib.sha256(content).hexdigest()
    says(capsys, [*command, "--resume", tmp_path / "run"], "no checkpoint", "a finished one keeps only")


def test_a_half_written_store_is_told_and_finished(room_folder, store, tmp_path, capsys):
    broken = Path(shutil.copytree(store, tmp_path / "store"))
    next(broken.glob("scenes/*/manifest.json")).unlink()
    says(capsys, ["query", broken, "a sofa", "--out", tmp_path / "heat.ply"], "cuao3d fuse")
    assert main(["fuse", str(room_folder), "--teachers", "mini-lseg", "--cell", "0.05", "--out", str(broken)]) == 0
    assert main(["query", str(broken), "a sofa", "--out", str(tmp_path / "heat.ply")]) == 0


def test_a_store_of_other_settings_is_not_mixed_with(room_folder, store, capsys):
    says(capsys, ["fuse", room_folder, "--teachers", "mini-lseg", "--cell", "0.03", "--out", store], "other settings")


def test_an_official_checkpoint_becomes_a_student(tmp_path, capsys):
    state = as_official(Student({"openseg": 768}, "MinkUNet14Mini"))
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "best.pth.tar")
    assert main(["import", str(tmp_path / "best.pth.tar"), "--out", str(tmp_path / "best.safetensors")]) == 0
    said = capsys.readouterr().out
    assert f"heads: openseg (768)\ntensors used: {len(state)}\ntensors left over: 0" in said
    assert Student.load(tmp_path / "best.safetensors").num_channels == {"openseg": 768}
    says(capsys, ["import", tmp_path / "best.pth.tar", "--out", tmp_path / "best.pth"], ".safetensors")
    says(capsys, ["import", tmp_path / "none.pth", "--out", tmp_path / "a.safetensors"], tmp_path / "none.pth")
