"""The report: one self-contained HTML page with scores, answers, pictures, training curves, time and memory."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure
from torch import Tensor

from cuao3d import pane
from cuao3d.colors import NOTHING
from cuao3d.console import counted
from cuao3d.figures.palette import palette
from cuao3d.figures.segments import alike, clusters, pca_colors, spread
from cuao3d.files import write_text
from cuao3d.finds import Finds, layout
from cuao3d.formats.images import as_pixels, jpeg
from cuao3d.history import PALETTE, Chart, History, plot_chart, training_charts
from cuao3d.labels import LabelSet
from cuao3d.metrics import confusion_matrix, measure
from cuao3d.pictures import Dollhouse
from cuao3d.scene import UNLABELLED, Camera
from cuao3d.vocabulary import divisions

TEMPLATE = "report.html.j2"

SIZE = (640, 480)
"""Width and height of the drawn clouds, pixels."""

PAPER_VOXEL = 0.02
"""Edge of the paper's voxels, metres."""

READOUTS = {
    "fused": ("Fused", "lifted 2D features"),
    "distilled": ("Distilled", "3D student alone"),
    "2d3d": ("2D3D", "both together"),
    "supervised": ("Upper bound", "trained with labels"),
}
TAKEN_FOR, ASKED, TRUST = "Taken for", "Asked in words", "How far to trust it"
"""What the layers of the 3D pane stand under."""

MODELS = {
    "none": "no student",
    "three-teachers": "three-teacher student",
    "single-teacher": "single-teacher student",
    "shipped": "shipped student",
}
"""How the page says the names in the table of results."""


@dataclass(frozen=True, eq=False)
class Cloud:
    """Points to draw."""

    scene: str
    """Name of the scene."""
    points: Float[Tensor, "N 3"]
    """World positions, metres."""
    colors: Float[Tensor, "N 3"] | None = None
    """RGB of each point, in [0, 1]."""
    normals: Float[Tensor, "N 3"] | None = None
    """Unit surface normals, world axes."""
    cameras: tuple[Camera, ...] = ()
    """Views of the scene: where the world's z may not point up, they say what does."""


@dataclass(frozen=True, eq=False)
class Heat:
    """Where a scene answers a question."""

    values: Float[Tensor, "N"]
    """How well each point answers, in [0, 1]."""
    answer: str
    """The answer in words."""
    cloud: Cloud | None = None
    """The scene that was asked, if it is not the gallery's own."""
    seen: Bool[Tensor, "N"] | None = None
    """Points that some view saw; the others can answer nothing. None: all."""


@dataclass(frozen=True, eq=False)
class Gallery(Cloud):
    """What the pictures of a report show; all but the points may be missing."""

    label_set: LabelSet | None = None
    """The classes of `labels` and `predictions`."""
    labels: Int64[Tensor, "N"] | None = None
    """True class of each point, a row of `label_set`; 255 where unlabelled."""
    predictions: Mapping[str, Int64[Tensor, "N"]] = field(default_factory=dict)
    """Class of each point as each read-out has it, a row of `label_set`; 255 for none."""
    finds: Finds | None = None
    """What was found in photographs, of this scene or of another; the first section of the page."""
    photos: Sequence[Float[Tensor, "3 H W"]] = ()
    """Some views, RGB in [0, 1]."""
    heats: Mapping[str, Heat] = field(default_factory=dict)
    """Answer to each question."""
    elsewhere: Mapping[str, Heat] = field(default_factory=dict)
    """Answers of the scene of `finds`, where that is another one; they are shown in the 3D pane alone, and first."""
    layers: Mapping[str, Heat] = field(default_factory=dict)
    """What else is known of the points, such as how unsure they are; by title, drawn as answers are."""
    segments: Mapping[str, tuple[Float[Tensor, "V C"], Int64[Tensor, "N"]]] = field(default_factory=dict)
    """Features to cluster, and the row of each point in them; -1 for none."""
    history: History | None = None
    """How the student was trained."""


