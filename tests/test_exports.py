"""What is written of answers: each file is opened by the tool that it is for, and says what the answers say."""

import json
import re
import struct
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import cuao3d
from conftest import camera_at, in_turn
from cuao3d import exports
from cuao3d.answers import in_heat
from cuao3d.cli import main
from cuao3d.errors import InputError, NotInstalledError
from cuao3d.exports import ABOUT, WRITERS, Writer, save_answers, show_answers
from cuao3d.formats.las import write_las
from cuao3d.formats.ply import read_mesh, read_ply, write_ply
from cuao3d.fusion import Samples, View, Visibility
from cuao3d.predictor import Predictor
from cuao3d.readers import open_dataset
from cuao3d.scene import Frame, Scene
from cuao3d.store import Store, TeacherCard
from cuao3d.store.sources import record

SETS = "id,name,r,g,b,prompt\n3,seat,255,0,0,chair\n5,mat,0,255,0,rug\n"
WORDS = ("chair", "rug", "lamp", "elephant")


@pytest.fixture
def store(tmp_path) -> Store:
    """A store of 3 x 30 points, each a sample: chairs at x = 0, rugs at x = 2, and what no view sees at x = 4.

    Its capture counts in centimetres, has y up, and lies 500 km from its origin.
    """
    torch.save(torch.eye(4), tmp_path / "words.pt")
    (tmp_path / "words_names.txt").write_text("\n".join(WORDS))
    (tmp_path / "set.csv").write_text(SETS)
    return make_store(tmp_path, store_points())


def store_points() -> torch.Tensor:
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(6.0), torch.zeros(1)) * 0.06
    return torch.cat([grid + torch.tensor([x, 0.0, 0.0]) for x in (0.0, 2.0, 4.0)])


