"""Procedural objects of `houses`: the furniture of rooms, labelled with Matterport's classes, and further objects.

Coordinates are as in `furniture`; objects that hang from the ceiling have it at z = 0. Classes are of matterport160,
Matterport's finest label set.
"""

from collections.abc import Callable

import numpy as np

from cuao3d.labels import label_set
from cuao3d.scene import UNLABELLED
from cuao3d.worlds import furniture, joinery
from cuao3d.worlds.joinery import Furniture, Generator, beam, fronts, material

_CLASSES = label_set("matterport160")
CLASS = dict(zip(_CLASSES.names, _CLASSES.ids, strict=True))
"""Id of each class of matterport160, by name."""

_ROOMS = label_set("scannet20")
_CLASS_OF_ROOMS = {id_: CLASS.get(name, UNLABELLED) for id_, name in zip(_ROOMS.ids, _ROOMS.names, strict=True)}
_CLASS_OF_ROOMS[joinery.REFRIGERATOR] = CLASS["refridgerator"]  # as Matterport spells it

_ROUND = 12
"""Number of triangles of a box; a block with more of them is round."""


def bed(rng: Generator) -> Furniture:
    """Make the bed of `furniture`; its round parts are labelled as pillows."""
    item = _of_rooms(furniture.bed)(rng)
    item.labels = [
        CLASS["pillow"] if len(block) > _ROUND else label
        for block, label in zip(item.triangles, item.labels, strict=True)
    ]
    return item


def door(rng: Generator) -> Furniture:
    """Make the door of `furniture`, with its panes off the leaf so that they do not coincide for a ray."""
    item = _of_rooms(furniture.door)(rng)
    for block in item.triangles:
        if np.ptp(block[..., 1]) == 0:
            block[..., 1] += 0.005
    return item


def sofa(rng: Generator) -> Furniture:
    """Make the sofa of `furniture`, with pillows that lean on its back."""
    item = _of_rooms(furniture.sofa)(rng)
    half = float(np.concatenate(item.triangles)[..., 0].max()) - 0.45
    for x in rng.uniform(-half, half, rng.integers(1, 4)):
        profile = [(0.0, 0.42), (0.17, 0.45), (0.2, 0.6), (0.17, 0.76), (0.0, 0.79)]
        item.turned(profile, (x, 0.42), material(rng, "cloth"), CLASS["pillow"], stretch=(1.0, 0.4))
    return item


def night_stand(rng: Generator) -> Furniture:
    """Make a small cabinet with drawers, with a lamp on top."""
    item = Furniture(rng, CLASS["night stand"])
    look, metal, half, height = material(rng, "front"), material(rng, "metal"), rng.uniform(0.2, 0.28), 0.55
    item.legs(half - 0.04, (0.05, 0.32), 0.12, look, 0.04)
    item.box((-half, half), (0, 0.36), (0.12, height), look)
    fronts(item, 2 * half, 0.36, (0.14, height - 0.03), 1, 2, material(rng, "front"), metal)
    foot = [(0.08, height), (0.08, height + 0.02), (0.02, height + 0.04), (0.02, height + 0.25)]
    item.turned(foot, (0, 0.2), metal, CLASS["lamp"])
    item.turned([(0.14, height + 0.22), (0.09, height + 0.42)], (0, 0.2), material(rng, "linen"), CLASS["lamp"])
    return item


def sideboard(rng: Generator) -> Furniture:
    """Make the sideboard of `furniture`; the object that may stand on it is labelled as a television."""
    return _of_rooms(furniture.sideboard, {joinery.OTHER: "television"})(rng)


def desk(rng: Generator) -> Furniture:
    """Make the desk of `furniture`, with its computer."""
    return _of_rooms(furniture.desk, {UNLABELLED: "computer"})(rng)


def dresser(rng: Generator) -> Furniture:
    """Make the chest of drawers of `furniture`."""
    return _of_rooms(furniture.dresser, {joinery.CABINET: "dresser"})(rng)


