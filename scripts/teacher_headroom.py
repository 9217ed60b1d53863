"""Can the made worlds tell whether more teachers help? The last line is the verdict.

Exit code 1: the teachers know too little more than the language teacher; 2: a target is nearly constant.

    python scripts/teacher_headroom.py

In each regime, rooms (where the language teacher was trained) and houses (where it was not), fresh scenes are lifted
with all shipped teachers: the language teacher's zero-shot mIoU; for each teacher and for all together the mIoU of a
linear probe with labels, learned on other scenes; the loss of the best constant output, as a share of that of an
output of zeros, both as the paper trains the teacher and on standardised targets by cosine; and the mean cosine to the
mean feature. The headroom is the probe of all teachers minus the probe of the language teacher alone.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from cuao3d import recipes
from cuao3d.console import note, tell, tell_table
from cuao3d.demo import Together
from cuao3d.evaluate import zero_shot
from cuao3d.labels import label_set
from cuao3d.objective import best_constant, fit_normalizer
from cuao3d.pipeline import fuse
from cuao3d.probe import CONSTANT, SHUFFLED, probe
from cuao3d.store import Store
from cuao3d.teachers import load_teacher
from cuao3d.text import class_vectors, load_text_encoder
from cuao3d.worlds.houses import Houses
from cuao3d.worlds.rooms import Rooms

FIRST_SEED = 900_000
"""Seeds from here on are used by nothing else; they start with those of the held-out scenes."""

MIN_HEADROOM = 5.0
"""Least headroom, mIoU, in houses."""

MIN_SHARE = 0.02
"""Least loss of the best constant output, as a share of that of zeros, of the targets that a student learns."""

LANGUAGE = "mini-lseg"

FURTHER = {"all together": "lifted concatenated", "shuffled labels": SHUFFLED, "one class": CONSTANT}
"""Rows beneath those of the teachers: the probe of all features side by side, and the controls."""

TITLES = ("teacher", "zero-shot", "probe", "constant, raw", "constant, standardised", "cosine to the mean")


@dataclass(frozen=True)
class Size:
    """Number of scenes and views of a regime."""

    num_train: int
    num_val: int
    train_views: int
    """Of each scene that a probe learns from."""
    val_views: int
    """Of each scene that is scored, in which what no view sees counts as wrong."""


FULL = {"rooms": Size(24, 8, 3, 6), "houses": Size(48, 16, 12, 20)}
SHORT = {"rooms": Size(8, 4, 2, 4), "houses": Size(12, 4, 8, 12)}
LABELS = {"rooms": "made100", "houses": "matterport21"}
"""Label set of each regime: all names that the language teacher might be asked, and the classes of Matterport3D, which
the paper's teachers are scored by out of their domain."""


def main(short: bool = False, workers: int = 2) -> int:
    """Measure the headroom.

    Args:
        short: Fewer scenes and views, for a look in less than a minute and a half.
        workers: Processes that lift.
    """
    failures: list[str] = []
    headroom = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for world in ("rooms", "houses"):
            store = lift(world, (SHORT if short else FULL)[world], Path(folder) / world, workers)
            headroom, reasons = measure(store, world)
            failures += reasons
    is_low = headroom < MIN_HEADROOM
    low = [f"the headroom in houses is {headroom:.1f} mIoU, less than {MIN_HEADROOM:g}"] if is_low else []
    if low or failures:
        tell(f"NOT DECIDABLE HERE: {'; '.join(low + failures)}")
        return 2 if failures else 1
    tell(f"DECIDABLE: the headroom in houses is {headroom:.1f} mIoU, and no target is nearly constant")
    return 0


def lift(world: str, size: Size, out: Path, workers: int) -> Store:
    """Make scenes of a world that nothing else uses, and lift all shipped teachers to them."""
    val, train = (
        range(FIRST_SEED, FIRST_SEED + size.num_val),
        range(FIRST_SEED + 500, FIRST_SEED + 500 + size.num_train),
    )
    make = Rooms if world == "rooms" else Houses
    scenes = Together(
        [
            make(train, split="train", num_views=size.train_views, label_set=LABELS[world]),
            make(val, split="val", num_views=size.val_views, label_set=LABELS[world]),
        ]
    )
    teachers = [load_teacher(name) for name in recipes.SMALL_TEACHERS]
    return fuse(scenes, teachers, out, cell=recipes.MINI_CELL, num_workers=workers)


def measure(store: Store, world: str) -> tuple[float, list[str]]:
    """Print the table of a world; return its headroom, and what makes its targets unfit."""
    rows: list[tuple[str, ...]] = []
    classes = label_set(LABELS[world])
    vectors = class_vectors(load_text_encoder(store.teachers[LANGUAGE].text or ""), classes)
    (scored,) = zero_shot(store, classes, vectors, teacher=LANGUAGE)
    found = {row.readout.removeprefix("probe: "): row.miou for row in probe(store, labels=classes.name)}
    probes = {name: found[f"lifted {name}"] for name in store.teachers}
    failures = []
    for name, card in store.teachers.items():
        features = sampled(store, name)
        plain = best_constant(features, card.loss).share
        standard = fit_normalizer("standardize", [features])
        conditioned = best_constant(features, "cosine", standard).share
        learned = plain if card.text else conditioned  # wordless teachers are learned standardised
        if learned < MIN_SHARE:
            failures.append(f"in {world} the best constant output of {name} has {learned:.3f} of the loss of zeros")
        mean = torch.nn.functional.cosine_similarity(features, features.mean(0, keepdim=True)).mean().item()
        shown = f"{scored.miou:.1f}" if name == LANGUAGE else ""
        rows.append((name, shown, f"{probes[name]:.1f}", f"{plain:.3f}", f"{conditioned:.3f}", f"{mean:.2f}"))
    together = found["lifted concatenated"]
    headroom = together - probes[LANGUAGE]
    rows += [(name, "", f"{found[of]:.1f}", "", "", "") for name, of in FURTHER.items()]
    tell(f"{world}, {len(classes)} classes: {scored.scenes} scored")
    tell_table(TITLES, rows)
    for name, score in probes.items():
        if name != LANGUAGE:
            note(f"{world}: {name}'s probe is {score - scored.miou:+.1f} from the zero-shot mIoU of {LANGUAGE}")
    tell(f"{world}: headroom {headroom:+.1f} mIoU")
    return headroom, failures


def sampled(store: Store, teacher: str, most: int = 40_000) -> torch.Tensor:
    """Return some features of the training scenes."""
    names: Sequence[str] = store.names("train")
    parts = []
    for name in names:
        features = store[name].features(teacher)
        parts.append(features[:: max(1, len(features) * len(names) // most)].float())
    return torch.cat(parts)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