def write_report(path: Path | str, results: Mapping[str, Any], gallery: Gallery) -> None:
    """Write one self-contained HTML file with what the results and the gallery contain.

    Args:
        path: File to write; it appears when it is complete.
        results: What `results.json` holds, as far as known: `rows`, `ceiling` and `shipped` (lines of the table of
            results, as of `evaluate.Row`), `chance_miou`, `constant_miou`, `stages` (`name`, `seconds`,
            `peak_rss_mb`), `voxel_size` (metres), `sigma_steps`, `config` (`num_train_rooms`, `num_val_rooms`,
            `num_views`, `num_steps`), `seed`, `version`, `machine`, `date`.
        gallery: What to draw.
    """
    path = Path(path)
    painter, table = _Painter(gallery), _table(results)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    page = environment.get_template(TEMPLATE).render(
        title=(gallery.finds and gallery.finds.page_title) or gallery.scene,
        scene=gallery.scene,
        about=_about(results, gallery),
        warning=_voxel_warning(results),
        found=layout(gallery.finds) if gallery.finds else None,
        photos=[_jpeg_uri(as_pixels(photo)) for photo in gallery.photos],
        scene_pictures=painter.scene(),
        predictions=painter.predictions(),
        legend=_legend(gallery),
        heats=painter.heats(gallery.heats, ASKED),
        layers=painter.heats(gallery.layers, TRUST),
        unseen=_unseen(gallery) > 0,
        segments=painter.segments(int(results.get("seed", 0))),
        pane=pane.for_page(painter.exhibits()),
        table=table,
        asked=[(line, *asked) for group in table for line in group["lines"] for asked in line["asked"]],
        by_seen=[(line, *divided) for group in table for line in group["lines"] for divided in line["by_seen"]],
        per_class=_per_class(results),
        charts=_charts(gallery.history) if gallery.history else [],
        losses=_names_of_lines(gallery.history) if gallery.history else [],
        stages=_stages(results.get("stages", [])),
        provenance=_provenance(results),
        num_points=len(gallery.points),
    )
    write_text(path, page)


class _Painter:
    """Draws the pictures of a gallery as (name, note, image) triples; each cloud is put in view once.

    What was drawn can be had again as the exhibits of the 3D pane.
    """

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self.houses: dict[str, Dollhouse] = {}
        self.layers: dict[str, list[pane.Layer]] = {}

    def draw(self, layer: pane.Layer, cloud: Cloud | None = None) -> str:
        """Draw a cloud, the gallery's own unless given, in the colours of a layer."""
        cloud = cloud or self.gallery
        if cloud.scene not in self.houses:
            self.houses[cloud.scene] = Dollhouse(cloud.points, cloud.normals, size=SIZE, cameras=cloud.cameras)
            own = [] if cloud.colors is None else [pane.photograph(cloud.colors)]
            self.layers[cloud.scene] = own
        if layer.group != pane.PHOTOGRAPH:
            self.layers[cloud.scene].append(layer)
        return _jpeg_uri(self.houses[cloud.scene].draw(layer.colors))

    def exhibits(self) -> list[pane.Exhibit]:
        """Return the clouds that were drawn, the gallery's own first, with all that was shown of each."""
        self.heats(self.gallery.elsewhere, ASKED)
        first = {heat.cloud.scene for heat in self.gallery.elsewhere.values() if heat.cloud}
        names = sorted(self.houses, key=lambda name: (name not in first, name != self.gallery.scene))
        return [pane.Exhibit(name, self.houses[name].view, self.layers[name]) for name in names if self.layers[name]]

    def scene(self) -> list[tuple[str, str, str]]:
        """Draw what went in and, where it is known, the truth."""
        gallery, pictures = self.gallery, []
        if gallery.colors is not None:
            note = counted(len(gallery.points), "point")
            pictures.append(("Input", note, self.draw(pane.photograph(gallery.colors))))
        if gallery.labels is not None and gallery.label_set is not None:
            note = "never shown to teachers or student"
            truth = self.draw(pane.classes("Truth", TAKEN_FOR, gallery.labels, gallery.label_set, note))
            pictures.append(("Truth", note, truth))
        return pictures

    def predictions(self) -> list[tuple[str, str, str]]:
        """Draw what each read-out takes the points for."""
        gallery, pictures = self.gallery, []
        if gallery.label_set is None:
            return []
        for name, classes in gallery.predictions.items():
            title, note = READOUTS.get(name, (name, ""))
            if gallery.labels is not None:
                confusion = confusion_matrix(classes, gallery.labels, len(gallery.label_set))
                note += f"{', ' if note else ''}mIoU {100 * measure(confusion).miou:.0f} in this scene"
            layer = pane.classes(title, TAKEN_FOR, classes, gallery.label_set, note)
            pictures.append((title, note, self.draw(layer)))
        return pictures

    def heats(self, heats: Mapping[str, Heat], group: str) -> list[tuple[str, str, str]]:
        """Draw where the answers to the questions are, or where a layer is high."""
        pictures = []
        for question, heat in heats.items():
            cloud = heat.cloud or self.gallery
            where = f"{heat.answer} — {cloud.scene}" if cloud.scene != self.gallery.scene else heat.answer
            layer = pane.heat(question, group, heat.values, cloud.colors, heat.seen, heat.answer)
            pictures.append((question, where, self.draw(layer, cloud)))
        return pictures

    def segments(self, seed: int) -> list[tuple[str, str, str]]:
        """Draw K-Means segments and principal components of features; like segments have like colours."""
        pictures: list[tuple[str, str, str]] = []
        first: Tensor | None = None
        for name, (features, row_of_point) in self.gallery.segments.items():
            segment = spread(clusters(features, seed=seed), row_of_point, -1)
            segment, first = (segment, segment) if first is None else (alike(segment, first), first)
            principal = spread(pca_colors(features), row_of_point, NOTHING)
            segmented = pane.Layer(name, "K-Means", palette()[segment])
            components = pane.Layer(name, "PCA", principal)
            pictures.append((name, self.draw(segmented), self.draw(components)))
        return pictures


