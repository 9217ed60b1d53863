"""Probes: what linear maps find in frozen features, of a student's heads and of lifted ones: classes, and geometry."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from cuao3d.console import note
from cuao3d.errors import InputError
from cuao3d.evaluate import count, labels_of
from cuao3d.labels import LabelSet
from cuao3d.linear import TOLERANCE, LinearMap, Optimiser, fit_as_paper, fit_classes, fit_values
from cuao3d.memory import give_back
from cuao3d.metrics import Row, make_row
from cuao3d.progress import OnCount, telling
from cuao3d.scene import UNLABELLED, Split
from cuao3d.store import Store, StoredScene
from cuao3d.store.roll import count_of
from cuao3d.subjects import LIFTED, MOST_SAMPLES, Lessons, Subjects, is_lifted, refuse_overlap
from cuao3d.supervise import as_vocabulary, score
from cuao3d.surfaces import KINDS, Quantity, surfaces
from cuao3d.vocabulary import Told

SHUFFLED, CONSTANT = "control: shuffled labels", "control: constant"
"""Read-outs of the controls: what the first probe makes of labels that were shuffled among its samples, and the class
that most of its samples are of, everywhere."""


MEAN, MEDIAN, PLACE = "control: mean", "control: median", "control: place in the image"
"""Controls of geometry: mean and median of the samples that probes learn from, and a probe of a quadratic function of
the pixel's position, which knows that floors are low in an image but sees nothing of it."""


def probe(
    store: Store,
    run: Path | None = None,
    *,
    labels: str = "scannet20",
    split: Split | None = "val",
    baseline: Path | None = None,
    bound: Path | None = None,
    teachers: Sequence[str] | None = None,
    optimiser: Optimiser = "converged",
    most: int = MOST_SAMPLES,
    seed: int = 0,
    seen_only: bool = False,
    device: str = "cpu",
) -> tuple[Row, ...]:
    """Score linear probes with labels of frozen features: a student's heads, a baseline's, lifted ones; see `learn`.

    Args:
        store: Scenes with labels, some in the split train, which probes learn from.
        run: A distilled run or student; without it only lifted features are probed.
        labels: Name of a label set in the package or the store, or the path of a CSV.
        split: Split to evaluate; None for all scenes.
        baseline: Another student to compare with.
        bound: A run of `supervise`, whose score is added.
        teachers: Teachers whose lifted features are probed; all of the store unless given.
        optimiser: How probes are fitted.
        most: Samples that they learn from at most.
        seed: Seed of the draw of these.
        seen_only: Score only points whose sample at least one view sees.
        device: Where students and probes run.

    Returns:
        A row for each probe and control, and for the upper bound if it is given; scores are percentages.

    Raises:
        InputError: Scenes to be scored were learned from, there are no labels to learn from or to score by, or a run
            does not fit the store.
    """
    subjects = Subjects.open(store, run, baseline=baseline, teachers=teachers, device=device)
    subjects.check_split(split)
    name, classes = store.path.name, store.label_set(labels)
    how: dict[str, Any] = {"split": split, "dataset": name, "seen_only": seen_only}
    ceiling = () if bound is None else (_score_bound(store, bound, labels, device, how),)
    probes = learn(subjects, classes, optimiser=optimiser, most=most, seed=seed)
    for line in probes.about:
        note(line)
    with telling(None, "scoring probes") as told:
        return probes.score(**how, progress=told) + ceiling


def _score_bound(store: Store, bound: Path, labels: str, device: str, how: Mapping[str, Any]) -> Row:
    """Score the upper bound; before anything else, so that one that does not fit is refused at once."""
    with telling(None, "scoring the upper bound") as told:
        row = score(store, bound, labels=labels, device=device, progress=told, **how)
    refuse_overlap("The student of --bound has learned", row.trained_on)
    return row


