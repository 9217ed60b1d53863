"""The check as one self-contained HTML page: verdict, reasons, and pictures of what they rest on."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn import functional

from cuao3d.check import Report
from cuao3d.check.cloud import views_of_cells
from cuao3d.check.consistency import measure_consistency
from cuao3d.check.pictures import draw_agreement
from cuao3d.check.readings import Reading, reading_named
from cuao3d.check.registration import REACH
from cuao3d.check.views import View, num_probes, on_one_thread, read_views
from cuao3d.files import write_text
from cuao3d.readers.cloud import depth_edges
from cuao3d.scene import Frame, Scene

TEMPLATE = "page.html.j2"

NUM_ODD = 12
"""Odd frames that are shown at most."""

MANY = 10
"""Views from which on a cell's colour no longer changes."""

Picture = tuple[str, str, str]
"""Title, note and image."""


@on_one_thread()
def write_page(scene: Scene | str, report: Report, path: Path | str) -> None:
    """Write one HTML file that needs nothing else.

    Args:
        scene: The scene that was checked; its views are read again. Of one that could not be read, its name.
        report: Its report from `check`.
        path: File to write; it appears when it is complete.
    """
    num_wrong = len(report.causes) if report.verdict != "unreadable" else 1
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    page = environment.get_template(TEMPLATE).render(
        scene=scene if isinstance(scene, str) else scene.name,
        report=report,
        wrong=list(zip(report.causes or ("unreadable",), report.reasons[:num_wrong], strict=False)),
        remarks=report.reasons[num_wrong:],
        options=json.dumps(report.options) if report.options else "",
        **(_NOTHING if isinstance(scene, str) or report.verdict == "unreadable" else _shown(scene, report)),
    )
    write_text(Path(path), page.encode("utf-8", errors="backslashreplace").decode())  # of names that are not UTF-8


_NOTHING: dict[str, Any] = {"facts": [], "readings": [], "agreement": "", "pictures": [], "odd": []}
"""What is shown of a scene that could not be read."""


def _shown(scene: Scene, report: Report) -> dict[str, Any]:
    """Return what is shown of a scene: what was measured, and pictures of it."""
    return {
        "facts": _facts(report.measurements),
        "readings": _readings(report.measurements),
        "agreement": _uri(draw_agreement(scene, report), dpi=80),
        "pictures": _pictures(scene, report),
        "odd": _odd_frames(scene, report.measurements),
    }


def _facts(measured: dict[str, Any]) -> list[tuple[str, str]]:
    """List what was measured, in words."""
    depth, coverage, overlap, up = measured["depth"], measured["coverage"], measured["overlap"], measured["up"]
    offset, (fx, fy), (cx, cy) = measured["registration"], measured["focal"], measured["center"]
    facing = "" if up["facing"] is None else f", {up['facing']:.0%} of the level surfaces face it"
    tilt = "" if up["tilt"] is None else f", {up['tilt']:.1f} degrees off +z"
    where = f"{offset['x']:+d}, {offset['y']:+d} pixels (right, down)" if offset["certain"] else "could not be told"
    return [
        ("frames", f"{measured['num_frames']}, {measured['num_views_tested']} tested, {measured['num_left_out']} lost"),
        ("images", ", ".join(f"{width} x {height}" for width, height in measured["image_sizes"])),
        ("intrinsics", f"fx {fx:.2f}, fy {fy:.2f}, cx {cx:.2f}, cy {cy:.2f}"),
        ("rotations", f"off a rotation by {measured['rotation_error']:.1e} at most"),
        (
            "depth",
            f"{depth['near']:.2f} to {depth['far']:.2f} m (5 to 95 %), median {depth['median']:.2f} m, "
            f"{depth['missing']:.0%} missing",
        ),
        ("colours against depth", where),
        ("up", f"{up['axis'] or 'not clear'}{tilt}{facing}"),
        (
            "coverage",
            f"{coverage['seen']:.1%} of the cells of {100 * coverage['cell']:g} cm, "
            f"{coverage['views_per_cell']:.1f} views per cell",
        ),
        (
            "overlap",
            f"{overlap['neighbours_per_view']:.1f} neighbours per view, {overlap['groups']} connected group(s)",
        ),
        ("points", f"{measured['num_points']:,}"),
    ]