def table(rng: Generator) -> Furniture:
    """Make the table of `furniture`: a coffee table with books, or a dining table with a vase or a pot."""
    item = _of_rooms(furniture.table)(rng)
    corners = np.concatenate(item.triangles).reshape(-1, 3)
    (x, y, top), middle = rng.uniform(-0.15, 0.15, 3), float(np.ptp(corners[:, 1])) / 2
    y, top = y + middle, float(corners[:, 2].max())
    if top > 0.6:
        _vessel(item, x, y, top)
        return item
    item.labels = [CLASS["coffee table"]] * len(item.labels)
    for layer in range(int(rng.integers(2, 5))):
        low, wide, turn = top + 0.04 * layer, rng.uniform(0.1, 0.15), rng.uniform(-0.03, 0.03, 2)
        cover = (x - wide + turn[0], x + wide), (y - 0.1 + turn[1], y + 0.1), (low, low + 0.04)
        item.box(*cover, material(rng, "cloth"), CLASS["book"])
    return item


def counter(rng: Generator) -> Furniture:
    """Make the worktop of `furniture`; the tap of its sink is labelled as a faucet."""
    return _with_faucet(_of_rooms(furniture.counter)(rng))


def sink(rng: Generator) -> Furniture:
    """Make the wash-basin of `furniture`; its tap is labelled as a faucet."""
    return _with_faucet(_of_rooms(furniture.sink)(rng))


def standing_lamp(rng: Generator) -> Furniture:
    """Make a lamp on a stand."""
    item = Furniture(rng, CLASS["lamp"])
    joinery.floor_lamp(item, material(rng, "metal"), material(rng, "linen"))
    return item


def plant(rng: Generator) -> Furniture:
    """Make a plant in a pot."""
    item = Furniture(rng, CLASS["plant"])
    joinery.potted_plant(item, CLASS["pot"])
    return item


def garbage_bin(rng: Generator) -> Furniture:
    """Make an open bin."""
    item = Furniture(rng, CLASS["garbage bin"])
    joinery.waste_bin(item, material(rng, "metal"))
    return item


def radiator(rng: Generator) -> Furniture:
    """Make a radiator with ribs."""
    item = Furniture(rng, CLASS["radiator"])
    joinery.radiator(item, material(rng, "appliance"))
    return item


def hanging_lamp(rng: Generator) -> Furniture:
    """Make a shade on a cord, a flat lamp, or a ring of bulbs; it hangs from the ceiling."""
    item = Furniture(rng, CLASS["lamp"])
    metal, cloth, shape, drop = material(rng, "metal"), material(rng, "linen"), rng.integers(3), rng.uniform(0.5, 0.8)
    if shape == 1:
        item.turned([(0.0, -0.12), (0.22, -0.1), (0.25, 0.0)], (0, 0), cloth)
        return item
    item.box((-0.012, 0.012), (-0.012, 0.012), (-drop, 0), metal)
    if shape == 0:
        item.turned([(0.3, -drop - 0.12), (0.2, -drop + 0.12), (0.02, -drop + 0.14)], (0, 0), cloth)
        return item
    for angle in np.arange(6) * np.pi / 3:
        x, y = 0.35 * np.cos(angle), 0.35 * np.sin(angle)
        item.add(beam((0, 0, -drop), (x, y, -drop - 0.05), 0.03), metal)
        item.turned([(0.0, -drop - 0.06), (0.05, -drop - 0.02), (0.06, -drop + 0.08)], (x, y), cloth)
    return item


def mirror(rng: Generator) -> Furniture:
    """Make a framed mirror on the wall, oblong or as tall as a person; it is plain: the renderer has no reflections."""
    item = Furniture(rng, CLASS["mirror"])
    frame, glass, tall = material(rng, "wood"), material(rng, "glass"), rng.random() < 0.4
    half, low, high = (0.3, 0.3, 1.8) if tall else (rng.uniform(0.3, 0.55), 1.15, rng.uniform(1.75, 2.0))
    item.box((-half, half), (0, 0.03), (low, high), frame)
    item.box((-half + 0.05, half - 0.05), (0.02, 0.035), (low + 0.05, high - 0.05), glass)
    return item