@dataclass(frozen=True, eq=False)
class Probes:
    """Linear maps from the features of subjects to the classes of a label set."""

    subjects: Subjects
    """What is probed."""
    classes: LabelSet
    """The classes."""
    maps: Mapping[str, LinearMap]
    """The map of each read-out, `SHUFFLED` among them."""
    frequencies: Float[Tensor, "K"]
    """Share of each class among the samples that they learned from."""
    about: tuple[str, ...]
    """Lines on what they learned from and whether they converged."""

    def scores(self, scene: StoredScene) -> dict[str, Float[Tensor, "S K"]]:
        """Score the classes at every sample of a scene by each read-out; 0 where it has no feature.

        Args:
            scene: A scene of the store.
        """
        described = self.subjects.describe(scene, torch.arange(len(scene.num_views)))
        unseen = ~scene.seen[:, None].to(self.frequencies.device)
        found: dict[str, Tensor] = {}
        for readout, linear in self.maps.items():
            of = self.subjects.widest if readout == SHUFFLED else readout
            logits = self.subjects.apply(linear, of, described)
            found[readout] = logits.masked_fill(unseen, 0) if is_lifted(of) else logits
        for readout, parts in self.subjects.averages.items():
            found[readout] = torch.stack([found[part] for part in parts]).mean(dim=0)
        return found | {CONSTANT: self.frequencies.expand(len(unseen), -1)}

    def score(
        self,
        *,
        split: Split | None = "val",
        seen_only: bool = False,
        dataset: str = "",
        progress: OnCount | None = None,
    ) -> tuple[Row, ...]:
        """Score the probes on the original points of scenes, as `evaluate.zero_shot` scores words.

        Args:
            split: Split to evaluate; not one that the probes learned from.
            seen_only: Score only points whose sample at least one view sees.
            dataset: Name of the dataset, for the rows.
            progress: Told after each scene.

        Raises:
            InputError: No scene of the split has labels, or none of them is of the label set.
        """
        store = self.subjects.store
        counted = count(store, self.classes, self.scores, split=split, seen_only=seen_only, progress=progress)
        row = partial(make_row, counted, self.classes, dataset=dataset, split=split or "all", seen_only=seen_only)
        models, told = self.subjects.models, Told(as_vocabulary(self.classes))
        order = sorted(counted.confusions, key=lambda readout: readout in (SHUFFLED, CONSTANT))
        rows = [row(model=models.get(readout, LIFTED), readout=readout, told=told) for readout in order]
        return tuple(replace(one, readout=_title(one.readout)) for one in rows)


def learn(
    subjects: Subjects,
    classes: LabelSet,
    *,
    optimiser: Optimiser = "converged",
    most: int = MOST_SAMPLES,
    seed: int = 0,
) -> Probes:
    """Fit a probe to each of the subjects on labelled samples of the training scenes.

    All probes learn from the same samples: those with a label that a view sees, or, in a store without teachers, all
    with a label. The label of a sample is that of its own point, as in `supervise`. `averaged` is the mean of the
    scores of the single heads' probes, which are logits.

    Args:
        subjects: What is probed.
        classes: Label set to learn; labels in another set are converted.
        optimiser: `converged`: `fit_classes`; `paper`: `fit_as_paper`.
        most: Samples that they learn from at most, as many of each scene.
        seed: Seed of the draw, of shuffling and of the paper's optimiser.

    Raises:
        InputError: No sample of the training scenes has a label of the set.
    """
    taken = partial(_labelled_samples, classes=classes, seen_only=bool(subjects.store.teachers))
    with telling(None, "describing training scenes") as told:
        lessons = subjects.gather(taken, what=f"a label of {classes.name}", most=most, seed=seed, progress=told)
    fit = partial(_fit, lessons, len(classes), optimiser, seed)
    jobs = {readout: (parts, lessons.targets) for readout, parts in subjects.parts.items()}
    order = torch.randperm(len(lessons.targets), generator=torch.Generator().manual_seed(seed))
    jobs[SHUFFLED] = (subjects.parts[subjects.widest], lessons.targets[order.to(subjects.device)])
    maps = {}
    with telling(None, "fitting probes") as told:
        for done, (readout, job) in enumerate(jobs.items(), start=1):
            maps[readout] = fit(*job)
            told(done, len(jobs))
    counts = torch.bincount(lessons.targets, minlength=len(classes))
    absent = [name for name, number in zip(classes.names, counts.tolist(), strict=True) if not number]
    never = (f"no training sample shows {', '.join(absent)}: no probe predicts these",) if absent else ()
    about = (lessons.about, _convergence(maps), *never)
    return Probes(subjects, classes, maps, counts / counts.sum(), about)


def _title(readout: str) -> str:
    return readout if readout.startswith("control: ") else f"probe: {readout}"


def _labelled_samples(
    scene: StoredScene, *, classes: LabelSet, seen_only: bool
) -> tuple[Int64[Tensor, "M"], Int64[Tensor, "M"]]:
    """Return the samples of a scene whose own point has a label, and their classes."""
    if scene.labels is None:
        none = torch.zeros(0, dtype=torch.int64)
        return none, none
    class_of_sample = labels_of(scene, classes)[scene.index_of_sample]
    usable = (class_of_sample != UNLABELLED) & (scene.seen | (not seen_only))
    samples = torch.nonzero(usable).squeeze(1)
    return samples, class_of_sample[samples]


