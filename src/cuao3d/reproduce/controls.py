"""Teachers that are controls, added to a copy of a store.

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
from torch import Tensor

from cuao3d.console import note
from cuao3d.files import sha256_of
from cuao3d.reproduce.arms import ORACLE, SHUFFLED
from cuao3d.scene import UNLABELLED
from cuao3d.store import Store, StoredScene, TeacherCard
from cuao3d.store.revise import change_teachers, expect
from cuao3d.store.roll import Entry
from cuao3d.store.schemas import read_manifest
from cuao3d.store.sources import read_record

ORACLE_CHANNELS = 64


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