def make_store(folder: Path, points: torch.Tensor) -> Store:
    frame = Frame("0", camera_at(0.0), lambda: torch.zeros(3, 48, 64), lambda: torch.zeros(48, 64))
    to_capture = torch.tensor([[100.0, 0, 0, 5e7], [0, 0, 100, 0], [0, -100, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    colors = torch.rand(len(points), 3)
    labels = torch.full((len(points),), 255)
    scene = Scene(
        "room", points, (frame,), colors, labels, str(folder / "set.csv"), split="val", capture_from_world=to_capture
    )
    cards = {"honest": TeacherCard(4, text=f"table:{folder / 'words.pt'}")}
    seen, views = torch.arange(60), torch.zeros(90, dtype=torch.int64)
    views[seen] = 1
    mixed = (
        torch.linspace(0.5, 1, 30)[:, None] * torch.eye(4)[0] + torch.linspace(0.2, 0, 30)[:, None] * torch.eye(4)[2]
    )
    features = {"honest": torch.cat([mixed, torch.eye(4)[1].expand(30, 4)])}
    store = Store.create(folder / "store", cell=0.05, teachers=cards)
    index = torch.arange(90)
    visibility = Visibility((View.of(0, frame.camera, points, seen),), views)
    store.add_scene(scene, Samples(index, index), visibility, features)
    return store


@pytest.fixture
def answers(store):
    return Predictor.open(store).ask(store["room"], ["chair", "rug"])


def in_centimetres(points: torch.Tensor) -> np.ndarray:
    """The capture's coordinates of `make_store`, worked out by hand."""
    x, y, z = points.double().numpy().T * 100
    return np.stack([x + 5e7, z, -y], axis=1)


def heat_bytes(store, answers) -> np.ndarray:
    return (in_heat(store["room"], answers) * 255).round().byte().numpy()


def test_a_ply_has_all_values_and_says_what_they_are(store, answers, tmp_path):
    save_answers(answers, tmp_path / "a.ply")
    columns, (chair, rug) = read_ply(tmp_path / "a.ply"), answers
    np.testing.assert_allclose(
        np.stack([columns[axis] for axis in "xyz"], axis=1), in_centimetres(store["room"].points), atol=1e-3, rtol=0
    )
    assert np.array_equal(np.stack([columns[name] for name in ("red", "green", "blue")], 1), heat_bytes(store, answers))
    assert columns["label"].tolist() == [3] * 30 + [5] * 30 + [255] * 30
    assert columns["answer"].tolist() == [1] * 30 + [2] * 30 + [0] * 30
    assert columns["seen"].tolist() == [1] * 60 + [0] * 30
    for number, one in ((1, chair), (2, rug)):
        assert np.array_equal(columns[f"margin_{number}"], one.relevance.numpy())
        assert np.array_equal(columns[f"score_{number}"], one.scores.numpy())
    assert np.array_equal(columns["margin"], torch.maximum(chair.relevance, rug.relevance).numpy())
    header = (tmp_path / "a.ply").read_bytes().partition(b"end_header")[0].decode().splitlines()
    assert "comment class 3 255 0 0 seat" in header
    assert "comment class 5 0 255 0 mat" in header
    assert any(line.startswith("comment question 2 here") and line.endswith(": rug") for line in header)
    assert any(line.startswith("comment margin: relevance") for line in header)
    assert any("no confidence: nothing was fitted" in line for line in header)


def test_a_threshold_is_changed_on_the_file_as_the_answers_were_chosen(answers, tmp_path):
    (chair, _) = answers
    chair.save(tmp_path / "chair.ply")
    columns = read_ply(tmp_path / "chair.ply")
    assert "margin_1" not in columns
    (line,) = [one for one in (tmp_path / "chair.ply").read_bytes().split(b"\n") if one.startswith(b"comment question")]
    least = float(line.split(b"margin of ")[1].split(b":")[0])
    assert np.array_equal(columns["margin"] >= least - 1e-4, chair.answers.numpy())
    stricter = columns["margin"] >= 0.99
    assert 0 < stricter.sum() < chair.answers.sum()
    assert np.array_equal(stricter, (chair.relevance >= 0.99).numpy())


def test_trimesh_opens_ply_and_glb_with_the_right_colors(store, answers, tmp_path):
    trimesh = pytest.importorskip("trimesh", reason="needs trimesh")
    save_answers(answers, tmp_path / "a.ply")
    save_answers(answers, tmp_path / "a.glb")
    cloud = trimesh.load(tmp_path / "a.ply")
    assert np.array_equal(np.asarray(cloud.colors)[:, :3], heat_bytes(store, answers))
    scene = trimesh.load(tmp_path / "a.glb")
    (cloud,) = scene.dump()
    assert np.array_equal(np.asarray(cloud.colors)[:, :3], heat_bytes(store, answers))
    np.testing.assert_allclose(cloud.vertices, in_centimetres(store["room"].points), atol=0.01, rtol=0)


def test_a_glb_holds_the_values_as_its_specification_says(answers, tmp_path):
    answers[0].save(tmp_path / "a.glb")
    content = (tmp_path / "a.glb").read_bytes()
    magic, version, length, json_length, kind = struct.unpack_from("<4sIIII", content)
    assert (magic, version, length, kind) == (b"glTF", 2, len(content), 0x4E4F534A)
    scene = json.loads(content[20 : 20 + json_length])
    (primitive,) = scene["meshes"][0]["primitives"]
    assert primitive["mode"] == 0
    accessor = scene["accessors"][primitive["attributes"]["_MARGIN"]]
    start = 28 + json_length + scene["bufferViews"][accessor["bufferView"]]["byteOffset"]
    assert np.array_equal(np.frombuffer(content, "<f4", accessor["count"], start), answers[0].relevance.numpy())
    assert any(line.endswith(": chair") for line in scene["asset"]["extras"]["about"])
    assert all(view["byteOffset"] % 4 == 0 for view in scene["bufferViews"])


def test_open3d_reads_the_ply(store, answers, tmp_path):
    open3d = pytest.importorskip("open3d", reason="needs open3d")
    save_answers(answers, tmp_path / "a.ply")
    cloud = open3d.io.read_point_cloud(str(tmp_path / "a.ply"))
    assert np.array_equal((np.asarray(cloud.colors) * 255).round(), heat_bytes(store, answers))


def write_tetrahedron(path: Path, corners: np.ndarray) -> None:
    columns = dict(zip("xyz", corners.T, strict=True))
    write_ply(path, columns, triangles=np.array([[0, 1, 2], [0, 2, 3]]))


def test_vertices_of_a_mesh_have_the_values_of_the_nearest_sample(store, answers, tmp_path, capsys):
    points = store["room"].points
    corners = in_centimetres(points[[0, 7, 31, 65]]) + np.array([1.0, -1.0, 1.0])  # a centimetre off along each axis
    write_tetrahedron(tmp_path / "mesh.ply", corners)
    save_answers(answers, tmp_path / "whole.ply")
    whole = read_ply(tmp_path / "whole.ply")
    for ending in (".ply", ".labels.json", ".npz", ".glb", ".las"):
        save_answers(answers, tmp_path / f"mesh-out{ending}", mesh=tmp_path / "mesh.ply")
    mesh = read_mesh(tmp_path / "mesh-out.ply")
    assert mesh.triangles.tolist() == [[0, 1, 2], [0, 2, 3]]
    for name, column in whole.items():
        expected = corners.T["xyz".index(name)] if name in "xyz" else column[[0, 7, 31, 65]]
        assert np.array_equal(mesh.vertices[name], expected, equal_nan=name == "disagreement"), name
    assert json.loads((tmp_path / "mesh-out.labels.json").read_text())["labels"] == [3, 3, 5, 255]
    with np.load(tmp_path / "mesh-out.npz") as file:
        assert np.array_equal(file["margins"][:, 0], answers[0].relevance[[0, 7, 31, 65]].numpy())
    trimesh = pytest.importorskip("trimesh", reason="needs trimesh")
    (opened,) = trimesh.load(tmp_path / "mesh-out.glb").dump()
    assert len(opened.faces) == 2
    assert np.array_equal(opened.visual.vertex_colors[:, :3], heat_bytes(store, answers)[[0, 7, 31, 65]])


def test_a_mesh_that_lies_elsewhere_is_refused_and_what_is_far_off_is_said(store, answers, tmp_path, capsys):
    points = store["room"].points
    write_tetrahedron(tmp_path / "mesh.ply", points[[0, 7, 31, 65]].double().numpy())  # in metres of our world
    with pytest.raises(InputError, match=r"mesh.ply does not lie where room does: 100 % of its vertices"):
        save_answers(answers, tmp_path / "out.ply", mesh=tmp_path / "mesh.ply")
    corners = in_centimetres(points[[0, 7, 31, 65]])
    corners[0, 1] += 50
    write_tetrahedron(tmp_path / "mesh.ply", corners)
    save_answers(answers, tmp_path / "out.ply", mesh=tmp_path / "mesh.ply")
    assert "1 of 4 vertices are over 10 cm" in capsys.readouterr().err


def test_a_mesh_of_nothing_and_one_with_vertices_nowhere_are_refused_by_name(store, answers, tmp_path):
    corners = in_centimetres(store["room"].points[[0, 7, 31, 65]])
    corners[2, 1] = np.nan
    write_tetrahedron(tmp_path / "mesh.ply", corners)
    with pytest.raises(InputError, match=r"mesh.ply has 1 vertices at no finite position"):
        save_answers(answers, tmp_path / "out.ply", mesh=tmp_path / "mesh.ply")
    header = "ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nproperty float y\nproperty float z\n"
    header += "element face 0\nproperty list uchar int vertex_indices\nend_header\n"
    (tmp_path / "mesh.ply").write_text(header)
    with pytest.raises(InputError, match=r"mesh.ply has no vertices"):
        save_answers(answers, tmp_path / "out.ply", mesh=tmp_path / "mesh.ply")


def test_a_new_las_is_opened_by_laspy_with_colors_and_values(store, answers, tmp_path):
    laspy = pytest.importorskip("laspy", reason="needs laspy")
    save_answers(answers, tmp_path / "a.las")
    las = laspy.read(tmp_path / "a.las")
    np.testing.assert_allclose(las.xyz, in_centimetres(store["room"].points), atol=0.01, rtol=0)
    colors = np.stack([las.red, las.green, las.blue], axis=1)
    assert np.array_equal(colors, heat_bytes(store, answers).astype(int) * 257)
    assert np.array_equal(las["margin_1"], answers[0].relevance.numpy())
    assert las["label"].tolist() == [3] * 30 + [5] * 30 + [255] * 30


def test_a_las_keeps_the_dimensions_and_the_crs_of_its_input(tmp_path, monkeypatch, capsys):
    laspy = pytest.importorskip("laspy", reason="needs laspy")
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.scales, header.offsets = np.full(3, 0.001), np.array([430_000.0, 5_400_000.0, 0])
    header.vlrs.append(laspy.vlrs.known.WktCoordinateSystemVlr('PROJCS["ETRS89 / UTM zone 32N"]'))
    header.global_encoding.wkt = True
    header.add_extra_dim(laspy.ExtraBytesParams("score", "f8"))  # a name that we use as well
    las, generator = laspy.LasData(header), np.random.default_rng(0)
    las.xyz = generator.uniform(0, 3, (50, 3)) + np.array([432_100.0, 5_421_000.0, 100])
    las.z[7] = 90_000  # far from all others, and so left out when it is read
    las.intensity, las.gps_time = np.arange(50), np.arange(50.0)
    las.classification, las["score"] = np.full(50, 6), np.arange(50.0) / 7
    las.write(tmp_path / "scan.las")
    scene = open_dataset(tmp_path / "scan.las")[0]
    assert len(scene.points) == 49
    torch.save(torch.eye(4), tmp_path / "words.pt")
    (tmp_path / "words_names.txt").write_text("\n".join(WORDS))
    cards = {"honest": TeacherCard(4, text=f"table:{tmp_path / 'words.pt'}")}
    store = Store.create(tmp_path / "store", cell=0.05, teachers=cards)
    index, source = torch.arange(49), record(open_dataset(tmp_path / "scan.las").source(0))
    features = {"honest": torch.eye(4)[index % 4]}
    visibility = Visibility((), torch.full((49,), 2))
    apart = {"honest": torch.linspace(0, 1, 49)}
    store.add_scene(scene, Samples(index, index), visibility, features, source=source, disagreement=apart)
    answers = Predictor.open(store).ask(store[scene.name], ["chair"])
    (tmp_path / "out").mkdir()
    save_answers(answers, tmp_path / "out" / "scan.las")
    found = laspy.read(tmp_path / "out" / "scan.las")
    for name in las.point_format.dimension_names:
        assert np.array_equal(found[name], las[name]), name
    assert [vlr.record_data_bytes() for vlr in found.header.vlrs if vlr.record_id == 2112] == [
        vlr.record_data_bytes() for vlr in las.header.vlrs if vlr.record_id == 2112
    ]
    assert found.header.offsets.tolist() == las.header.offsets.tolist()
    kept = np.delete(np.arange(50), 7)
    assert np.array_equal(found["cuao3d_score"][kept], answers[0].scores.numpy())
    assert (found["cuao3d_score"][7], found["seen"][7]) == (0, 0)
    assert np.isnan(found["disagreement"]).nonzero()[0].tolist() == [7]
    assert capsys.readouterr().err == ""
    (tmp_path / "scan.las").write_bytes(b"")
    save_answers(answers, tmp_path / "out" / "scan.las")
    assert "its dimensions and CRS are not kept" in capsys.readouterr().err
    assert len(laspy.read(tmp_path / "out" / "scan.las").points) == 49


def test_columns_of_an_earlier_answer_are_replaced_and_those_of_the_input_are_not(tmp_path):
    laspy = pytest.importorskip("laspy", reason="needs laspy")
    points, colors, source = np.zeros((3, 3)), np.zeros((3, 3), np.uint8), None
    for number, kind in enumerate((np.float32, np.float32, np.uint8, np.float64)):
        path = tmp_path / f"{number}.las"
        columns = {"score": np.full(3, number, kind), "seen": np.full(3, number, np.uint8)}
        write_las(path, points, colors, columns, step=0.001, about={}, source=source)
        source = path
        las = laspy.read(path)
        last = "score" if number == 0 else "cuao3d_score"
        assert (las["score"].tolist(), las[last].tolist(), las[last].dtype) == ([0] * 3, [number] * 3, kind)
        assert list(las.point_format.extra_dimension_names).count(last) == 1


def test_without_laspy_the_cure_is_named(answers, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "laspy", None)
    with pytest.raises(NotInstalledError, match=r"cuao3d\[las\]"):
        save_answers(answers, tmp_path / "a.las")
    assert not (tmp_path / "a.las").exists()


def test_labels_come_with_what_their_ids_mean(answers, tmp_path):
    save_answers(answers, tmp_path / "a.labels.json")
    found = json.loads((tmp_path / "a.labels.json").read_text())
    assert found["labels"] == [3] * 30 + [5] * 30 + [255] * 30
    assert found["ids"] == {
        "3": {"name": "seat", "color": [255, 0, 0]},
        "5": {"name": "mat", "color": [0, 255, 0]},
    }
    assert (found["label_set"], found["unlabelled"], "confidence" in found) == ("set", 255, False)


def test_features_come_with_names_and_give_the_scores_again(store, answers, tmp_path):
    save_answers(answers, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        found = dict(file)
    assert found["names"].tolist() == ["chair", "rug"]
    assert found["features"].dtype == np.float16
    np.testing.assert_allclose(found["points"], in_centimetres(store["room"].sample_points), atol=1e-3, rtol=0)
    features = found["features"].astype(float)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    cosines = features @ found["text"].T / np.where(length > 0, length, 1)
    assert np.abs(cosines - found["scores"]).max() < 1e-3
    for number, answer in enumerate(answers):
        assert np.array_equal(found["scores"][found["row_of_point"], number], answer.scores.numpy())
    assert "cosine" in found["about"].item()


def test_labels_that_the_words_cannot_name_are_left_out_and_that_is_said(answers, tmp_path, store):
    bare = [replace(one, scene=replace(one.scene, label_set=None)) for one in answers]
    bare = [replace(one, scene=bare[0].scene) for one in bare]  # one scene, not two alike
    save_answers(bare, tmp_path / "a.ply")  # the table does not have the words of ScanNet
    assert "label" not in read_ply(tmp_path / "a.ply")
    assert b"comment no label: no classes of scannet20" in (tmp_path / "a.ply").read_bytes()
    with pytest.raises(InputError, match="no classes of scannet20"):
        save_answers(bare, tmp_path / "a.labels.json")


def test_what_cannot_be_written_is_refused_before_anything_is_asked(store, answers, tmp_path, capsys):
    with pytest.raises(InputError, match=r"a.txt should end in .ply .*, .glb .*, .las .*, .labels.json .* or .html"):
        save_answers(answers, tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"a mesh goes with .ply, .glb, .las, .labels.json, .npz; leave"):
        save_answers(answers, tmp_path / "a.html", mesh=tmp_path / "mesh.ply")
    assert main(["query", str(store.path), "chair", "--out", str(tmp_path / "a.obj")]) == 2
    assert "a.obj should end in .ply" in capsys.readouterr().err
    other = Predictor.open(store).ask(store["room"], ["rug"])
    with pytest.raises(InputError, match="answers of one scene"):
        save_answers([*answers, *other], tmp_path / "a.ply")
    again = answers[0].predictor.ask(store["room"], ["lamp"])  # the scene is read anew
    save_answers([*answers, *again], tmp_path / "one-by-one.ply")
    with pytest.raises(InputError, match="'rug' is asked twice"):
        save_answers([*answers, *answers[0].predictor.ask(store["room"], ["rug"])], tmp_path / "a.ply")
    with pytest.raises(InputError, match="answers of one scene"):
        save_answers([], tmp_path / "a.ply")
    assert not list(tmp_path.glob("a.*"))


def test_the_command_writes_what_python_writes(store, answers, tmp_path):
    for ending in WRITERS:
        save_answers(answers, tmp_path / f"python{ending}")
        assert main(["query", str(store.path), "chair", "rug", "--out", str(tmp_path / f"command{ending}")]) == 0
        assert (tmp_path / f"python{ending}").read_bytes() == (tmp_path / f"command{ending}").read_bytes(), ending


def test_of_several_scenes_the_best_answers_whoever_asks_them(store, tmp_path, monkeypatch, capsys):
    frame = Frame("0", camera_at(0.0), lambda: torch.zeros(3, 48, 64), lambda: torch.zeros(48, 64))
    points, index = store["room"].points[:30], torch.arange(30)
    for name, share in (("lamps", 0.9), ("unseen", None), ("dim", 0.3)):
        seen = torch.arange(30) if share else torch.arange(0)
        view, scene = View.of(0, frame.camera, points, seen), Scene(name, points, (frame,), split="val")
        features = share * torch.eye(4)[2] + (1 - share) * torch.eye(4)[3] if share else torch.ones(4)
        visibility = Visibility((view,), torch.zeros(30, dtype=torch.int64).index_fill(0, seen, 1))
        store.add_scene(scene, Samples(index, index), visibility, {"honest": features.expand(len(seen), 4)})
    command = ["query", str(store.path), "lamp", "--out", str(tmp_path / "a.json")]
    assert main(command) == 0
    alone = capsys.readouterr()
    assert "lamps: 'lamp'" in alone.out
    assert "left out unseen: no view saw anything of it." in alone.err
    jobs = []
    monkeypatch.setattr(exports, "side_by_side", lambda given, *how: jobs.extend(given) or in_turn(given, *how))
    assert main([*command, "--workers", "3"]) == 0
    assert capsys.readouterr() == alone
    assert len(jobs) == 3


def test_an_answer_is_shown_in_the_browser_and_in_a_notebook_inline(answers, tmp_path, monkeypatch, capsys):
    opened, shown = [], []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    page = answers[0].show()
    assert opened == [page.as_uri()]
    assert "chair" in page.read_text(encoding="utf-8")
    monkeypatch.setitem(WRITERS, ".html", Writer("a page", lambda path, asked: path.write_text("<p>chair</p>")))
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    assert str(show_answers(answers)) in capsys.readouterr().err
    display = SimpleNamespace(display=shown.append, HTML=lambda text: text)
    notebook = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1), display=display)
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    page = answers[0].show()
    (frame,) = shown
    assert unescape(frame.partition('srcdoc="')[2].partition('"')[0]) == page.read_text(encoding="utf-8")


def test_questions_that_do_not_fit_into_a_header_are_refused(tmp_path):
    with pytest.raises(InputError, match="ask fewer questions"):
        write_ply(tmp_path / "a.ply", {"x": np.zeros(1)}, comments=["word " * 40] * 400)


def test_what_is_asked_cannot_end_the_header(tmp_path):
    write_ply(tmp_path / "a.ply", {axis: np.ones(1) for axis in "xyz"}, comments=["a\nend_header\nb", "c" * 500])
    header = (tmp_path / "a.ply").read_bytes().split(b"\n")
    assert header[2] == rb"comment a\nend_header\nb"
    assert header[3] == b"comment " + b"c" * 240
    assert read_ply(tmp_path / "a.ply")["z"].tolist() == [1]


def test_the_examples_of_the_page_run(store, tmp_path, monkeypatch):
    trimesh = pytest.importorskip("trimesh", reason="needs trimesh")
    laspy = pytest.importorskip("laspy", reason="needs laspy")
    monkeypatch.chdir(tmp_path)
    store.path.rename(tmp_path / "STORE")
    write_tetrahedron(tmp_path / "mesh.ply", in_centimetres(store_points()[[0, 7, 31, 65]]))
    page = (Path(__file__).parents[1] / "docs" / "outputs.md").read_text(encoding="utf-8")
    known = {"cuao3d": cuao3d, "np": np, "json": json, "trimesh": trimesh, "laspy": laspy}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, known)
    chair, rug = known["answers"]
    assert np.array_equal(known["chairs"], (chair.relevance >= 0.9).numpy())
    assert len(known["rugs"]) == int((rug.relevance >= 0.9).sum()) == 30
    assert known["names"][::30] == ["seat", "mat", "none"]
    assert known["of_points"].shape == (90, 2)
    listed = re.findall(r"^\| `(\.[a-z.]+)` \|", page, re.MULTILINE)
    assert set(listed) == set(WRITERS)


def test_the_page_lists_every_column(answers, tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "outputs.md").read_text(encoding="utf-8")
    save_answers(answers, tmp_path / "a.ply")
    listed = {name for cell in re.findall(r"^\| (.*?) \|", page, re.MULTILINE) for name in re.findall(r"\w+", cell)}
    assert {re.sub("_2$", "_1", name) for name in read_ply(tmp_path / "a.ply")} <= listed
    for name in ABOUT:
        assert f"| `{name}` |" in page
