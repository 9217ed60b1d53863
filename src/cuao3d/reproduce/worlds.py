"""What tables are made of: made rooms and houses, of which there are any number, and datasets that a user has."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cuao3d import recipes
from cuao3d.demo import Together
from cuao3d.distill import DistillConfig
from cuao3d.errors import InputError
from cuao3d.labels import convert, label_set
from cuao3d.pipeline import fuse
from cuao3d.readers import Dataset, open_dataset
from cuao3d.readers.matterport import Matterport
from cuao3d.reproduce.arms import ARMS, BASE, MINI, PAPERS_WAY, ROLES
from cuao3d.scene import Split
from cuao3d.schema import Count
from cuao3d.store import Store, TeacherCard
from cuao3d.supervise import SuperviseConfig
from cuao3d.teachers import load_teacher, parse_teachers
from cuao3d.worlds.houses import Houses
from cuao3d.worlds.rooms import Rooms

FIRST_TRAIN, FIRST_VAL, FIRST_TEST = 830_000, 850_000, 870_000
"""First seeds of made scenes; no teacher, student, rate or threshold was made with these."""


@dataclass(frozen=True)
class Size:
    """How much is made, and trained."""

    num_train: Count = 48
    """Made scenes to learn from."""
    num_val: Count = 8
    """Made scenes to fit confidence on; no table shows them."""
    num_test: Count = 24
    """Made scenes to score in."""
    num_views: Count = 12
    """Views of each made scene."""
    num_steps: Count | None = 1500
    """Steps of a student; None: as many as its recipe says."""
    num_ablation: Count | None = 500
    """Steps of a student of the ablation, likewise."""

    @property
    def key(self) -> str:
        """What is made, as a part of a folder's name."""
        return f"{self.num_train}-{self.num_val}-{self.num_test}-{self.num_views}"


QUICK = Size(num_train=8, num_val=4, num_test=8, num_views=5, num_steps=60, num_ablation=20)
"""Every stage in a few minutes; the numbers mean nothing."""


@dataclass(frozen=True)
class World:
    """A dataset: what it is called, how it is lifted, and where it is scored."""

    name: str
    labels: tuple[str, ...]
    """Label sets to score in, the first one the finest in which everything has a class, or the usual one."""
    split: Split
    """Split that the tables show."""
    stand_in: Mapping[str, str]
    """The teacher that plays each role; see `arms.ROLES`."""
    cell: float
    """Edge of a sample cell, metres."""
    is_made: bool = False
    """Whether its scenes are made here."""

    @property
    def teachers(self) -> tuple[str, ...]:
        """Teachers to lift."""
        return tuple(self.stand_in.values())

    def named_by(self, store: Store) -> "World":
        """Return the same with its teachers as a store calls them: by their own names, or those with words first."""
        if self.is_made:
            return self
        own = tuple(role for role in ROLES if role in store.teachers)
        names = own or sorted(store.teachers, key=lambda name: store.teachers[name].text is None)
        return replace(self, stand_in=dict(zip(own or ROLES, names, strict=False)))

    def scored_in(self, store: Store) -> tuple["World", dict[str, str]]:
        """Return the same with those label sets that the labels of a store can be converted to; and why not to others.

        Raises:
            InputError: No scene that is to be scored has labels, or they cannot be converted to the usual set.
        """
        scenes = (store[name] for name in store.names(self.split))
        source = next((scene.label_set for scene in scenes if scene.label_set is not None), None)
        if source is None:
            raise InputError(
                f"{store.path} has no {self.split} scene with labels ({len(store.names(self.split))} without), so that "
                "nothing can be scored. Of scenes without labels make a page: cuao3d report STORE"
            )
        left_out = {}
        for name in self.labels:
            try:
                convert(torch.zeros(0, dtype=torch.int64), label_set(source), label_set(name))
            except InputError as error:
                if name == self.labels[0]:
                    raise InputError(f"{store.path} cannot be scored: {error}") from error
                left_out[name] = (
                    f"the labels are of {Path(source).stem}, which cannot be converted to it. Read them in it into a "
                    f"store, as by cuao3d fuse DATA --annotations {name} --out STORE, and give --data STORE"
                )
        return replace(self, labels=tuple(name for name in self.labels if name not in left_out)), left_out


ROOMS = World("rooms", ("made100", "scannet20"), "test", MINI, recipes.MINI_CELL, is_made=True)
HOUSES = World(
    "houses",
    ("matterport21", "matterport40", "matterport80", "matterport160"),
    "test",
    MINI,
    recipes.MINI_CELL,
    is_made=True,
)
SCANNET = World("scannet", ("scannet20", "scannet200"), "val", dict(zip(ROLES, ROLES, strict=True)), 0.02)
MATTERPORT = replace(SCANNET, name="matterport", labels=HOUSES.labels, split="test")
WORLDS = {world.name: world for world in (ROOMS, HOUSES, SCANNET, MATTERPORT)}
OTHER = {"rooms": "houses", "houses": "rooms", "scannet": "matterport", "matterport": "scannet"}
"""Where students of a world are taken to."""


