"""Confidence: how sure the label of a point is, how well that tells wrong labels, and which labels are withheld.

A label is judged by the lifted features and the student's together, where both are there: the probability that the
mean of their cosines gives to the class that was named. A fit turns it into a share of right labels.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from cuao3d.errors import InputError, NotFoundError
from cuao3d.query import classify, scores
from cuao3d.reliability import SHARES, Levels, Trust, conformal_threshold, error_by_level
from cuao3d.scene import UNLABELLED
from cuao3d.schema import Range, Share, fit
from cuao3d.seals import read_sealed, write_sealed
from cuao3d.store import StoredScene
from cuao3d.teachers.known import shipped_card

CONFIDENCE_FILE = "confidence.json"
"""File of a store or a run that holds what was fitted."""

CURE = "delete it and fit again: cuao3d store calibrate STORE"

FINE = 4000
"""Levels of log-odds in which labels are counted, over [-`WIDEST`, `WIDEST`]."""

WIDEST = 12.0

SMALLEST = 1e-6
"""Probabilities are kept this far from 0 and 1 before a logarithm is taken."""

TEMPERATURES = (0.005, 2.0)
"""Range in which a temperature is looked for."""

DRAWN = 2000
"""Points of each scene, drawn at random, on which temperatures are fitted; thresholds look at all points."""

Judge = Literal["fused", "distilled", "2d3d", "2d", "3d"]
"""Whose labels are judged: those of a read-out, by 2D and 3D together; or of one alone, by itself."""


@dataclass(frozen=True)
class Fit:
    """How a probability becomes a confidence: Platt's logistic function of the log-odds at one temperature."""

    temperature: Annotated[float, Range(1e-4, 1e3)] = 0.07
    """Cosines are divided by it before the softmax."""
    slope: float = 1.0
    """Factor of the log-odds."""
    offset: float = 0.0
    """Added to them."""
    thresholds: tuple[Share | None, ...] = (None,) * len(SHARES)
    """For each of `SHARES`, the confidence from which on labels are kept, be it of this judge or of `UNSEEN`; None
    where no promise can be made."""
    measured_on: str = ""
    """What it was fitted on; empty: on nothing."""

    def threshold(self, share: float) -> float | None:
        """Return the confidence from which on at most a share of the labels is wrong; None: no label can be kept.

        Args:
            share: Largest share of wrong labels among those that are kept. The next lower one of `SHARES` is promised.

        Raises:
            InputError: The share is smaller than those that were fitted, or nothing was fitted.
        """
        if not self.measured_on:
            raise InputError(
                "--abstain needs a confidence that was fitted on labelled scenes: "
                "cuao3d store calibrate STORE --labels NAME, with the same --run."
            )
        smaller = [index for index, one in enumerate(SHARES) if one <= share + 1e-9]
        if not smaller or not share < 1:
            raise InputError(f"--abstain {share:g}: choose a share from {SHARES[0]:g} up to 1; 0.05 is usual.")
        return self.thresholds[smaller[-1]]


UNSEEN: Judge = "3d"
"""Who judges samples that no view sees."""

Fits = Mapping[str, Fit]
"""What was fitted in one label set, by `Judge`."""

UNFITTED = Fit()


@dataclass(frozen=True)
class Judged:
    """Labels of the samples of a scene, and how sure they are."""

    classes: Int64[Tensor, "S"]
    """Class of each sample, a row of the label set; 255 for none."""
    confidence: Float32[Tensor, "S"]
    """Estimated chance that it is right, also where it is withheld; 0 where there is none."""