def _fit(
    lessons: Lessons,
    num_classes: int,
    optimiser: Optimiser,
    seed: int,
    parts: tuple[str, ...],
    targets: Int64[Tensor, "R"],
) -> LinearMap:
    """Fit the probe of some features."""
    inputs = lessons.inputs(parts)
    if optimiser == "converged":
        return fit_classes(inputs, targets, num_classes)
    return fit_as_paper(inputs, targets, num_classes, scene_of_row=lessons.scene_of_row, seed=seed)


def _convergence(maps: Mapping[str, LinearMap]) -> str:
    """Say whether probes have converged."""
    gaps = {readout: linear.gap for readout, linear in maps.items() if linear.gap is not None}
    steps = max(linear.steps for linear in maps.values())
    if not gaps:
        return f"the paper's optimiser took {steps} steps of four scenes; it stops there, converged or not"
    late = [f"{_title(readout)} ({gap:.1e})" for readout, gap in gaps.items() if gap > TOLERANCE]
    if late:
        return f"not converged after {steps} steps, by the bound on the loss to be gained (nats): {', '.join(late)}"
    return (
        f"converged after at most {steps} steps: no training loss can fall by more than {max(gaps.values()):.1e} nats"
    )


WHAT = {False: "a view", True: "a single view for certain"}
"""What samples need for the quantities of a place, and for those of a view."""


@dataclass(frozen=True)
class SurfaceRow:
    """A row of a table of geometry: how far off the probe of some features is."""

    model: str
    """Name of the student; "none" for lifted features and controls."""
    readout: str
    """What is probed, or the control."""
    dataset: str
    """Name of the dataset."""
    split: str
    """Split of the dataset, or "all"."""
    quantity: Quantity
    """What is predicted; see `surfaces.surfaces`."""
    unit: str
    """Unit of the error."""
    error: float
    """Mean absolute error over the samples; of `normal` the mean angle between the predicted and the true direction."""
    num_samples: int
    """Samples that are scored, each once however many points it stands for."""
    scenes: str
    """Number of scenes scored; where some are missing, of how many, and which."""
    missing: dict[str, str]
    """Why each scene is missing, by its name."""


