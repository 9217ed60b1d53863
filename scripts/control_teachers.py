"""Copy a store, and add to the copy teachers that show what an ablation could find.

    python scripts/control_teachers.py full-0/store --out controls-0/store

- `shuffled-NAME`, for each teacher without words: its features, dealt out anew among the points of each scene. They
  have the same statistics and say nothing about a place: whatever they do to a student, they do without knowledge.
- `oracle`: a random vector for each true class. It is what a perfect teacher without words would say. If a student that
  learns from it too does not gain, the data cannot show that any teacher without words helps.

Labels thus enter the copy: nothing that was trained on `oracle` is a student without labels.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import tyro
from torch import Tensor

from cuao3d.console import note
from cuao3d.scene import UNLABELLED
from cuao3d.store import Store, StoredScene, TeacherCard
from cuao3d.store.revise import change_teachers, expect
from cuao3d.store.roll import read_roll
from cuao3d.store.schemas import read_manifest
from cuao3d.store.sources import read_record

ORACLE, ORACLE_CHANNELS = "oracle", 64
SHUFFLED = "shuffled-"


def main(store: tyro.conf.Positional[Path], out: Path, seed: int = 0) -> None:
    """Write the copy.

    Args:
        store: Store to copy.
        out: Folder of the copy.
        seed: Seed of the dealing and of the vectors.
    """
    opened = Store.open(store)
    shutil.copytree(store, out)
    cards = dict(opened.teachers) | control_cards(opened.teachers)
    copy = Store.create(out, cell=opened.cell, teachers=cards, settings=opened.settings, revise=True)
    for name in opened.names():
        folder = out / "scenes" / name
        source = read_record(folder, read_manifest(folder)["source"])
        assert source is not None, f"{folder} does not say what it was lifted from; fuse it again"
        change_teachers(copy, name, controls(opened[name], opened.teachers, seed), {}, source)
    expect(copy, read_roll(out))
    note(f"{len(opened.names())} scenes with {', '.join(control_cards(opened.teachers))} in {out}")


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
