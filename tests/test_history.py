"""How a training went, read back and drawn."""

import json
import math

import pytest
from matplotlib.figure import Figure
from PIL import Image

from cuao3d.history import History, TrunkHistory, draw_history, plot_chart, read_history, training_charts


def test_history_is_what_the_run_wrote(tmp_path):
    rows = [
        {"step": step, "loss": 1.0, "losses": {"a": 0.5 - step / 10}, "sigmas": {"a": 1.0}, "rate": 0.1, "voxels": 9}
        for step in range(3)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.json").write_text(json.dumps({"config": {"weighting": "uncertainty-squared"}}))
    history = read_history(tmp_path)
    assert history.steps == (0, 1, 2)
    assert history.losses["a"] == pytest.approx((0.5, 0.4, 0.3))
    assert (history.sigmas, history.rate) == ({"a": (1.0,) * 3}, (0.1,) * 3)
    assert history.weighting == "uncertainty-squared"
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        read_history(tmp_path / "no run")


def test_charts_show_what_was_learned():
    history = History(
        steps=(0, 1),
        losses={"a": (1.0, 0.5), "b": (2.0, 1.0)},
        rate=(0.1, 0.0),
        sigmas={"a": (1.0, 0.9), "b": (1.0, 1.1)},
        weights={"a": (0.5, 0.6), "b": (0.5, 0.4)},
        words=(3.0, 2.0),
    )
    titles = [chart.title for chart in training_charts(history)]
    assert titles == [
        "Noise level σ",
        "Effective weight",
        "Loss of each teacher",
        "Choosing among words",
        "Learning rate",
    ]
    plain = History(steps=(0,), losses={"a": (1.0,)}, rate=(0.1,), weights={"a": (1.0,)})
    assert [chart.title for chart in training_charts(plain)] == ["Loss of each teacher", "Learning rate"]


def test_the_trunk_is_read_where_it_was_watched_and_has_charts_of_its_own(tmp_path):
    rows = [{"step": step, "losses": {"a": 0.5, "b": 0.5}, "rate": 0.1} for step in range(201)]
    for step in (0, 100, 200):
        share = {"a": step / 200, "b": 1 - step / 200}
        rows[step]["trunk"] = {"share": share, "cosine": {"a": None, "b": -0.5}, "rank": 7.5}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    history = read_history(tmp_path)
    trunk = history.trunk
    assert trunk is not None
    assert (trunk.steps, trunk.ranks) == ((0, 100, 200), (7.5,) * 3)
    assert trunk.shares == {"a": (0, 0.5, 1), "b": (1, 0.5, 0)}
    assert math.isnan(trunk.cosines["a"][1])
    charts = {chart.title: chart for chart in training_charts(history)}
    assert list(charts)[1:] == [
        "Share of the gradient",
        "Cosine with the total gradient",
        "Effective rank",
        "Learning rate",
    ]
    axes = Figure().add_subplot()
    plot_chart(axes, history.steps, charts["Share of the gradient"])
    assert [list(line.get_xdata()) for line in axes.lines] == [[0, 100, 200]] * 2
    assert all(line.get_marker() == "o" for line in axes.lines)
    alone = TrunkHistory((0,), {"a": (1.0,)}, {"a": (1.0,)}, (3.0,))
    plain = History(steps=(0,), losses={"a": (1.0,)}, rate=(0.1,), trunk=alone)
    assert [chart.title for chart in training_charts(plain)] == [
        "Loss of each teacher",
        "Effective rank",
        "Learning rate",
    ]


def test_a_history_becomes_a_picture(tmp_path):
    losses = {r"$\frac$ is no formula": (1.0, 0.5), "b": (1.0, 0.5)}
    history = History(steps=(0, 1), losses=losses, rate=(0.1, 0.0))
    draw_history(history, tmp_path / "training.png")
    assert Image.open(tmp_path / "training.png").size[0] > 1000
