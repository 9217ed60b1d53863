"""The trunk, watched while a student learns."""

import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cuao3d.distill import distill
from cuao3d.run import MetricsFile
from cuao3d.student import ARCHITECTURES, Architecture
from cuao3d.training import WATCH_EVERY
from cuao3d.trunk import describe_trunk, effective_rank, measure_trunk
from test_distill import CONFIG, equal, make_store, metrics, weights


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("corners"))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "tiny", Architecture((4,) * 8, (1,) * 8, num_stem=4))
    return replace(CONFIG, architecture="tiny", num_steps=3)


def test_effective_ranks_by_hand():
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([0.0, 0.0, 5.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0
    # singular values 3 and 1: p is 3/4 and 1/4
    assert effective_rank(torch.tensor([1.0, 9.0])) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) + 0.25 * math.log(4))
    )


def test_shares_and_cosines_by_hand():
    hidden = torch.tensor([[1.0, 2.0]], requires_grad=True)
    losses = {"right": 3 * hidden[0, 0], "up": -4 * hidden[0, 1], "flat": 0 * hidden.sum()}
    said = describe_trunk(measure_trunk(hidden, losses))
    assert said["share"] == pytest.approx({"right": 3 / 7, "up": 4 / 7, "flat": 0})
    assert said["cosine"] == pytest.approx({"right": 0.6, "up": 0.8, "flat": math.nan}, nan_ok=True)
    assert said["rank"] == pytest.approx(1)
    against = describe_trunk(measure_trunk(hidden, {"more": 3 * hidden.sum(), "less": -hidden.sum()}))
    assert against["cosine"] == pytest.approx({"more": 1, "less": -1})
    nothing = describe_trunk(measure_trunk(hidden, {"flat": 0 * hidden.sum()}))
    assert math.isnan(nothing["share"]["flat"])


def test_the_parts_of_a_batch_add_up_to_the_batch():
    generator = torch.Generator().manual_seed(0)
    hidden, one, other = torch.randn(3, 50, 6, generator=generator).double().unbind()
    whole = hidden.requires_grad_()

    def measured(rows):
        kept = whole[rows]
        losses = {name: (kept * target[rows]).square().sum(dim=1).mean() for name, target in (("a", one), ("b", other))}
        return measure_trunk(kept, losses)

    parts = [(count / 50, measured(rows)) for count, rows in ((20, slice(0, 20)), (30, slice(20, 50)))]
    joined = {
        "products": {
            a: {b: sum(weight * part["products"][a][b] for weight, part in parts) for b in "ab"} for a in "ab"
        },
        "moments": sum(weight * part["moments"] for weight, part in parts),
    }
    together, at_once = describe_trunk(joined), describe_trunk(measured(slice(0, 50)))
    for key in ("share", "cosine", "rank"):
        assert together[key] == pytest.approx(at_once[key], rel=1e-9)


@pytest.mark.parametrize(
    "changes",
    [
        *({"weighting": kind} for kind in ("uncertainty", "kendall", "free", "random", "heteroscedastic")),
        {"weighting": "fixed", "fixed_weights": (1.0, 5.0)},
        {"words": "nyu40", "head": "mlp"},
    ],
)
def test_the_gradients_add_up_to_what_reaches_the_trunk(store, tmp_path, tiny, monkeypatch, toy_words, changes):
    toy_words(6)
    arrived, added = [], []

    def spy(hidden, losses):
        added.append(sum(torch.autograd.grad(loss, hidden, retain_graph=True)[0] for loss in losses.values()))
        measured = measure_trunk(hidden, losses)
        hidden.register_hook(arrived.append)
        return measured

    monkeypatch.setattr("cuao3d.distill.measure_trunk", spy)
    monkeypatch.setattr("cuao3d.training.WATCH_EVERY", 1)
    run = distill(store, replace(tiny, num_steps=2, **changes), tmp_path / "run")  # noise levels first move in a step
    torch.testing.assert_close(added, arrived, rtol=1e-5, atol=1e-8)
    row = metrics(run)[-1]
    assert set(row["trunk"]["share"]) == {"place", "height", *(["word loss"] if "words" in changes else [])}
    assert sum(row["trunk"]["share"].values()) == pytest.approx(1)


def test_watching_changes_nothing_else_and_goes_on_after_an_interruption(store, tmp_path, tiny, monkeypatch):
    def stop(done, total, line):
        if done == 2:
            raise KeyboardInterrupt

    assert WATCH_EVERY == 100
    plain = distill(store, tiny, tmp_path / "plain")
    monkeypatch.setattr("cuao3d.training.WATCH_EVERY", 2)
    often = distill(store, tiny, tmp_path / "often")
    with pytest.raises(KeyboardInterrupt):
        distill(store, tiny, tmp_path / "cut", on_step=stop)
    cut = distill(store, tiny, tmp_path / "cut")
    assert equal(weights(plain), weights(often))
    assert [row["step"] for row in metrics(plain) if "trunk" in row] == [0]
    assert [row["step"] for row in metrics(often) if "trunk" in row] == [0, 2]
    without = [[{**row, "trunk": None} for row in metrics(run)] for run in (plain, often)]
    assert without[0] == without[1]
    assert (cut / "metrics.jsonl").read_bytes() == (often / "metrics.jsonl").read_bytes()
    assert 1 <= metrics(often)[-1]["trunk"]["rank"] <= 4


def test_held_out_scenes_are_not_watched(store, tmp_path, tiny):
    run = distill(store, replace(tiny, num_steps=1, num_held_out=1, checkpoint_every=1), tmp_path / "run")
    (row,) = metrics(run)
    assert "trunk" in row
    assert "trunk" not in row["validation"]


def test_tensorboard_gets_the_trunk_too(tmp_path, monkeypatch):
    written = {}
    writer = SimpleNamespace(
        add_scalar=lambda name, value, step: written.update({name: (value, step)}), flush=list, close=list
    )
    board = SimpleNamespace(SummaryWriter=lambda folder, purge_step: writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    file = MetricsFile(tmp_path, 0)
    file.write({"step": 100, "trunk": {"share": {"a": 1.0}, "cosine": {"a": math.nan}, "rank": 2.5}})
    file.close()
    assert written["trunk/share/a"] == (1.0, 100)
    assert written["trunk/rank"] == (2.5, 100)
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["trunk"]["cosine"] == {"a": None}
