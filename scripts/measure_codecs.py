"""Measure what a store's codec costs: zero-shot mIoU of the lifted features, and the first answers to questions.

python scripts/measure_codecs.py STORE --labels made100 --codecs pca:256+int8 pca:64+int8

Each codec's store is converted into a folder that is deleted afterwards. The first answer to a question is the scene
with the highest peak and the first place in it; two are the same if scene and verdict are, and their places lie within
`NEAR` of each other.
"""

import json
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from cuao3d.answers import places
from cuao3d.codecs import Codec
from cuao3d.console import tell_table
from cuao3d.evaluate import zero_shot
from cuao3d.predictor import Predictor
from cuao3d.store import Store
from cuao3d.store.convert import convert
from cuao3d.store.inventory import inventory
from cuao3d.text import class_vectors

NEAR = 0.25
"""Places that are nearer than this are the same, metres."""


@dataclass(frozen=True)
class Row:
    """What a codec keeps of a store."""

    codec: str
    bytes_a_sample: float
    """Of the teacher that is asked."""
    cosine_error: float | None
    miou: float
    same: int
    """First answers that are the same as those of the store itself."""
    asked: int


def main(
    store: tyro.conf.Positional[Path],
    labels: str = "scannet20",
    split: str = "test",
    teacher: str | None = None,
    codecs: tuple[str, ...] = ("int8", "pca:256+int8", "pca:64+int8"),
    queries: int = 50,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Compare codecs with the fp16 store that they are made of.

    Args:
        store: The fp16 store.
        labels: Label set that is scored; its names are asked.
        split: Scenes that are scored and asked.
        teacher: Which teacher; the first with a text encoder unless given.
        codecs: Codecs to compare.
        queries: Names that are asked, the first of the label set.
        json_file: Where to write the rows.
    """
    plain = Store.open(store)
    predictor = Predictor.open(plain, teacher=teacher)
    names = plain.label_set(labels).names[:queries]
    miou, answers = _look(plain, predictor, labels, split, names)
    rows = [_row(plain, predictor.teacher, miou, answers, answers)]
    for text in codecs:
        with tempfile.TemporaryDirectory() as folder:
            small = convert(plain, Codec.parse(text), Path(folder) / "store")
            miou, own = _look(small, predictor, labels, split, names)
            rows.append(_row(small, predictor.teacher, miou, own, answers))
    titles = ("codec", "bytes a sample", "cosine error", "mIoU", "same first answers")
    tell_table(
        titles,
        [
            (row.codec, f"{row.bytes_a_sample:.0f}", row.cosine_error, f"{row.miou:.2f}", f"{row.same}/{row.asked}")
            for row in rows
        ],
    )
    if json_file:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def _row(store: Store, teacher: str, miou: float, own: dict[str, Any], answers: dict[str, Any]) -> Row:
    held = next(one for one in inventory(store).teachers if one.teacher == teacher)
    same = sum(_same(own[name], answers[name]) for name in answers)
    return Row(str(store.codec), held.bytes_a_sample or 0.0, held.cosine_error, miou, same, len(answers))


def _same(one: Any, other: Any) -> bool:
    if one[:2] != other[:2] or (one[2] is None) != (other[2] is None):
        return False
    return one[2] is None or math.dist(one[2], other[2]) < NEAR


def _look(
    store: Store, predictor: Predictor, labels: str, split: str, names: tuple[str, ...]
) -> tuple[float, dict[str, Any]]:
    """Return the mIoU of the lifted features, and the scene, verdict and place of each first answer."""
    classes, best = store.label_set(labels), dict[str, Any]()
    vectors = class_vectors(predictor.encoder, classes)
    (row,) = zero_shot(store, classes, vectors, teacher=predictor.teacher, split=split)  # type: ignore[arg-type]
    peaks = dict.fromkeys(names, -math.inf)
    for scene in map(store.__getitem__, store.names(split)):  # type: ignore[arg-type]
        for answer in predictor.ask(scene, names):
            if answer.peak > peaks[answer.words]:
                peaks[answer.words] = answer.peak
                found = places(scene, answer)
                best[answer.words] = (scene.name, answer.verdict, found[0]["center"] if found else None)
    return row.miou, best


if __name__ == "__main__":
    tyro.cli(main)
