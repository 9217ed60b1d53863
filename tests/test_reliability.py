"""How well confidence tells wrong labels, against scikit-learn, slow loops and hand-worked cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from cuao3d.reliability import LEVELS, Levels, conformal_threshold, error_by_level

SURE = torch.tensor([0.9, 0.8, 0.7, 0.6])
WRONG = torch.tensor([False, True, False, True])


def test_error_and_area_of_four_labels_are_those_worked_out_by_hand():
    # Surest first: right, wrong, right, wrong, so the errors of the surest 1, 2, 3 and 4 are 0, 1/2, 1/3 and 1/2.
    levels = Levels.of(SURE, WRONG)
    assert [levels.error_at(kept / 4) for kept in (1, 2, 3, 4)] == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert levels.aurc() == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert levels.auroc() == pytest.approx(3 / 4)  # of four pairs, one right label is less sure than a wrong one
    # Two bins: only the upper one holds any, with a mean of 0.75 and half of them right.
    assert levels.calibration_error(2) == pytest.approx(0.25)
    assert levels.reliability(2) == [pytest.approx((0.75, 0.5, 1.0))]


def test_labels_that_are_equally_sure_are_withheld_in_random_order():
    generator = torch.Generator().manual_seed(0)
    sure, wrong = torch.tensor([0.9, 0.5, 0.5, 0.5]), torch.tensor([False, True, False, False])
    orders = [torch.cat([torch.tensor([0]), 1 + torch.randperm(3, generator=generator)]) for _ in range(3000)]
    errors = torch.stack([wrong[order].cumsum(0) / torch.arange(1, 5) for order in orders])
    assert Levels.of(sure, wrong).aurc() == pytest.approx(float(errors.mean()), abs=5e-3)
    assert Levels.of(sure, wrong).error_at(0.5) == pytest.approx(float(errors.mean(dim=0)[1]), abs=2e-2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=60))
def test_scores_equal_those_of_scikit_learn_and_of_a_slow_loop(labels):
    sure = torch.tensor([level / 20 for level, _ in labels], dtype=torch.float64)
    wrong = torch.tensor([bad for _, bad in labels])
    levels = Levels.of(sure, wrong)
    if 0 < int(wrong.sum()) < len(wrong):
        assert levels.auroc() == pytest.approx(roc_auc_score(~wrong.numpy(), sure.numpy()))
    else:
        assert levels.auroc() is None
    right, confidence = calibration_curve(~wrong.numpy(), sure.numpy(), n_bins=10)
    held = np.histogram(np.searchsorted(np.linspace(0, 1, 11)[1:-1], sure), bins=range(11))[0]
    inside = held[held > 0] / len(wrong)
    if not torch.isin((sure * 20).round(), torch.arange(2, 20, 2).double()).any():  # edges belong to another bin there
        assert levels.calibration_error(10) == pytest.approx(float((inside * abs(right - confidence)).sum()))
    if len(set(sure.tolist())) == len(sure):
        order = torch.argsort(sure, descending=True)
        loop = [float(wrong[order[:kept]].double().mean()) for kept in range(1, len(wrong) + 1)]
        assert levels.aurc() == pytest.approx(sum(loop) / len(loop))


def test_errors_at_each_level_are_those_of_a_slow_loop():
    generator = torch.Generator().manual_seed(1)
    confidence = torch.cat([torch.rand(200, generator=generator), torch.tensor([0.0, 0.5, 0.99, 1.0])])
    right, wrong = torch.randint(0, 4, (2, 204), generator=generator).double()
    found = error_by_level(confidence, right, wrong)
    for level, error in zip(LEVELS, found.tolist(), strict=True):
        kept = confidence.double() >= level
        total = float((right + wrong)[kept].sum())
        assert error == pytest.approx(float(wrong[kept].sum()) / total if total else 0)


def test_the_threshold_is_that_of_the_scene_at_its_rank_and_no_promise_is_made_from_too_few():
    # Scene k keeps too many wrong labels up to level k, so the lowest level that will do is k + 1.
    errors = [(torch.arange(len(LEVELS)) <= k).double() for k in range(19)]
    assert conformal_threshold(errors, 0.5) == LEVELS[19]  # rank 19 of 19
    assert conformal_threshold(errors, 0.5, misses=0.5) == LEVELS[10]  # rank 10
    assert conformal_threshold(errors[:18], 0.5) is None  # rank 19 of 18
    assert conformal_threshold([torch.ones(len(LEVELS))] * 19, 0.5) is None
    assert conformal_threshold([torch.full((len(LEVELS),), 0.5)] * 19, 0.5) == 0  # just the share is not more than it


def test_a_level_that_keeps_few_labels_counts_as_much_as_one_that_keeps_many():
    errors = torch.zeros(len(LEVELS))
    errors[80] = 0.2  # lower levels are fine, but whoever keeps labels from 0.8 on would not be
    assert conformal_threshold([errors] * 19, 0.1) == LEVELS[81]


def test_the_promise_is_kept_in_fresh_scenes_that_are_exchangeable_with_the_others():
    generator = torch.Generator().manual_seed(2)

    def scene():
        """Scenes differ in how much their labels are overrated."""
        confidence = torch.rand(400, generator=generator).sqrt()
        overrated = 0.5 * torch.rand((), generator=generator)
        wrong = torch.rand(400, generator=generator) > confidence ** (1 + overrated)
        return error_by_level(confidence, (~wrong).double(), wrong.double())

    kept, total = 0, 0
    for _ in range(40):
        threshold = conformal_threshold([scene() for _ in range(29)], 0.1, misses=0.1)
        for fresh in [scene() for _ in range(10)]:
            total += 1
            kept += threshold is None or float(fresh[LEVELS.index(threshold)]) <= 0.1
    assert kept / total > 0.86  # 0.9 at least, give or take what 40 calibrations vary by


def test_nothing_is_said_of_no_label_and_no_calibration_error_of_what_was_not_fitted():
    assert Levels.of(torch.zeros(0), torch.zeros(0, dtype=torch.bool)).trust("a test") is None
    trust = Levels.of(SURE, WRONG).trust("")
    assert trust.calibration_error is None
    assert trust.error == trust.aurc_random == 50
    assert trust.error_at == pytest.approx({"50": 50, "80": 100 * 1.2 / 3.2, "90": 100 * 1.6 / 3.6})
    assert not math.isnan(trust.aurc)
    assert trust.curve[24] == (25.0, 0.0)