class Ledger:
    """Counts right and wrong labels of read-outs by their confidence, scene after scene, in little memory."""

    def __init__(self, fits: Fits) -> None:
        self._fits = fits
        self._counts: dict[str, Float64[Tensor, "rows FINE"]] = {}
        self._measured_on: dict[str, str] = {}

    def add(self, found: Mapping[str, Float[Tensor, "S K"]], scored: "Scored", labels: Int64[Tensor, "N"]) -> None:
        """Count the labels of a scene.

        Args:
            found: Scores of the classes by each read-out, at each sample.
            scored: What judges them.
            labels: True class of each point; 255 is ignored.
        """
        for readout, own in found.items():
            judged = judge(readout, own.cpu(), scored, self._fits)
            right, wrong = scored.marks(judged.classes, labels)
            self._count(readout, judged.confidence.double(), right, wrong)
            self._measured_on[readout] = self._fits.get(_judges(readout, scored)[0][0], UNFITTED).measured_on

    def _count(self, readout: str, confidence: Tensor, right: Tensor, wrong: Tensor) -> None:
        odds = confidence.clamp(SMALLEST, 1 - SMALLEST).logit()
        level = ((odds + WIDEST) / (2 * WIDEST) * FINE).long().clamp(0, FINE - 1)
        parts = (confidence * (right + wrong), right, wrong)
        counts = torch.stack([torch.bincount(level, part, minlength=FINE) for part in parts])
        self._counts[readout] = self._counts.get(readout, 0) + counts

    def merge(self, other: "Ledger") -> None:
        """Add what was counted of further scenes by the same fits."""
        for readout, counts in other._counts.items():
            self._counts[readout] = self._counts.get(readout, 0) + counts
        self._measured_on |= other._measured_on

    def levels(self, readout: str) -> Levels:
        """Return the counts of a read-out."""
        sums, right, wrong = self._counts[readout].flip(1)
        held = right + wrong > 0
        return Levels((sums / (right + wrong))[held], right[held], wrong[held])

    def trust(self, readout: str) -> Trust | None:
        """Return how well the confidence of a read-out tells its wrong labels; None of no label."""
        return self.levels(readout).trust(self._measured_on[readout])


@dataclass(frozen=True)
class Scored:
    """Scores of the classes at the samples of a scene, by the lifted features and by the student."""

    in_2d: Float[Tensor, "S K"] | None
    """Cosines of the lifted features, 0 where no view sees the sample; None without them."""
    in_3d: Float[Tensor, "S K"] | None
    """Cosines of the student's features; None without a student."""
    seen: Bool[Tensor, "S"]
    """Whether a view sees each sample."""
    sample_of_point: Int64[Tensor, "N"]
    """The sample that stands for each point."""

    @staticmethod
    def of(
        scene: StoredScene, teacher: str, described: Float[Tensor, "S C"] | None, vectors: Float[Tensor, "K C"]
    ) -> "Scored":
        """Score the classes at the samples of a scene.

        Args:
            scene: The scene.
            teacher: Teacher of the lifted features; a store may lack it where there is a student.
            described: The student's feature of each sample; None without a student.
            vectors: Unit vector of each class.
        """
        in_3d = None if described is None else scores(described, vectors).cpu()
        return Scored.beside(scene, teacher, in_3d, vectors)

    @staticmethod
    def beside(
        scene: StoredScene, teacher: str, in_3d: Float[Tensor, "S K"] | None, vectors: Float[Tensor, "K C"]
    ) -> "Scored":
        """Score the classes by the lifted features, beside the student's cosines `in_3d`; otherwise as `of`."""
        in_2d = None
        with suppress(NotFoundError) if in_3d is not None else nullcontext():
            in_2d = scene.spread(scores(scene.features(teacher), vectors).cpu())
        return Scored(in_2d, None if in_3d is None else in_3d.cpu(), scene.seen, scene.sample_of_point)

    def readouts(self) -> dict[str, Tensor]:
        """Return the scores (S, K) of every read-out that there is."""
        if self.in_3d is None:
            return {} if self.in_2d is None else {"fused": self.in_2d}
        if self.in_2d is None:
            return {"distilled": self.in_3d}
        both = torch.where(self.seen[:, None], (self.in_2d + self.in_3d) / 2, self.in_3d)
        return {"fused": self.in_2d, "distilled": self.in_3d, "2d3d": both}

    def marks(self, classes: Int64[Tensor, "S"], labels: Int64[Tensor, "N"]) -> tuple[Tensor, Tensor]:
        """Count the points of each sample (S,) whose true class is the sample's, and those of another one.

        Args:
            classes: Class of each sample; those with 255 count nowhere.
            labels: True class of each point; 255 is ignored.
        """
        named = classes[self.sample_of_point]
        held = (labels != UNLABELLED) & (named != UNLABELLED)
        counts = [
            torch.bincount(self.sample_of_point[one], minlength=len(classes)).double()
            for one in (held & (named == labels), held & (named != labels))
        ]
        return counts[0], counts[1]