def _jpeg_uri(image: UInt8[np.ndarray, "H W 3"]) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(image, quality=86)).decode()


def _about(results: Mapping[str, Any], gallery: Gallery) -> str:
    """Say in a few sentences what was done, as far as the results tell."""
    config, said = results.get("config", {}), []
    if gallery.history is not None:
        names = ", ".join(gallery.history.losses)
        rooms = "the training scenes"
        if "num_train_rooms" in config:
            rooms = counted(config["num_train_rooms"], "training room")
        views = f", photographed in {counted(config['num_views'], 'view')} each," if "num_views" in config else ""
        said.append(
            f"What the image networks {names} see in {rooms}{views} was lifted onto the points, and a sparse 3D "
            f"network learned to say the same from geometry alone, in {len(gallery.history.steps):,} steps and without "
            "labels of these scenes."
        )
    if results.get("rows"):
        rooms = counted(config["num_val_rooms"], "room") if "num_val_rooms" in config else "scenes"
        unseen = all(row.get("split") in ("val", "test") for row in results["rows"])
        said.append(f"It was scored on {rooms}{' that it never saw' if unseen else ''}; one of them is shown here.")
    elif gallery.heats:
        said.append(f"{counted(len(gallery.points), 'point')}, asked in words.")
        if (share := _unseen(gallery)) >= 0.005:
            said.append(f"No view saw {100 * share:.0f} % of them (blue): an answer says nothing about these.")
    if "answered_by" in results:
        said.append(results["answered_by"])
    if "voxel_size" in results:
        paper = "" if results["voxel_size"] == PAPER_VOXEL else f" (the paper's: {100 * PAPER_VOXEL:g} cm)"
        said.append(f"Voxels of {100 * results['voxel_size']:g} cm{paper}.")
    if "seed" in results:
        said.append(f"Seed {results['seed']}.")
    return " ".join(said)


def _unseen(gallery: Gallery) -> float:
    """Return the largest share of a scene's points that no view saw, 0 to 1, of all scenes that were asked."""
    masks = [heat.seen for heat in gallery.heats.values() if heat.seen is not None]
    return max((1 - float(seen.float().mean()) for seen in masks), default=0.0)


def _voxel_warning(results: Mapping[str, Any]) -> str:
    """Say that figures of coarse voxels do not compare with those of the paper."""
    voxel = results.get("voxel_size", PAPER_VOXEL)
    if voxel <= PAPER_VOXEL:
        return ""
    return (
        f"Voxels of {100 * voxel:g} cm, coarser than the paper's {100 * PAPER_VOXEL:g} cm: these figures compare with "
        "each other, not with published ones."
    )


def _legend(gallery: Gallery) -> list[tuple[str, str]]:
    """List the classes in sight with their colours."""
    shown = [*gallery.predictions.values(), *([] if gallery.labels is None else [gallery.labels])]
    if gallery.label_set is None or not shown:
        return []
    present = set(torch.bincount(torch.cat(shown)).nonzero()[:, 0].tolist())
    rows = [row for row in range(len(gallery.label_set)) if row in present]
    legend = [(gallery.label_set.names[row], pane.as_hex(gallery.label_set.colors[row])) for row in rows]
    return legend + ([("none", pane.as_hex(torch.full((3,), NOTHING)))] if UNLABELLED in present else [])


