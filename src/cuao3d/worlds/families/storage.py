"""Families of shapes that hold things: cabinets, shelves, tables, desks, counters, crates and vessels."""

from itertools import pairwise

import numpy as np

from cuao3d.worlds.joinery import CLASS, Furniture, Generator, Material, Plan, basin, beam, fronts, material, rgb, tap


def cabinet(item: Furniture, plan: Plan) -> None:
    """Make a cabinet with doors or drawers, on the floor or on the wall.

    Options: low (height of its underside), legs, door (width of a door), drawer (height of a drawer), top (a board that
    juts out), slant.
    """
    half, deep, look, dark, metal = plan.width / 2, plan.depth, plan.look(0), plan.look(1), plan.look(2)
    low, high = plan.number("low", 0.0), plan.number("low", 0.0) + plan.height
    foot = low
    if plan.has("legs"):
        foot = low + 0.12
        item.legs(half - 0.05, (0.05, deep - 0.1), foot, dark)
    elif low == 0:
        foot = 0.1
        item.box((-half + 0.04, half - 0.04), (0.05, deep - 0.12), (0, foot), dark)
    board = 0.05 if plan.has("top") else 0.0
    item.box((-half, half), (0, deep - 0.05), (foot, high - board), dark)
    if board:
        item.box((-half - 0.03, half + 0.03), (0, deep), (high - board, high), look)
    columns = max(1, round(plan.width / plan.number("door", plan.width)))
    rows = max(1, int(plan.height / plan.number("drawer", plan.height)))
    fronts(item, plan.width, deep - 0.05, (foot + 0.02, high - board - 0.02), columns, rows, look, metal)
    if plan.has("vents"):
        for x in np.arange(-half + 0.1, half, plan.number("door", plan.width)):
            for z in (high - 0.3, high - 0.24):
                item.box((x, x + 0.12), (deep - 0.01, deep + 0.005), (z, z + 0.02), dark)
    if low < 0.5:
        item.top = (-half, half, 0, deep - 0.05, high)


def shelf(item: Furniture, plan: Plan) -> None:
    """Make open shelves with things on them, on the floor or on the wall.

    Options: holds (books, shoes or mixed), bays, gap (between boards), low (height of the lowest board), open (no back
    and no sides).
    """
    half, deep, look = plan.width / 2, plan.depth, plan.look(0)
    low, high, gap = plan.number("low", 0.0), plan.number("low", 0.0) + plan.height, plan.number("gap", 0.36)
    if not plan.has("open"):
        item.box((-half, half), (0, 0.03), (low, high), look)
        for x in np.linspace(-half, half - 0.03, int(plan.number("bays", 1)) + 1):
            item.box((x, x + 0.03), (0, deep), (low, high), look)
    elif low == 0:
        item.legs(half - 0.03, (0.03, deep - 0.03), high, look, 0.04)
    levels = np.linspace(low + (0.05 if low == 0 else 0), high - 0.03, max(2, int(plan.height / gap) + 1))
    for level in levels:
        item.box((-half, half), (0, deep), (level, level + 0.03), look)
    ceilings = [*levels[1:], levels[-1] + gap] if plan.has("open") else list(levels[1:])
    for level, above in zip(levels, ceilings, strict=False):
        _fill(item, plan.word("holds", "mixed"), (-half + 0.04, half - 0.06), deep, level + 0.03, above - 0.02)