def judge(readout: str, own: Float[Tensor, "S K"], scored: Scored, fits: Fits) -> Judged:
    """Name the class of each sample, and say how sure that is.

    A sample that a view sees is judged by both where both are there; else the student judges alone (fit `3d`), or the
    lifted features do (fit `2d`).

    Args:
        readout: Whose labels they are.
        own: Its scores of the classes: cosines, all 0 where there is no feature.
        scored: What judges them.
        fits: What was fitted for each judge; what is missing there is `UNFITTED`.
    """
    classes = classify(own)
    confidence = torch.zeros(len(own))
    for judges, rows, cosines in _judges(readout, scored):
        fitted = fits.get(judges, UNFITTED)
        odds = named_odds(cosines[rows], classes[rows], fitted.temperature)
        confidence[rows] = (fitted.slope * odds + fitted.offset).sigmoid().float()
    return Judged(classes, confidence.where(classes != UNLABELLED, 0))


def withhold(judged: Judged, readout: str, scored: Scored, fits: Fits, share: float) -> Judged:
    """Withhold labels so that at most a share of the others is wrong, in 19 of 20 scenes (`MISSES`).

    Args:
        judged: Labels and how sure they are, as of `judge`.
        readout: Whose labels they are.
        scored: What judged them.
        fits: What was fitted for each judge, on scenes like this one.
        share: Largest share of wrong labels among those that are kept.

    Raises:
        InputError: Nothing was fitted, or the share is smaller than those that were.
    """
    judges = readout if len(found := _judges(readout, scored)) > 1 else found[0][0]
    least = fits.get(judges, UNFITTED).threshold(share)
    kept = judged.confidence >= (math.inf if least is None else least)
    return replace(judged, classes=judged.classes.where(kept, UNLABELLED))


def named_odds(cosines: Float[Tensor, "n K"], classes: Int64[Tensor, "n"], temperature: float) -> Float64[Tensor, "n"]:
    """Return the log-odds of the named class: of its share in the softmax of the cosines over a temperature.

    Args:
        cosines: Scores of the classes.
        classes: Class that was named; any number where it is 255.
        temperature: What cosines are divided by.
    """
    scaled = cosines.double() / temperature
    own = classes.where(classes != UNLABELLED, 0)[:, None]
    others = scaled.scatter(1, own, -math.inf).logsumexp(dim=1)
    limit = math.log((1 - SMALLEST) / SMALLEST)
    return (scaled.gather(1, own)[:, 0] - others).clamp(-limit, limit)


def divergence(one: Float[Tensor, "n K"], other: Float[Tensor, "n K"], temperature: float) -> Float64[Tensor, "n"]:
    """Return the Jensen-Shannon divergence of what two scores make of the classes, 0 to 1 (bits).

    Args:
        one: Cosines of the classes.
        other: Likewise.
        temperature: What cosines are divided by before the softmax.
    """
    p, q = ((cosines.double() / temperature).softmax(dim=1) for cosines in (one, other))
    mean = (p + q) / 2
    gaps = [torch.special.xlogy(side, side / mean.clamp(min=1e-300)).sum(dim=1) for side in (p, q)]
    apart: Tensor = (gaps[0] + gaps[1]) / 2 / math.log(2)
    return apart.clamp(0, 1)


