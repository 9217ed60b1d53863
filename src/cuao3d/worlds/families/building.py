"""Families of shapes that belong to a building: openings, stairs, columns, and what hangs on walls and ceilings."""

import numpy as np

from cuao3d.worlds.joinery import CLASS, Furniture, Plan, beam, material, reveal


def door(item: Furniture, plan: Plan) -> None:
    """Make a door: a frame that stands out, leaves set back, handles. Options: glazed, leaves."""
    look, frame, metal, height, half = plan.look(0), plan.look(1), plan.look(2), plan.height, plan.width / 2
    item.clearance, item.opening = 0.7, (-half, half, 0.0, height)
    reveal(item, item.opening, -0.14, frame)
    for side in (-half - 0.09, half):
        item.box((side, side + 0.09), (0, 0.05), (0, height + 0.09), frame)
    item.box((-half, half), (0, 0.05), (height, height + 0.09), frame)
    item.box((-half, half), (-0.14, -0.1), (0, height), look)
    leaves = [(-half, 0.0), (0.0, half)] if plan.has("leaves") else [(-half, half)]
    for left, right in leaves:
        for low, high in ((0.15, 0.85), (1.05, height - 0.15)):
            glazed = plan.has("glazed") and low > 1
            inset = material(item.rng, "outdoors") if glazed else look
            front = -0.095 if glazed else -0.06  # off the leaf, so that a ray meets one of them first
            item.box((left + 0.13, right - 0.13), (-0.1, front), (low, high), inset)
        x = right - 0.08 if (right > 0 and len(leaves) == 1) or left < 0 else left + 0.08
        item.box((x - 0.02, x + 0.02), (-0.1, 0.0), (0.98, 1.02), metal)
        item.box((x - 0.12, x + 0.02), (-0.02, 0.02), (0.97, 1.03), metal)


def doorway(item: Furniture, plan: Plan) -> None:
    """Make an opening without a door, and the start of the corridor behind it."""
    half, high, deep, rng = plan.width / 2, plan.height, plan.depth, item.rng
    wall, side = material(rng, "house wall"), half + rng.uniform(0.05, 0.4)
    item.clearance, item.opening = 0.7, (-half, half, 0.0, high)
    reveal(item, item.opening, -0.16, plan.look(0))
    for left in (-half - 0.08, half):
        item.box((left, left + 0.08), (0, 0.04), (0, high + 0.08), plan.look(0))
    item.box((-half, half), (0, 0.04), (high, high + 0.08), plan.look(0))
    beyond = CLASS["wall"]
    item.box((-side, side), (-deep, 0), (-0.02, 0), material(rng, "house floor"), CLASS["floor"])
    item.box((-side, side), (-deep, -0.16), (high + 0.2, high + 0.22), material(rng, "ceiling"), CLASS["ceiling"])
    for left in (-side - 0.02, side):
        item.box((left, left + 0.02), (-deep, -0.16), (0, high + 0.2), wall, beyond)
    item.box((-side, side), (-deep - 0.02, -deep), (0, high + 0.2), wall, beyond)
    for left, right in ((-side, -half), (half, side)):
        item.box((left, right), (-0.18, -0.16), (0, high + 0.2), wall, beyond)
    item.box((-half, half), (-0.18, -0.16), (high, high + 0.2), wall, beyond)


def window(item: Furniture, plan: Plan) -> None:
    """Make a window, recessed in the wall above a sill. Options: low (height of the sill), bars (of its cross)."""
    half, frame, bars = plan.width / 2, plan.look(0), int(plan.number("bars", 0))
    low = plan.number("low", 0.9)
    high = low + plan.height
    item.opening = (-half, half, low, high)
    reveal(item, item.opening, -0.2, frame)
    item.box((-half - 0.08, half + 0.08), (0, 0.12), (low - 0.05, low), frame)
    item.box((-half, half), (-0.2, -0.18), (low, high), material(item.rng, "outdoors"))
    for side in (-half, half - 0.07):
        item.box((side, side + 0.07), (-0.18, -0.12), (low, high), frame)
    for level in (low, high - 0.07):
        item.box((-half, half), (-0.18, -0.12), (level, level + 0.07), frame)
    if bars >= 1:
        item.box((-0.04, 0.04), (-0.18, -0.12), (low, high), frame)
    if bars >= 2:
        middle = low + 0.6 * plan.height
        item.box((-half, half), (-0.18, -0.12), (middle - 0.03, middle + 0.03), frame)