def towels(rng: Generator) -> Furniture:
    """Make one or two towels over a rail on the wall."""
    item = Furniture(rng, CLASS["towel"])
    half, high, metal = rng.uniform(0.25, 0.4), rng.uniform(1.1, 1.4), material(rng, "metal")
    item.box((-half, half), (0.08, 0.1), (high, high + 0.02), metal)
    for x in (-half, half - 0.02):
        item.box((x, x + 0.02), (0, 0.1), (high, high + 0.02), metal)
    for left, right in ((-half + 0.03, -0.02), (0.02, half - 0.03))[: rng.integers(1, 3)]:
        cloth, low = material(rng, "linen"), high - rng.uniform(0.35, 0.6)
        item.box((left, right), (0.06, 0.12), (low, high + 0.025), cloth)
    return item


def television(rng: Generator) -> Furniture:
    """Make a flat screen on the wall."""
    item = Furniture(rng, CLASS["television"])
    half, low = rng.uniform(0.45, 0.75), rng.uniform(0.95, 1.15)
    item.box((-0.15, 0.15), (0, 0.05), (low + 0.2, low + 0.45), material(rng, "metal"))
    item.box((-half, half), (0.05, 0.09), (low, low + half * 1.15), material(rng, "screen"))
    return item


def wall_shelf(rng: Generator) -> Furniture:
    """Make two or three boards on the wall, with vases, boxes and books on them."""
    item = Furniture(rng, CLASS["shelves"])
    look, half, depth = material(rng, "wood"), rng.uniform(0.35, 0.6), rng.uniform(0.2, 0.26)
    for low in (1.0, 1.35, 1.7)[: rng.integers(2, 4)]:
        item.box((-half, half), (0, depth), (low, low + 0.03), look)
        for x in np.arange(-half + 0.15, half - 0.1, 0.25):
            stuff = rng.integers(4)
            if stuff == 0:
                _vessel(item, x, depth / 2, low + 0.03, scale=0.6)
            elif stuff == 1:
                crate = (x - 0.09, x + 0.09), (0.03, depth - 0.03), (low + 0.03, low + 0.17)
                item.box(*crate, material(rng, "wood"), CLASS["box"])
            elif stuff == 2:
                row = (x - 0.1, x + 0.1), (0.02, 0.17), (low + 0.03, low + 0.24)
                item.box(*row, material(rng, "cloth"), CLASS["book"])
    return item


def fireplace(rng: Generator) -> Furniture:
    """Make a chimney piece: two jambs, a mantel with a vase or a pot on it, a dark hearth behind."""
    item = Furniture(rng, CLASS["fireplace"])
    stone, soot, half, high = material(rng, "hearth"), material(rng, "soot"), rng.uniform(0.55, 0.8), 1.1
    for side in (-half, half - 0.22):
        item.box((side, side + 0.22), (0, 0.35), (0, high), stone)
    item.box((-half, half), (0, 0.35), (high - 0.3, high), stone)
    item.box((-half - 0.1, half + 0.1), (0, 0.42), (high, high + 0.07), material(rng, "stone"))
    item.box((-half + 0.2, half - 0.2), (0.02, 0.05), (0, high - 0.28), soot)
    item.box((-half - 0.05, half + 0.05), (0, 0.6), (0, 0.04), stone)
    _vessel(item, rng.uniform(-half + 0.2, half - 0.2), 0.2, high + 0.07)
    return item


def stool(rng: Generator) -> Furniture:
    """Make a round or a square stool; free-standing."""
    item = Furniture(rng, CLASS["stool"])
    look, cloth, half, seat = material(rng, "wood"), material(rng, "cloth"), rng.uniform(0.16, 0.2), 0.45
    item.legs(half - 0.04, (0.03, 2 * half - 0.03), seat, look, 0.04)
    if rng.random() < 0.5:
        item.turned([(half, seat), (half, seat + 0.06), (0.0, seat + 0.07)], (0, half), cloth)
    else:
        item.box((-half, half), (0, 2 * half), (seat, seat + 0.06), cloth)
    return item


