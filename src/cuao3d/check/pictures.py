"""How well views agree, drawn: the surface of one view on the picture of another, coloured by its depth error."""

from pathlib import Path
from textwrap import wrap

import torch
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from cuao3d.check import Report
from cuao3d.check.consistency import TOLERANCE, land
from cuao3d.check.readings import AS_GIVEN, Reading, reading_named
from cuao3d.console import visible
from cuao3d.errors import InputError
from cuao3d.files import write_whole
from cuao3d.geometry import back_project
from cuao3d.scene import Frame, Scene


def draw(scene: Scene, report: Report, path: Path | str) -> None:
    """Draw how well views agree: the surface of one on the picture of another, coloured by its depth error.

    Args:
        scene: The scene that was checked.
        report: Its report from `check`; the `pairs` are drawn, also as they would be without the likeliest mistake.
        path: PNG to write.

    Raises:
        InputError: The scene has no view to draw.
    """
    figure = draw_agreement(scene, report)
    title = visible(f"{scene.name}: {report.verdict}. {report.reasons[0] if report.exit_code else ''}")
    figure.suptitle("\n".join(wrap(title, 90)), parse_math=False)
    write_whole(Path(path), lambda temporary: figure.savefig(temporary, format="png", dpi=100))


def draw_agreement(scene: Scene, report: Report) -> Figure:
    """Draw the report's pairs of views, as `draw` does, without a title."""
    if report.verdict == "unreadable":
        raise InputError(f"Scene {scene.name} has no view to draw: {report.reasons[0]}")
    frame_of_name = {frame.name: frame for frame in scene.frames}
    pairs = [(frame_of_name[pair["first"]], frame_of_name[pair["second"]]) for pair in report.measurements["pairs"]]
    names = dict.fromkeys((AS_GIVEN.name, report.measurements["likeliest"]))
    readings = [reading_named(name, pairs[0][0].camera) for name in names]
    figure = Figure(figsize=(4.6 * (1 + len(readings)), 3.9 * len(pairs) + 1), layout="constrained")
    axes = figure.subplots(len(pairs), 1 + len(readings), squeeze=False)
    for row, (first, second) in zip(axes, pairs, strict=True):
        row[0].imshow(first.read_image().permute(1, 2, 0).numpy())
        row[0].set_title(visible(first.name), parse_math=False)
        for axis, reading in zip(row[1:], readings, strict=True):
            points = _draw_pair(axis, first, second, reading)
    for axis in axes.flat:
        axis.set_axis_off()
    bar = figure.colorbar(points, ax=axes, location="bottom", shrink=0.8, aspect=70, pad=0.01, extend="both")
    bar.set_label(
        "in front of what was measured: contradiction  ←  depth error, % of depth  →  behind: hidden, or wrong"
    )
    return figure


_COLORS = LinearSegmentedColormap.from_list("error", ["#ff2d20", "#ffd24a", "#2fc35a", "#5ec8ff", "#2350ff"])


def _draw_pair(axis: Axes, first: Frame, second: Frame, reading: Reading) -> PathCollection:
    """Draw the surface of the first view on the second's picture; return the points, for their colour bar."""
    step = max(1, round(first.camera.width / 107))
    depth, thinned = first.read_depth(), torch.zeros(first.camera.height, first.camera.width)
    thinned[step // 2 :: step, step // 2 :: step] = depth[step // 2 :: step, step // 2 :: step]
    points, _ = back_project(reading.depth(thinned, first.camera), reading.camera(first.camera))
    landed, measured = land(points, reading.camera(second.camera), reading.depth(second.read_depth(), second.camera))
    percent = 100 * (landed.depth - measured) / measured
    overlap = len(percent) / max(len(points), 1)
    agreeing = int((percent.abs() <= 100 * TOLERANCE).sum()) / max(len(percent), 1)
    axis.imshow(second.read_image().mean(0).numpy() * 0.5 + 0.5, cmap="gray", vmin=0, vmax=1)
    axis.set_title(
        f"{visible(first.name)} on {visible(second.name)}, {reading.name}:\n"
        f"{overlap:.0%} land there, {agreeing:.0%} of them agree",
        parse_math=False,
    )
    x, y = landed.pixels.numpy().T
    return axis.scatter(x, y, c=percent.numpy(), cmap=_COLORS, vmin=-20, vmax=20, s=5, linewidths=0)
