"""An index of many scans: what it finds, how it follows its stores, and what it survives."""

import json
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
import torch
from torch import Tensor

import cuao3d
from cuao3d import index as indexing
from cuao3d.cli import main
from cuao3d.errors import InputError
from cuao3d.fusion import Samples, Visibility
from cuao3d.index import Index, as_rows
from cuao3d.index import parts as cutting
from cuao3d.index.named_colors import NAMES
from cuao3d.index.parts import describe_parts, over_segment
from cuao3d.index.search import COLOR_WEIGHT, as_json, in_lines, search
from cuao3d.index.vectors import Vectors
from cuao3d.predictor import Predictor
from cuao3d.scene import Scene
from cuao3d.seals import read_sealed, write_sealed
from cuao3d.store import Store
from cuao3d.text import load_text_encoder
from test_wires import one_hot, store_of

RED, BLUE = (0.8, 0.1, 0.1), (0.2, 0.3, 0.7)


def heap(x: float, name: str, color: tuple[float, float, float], edge: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Samples on a level square from x on, 6 cm apart: where they are, what they are and their colours."""
    points = torch.cartesian_prod(torch.arange(edge), torch.arange(edge), torch.tensor([0])) * 0.06
    points = points + torch.tensor([x, 0, 0.5])
    return points, one_hot(name, "nyu40").expand(len(points), -1), torch.tensor(color).expand(len(points), -1)


def add(store: Store, name: str, *heaps: tuple[Tensor, Tensor, Tensor], **more: Tensor) -> None:
    points, features, colors = (torch.cat(column) for column in zip(*heaps, strict=True))
    every = torch.arange(len(points))
    scene = Scene(name, points, (), colors=colors, **more)
    store.add_scene(scene, Samples(every, every), Visibility((), torch.full((len(points),), 3)), {"words": features})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two scans: one with a red chair and a blue sofa, one with a blue chair and a red sofa."""
    store = store_of(tmp_path, "nyu40")
    add(store, "one", heap(0, "chair", RED), heap(3, "sofa", BLUE))
    add(store, "two", heap(0, "sofa", RED), heap(3, "chair", BLUE))
    return store


def make(store: Store, folder: Path, code: int = 0) -> Path:
    assert main(["index", str(store.path), "--out", str(folder / "index")]) == code
    return folder / "index"


def asked(path: Path, question: str) -> list[tuple[str, str]]:
    """Scene and colour of the results that are relevant, best first; each once."""
    opened = Index.open(path)
    found = search(opened, load_text_encoder(opened.about["text"]), question, top=100)
    red = [hit.about["color"][0] > hit.about["color"][2] for hit in found.hits]
    hits = [(hit, "red" if is_red else "blue") for hit, is_red in zip(found.hits, red, strict=True)]
    return list(dict.fromkeys((hit.hold.entry.scene, color) for hit, color in hits if hit.relevance > 0.5))


def test_parts_grow_over_neighbours_of_like_features_alone():
    points, features, _ = (torch.cat(column) for column in zip(
        heap(0, "chair", RED, 30), heap(1.82, "sofa", BLUE, 30), heap(9, "chair", RED, 30), strict=True))  # fmt: skip
    part = over_segment(points.float(), features)
    for number in part.unique():
        assert len(features[part == number].unique(dim=0)) == 1
        assert np.ptp(points[part == number, 0].numpy()) < 3
    assert len(part.unique()) == 10


def test_a_part_is_described_by_its_direction_colours_box_and_height(store, monkeypatch):
    monkeypatch.setattr(cutting, "FEWEST_PARTS", 2)
    scene, predictor = store["one"], Predictor.open(store)
    parts = describe_parts(scene, 7 * predictor.features(scene), predictor.known(scene))
    assert len(parts.about) == 2
    for vector, colors, about in zip(*parts, strict=True):
        is_chair = vector.equal(one_hot("chair", "nyu40"))
        assert is_chair or vector.equal(one_hot("sofa", "nyu40"))
        assert dict(zip(NAMES, colors.tolist(), strict=True))["red" if is_chair else "blue"] == 1
        assert about["size_m"] == pytest.approx([0.84, 0.84, 0])
        assert about["above_floor_m"] == 0
        assert about["center"][0] == pytest.approx(0.42 if is_chair else 3.42)
        assert about["photograph"] is None


def test_colours_of_a_question_decide_between_scans_that_hold_the_thing(store, tmp_path):
    path = make(store, tmp_path)
    assert asked(path, "red chair") == [("one", "red"), ("two", "blue")]
    assert asked(path, "blue chair") == [("two", "blue"), ("one", "red")]
    assert asked(path, "red sofa")[0] == ("two", "red")
    assert sorted(asked(path, "chair")) == [("one", "red"), ("two", "blue")]


def test_an_answer_is_written_as_json_text_and_a_page_that_needs_nothing_else(store, tmp_path, monkeypatch):
    monkeypatch.setattr(cutting, "FEWEST_PARTS", 2)
    path = make(store, tmp_path)
    for ending in ("json", "txt", "html"):
        assert main(["search", str(path), "red chair", "--top", "2", "--out", str(tmp_path / f"found.{ending}")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["words"], found["colors"]) == ("chair", ["red"])
    assert [one["scene"] for one in found["results"]] == ["one", "two"]
    best = found["results"][0]
    assert best["score"] == pytest.approx(1 + COLOR_WEIGHT, abs=2e-3)
    assert best["color_share"] == pytest.approx(1, abs=2e-3)
    assert best["place"]["box"]["size"] == pytest.approx([0.84, 0.84, 0])
    assert len((tmp_path / "found.txt").read_text().splitlines()) == 2
    page = (tmp_path / "found.html").read_text()
    assert "No picture: none of the photographs of the scene shows it." in page
    assert not any(part in page for part in ("<script", "<link", "@import", "http"))


def test_python_indexes_and_searches_as_the_commands_do(store, tmp_path):
    changes = cuao3d.index_stores([store], tmp_path / "index")
    assert (changes.done, changes.removed, dict(changes.left_out)) == (("one", "two"), (), {})
    found = cuao3d.Index.open(tmp_path / "index").search("red chair", top=1)
    assert [(hit.hold.entry.scene, hit.hold.entry.store) for hit in found.hits] == [("one", str(store.path))]
    assert found.words_known
    assert changes.index.count_in_words().startswith("2 scenes, ")
    (store.path / "scenes" / "two" / "manifest.json").unlink()
    assert cuao3d.index_stores([store], tmp_path / "index").index.count_in_words().startswith("1 scene, ")


def test_words_that_the_encoder_does_not_know_are_doubted_wherever_the_answer_is_read(
    store, tmp_path, monkeypatch, capsys
):
    path = make(store, tmp_path)
    for is_known in (True, False):
        monkeypatch.setattr("cuao3d.query.knows", lambda encoder, texts, vectors, k=is_known: (k,) * len(texts))
        for ending in ("json", "txt", "html"):
            assert main(["search", str(path), "chair", "--out", str(tmp_path / f"found.{ending}")]) == 0
        assert json.loads((tmp_path / "found.json").read_text())["words_known"] is is_known
        said = [capsys.readouterr().err, *((tmp_path / f"found.{one}").read_text() for one in ("txt", "html"))]
        assert [("ask in plain English" in one) for one in said] == [not is_known] * 3


def test_positions_have_a_unit_where_the_capture_counts_in_metres(store, tmp_path):
    hundred = torch.diag(torch.tensor([100.0, 100, 100, 1], dtype=torch.float64))
    add(store, "centimetres", heap(0, "bed", RED), capture_from_world=hundred)
    opened = Index.open(make(store, tmp_path))
    encoder = load_text_encoder(opened.about["text"])
    for question, place, unit in (("bed", ", 50.00), ", ""), ("chair", ", 0.50) m, ", "m")):
        found = search(opened, encoder, question, top=1)
        assert place in in_lines(found)[0]
        assert as_json(found, opened)["results"][0]["place"]["unit"] == unit


def test_words_and_names_on_a_page_are_text(store, tmp_path):
    path = make(store, tmp_path)
    opened = Index.open(path)
    found = search(opened, load_text_encoder(opened.about["text"]), "chair")
    object.__setattr__(found, "question", "<script>alert(1)</script>")
    indexing.search.write_found(tmp_path / "page.html", found, opened)
    assert "<script" not in (tmp_path / "page.html").read_text()


def cut_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which scenes are cut up from now on."""
    names: list[str] = []
    original = indexing.describe_parts

    def describe(scene, *rest):
        names.append(scene.name)
        return original(scene, *rest)

    monkeypatch.setattr(indexing, "describe_parts", describe)
    return names


def test_an_index_follows_its_store(store, tmp_path, monkeypatch):
    names, path = cut_up(monkeypatch), make(store, tmp_path)
    assert names == ["one", "two"]
    make(store, tmp_path)
    assert names == ["one", "two"]
    add(store, "two", heap(0, "bed", RED))
    add(store, "three", heap(0, "chair", BLUE))
    make(store, tmp_path)
    assert sorted(names[2:]) == ["three", "two"]
    assert sorted(asked(path, "chair")) == [("one", "red"), ("three", "blue")]
    rmtree(store.path / "scenes" / "one")
    make(store, tmp_path)
    assert len(names) == 4
    assert asked(path, "chair") == [("three", "blue")]
    assert len(list((path / "scenes").iterdir())) == 2
    assert len(list(path.glob("vectors-*"))) == 1


def test_stores_are_added_and_one_that_is_gone_is_removed(store, tmp_path):
    path = make(store, tmp_path)
    (tmp_path / "more").mkdir()
    more = Store.create(tmp_path / "more" / "store", cell=0.05, teachers=store.teachers)
    add(more, "one", heap(0, "chair", BLUE))
    make(more, tmp_path)
    assert sorted(asked(path, "chair")) == [("one", "blue"), ("one", "red"), ("two", "blue")]
    rmtree(more.path)
    make(store, tmp_path)
    assert sorted(asked(path, "chair")) == [("one", "red"), ("two", "blue")]


def test_a_killed_index_goes_on_after_the_last_scene_and_answers_as_before_until_then(store, tmp_path, monkeypatch):
    path = make(store, tmp_path)
    add(store, "three", heap(0, "chair", RED))
    add(store, "four", heap(0, "chair", RED))
    with monkeypatch.context() as patch:
        patch.setattr(indexing, "write_sealed", killed)  # of the roll, the last that is written
        with pytest.raises(KeyboardInterrupt):
            indexing.update(path, [store], [Predictor.open(store)], None)
    assert len(asked(path, "chair")) == 2
    names = cut_up(monkeypatch)
    make(store, tmp_path)
    assert names == []
    assert len(asked(path, "chair")) == 4


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_scene_that_goes_while_it_is_read_is_left_out_and_said(store, tmp_path, capsys, monkeypatch):
    original = indexing.describe_parts

    def describe(scene, *rest):
        rmtree(store.path / "scenes" / "two")
        return original(scene, *rest)

    monkeypatch.setattr(indexing, "describe_parts", describe)
    path = make(store, tmp_path, code=3)
    assert "left out two" in capsys.readouterr().err
    assert asked(path, "chair") == [("one", "red")]


def test_parts_of_another_kind_are_refused_in_one_line(store, tmp_path, capsys):
    make(store, tmp_path)
    (tmp_path / "other").mkdir()
    other = store_of(tmp_path / "other", "scannet20")
    assert main(["index", str(other.path), "--out", str(tmp_path / "index")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "num_channels 40, not 20" in said
    assert "Choose another --out" in said


@pytest.mark.parametrize("damage", ["vectors", "roll", "scene", "version", "gone"])
def test_a_damaged_index_says_so_and_what_to_do(store, tmp_path, capsys, damage):
    path = make(store, tmp_path)
    vectors = next(path.glob("vectors-*"))
    match damage:
        case "vectors":
            vectors.write_bytes(vectors.read_bytes()[:40])
        case "gone":
            vectors.unlink()
        case "roll":
            (path / "roll.json").write_text((path / "roll.json").read_text().replace('"count": ', '"count": 1'))
        case "scene":
            for file in (path / "scenes").iterdir():
                file.write_bytes(file.read_bytes()[:100])
        case "version":
            about = read_sealed(path / "index.json", "")
            write_sealed(path / "index.json", {**about, "format_version": 2})
    assert main(["search", str(path), "chair"]) == 2
    said = capsys.readouterr().err
    assert "cuao3d index" in said
    assert said.count("\n") == 1
    if damage in ("vectors", "gone", "scene"):
        make(store, tmp_path)
        assert len(asked(path, "chair")) == 2


def test_what_cannot_be_asked_is_refused(store, tmp_path, capsys):
    assert main(["search", str(tmp_path / "index"), "chair"]) == 2
    path = make(store, tmp_path)
    for arguments in (["  "], ["chair", "--out", str(tmp_path / "found.pdf")], ["chair", "--top", "0"]):
        assert main(["search", str(path), *arguments]) == 2
    assert main(["index", str(store.path), "--out", str(store.path)]) == 2
    assert "no index" in capsys.readouterr().err


def test_without_the_library_the_extra_is_named(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "usearch", None)
    assert main(["index", str(store.path), "--out", str(tmp_path / "index")]) == 2
    assert "pip install 'cuao3d[search]'" in capsys.readouterr().err


def test_vectors_are_found_as_a_product_with_all_finds_them_and_removed_ones_are_not(tmp_path):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(400, 32, generator=generator), dim=1)
    rows = as_rows(vectors, torch.rand(400, len(NAMES), generator=generator))
    index = Vectors.empty(rows.shape[1])
    index.add(np.arange(400) + 7, rows)
    index.remove(range(7, 107))
    index.write(tmp_path / "v.usearch")
    read = Vectors.read(tmp_path / "v.usearch", rows.shape[1], "")
    assert len(read) == 300
    for query in rows[:20]:
        keys, found = read.nearest(query, 10)
        expected = np.argsort(-(rows[100:].astype(np.float16).astype(np.float32) @ query))[:10] + 107
        assert len(set(keys) & set(expected)) >= 9
        np.testing.assert_allclose(found, rows[keys - 7], atol=1e-3)
    with pytest.raises(InputError, match="width"):
        Vectors.read(tmp_path / "v.usearch", 5, "")
