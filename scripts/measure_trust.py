"""Measure how well confidence tells wrong labels in fresh rooms, and write the table into docs/trust.md.

    python scripts/ablation_store.py rooms --out ablation/rooms
    python scripts/measure_trust.py ablation/rooms/store --fresh fresh

Confidence is fitted in the store's rooms of the split `val`, from which the student did not learn; lifted features by
themselves, of which nothing was learned, in `train`. It is measured in rooms that nothing else uses, which are made
and lifted into `--fresh` first. With `--keep`, what was fitted is kept with the student and on the teacher's card.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import tyro
from torch import Tensor
from torch.nn import functional
from tyro.conf import Positional

from cuao3d import recipes
from cuao3d.confidence import Fit, Ledger, Scored, fit_confidence, judge, keep_confidence, signals, withhold
from cuao3d.console import note
from cuao3d.demo import COARSE, LABELS
from cuao3d.evaluate import labels_of
from cuao3d.files import read_json, write_json, write_text
from cuao3d.geometry import voxelize
from cuao3d.labels import LabelSet
from cuao3d.pipeline import SHIPPED_STUDENT, fuse
from cuao3d.predictor import Predictor
from cuao3d.reliability import Levels
from cuao3d.scene import UNLABELLED
from cuao3d.store import Store, StoredScene
from cuao3d.teachers import load_teacher
from cuao3d.teachers.mini import WEIGHTS
from cuao3d.text import class_vectors
from cuao3d.worlds.rooms import Rooms

FIRST_SEED, NUM_ROOMS, NUM_VIEWS = 880_000, 25, 12
"""Fresh rooms: their seeds are used by nothing else."""

SHARE = 0.05
"""Share of wrong labels that `--abstain` is measured at."""

SAMPLES = 2000
"""Samples of each scene that a heteroscedastic head is fitted on."""

Noise = Callable[[Tensor], Tensor]
"""Log variance (S,) of hidden channels (S, H)."""

PAGE = Path(__file__).parents[1] / "docs" / "trust.md"
BEGIN, END = "<!-- measured by scripts/measure_trust.py -->", "<!-- end -->"

RIVALS = ("margin", "entropy", "top cosine", "number of views", "views agree", "2D-3D divergence")
HEADS = {"heteroscedastic head": "train", "heteroscedastic head, fitted where confidence is": "val"}
RIVALS += (*HEADS, "margin minus divergence", "confidence", "confidence, shuffled", "random")


HEADS_BEGIN, HEADS_END = "<!-- measured by scripts/measure_trust.py --heads-in -->", "<!-- end of heads -->"


def main(
    store: Positional[Path],
    fresh: Path = Path("fresh"),
    run: Path = SHIPPED_STUDENT,
    keep: bool = False,
    heads_in: str | None = None,
) -> None:
    """Fit, measure, and write the page.

    Args:
        store: Rooms to fit on, with a split `val`.
        fresh: Where the fresh rooms are, or will be lifted to.
        run: Folder of the student's run.
        keep: Keep what was fitted with the student and on the teacher's card.
        heads_in: Measure the rivals alone, in this split of the store, and neither fit nor lift.
    """
    if heads_in is not None:
        write_block(HEADS_BEGIN, HEADS_END, compare_heads(Predictor.open(store, run=run), Store.open(store), heads_in))
        return
    rooms = Rooms(range(FIRST_SEED, FIRST_SEED + NUM_ROOMS), split="test", num_views=NUM_VIEWS, label_set=LABELS)
    lifted = fuse(rooms, [load_teacher("mini-lseg")], fresh, cell=recipes.MINI_CELL, settings={"data": "rooms"})
    opened = Store.open(store)
    student, alone = Predictor.open(opened, run=run), Predictor.open(opened)
    quiet = quietness(student, opened, lifted, lifted.names())
    lines, on_card = [], {}
    for labels in (COARSE, LABELS):
        classes = opened.label_set(labels)
        fits = fit_confidence(Scenes(opened, student, classes, "val"), f"this student in made rooms, {labels}")
        own = fit_confidence(Scenes(opened, alone, classes, "train"), f"lifted features in made rooms, {labels}")
        note(f"{labels}: {json.dumps({name: asdict(fit) for name, fit in (fits | own).items()})}")
        if keep:
            keep_confidence(run, labels, fits, student.fitted_for)
            on_card[labels] = {name: asdict(fit) for name, fit in own.items()}
        both, lone = (Scenes(lifted, one, classes, "test") for one in (student, alone))
        both.quiet = quiet
        lines += section(labels, both, lone, fits, own)
    if keep:
        card = WEIGHTS / "mini_lseg.json"
        write_json(card, read_json(card) | {"confidence": dict(reversed(on_card.items()))})
    write_block(BEGIN, END, lines)


def write_block(begin: str, end: str, lines: list[str]) -> None:
    """Write lines into the page, in place of those that stand between two marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    write_text(PAGE, f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{rest.partition(end)[2]}")


def compare_heads(student: Predictor, store: Store, split: str) -> list[str]:
    """Return a table of how well each rival tells wrong labels in the rooms of a split."""
    quiet, columns = quietness(student, store, store, store.names(split)), {}
    for labels in (COARSE, LABELS):
        scenes = Scenes(store, student, store.label_set(labels), split)
        scenes.quiet = quiet
        for readout in ("fused", "distilled", "2d3d"):
            columns[f"{labels}, {readout}"] = measure(scenes, readout, student.fits[labels])["auroc"]
    lines = ["", f"AUROC of errors in {len(store.names(split))} rooms of the split {split}:", ""]
    lines += ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for rival in (rival for rival in RIVALS if all(rival in one for one in columns.values())):
        shown = [f"{one[rival]:.3f}" for one in columns.values()]
        best = [one[rival] == max(one.values()) for one in columns.values()]
        lines.append(
            f"| {rival} | " + " | ".join(f"**{a}**" if b else a for a, b in zip(shown, best, strict=True)) + " |"
        )
    return lines


class Scenes:
    """Scores and true classes of the labelled scenes of a split, as often as they are asked for."""

    def __init__(self, store: Store, predictor: Predictor, classes: LabelSet, split: str) -> None:
        self.store, self.predictor, self.classes, self.names = store, predictor, classes, store.names(split)
        self.quiet: dict[str, dict[str, Tensor]] = {}

    def __iter__(self) -> Iterator[tuple[Scored, Tensor]]:
        for _, scored, labels in self.named():
            yield scored, labels

    def named(self) -> Iterator[tuple[str, Scored, Tensor]]:
        """Go through the scenes and their names."""
        vectors = class_vectors(self.predictor.encoder, self.classes)
        for name in self.names:
            scene = self.store[name]
            yield name, self.predictor.scored(scene, vectors), labels_of(scene, self.classes)


@torch.no_grad()
def hidden_of(predictor: Predictor, scene: StoredScene) -> Tensor:
    """Return the channels that the student's heads read, at the samples of a scene, (S, H)."""
    voxels = voxelize(scene.points, predictor.voxel_size)
    coords = functional.pad(voxels.coordinates, (1, 0))
    hidden = predictor.student.hidden(coords, torch.ones(len(coords), 3))
    return hidden[voxels.voxel_of_point[scene.index_of_sample]]


def lessons(predictor: Predictor, store: Store, split: str) -> tuple[Tensor, Tensor]:
    """Return hidden channels (R, H) and losses (R,) of seen samples of a split, as many of each scene."""
    found = []
    for index, name in enumerate(store.names(split)):
        scene, generator = store[name], torch.Generator().manual_seed(index)
        hidden = hidden_of(predictor, scene)[scene.seen]
        rows = torch.randperm(len(hidden), generator=generator)[:SAMPLES]
        with torch.no_grad():
            said = predictor.student.heads[predictor.teacher](hidden[rows])
        lifted = scene.features(predictor.teacher)[rows].float()
        found.append((hidden[rows], 1 - functional.cosine_similarity(said, lifted, dim=1)))
    hidden, losses = (torch.cat(one) for one in zip(*found, strict=True))
    return hidden, losses


def quietness(student: Predictor, taught: Store, store: Store, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """Return, for rooms of a store, minus the log variance at each sample by heads that are fitted in another."""
    noises = {head: fit_noise(*lessons(student, taught, split)) for head, split in HEADS.items()}
    hidden = ((name, hidden_of(student, store[name])) for name in names)
    return {name: {head: -noise(channels) for head, noise in noises.items()} for name, channels in hidden}


def fit_noise(hidden: Tensor, losses: Tensor) -> Noise:
    """Fit the log variance `s = h W + b` of losses `L` by the mean of `L exp(-s) / 2 + s / 2`, which is convex in it.

    Args:
        hidden: Channels that it is predicted from, (R, H).
        losses: Loss at each, (R,).
    """
    mean, deviation = hidden.double().mean(dim=0), hidden.double().std(dim=0).clamp(min=1e-6)

    def inputs(channels: Tensor) -> Tensor:
        return functional.pad((channels.double() - mean) / deviation, (0, 1), value=1.0)

    rows, solution = inputs(hidden), torch.zeros(hidden.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([solution], max_iter=1000, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        log_variance = rows @ solution
        value = (losses.double() * (-log_variance).exp() + log_variance).mean() / 2
        value.backward()
        return value

    optimizer.step(loss)
    return lambda channels: inputs(channels) @ solution.detach()


def section(labels: str, both: Scenes, alone: Scenes, fits: dict[str, Fit], own: dict[str, Fit]) -> list[str]:
    """Return the lines of the page about a label set."""
    columns = {"fused alone": (alone, "fused", own)}
    columns |= {readout: (both, readout, fits) for readout in ("fused", "distilled", "2d3d")}
    measured = {title: measure(*column) for title, column in columns.items()}
    names = {"fused alone": "fused, no student", "fused": "fused, with the student"}
    lines = ["", f"**{labels}**, {len(both.names)} fresh rooms", ""]
    lines += ["| | " + " | ".join(names.get(title, title) for title in columns) + " |", "|---" * 5 + "|"]

    def row(name: str, values: list[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(values) + " |")

    trusts = [one["trust"] for one in measured.values()]
    row("wrong labels, %", [f"{trust.error:.1f}" for trust in trusts])
    for percent in (90, 80, 50):
        row(f"among the surest {percent} %, %", [f"{trust.error_at[str(percent)]:.1f}" for trust in trusts])
    row("AURC, % (random: all wrong labels)", [f"{trust.aurc:.1f}" for trust in trusts])
    row("expected calibration error, %", [f"{trust.calibration_error:.1f}" for trust in trusts])
    for rival in RIVALS:
        areas = [one["auroc"].get(rival) for one in measured.values()]
        best = [max(value for name, value in one["auroc"].items()) for one in measured.values()]
        shown = ["–" if area is None else f"{area:.3f}" for area in areas]
        shown = [f"**{one}**" if a == b else one for one, a, b in zip(shown, areas, best, strict=True)]
        row(f"AUROC of errors, {rival}", shown)
    row(f"rooms in which --abstain {SHARE} keeps its promise", [one["kept"] for one in measured.values()])
    row("the same, as many labels withheld at random", [one["kept at random"] for one in measured.values()])
    row("labels that it keeps, % (least in a room)", [one["coverage"] for one in measured.values()])
    return lines


def measure(scenes: Scenes, readout: str, fits: dict[str, Fit]) -> dict:
    """Measure the labels of a read-out in fresh rooms."""
    ledger, temperature = Ledger(fits), fits[readout if readout in fits else "2d"].temperature
    generator = torch.Generator().manual_seed(0)
    values: dict[str, list[Tensor]] = {}
    wrongs, counts, kept_shares = [], {"kept": 0, "kept at random": 0}, []
    for name, scored, labels in scenes.named():
        scene = scenes.store[name]
        own = scored.readouts()[readout]
        ledger.add({readout: own}, scored, labels)
        judged = judge(readout, own, scored, fits)
        found = signals(readout, scored, temperature) | {"number of views": scene.num_views.double()}
        apart = scene.disagreement(scenes.predictor.teacher)
        if apart is not None:  # stores of earlier versions have none
            found |= {"views agree": -scene.spread(apart).nan_to_num(float(apart.nanmean())).double()}
        found |= {"confidence": judged.confidence.double()}
        found |= scenes.quiet.get(name, {})
        of_point = scored.sample_of_point
        held = (labels != UNLABELLED) & (judged.classes[of_point] != UNLABELLED)
        wrong = judged.classes[of_point][held] != labels[held]
        shuffled = torch.randperm(len(wrong), generator=generator)
        of_label = {key: one[of_point][held] for key, one in found.items()}
        of_label["confidence, shuffled"] = of_label["confidence"][shuffled]
        of_label["random"] = torch.rand(len(wrong), generator=generator).double()
        for key, one in of_label.items():
            values.setdefault(key, []).append(one.float())
        wrongs.append(wrong)
        kept = withhold(judged, readout, scored, fits, SHARE).classes[of_point][held] != UNLABELLED
        kept_shares.append(float(kept.double().mean()))
        for title, chosen in (("kept", kept), ("kept at random", kept[shuffled])):
            counts[title] += not bool(chosen.any()) or float(wrong[chosen].double().mean()) <= SHARE
    wrong = torch.cat(wrongs)
    mean, lowest = 100 * sum(kept_shares) / len(kept_shares), 100 * min(kept_shares)
    return {
        "trust": ledger.trust(readout),
        "auroc": {key: Levels.of(torch.cat(one), wrong).auroc() for key, one in values.items()},
        **{title: f"{count} of {len(scenes.names)}" for title, count in counts.items()},
        "coverage": f"{mean:.0f} ({lowest:.0f})",
    }


if __name__ == "__main__":
    tyro.cli(main)
