"""What was found, outlined in photographs on a page: from a capture to the page, and what the page says without any."""

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from conftest import PICTURE, WALL, Alone, camera_at
from cuao3d import answers
from cuao3d.answers import _about_answer
from cuao3d.cli import main
from cuao3d.finds import Find, Finds, Place, layout
from cuao3d.labels import label_set
from cuao3d.photographs import Outline, Photograph
from cuao3d.pipeline import fuse
from cuao3d.query import Answer
from cuao3d.report import Gallery, write_report
from cuao3d.scene import Scene
from cuao3d.store import PHOTOGRAPHS_FILE, Store
from test_report import without_scripts

CLASSES = label_set("scannet20")


class Knows:
    """A teacher that cannot be wrong: what is red is wall, what is green a picture."""

    name = "knows"
    num_channels = len(CLASSES)

    def __init__(self, folder: Path) -> None:
        torch.save(torch.eye(len(CLASSES)), folder / "words.pt")
        self.text = f"table:{folder / 'words.pt'}@scannet20"

    def __call__(self, image: Float[Tensor, "3 H W"]) -> Float[Tensor, "C H W"]:
        maps = torch.zeros(len(CLASSES), *image.shape[1:])
        maps[WALL], maps[PICTURE] = image[0] > image[1], image[1] > image[0]
        return maps


@pytest.fixture
def store(synthetic_scene: Scene, tmp_path: Path) -> Store:
    return fuse(Alone(synthetic_scene), [Knows(tmp_path)], tmp_path / "store", cell=0.01)


def ask(store: Store, folder: Path, *words: str) -> str:
    assert main(["query", str(store.path), *words, "--out", str(folder / "page.html")]) == 0
    return (folder / "page.html").read_text(encoding="utf-8")


def test_a_place_is_outlined_in_the_photograph_that_shows_it(store, tmp_path):
    page = ask(store, tmp_path, "picture", "bathtub")
    (image,) = re.findall(r'<image id="photograph-1" href="data:image/jpeg;base64,([^"]*)"', page)
    assert Image.open(io.BytesIO(base64.b64decode(image))).size == (64, 48)
    # The picture's points span 0.44 m, 1 m before the camera at x = -0.25 with 40 pixels a metre: 17.6 pixels around
    # pixel 41.5 of 0 to 63; that is less than the smallest outline, of 24.
    (style,) = re.findall(r'<div class="box[^"]*" style="([^"]*)"', page)
    edges = dict(re.findall(r"([a-z]+): ([0-9.]+)%", style))
    assert {name: float(value) for name, value in edges.items()} == pytest.approx(
        {"left": 100 * 30 / 64, "top": 100 * 12 / 48, "width": 100 * 24 / 64, "height": 100 * 24 / 48}, abs=0.6
    )
    assert "<b>1 picture</b>" in page
    seen = "the 64 % that was seen"
    assert f'<b>picture</b><i class="verdict">here</i><span>relevance 1.00, 1 place in {seen}</span>' in page
    size = r"0\.44 x 0\.00 x 0\.44 m"
    assert re.search(rf"<b>1</b> relevance 1\.00, at \(0\.00, 1\.00, 1\.00\) m; {size}</span>", page)
    assert re.search(rf'<p class="rest absent"><b>bathtub</b><i class="verdict">absent</i>.*not in {seen}', page)


def test_the_places_of_a_question_are_worked_out_once_for_a_page(store, tmp_path, monkeypatch):
    clustered = []
    find = answers.find_places
    monkeypatch.setattr(answers, "find_places", lambda points, *rest: clustered.append(points) or find(points, *rest))
    ask(store, tmp_path, "picture", "wall")
    assert len(clustered) == 2


def test_the_page_still_needs_nothing_but_itself(store, tmp_path):
    page = ask(store, tmp_path, "picture")
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert "#photograph-1" in sources
    assert all(source.startswith("data:image/jpeg;base64,") or f'id="{source[1:]}"' in page for source in sources)
    assert not re.search(r"<link|@import|url\(|https?:", without_scripts(page))


def test_a_store_without_photographs_says_so(store, tmp_path):
    folder = store.path / "scenes" / "synthetic"
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"][PHOTOGRAPHS_FILE], manifest["sha256"]  # as an earlier version wrote it
    (store.path / "scenes.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / PHOTOGRAPHS_FILE).unlink()
    page = ask(store, tmp_path, "picture")
    assert page.count("The store holds no photographs of this scene.") == 1
    assert "<image" not in page
    assert re.search(r"<b>picture</b>.*here.*<b>1</b> relevance 1\.00, at \(0\.00, 1\.00, 1\.00\) m", page)


def place(photograph: Photograph | None, left: float = 10, top: float = 20, note: str = "somewhere") -> Place:
    """A place in a photograph of 64 x 48 pixels."""
    return Place(note, Outline(photograph, left, top, left + 20, top + 10) if photograph else None)


def test_places_in_one_photograph_share_a_card_and_unseen_ones_are_named():
    one, other = (Photograph(name, b"", camera_at(0), torch.ones(1, dtype=torch.bool)) for name in ("one", "other"))
    places = [place(one), place(None, note="hidden"), place(other), place(one, 40, 2)]
    find = Find("a cup", "unsure", "relevance 0.2", places)
    page = layout(Finds([find, Find("a cat", "absent", "not in this scene", [])]))
    assert [(card["photograph"], [box["number"] for box in card["boxes"]]) for card in page["cards"]] == [
        ("one", [1, 4]),
        ("other", [3]),
    ]
    assert [(card["first"], card["hidden"]) for card in page["cards"]] == [(True, [(2, "hidden")]), (False, [])]
    assert [box["classes"] for box in page["cards"][0]["boxes"]] == [[], ["inside", "end"]]
    assert list(page["photographs"]) == ["one", "other"]
    assert [find.words for find in page["rest"]] == ["a cat"]


def test_the_note_of_an_answer_says_what_the_teacher_does_not_know():
    values = torch.zeros(4)
    answer = Answer("a cup", "unsure", 0.2, values, values, values > 0, torch.tensor([True] * 3 + [False]), "mug")
    doubt = "; no class of the teacher is near these words, the nearest is 'mug'"
    assert _about_answer(answer, 2) == f"relevance 0.20, 2 places in the 75 % that was seen{doubt}"
    assert _about_answer(answer, 0) == f"relevance 0.20, perhaps not in the 75 % that was seen{doubt}"
    assert _about_answer(replace(answer, nearest_class=None), 1).endswith("1 place in the 75 % that was seen")


def test_words_are_no_html(tmp_path):
    photograph = Photograph("<i>", b"", camera_at(0), torch.ones(1, dtype=torch.bool))
    finds = Finds([Find("<b>cup</b>", "here", "<u>", [place(photograph)]), Find("<s>", "absent", "", [])])
    write_report(tmp_path / "page.html", {}, Gallery("scan", torch.rand(50, 3), finds=finds))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;cup" in page
    assert not re.search(r"<b>cup|<u>|<s>|=\"<i>", page)