def _fill(item: Furniture, holds: str, x: tuple[float, float], deep: float, low: float, high: float) -> None:
    """Put things on a board between two heights; they belong to the shelf."""
    rng, at = item.rng, x[0]
    while at < x[1] - 0.1:
        if holds == "books":
            thick, tall = rng.uniform(0.03, 0.09), min(rng.uniform(0.2, 0.3), high - low)
            if rng.random() < 0.85:
                item.box((at, at + thick), (0.03, 0.03 + rng.uniform(0.15, deep - 0.04)), (low, low + tall), _book(rng))
            at += thick + rng.uniform(0, 0.01)
        elif holds == "shoes":
            if rng.random() < 0.85:
                look = material(rng, "cloth")
                item.box((at, at + 0.09), (0.04, deep - 0.01), (low, low + 0.05), look)
                item.box((at, at + 0.09), (0.04, 0.14), (low, low + min(0.1, high - low)), look)
            at += 0.12
        else:
            stuff = rng.integers(4)
            if stuff == 0:
                vessel_on(item, at + 0.08, deep / 2, low, 0.6, item.label)
            elif stuff == 1:
                item.box((at, at + 0.17), (0.03, deep - 0.03), (low, low + 0.14), material(rng, "wood"))
            elif stuff == 2:
                item.box((at, at + 0.2), (0.02, min(0.17, deep)), (low, low + min(0.2, high - low)), _book(rng))
            at += 0.25


def table(item: Furniture, plan: Plan) -> None:
    """Make a table on legs, a foot, panels or crossed legs.

    Options: base, round, shelf, rim (a raised edge of this height around the top), net, mirror, drawers (on one side),
    hutch, rack (a board with tools), thick.
    """
    half, deep, high, look = plan.width / 2, plan.depth, plan.height, plan.look(0)
    thick, base = plan.number("thick", 0.05), plan.word("base", "legs")
    low = high - thick
    if base == "foot":
        item.turned([(half * 0.6, 0.0), (half * 0.6, 0.04), (0.06, 0.1), (0.06, low)], (0, deep / 2), look)
    elif base == "panels":
        item.box((-half + 0.05, half - 0.05), (0.03, 0.06), (0.3, low), look)
        for x in (-half, half - 0.05):
            item.box((x, x + 0.05), (0.02, deep - 0.02), (0, low), look)
    elif base == "cross":
        for y in (0.08, deep - 0.08):
            item.add(beam((-half * 0.6, y, 0), (half * 0.4, y, low), 0.04), plan.look(1))
            item.add(beam((half * 0.6, y, 0), (-half * 0.4, y, low), 0.04), plan.look(1))
    else:
        item.legs(half - 0.06, (0.06, deep - 0.06), low, plan.look(1), plan.number("leg", 0.07))
    if plan.has("round"):
        item.turned([(half, low), (half, high), (0.0, high)], (0, deep / 2), look, stretch=(1.0, deep / plan.width))
    else:
        item.box((-half, half), (0, deep), (low, high), look)
    if plan.has("tip"):  # the narrow end of an ironing board
        item.turned([(deep / 2, low), (deep / 2, high), (0.0, high)], (half, deep / 2), look)
    if plan.has("shelf"):
        item.box((-half + 0.05, half - 0.05), (0.05, deep - 0.05), (0.14, 0.18), look)
    _on_table(item, plan, half, deep, high)
    if not (plan.has("rim") or plan.has("net") or plan.has("tip")):
        item.top = (-half, half, 0.22 if plan.has("hutch") or plan.has("mirror") else 0.0, deep, high)


