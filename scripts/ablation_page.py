"""Write docs/ablation.md: curves, a table for each world, and what the controls allow to say of the paper's claims."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from cuao3d import recipes
from cuao3d.metrics import mean_interval
from cuao3d.progress import machine
from cuao3d.reproduce.arms import BASE
from cuao3d.reproduce.claims import MIN_HEADROOM, OPEN, bounds, judge

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CONTROLS = {
    "conditioned": ("conditioned, oracle", "conditioned, shuffled"),
    "conditioned, + ViT": ("conditioned, oracle", "conditioned, shuffled"),
    "all + sigma + demean": ("oracle", "shuffled"),
}
"""For arms with further teachers: the arm with a perfect one, and the arm with those that know nothing."""

CLAIMS = {
    "Three teachers beat LSeg alone, in the paper's way": ("all + sigma + demean", BASE),
    "Three teachers beat LSeg alone, conditioned": ("conditioned", BASE),
    "Three teachers and a supervised ViT beat LSeg alone, conditioned": ("conditioned, + ViT", BASE),
    "Sigma beats equal weights": ("all + sigma", "all, equal"),
    "Demeaning helps": ("all + sigma + demean", "all + sigma"),
    "Conditioning helps": ("conditioned", "all + sigma + demean"),
}
"""Each claim: the arm that is said to be better, and the other."""

ABOUT = """\
Written by `python scripts/ablate.py` on {date}, {machine}; one core per run. Voxels of {voxel:g} cm, two scenes per
step, the small student, no vocabulary. Scored are the 100 names of `made100` on scenes that chose nothing; each
arm's rate was chosen on other scenes. Teachers are the package's small ones, under the names of those that they
stand for. "Conditioned": features of teachers without words standardised, all losses cosine, weights by sigma,
which is `ours()`. "Shuffled": the features of those teachers, dealt out anew among the points of a scene. "Oracle":
a random vector for each true class in their place. Intervals are 95 % (Student's t) over seeds. A claim that
further teachers help is not decidable where a linear probe with labels finds less than {least:g} mIoU more in all
teachers than in LSeg's alone, or where the oracle brings nothing."""
"""What the page says of itself."""

SLOPE = 1.0
"""Gain per doubling of the steps, mIoU, below which a curve counts as flat."""


@dataclass(frozen=True)
class World:
    """What is done in one world."""

    name: str
    lengths: tuple[int, ...]
    """Steps at which the curves are read."""
    rates: dict[str, tuple[float, bool]]
    """Learning rate of each arm, and whether it lies inside its grid."""
    headroom: float
    """mIoU of a linear probe with labels on all teachers, minus that on the language teacher alone."""
    scores: dict[tuple[str, int, int], dict[str, Any]]
    """Scores of each arm, number of steps and seed."""

    def values(self, arm: str, steps: int, readout: str = "distilled") -> dict[int, float]:
        """Return the mIoU of each seed."""
        return {
            seed: score[readout]["miou"]
            for (name, length, seed), score in self.scores.items()
            if (name, length) == (arm, steps) and readout in score
        }

    def apart(self, arm: str, other: str, steps: int) -> list[float]:
        """Return the differences between two arms, for the seeds of both."""
        one, two = self.values(arm, steps), self.values(other, steps)
        return [one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())]


