"""Make the store of an ablation: made scenes in three splits, all small teachers, and teachers that are controls.

    python scripts/ablation_store.py rooms --out ablation/rooms
    python scripts/ablation_store.py houses --out ablation/houses

Students learn from the split `train`; learning rates are chosen on `val`, and the tables report `test`. The controls:

- `shuffled-NAME`, for each teacher without words: its features, dealt out anew among the points of each scene. They
  have the same statistics and say nothing about a place: whatever they do to a student, they do without knowledge.
- `oracle`: a random vector for each true class. It is what a perfect teacher without words would say. If a student that
  learns from it too does not gain, the data cannot show that any teacher without words helps.

Labels thus enter the store: nothing that was trained on `oracle` is a student without labels.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

from cuao3d import recipes
from cuao3d.console import note
from cuao3d.demo import Together
from cuao3d.files import sha256_of
from cuao3d.pipeline import fuse
from cuao3d.scene import UNLABELLED, Split
from cuao3d.store import Store, StoredScene, TeacherCard
from cuao3d.store.revise import change_teachers, expect
from cuao3d.store.roll import Entry
from cuao3d.store.schemas import read_manifest
from cuao3d.store.sources import read_record
from cuao3d.teachers import load_teacher
from cuao3d.worlds.houses import Houses
from cuao3d.worlds.rooms import Rooms

FIRST_SEED, STRIDE = 700_000, 10_000
"""First seed of the training scenes; those of each further split begin so much later."""

ORACLE, ORACLE_CHANNELS = "oracle", 64
SHUFFLED = "shuffled-"


def main(
    world: tyro.conf.Positional[Literal["rooms", "houses"]],
    out: Path,
    num_train: int = 80,
    num_val: int = 24,
    num_test: int = 32,
    num_views: int = 12,
    workers: int = 2,
) -> None:
    """Write `out/store`; `out/lifted` holds the same without the controls.

    Args:
        world: Rooms, where the language teacher was trained, or houses, where it was not.
        out: Folder for both stores.
        num_train: Scenes to learn from.
        num_val: Scenes to choose the rates on.
        num_test: Scenes to report.
        num_views: Views of each scene.
        workers: Processes that lift.
    """
    make, first = (Rooms if world == "rooms" else Houses), FIRST_SEED
    counts: tuple[tuple[Split, int], ...] = (("train", num_train), ("val", num_val), ("test", num_test))
    parts = [
        make(range(start, start + count), split=split, num_views=num_views, label_set="made100")
        for start, (split, count) in zip(range(first, first + 3 * STRIDE, STRIDE), counts, strict=True)
    ]
    teachers = [load_teacher(name) for name in recipes.SMALL_TEACHERS]
    lifted = fuse(Together(parts), teachers, out / "lifted", cell=recipes.MINI_CELL, num_workers=workers)
    add_controls(lifted, out / "store")


def add_controls(lifted: Store, out: Path, seed: int = 0) -> None:
    """Write a copy of a store that has the control teachers too."""
    new = out.with_name(f"{out.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(lifted.path, new)
    cards = dict(lifted.teachers) | control_cards(lifted.teachers)
    copy = Store.create(new, cell=lifted.cell, teachers=cards, settings=lifted.settings, revise=True)
    expect(copy, {})
    for name in lifted.names():
        folder = new / "scenes" / name
        source = read_record(folder, read_manifest(folder)["source"])
        assert source is not None, f"{folder} does not say what it was lifted from; fuse it again"
        change_teachers(copy, name, controls(lifted[name], lifted.teachers, seed), {}, source)
    expect(copy, {name: Entry(sha256=sha256_of(new / "scenes" / name / "manifest.json")) for name in lifted.names()})
    new.rename(out)
    note(f"{len(lifted.names())} scenes with {', '.join(control_cards(lifted.teachers))} in {out}")


def control_cards(teachers: Mapping[str, TeacherCard]) -> dict[str, TeacherCard]:
    """Return the cards of the control teachers."""
    wordless = {name: card for name, card in teachers.items() if card.text is None}
    shuffled = {SHUFFLED + name: replace(card, weights_sha256=None) for name, card in wordless.items()}
    return shuffled | {ORACLE: TeacherCard(num_channels=ORACLE_CHANNELS)}


def controls(scene: StoredScene, teachers: Mapping[str, TeacherCard], seed: int) -> dict[str, Tensor]:
    """Return the features of the control teachers at the seen samples of a scene."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(UNLABELLED + 1, ORACLE_CHANNELS, generator=generator)  # the same in every scene
    generator.manual_seed(seed + sum(scene.name.encode()))
    found = {}
    for name, card in teachers.items():
        if card.text is None:
            features = scene.features(name)
            found[SHUFFLED + name] = features[torch.randperm(len(features), generator=generator)]
    assert scene.labels is not None, f"{scene.name} has no labels"
    labels = scene.labels[scene.index_of_sample][scene.seen_samples]
    found[ORACLE] = codes[labels.clamp(0, UNLABELLED)].half()
    return found


if __name__ == "__main__":
    tyro.cli(main)
