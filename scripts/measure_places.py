"""Measure how well the places that answer a question are the things asked for, and write the table into docs/search.md.

    python scripts/measure_places.py --fresh fresh --page docs/search.md
    python scripts/measure_places.py --store ablation/rooms/store --split val

The first makes and lifts rooms that nothing else uses, into `--fresh`; lifted features of mini-lseg answer. The second
measures in rooms of a store, by which the constants of `places.py` were chosen. `--constants` sets some of them:
`--constants KEEP=0.8 GAP=0.3`. Twenty classes are asked for by name, and by their first synonym or question.

Of the places of an answer and the things of the room, those pairs count whose points overlap by at least 0.25 or 0.5
(intersection over union); a place or a thing counts once. Things are known one by one from the layout of the room.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from cuao3d import places, recipes
from cuao3d.boxes import floor_height
from cuao3d.console import progress_bar
from cuao3d.demo import LABELS
from cuao3d.files import write_text
from cuao3d.labels import LabelSet, label_set
from cuao3d.pipeline import fuse
from cuao3d.predictor import Predictor
from cuao3d.query import MIN_POINTS, Answer, parts
from cuao3d.store import Store, StoredScene
from cuao3d.teachers import load_teacher
from cuao3d.worlds.rooms import Rooms
from things import Things, things_of

FIRST_SEED, NUM_ROOMS, NUM_VIEWS = 890_000, 24, 12
"""Fresh rooms: their seeds are used by nothing else."""

CLASSES = [
    "door",
    "window",
    "picture",
    "radiator",
    "chair",
    "blinds",
    "bookshelf",
    "stool",
    "wall cabinet",
    "curtain",
    "table",
    "mirror",
    "cabinet",
    "trash can",
    "basket",
    "sink",
    "bench",
    "sofa",
    "bed",
    "refrigerator",
]
"""The most frequent things of the rooms by which the constants were chosen, and some of the usual ones."""

SEEN = 150
"""Things of which fewer points were seen do not count."""

OVERLAPS = (0.25, 0.5)

PAGE_BEGIN, PAGE_END = "<!-- measured by scripts/measure_places.py -->", "<!-- end -->"

Find = Callable[[StoredScene, Answer], list[Tensor]]
"""Returns the points of each place, the best first."""


@dataclass
class Tally:
    """What was counted for one way to find places."""

    places: int = 0
    things: int = 0
    right: dict[float, int] = field(default_factory=lambda: dict.fromkeys(OVERLAPS, 0))
    of_absent: int = 0
    """Places of things that the room does not hold."""


def main(
    store: Path | None = None,
    split: str = "val",
    fresh: Path = Path("fresh"),
    rooms: int = NUM_ROOMS,
    page: Path | None = None,
    constants: tuple[str, ...] = (),
) -> None:
    """Measure, and print or write the table.

    Args:
        store: Store of made rooms to measure in; fresh ones unless given.
        split: Its rooms.
        fresh: Where the fresh rooms are, or will be lifted to.
        rooms: How many fresh rooms.
        page: Page to write the table into.
        constants: Constants of places.py to try.
    """
    for name, _, value in (one.partition("=") for one in constants):
        assert hasattr(places, name), f"places.py has no {name}"
        setattr(places, name, float(value))
    if store is None:
        made = Rooms(range(FIRST_SEED, FIRST_SEED + rooms), split="test", num_views=NUM_VIEWS, label_set=LABELS)
        opened = fuse(made, [load_teacher("mini-lseg")], fresh, cell=recipes.MINI_CELL, settings={"data": "rooms"})
        split = "test"
    else:
        opened = Store.open(store)
    lines = table(opened, opened.names(split))  # type: ignore[arg-type]
    print("\n".join(lines))
    if page is not None:
        before, _, rest = page.read_text(encoding="utf-8").partition(PAGE_BEGIN)
        write_text(page, f"{before}{PAGE_BEGIN}\n" + "\n".join(lines) + f"\n{PAGE_END}{rest.partition(PAGE_END)[2]}")


def table(store: Store, names: Iterable[str]) -> list[str]:
    """Measure in rooms; return the lines of the table."""
    classes, predictor = label_set(LABELS), Predictor.open(store, teacher="mini-lseg")
    asked = {"names": named(classes), "paraphrases": paraphrased(classes)}
    ways: dict[str, Find] = {"connected parts": connected, "places": found}
    tallies = {(kind, way): Tally() for kind in asked for way in ways}
    floors, names = [], list(names)
    with progress_bar() as bar:
        for name in bar.track(names, description="asking"):
            scene = store[name]
            assert scene.labels is not None
            things = things_of(int(name.rpartition("-")[2]), scene.points, scene.labels)
            height = floor_height(scene.sample_points)
            floors.append(abs(things.floor - height) if height is not None else float("inf"))
            for kind, questions in asked.items():
                answers = predictor.ask(scene, list(questions))
                for answer, rows in zip(answers, questions.values(), strict=True):
                    for way, find in ways.items():
                        count(tallies[kind, way], find(scene, answer), things, rows, answer)
    lines = ["| asked | what answers | places | precision, recall at IoU 0.25 | at IoU 0.5 | where there is none |"]
    lines += ["|---" * 6 + "|"]
    for (kind, way), tally in tallies.items():
        shares = [f"{100 * right / max(tally.places, 1):.0f} %, {100 * right / tally.things:.0f} %"
                  for right in tally.right.values()]  # fmt: skip
        lines.append(f"| 20 {kind} | {way} | {tally.places} for {tally.things} things | {' | '.join(shares)} | "
                     f"{tally.of_absent} |")  # fmt: skip
    rooms = f"{len(names)} rooms, {names[0]} to {names[-1]}"
    return [*lines, "", f"{rooms}. The floor is off by {100 * median(floors):.1f} cm (median), "
            f"{100 * max(floors):.1f} cm (most)."]  # fmt: skip


def named(classes: LabelSet) -> dict[str, set[int]]:
    """Return a question for each class, and the classes that answer it."""
    return {f"a {name}": {classes.names.index(name)} for name in CLASSES}


def paraphrased(classes: LabelSet) -> dict[str, set[int]]:
    """Return a question for each class by its first synonym or question, and the classes that it fits."""
    asked = {}
    for name in CLASSES:
        row = classes.names.index(name)
        text = (classes.synonyms[row] + classes.questions[row])[0]
        fits = {other for other in range(len(classes)) if text in classes.synonyms[other] + classes.questions[other]}
        asked[text if text.startswith("some") else f"a {text}"] = fits
    return asked


def connected(scene: StoredScene, answer: Answer) -> list[Tensor]:
    """Find connected parts, the most relevant first, as answers were before they were places."""
    index = torch.nonzero(answer.answers).squeeze(1)
    part = parts(scene.points[index])
    own = [index[part == number] for number in range(int(part.max()) + 1 if len(part) else 0)]
    return sorted(own, key=lambda one: -_best(answer.relevance[one]))


def found(scene: StoredScene, answer: Answer) -> list[Tensor]:
    """Find places."""
    return [one.points for one in places.find_places(scene.points, answer.relevance, answer.answers, answer.seen)]


def count(tally: Tally, own: list[Tensor], things: Things, classes: set[int], answer: Answer) -> None:
    """Count the places of an answer, and the things that they are."""
    seen = torch.bincount(
        things.thing_of_point[answer.seen & (things.thing_of_point >= 0)], minlength=len(things.classes)
    )
    rows = [row for row, label in enumerate(things.classes) if label in classes and seen[row] >= SEEN]
    if not rows:
        tally.of_absent += len(own)
        return
    tally.places += len(own)
    tally.things += len(rows)
    overlaps = torch.zeros(len(own), len(rows))
    for number, points in enumerate(own):
        of = things.thing_of_point[points]
        shared = torch.bincount(of[of >= 0], minlength=len(things.classes))[rows].double()
        overlaps[number] = shared / (len(points) + seen[rows] - shared)
    for least in OVERLAPS:
        tally.right[least] += num_right(overlaps, least)


def num_right(overlaps: Float[Tensor, "P T"], least: float) -> int:
    """Return how many places are a thing: each takes, the best place first, the thing that it overlaps most."""
    left = overlaps.clone()
    right = 0
    for row in left:
        if left.shape[1] and row.max() >= least:
            left[:, int(row.argmax())] = -1
            right += 1
    return right


def _best(relevance: Tensor) -> float:
    least = relevance.topk(max(min(MIN_POINTS, len(relevance)), len(relevance) // places.BEST_SHARE)).values[-1]
    return float(relevance[relevance >= least].mean())


if __name__ == "__main__":
    tyro.cli(main)
