"""A training, drawn: noise levels, losses and what else was written down of its steps."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from cuao3d.figures.panels import HEIGHT, begin_figure, draw_words, entitle, grid
from cuao3d.history import PALETTE, Chart, History, plot_chart, training_charts

WIDE = 4.2
"""Width of a chart, inches."""


def draw_training(history: History, title: str) -> Figure:
    """Draw all that is known of a training; see `training_charts`."""
    return _draw(history, training_charts(history), title)


def draw_sigmas(history: History, title: str) -> Figure:
    """Draw how the noise level of each teacher, which weights its loss, moved and where it would settle."""
    if not history.sigmas:
        how = f"The losses were weighted otherwise ({history.weighting}): no noise level was learned."
        return draw_words(title, how)
    return _draw(history, training_charts(history)[:1], title)


def _draw(history: History, charts: Sequence[Chart], title: str) -> Figure:
    """Draw charts with one legend for all lines that have colours of their own."""
    if not history.steps:
        return draw_words(title, "No step of this training was written down.")
    names = dict.fromkeys([*history.losses, *(history.trunk.shares if history.trunk else ())])
    across, deep = grid(len(charts), 3)
    legend = list(zip(names, PALETTE, strict=False))
    figure = begin_figure(title, max(across, 1.6) * WIDE, deep * (HEIGHT + 0.3), legend=legend)
    for index, chart in enumerate(charts):
        axis = figure.add_subplot(deep, across, index + 1)
        plot_chart(axis, history.steps, chart)
        entitle(axis, chart.title, chart.note or " ")
    return figure