def bench(rng: Generator) -> Furniture:
    """Make a long low seat without a back."""
    item = Furniture(rng, CLASS["bench"])
    half, look = rng.uniform(0.5, 0.75), material(rng, "wood")
    item.legs(half - 0.08, (0.05, 0.33), 0.4, look, 0.07)
    item.box((-half, half), (0, 0.38), (0.4, 0.46), look)
    item.box((-half + 0.02, half - 0.02), (0.02, 0.36), (0.46, 0.5), material(rng, "cloth"))
    return item


def boxes(rng: Generator) -> Furniture:
    """Make one to three boxes, piled up."""
    item, low = Furniture(rng, CLASS["box"]), 0.0
    for half in np.sort(rng.uniform(0.15, 0.3, rng.integers(1, 4)))[::-1]:
        tall = rng.uniform(0.2, 0.35)
        item.box((-half, half), (0.02, 0.02 + 1.5 * half), (low, low + tall), material(rng, "front"))
        low += tall
    return item


def clothes(rng: Generator) -> Furniture:
    """Make clothes that hang from a rail on two posts."""
    item = Furniture(rng, CLASS["clothes"])
    metal, half, high = material(rng, "metal"), rng.uniform(0.45, 0.7), rng.uniform(1.45, 1.65)
    for side in (-half, half - 0.04):
        item.box((side, side + 0.04), (0.22, 0.26), (0, high), metal, CLASS["stand"])
        item.box((side, side + 0.04), (0.02, 0.46), (0, 0.04), metal, CLASS["stand"])
    item.box((-half, half), (0.22, 0.26), (high, high + 0.04), metal, CLASS["stand"])
    for x in np.arange(-half + 0.1, half - 0.12, 0.1):
        if rng.random() < 0.8:
            deep, low = rng.uniform(0.15, 0.21), high - rng.uniform(0.6, 1.1)
            thick = rng.uniform(0.04, 0.08)
            item.box((x, x + thick), (0.24 - deep, 0.24 + deep), (low, high - 0.05), material(rng, "cloth"))
    return item


def passage(rng: Generator) -> Furniture:
    """Make an opening without a door, and the start of the corridor behind it."""
    item = Furniture(rng, CLASS["wall"], clearance=0.7)
    half, high, deep = rng.uniform(0.5, 0.8), rng.uniform(2.05, 2.3), rng.uniform(1.2, 2.0)
    wall, side = material(rng, "house wall"), half + rng.uniform(0.05, 0.4)
    item.opening = (-half, half, 0.0, high)
    joinery.reveal(item, item.opening, -0.16, material(rng, "front"))
    item.labels = [CLASS["door"]] * len(item.labels)
    item.box((-side, side), (-deep, 0), (-0.02, 0), material(rng, "house floor"), CLASS["floor"])
    item.box((-side, side), (-deep, -0.16), (high + 0.2, high + 0.22), material(rng, "ceiling"), CLASS["ceiling"])
    for left in (-side - 0.02, side):
        item.box((left, left + 0.02), (-deep, -0.16), (0, high + 0.2), wall)
    item.box((-side, side), (-deep - 0.02, -deep), (0, high + 0.2), wall)
    for left, right in ((-side, -half), (half, side)):
        item.box((left, right), (-0.18, -0.16), (0, high + 0.2), wall)
    item.box((-half, half), (-0.18, -0.16), (high, high + 0.2), wall)
    return item


def stairs(rng: Generator) -> Furniture:
    """Make some steps along the wall, with a banister on its open side."""
    item = Furniture(rng, CLASS["stairs"])
    look, rail, steps, wide = (
        material(rng, "wood"),
        material(rng, "wood"),
        int(rng.integers(6, 9)),
        rng.uniform(0.8, 1.0),
    )
    run, rise = 0.26, rng.uniform(0.16, 0.19)
    for step in range(steps):
        x, top = (step - steps / 2) * run, (step + 1) * rise
        item.box((x, steps / 2 * run), (0, wide), (step * rise, top), look)
        item.box((x + 0.1, x + 0.14), (wide - 0.06, wide - 0.02), (top, top + 0.88), rail, CLASS["banister"])
    low, end = rise + 0.86, steps / 2 * run
    item.add(beam((0.1 - end, wide - 0.04, low), (end, wide - 0.04, low + steps * rise), 0.06), rail, CLASS["banister"])
    return item


