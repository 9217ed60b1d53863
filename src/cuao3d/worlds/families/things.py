"""Families of shapes for single things: instruments, machines, toys, plants."""

import itertools

import numpy as np

from cuao3d.worlds.joinery import Furniture, Material, Plan, beam, grid_triangles, material


def coat_rack(item: Furniture, plan: Plan) -> None:
    """Make a post with hooks, with coats on some of them."""
    high, look, y = plan.height, plan.look(0), 0.3
    item.turned([(0.22, 0.0), (0.2, 0.04), (0.03, 0.08), (0.03, high)], (0, y), look)
    for angle in np.arange(6) * np.pi / 3:
        x, out = 0.2 * np.cos(angle), 0.2 * np.sin(angle)
        item.add(beam((0, y, high - 0.18), (x, y + out, high - 0.05), 0.025), look)
        if item.rng.random() < 0.5:
            cloth, low = material(item.rng, "cloth"), high - item.rng.uniform(0.7, 1.0)
            cx, cy = 0.17 * np.cos(angle), y + 0.17 * np.sin(angle)
            item.box((cx - 0.1, cx + 0.1), (cy - 0.07, cy + 0.07), (low, high - 0.12), cloth)


def fan(item: Furniture, plan: Plan) -> None:
    """Make blades in a round cage on a stand."""
    radius, high, metal, y = plan.width / 2, plan.height, plan.look(0), 0.25
    item.turned([(0.2, 0.0), (0.18, 0.04), (0.025, 0.06), (0.025, high - radius)], (0, y), metal)
    middle = high - radius
    _ring(item, (0, y + 0.06, middle), radius, 0.03, metal)
    for angle in np.arange(8) * np.pi / 4:
        x, z = radius * np.cos(angle), middle + radius * np.sin(angle)
        item.add(beam((0, y + 0.1, middle), (x, y + 0.06, z), 0.015), metal)
    for angle in np.arange(3) * 2 * np.pi / 3:
        x, z = radius * 0.7 * np.cos(angle), middle + radius * 0.7 * np.sin(angle)
        item.add(beam((0, y + 0.04, middle), (x, y + 0.04, z), 0.12), plan.look(1))


def ladder(item: Furniture, plan: Plan) -> None:
    """Make a ladder that leans on the wall, or a stepladder. Options: steps."""
    half, high, look, deep = plan.width / 2, plan.height, plan.look(0), plan.depth
    for x in (-half, half):
        item.add(beam((x, deep, 0), (x, 0.04, high), 0.05), look)
        if plan.has("steps"):
            item.add(beam((x, 0.02, 0), (x, deep * 0.4, high * 0.98), 0.04), look)
    for z in np.arange(0.25, high - 0.05, 0.27):
        y = deep + (0.04 - deep) * z / high
        item.box((-half, half), (y - (0.08 if plan.has("steps") else 0.03), y + 0.03), (z, z + 0.035), look)


def piano(item: Furniture, plan: Plan) -> None:
    """Make an upright piano with keys."""
    half, deep, high, look = plan.width / 2, plan.depth, plan.height, plan.look(0)
    item.box((-half, half), (0, deep * 0.55), (0, high), look)
    item.box((-half, half), (deep * 0.55, deep), (0.62, 0.7), look)
    item.box((-half + 0.08, half - 0.08), (deep * 0.6, deep - 0.02), (0.7, 0.73), material(item.rng, "keys"))
    for x in (-half, half - 0.07):
        item.box((x, x + 0.07), (deep * 0.55, deep), (0, 0.78), look)
    item.box((-0.35, 0.35), (deep * 0.55, deep * 0.55 + 0.05), (0.9, 1.12), plan.look(0))
    item.top = (-half, half, 0, deep * 0.5, high)


def guitar(item: Furniture, plan: Plan) -> None:
    """Make a guitar that leans on a stand."""
    look, neck, high = plan.look(0), plan.look(1), plan.height
    for z, radius in ((0.28, 0.2), (0.52, 0.15)):
        ring = np.linspace(0, 2 * np.pi, 17)
        rows = np.array([
            np.c_[radius * share * np.cos(ring), np.full(17, y), z + radius * share * np.sin(ring)]
            for share, y in ((0.0, 0.12), (1.0, 0.12), (1.0, 0.22), (0.0, 0.22))
        ])  # fmt: skip
        item.add(grid_triangles(rows), look)
    item.box((-0.035, 0.035), (0.17, 0.23), (0.5, high - 0.12), neck)
    item.box((-0.06, 0.06), (0.17, 0.22), (high - 0.12, high), neck)
    for x in (-0.16, 0.16):
        item.add(beam((x, 0.32, 0), (x * 0.4, 0.1, 0.3), 0.03), material(item.rng, "metal"))


