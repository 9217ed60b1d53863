"""Procedural furniture of synthetic rooms: labelled, textured triangles, at least three shapes per class.

Every object has its own frame: x to its right, y away from the wall (its back is at y = 0), z up, metres. Similar
classes differ in geometry, size or placement, not by colour alone: a door has a frame and a handle, a window is
recessed, a picture stands off the wall, a curtain is wavy.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from cuao3d.scene import UNLABELLED
from cuao3d.worlds.joinery import (
    BATHTUB,
    BED,
    BOOKSHELF,
    CABINET,
    CHAIR,
    COUNTER,
    CURTAIN,
    DESK,
    DOOR,
    OTHER,
    PICTURE,
    REFRIGERATOR,
    SHOWER_CURTAIN,
    SINK,
    SOFA,
    TABLE,
    TOILET,
    WINDOW,
    Furniture,
    Generator,
    Material,
    basin,
    beam,
    floor_lamp,
    fronts,
    material,
    potted_plant,
    radiator,
    reveal,
    rgb,
    tap,
    waste_bin,
)


def wardrobe(rng: Generator) -> Furniture:
    """Make a cabinet with doors, on short legs or a plinth."""
    item = Furniture(rng, CABINET)
    look, dark, metal = material(rng, "front"), material(rng, "wood"), material(rng, "metal")
    width, depth, height = rng.uniform(0.8, 1.5), rng.uniform(0.45, 0.6), rng.uniform(1.4, 1.9)
    item.box((-width / 2, width / 2), (0, depth - 0.05), (0.1, height), dark)
    item.box((-width / 2 + 0.04, width / 2 - 0.04), (0.05, depth - 0.12), (0, 0.1), dark)
    fronts(item, width, depth - 0.05, (0.12, height - 0.02), round(width / 0.45), 1, look, metal)
    return item


def dresser(rng: Generator) -> Furniture:
    """Make a chest of drawers; the small ones are bedside tables."""
    item = Furniture(rng, CABINET)
    look, dark, metal = material(rng, "front"), material(rng, "wood"), material(rng, "metal")
    width, depth, height = rng.uniform(0.45, 1.1), rng.uniform(0.4, 0.5), rng.uniform(0.5, 0.95)
    item.legs(width / 2 - 0.05, (0.05, depth - 0.1), 0.12, dark)
    item.box((-width / 2, width / 2), (0, depth - 0.05), (0.12, height), dark)
    columns = 1 if width < 0.75 else 2
    fronts(item, width, depth - 0.05, (0.15, height - 0.04), columns, int(height / 0.24), look, metal)
    return item


def sideboard(rng: Generator) -> Furniture:
    """Make a long low cabinet with doors and one open bay."""
    item = Furniture(rng, CABINET)
    look, dark, metal = material(rng, "front"), material(rng, "wood"), material(rng, "metal")
    width, depth, height = rng.uniform(1.2, 1.7), rng.uniform(0.4, 0.5), rng.uniform(0.5, 0.7)
    item.box((-width / 2, width / 2), (0, depth - 0.05), (0.08, height - 0.05), dark)
    item.box((-width / 2 - 0.03, width / 2 + 0.03), (0, depth), (height - 0.05, height), look)
    fronts(item, width, depth - 0.05, (0.1, height - 0.08), 3, 1, look, metal)
    if rng.random() < 0.6:
        screen, stand = material(rng, "screen"), material(rng, "metal")
        half = rng.uniform(0.35, 0.5)
        item.box((-half, half), (0.18, 0.24), (height + 0.06, height + 0.06 + half * 1.15), screen, OTHER)
        item.box((-0.15, 0.15), (0.12, 0.3), (height, height + 0.06), stand, OTHER)
    return item


def wall_cabinet(rng: Generator) -> Furniture:
    """Make a cabinet that hangs on the wall."""
    item = Furniture(rng, CABINET)
    look, dark, metal = material(rng, "front"), material(rng, "wood"), material(rng, "metal")
    width, depth, low = rng.uniform(0.6, 1.4), rng.uniform(0.3, 0.38), rng.uniform(1.4, 1.5)
    item.box((-width / 2, width / 2), (0, depth - 0.04), (low, low + 0.65), dark)
    fronts(item, width, depth - 0.04, (low, low + 0.65), max(1, round(width / 0.45)), 1, look, metal)
    return item


def bed(rng: Generator) -> Furniture:
    """Make a single, double or box bed with mattress, blanket and pillows; its head is at the wall."""
    item = Furniture(rng, BED)
    frame, linen, blanket = material(rng, "wood"), material(rng, "linen"), material(rng, "cloth")
    width, length = rng.uniform(0.9, 1.8), rng.uniform(1.9, 2.1)
    shape = rng.integers(3)
    top = rng.uniform(0.48, 0.6)
    if shape == 2:
        item.box((-width / 2, width / 2), (0.05, length), (0, top - 0.2), blanket)
    else:
        item.legs(width / 2 - 0.06, (0.1, length - 0.05), top - 0.3, frame, 0.07)
        item.box((-width / 2, width / 2), (0.03, length), (top - 0.32, top - 0.18), frame)
    if shape == 1:
        item.box((-width / 2, width / 2), (length, length + 0.06), (0.1, top + 0.15), frame)
    item.box((-width / 2 - 0.03, width / 2 + 0.03), (0, 0.07), (0.2, rng.uniform(0.9, 1.2)), frame)
    item.box((-width / 2 + 0.03, width / 2 - 0.03), (0.08, length - 0.03), (top - 0.18, top), linen)
    item.box((-width / 2 - 0.02, width / 2 + 0.02), (0.75, length + 0.01), (top - 0.22, top + 0.05), blanket)
    pillows = 1 if width < 1.3 else 2
    for index in range(pillows):
        x = (index - (pillows - 1) / 2) * width / 2
        profile = [(0.3, top), (0.33, top + 0.06), (0.24, top + 0.13), (0.0, top + 0.15)]
        item.turned(profile, (x, 0.38), linen, stretch=(1.0, 0.7))
    return item


def chair(rng: Generator) -> Furniture:
    """Make a dining chair with slats, an office chair, or an armchair; it looks along +y."""
    item = Furniture(rng, CHAIR)
    shape, half, seat = rng.integers(3), rng.uniform(0.2, 0.24), rng.uniform(0.42, 0.47)
    cloth, frame = material(rng, "cloth"), material(rng, "wood")
    if shape == 0:
        item.legs(half - 0.03, (0.03, 2 * half - 0.03), seat, frame, 0.04)
        item.box((-half, half), (0, 2 * half), (seat, seat + 0.05), cloth if rng.random() < 0.5 else frame)
        for x in np.linspace(-half + 0.03, half - 0.03, 4):
            item.box((x - 0.02, x + 0.02), (0, 0.04), (seat, seat + 0.48), frame)
        item.box((-half, half), (-0.01, 0.05), (seat + 0.4, seat + 0.5), frame)
    elif shape == 1:
        metal = material(rng, "metal")
        item.turned([(0.04, 0.1), (0.04, seat)], (0, half), metal)
        for angle in np.arange(5) * 2 * np.pi / 5:
            x, y = 0.28 * np.cos(angle), half + 0.28 * np.sin(angle)
            item.box((x - 0.04, x + 0.04), (y - 0.04, y + 0.04), (0, 0.08), metal)
            item.add(beam((0, half, 0.1), (x, y, 0.08), 0.04), metal)
        item.box((-half, half), (0, 2 * half), (seat, seat + 0.08), cloth)
        item.box((-half + 0.03, half - 0.03), (-0.05, 0.03), (seat + 0.18, seat + 0.62), cloth)
        for side in (-half, half):
            item.box((side - 0.03, side + 0.03), (0.1, 0.35), (seat + 0.2, seat + 0.24), metal)
            item.box((side - 0.02, side + 0.02), (0.2, 0.25), (seat, seat + 0.2), metal)
    else:
        half += 0.12
        item.legs(half - 0.05, (0.06, 2 * half - 0.06), 0.15, frame)
        item.box((-half, half), (0, 2 * half), (0.15, seat), cloth)
        item.box((-half, half), (0, 0.15), (seat, seat + 0.45), cloth)
        for side in (-half, half - 0.1):
            item.box((side, side + 0.1), (0, 2 * half), (seat, seat + 0.2), cloth)
    return item


def sofa(rng: Generator) -> Furniture:
    """Make a sofa with arms, a corner sofa, or one without arms."""
    item = Furniture(rng, SOFA)
    cloth, cushion, feet = material(rng, "cloth"), material(rng, "cloth"), material(rng, "wood")
    shape, width, depth, seat = rng.integers(3), rng.uniform(1.5, 2.2), rng.uniform(0.8, 0.95), rng.uniform(0.4, 0.45)
    cushion = cloth if rng.random() < 0.6 else cushion
    item.legs(width / 2 - 0.08, (0.08, depth - 0.08), 0.08, feet)
    item.box((-width / 2, width / 2), (0, depth), (0.08, seat - 0.12), cloth)
    item.box((-width / 2, width / 2), (0, 0.2), (seat - 0.12, seat + 0.4), cloth)
    arm = 0.0 if shape == 2 else 0.18
    for side in (-width / 2, width / 2 - arm) if arm else ():
        item.box((side, side + arm), (0, depth), (seat - 0.12, seat + 0.2), cloth)
    inner, seats = width - 2 * arm, 2 if width < 1.8 else 3
    for index in range(seats):
        x0 = -inner / 2 + index * inner / seats
        item.box((x0 + 0.01, x0 + inner / seats - 0.01), (0.2, depth + 0.02), (seat - 0.12, seat + 0.02), cushion)
        item.box((x0 + 0.02, x0 + inner / seats - 0.02), (0.18, 0.34), (seat, seat + 0.36), cushion)
    if shape == 1:
        side = 1 if rng.random() < 0.5 else -1
        edge = sorted((side * width / 2, side * (width / 2 - 0.75)))
        item.box((edge[0], edge[1]), (depth, depth + 0.65), (0.08, seat), cloth)
    return item


def table(rng: Generator) -> Furniture:
    """Make a dining table, a round table on one foot, or a low coffee table with a shelf; free-standing."""
    item = Furniture(rng, TABLE)
    look = material(rng, "wood")
    shape = rng.integers(3)
    width, depth, height = rng.uniform(1.1, 1.6), rng.uniform(0.75, 0.9), rng.uniform(0.71, 0.76)
    if shape == 0:
        item.box((-width / 2, width / 2), (0, depth), (height - 0.05, height), look)
        item.legs(width / 2 - 0.06, (0.06, depth - 0.06), height - 0.05, look, 0.07)
    elif shape == 1:
        radius = rng.uniform(0.45, 0.6)
        profile = [(0.3, 0.0), (0.3, 0.04), (0.06, 0.1), (0.06, height - 0.05)]
        profile += [(radius, height - 0.05), (radius, height), (0.0, height)]
        item.turned(profile, (0, radius), look)
    else:
        width, depth, height = rng.uniform(0.8, 1.2), rng.uniform(0.5, 0.65), rng.uniform(0.38, 0.46)
        item.box((-width / 2, width / 2), (0, depth), (height - 0.06, height), look)
        item.box((-width / 2 + 0.05, width / 2 - 0.05), (0.05, depth - 0.05), (0.12, 0.16), look)
        item.legs(width / 2 - 0.05, (0.05, depth - 0.05), height - 0.05, look, 0.06)
    return item


def desk(rng: Generator) -> Furniture:
    """Make a desk with drawers, with side panels, or with a hutch; a monitor and a keyboard stand on it."""
    item = Furniture(rng, DESK)
    look, metal = material(rng, "front"), material(rng, "metal")
    shape = rng.integers(3)
    width, depth, height = rng.uniform(1.1, 1.6), rng.uniform(0.6, 0.75), rng.uniform(0.71, 0.76)
    item.box((-width / 2, width / 2), (0, depth), (height - 0.04, height), look)
    item.box((-width / 2 + 0.05, width / 2 - 0.05), (0.03, 0.06), (0.3, height - 0.04), look)
    drawers = Furniture(rng, DESK)
    drawers.box((-0.2, 0.2), (0.05, depth - 0.08), (0.05, height - 0.04), look)
    fronts(drawers, 0.4, depth - 0.08, (0.08, height - 0.06), 1, 3, look, metal)
    for side in (-1, 1):
        if shape != 1 and (side == 1 or width > 1.45):
            for block, label, surface in zip(drawers.triangles, drawers.labels, drawers.materials, strict=True):
                item.add(block + np.array([side * (width / 2 - 0.22), 0, 0]), surface, label)
        else:
            edge = sorted((side * width / 2, side * (width / 2 - 0.05)))
            item.box((edge[0], edge[1]), (0.02, depth - 0.02), (0, height - 0.04), look)
    if shape == 2:
        item.box((-width / 2, width / 2), (0, 0.04), (height, height + 0.5), look)
        item.box((-width / 2, width / 2), (0, 0.24), (height + 0.46, height + 0.5), look)
    screen, x = material(rng, "screen"), rng.uniform(-0.15, 0.15)
    item.box((x - 0.26, x + 0.26), (0.2, 0.25), (height + 0.1, height + 0.42), screen, UNLABELLED)
    item.box((x - 0.1, x + 0.1), (0.14, 0.3), (height, height + 0.1), metal, UNLABELLED)
    item.box((x - 0.22, x + 0.22), (0.36, 0.5), (height, height + 0.03), metal, UNLABELLED)
    return item


def door(rng: Generator) -> Furniture:
    """Make a panelled, glazed or double door: a frame that stands out, a leaf set back, a handle."""
    item = Furniture(rng, DOOR, clearance=0.7)
    look, frame, metal = material(rng, "front"), material(rng, "wood"), material(rng, "metal")
    shape, height = rng.integers(3), rng.uniform(1.98, 2.1)
    half = rng.uniform(0.4, 0.46) if shape < 2 else rng.uniform(0.6, 0.7)
    item.opening = (-half, half, 0.0, height)
    reveal(item, item.opening, -0.14, frame)
    for side in (-half - 0.09, half):
        item.box((side, side + 0.09), (0, 0.05), (0, height + 0.09), frame)
    item.box((-half, half), (0, 0.05), (height, height + 0.09), frame)
    item.box((-half, half), (-0.14, -0.1), (0, height), look)
    leaves = [(-half, half)] if shape < 2 else [(-half, 0.0), (0.0, half)]
    for left, right in leaves:
        for low, high in ((0.15, 0.85), (1.05, height - 0.15)):
            glazed = shape == 1 and low > 1
            inset = material(rng, "outdoors") if glazed else look
            item.box((left + 0.13, right - 0.13), (-0.1, -0.1 if glazed else -0.06), (low, high), inset)
        x = right - 0.08 if (right > 0 and len(leaves) == 1) or left < 0 else left + 0.08
        item.box((x - 0.02, x + 0.02), (-0.1, 0.0), (0.98, 1.02), metal)
        item.box((x - 0.12, x + 0.02), (-0.02, 0.02), (0.97, 1.03), metal)
    return item


def window(rng: Generator) -> Furniture:
    """Make a window with one, two or four panes, recessed in the wall above a sill."""
    item = Furniture(rng, WINDOW)
    frame, sky = material(rng, "front"), material(rng, "outdoors")
    half, low, high = rng.uniform(0.45, 0.85), rng.uniform(0.85, 1.0), rng.uniform(1.95, 2.15)
    item.opening = (-half, half, low, high)
    reveal(item, item.opening, -0.2, frame)
    item.box((-half - 0.08, half + 0.08), (0, 0.12), (low - 0.05, low), frame)
    item.box((-half, half), (-0.2, -0.18), (low, high), sky)
    for side in (-half, half - 0.07):
        item.box((side, side + 0.07), (-0.18, -0.12), (low, high), frame)
    for level in (low, high - 0.07):
        item.box((-half, half), (-0.18, -0.12), (level, level + 0.07), frame)
    shape = rng.integers(3)
    if shape >= 1:
        item.box((-0.04, 0.04), (-0.18, -0.12), (low, high), frame)
    if shape == 2:
        middle = low + 0.6 * (high - low)
        item.box((-half, half), (-0.18, -0.12), (middle - 0.03, middle + 0.03), frame)
    return item


def bookshelf(rng: Generator) -> Furniture:
    """Make a tall, a low wide or a cube shelf, filled with books."""
    item = Furniture(rng, BOOKSHELF)
    look = material(rng, "wood")
    shape = rng.integers(3)
    width = (rng.uniform(0.7, 1.1), rng.uniform(1.2, 1.6), rng.uniform(0.9, 1.2))[shape]
    height = (rng.uniform(1.7, 2.0), rng.uniform(0.8, 1.1), rng.uniform(1.3, 1.6))[shape]
    depth, gap = rng.uniform(0.28, 0.36), rng.uniform(0.32, 0.4)
    item.box((-width / 2, width / 2), (0, 0.03), (0, height), look)
    bays = (1, 2, 3)[shape]
    for x in np.linspace(-width / 2, width / 2 - 0.03, bays + 1):
        item.box((x, x + 0.03), (0, depth), (0, height), look)
    levels = np.linspace(0.05, height - 0.03, max(3, int(height / gap) + 1))
    for level in levels:
        item.box((-width / 2, width / 2), (0, depth), (level, level + 0.03), look)
    for level, above in pairwise(levels):
        x = -width / 2 + 0.04
        while x < width / 2 - 0.1:
            thick = rng.uniform(0.03, 0.09)
            if rng.random() < 0.85:
                tall = min(rng.uniform(0.2, 0.3), above - level - 0.05)
                deep = rng.uniform(0.15, depth - 0.04)
                item.box((x, x + thick), (0.03, 0.03 + deep), (level + 0.03, level + 0.03 + tall), _book(rng))
            x += thick + rng.uniform(0, 0.01)
    return item


def picture(rng: Generator) -> Furniture:
    """Make a landscape, a portrait or a row of three: a canvas in a frame that stands off the wall."""
    item = Furniture(rng, PICTURE)
    frame = material(rng, "wood")
    shape, middle = rng.integers(3), rng.uniform(1.45, 1.65)
    wide, tall = ((rng.uniform(0.4, 0.6), 0.28), (0.27, rng.uniform(0.35, 0.5)), (0.18, 0.26))[shape]
    for x in (-0.45, 0.0, 0.45) if shape == 2 else (0.0,):
        item.box((x - wide, x + wide), (0.02, 0.06), (middle - tall, middle + tall), frame)
        canvas = material(rng, "painting")
        item.box((x - wide + 0.04, x + wide - 0.04), (0.05, 0.07), (middle - tall + 0.04, middle + tall - 0.04), canvas)
    return item


def counter(rng: Generator) -> Furniture:
    """Make a worktop with a splashback on base cabinets, with or without a sink in it, or a tall bar."""
    item = Furniture(rng, COUNTER)
    look, stone, metal = material(rng, "front"), material(rng, "stone"), material(rng, "metal")
    width, depth = rng.uniform(1.4, 2.4), rng.uniform(0.58, 0.65)
    shape = rng.integers(3)
    height = 0.9 if shape < 2 else 1.05
    if shape == 2:
        item.box((-width / 2, width / 2), (0.05, 0.15), (0, height - 0.06), stone)
        item.box((-width / 2, width / 2), (0, depth), (height - 0.08, height), stone)
        return item
    item.box((-width / 2, width / 2), (0, depth - 0.08), (0.1, height - 0.06), look, CABINET)
    columns = round(width / 0.5)
    fronts(item, width, depth - 0.08, (0.12, height - 0.08), columns, 1 + int(rng.integers(2)), look, metal, CABINET)
    item.box((-width / 2, width / 2), (0, 0.05), (height, height + 0.25), stone)
    middle = rng.uniform(-width / 4, width / 4) if shape == 1 else None
    if middle is None:
        item.box((-width / 2, width / 2), (0, depth), (height - 0.06, height), stone)
        return item
    left, right = middle - 0.26, middle + 0.26
    item.box((-width / 2, left), (0, depth), (height - 0.06, height), stone)
    item.box((right, width / 2), (0, depth), (height - 0.06, height), stone)
    item.box((left, right), (0, 0.12), (height - 0.06, height), stone)
    item.box((left, right), (depth - 0.1, depth), (height - 0.06, height), stone)
    basin(item, (left, right), (0.12, depth - 0.1), height + 0.01, 0.18, metal, SINK)
    tap(item, middle, 0.08, height, metal, SINK)
    return item


def curtain(rng: Generator) -> Furniture:
    """Make a pair of curtains, a single one or a short pair, folded in waves under a rod, to hang before a window."""
    item = Furniture(rng, CURTAIN)
    cloth, metal = material(rng, "curtain"), material(rng, "metal")
    shape, half, top = rng.integers(3), rng.uniform(0.6, 1.0), rng.uniform(2.2, 2.35)
    low = 0.06 if shape < 2 else rng.uniform(0.7, 0.85)
    drawn, wavelength = rng.uniform(0.3, 0.5), rng.uniform(0.16, 0.26)
    item.box((-half - 0.1, half + 0.1), (0.18, 0.22), (top, top + 0.04), metal)
    item.wave((-half - 0.05, -half + drawn), (low, top), 0.2, wavelength, cloth)
    if shape != 1:
        item.wave((half - drawn, half + 0.05), (low, top), 0.2, wavelength, cloth)
    return item


def refrigerator(rng: Generator) -> Furniture:
    """Make a fridge with the freezer above or below, side by side, or a small one; long handles."""
    item = Furniture(rng, REFRIGERATOR)
    look, metal = material(rng, "appliance"), material(rng, "metal")
    shape = rng.integers(3)
    width = (rng.uniform(0.6, 0.7), rng.uniform(0.85, 0.95), rng.uniform(0.55, 0.6))[shape]
    depth = rng.uniform(0.65, 0.75)
    height = (rng.uniform(1.65, 1.85), rng.uniform(1.75, 1.9), rng.uniform(1.2, 1.4))[shape]
    item.box((-width / 2, width / 2), (0.03, depth - 0.1), (0.05, height), look)
    split = rng.uniform(0.35, 0.7) * height
    if shape == 1:
        doors = [((-width / 2, -0.01), (0.08, height - 0.01)), ((0.01, width / 2), (0.08, height - 0.01))]
    else:
        doors = [((-width / 2, width / 2), (0.08, split - 0.015)), ((-width / 2, width / 2), (split + 0.015, height))]
    for x, z in doors:
        item.box(x, (depth - 0.09, depth), z, look)
        grip = x[1] - 0.07 if x[0] < 0 and shape == 1 else x[0] + 0.07
        low, high = z[0] + 0.15 * (z[1] - z[0]), z[1] - 0.15 * (z[1] - z[0])
        item.box((grip - 0.02, grip + 0.02), (depth + 0.03, depth + 0.07), (low, high), metal)
        for end in (low, high - 0.03):
            item.box((grip - 0.02, grip + 0.02), (depth, depth + 0.04), (end, end + 0.03), metal)
    return item


def bathtub(rng: Generator) -> Furniture:
    """Make a built-in, a free-standing oval or a panelled tub, with a shower curtain on a rod before it or not."""
    item = Furniture(rng, BATHTUB)
    white, metal = material(rng, "ceramic"), material(rng, "metal")
    length, depth, height = rng.uniform(1.5, 1.8), rng.uniform(0.7, 0.8), rng.uniform(0.5, 0.6)
    shape = rng.integers(3)
    if shape == 1:
        half = length / 2
        outer = [(half * 0.75, 0.0), (half, height), (half * 0.92, height), (half * 0.65, 0.15), (0.0, 0.12)]
        item.turned(outer, (0, depth / 2), white, stretch=(1.0, depth / length))
    else:
        panel = white if shape == 0 else material(rng, "front")
        item.box((-length / 2, length / 2), (depth - 0.06, depth), (0, height), panel)
        for side in (-length / 2, length / 2 - 0.08):
            item.box((side, side + 0.08), (0, depth), (0, height), white)
        item.box((-length / 2, length / 2), (0, 0.08), (0, height), white)
        item.box((-length / 2, length / 2), (depth - 0.1, depth + 0.02), (height - 0.05, height), white)
        item.box((-length / 2, length / 2), (0, depth), (0.1, 0.14), white)
    tap(item, -length / 2 + 0.3, 0.08, height, metal, BATHTUB)
    cloth, top = Furniture(rng, SHOWER_CURTAIN), rng.uniform(1.95, 2.1)
    drape = rng.integers(3)
    spans = ([(-length / 2, length / 2)], [(-length / 2, 0.0)], [(-length / 2, -0.2), (0.35, length / 2)])[drape]
    look, wavelength = material(rng, "shower"), rng.uniform(0.12, 0.18)
    for x in spans:
        cloth.wave(x, (0.25, top), depth + 0.05, wavelength, look)
    cloth.box((-length / 2, length / 2), (depth + 0.03, depth + 0.07), (top, top + 0.04), metal)
    for block, surface in zip(cloth.triangles, cloth.materials, strict=True):
        item.add(block, surface, SHOWER_CURTAIN)
    return item


def toilet(rng: Generator) -> Furniture:
    """Make a toilet with a tank, hung from the wall, or with its lid up."""
    item = Furniture(rng, TOILET)
    white, shape, seat = material(rng, "ceramic"), rng.integers(3), rng.uniform(0.4, 0.44)
    foot = 0.0 if shape != 1 else 0.14
    profile = [(0.12, foot), (0.13, foot + 0.12), (0.2, seat - 0.08), (0.21, seat)]
    profile += [(0.14, seat), (0.1, seat - 0.15), (0.0, seat - 0.18)]
    item.turned(profile, (0, 0.45), white, stretch=(0.9, 1.25))
    item.box((-0.12, 0.12), (0.0, 0.3), (foot, seat - 0.05), white)
    if shape != 1:
        item.box((-0.2, 0.2), (0, 0.18), (seat - 0.04, seat + 0.38), white)
        item.box((-0.21, 0.21), (0, 0.2), (seat + 0.38, seat + 0.42), white)
    else:
        item.box((-0.25, 0.25), (0, 0.14), (0, 1.1), white)
    if shape == 2:
        item.box((-0.19, 0.19), (0.2, 0.24), (seat, seat + 0.42), white)
    else:
        item.turned([(0.2, seat), (0.2, seat + 0.04), (0.0, seat + 0.04)], (0, 0.45), white, stretch=(0.9, 1.25))
    return item


def sink(rng: Generator) -> Furniture:
    """Make a wash-basin on a pedestal, on a cabinet, or a bowl on a shelf."""
    item = Furniture(rng, SINK)
    white, metal, look = material(rng, "ceramic"), material(rng, "metal"), material(rng, "front")
    shape, half, top = rng.integers(3), rng.uniform(0.26, 0.36), rng.uniform(0.8, 0.88)
    if shape == 0:
        item.turned([(0.13, 0), (0.08, 0.2), (0.1, top - 0.15)], (0, 0.2), white)
    elif shape == 1:
        item.box((-half, half), (0, 0.42), (0.1, top - 0.16), look, CABINET)
        fronts(item, 2 * half, 0.42, (0.12, top - 0.18), 2, 1, look, metal, CABINET)
    else:
        item.box((-half - 0.15, half + 0.15), (0, 0.48), (top - 0.2, top - 0.14), look, CABINET)
    if shape == 2:
        bowl = [(0.12, top - 0.14), (0.22, top + 0.02), (0.2, top + 0.02), (0.1, top - 0.08), (0.0, top - 0.1)]
        item.turned(bowl, (0, 0.24), white)
    else:
        basin(item, (-half, half), (0.02, 0.46), top, 0.15, white, SINK)
    tap(item, 0.0, 0.05, top, metal, SINK)
    return item


def clutter(rng: Generator) -> Furniture:
    """Make other furniture: a floor lamp, a plant in a pot, a waste bin or a radiator."""
    item = Furniture(rng, OTHER)
    shape, metal, cloth = rng.integers(4), material(rng, "metal"), material(rng, "linen")
    if shape == 0:
        floor_lamp(item, metal, cloth)
    elif shape == 1:
        potted_plant(item, item.label)
    elif shape == 2:
        waste_bin(item, metal)
    else:
        radiator(item, cloth)
    return item


SHAPES: dict[str, Callable[[Generator], Furniture]] = {
    make.__name__: make
    for make in (
        wardrobe, dresser, sideboard, wall_cabinet, bed, chair, sofa, table, desk, door, window, bookshelf, picture,
        counter, curtain, refrigerator, bathtub, toilet, sink, clutter,
    )
}  # fmt: skip
"""Every object that a room may hold, by name."""


def _book(rng: Generator) -> Material:
    """Draw the colour of a book's spine."""
    color = rgb(rng.random(), rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8))
    return Material(0, color, color, 0.3, 0.0)