def curtain(item: Furniture, plan: Plan) -> None:
    """Make curtains, folded in waves under a rod, to hang before a window. Options: pair, low (their lower edge)."""
    cloth, metal, half, top = plan.look(0), plan.look(1), plan.width / 2, plan.height
    low = plan.number("low", 0.06)
    drawn, wavelength = item.rng.uniform(0.3, 0.5), item.rng.uniform(0.16, 0.26)
    item.box((-half - 0.1, half + 0.1), (0.18, 0.22), (top, top + 0.04), metal)
    item.wave((-half - 0.05, -half + drawn), (low, top), 0.2, wavelength, cloth)
    if plan.has("pair"):
        item.wave((half - drawn, half + 0.05), (low, top), 0.2, wavelength, cloth)


def blinds(item: Furniture, plan: Plan) -> None:
    """Make tilted slats under a rail, to hang before a window."""
    half, top, look = plan.width / 2, plan.height, plan.look(0)
    low = plan.number("low", 1.0)
    item.box((-half, half), (0.06, 0.14), (top, top + 0.06), look)
    for z in np.arange(low, top, 0.07):
        item.add(beam((-half, 0.1, z), (half, 0.1, z), 0.05), look)


def stairs(item: Furniture, plan: Plan) -> None:
    """Make some steps along the wall, with a banister on the open side."""
    look, rail, wide = plan.look(0), plan.look(1), plan.depth
    run, rise, steps, banister = 0.26, plan.height, int(plan.width / 0.26), CLASS["banister"]
    for step in range(steps):
        x, top = (step - steps / 2) * run, (step + 1) * rise
        item.box((x, steps / 2 * run), (0, wide), (step * rise, top), look)
        item.box((x + 0.1, x + 0.14), (wide - 0.06, wide - 0.02), (top, top + 0.88), rail, banister)
    low, end = rise + 0.86, steps / 2 * run
    item.add(beam((0.1 - end, wide - 0.04, low), (end, wide - 0.04, low + steps * rise), 0.06), rail, banister)


def column(item: Furniture, plan: Plan) -> None:
    """Make a round or a square column from the floor to the ceiling. Options: round."""
    look, radius, height = plan.look(0), plan.width / 2, plan.ceiling
    item.box((-radius - 0.04, radius + 0.04), (-radius - 0.04, radius + 0.04), (0, 0.12), look)
    item.box((-radius - 0.04, radius + 0.04), (-radius - 0.04, radius + 0.04), (height - 0.12, height), look)
    if plan.has("round"):
        item.turned([(radius, 0.1), (radius * 0.85, height - 0.1)], (0, 0), look)
    else:
        item.box((-radius, radius), (-radius, radius), (0.1, height - 0.1), look)


def fireplace(item: Furniture, plan: Plan) -> None:
    """Make a chimney piece: two jambs, a mantel, a dark hearth behind."""
    stone, soot, half, high = plan.look(0), plan.look(1), plan.width / 2, plan.height
    for side in (-half, half - 0.22):
        item.box((side, side + 0.22), (0, 0.35), (0, high), stone)
    item.box((-half, half), (0, 0.35), (high - 0.3, high), stone)
    item.box((-half - 0.1, half + 0.1), (0, 0.42), (high, high + 0.07), plan.look(2))
    item.box((-half + 0.2, half - 0.2), (0.02, 0.05), (0, high - 0.28), soot)
    item.box((-half - 0.05, half + 0.05), (0, 0.6), (0, 0.04), stone)
    item.top = (-half, half, 0.05, 0.4, high + 0.07)