def _on_table(item: Furniture, plan: Plan, half: float, deep: float, high: float) -> None:
    """Add what a table has besides its top and what carries it."""
    look, metal = plan.look(0), plan.look(1)
    if plan.has("rim"):
        rise, frame = plan.number("rim", 0.05), plan.look(2)
        for x in (-half, half - 0.12):
            item.box((x, x + 0.12), (0, deep), (high - 0.15, high + rise), frame)
        for y in (0.0, deep - 0.12):
            item.box((-half, half), (y, y + 0.12), (high - 0.15, high + rise), frame)
    if plan.has("net"):
        item.box((-0.01, 0.01), (-0.1, deep + 0.1), (high, high + 0.16), material(item.rng, "metal"))
    if plan.has("drawers"):
        drawers = Furniture(item.rng, item.label)
        drawers.box((-0.2, 0.2), (0.05, deep - 0.08), (0.05, high - 0.04), look)
        fronts(drawers, 0.4, deep - 0.08, (0.08, high - 0.06), 1, 3, look, metal)
        sides = (-1, 1) if plan.width > 1.45 else (1,)
        for side in sides:
            for block, label, surface in zip(drawers.triangles, drawers.labels, drawers.materials, strict=True):
                item.add(block + np.array([side * (half - 0.22), 0, 0]), surface, label)
    if plan.has("hutch"):
        item.box((-half, half), (0, 0.04), (high, high + 0.5), look)
        item.box((-half, half), (0, 0.2), (high + 0.46, high + 0.5), look)
    if plan.has("mirror"):
        item.box((-half * 0.6, half * 0.6), (0, 0.04), (high, high + 0.65), look)
        item.box((-half * 0.55, half * 0.55), (0.03, 0.05), (high + 0.05, high + 0.6), material(item.rng, "glass"))
    if plan.has("rack"):
        item.box((-half, half), (0, 0.03), (high + 0.25, high + 0.85), look)
        for x in np.arange(-half + 0.12, half - 0.08, 0.17):
            tool = high + item.rng.uniform(0.3, 0.5)
            item.box((x - 0.02, x + 0.02), (0.03, 0.06), (tool, tool + 0.25), material(item.rng, "metal"))
        item.box((half - 0.3, half - 0.15), (deep - 0.12, deep + 0.06), (high, high + 0.14), metal)


def counter(item: Furniture, plan: Plan) -> None:
    """Make a worktop on base cabinets, with a sink in it or not, or a bar. Options: sink, bar."""
    half, deep, high, look, stone, metal = (
        plan.width / 2, plan.depth, plan.height, plan.look(0), plan.look(1), plan.look(2),
    )  # fmt: skip
    if plan.has("bar"):
        item.box((-half, half), (0.05, 0.15), (0, high - 0.06), stone)
        item.box((-half, half), (0, deep), (high - 0.08, high), stone)
        item.top = (-half, half, 0, deep, high)
        return
    cabinet_ = CLASS["cabinet"]
    item.box((-half, half), (0, deep - 0.08), (0.1, high - 0.06), look, cabinet_)
    rows = 1 + int(item.rng.integers(2))
    fronts(item, plan.width, deep - 0.08, (0.12, high - 0.08), round(plan.width / 0.5), rows, look, metal, cabinet_)
    item.box((-half, half), (0, 0.05), (high, high + 0.25), stone)
    if not plan.has("sink"):
        item.box((-half, half), (0, deep), (high - 0.06, high), stone)
        item.top = (-half, half, 0.06, deep, high)
        return
    middle = item.rng.uniform(-half / 2, half / 2)
    left, right = middle - 0.26, middle + 0.26
    item.box((-half, left), (0, deep), (high - 0.06, high), stone)
    item.box((right, half), (0, deep), (high - 0.06, high), stone)
    item.box((left, right), (0, 0.12), (high - 0.06, high), stone)
    item.box((left, right), (deep - 0.1, deep), (high - 0.06, high), stone)
    basin(item, (left, right), (0.12, deep - 0.1), high + 0.01, 0.18, metal, CLASS["sink"])
    tap(item, middle, 0.08, high, metal, CLASS["sink"])