def write_page(page: Path, worlds: Sequence[World]) -> None:
    """Write the page and its picture."""
    worlds = [world for world in worlds if world.scores]
    if not worlds:
        return
    picture = page.parent / "images" / "ablation.png"
    draw(picture, worlds)
    lines = [
        "# Ablation: teachers and weightings",
        "",
        ABOUT.format(
            date=time.strftime("%Y-%m-%d"), machine=machine(), voxel=100 * recipes.MINI_VOXEL, least=MIN_HEADROOM
        ),
        "",
        f"![mIoU against steps](images/{picture.name})",
    ]
    for world in worlds:
        lines += ["", *_section(world)]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _section(world: World) -> list[str]:
    """Return the table of a world, and its verdicts."""
    where = "where LSeg's stand-in was trained" if world.name == "rooms" else "where LSeg's stand-in was not trained"
    steps = [length for length in world.lengths if any(key[1] == length for key in world.scores)]
    titles = " | ".join(f"{length} steps" for length in steps)
    lines = [
        f"## {world.name.capitalize()}: {where}",
        "",
        f"Headroom: {world.headroom:+.1f} mIoU.",
        "",
        f"| arm | rate | {titles} | difference from the first | 2D3D | slope per doubling |",
        f"|---|---|{'---|' * len(steps)}---|---|---|",
    ]
    for arm, (rate, is_inside) in world.rates.items():
        scores = [list(world.values(arm, length).values()) for length in steps]
        collapsed = [
            score["collapsed"] for (name, _, _), score in world.scores.items() if name == arm and "collapsed" in score
        ]
        if collapsed:
            lines.append(f"| {arm} | {rate:g} | {'collapsed | ' * len(steps)} | | |")
        elif any(scores):
            longest = max(length for length, values in zip(steps, scores, strict=True) if values)
            apart = "" if arm == BASE else interval(world.apart(arm, BASE, longest), sign=True)
            both = interval(list(world.values(arm, longest, "2d3d").values()))
            shown = " | ".join(interval(values) for values in scores)
            edge = "" if is_inside else ", at the edge"
            lines.append(f"| {arm} | {rate:g}{edge} | {shown} | {apart} | {both} | {_slope(world, arm, steps)} |")
    return [*lines, "", *(_claim(world, claim, *arms) for claim, arms in CLAIMS.items())]


def _slope(world: World, arm: str, steps: Sequence[int]) -> str:
    """Return the gain of the last doubling."""
    done = [length for length in steps if world.values(arm, length)]
    if len(done) < 2:
        return ""
    one, two = (statistics.mean(world.values(arm, length).values()) for length in done[-2:])
    slope = (two - one) / math.log2(done[-1] / done[-2])
    return f"{slope:+.1f}" + ("" if slope < SLOPE else ", still rising")


def _claim(world: World, claim: str, arm: str, other: str) -> str:
    """Return a line that says whether a claim holds, beside its controls."""
    done = [length for length in world.lengths if len(world.apart(arm, other, length)) > 1]
    if not done:
        return f"- {claim}: not run."
    steps = done[-1]
    gains, about_teachers = world.apart(arm, other, steps), other == BASE
    oracle, shuffled = (world.apart(control, BASE, steps) for control in CONTROLS.get(arm, ("", "")))
    controls = {"oracle": oracle, "shuffled": shuffled}
    beside = [f"{what} {interval(values, sign=True)}" for what, values in controls.items() if values]
    found = judge(gains, **(controls | {"headroom": world.headroom} if about_teachers else {}))
    beside += [f"at most {bounds(gains)[1]:+.1f}"]
    verdict = found.word if found.word != OPEN else f"{found.word}: {found.why}"
    return f"- {claim}: {interval(gains, sign=True)} after {steps} steps ({'; '.join(beside)}). **{verdict}**"


def draw(picture: Path, worlds: Sequence[World]) -> None:
    """Draw mIoU against steps."""
    figure, axes = plt.subplots(1, len(worlds), figsize=(6.2 * len(worlds), 4.6), squeeze=False, layout="constrained")
    for axis, world in zip(axes[0], worlds, strict=True):
        for index, arm in enumerate(world.rates):
            points = [(n, statistics.mean(found.values())) for n in world.lengths if (found := world.values(arm, n))]
            if points:
                style = "--" if "shuffled" in arm else ":" if "oracle" in arm else "-"
                color = plt.get_cmap("tab20")(index % 20)
                axis.plot(*zip(*points, strict=True), style, marker="o", ms=3, color=color, label=arm)
        axis.set(xscale="log", xlabel="steps", ylabel="distilled mIoU, 100 names", title=world.name)
        axis.set_xticks(world.lengths, [str(length) for length in world.lengths], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def interval(values: Sequence[float], sign: bool = False) -> str:
    """Format a mean and the half width of its 95 % interval."""
    if not values:
        return ""
    mean, half = mean_interval(values)
    shown = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    return shown if half is None else f"{shown} ± {half:.1f}"