def radiator(item: Furniture, plan: Plan) -> None:
    """Make a radiator with ribs."""
    half, look, high = plan.width / 2, plan.look(0), plan.height
    for x in np.arange(-half + 0.04, half - 0.03, 0.1):
        item.box((x - 0.03, x + 0.03), (0.05, 0.14), (0.15, high), look)
    item.box((-half, half), (0.03, 0.08), (0.2, high - 0.05), look)


def vent(item: Furniture, plan: Plan) -> None:
    """Make a grille that hangs from the ceiling on a short piece of duct."""
    metal, half = plan.look(0), plan.width / 2
    item.box((-half, half), (-0.2, 0.2), (-0.05, 0), metal)
    for y in np.arange(-0.15, 0.16, 0.06):
        item.box((-half + 0.03, half - 0.03), (y - 0.015, y + 0.015), (-0.07, -0.05), metal)


def hood(item: Furniture, plan: Plan) -> None:
    """Make a hood on the wall: a flat skirt, a tapered body and a flue up to the ceiling."""
    half, deep, metal, low = plan.width / 2, plan.depth, plan.look(0), plan.number("low", 1.55)
    item.box((-half, half), (0, deep), (low, low + 0.07), metal)
    for step in range(3):
        share = 0.75 - 0.2 * step
        item.box(
            (-half * share, half * share), (0, deep * share), (low + 0.07 * (step + 1), low + 0.07 * (step + 2)), metal
        )
    item.box((-half * 0.3, half * 0.3), (0, deep * 0.4), (low + 0.28, low + plan.height), metal)


def panel(item: Furniture, plan: Plan) -> None:
    """Make something flat in a frame: on the wall, on a foot, on wheels, or on an easel.

    Options: mount (wall, foot, wheels, easel), low (height of its lower edge), frame (width), ledge, count, thick.
    """
    half, tall, frame, face = plan.width / 2, plan.height, plan.look(0), plan.look(1)
    mount, edge, thick = plan.word("mount", "wall"), plan.number("frame", 0.04), plan.number("thick", 0.04)
    low, y = plan.number("low", 1.1), 0.02 if mount == "wall" else 0.25
    count = int(plan.number("count", 1))
    for index in range(count):
        x, look = (index - (count - 1) / 2) * (plan.width + 0.12), face
        if count > 1:
            look = material(item.rng, plan.style(1))
        item.box((x - half, x + half), (y, y + thick), (low, low + tall), frame)
        inner = (low + edge, low + tall - edge)
        item.box((x - half + edge, x + half - edge), (y + thick - 0.01, y + thick + 0.01), inner, look)
    if plan.has("ledge"):
        item.box((-half, half), (y + thick, y + thick + 0.08), (low - 0.03, low), frame)
    metal = plan.look(2)
    if mount == "foot":
        item.box((-0.03, 0.03), (y, y + 0.04), (0, low), metal)
        item.box((-half * 0.4, half * 0.4), (y - 0.1, y + 0.14), (0, 0.025), metal)
    elif mount == "wheels":
        for x in (-half, half - 0.05):
            item.box((x, x + 0.05), (y, y + 0.05), (0.06, low + tall + 0.05), metal)
            item.box((x, x + 0.05), (y - 0.25, y + 0.3), (0.03, 0.08), metal)
    elif mount == "easel":
        for x in (-0.3, 0.3):
            item.add(beam((x * 1.3, y + 0.12, 0), (x * 0.2, y - 0.02, low + tall + 0.25), 0.04), frame)
        item.add(beam((0, 0.02, 0), (0, y - 0.02, low + tall), 0.04), frame)
        item.box((-half, half), (y, y + 0.1), (low - 0.04, low), frame)