def crate(item: Furniture, plan: Plan) -> None:
    """Make a box, a pile of boxes, a chest with a round lid, or a suitcase. Options: pile, lid, handle."""
    half, deep, high, look = plan.width / 2, plan.depth, plan.height, plan.look(0)
    low = 0.0
    for _ in range(int(plan.number("pile", 1))):
        item.box((-half, half), (0.02, 0.02 + deep), (low, low + high), look)
        low, half, deep, look = low + high, half * 0.85, deep * 0.9, material(item.rng, plan.style(0))
    if plan.has("lid"):
        half, deep = plan.width / 2, plan.depth
        arc = [(np.cos(angle), np.sin(angle)) for angle in np.linspace(0, np.pi, 9)]
        for (a, b), (c, d) in pairwise(arc):
            y, z, next_y, next_z = a * deep / 2, b * 0.16, c * deep / 2, d * 0.16
            quad = np.array(
                [
                    [-half, deep / 2 + 0.02 + y, high + z],
                    [half, deep / 2 + 0.02 + y, high + z],
                    [half, deep / 2 + 0.02 + next_y, high + next_z],
                    [-half, deep / 2 + 0.02 + next_y, high + next_z],
                ]
            )
            item.add(np.array([quad[[0, 1, 2]], quad[[0, 2, 3]]]), plan.look(0))
        for x in (-half + 0.08, half - 0.12):
            item.box((x, x + 0.04), (0, deep + 0.04), (0, high + 0.02), plan.look(1))
        item.box((-0.05, 0.05), (deep, deep + 0.05), (high - 0.1, high), plan.look(1))
    if plan.has("handle"):
        half, deep = plan.width / 2, plan.depth
        for x in (-half * 0.4, half * 0.4):
            item.box((x - 0.01, x + 0.01), (deep / 2, deep / 2 + 0.02), (high, high + 0.3), plan.look(1))
        item.box(
            (-half * 0.45, half * 0.45), (deep / 2 - 0.01, deep / 2 + 0.03), (high + 0.28, high + 0.32), plan.look(1)
        )
        for x in np.arange(-half + 0.06, half - 0.04, 0.09):
            item.box((x, x + 0.02), (deep, deep + 0.035), (0.06, high - 0.04), plan.look(0))


def vessel(item: Furniture, plan: Plan) -> None:
    """Make an open bin or basket, or a vase. Options: belly (how much wider than its foot), waist, lid."""
    radius, high, look = plan.width / 2, plan.height, plan.look(0)
    middle = (0, radius + 0.02)
    belly = plan.number("belly", 1.25)
    if plan.has("square"):
        for x in (-radius, radius - 0.02):
            item.box((x, x + 0.02), (0, plan.depth), (0, high), look)
        for y in (0.0, plan.depth - 0.02):
            item.box((-radius, radius), (y, y + 0.02), (0, high), look)
        item.box((-radius, radius), (0, plan.depth), (0, 0.03), look)
        if plan.has("lid"):
            item.box((-radius - 0.01, radius + 0.01), (-0.01, plan.depth + 0.01), (high, high + 0.06), plan.look(1))
        return
    if plan.has("waist"):
        rim = [(radius * 0.6, 0), (radius, 0.35), (radius * 0.4, 0.8), (radius * 0.75, 1.0)]
        item.turned([(0.0, 0.0), *((r, z * high) for r, z in rim), (0.0, 0.8 * high)], middle, look)
        return
    foot = radius / belly
    profile = [(foot, 0), (radius, high), (radius * 0.88, high), (foot * 0.85, 0.05), (0.0, 0.05)]
    item.turned(profile, middle, look)
    if plan.has("lid"):
        item.turned([(radius, high), (radius * 0.8, high + 0.08), (0.0, high + 0.1)], middle, plan.look(1))


def vessel_on(item: Furniture, x: float, y: float, z: float, scale: float, label: int) -> None:
    """Add a small vase or pot that stands at a position."""
    look, tall = material(item.rng, "vessel"), scale * item.rng.uniform(0.22, 0.32)
    radii = (0.05, 0.08, 0.035, 0.06) if item.rng.random() < 0.5 else (0.07, 0.12, 0.12, 0.1)
    profile = [(scale * radius, z + part * tall) for radius, part in zip(radii, (0, 0.4, 0.8, 1), strict=True)]
    item.turned([(0.0, z), *profile, (0.0, z + 0.8 * tall)], (x, y), look, label)


def _book(rng: Generator) -> Material:
    """Draw the colour of a book's spine."""
    color = rgb(rng.random(), rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8))
    return Material(0, color, color, 0.3, 0.0)
