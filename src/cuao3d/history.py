"""Training history: read from the folder of a run, and drawn."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
import torch

from cuao3d.errors import NotFoundError
from cuao3d.files import read_json, write_whole
from cuao3d.objective import settled_sigmas
from cuao3d.run import whole_lines
from cuao3d.schema import CountOrZero, fit, parse

PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#4d4d4d", "#f0e442", "#9c755f", "#ff9da7",
    "#2f4b7c", "#a5c663", "#7a5195", "#00a5a8", "#8c2d04", "#b0b7bb",
)  # fmt: skip
"""Colours of segments and of lines; the first eight are those of Okabe and Ito (2008), which everybody tells apart."""


@dataclass(frozen=True)
class History:
    """Training history; one number per step in `steps`."""

    steps: tuple[int, ...]
    """Steps that were written down."""
    losses: Mapping[str, tuple[float, ...]]
    """Loss of each teacher."""
    rate: tuple[float, ...]
    """Learning rate."""
    sigmas: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Noise level of each teacher; empty where none is learned."""
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """What each teacher's loss was multiplied with; empty where it differs from voxel to voxel."""
    words: tuple[float, ...] = ()
    """Loss of choosing among words; empty where there was none."""
    weighting: str = "uncertainty"
    """How the losses are combined; decides where a noise level would settle."""
    trunk: "TrunkHistory | None" = None
    """What reached the student's trunk, if that was watched."""


@dataclass(frozen=True)
class TrunkHistory:
    """What reached the student's trunk; one number per step in `steps`, which are fewer than those of the training."""

    steps: tuple[int, ...]
    """Steps in which it was watched."""
    shares: Mapping[str, tuple[float, ...]]
    """Norm of the gradient of each loss at the trunk, as a fraction of the sum of norms."""
    cosines: Mapping[str, tuple[float, ...]]
    """Cosine of the gradient of each loss with the total gradient."""
    ranks: tuple[float, ...]
    """Effective rank of the features that the heads read."""


class _Trunk(TypedDict):
    """What is read of the trunk in a line of a `metrics.jsonl`."""

    share: dict[str, float | None]
    cosine: dict[str, float | None]
    rank: float | None


class _Step(TypedDict):
    """What is read of a line of a `metrics.jsonl`."""

    step: CountOrZero
    rate: float | None
    losses: NotRequired[dict[str, float | None]]
    sigmas: NotRequired[dict[str, float | None]]
    weights: NotRequired[dict[str, float | None]]
    words: NotRequired[float | None]
    trunk: NotRequired[_Trunk]


class _Config(TypedDict, total=False):
    weighting: str


class _Settings(TypedDict, total=False):
    """What is read of the `config.json` of a run."""

    config: _Config


def read_history(run: Path | str) -> History:
    """Read the training history from the folder of a run.

    Raises:
        NotFoundError: The folder holds no `metrics.jsonl`.
        InputError: One of its lines, or `config.json`, is damaged.
    """
    metrics = Path(run) / "metrics.jsonl"
    if not metrics.is_file():
        raise NotFoundError(f"No {metrics}; expected the folder of a run, as `cuao3d distill` writes it.")
    rows: list[_Step] = [parse(line, _Step, f"A line of {metrics}") for line in whole_lines(metrics)]
    config = Path(run) / "config.json"
    settings: _Settings = fit(read_json(config), _Settings, str(config)) if config.is_file() else {}

    def by_teacher(key: Literal["losses", "sigmas", "weights"]) -> dict[str, tuple[float, ...]]:
        names = rows[0].get(key, {}) if rows else {}
        return {name: tuple(_number(row.get(key, {}).get(name)) for row in rows) for name in names}

    return History(
        steps=tuple(row["step"] for row in rows),
        losses=by_teacher("losses"),
        rate=tuple(_number(row["rate"]) for row in rows),
        sigmas=by_teacher("sigmas"),
        weights=by_teacher("weights"),
        words=tuple(_number(row["words"]) for row in rows if "words" in row),
        weighting=settings.get("config", {}).get("weighting", "uncertainty"),
        trunk=_trunk_history([(row["step"], row["trunk"]) for row in rows if "trunk" in row]),
    )


