"""Families of shapes to sit and lie on: seats of every kind, beds, cribs."""

import itertools

import numpy as np

from cuao3d.worlds.joinery import CLASS, Furniture, Plan, beam, material


def seat(item: Furniture, plan: Plan) -> None:
    """Make a seat on legs, a block, a foot, wheels or rockers; `height` is that of the seat.

    Options: base, back, slats, arms (their height), round, seats (cushions in a row), corner, thick.
    """
    half, deep, top, soft = plan.width / 2, plan.depth, plan.height, plan.look(0)
    thick = plan.number("thick", 0.05)
    _base(item, plan, top - thick)
    arm = 0.1 if plan.has("arms") else 0.0
    num_cushions = int(plan.number("seats", 1))
    if plan.has("round"):
        item.turned([(half, top - thick), (half, top), (0.0, top + 0.01)], (0, deep / 2), soft)
    else:
        inner = 2 * (half - arm)
        for index in range(num_cushions):
            left = -half + arm + index * inner / num_cushions
            gap = 0.01 if num_cushions > 1 else 0.0
            item.box((left + gap, left + inner / num_cushions - gap), (0, deep), (top - thick, top), soft)
    if plan.has("back"):
        _back(item, plan, half, top)
    if plan.has("arms"):
        _arms(item, plan, half, top, arm)
    if plan.has("corner"):
        side = 1 if item.rng.random() < 0.5 else -1
        edge = sorted((side * half, side * (half - 0.75)))
        item.box((edge[0], edge[1]), (deep, deep + 0.65), (0.08, top), soft)
    if plan.has("pillows"):
        for x in item.rng.uniform(-half + 0.3, half - 0.3, int(item.rng.integers(1, 4))):
            profile = [(0.0, top), (0.17, top + 0.03), (0.2, top + 0.18), (0.17, top + 0.34), (0.0, top + 0.37)]
            item.turned(profile, (x, 0.32), material(item.rng, "cloth"), CLASS["pillow"], stretch=(1.0, 0.4))


def _base(item: Furniture, plan: Plan, top: float) -> None:
    """Add what carries a seat, up to `top`."""
    half, deep, frame, base = plan.width / 2, plan.depth, plan.look(1), plan.word("base", "legs")
    if base == "block":
        item.legs(half - 0.06, (0.06, deep - 0.06), 0.08, frame)
        item.box((-half, half), (0, deep), (0.08, top), plan.look(0))
    elif base == "foot":
        item.turned([(half, 0.0), (half * 0.9, 0.03), (0.03, 0.05), (0.03, top)], (0, deep / 2), frame)
    elif base == "wheels":
        item.turned([(0.04, 0.1), (0.04, top)], (0, deep / 2), frame)
        for angle in np.arange(5) * 2 * np.pi / 5:
            x, y = 0.28 * np.cos(angle), deep / 2 + 0.28 * np.sin(angle)
            item.box((x - 0.04, x + 0.04), (y - 0.04, y + 0.04), (0, 0.08), frame)
            item.add(beam((0, deep / 2, 0.1), (x, y, 0.08), 0.04), frame)
    else:
        thick = plan.number("leg", 0.04)
        item.legs(half - 0.03, (0.03, deep - 0.03), top, frame, thick)
        if base == "rockers":
            for side in (-half + 0.03, half - 0.03):
                bend = [(-0.18, 0.12), (deep * 0.3, 0.02), (deep * 0.7, 0.02), (deep + 0.12, 0.1)]
                for (y, z), (next_y, next_z) in itertools.pairwise(bend):
                    item.add(beam((side, y, z), (side, next_y, next_z), 0.05), frame)
        elif plan.has("rungs"):
            item.box((-half, half), (deep - 0.05, deep - 0.02), (top * 0.35, top * 0.35 + 0.03), frame)
            item.box((-half, half), (0.02, 0.05), (top * 0.35, top * 0.35 + 0.03), frame)


def _back(item: Furniture, plan: Plan, half: float, top: float) -> None:
    """Add a back: a board, slats, or a cushion that leans on it."""
    tall, frame, thick = plan.number("back", 0.4), plan.look(1), plan.number("backthick", 0.05)
    if plan.has("slats"):
        for x in np.linspace(-half + 0.03, half - 0.03, 4):
            item.box((x - 0.02, x + 0.02), (0, 0.04), (top, top + tall - 0.02), frame)
        item.box((-half, half), (-0.01, 0.05), (top + tall - 0.1, top + tall), frame)
        return
    low = top + plan.number("gap", 0.0)
    item.box((-half, half), (0, thick), (low, top + tall), plan.look(0))