@dataclass(frozen=True)
class Protocol:
    """A recipe of the whole pipeline, from lifting to scores."""

    options: Mapping[str, str]
    """Options of the teacher in each role, as they are typed."""
    official: bool
    """Whether cameras are read as the official pipeline does."""
    recipe: str
    """Recipe of the student of three teachers."""
    train_mode: bool = False
    """Whether batch norm runs in train mode in the official passes."""


PROTOCOLS = {
    "paper": Protocol({}, official=False, recipe="paper"),
    "released": Protocol(
        {"lseg": "mirror=sum", "dinov2": "normalisation=clip"}, official=True, recipe="released-code", train_mode=True
    ),
}
"""The pipeline as the paper describes it and as the released code does it, as far as docs/differences.md says how."""


def make_store(
    world: World, out: Path, size: Size, data: Path | None, protocol: Protocol, num_workers: int
) -> tuple[Store, Dataset | None]:
    """Lift a world, or open the store that a user has made of it.

    Args:
        world: The world.
        out: Folder of the store.
        size: How many scenes are made.
        data: The dataset on disk, or a store of it; None for a made world.
        protocol: How it is read, and the options of teachers.
        num_workers: Processes that lift.

    Returns:
        The store, and the dataset that it was lifted from; None where it was given.

    Raises:
        InputError: The dataset is missing, or holds nothing that can be lifted.
    """
    if data is not None and (data / "store.json").is_file():
        return Store.open(data), None
    how: dict[str, Any]
    dataset: Dataset
    if world.is_made:
        make = Rooms if world.name == "rooms" else Houses
        ranges: dict[Split, range] = {
            "train": range(FIRST_TRAIN, FIRST_TRAIN + size.num_train),
            "val": range(FIRST_VAL, FIRST_VAL + size.num_val),
            world.split: range(FIRST_TEST, FIRST_TEST + size.num_test),
        }
        finest = world.labels[0] if world.name == "rooms" else world.labels[-1]
        how = {"num_views": size.num_views, "label_set": finest}
        dataset = Together([make(seeds, split=split, **how) for split, seeds in ranges.items()])
    elif data is None:
        raise InputError(f"{world.name} is no made world; say where it lies: cuao3d reproduce {world.name} --data PATH")
    else:
        how = {"official": True} if protocol.official else {}
        dataset = open_dataset(data, **how)
        if isinstance(dataset, Matterport):  # its labels of 160 classes are those of 80, 40 and 21 too
            dataset = Matterport(data, annotations=world.labels[-1], **how)
    options = {world.stand_in[role]: text for role, text in protocol.options.items() if world.stand_in[role] == role}
    specs = parse_teachers(",".join(f"{name}:{options[name]}" if name in options else name for name in world.teachers))
    teachers = [load_teacher(spec) for spec in specs]
    return fuse(dataset, teachers, out, cell=world.cell, num_workers=num_workers), dataset


def config_of(
    world: World, arm: str, cards: Mapping[str, TeacherCard], protocol: Protocol, num_steps: int | None, seed: int
) -> DistillConfig:
    """Return how a student is trained.

    Args:
        world: Where it is trained: in made worlds the small recipe, otherwise those at the paper's size.
        arm: Which student.
        cards: Cards of its teachers.
        protocol: Its recipe is that of the arm in the paper's way.
        num_steps: Steps; None: as many as the recipe says.
        seed: Decides its initial weights and all that is random.
    """
    changes: dict[str, Any] = dict(ARMS[arm].changes)
    steps: dict[str, Any] = {} if num_steps is None else {"num_steps": num_steps}
    if world.is_made:
        return replace(recipes.mini(teachers=cards, seed=seed), **changes, **steps)
    if arm == BASE:
        config = recipes.openscene(teachers=cards, seed=seed, epochs=50)  # the epochs of CUA-O3D's run of it
    elif arm == PAPERS_WAY:
        config = recipes.RECIPES[protocol.recipe](teachers=cards, seed=seed)
    else:
        config = replace(recipes.ours(teachers=cards, seed=seed), **changes)
    return replace(config, **steps)


def supervised_config(world: World, num_steps: int | None, seed: int) -> SuperviseConfig:
    """Return how the upper bound is trained; the arguments are those of `config_of`."""
    config = recipes.mini_supervised(seed=seed) if world.is_made else recipes.supervised(seed=seed)
    config = replace(config, label_set=world.labels[0])
    return config if num_steps is None else replace(config, num_steps=num_steps)
