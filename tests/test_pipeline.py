"""The whole path: what the package ships for it, and stages that share the cores."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch

from cuao3d import recipes
from cuao3d.answers import write_cloud
from cuao3d.errors import InputError
from cuao3d.files import sha256_of
from cuao3d.formats.ply import read_ply
from cuao3d.pipeline import SHIPPED_STUDENT, fit_student, fuse
from cuao3d.predictor import Predictor
from cuao3d.progress import Stages
from cuao3d.run import load_run
from cuao3d.teachers import load_teacher
from cuao3d.verdicts import wrong_verdicts
from cuao3d.worlds.rooms import Rooms


def test_the_shipped_student_is_what_its_card_says():
    file, card = SHIPPED_STUDENT / "student.safetensors", json.loads((SHIPPED_STUDENT / "card.json").read_text())
    assert file.stat().st_size <= 8_000_000
    assert card["sha256"] == sha256_of(file)
    run = load_run(SHIPPED_STUDENT)
    assert tuple(run.student.num_channels) == tuple(card["teachers"])
    assert run.vocabulary is not None
    assert run.vocabulary.words == ()  # it was told no word
    assert run.student.calibration is not None
    assert asdict(run.student.calibration) == card["calibration"]
    assert run.voxel_size == recipes.MINI_VOXEL
    assert sum(parameter.numel() for parameter in run.student.parameters()) == card["num_parameters"]


def test_the_shipped_student_saw_the_teachers_that_ship_with_it():
    learned = {name: asdict(card)["weights_sha256"] for name, card in load_run(SHIPPED_STUDENT).teachers.items()}
    assert learned == {name: load_teacher(name).weights_sha256 for name in learned}


@pytest.mark.slow
def test_a_student_is_given_verdicts_by_labelled_rooms(tmp_path):
    run = shutil.copytree(SHIPPED_STUDENT, tmp_path / "run")
    before = load_run(run)
    rooms = Rooms((3,), num_views=1, label_set="made100")
    store = fuse(rooms, [], tmp_path / "store", cell=recipes.MINI_CELL)
    peaks = fit_student(store, run, labels="made100", split="train", where="rooms")
    assert (run / "student.safetensors").stat().st_size <= 8_000_000  # its weights stay in half precision
    fitted = Predictor.open(store, run=run).calibration
    assert fitted == load_run(run).student.calibration != before.student.calibration
    assert fitted.measured_on == "this student in 1 room"
    for wrong in (wrong_verdicts(one, fitted) for one in peaks.values()):
        assert all(share is None or share <= 3 for share in wrong)


def test_what_was_left_out_is_named_as_it_is(synthetic_scene, tmp_path, capsys):
    class Broken:
        names = ("synthetic", "broken")

        def __len__(self):
            return 2

        def __getitem__(self, index):
            if index:
                raise InputError("install 'cuao3d[demo]'")
            return synthetic_scene

    fuse(Broken(), [], tmp_path, cell=0.1)
    assert capsys.readouterr().err == "left out broken: install 'cuao3d[demo]'\n"


def test_a_stage_says_its_line_and_is_timed(capsys):
    stages = Stages()
    with stages("lifting") as said:
        said.append("3 rooms")
    assert [row["name"] for row in stages.rows] == ["lifting"]
    assert stages.rows[0]["peak_rss_mb"] > 0
    assert "lifting: 3 rooms" in capsys.readouterr().err


def test_a_cloud_is_written_whole(tmp_path):
    points, colors = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[1.0, 0.5, -1.0]])
    write_cloud(tmp_path / "deep" / "cloud.ply", points, colors)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["cloud.ply"]
    columns = read_ply(tmp_path / "deep" / "cloud.ply")
    assert [float(columns[axis][0]) for axis in "xyz"] == pytest.approx([0, 1, 2])
    assert [int(columns[name][0]) for name in ("red", "green", "blue")] == [255, 128, 0]
