"""Facts about reproduction: cells are computed once, claims are judged beside their controls."""

import json
from functools import partial

import pytest

from cuao3d.errors import DiskFullError, InputError
from cuao3d.reproduce.arms import ARMS, MINI
from cuao3d.reproduce.cells import Cell, Cells
from cuao3d.reproduce.claims import HELD, NOT_HELD, OPEN, bounds, judge


def counted(calls, value, on_step):
    calls.append(value)
    return value


def fail(error, on_step):
    raise error


def filled(folder, *cells):
    kept = Cells(folder)
    kept.fill(cells, "testing", 1)
    return kept


def test_a_cell_is_computed_once_and_anew_when_what_it_depends_on_is_new(tmp_path):
    calls = []
    cell = partial(Cell, "rooms/a-0", partial(counted, calls, 7))
    assert filled(tmp_path, cell({"store": "x"})).value("rooms/a-0") == 7
    assert filled(tmp_path, cell({"store": "x"})).value("rooms/a-0") == 7
    assert calls == [7]
    filled(tmp_path, cell({"store": "y"}))
    assert calls == [7, 7]


def test_a_cell_of_another_version_is_computed_anew(tmp_path, monkeypatch):
    calls = []
    cell = Cell("a", partial(counted, calls, 1))
    filled(tmp_path, cell)
    monkeypatch.setattr("cuao3d.reproduce.cells.__version__", "0.0.0")
    filled(tmp_path, cell)
    assert len(calls) == 2


def test_a_cell_that_fails_costs_itself_alone_and_is_tried_again(tmp_path):
    calls = []
    good, bad = Cell("good", partial(counted, calls, 1)), Cell("bad", partial(fail, InputError("no labels")))
    kept = filled(tmp_path, bad, good)
    assert (kept.value("good"), kept.value("bad"), kept.failures) == (1, None, {"bad": "no labels"})
    mended = filled(tmp_path, Cell("bad", partial(counted, calls, 2)), good)
    assert (mended.value("bad"), mended.failures, calls) == (2, {}, [1, 2])


def test_a_full_disk_ends_it_all(tmp_path):
    with pytest.raises(DiskFullError):
        filled(tmp_path, Cell("a", partial(fail, DiskFullError("full"))))


def test_a_damaged_cell_is_computed_anew(tmp_path):
    calls = []
    cell = Cell("a", partial(counted, calls, 1))
    filled(tmp_path, cell)
    (tmp_path / "a.json").write_text('{"key": ')
    assert filled(tmp_path, cell).value("a") == 1
    assert len(calls) == 2
    assert json.loads((tmp_path / "a.json").read_text())["value"] == 1


def test_bounds_are_those_of_student():
    assert bounds([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)  # 4.303 / sqrt(3)
    assert bounds([1.0]) == (-float("inf"), float("inf"))


@pytest.mark.parametrize(
    ("gains", "controls", "word"),
    [
        ((), {}, OPEN),
        ((3.0,), {}, OPEN),
        ((3.0, 3.1, 3.2), {}, HELD),
        ((3.0, 3.1, 3.2), {"shuffled": (4.0, 4.0, 4.0)}, NOT_HELD),
        ((3.0, 3.1, 3.2), {"shuffled": (0.0, 0.1, 0.0), "oracle": (9.0, 9.1, 9.0), "headroom": 2.0}, HELD),
        ((-1.0, 0.0, 1.0), {}, NOT_HELD),
        ((-1.0, 0.0, 1.0), {"oracle": (-1.0, 0.0, 1.0)}, OPEN),
        ((-1.0, 0.0, 1.0), {"oracle": (5.0, 5.1, 5.2), "headroom": 4.9}, OPEN),
        ((-1.0, 0.0, 1.0), {"oracle": (5.0, 5.1, 5.2), "headroom": 5.1}, NOT_HELD),
    ],
)
def test_a_claim_is_judged_beside_its_controls(gains, controls, word):
    assert judge(gains, **controls).word == word


def test_an_arm_gets_the_teachers_that_stand_for_its_own():
    assert ARMS["conditioned, shuffled"].names(MINI) == ("mini-lseg", "shuffled-mini-dino", "shuffled-mini-diffusion")
    assert ARMS["conditioned, oracle"].names(MINI) == ("mini-lseg", "oracle")
    assert ARMS["conditioned"].names({}) == ("lseg", "dinov2", "stable_diffusion")