def divider(item: Furniture, plan: Plan) -> None:
    """Make a screen of panels that stand in a zigzag."""
    panels = int(plan.number("panels", 3))
    wide, high, deep = plan.width / panels, plan.height, plan.depth
    for index in range(panels):
        x0, x1 = -plan.width / 2 + index * wide, -plan.width / 2 + (index + 1) * wide
        y0, y1 = (0.0, deep) if index % 2 == 0 else (deep, 0.0)
        sheet = np.array([[x0, y0, 0.05], [x1, y1, 0.05], [x1, y1, high], [x0, y0, high]])
        item.add(np.array([sheet[[0, 1, 2]], sheet[[0, 2, 3]]]), plan.look(0))
        for level in (0.08, high / 2, high - 0.04):
            item.add(beam((x0, y0, level), (x1, y1, level), 0.05), plan.look(1))
        item.add(beam((x0, y0, 0), (x0, y0, high), 0.05), plan.look(1))
    last = deep if panels % 2 else 0.0
    item.add(beam((plan.width / 2, last, 0), (plan.width / 2, last, high), 0.05), plan.look(1))


def lamp(item: Furniture, plan: Plan) -> None:
    """Make a lamp: standing, or hanging from the ceiling at z = 0. Options: hung, arms, flat."""
    radius, high, shade, metal = plan.width / 2, plan.height, plan.look(0), plan.look(1)
    if plan.has("flat"):
        item.turned([(0.0, -high), (radius * 0.9, -high * 0.8), (radius, 0.0)], (0, 0), shade)
    elif plan.has("arms"):
        item.box((-0.012, 0.012), (-0.012, 0.012), (-high, 0), metal)
        for angle in np.arange(6) * np.pi / 3:
            x, y = radius * np.cos(angle), radius * np.sin(angle)
            item.add(beam((0, 0, -high), (x, y, -high - 0.05), 0.03), metal)
            item.turned([(0.0, -high - 0.06), (0.05, -high - 0.02), (0.06, -high + 0.08)], (x, y), shade)
    elif plan.has("hung"):
        item.box((-0.012, 0.012), (-0.012, 0.012), (-high, 0), metal)
        item.turned([(radius, -high - 0.12), (radius * 0.66, -high + 0.12), (0.02, -high + 0.14)], (0, 0), shade)
    else:
        y, foot = radius + 0.02, 0.75 * radius
        tall = min(0.3, 0.45 * high)
        item.turned([(foot, 0.0), (foot, 0.03), (0.02, 0.05), (0.02, high - tall)], (0, y), metal)
        item.turned([(radius, high - tall), (radius * 0.65, high)], (0, y), shade)


def rail(item: Furniture, plan: Plan) -> None:
    """Make cloths on a rail: towels on the wall, clothes on a stand. Options: stand, hang (length of the cloths)."""
    half, high, metal, rng = plan.width / 2, plan.height, plan.look(1), item.rng
    if plan.has("stand"):
        for side in (-half, half - 0.04):
            item.box((side, side + 0.04), (0.22, 0.26), (0, high), metal)
            item.box((side, side + 0.04), (0.02, 0.46), (0, 0.04), metal)
        item.box((-half, half), (0.22, 0.26), (high, high + 0.04), metal)
        for x in np.arange(-half + 0.1, half - 0.12, 0.1):
            if rng.random() < 0.8:
                deep, low = rng.uniform(0.15, 0.21), high - plan.number("hang", 0.8) * rng.uniform(0.8, 1.2)
                cloth = material(rng, plan.style(0))
                item.box((x, x + rng.uniform(0.04, 0.08)), (0.24 - deep, 0.24 + deep), (low, high - 0.05), cloth)
        return
    item.box((-half, half), (0.08, 0.1), (high, high + 0.02), metal)
    for x in (-half, half - 0.02):
        item.box((x, x + 0.02), (0, 0.1), (high, high + 0.02), metal)
    for left, right in ((-half + 0.03, -0.02), (0.02, half - 0.03))[: rng.integers(1, 3)]:
        low = high - plan.number("hang", 0.5)
        item.box((left, right), (0.06, 0.12), (low, high + 0.025), material(rng, plan.style(0)))