def probe_geometry(
    store: Store,
    run: Path | None = None,
    *,
    split: Split | None = "val",
    baseline: Path | None = None,
    teachers: Sequence[str] | None = None,
    most: int = MOST_SAMPLES,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[SurfaceRow, ...]:
    """Score linear probes of normals, heights and depths, fitted by least squares (`fit_values`); see `surfaces`.

    All probes of a quantity learn from the same samples and are scored on the same: those that a view sees or, in a
    store without teachers, all; of `normal` and `depth` those of a single view, by lifted features alone. A line says
    how many, and what is left out.

    Args:
        store: Scenes, some in the split train, which probes learn from; labels are not read.
        run: A distilled run or student; without it only lifted features are probed.
        split: Split to evaluate; None for all scenes.
        baseline: Another student to compare with.
        teachers: Teachers whose lifted features are probed; all of the store unless given.
        most: Samples that a probe learns from at most, as many of each scene.
        seed: Seed of the draw of these.
        device: Where students and probes run.

    Returns:
        The rows, quantity by quantity, controls last.

    Raises:
        InputError: Scenes to be scored were learned from, or a run does not fit the store.
    """
    subjects = Subjects.open(store, run, baseline=baseline, teachers=teachers, device=device)
    subjects.check_split(split)
    rows: list[SurfaceRow] = []
    jobs = [(subjects, False)] + ([(subjects.only_lifted(), True)] if subjects.lifted else [])
    for ours, of_view in jobs:
        quantities = tuple(quantity for quantity, kind in KINDS.items() if kind.of_view == of_view)
        kind = " and ".join(quantities)
        try:
            with telling(None, f"describing training scenes for {kind}") as told:
                take = partial(_take_surfaces, quantities=quantities, store=store)
                lessons = ours.gather(take, what=WHAT[of_view], most=most, seed=seed, progress=told)
        except InputError as error:
            note(f"{kind}: left out. {error}")
            continue
        fits = _fit_surfaces(ours, lessons, quantities)
        note(f"{kind}: {lessons.about}")
        if left_out := [quantity for quantity in quantities if quantity not in fits]:
            note(f"{' and '.join(left_out)}: left out, as the clouds have no normals")
        with telling(None, f"scoring {kind}") as told:
            errors = _surface_errors(ours, fits, quantities, split, told)
        rows += [_surface_row(ours, split, *of, *error) for of, error in errors.items()]
    return tuple(rows)


def _surface_row(
    subjects: Subjects, split: Split | None, quantity: Quantity, readout: str, error: float, num_samples: int
) -> SurfaceRow:
    store = subjects.store
    return SurfaceRow(
        model=subjects.models.get(readout, LIFTED),
        readout=_title(readout),
        dataset=store.path.name,
        split=split or "all",
        quantity=quantity,
        unit=KINDS[quantity].unit,
        error=error,
        num_samples=num_samples,
        scenes=count_of(len(store.names(split)), store.missing()),
        missing=store.missing(),
    )


def _take_surfaces(
    scene: StoredScene, *, quantities: tuple[Quantity, ...], store: Store
) -> tuple[Int64[Tensor, "M"], Float[Tensor, "M D"]]:
    """Return the samples on which a quantity is defined; and the quantities side by side, and their place."""
    found = surfaces(scene, upright=store.settings.get("upright") is True)
    values = torch.cat([found.values[quantity] for quantity in quantities] + [found.place], dim=1)
    usable = values[:, : -found.place.shape[1]].isfinite().any(dim=1) & (scene.seen | (not store.teachers))
    samples = torch.nonzero(usable).squeeze(1)
    return samples, values[samples]


def _columns(targets: Tensor, quantities: Iterable[Quantity]) -> tuple[dict[Quantity, Tensor], Tensor]:
    """Take apart what `_take_surfaces` put side by side."""
    widths = [KINDS[quantity].width for quantity in quantities]
    *values, place = torch.split(targets, [*widths, targets.shape[1] - sum(widths)], dim=1)
    return dict(zip(quantities, values, strict=True)), place


def _fit_surfaces(
    subjects: Subjects, lessons: Lessons, quantities: tuple[Quantity, ...]
) -> dict[Quantity, dict[str, LinearMap]]:
    """Fit the probes and the controls of each quantity that is defined anywhere, by their read-outs."""
    values, place = _columns(lessons.targets, quantities)
    fits: dict[Quantity, dict[str, LinearMap]] = {}
    for quantity, of_rows in values.items():
        known = of_rows.isfinite().all(dim=1)
        if not known.any():
            continue
        wanted = of_rows[known]
        maps = {readout: fit_values(lessons.inputs(parts)[known], wanted) for readout, parts in subjects.parts.items()}
        if KINDS[quantity].of_view:
            maps[PLACE] = fit_values(_quadratic(place[known]), wanted)
        nothing = torch.zeros(0, wanted.shape[1], device=wanted.device)
        maps[MEAN] = LinearMap(nothing, wanted.mean(dim=0), 0, 0.0)
        maps[MEDIAN] = LinearMap(nothing, wanted.median(dim=0).values, 0, 0.0)
        fits[quantity] = maps
    return fits


def _surface_errors(
    subjects: Subjects,
    fits: Mapping[Quantity, Mapping[str, LinearMap]],
    quantities: tuple[Quantity, ...],
    split: Split | None,
    progress: OnCount,
) -> dict[tuple[Quantity, str], tuple[float, int]]:
    """Return the mean error of each quantity and read-out on the samples of a split, and their number."""
    store, names = subjects.store, subjects.store.names(split)
    sums: dict[tuple[Quantity, str], float] = defaultdict(float)
    counts: Counter[Quantity] = Counter()
    for done, name in enumerate(names, start=1):
        scene = store[name]
        samples, targets = _take_surfaces(scene, quantities=quantities, store=store)
        described = subjects.describe(scene, samples)
        values, place = _columns(targets.to(subjects.device), quantities)
        described |= {PLACE: _quadratic(place), MEAN: place[:, :0], MEDIAN: place[:, :0]}
        for quantity, maps in fits.items():
            known, true = values[quantity].isfinite().all(dim=1), values[quantity]
            counts[quantity] += int(known.sum())
            for readout, linear in maps.items():
                error = surface_error(quantity, subjects.apply(linear, readout, described), true)
                sums[quantity, readout] += error[known].double().sum().item()
        give_back()
        progress(done, len(names))
    return {(of, readout): (total / counts[of], counts[of]) for (of, readout), total in sums.items() if counts[of]}


def _quadratic(place: Float[Tensor, "M 2"]) -> Float[Tensor, "M 5"]:
    """Return the terms of a quadratic function of a place."""
    x, y = place.unbind(dim=1)
    return torch.stack([x, y, x * x, x * y, y * y], dim=1)


def surface_error(
    quantity: Quantity, predicted: Float[Tensor, "M D"], true: Float[Tensor, "M D"]
) -> Float[Tensor, "M"]:
    """Return how far off predictions of a quantity are, in its unit.

    Args:
        quantity: The quantity. Of `normal` it is the angle between the directions; `inclination` is cut to 0 to 90.
        predicted: What a probe predicts.
        true: What is true.
    """
    if quantity == "normal":
        cosine = functional.cosine_similarity(predicted, true, dim=1)
        return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
    if quantity == "inclination":
        predicted = predicted.clamp(0, 90)
    return (predicted - true).abs().squeeze(1)
