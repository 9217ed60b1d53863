"""Figures of several panels with titles, notes and one legend; what is drawn never depends on markup in a name."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from torch import Tensor

from cuao3d.colors import NOTHING
from cuao3d.console import visible
from cuao3d.files import write_whole
from cuao3d.labels import LabelSet
from cuao3d.pictures import Dollhouse
from cuao3d.scene import UNLABELLED
from cuao3d.store import StoredScene

SIZE = (560, 420)
"""Width and height of a drawn cloud, pixels."""

WIDTH, HEIGHT = 3.4, 2.55
"""Of a panel, inches."""

ACROSS = 4
"""Panels side by side at most."""

DPI = 110

MOST_NAMED = 24
"""Classes in a legend at most."""

TITLE, NAME, TEXT = 14.0, 11.0, 9.5
"""Sizes of letters, points: of the figure's title, of a panel's, of notes and legends."""

ABOVE = 90.0
"""Elevation of an eye that looks straight down, degrees."""

Picture = UInt8[np.ndarray, "H W 3"]
Legend = Sequence[tuple[str, Any]]
"""Names and their colours, as matplotlib takes them."""


@dataclass(frozen=True, eq=False)
class Panel:
    """A column of a figure: pictures one below the other."""

    title: str
    """What is shown, in a few words."""
    pictures: tuple[Picture | str, ...]
    """From the top; words stand where there is nothing to draw, and say why."""
    note: str = ""
    """What else to know."""


class Looks:
    """Draws a scene from a corner of the room and from above; what covers which pixel is worked out once."""

    def __init__(self, scene: StoredScene) -> None:
        """Find both views of a scene."""
        look: dict[str, Any] = {"normals": scene.normals, "cameras": scene.cameras, "size": SIZE}
        self._houses = (
            Dollhouse(scene.points, **look),
            Dollhouse(scene.points, **look, azimuth=-90.0, elevation=ABOVE),
        )
        self.view = self._houses[0].view

    def __call__(self, colors: Float[Tensor, "N 3"]) -> tuple[Picture, Picture]:
        """Return both pictures of the scene in some colours, RGB in [0, 1]."""
        first, second = (house.draw(colors) for house in self._houses)
        return first, second


def draw_panels(title: str, panels: Sequence[Panel], *, legend: Legend = ()) -> Figure:
    """Draw panels side by side, `ACROSS` of them in a band, with a legend below.

    Args:
        title: What the figure shows, for a reader who knows nothing of it.
        panels: The panels, all with the same number of pictures.
        legend: Names and colours.
    """
    if not panels:
        return draw_words(title, "There is nothing to show.")
    (across, bands), deep = grid(len(panels)), max(len(panel.pictures) for panel in panels)
    has_notes = any(panel.note for panel in panels)
    figure = begin_figure(title, across * WIDTH, bands * (deep * HEIGHT + 0.5), legend=legend)
    axes = figure.subplots(bands * deep, across, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for index, panel in enumerate(panels):
        band, column = divmod(index, across)
        for row, picture in enumerate(panel.pictures):
            axis = axes[band * deep + row, column]
            if isinstance(picture, str):
                write_words(axis, picture)
            else:
                axis.imshow(picture)
        entitle(axes[band * deep, column], panel.title, panel.note or (" " if has_notes else ""))
    return figure


def grid(num_panels: int, most: int = ACROSS) -> tuple[int, int]:
    """Return how many panels, of at least one, stand side by side and in how many bands; the bands are about full."""
    bands = math.ceil(num_panels / most)
    return math.ceil(num_panels / bands), bands


def begin_figure(title: str, width: float, height: float, *, legend: Legend = ()) -> Figure:
    """Begin a figure that keeps its parts apart.

    Args:
        title: Its title; broken into lines.
        width: Inches.
        height: Of what is drawn, inches; title and legend are added.
        legend: Names and colours, below the rest.
    """
    width = max(width, 5.0)
    lines = wrap(visible(title), int(width / TITLE * 125)) or [""]
    names = [cut(text) for text, _ in legend]
    across = max(1, min(len(names), int(width / (0.5 + max(map(len, names)) * TEXT / 130)))) if names else 1
    height += 0.3 * len(lines) + 0.21 * math.ceil(len(names) / across)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.05))
    figure.suptitle("\n".join(lines), fontsize=TITLE, fontweight="bold", x=0.01, ha="left", parse_math=False)
    if names:
        patches = [
            Patch(facecolor=color, edgecolor="none" if color == "none" else "#777777", linewidth=0.4)
            for _, color in legend
        ]
        shown = figure.legend(patches, names, loc="outside lower center", ncols=across, frameon=False, fontsize=TEXT)
        for text in shown.get_texts():
            text.set_parse_math(False)
    return figure


def draw_words(title: str, words: str) -> Figure:
    """Draw a figure that says why there is nothing to draw."""
    figure = begin_figure(title, 2 * WIDTH, 1.2)
    axis = figure.add_subplot()
    axis.set_axis_off()
    write_words(axis, words)
    return figure


def entitle(axis: Any, title: str, note: str = "") -> None:
    """Write the title of a panel, and a note in smaller letters between it and the picture."""
    axis.set_title(cut(title, 34), fontsize=NAME, loc="left", pad=18 if note else 6, parse_math=False)
    if note:
        place = {"xy": (0, 1), "xycoords": "axes fraction", "xytext": (0, 4), "textcoords": "offset points"}
        axis.annotate(cut(note, 60), **place, fontsize=TEXT - 1, color="#555555", parse_math=False)


def write_words(axis: Any, words: str) -> None:
    """Write words where a picture would be."""
    lines = "\n".join(wrap(visible(words), 34))
    place = {"transform": axis.transAxes, "ha": "center", "va": "center"}
    axis.text(0.5, 0.5, lines, **place, fontsize=TEXT, color="#555555", parse_math=False)


def cut(text: str, most: int = 40) -> str:
    """Return a name of somebody's on one line, of `most` characters at most."""
    text = visible(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def class_legend(label_set: LabelSet, shown: Sequence[Int64[Tensor, "..."]]) -> list[tuple[str, Any]]:
    """List the classes that occur with their colours, in the order of the label set; 255 as "none".

    Args:
        label_set: The classes.
        shown: Classes of points, one tensor a picture, rows of the label set. Where more than `MOST_NAMED` occur, the
            ones are listed that take most of a picture.
    """
    share = torch.zeros(UNLABELLED + 1)
    for classes in shown:
        share = share.maximum(torch.bincount(classes, minlength=UNLABELLED + 1) / max(len(classes), 1))
    none, share[UNLABELLED] = share[UNLABELLED] > 0, 0
    largest = share.argsort(descending=True, stable=True)[:MOST_NAMED]
    rows = largest[share[largest] > 0].sort().values.tolist()
    legend: list[tuple[str, Any]] = [(label_set.names[row], label_set.colors[row].tolist()) for row in rows]
    legend += [("none", [NOTHING] * 3)] if none else []
    num_others = int((share > 0).sum()) - len(rows)
    return legend + ([(f"and {num_others} rarer classes", "none")] if num_others else [])


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as a PNG; it appears when it is complete."""
    write_whole(Path(path), lambda temporary: figure.savefig(temporary, format="png", dpi=DPI))


def as_uri(figure: Figure) -> str:
    """Return a figure as a picture that a page holds within itself."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", dpi=DPI, pil_kwargs={"quality": 88})
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
