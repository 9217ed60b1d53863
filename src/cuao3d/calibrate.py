"""Calibration: fit how sure labels are on labelled scenes, and keep it in a store or a run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from cuao3d.confidence import Fit, Scored, fit_confidence, keep_confidence
from cuao3d.console import progress_bar
from cuao3d.errors import InputError
from cuao3d.evaluate import labels_of
from cuao3d.labels import LabelSet
from cuao3d.memory import give_back
from cuao3d.names import check_local
from cuao3d.predictor import Predictor
from cuao3d.progress import OnCount
from cuao3d.run import run_folder
from cuao3d.scene import Split
from cuao3d.store import Store
from cuao3d.text import class_vectors


def fit_trust(
    store: Store,
    run: Path | None = None,
    *,
    labels: str,
    split: Split | None,
    where: str = "scenes",
    teacher: str | None = None,
    text: str | None = None,
    progress: OnCount | None = None,
) -> dict[str, Fit]:
    """Fit the confidence of lifted features, or of a student, on a split; keep it in the store, or in the run.

    Args:
        store: Scenes with labels; none of them is to be scored or shown.
        run: Folder of a finished run; None for the store's lifted features.
        labels: Name of a label set in the package or the store, or the path of a CSV.
        split: Split of the scenes, which the student did not learn from if that can be; None for all.
        where: What the scenes are, in the plural.
        teacher: Which teacher names the classes; the first with a text encoder unless given.
        text: Text encoder for the names; the teacher's unless given.
        progress: Told of each scene, which is looked at twice; None: a progress bar.

    Returns:
        What was fitted, by judge; see `confidence.Judge`.

    Raises:
        InputError: `run` is a file without a folder, what is fitted would be kept in a store at a URL, or no scene of
            the split has labels.
    """
    if run is None:
        check_local(store.url or store.path, "store")
    predictor = Predictor.open(store, run=run, teacher=teacher, text=text)
    folder = store.path if run is None else run_folder(run)
    if folder is None:
        raise InputError(f"{run} is a file alone; what is fitted is kept in the folder of a run. Name that folder.")
    classes = store.label_set(labels)
    scenes = [name for name in store.names(split) if store[name].labels is not None]
    if not scenes:
        raise InputError(f"{store.path} has no {split or 'finished'} scene with labels; choose another --split.")
    who = "this student" if run else f"lifted features of {predictor.teacher}"
    told = where if len(scenes) > 1 else where.removesuffix("s")
    with progress_bar() as bar:
        task = bar.add_task("fitting confidence", total=2 * len(scenes), visible=progress is None)
        views = _Scenes(store, predictor, classes, scenes, progress or partial(_move, bar, task))
        fits = fit_confidence(views, f"{who} in {len(scenes)} {told}, {split or 'all'}, {classes.name}")
    keep_confidence(folder, classes.name, fits, predictor.fitted_for)
    return fits


@dataclass
class _Scenes:
    """Scores and true classes of labelled scenes, one after the other, as often as they are asked for."""

    store: Store
    predictor: Predictor
    classes: LabelSet
    names: Sequence[str]
    on_count: OnCount
    num_done: int = 0

    def __iter__(self) -> Iterator[tuple[Scored, Tensor]]:
        vectors = class_vectors(self.predictor.encoder, self.classes)
        for name in self.names:
            scene = self.store[name]
            yield self.predictor.scored(scene, vectors), labels_of(scene, self.classes)
            give_back()
            self.num_done += 1
            self.on_count(self.num_done, 2 * len(self.names))


def _move(bar: Any, task: Any, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)