def drum(item: Furniture, plan: Plan) -> None:
    """Make a drum set: a big drum on its side, smaller ones and two cymbals on stands."""
    shell, skin, metal, y = plan.look(0), plan.look(1), material(item.rng, "metal"), 0.45
    ring = np.linspace(0, 2 * np.pi, 17)
    radius = plan.width / 4
    rows = np.array([
        np.c_[radius * share * np.cos(ring), np.full(17, depth), radius + radius * share * np.sin(ring)]
        for share, depth in ((0.0, 0.25), (1.0, 0.25), (1.0, 0.65), (0.0, 0.65))
    ])  # fmt: skip
    item.add(grid_triangles(rows[:3]), shell)
    item.add(grid_triangles(rows[2:]), skin)
    for x, z in ((-radius - 0.12, 0.62), (radius + 0.12, 0.62)):
        item.turned([(0.17, z - 0.18), (0.17, z)], (x, y), shell)
        item.turned([(0.17, z), (0.0, z + 0.01)], (x, y), skin)
        item.box((x - 0.02, x + 0.02), (y - 0.02, y + 0.02), (0, z - 0.18), metal)
    for x in (-plan.width / 2 + 0.1, plan.width / 2 - 0.1):
        item.box((x - 0.015, x + 0.015), (0.2, 0.23), (0, plan.height), metal)
        item.turned([(0.22, plan.height - 0.03), (0.0, plan.height + 0.02)], (x, 0.22), metal)


def treadmill(item: Furniture, plan: Plan) -> None:
    """Make a belt on a low deck, two posts, a console with handles."""
    half, deep, high, dark, metal = plan.width / 2, plan.depth, plan.height, plan.look(0), plan.look(1)
    item.box((-half, half), (0.1, deep), (0.06, 0.16), metal)
    item.box((-half + 0.09, half - 0.09), (0.25, deep - 0.02), (0.16, 0.18), dark)
    for x in (-half, half - 0.06):
        item.add(beam((x + 0.03, 0.3, 0.1), (x + 0.03, 0.12, high), 0.07), metal)
        item.box((x, x + 0.06), (0.12, 0.6), (high * 0.75, high * 0.75 + 0.05), metal)
    item.box((-half, half), (0.04, 0.2), (high - 0.1, high + 0.12), dark)


def exercise_bike(item: Furniture, plan: Plan) -> None:
    """Make a frame on two feet with a flywheel, pedals, a saddle and handlebars."""
    metal, dark, deep, high = plan.look(0), plan.look(1), plan.depth, plan.height
    for y in (0.05, deep - 0.1):
        item.box((-0.25, 0.25), (y, y + 0.07), (0, 0.06), metal)
    item.add(beam((0, 0.1, 0.05), (0, deep - 0.08, 0.05), 0.07), metal)
    _ring(item, (0, deep * 0.75, 0.32), 0.24, 0.06, dark, across="x")
    item.add(beam((0, deep * 0.75, 0.32), (0, deep * 0.35, 0.3), 0.09), metal)
    item.add(beam((0, deep * 0.4, 0.08), (0, deep * 0.25, high * 0.78), 0.07), metal)
    item.box((-0.12, 0.12), (deep * 0.25 - 0.15, deep * 0.25 + 0.12), (high * 0.78, high * 0.78 + 0.07), dark)
    item.add(beam((0, deep * 0.65, 0.1), (0, deep * 0.78, high), 0.07), metal)
    item.box((-0.24, 0.24), (deep * 0.7, deep * 0.7 + 0.05), (high - 0.03, high + 0.02), dark)
    for x in (-0.14, 0.14):
        item.box((x - 0.05, x + 0.05), (deep * 0.4, deep * 0.5), (0.2, 0.23), dark)


def bicycle(item: Furniture, plan: Plan) -> None:
    """Make a bicycle that stands along the wall."""
    half, metal, dark, y = plan.width / 2, plan.look(0), plan.look(1), 0.25
    radius = 0.33
    for x in (-half + radius, half - radius):
        _ring(item, (x, y, radius), radius, 0.04, dark)
        for angle in np.arange(6) * np.pi / 3:
            spoke = (x + radius * np.cos(angle), y, radius + radius * np.sin(angle))
            item.add(beam((x, y, radius), spoke, 0.012), metal)
    rear, front = -half + radius, half - radius
    seat, head = rear + 0.35, front - 0.15
    pedals = (seat + 0.12, 0.3)
    frame = [
        ((rear, radius), (seat, 0.85)),
        ((rear, radius), pedals),
        (pedals, (seat, 0.95)),
        ((seat, 0.8), (head, 0.85)),
        (pedals, (head, 0.8)),
        ((front, radius), (head - 0.02, 1.0)),
    ]
    for (x0, z0), (x1, z1) in frame:
        item.add(beam((x0, y, z0), (x1, y, z1), 0.04), metal)
    item.box((seat - 0.13, seat + 0.12), (y - 0.07, y + 0.07), (0.94, 1.0), dark)
    item.box((head - 0.05, head), (y - 0.27, y + 0.27), (1.0, 1.04), dark)