def signals(readout: str, scored: Scored, temperature: float) -> dict[str, Float64[Tensor, "S"]]:
    """Return by name what else may tell wrong labels of a read-out; each is high where the label seems right.

    Args:
        readout: The read-out.
        scored: Scores of the classes.
        temperature: That of the softmax.
    """
    own = scored.readouts()[readout].double()
    shares = (own / temperature).softmax(dim=1)
    top = shares.topk(2, dim=1).values
    found = {
        "margin": top[:, 0] - top[:, 1],
        "entropy": torch.special.xlogy(shares, shares).sum(dim=1),
        "top cosine": own.amax(dim=1),
    }
    if scored.in_2d is not None and scored.in_3d is not None:
        apart = divergence(scored.in_2d, scored.in_3d, temperature).where(scored.seen, 0)
        found |= {"2D-3D divergence": -apart, "margin minus divergence": found["margin"] - apart}
    return found


def fit_confidence(scenes: Iterable[tuple[Scored, Int64[Tensor, "N"]]], measured_on: str) -> dict[str, Fit]:
    """Fit every judge on labelled scenes: temperature, slope and offset by their likelihood, then thresholds.

    Args:
        scenes: Scores and true classes of each scene; gone through twice, so it must be able to begin again.
        measured_on: What the scenes are; see `Fit`.

    Raises:
        InputError: No point of the scenes has both labels.
    """
    drawn: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for index, (scored, labels) in enumerate(scenes):
        generator = torch.Generator().manual_seed(index)
        for judges, sample, classes, cosines in _cases(scored):
            point = torch.nonzero((labels != UNLABELLED) & sample[scored.sample_of_point]).squeeze(1)
            point = point[torch.randperm(len(point), generator=generator)[:DRAWN]]
            rows = scored.sample_of_point[point]
            drawn.setdefault(judges, []).append((cosines[rows], classes[rows], classes[rows] == labels[point]))
    if not any(len(right) for parts in drawn.values() for _, _, right in parts):
        raise InputError("Confidence cannot be fitted: no point of these scenes has a label and a prediction.")
    fits = {}
    for judges, parts in drawn.items():
        cosines, classes, right = (torch.cat(one) for one in zip(*parts, strict=True))
        fits[judges] = _fit(cosines, classes, right, measured_on)
    curves: dict[str, list[Tensor]] = {judges: [] for judges in fits}
    for scored, labels in scenes:
        alone = replace(scored, in_2d=None) if scored.in_3d is not None else scored
        for judges in fits:
            one, readout = (alone, "distilled") if judges == UNSEEN else (scored, "fused" if judges == "2d" else judges)
            if (own := one.readouts().get(readout)) is not None:
                judged = judge(readout, own, one, fits)
                curves[judges].append(error_by_level(judged.confidence, *one.marks(judged.classes, labels)))
    return {
        judges: replace(fits[judges], thresholds=tuple(conformal_threshold(errors, share) for share in SHARES))
        for judges, errors in curves.items()
    }


def keep_confidence(folder: Path, label_set: str, fits: Fits, of: Mapping[str, Any]) -> None:
    """Write what was fitted in a label set into the folder of a store or a run, first of all label sets there.

    Args:
        folder: The folder.
        label_set: Name of the label set.
        fits: What was fitted.
        of: What it holds for; what was fitted for something else is dropped.
    """
    there = read_confidence(folder, of)
    kept = {label_set: fits} | {name: other for name, other in there.items() if name != label_set}
    as_json = {name: {judges: asdict(one) for judges, one in own.items()} for name, own in kept.items()}
    write_sealed(folder / CONFIDENCE_FILE, {"of": dict(of), "fits": as_json})


