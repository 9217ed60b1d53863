"""The compiled cosines of rows in half precision against float64, and when `query.scores` takes them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from cuao3d import half_rows
from cuao3d.query import scores

pytest.importorskip("numba", reason="needs numba: pip install 'cuao3d[view]'")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 9), st.integers(1, 70), st.integers(1, half_rows.MOST_TEXTS), st.integers(0, 1000))
def test_cosines_are_those_of_float64(num_rows, num_channels, num_texts, seed):
    half_rows.load()
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.randn(num_rows, num_channels, generator=generator) * 10 ** (seed % 4)).half()
    text = torch.randn(num_texts, num_channels, generator=generator)
    assert half_rows.fits(rows, num_texts)
    expected = functional.normalize(rows.double(), dim=1) @ functional.normalize(text.double(), dim=1).T
    torch.testing.assert_close(scores(rows, text).double(), expected, atol=1e-6, rtol=0)


def test_zeros_have_no_cosine_and_what_is_not_finite_stays_so():
    half_rows.load()
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [float("nan"), 1.0], [6e-8, 0.0]], dtype=torch.float16)
    found = scores(rows, torch.eye(2))
    assert found[:2].tolist() == [[0, 0], pytest.approx([0.6, 0.8])]
    assert found[2].isnan().all()
    assert found[3].tolist() == pytest.approx([1, 0])  # the least that half precision can say still has a direction


def test_scores_take_the_loop_for_few_texts_of_halves_alone(monkeypatch):
    half_rows.load()
    taken = []
    monkeypatch.setattr(half_rows, "write_cosines", lambda rows, directions, out: taken.append(out.shape))
    rows = torch.ones(3, 8)
    scores(rows.half(), torch.ones(5, 8))
    assert sum(rows for rows, _ in taken) == 3
    assert {texts for _, texts in taken} == {8}  # five texts in groups of four
    taken.clear()
    for others in (rows, rows.bfloat16(), rows.half().T.contiguous().T):
        scores(others, torch.ones(5, 8))
    scores(rows.half(), torch.ones(half_rows.MOST_TEXTS + 1, 8))
    assert not taken


def test_one_small_question_does_not_wait_for_a_compiler(monkeypatch):
    monkeypatch.setattr(half_rows, "is_loaded", lambda: False)
    assert not half_rows.fits(torch.ones(3, 8).half(), 1)
    monkeypatch.setattr(half_rows, "LEAST_NUMBERS", 24)
    assert half_rows.fits(torch.ones(3, 8).half(), 1)
