import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from cuao3d import pane
from cuao3d.colors import class_colors, heat_colors
from cuao3d.history import History, TrunkHistory
from cuao3d.labels import label_set
from cuao3d.metrics import Counted, make_row
from cuao3d.report import (
    Cloud,
    Gallery,
    Heat,
    write_report,
)
from cuao3d.retrieval import QueryScore, Retrieval
from cuao3d.scene import Scene
from cuao3d.vocabulary import Told, Vocabulary

SCANNET = label_set("scannet20")


@pytest.fixture
def gallery(synthetic_scene: Scene) -> Gallery:
    scene, labels = synthetic_scene, synthetic_scene.labels
    assert labels is not None
    features = torch.nn.functional.one_hot(labels, 20).float()
    row_of_point = torch.arange(len(labels)).where(labels == 0, -1)
    kitchen = Cloud("kitchen", scene.points, scene.colors)
    return Gallery(
        scene="synthetic",
        points=scene.points,
        colors=scene.colors,
        label_set=SCANNET,
        labels=labels,
        predictions={"fused": labels, "shipped student": torch.full_like(labels, 255)},
        photos=[scene.frames[0].read_image()],
        heats={
            "something green": Heat((labels == 10).float(), "at (0.00, 1.00, 1.00) m"),
            "a fridge": Heat(torch.zeros(len(labels)), "not in this scene", kitchen),
        },
        segments={"color, lifted": (features[labels == 0], row_of_point.where(labels != 0, torch.arange(len(labels))))},
        history=History(
            steps=(0, 1),
            losses={"color": (1.0, 0.5)},
            sigmas={"color": (1.0, 0.9)},
            weights={"color": (0.5, 0.6)},
            rate=(1e-3, 0.0),
        ),
    )


@pytest.fixture
def results() -> dict:
    confusions = {"fused": torch.eye(21, 20).long()}
    counted = Counted(confusions, confusions, num_scenes=1, missing={})
    row = asdict(make_row(counted, SCANNET, model="none", readout="fused", dataset="rooms", split="val"))
    return {
        "rows": [row, {**row, "model": "three-teachers", "readout": "distilled", "miou": 17.25, "fmiou": math.nan}],
        "shipped": [{**row, "model": "three-teachers", "readout": "2d3d", "miou": 41.5}],
        "ceiling": [{**row, "model": "supervised", "readout": "supervised", "miou": 52.0}],
        "chance_miou": 3.125,
        "stages": [{"name": "lifting", "seconds": 12.0, "peak_rss_mb": 800}],
        "voxel_size": 0.05,
        "seed": 3,
        "version": "0.1.0",
    }


def test_the_page_needs_nothing_but_itself(tmp_path, gallery, results):
    write_report(tmp_path / "new" / "report.html", results, gallery)
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    # photo, input, truth, two predictions, two questions, two of the segments, four charts
    assert len(sources) == 13
    assert all(source.startswith(("data:image/jpeg;base64,", "data:image/svg+xml;base64,")) for source in sources)
    assert not re.search(r"<link|@import|url\(|https?:", without_scripts(page))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def without_scripts(page: str) -> str:
    """A page without the scripts that may run in it: three.js names licences by their addresses, and loads nothing."""
    for script in pane.scripts():
        page = page.replace(script, "")
    return page


def test_the_page_says_what_there_is(tmp_path, gallery, results):
    trunk = TrunkHistory((0,), {"color": (0.9,), "word loss": (0.1,)}, {"color": (1,), "word loss": (0,)}, (3.5,))
    page = _page(tmp_path, results, replace(gallery, history=replace(gallery.history, trunk=trunk)))
    assert page.count("data:image/svg+xml") == 4 + 3
    assert "Cosine with the total gradient" in page
    assert re.search(r"background: #e69f00.></i>word loss</li>", page), "the second colour"
    for words in ("something green", "not in this scene — kitchen", "Voxels of 5 cm, coarser than the paper", "17.2"):
        assert words in page
    assert "mIoU 100 in this scene" in page, "the truth as prediction"
    assert "mIoU 0 in this scene" in page, "no prediction is wrong"
    this_run, shipped, bounds = (page.index(title) for title in ("This run", "Shipped with the package", "To compare"))
    assert this_run < page.index("17.2") < shipped < page.index("41.5") < bounds < page.index("52.0")
    assert "nan" not in page.replace("base64", "").split("<body>")[1].split("Scores")[1].split("Training")[0]


