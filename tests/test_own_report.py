import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import PICTURE, WALL, ColorTeacher, make_synthetic_scene
from cuao3d import pipeline
from cuao3d.cli import main
from cuao3d.errors import InputError, NotFoundError
from cuao3d.fusion import lift, sample_cells, see
from cuao3d.own_report import report
from cuao3d.own_report.numbers import score_tables
from cuao3d.predictor import Predictor
from cuao3d.readers import open_dataset
from cuao3d.readers.sevenscenes import write_capture
from cuao3d.run import finish_run
from cuao3d.scene import UNLABELLED, Scene
from cuao3d.store import Store, TeacherCard
from cuao3d.student import Student
from test_report import without_scripts


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> str:
    """Words of `ColorTeacher`: walls are red, pictures green, all else is blue."""
    rows = np.tile([0.0, 0, 1], (20, 1))
    rows[WALL], rows[PICTURE] = (1, 0, 0), (0, 1, 0)
    path = tmp_path_factory.mktemp("words") / "words.npy"
    np.save(path, rows)
    return f"table:{path}@scannet20"


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Figures are made, but not turned into pictures, which takes longest."""
    monkeypatch.setattr("cuao3d.own_report.pictures.as_uri", lambda figure: "data:,")


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """Clouds are drawn small, and maps laid out by PCA: UMAP compiles itself for many seconds."""
    monkeypatch.setattr("cuao3d.figures.panels.SIZE", (48, 36))
    monkeypatch.setitem(sys.modules, "umap", None)


def store_of(folder: Path, words: str | None, **about) -> Store:
    scene = Scene(**{**vars(make_synthetic_scene()), **about})
    store = Store.create(folder, cell=0.05, teachers={"color": TeacherCard(3, text=words)})
    samples = sample_cells(scene.points, store.cell)
    visibility = see(scene, samples)
    store.add_scene(scene, samples, visibility, {"color": lift(scene, visibility, ColorTeacher())})
    return store


def page_of(store: Store, out: Path, **given) -> tuple[str, dict[str, str]]:
    written = report(store, out, **given)
    return out.read_text(encoding="utf-8"), dict(written.left_out)


def cells_of(page: str, first: str) -> list[str]:
    """The cells of the first line of a table that begins with a text."""
    (line, *_) = re.findall(rf"<tr><td>{re.escape(first)}</td>(.*?)</tr>", page)
    return re.findall(r">([^<]*)</td>", line)


def test_the_page_of_a_labelled_store_has_its_scores_and_needs_nothing_else(tmp_path, words):
    store = store_of(tmp_path / "a <b>store", words, split="val")
    page, left_out = page_of(store, tmp_path / "out" / "page.html")
    assert set(left_out) == {"Where views disagree", "The student"}
    (row,) = pipeline.evaluate(store, Predictor.open(store), split="val")
    expected = [row.miou, row.macc, row.fmiou, row.miou_official]
    assert cells_of(page, "lifted: image networks alone")[:4] == [f"{value:.1f}" for value in expected]
    assert cells_of(page, "wall") == [f"{row.iou['wall']:.1f}"]
    assert cells_of(page, "val")[:2] == ["1", "585"]
    assert "a &lt;b&gt;store" in page
    assert "<b>store" not in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 4, "the scene, its segments, their map, the histograms"
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert not re.search(r"<link|@import|url\(|https?:", without_scripts(page))
    (data,) = re.findall(r'id="pane-data">(.*?)</script>', page, re.DOTALL)
    (exhibit,) = json.loads(data)["exhibits"]
    assert [layer["name"] for layer in exhibit["layers"]] == ["Photograph colours", "Truth", "Lifted features"]


@pytest.mark.usefixtures("undrawn")
def test_without_labels_words_and_run_the_page_says_what_is_not_there(tmp_path):
    store = store_of(tmp_path / "store", None, labels=None, label_set=None)
    page, left_out = page_of(store, tmp_path / "page.html")
    assert "There are no labels" in page
    assert "<h2>Scores" not in page
    assert "no truth" in left_out["Scores"]
    assert "--run" in left_out["The student"]
    assert "--data" in left_out["Where views disagree"]
    assert "text encoder" in left_out["Words for the lifted features"]
    for reason in left_out.values():
        assert reason.split("'")[0].split('"')[0][:40] in page


@pytest.mark.usefixtures("undrawn")
def test_views_are_studied_where_the_data_is_there(tmp_path, words, monkeypatch):
    write_capture(make_synthetic_scene(), tmp_path / "synthetic")
    store = Store.create(tmp_path / "store", cell=0.05, teachers={"color": TeacherCard(3, text=words)})
    monkeypatch.setattr("cuao3d.own_report.pictures.load_teacher", lambda spec: ColorTeacher())
    monkeypatch.setattr("cuao3d.own_report.pictures.cards_of", lambda teachers: store.teachers)
    scene = open_dataset(tmp_path / "synthetic")[0]
    samples = sample_cells(scene.points, store.cell)
    visibility = see(scene, samples)
    store.add_scene(scene, samples, visibility, {"color": lift(scene, visibility, ColorTeacher())})
    page, left_out = page_of(store, tmp_path / "page.html", data=tmp_path / "synthetic")
    assert "Where views disagree" not in left_out
    assert "<h2>Where views disagree" in page
    monkeypatch.setattr("cuao3d.own_report.pictures.cards_of", lambda teachers: {"color": TeacherCard(3)})
    _, left_out = page_of(store, tmp_path / "page.html", data=tmp_path / "synthetic")
    assert "is not the one that made the store" in left_out["Where views disagree"]


@pytest.mark.usefixtures("undrawn")
def test_a_student_is_not_scored_on_its_own_training_scenes(tmp_path, words):
    store = store_of(tmp_path / "store", words)
    student = Student({"color": 3}, architecture="MinkUNet14Mini")
    student.voxel_size, student.teachers = 0.05, {"color": {"num_channels": 3, "text": words}}
    student.save(tmp_path / "lone.safetensors")
    page, left_out = page_of(store, tmp_path / "page.html", run=tmp_path / "lone.safetensors")
    assert cells_of(page, "student: 3D alone")
    assert "Which scenes the student was trained on is not known" in page
    assert "What the student&#39;s heads tell apart in this scene" in page
    run = tmp_path / "run"
    run.mkdir()
    config = {"config": {"voxel_size": 0.05}, "scenes_sha256": {"synthetic": ""}}
    (run / "config.json").write_text(json.dumps(config))
    finish_run(run, student, {"teachers": student.teachers})
    page, left_out = page_of(store, tmp_path / "page.html", run=run)
    assert "student: 3D alone" not in page
    assert "trained on 1 of the scenes" in left_out["Scores of the student"]
    assert ": synthetic." in left_out["Scores of the student"]


def test_what_is_wrong_is_said_in_one_line(tmp_path, words):
    store = store_of(tmp_path / "store", words)
    with pytest.raises(InputError, match=r"\.html"):
        report(store, tmp_path / "page.pdf")
    with pytest.raises(NotFoundError, match="'other'"):
        report(store, tmp_path / "page.html", scene="other")
    write_capture(make_synthetic_scene(), tmp_path / "elsewhere")
    with pytest.raises(InputError, match="holds no scene synthetic, but elsewhere"):
        report(store, tmp_path / "page.html", data=tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no finished scene"):
        report(Store.create(tmp_path / "empty"), tmp_path / "page.html")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.usefixtures("undrawn")
def test_labels_of_ones_own_without_a_class_that_is_there_are_scored_and_without_all_are_no_zero(tmp_path, words):
    store = store_of(tmp_path / "store", words)
    own = tmp_path / "own.csv"
    own.write_text(f"id,name,r,g,b\n{PICTURE},picture,1,1,1\n2,cabinet,2,2,2\n")
    page, left_out = page_of(store, tmp_path / "page.html", labels=str(own))
    assert "Scores of the lifted features" not in left_out
    assert cells_of(page, "picture") == ["100.0"]
    bare = store_of(tmp_path / "bare", words, labels=torch.full_like(make_synthetic_scene().labels, UNLABELLED))
    page, left_out = page_of(bare, tmp_path / "page.html")
    assert "has a label of scannet20: there is nothing to score" in left_out["Scores of the lifted features"]
    assert "<h2>Scores" not in page
    assert "mIoU" not in page


def test_a_scene_that_is_missing_is_named_and_changes_the_exit_code(tmp_path, words, capsys, monkeypatch):
    store = store_of(tmp_path / "store", words)
    command = ["report", str(store.path), "--out", str(tmp_path / "page.html")]
    assert main(command) == 0
    monkeypatch.setattr(Store, "missing", lambda self: {"attic": "its depth is gone"})
    assert main(command) == 3
    said = capsys.readouterr().err
    assert "attic: its depth is gone" in said
    assert "left out The student" in said
    assert "its depth is gone" in (tmp_path / "page.html").read_text("utf-8")


def test_tables_of_scores_keep_controls_and_words_beside_them(tmp_path, words):
    store = store_of(tmp_path / "store", words)
    rows = pipeline.evaluate(store, Predictor.open(store), split=None)
    scores, by_words, classes = score_tables(rows)
    line = dict(zip(scores.columns, scores.rows[0], strict=True))
    assert (line["by chance"], line["most frequent"]) == (rows[0].chance_miou, rows[0].constant_miou)
    assert [row[1] for row in by_words.rows] == ["teacher"], "lifted features have no student"
    assert {row[0] for row in classes.rows} == {"wall", "picture"}
    assert torch.tensor(classes.rows[0][1]).isfinite()