def _readings(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """List how well views agree under each reading, the likeliest marked."""
    readings = measured["readings"]
    best = max(reading["agreeing"] for reading in readings.values()) or 1
    return [
        {
            "name": name,
            "likeliest": name == measured["likeliest"],
            "agreeing": 100 * reading["agreeing"],
            "consistent": 100 * reading["consistent"],
            "share": 100 * reading["agreeing"] / best,
        }
        for name, reading in readings.items()
    ]


def _pictures(scene: Scene, report: Report) -> list[Picture]:
    """Draw coverage, overlap and registration."""
    views = read_views(scene).views
    full = next(frame for frame in scene.frames if frame.name == views[0].name)
    likeliest = reading_named(report.measurements["likeliest"], full.camera)
    return [
        _draw_coverage(scene, views, report.measurements["up"]["axis"]),
        _draw_overlap(views, likeliest),
        _draw_offsets(views),
        _draw_edges(full, report.measurements["registration"]),
    ]


def _draw_coverage(scene: Scene, views: list[View], up: str | None) -> Picture:
    points, num_views, _ = views_of_cells(scene, views)
    axis = "xyz".index((up or "z")[-1])
    across, along = [index for index in range(3) if index != axis]
    figure = Figure(figsize=(5.4, 4.4), layout="constrained")
    plot = figure.add_subplot(aspect="equal")
    order = points[:, axis].argsort(descending=up is not None and up.startswith("-"))
    shown = plot.scatter(
        points[order, across], points[order, along], c=num_views[order], s=2, linewidths=0, cmap="viridis", vmax=MANY
    )
    poses = torch.stack([view.camera.world_from_camera for view in views])
    eyes, forward = poses[:, :3, 3], poses[:, :3, 2]
    plot.quiver(
        eyes[:, across], eyes[:, along], forward[:, across], forward[:, along], color="#e0312b", width=0.004, scale=25
    )
    plot.set_xlabel(f"{'xyz'[across]}, metres")
    plot.set_ylabel(f"{'xyz'[along]}, metres")
    figure.colorbar(shown, label="views that see a cell", shrink=0.8, extend="max")
    return "Coverage", "the cloud along its up axis; red: the views and where they look", _uri(figure)


def _draw_overlap(views: list[View], likeliest: Reading) -> Picture:
    found = measure_consistency(views, likeliest)
    share = (found.agreeing / num_probes(views)[:, None]).fill_diagonal_(1)
    figure = Figure(figsize=(5.4, 4.4), layout="constrained")
    plot = figure.add_subplot()
    shown = plot.imshow(share.numpy(), vmin=0, vmax=1, cmap="magma")
    for axis in (plot.xaxis, plot.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    plot.set_xlabel("... that agree with this one")
    plot.set_ylabel("pixels of this view ...")
    figure.colorbar(shown, shrink=0.8)
    return "Overlap", f"share of a view's pixels that agree with another's depth, {likeliest.name}", _uri(figure)


def _draw_offsets(views: list[View]) -> Picture:
    agreement = torch.stack([view.photo.offsets for view in views]).mean(dim=0)
    reach = (REACH + 0.5) * views[0].photo.thinned_by
    figure = Figure(figsize=(5.4, 4.4), layout="constrained")
    plot = figure.add_subplot()
    shown = plot.imshow(agreement.numpy(), extent=(-reach, reach, reach, -reach), cmap="magma")
    plot.plot(0, 0, "+", color="#5ec8ff", markersize=14)
    plot.set_xlabel("colours further right than depth, pixels")
    plot.set_ylabel("further down, pixels")
    figure.colorbar(shown, label="correlation of their edges", shrink=0.8)
    return "Colours on depth: offset", "the brightest spot should lie on the cross", _uri(figure)


def _draw_edges(frame: Frame, offset: dict[str, Any]) -> Picture:
    image, depth = frame.read_image(), frame.read_depth()
    jumps = depth_edges(depth) & (depth > 0)
    picture = torch.where(jumps, torch.tensor([1.0, 0.15, 0.1])[:, None, None], image)
    where = f"; best moved by {offset['x']:+d}, {offset['y']:+d}" if offset["certain"] else ""
    return "Colours on depth: edges", f"{frame.name}; red: where depth jumps{where}", _photo_uri(picture, width=540)


def _odd_frames(scene: Scene, measured: dict[str, Any]) -> list[Picture]:
    """Show the frames that stand out, each with what is odd about it."""
    odd: dict[str, list[str]] = {}
    for kind in ("underexposed", "overexposed", "blurred", "dark", "bright"):
        for name in measured["photos"][kind]:
            odd.setdefault(name, []).append(kind)
    for name in measured["overlap"]["apart"]:
        odd.setdefault(name, []).append("overlaps with no other view of the main group")
    frame_of_name = {frame.name: frame for frame in scene.frames}
    chosen = list(odd.items())[:NUM_ODD]
    return [(name, ", ".join(kinds), _photo_uri(frame_of_name[name].read_image())) for name, kinds in chosen]


def _photo_uri(image: Tensor, width: int = 240) -> str:
    """Return an image (3, H, W) in [0, 1] as a JPEG of about a width."""
    size = (round(image.shape[1] * width / image.shape[2]), width)
    pixels = functional.interpolate(image[None], size, mode="area")[0].clamp(0, 1).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, np.ascontiguousarray(pixels), format="jpeg")
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _uri(figure: Figure, dpi: int = 90) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