def _arms(item: Furniture, plan: Plan, half: float, top: float, wide: float) -> None:
    """Add arms: blocks beside an upholstered seat, else a rest on a post."""
    tall, deep = plan.number("arms", 0.2), plan.depth
    for side in (-half, half - wide):
        if plan.word("base", "legs") == "block":
            item.box((side, side + wide), (0, deep), (0.08, top + tall), plan.look(0))
        else:
            middle = side + wide / 2
            item.box((middle - 0.03, middle + 0.03), (0.05, deep - 0.08), (top + tall - 0.04, top + tall), plan.look(1))
            item.box((middle - 0.02, middle + 0.02), (deep - 0.14, deep - 0.09), (top, top + tall), plan.look(1))


def bed(item: Furniture, plan: Plan) -> None:
    """Make a bed of one or two tiers with mattress, blanket and pillows; its head is at the wall.

    Options: base (legs or block), foot (a footboard), tiers (2: a bunk bed with a ladder).
    """
    half, length, frame = plan.width / 2, plan.depth, plan.look(0)
    linen, blanket = plan.look(1), plan.look(2)
    tiers = int(plan.number("tiers", 1))
    tops = [plan.height] if tiers == 1 else [0.42, 1.45]
    if plan.word("base", "legs") == "block":
        item.box((-half, half), (0.05, length), (0, tops[0] - 0.2), blanket)
    else:
        item.legs(half - 0.06, (0.1, length - 0.05), tops[0] - 0.3 if tiers == 1 else tops[-1] + 0.3, frame, 0.07)
    for top in tops:
        item.box((-half, half), (0.03, length), (top - 0.32, top - 0.18), frame)
        item.box((-half + 0.03, half - 0.03), (0.08, length - 0.03), (top - 0.18, top), linen)
        item.box((-half - 0.02, half + 0.02), (0.75, length + 0.01), (top - 0.22, top + 0.05), blanket)
        _pillows(item, half, top, linen)
    if tiers > 1:
        item.box((-half, half), (length - 0.03, length + 0.02), (tops[1], tops[1] + 0.25), frame)
        for rung in np.arange(0.25, tops[1], 0.28):
            item.box((half, half + 0.05), (length - 0.55, length - 0.15), (rung, rung + 0.04), frame)
        for y in (length - 0.57, length - 0.15):
            item.box((half, half + 0.05), (y, y + 0.04), (0, tops[1] + 0.2), frame)
    else:
        item.box((-half - 0.03, half + 0.03), (0, 0.07), (0.2, item.rng.uniform(0.9, 1.2)), frame)
    if plan.has("foot"):
        item.box((-half, half), (length, length + 0.06), (0.1, tops[-1] + 0.15), frame)


def _pillows(item: Furniture, half: float, top: float, linen: object) -> None:
    """Lay one or two pillows at the head of a bed."""
    count = 1 if half < 0.65 else 2
    for index in range(count):
        x = (index - (count - 1) / 2) * half
        profile = [(0.3, top), (0.33, top + 0.06), (0.24, top + 0.13), (0.0, top + 0.15)]
        item.turned(profile, (x, 0.38), linen, CLASS["pillow"], stretch=(1.0, 0.7))  # type: ignore[arg-type]


def crib(item: Furniture, plan: Plan) -> None:
    """Make a small bed behind bars on all sides."""
    half, deep, high, frame = plan.width / 2, plan.depth, plan.height, plan.look(0)
    item.legs(half - 0.03, (0.03, deep - 0.03), high, frame, 0.06)
    item.box((-half + 0.03, half - 0.03), (0.03, deep - 0.03), (0.3, 0.42), plan.look(1))
    for y in (0.0, deep - 0.04):
        for level in (0.26, high - 0.05):
            item.box((-half, half), (y, y + 0.04), (level, level + 0.05), frame)
        for x in np.arange(-half + 0.08, half - 0.05, 0.11):
            item.box((x, x + 0.025), (y + 0.01, y + 0.03), (0.3, high - 0.04), frame)
    for x in (-half, half - 0.04):
        item.box((x, x + 0.04), (0, deep), (0.26, high), frame)