def read_confidence(folder: Path, of: Mapping[str, Any]) -> dict[str, dict[str, Fit]]:
    """Read what was fitted, by label set and judge; nothing where nothing was, or for something else.

    Args:
        folder: Folder of a store or a run.
        of: What it is to hold for.

    Raises:
        InputError: The file is damaged.
    """
    path = folder / CONFIDENCE_FILE
    if not path.is_file():
        return {}
    content: _Kept = fit(read_sealed(path, CURE), _Kept, str(path), CURE)
    fits: dict[str, dict[str, Fit]] = content["fits"]
    return fits if content["of"] == dict(of) else {}


def shipped_confidence(weights_sha256: str | None) -> dict[str, dict[str, Fit]]:
    """Return what was fitted for a teacher whose weights ship with the package, by label set; nothing for others.

    Args:
        weights_sha256: SHA-256 of its weights, as its card has it.
    """
    kept = shipped_card(weights_sha256).get("confidence", {}) if weights_sha256 else {}
    fits: dict[str, dict[str, Fit]] = fit(kept, dict[str, dict[str, Fit]], "The confidence on a teacher's card")
    return fits


class _Kept(TypedDict):
    """What is read of a `CONFIDENCE_FILE`."""

    of: dict[str, str | None]
    fits: dict[str, dict[str, Fit]]


def _judges(readout: str, scored: Scored) -> list[tuple[str, Tensor, Tensor]]:
    """Say who judges the labels of a read-out: judge, samples (n,), and cosines (S, K) of all samples."""
    if scored.in_2d is not None and scored.in_3d is not None:
        seen, unseen = (torch.nonzero(side).squeeze(1) for side in (scored.seen, ~scored.seen))
        return [(readout, seen, (scored.in_2d + scored.in_3d) / 2), (UNSEEN, unseen, scored.in_3d)]
    alone, name = (scored.in_2d, "2d") if scored.in_3d is None else (scored.in_3d, UNSEEN)
    return [] if alone is None else [(name, torch.arange(len(alone)), alone)]


def _cases(scored: Scored) -> Iterator[tuple[str, Bool[Tensor, "S"], Int64[Tensor, "S"], Float[Tensor, "S K"]]]:
    """Go through the judges that can be fitted: name, samples, classes that are judged, and cosines."""
    found = {readout: classify(own) for readout, own in scored.readouts().items()}
    both = scored.in_2d is not None and scored.in_3d is not None
    for readout, classes in found.items():
        for judges, rows, cosines in _judges(readout, scored)[:1]:
            sample = torch.zeros(len(classes), dtype=torch.bool)
            sample[rows] = True
            yield judges, sample & (classes != UNLABELLED), classes, cosines
    if both and scored.in_3d is not None:
        classes = found["distilled"]
        yield UNSEEN, classes != UNLABELLED, classes, scored.in_3d


def _fit(cosines: Tensor, classes: Tensor, right: Tensor, measured_on: str) -> Fit:
    """Fit temperature, then slope and offset, to maximise the likelihood of which labels are right (n,)."""
    from scipy.optimize import minimize, minimize_scalar

    wanted = right.double()

    def loss(odds: Tensor) -> float:
        return float(binary_cross_entropy_with_logits(odds, wanted))

    coolest, warmest = (math.log(one) for one in TEMPERATURES)
    found = minimize_scalar(
        lambda log: loss(named_odds(cosines, classes, math.exp(log))),
        bounds=(coolest, warmest),
        method="bounded",
        options={"xatol": 0.01},
    )
    temperature = round(math.exp(found.x), 5)
    odds = named_odds(cosines, classes, temperature)
    line = minimize(lambda ab: loss(ab[0] * odds + ab[1]), [1.0, 0.0], bounds=[(0.05, 20), (-20, 20)]).x
    return Fit(temperature, round(float(line[0]), 5), round(float(line[1]), 5), measured_on=measured_on)
