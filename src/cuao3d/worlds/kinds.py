"""The kinds of things that made rooms and houses hold, read from `kinds.csv`.

A row is a shape of a kind; a kind may have several, of which each object draws one. Its columns are the kind's name in
the label set made100; its family in `families`; ranges of width, depth and height, metres; the styles of its materials;
the options of its family; where it stands; the chances with which each kind of room and of house holds it (of every
chance an object: `bedroom=0.9+0.4`); and its name in matterport160. What comes later in the file is placed later.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from cuao3d.worlds.families import FAMILIES
from cuao3d.worlds.joinery import CLASS, Furniture, Generator, Plan, material

Place = Literal["wall", "flush", "free", "window", "top", "hung", "part"]
"""Where a kind stands: near a wall, fixed to it, away from walls, before a window, on another thing, under the ceiling;
or nowhere by itself, as a part of other things."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """A shape of a kind."""

    family: str
    """Name of its family."""
    size: tuple[Range, Range, Range]
    """Lowest and highest width, depth and height, metres."""
    styles: tuple[str, ...]
    """Styles of its materials."""
    options: Mapping[str, str | Range]
    """Options of the family: a word, or a range to draw a number from."""


@dataclass(frozen=True)
class Kind:
    """A kind of thing."""

    name: str
    """Its name in made100."""
    shapes: tuple[Shape, ...]
    """What it may look like."""
    place: Place
    """Where it stands."""
    rooms: Mapping[str, tuple[float, ...]]
    """For each kind of room that may hold it, the chance of each object."""
    houses: Mapping[str, tuple[float, ...]]
    """Likewise for houses."""
    matterport160: str
    """Its name in matterport160; empty where that has none."""

    def make(self, rng: Generator, ceiling: float = 2.6) -> Furniture:
        """Make an object of this kind.

        Args:
            rng: Source of all randomness.
            ceiling: Height of the room, metres.
        """
        shape = self.shapes[int(rng.integers(len(self.shapes)))]
        width, depth, height = (float(rng.uniform(*bounds)) for bounds in shape.size)
        options = {
            name: value if isinstance(value, str) else float(rng.uniform(*value))
            for name, value in shape.options.items()
        }
        looks = tuple(material(rng, style) for style in shape.styles)
        item = Furniture(rng, CLASS[self.name])
        FAMILIES[shape.family](item, Plan(width, depth, height, shape.styles, looks, options, ceiling))
        if self.place in ("wall", "flush") and item.opening is None:
            item.move_back()
        return item


@cache
def kinds() -> dict[str, Kind]:
    """Return every kind by its name, in the order in which rooms are furnished."""
    rows: dict[str, list[dict[str, str]]] = {}
    with Path(__file__).with_name("kinds.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["name"], []).append(row)
    return {name: _kind(name, of_kind) for name, of_kind in rows.items()}


def contents(of_house: bool, kind_of_room: str) -> list[tuple[str, float]]:
    """List what a kind of room may hold: the name of a kind and its chance, in the order of placement."""
    found = []
    for kind in kinds().values():
        chances = (kind.houses if of_house else kind.rooms).get(kind_of_room, ())
        found += [(kind.name, chance) for chance in chances]
    return found


@dataclass(frozen=True)
class Taught:
    """Words for a kind that something may be trained with. None of them is among those that are evaluated."""

    to: Literal["all", "teachers", "none"]
    """Who may be trained with them: all; teachers, but no student; or nobody, so that the kind has no words here."""
    words: tuple[str, ...]
    """The kind's name and paraphrases of it."""


@cache
def taught() -> dict[str, Taught]:
    """Return the words of every kind that teachers and students may be trained with, by its name."""
    with Path(__file__).with_name("taught.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["name"]: Taught(row["to"], tuple(filter(None, row["words"].split("|"))))  # type: ignore[arg-type]
            for row in csv.DictReader(file)
        }


def _kind(name: str, rows: list[dict[str, str]]) -> Kind:
    first = rows[0]
    place = first["place"]
    assert place in get_args(Place), f"{name} stands {place}"
    shapes = tuple(
        Shape(
            family=row["family"],
            size=(_range(row["width"]), _range(row["depth"]), _range(row["height"])),
            styles=tuple(row["styles"].split(";")),
            options=dict(_option(text) for text in row["options"].split(";") if text),
        )
        for row in rows
        if row["family"]
    )
    return Kind(
        name=name,
        shapes=shapes,
        place=place,  # type: ignore[arg-type]
        rooms=_chances(first["rooms"]),
        houses=_chances(first["houses"]),
        matterport160=first["matterport160"],
    )


def _range(text: str) -> Range:
    low, _, high = text.partition("-")
    return float(low or 0), float(high or low or 0)


def _option(text: str) -> tuple[str, str | Range]:
    name, _, value = text.partition("=")
    if value and value[0].isalpha():
        return name, value
    return name, _range(value or "1")


def _chances(text: str) -> dict[str, tuple[float, ...]]:
    found = {}
    for part in filter(None, text.split(";")):
        room, _, chances = part.partition("=")
        found[room] = tuple(float(chance) for chance in chances.split("+"))
    return found
