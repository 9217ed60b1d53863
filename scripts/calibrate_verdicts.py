"""Measure how often the verdict of a query is right on lifted features of synthetic rooms, at several thresholds.

cuao3d demo --full --out full-0
python scripts/calibrate_verdicts.py full-0/store
"""

from pathlib import Path

import torch
import tyro
from tyro.conf import Positional

from cuao3d.labels import label_set
from cuao3d.predictor import Predictor
from cuao3d.query import MIN_POINTS, Questions, ask
from cuao3d.store import Store

QUESTIONS = {
    "somewhere to sit": ("chair", "sofa"),
    "a place to sleep": ("bed",),
    "somewhere to keep food cold": ("refrigerator",),
    "where are the books": ("bookshelf",),
    "work at a computer": ("desk",),
}
"""Queries that are not class names, and the classes that answer them."""

TOO_COMMON = ("wall", "floor", "otherfurniture")
"""Classes that are not queried."""

HARDLY_THERE = 2 * MIN_POINTS
"""With fewer samples than this, a class counts neither as present nor as absent."""


def main(store: Positional[Path]) -> None:
    """Query every held-out room for every class and every question; the labels are the ground truth."""
    opened, classes = Store.open(store), label_set("scannet20")
    predictor = Predictor.open(opened)
    wanted = {f"a {name}": (name,) for name in classes.names if name not in TOO_COMMON} | QUESTIONS
    questions = Questions.read(predictor.encoder, list(wanted))
    reached: dict[bool, list[float]] = {True: [], False: []}
    precision: dict[bool, list[float]] = {True: [], False: []}
    for name in opened.names("val"):
        scene = opened[name]
        truth = classes.classes(scene.labels[scene.index_of_sample])[scene.seen_samples]
        for answer in ask(scene.features(predictor.teacher), questions):
            right = torch.isin(truth, torch.tensor([classes.names.index(word) for word in wanted[answer.words]]))
            if 0 < right.sum() < HARDLY_THERE:
                continue
            best = answer.relevance.topk(MIN_POINTS)
            reached[bool(right.any())].append(float(best.values[-1]))
            if right.any():
                precision[answer.words in QUESTIONS].append(float(right[best.indices].float().mean()))
    there, absent = torch.tensor(reached[True]), torch.tensor(reached[False])
    print(f"{len(there)} queries with an answer in the room, {len(absent)} without")
    print(f"precision of the {MIN_POINTS} best points: {_percent(precision[False])} for class names, ", end="")
    print(f"{_percent(precision[True])} for other queries")
    for cut in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5):
        print(
            f"relevance >= {cut:.2f}: {_percent(there >= cut)} of the present, {_percent(absent >= cut)} of the absent"
        )


def _percent(values: torch.Tensor | list[float]) -> str:
    return f"{100 * torch.as_tensor(values).float().mean():.0f} %"


if __name__ == "__main__":
    tyro.cli(main)