def stroller(item: Furniture, plan: Plan) -> None:
    """Make a carriage with a hood on four wheels and a handle."""
    cloth, metal, half, deep, high = plan.look(0), plan.look(1), plan.width / 2, plan.depth, plan.height
    for x in (-half, half):
        for y in (0.18, deep - 0.18):
            _ring(item, (x, y, 0.15), 0.14, 0.04, material(item.rng, "metal"), across="x")
        item.add(beam((x, 0.18, 0.15), (x, deep - 0.1, 0.55), 0.03), metal)
        item.add(beam((x, deep - 0.18, 0.15), (x, 0.1, high), 0.03), metal)
    item.box((-half, half), (0.08, 0.12), (high - 0.02, high + 0.02), metal)
    item.box((-half + 0.04, half - 0.04), (0.2, deep), (0.45, 0.65), cloth)
    arc = np.linspace(0, np.pi / 2, 6)
    sides = np.array([-half + 0.04, half - 0.04])
    rows = [np.c_[sides, np.full(2, 0.55 - 0.35 * np.cos(a)), np.full(2, 0.65 + 0.35 * np.sin(a))] for a in arc]
    item.add(grid_triangles(np.array(rows)), cloth)


def rocking_horse(item: Furniture, plan: Plan) -> None:
    """Make a horse of wood on two rockers, along the wall."""
    look, mane, half, y = plan.look(0), plan.look(1), plan.width / 2, 0.25
    for side in (y - 0.13, y + 0.13):
        bend = [(-half, 0.14), (-half * 0.4, 0.03), (half * 0.4, 0.03), (half, 0.14)]
        for (x0, z0), (x1, z1) in itertools.pairwise(bend):
            item.add(beam((x0, side, z0), (x1, side, z1), 0.05), look)
        for x in (-half * 0.45, half * 0.45):
            item.add(beam((x, side, 0.06), (x * 0.8, y, 0.42), 0.06), look)
    item.box((-half * 0.6, half * 0.6), (y - 0.1, y + 0.1), (0.38, 0.58), look)
    item.add(beam((half * 0.5, y, 0.5), (half * 0.75, y, 0.85), 0.14), look)
    item.add(beam((half * 0.62, y, 0.86), (half * 1.05, y, 0.74), 0.13), look)
    item.add(beam((-half * 0.6, y, 0.55), (-half * 0.85, y, 0.3), 0.07), mane)
    item.add(beam((half * 0.42, y, 0.6), (half * 0.66, y, 0.92), 0.06), mane)


def teddy_bear(item: Furniture, plan: Plan) -> None:
    """Make a stuffed bear that sits."""
    size, look = plan.height, plan.look(0)

    def blob(x: float, y: float, z: float, radius: float, squash: float = 1.0) -> None:
        angles = np.linspace(-np.pi / 2, np.pi / 2, 7)
        profile = [(radius * np.cos(a), z + radius * squash * np.sin(a)) for a in angles]
        item.turned(profile, (x, y), look)

    blob(0, 0.3 * size, 0.3 * size, 0.28 * size, 1.1)
    blob(0, 0.3 * size, 0.75 * size, 0.22 * size)
    for side in (-1, 1):
        blob(side * 0.17 * size, 0.3 * size, 0.94 * size, 0.08 * size)
        blob(side * 0.3 * size, 0.42 * size, 0.42 * size, 0.1 * size, 1.5)
        blob(side * 0.18 * size, 0.6 * size, 0.1 * size, 0.11 * size)


def ball(item: Furniture, plan: Plan) -> None:
    """Make a ball on the floor."""
    radius = plan.width / 2
    angles = np.linspace(-np.pi / 2, np.pi / 2, 11)
    item.turned([(radius * np.cos(a), radius + radius * np.sin(a)) for a in angles], (0, radius + 0.02), plan.look(0))


def cat_tree(item: Furniture, plan: Plan) -> None:
    """Make posts with platforms at several heights, and a den."""
    look, post, half, deep, high = plan.look(0), plan.look(1), plan.width / 2, plan.depth, plan.height
    item.box((-half, half), (0, deep), (0, 0.05), look)
    for x, y, top in ((-half * 0.6, deep * 0.3, high), (half * 0.6, deep * 0.7, high * 0.65)):
        item.turned([(0.05, 0.05), (0.05, top)], (x, y), post)
        item.box((x - 0.18, x + 0.18), (y - 0.17, y + 0.17), (top, top + 0.05), look)
    item.box((-half * 0.1, half * 0.9), (deep * 0.15, deep * 0.75), (0.05, 0.38), look)