def _table(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the groups of the results table, each with a title, a note and lines."""
    bounds = [_line({**row, "model": f"{row['model']}, {row['split']} scenes"}) for row in results.get("ceiling", [])]
    for key, name in (("constant_miou", "always the most frequent class"), ("chance_miou", "shuffled predictions")):
        if key in results:
            bounds.append(_line({"model": name, "readout": "Floor", "miou": results[key]}))
    groups = [
        ("This run", "", [_line(row) for row in results.get("rows", [])]),
        (
            "Shipped with the package",
            "a student that was trained for longer on more rooms, on the same scenes; not trained just now",
            [_line(row) for row in results.get("shipped", [])],
        ),
        ("The same in ScanNet's 20 classes", "", [{**_line(row), "by_seen": []} for row in results.get("coarse", [])]),
        ("To compare", "", bounds),
    ]
    return [{"title": title, "note": note, "lines": lines} for title, note, lines in groups if lines]


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of the results table."""
    title, note = READOUTS.get(row["readout"], (row["readout"], ""))
    return {
        "model": MODELS.get(row["model"], row["model"]),
        "readout": f"{title}, {note}" if note else title,
        "scores": [row.get(key) for key in ("miou", "macc", "fmiou", "miou_official")],
        "by_seen": [
            (who, divided["vocabulary"], [divided[key] for key in ("miou_seen", "miou_unseen", "harmonic")])
            for who, divided in divisions(row)
        ],
        "asked": list(row.get("retrieval", {}).items()),
        "num_points": row.get("num_points"),
    }


def _per_class(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return IoU by class (line) and read-out (column), each with marks: s and t, a word of student and of teacher."""
    ceiling = [{**row, "readout": f"{row['split']} scenes"} for row in results.get("ceiling", [])]
    rows = [row for row in [*results.get("rows", []), *ceiling] if row.get("iou")]
    names = list(dict.fromkeys(name for row in rows for name in row["iou"]))
    columns = [("" if row["model"] == "none" else row["model"], row["readout"]) for row in rows]
    lines = [(name, [(row["iou"].get(name), _marks(row, name)) for row in rows]) for name in names]
    return {"columns": columns, "lines": lines}


def _marks(row: Mapping[str, Any], name: str) -> str:
    """Return s if a class name was a training word of a row's student, t if one of its teacher."""
    divided = {mark: row.get(key) or {} for mark, key in (("s", "by_student"), ("t", "by_teacher"))}
    return "".join(mark for mark, about in divided.items() if name in (about.get("seen") or ()))


def _stages(stages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the stages with their share of the longest."""
    stages = list(stages)
    longest = max((stage["seconds"] for stage in stages), default=0) or 1
    return [{**stage, "share": 100 * stage["seconds"] / longest} for stage in stages]


def _provenance(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List what is needed to get the same again."""
    keys = ("version", "seed", "voxel_size", "machine", "date")
    names = ("cuao3d", "seed", "voxel, metres", "machine", "date")
    listed = [(name, str(results[key])) for key, name in zip(keys, names, strict=True) if key in results]
    return listed + [(key.replace("_", " "), str(value)) for key, value in results.get("config", {}).items()]


def _charts(history: History) -> list[tuple[str, str, str]]:
    """Draw how training went: title, note and image."""
    return [(chart.title, chart.note, _draw_chart(history.steps, chart)) for chart in training_charts(history)]


def _names_of_lines(history: History) -> list[tuple[str, str]]:
    """Name each colour of the charts: those of the teachers, and of what else pulls at the trunk."""
    names = dict.fromkeys([*history.losses, *(history.trunk.shares if history.trunk else ())])
    return list(zip(names, PALETTE, strict=False))


def _draw_chart(steps: Sequence[int], chart: Chart) -> str:
    """Draw a chart as an SVG image."""
    with matplotlib.rc_context({"svg.hashsalt": "cuao3d", "font.size": 8, "axes.edgecolor": "#999999"}):
        figure = Figure(figsize=(4.2, 2.3), layout="constrained")
        plot_chart(figure.add_subplot(), steps, chart)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
