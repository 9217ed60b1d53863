import json

import pytest
import torch

from cuao3d.cli import main
from cuao3d.compare import BLOCK, compare
from cuao3d.fusion import lift_measured, sample_cells, see
from cuao3d.store import Lifting, Store, TeacherCard


class Blind:
    """A teacher that sees nothing."""

    name = "blind"
    num_channels = 3

    def __call__(self, image):
        return torch.ones(3, 4, 4)


@pytest.fixture
def store(synthetic_scene, tmp_path):
    """A red wall and a green picture, lifted by colours and by a teacher that sees nothing."""
    from conftest import ColorTeacher

    teachers = (ColorTeacher(), Blind())
    store = Store.create(tmp_path / "store", cell=0.05, teachers={one.name: TeacherCard(3) for one in teachers})
    samples = sample_cells(synthetic_scene.points, store.cell)
    visibility = see(synthetic_scene, samples)
    lifted = {one.name: lift_measured(synthetic_scene, visibility, one) for one in teachers}
    lifting = {"color": Lifting(seconds=3.0, num_views=2, agreement=0.9)}
    features = {name: one.features for name, one in lifted.items()}
    store.add_scene(synthetic_scene, samples, visibility, features, lifting=lifting)
    return store


def test_a_teacher_that_sees_the_classes_is_told_from_one_that_does_not(store):
    color, blind = compare(store)
    assert color.probe_split == blind.probe_split == "other blocks"
    assert color.probe_miou > 60  # what no view sees counts as wrong
    assert blind.probe_miou < 0.7 * color.probe_miou
    assert color.zero_shot_miou is None  # it knows no words


def test_time_size_and_agreement_are_those_that_were_measured(store):
    color, blind = compare(store)
    assert color.seconds_per_view == 1.5
    assert color.agreement == 0.9
    assert blind.seconds_per_view is None
    assert blind.agreement is None
    (scene,) = store.names()
    assert color.gigabytes * 1e9 == len(store[scene].seen_samples) * 3 * 2  # three channels of two bytes


def test_the_probe_learns_from_no_block_that_it_is_scored_on():
    from cuao3d.compare import _held_out

    points = torch.tensor([[0.5, 0.5, 0], [1.5, 0.5, 0], [1.5, 1.5, 9], [-0.5, 0.5, 0]]) * BLOCK
    assert _held_out(points).tolist() == [False, True, False, True]


def test_a_teacher_that_the_store_lacks_is_named(store):
    with pytest.raises(ValueError, match=r"no features of dinov2, only of color, blind"):
        compare(store, ["dinov2"])


def test_the_command_prints_and_writes_the_rows(store, tmp_path, capsys):
    assert main(["compare", str(store.path), "--teachers", "color", "--json", str(tmp_path / "rows.json")]) == 0
    assert "color" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row["teacher"] == "color"
