"""Facts about fitted verdicts and how often they are wrong."""

from dataclasses import replace

import pytest
import torch

from cuao3d.errors import InputError
from cuao3d.labels import label_set
from cuao3d.predictor import Predictor
from cuao3d.query import SAME, Questions, ask
from cuao3d.retrieval import Queries
from cuao3d.student import Student
from cuao3d.teachers import Calibration
from cuao3d.text import Table
from cuao3d.verdicts import Peaks, fit_verdicts, wrong_verdicts


def test_a_fit_by_hand():
    # One wrong verdict in five is allowed: the second lowest of the present, just above the second highest absent.
    peaks = {"names": Peaks([0.1, 0.2, 0.6, 0.7, 0.8], [0.0, 0.1, 0.2, 0.3, 0.4])}
    fitted = fit_verdicts(peaks, "a test", most_wrong=0.2)
    assert (fitted.absent, fitted.here, fitted.measured_on) == (0.2, pytest.approx(0.3, abs=1e-5), "a test")
    assert wrong_verdicts(peaks["names"], fitted) == (20, 20)
    none = fit_verdicts(peaks, "a test", most_wrong=0.0)
    assert (none.absent, none.here) == (0.1, pytest.approx(0.4, abs=1e-5))
    assert wrong_verdicts(peaks["names"], none) == (0, 0)


def test_every_kind_of_query_keeps_the_limit():
    easy, hard = Peaks([0.8] * 98 + [0.9] * 2, [0.0] * 100), Peaks([0.2] * 2, [0.5] * 2)
    fitted = fit_verdicts({"names": easy, "questions": hard}, "a test")
    assert wrong_verdicts(easy, fitted) == wrong_verdicts(hard, fitted) == (0, 0)
    assert (fitted.absent, fitted.here) == (0.2, pytest.approx(0.5, abs=1e-5))


def test_where_both_sides_lie_apart_nothing_is_unsure():
    fitted = fit_verdicts({"names": Peaks([0.6, 0.7], [0.1, 0.2])}, "a test")
    assert fitted.absent == pytest.approx(0.4)
    assert fitted.here == pytest.approx(fitted.absent, abs=1e-5)


def test_one_side_alone_fits_nothing():
    with pytest.raises(InputError, match="cannot be fitted"):
        fit_verdicts({"names": Peaks([0.5], [])}, "a test")
    assert wrong_verdicts(Peaks([], []), Calibration(0.3, 0.1, "a test")) == (None, None)


def test_names_are_asked_only_to_fit_verdicts():
    named = label_set("scannet20")
    synonyms = tuple((f"synonym of {name}",) for name in named.names)
    classes, encoder = replace(named, synonyms=synonyms), Letters()
    asked, with_names = Queries.read(classes, encoder), Queries.read(classes, encoder, names=True)
    assert asked is not None
    assert with_names is not None
    assert "names" not in asked.kinds
    assert sum(kind == "names" for kind in with_names.kinds) == len(classes)


class Letters:
    """Text encoder that counts letters."""

    num_channels = 26

    def __call__(self, texts):
        counts = [[text.lower().count(chr(97 + k)) + 0.01 * k for k in range(26)] for text in texts]
        return torch.nn.functional.normalize(torch.tensor(counts), dim=1)


def test_words_that_mean_the_same_are_no_contrast():
    near = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.05, 0.0], [0.0, 0.0, 1.0]]), dim=1)
    table = Table([["sofa"], ["couch"], ["lamp"]], near)
    assert 1e-3 < 1 - float(near[0] @ near[1]) < SAME
    (sofa,) = ask(-near[:1].expand(30, 3), Questions.read(table, ["sofa"]))
    assert float(sofa.relevance.min()) == pytest.approx(-1, abs=0.01)  # divided by 0.00125 it would be -800
    assert sofa.verdict == "absent"


def test_a_student_brings_its_own_verdicts(tmp_path):
    student = Student({"mini-lseg": 384}, "MinkUNet14Mini")
    student.voxel_size, student.calibration = 0.1, Calibration(0.6, 0.4, "a test")
    student.teachers = {"mini-lseg": {"num_channels": 384, "text": "minilm-centred", "loss": "cosine"}}
    student.save(tmp_path / "student.safetensors")
    assert Student.load(tmp_path / "student.safetensors").calibration == student.calibration
    predictor = Predictor.open(run=tmp_path / "student.safetensors")
    assert predictor.calibration == student.calibration
    assert "The verdicts were calibrated on a test." in predictor.about