@dataclass(frozen=True)
class Chart:
    """Lines over the steps of a training."""

    title: str
    lines: Mapping[str, Sequence[float]]
    """Values of each line, one per step."""
    note: str = ""
    """What a reader should know beside the title."""
    dotted: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Lines that are only drawn to compare with."""
    color: str = ""
    """Colour of all lines; empty: one each."""
    steps: Sequence[int] = ()
    """Steps of the values, if these are not all steps of the training; each is drawn as a dot."""


def training_charts(history: History) -> list[Chart]:
    """Say what is to be drawn of a training: noise levels and weights, if any, losses, the trunk, learning rate."""
    charts = []
    if history.sigmas:
        settled = {
            name: settled_sigmas(torch.tensor(losses), history.weighting).tolist()
            for name, losses in history.losses.items()
        }
        note = "dotted: where it would settle at the present loss"
        charts.append(Chart("Noise level σ", history.sigmas, note, dotted=settled))
    if len(history.weights) > 1 or (history.weights and history.sigmas):
        charts.append(Chart("Effective weight", history.weights, "what each loss is multiplied with"))
    charts.append(Chart("Loss of each teacher", history.losses))
    if history.words:
        note = "cross-entropy under the teacher's nearest words"
        charts.append(Chart("Choosing among words", {"words": history.words}, note, color="#555555"))
    if history.trunk is not None:
        charts += _trunk_charts(history.trunk)
    return [*charts, Chart("Learning rate", {"rate": history.rate}, color="#555555")]


def plot_chart(axes: Any, steps: Sequence[int], chart: Chart) -> None:
    """Draw a chart; noise is averaged over a hundredth of the steps.

    Args:
        axes: Matplotlib's Axes to draw in.
        steps: Steps of the training.
        chart: What to draw, a value for each step.
    """
    steps = chart.steps or steps
    width = max(1, math.ceil(len(steps) / 100))
    for lines, style, opacity in ((chart.dotted, ":", 0.7), (chart.lines, "-", 1.0)):
        for index, (name, values) in enumerate(lines.items()):
            own = chart.color or PALETTE[index % len(PALETTE)]
            x, y = _average(steps, width), _average(values, width)
            label = name if style == "-" else None
            look = {"color": own, "alpha": opacity, "linewidth": 1.6 if style == "-" else 1.2}
            axes.plot(x, y, style, label=label, marker="o" if chart.steps else "", markersize=3, **look)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_xlabel("step", color="#555555")
    axes.tick_params(color="#999999", labelcolor="#444444")
    axes.margins(x=0.02)


def draw_history(history: History, path: Path) -> None:
    """Draw all charts of a training into a PNG."""
    from matplotlib.figure import Figure

    charts = training_charts(history)
    figure = Figure(figsize=(4.6 * 2, 2.9 * math.ceil(len(charts) / 2)), layout="constrained")
    for index, chart in enumerate(charts):
        axes = figure.add_subplot(math.ceil(len(charts) / 2), 2, index + 1)
        plot_chart(axes, history.steps, chart)
        axes.set_title(chart.title + (f"\n{chart.note}" if chart.note else ""), fontsize=9, loc="left")
        if len(chart.lines) > 1:
            for text in axes.legend(edgecolor="none", fontsize=8).get_texts():
                text.set_parse_math(False)  # a teacher may have a dollar in its name
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def _trunk_history(looks: Sequence[tuple[int, _Trunk]]) -> TrunkHistory | None:
    """Put the looks at the trunk, each with its step, in columns."""
    if not looks:
        return None

    def by_loss(key: Literal["share", "cosine"]) -> dict[str, tuple[float, ...]]:
        return {name: tuple(_number(look[key].get(name)) for _, look in looks) for name in looks[0][1][key]}

    steps, ranks = tuple(step for step, _ in looks), tuple(_number(look["rank"]) for _, look in looks)
    return TrunkHistory(steps, by_loss("share"), by_loss("cosine"), ranks)


def _trunk_charts(trunk: TrunkHistory) -> list[Chart]:
    """Say what is to be drawn of the trunk; a single loss has all of the gradient at all times."""
    charts = []
    if len(trunk.shares) > 1:
        note = "norm of each loss's gradient at the trunk, of the sum"
        charts.append(Chart("Share of the gradient", trunk.shares, note, steps=trunk.steps))
        note = "of each loss's gradient at the trunk with the sum of all"
        charts.append(Chart("Cosine with the total gradient", trunk.cosines, note, steps=trunk.steps))
    note = "how many directions the features before the heads span"
    ranks = {"effective rank": trunk.ranks}
    return [*charts, Chart("Effective rank", ranks, note, color="#555555", steps=trunk.steps)]


def _average(values: Sequence[float], width: int) -> list[float]:
    """Return the means of `width` neighbours each."""
    return [float(np.mean(values[start : start + width])) for start in range(0, len(values), width)]


def _number(entry: float | None) -> float:
    """Return a number of a JSON file, in which null stands for one that is infinite or NaN."""
    return math.nan if entry is None else entry