def test_the_page_marks_seen_names_and_gives_both_means(tmp_path, gallery, results):
    assert "no vocabulary" in (page := _page(tmp_path, results, gallery))
    assert "<sup>s</sup></td>" not in page
    confusions = {"distilled": torch.eye(21, 20).long()}
    counted = Counted(confusions, confusions, num_scenes=1, missing={})
    told = Told(Vocabulary(("walls", "bed"), "mine.txt"), Vocabulary(("wall",), "mini-lseg"))
    row = make_row(counted, SCANNET, model="x", readout="distilled", dataset="", split="val", told=told)
    page = _page(tmp_path, results | {"rows": json.loads(json.dumps([asdict(row)]))}, gallery)
    assert "student: mine.txt, 2 words" in page
    assert "teacher: mini-lseg, 1 words" in page
    cells = dict(re.findall(r"<tr><td>([a-z ]+)</td><td class=\"n\"[^>]*>([^/]*(?:</?sup>|[^/])*?)</td>", page))
    assert (cells["wall"], cells["bed"], cells["floor"]) == ("100.0<sup>st</sup>", "100.0<sup>s</sup>", "100.0")


def test_the_page_shows_how_well_queries_do(tmp_path, gallery, results):
    assert "AUROC" not in _page(tmp_path, results, gallery)
    found = Retrieval(
        37.25, 5.0, 0.781, 12, 34, "", (), (QueryScore("couch", ("sofa",), False, None, 37.25, 12, 34),), 4.5
    )
    asked = [{**results["rows"][0], "retrieval": {"synonyms": asdict(found)}}]
    page = _page(tmp_path, results | {"rows": json.loads(json.dumps(asked))}, gallery)
    (line,) = re.findall(r"<tr>.*1 synonyms.*</tr>", page)
    assert re.findall(r'<td class="n">([^<]*)</td>', line) == ["37.2", "5.0", "0.78", "4.5", "–", "12", "34"]


def test_the_page_says_no_more_than_there_is(tmp_path):
    page = _page(tmp_path, {}, Gallery(scene="<i>scan</i>", points=torch.rand(50, 3)))
    assert "&lt;i&gt;scan&lt;/i&gt;" in page
    assert re.findall("<h2>(.*)</h2>", page) == []
    asked = Gallery(scene="scan", points=torch.rand(50, 3), heats={"a bed": Heat(torch.rand(50), "here")})
    assert re.findall("<h2>(.*)</h2>", _page(tmp_path, {"version": "1"}, asked)) == [
        "In 3D",
        "Asked in words",
        "Provenance",
    ]
    layered = replace(asked, heats={}, layers={"Where views <disagree>": Heat(torch.rand(50), "of each point")})
    page = _page(tmp_path, {}, layered)
    assert re.findall("<h2>(.*)</h2>", page) == ["In 3D", "How far to trust it"]
    assert "Where views &lt;disagree&gt;</b><span>of each point" in page


def test_the_same_goes_in_the_same_comes_out(tmp_path, gallery, results):
    assert _page(tmp_path, results, gallery) == _page(tmp_path, results, gallery)


def test_classes_have_the_colors_of_their_label_set():
    colors = class_colors(torch.tensor([3, 255]), SCANNET)
    torch.testing.assert_close(colors[0], SCANNET.colors[3])
    assert len(set(colors[1].tolist())) == 1, "grey"


def test_heat_glows_and_cold_is_grey():
    colors = heat_colors(torch.tensor([0.0, 1.0]), torch.tensor([[1.0, 0, 0], [1.0, 0, 0]]))
    assert colors[0].amax() - colors[0].amin() < 1e-6
    assert colors[1].amax() - colors[1].amin() > 0.3


def _page(folder: Path, results: dict, gallery: Gallery) -> str:
    write_report(folder / "report.html", results, gallery)
    return (folder / "report.html").read_text(encoding="utf-8")