def plant(item: Furniture, plan: Plan) -> None:
    """Make a plant in a pot. Options: palm (long leaves)."""
    high, rng, radius = plan.height, item.rng, plan.width / 2
    pot = min(0.35, 0.4 * high)
    foot = min(radius, 0.18)
    item.turned([(foot * 0.7, 0), (foot, pot), (0.0, pot * 0.95)], (0, radius), plan.look(1))
    for _ in range(14 if not plan.has("palm") else 9):
        tip = (rng.normal(0, radius * 0.7), radius + rng.normal(0, radius * 0.7), rng.uniform(0.6, 1.0) * high)
        item.add(beam((0, radius, pot * 0.95), tip, 0.05 if not plan.has("palm") else 0.08), plan.look(0))


def clock(item: Furniture, plan: Plan) -> None:
    """Make a clock: round on the wall, or tall on the floor. Options: tall, low (height of its middle)."""
    face, case, radius = plan.look(0), plan.look(1), plan.width / 2
    if plan.has("tall"):
        high = plan.height
        item.box((-radius, radius), (0, 0.28), (0, 0.35), case)
        item.box((-radius * 0.75, radius * 0.75), (0.02, 0.24), (0.35, high - 0.45), case)
        item.box((-radius, radius), (0, 0.28), (high - 0.45, high), case)
        item.box((-radius * 0.7, radius * 0.7), (0.28, 0.29), (high - 0.4, high - 0.06), face)
        return
    middle, ring = plan.number("low", 1.8), np.linspace(0, 2 * np.pi, 17)
    rows = [
        np.c_[radius * share * np.cos(ring), np.full(17, y), middle + radius * share * np.sin(ring)]
        for share, y in ((1.0, 0.0), (1.0, 0.06), (0.85, 0.06), (0.85, 0.05), (0.0, 0.05))
    ]
    item.add(grid_triangles(np.array(rows[:3])), case)
    item.add(grid_triangles(np.array(rows[3:])), face)
    dark = material(item.rng, "metal")
    item.box((-0.012, 0.012), (0.05, 0.065), (middle, middle + radius * 0.7), dark)
    item.box((0, radius * 0.5), (0.05, 0.065), (middle - 0.012, middle + 0.012), dark)


def loudspeaker(item: Furniture, plan: Plan) -> None:
    """Make a box with two cones in its front."""
    half, deep, high, look = plan.width / 2, plan.depth, plan.height, plan.look(0)
    item.box((-half, half), (0.02, deep), (0, high), look)
    for z, radius in ((high * 0.3, half * 0.75), (high * 0.72, half * 0.5)):
        ring = np.linspace(0, 2 * np.pi, 17)
        rows = np.array([
            np.c_[radius * share * np.cos(ring), np.full(17, y), z + radius * share * np.sin(ring)]
            for share, y in ((1.0, deep + 0.02), (0.4, deep - 0.02), (0.0, deep + 0.01))
        ])  # fmt: skip
        item.add(grid_triangles(rows), plan.look(1))


def drying_rack(item: Furniture, plan: Plan) -> None:
    """Make a folding rack: crossed legs, rods, cloths over some of them."""
    half, deep, high, metal = plan.width / 2, plan.depth, plan.height, plan.look(1)
    for x in (-half, half):
        item.add(beam((x, 0.05, 0), (x, deep * 0.8, high), 0.03), metal)
        item.add(beam((x, deep - 0.05, 0), (x, deep * 0.2, high), 0.03), metal)
        item.add(beam((x, 0.0, high), (x, deep, high), 0.03), metal)
    for y in np.linspace(0.02, deep - 0.04, 6):
        item.box((-half, half), (y, y + 0.015), (high, high + 0.015), metal)
        if item.rng.random() < 0.6:
            left = item.rng.uniform(-half, 0)
            width, drop = item.rng.uniform(0.25, 0.6), item.rng.uniform(0.25, 0.5)
            item.box(
                (left, min(half, left + width)),
                (y - 0.012, y + 0.025),
                (high - drop, high + 0.03),
                material(item.rng, plan.style(0)),
            )


def _ring(
    item: Furniture, middle: tuple[float, float, float], radius: float, thick: float, look: Material, across: str = "y"
) -> None:
    """Add a ring about the axis `across`."""
    angles = np.linspace(0, 2 * np.pi, 13)
    for start, end in itertools.pairwise(angles):
        ends = []
        for angle in (start, end):
            along, up = radius * np.cos(angle), radius * np.sin(angle)
            x, y = (along, 0.0) if across == "y" else (0.0, along)
            ends.append((middle[0] + x, middle[1] + y, middle[2] + up))
        item.add(beam(ends[0], ends[1], thick), look)