def column(rng: Generator, height: float) -> Furniture:
    """Make a round or a square column from the floor to the ceiling."""
    item = Furniture(rng, CLASS["column"])
    look, radius = material(rng, "stone"), rng.uniform(0.12, 0.18)
    item.box((-radius - 0.04, radius + 0.04), (-radius - 0.04, radius + 0.04), (0, 0.12), look)
    item.box((-radius - 0.04, radius + 0.04), (-radius - 0.04, radius + 0.04), (height - 0.12, height), look)
    if rng.random() < 0.5:
        item.turned([(radius, 0.1), (radius * 0.85, height - 0.1)], (0, 0), look)
    else:
        item.box((-radius, radius), (-radius, radius), (0.1, height - 0.1), look)
    return item


def air_vent(rng: Generator) -> Furniture:
    """Make a grille that hangs from the ceiling on a short piece of duct."""
    item = Furniture(rng, CLASS["air vent"])
    metal, half = material(rng, "metal"), rng.uniform(0.2, 0.32)
    item.box((-half, half), (-0.2, 0.2), (-0.05, 0), metal)
    for y in np.arange(-0.15, 0.16, 0.06):
        item.box((-half + 0.03, half - 0.03), (y - 0.015, y + 0.015), (-0.07, -0.05), metal)
    return item


def _of_rooms(
    make: Callable[[Generator], Furniture], classes: dict[int, str] | None = None
) -> Callable[[Generator], Furniture]:
    """Relabel an object of `furniture` with matterport160, by class name except for `classes`."""
    class_of = {**_CLASS_OF_ROOMS, **{label: CLASS[name] for label, name in (classes or {}).items()}}

    def made(rng: Generator) -> Furniture:
        item = make(rng)
        item.label = class_of.get(item.label, UNLABELLED)
        item.labels = [class_of.get(label, UNLABELLED) for label in item.labels]
        return item

    return made


def _with_faucet(item: Furniture) -> Furniture:
    """Label the tap of an object with a basin, its last two blocks, as a faucet."""
    if item.labels[-1] == CLASS["sink"]:
        item.labels[-2:] = [CLASS["faucet"]] * 2
    return item


def _vessel(item: Furniture, x: float, y: float, z: float, scale: float = 1.0) -> None:
    """Add a slender vase or a round pot that stands at a position."""
    look, tall = material(item.rng, "vessel"), scale * item.rng.uniform(0.22, 0.32)
    if item.rng.random() < 0.5:
        radii, class_ = (0.05, 0.08, 0.035, 0.06), "vase"
    else:
        radii, class_ = (0.07, 0.12, 0.12, 0.1), "pot"
    profile = [(scale * radius, z + part * tall) for radius, part in zip(radii, (0, 0.4, 0.8, 1), strict=True)]
    item.turned([(0.0, z), *profile, (0.0, z + 0.8 * tall)], (x, y), look, CLASS[class_])


HOUSE_SHAPES: dict[str, Callable[[Generator], Furniture]] = {
    **{name: _of_rooms(make) for name, make in furniture.SHAPES.items() if name != "clutter"},
    **{
        make.__name__: make
        for make in (
            bed, door, sofa, night_stand, sideboard, desk, dresser, table, counter, sink, standing_lamp, plant,
            garbage_bin, radiator, hanging_lamp, mirror, towels, television, wall_shelf, fireplace, stool, bench, boxes,
            clothes, passage, stairs, air_vent,
        )
    },
}  # fmt: skip
"""Every object that a house may hold, by name, except columns, which need the height of the room."""
