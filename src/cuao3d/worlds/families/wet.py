"""Families of shapes for kitchens, bathrooms and laundries: appliances, tubs, toilets, basins, shower cabins."""

import numpy as np

from cuao3d.worlds.joinery import CLASS, Furniture, Plan, basin, fronts, material, tap


def appliance(item: Furniture, plan: Plan) -> None:
    """Make a box with a door.

    Options: door (split, double, round, window, flat, glass), hob, panel (a strip with knobs above the door), feed
    (a tray that juts out).
    """
    half, deep, high, look, metal = plan.width / 2, plan.depth, plan.height, plan.look(0), plan.look(1)
    door = plan.word("door", "flat")
    if door == "glass":
        _tank(item, plan)
        return
    item.box((-half, half), (0.03, deep - 0.04), (0.04 if high > 0.5 else 0.0, high), look)
    if door in ("split", "double"):
        _refrigerator_doors(item, plan, door)
        return
    low, top = (0.08, high - (0.12 if plan.has("panel") else 0.02)) if high > 0.5 else (0.03, high - 0.03)
    right = half - 0.01 if high > 0.5 else half * 0.5
    item.box((-half + 0.01, right), (deep - 0.05, deep - 0.01), (low, top), look)
    middle, glass = (low + top) / 2, material(item.rng, "screen")
    if door == "round":
        for angle in np.arange(16) * np.pi / 8:
            x, z, r = np.cos(angle), np.sin(angle), min(half, 0.3) * 0.62
            item.box(
                (x * r - 0.035, x * r + 0.035),
                (deep - 0.02, deep + 0.03),
                (middle + z * r - 0.035, middle + z * r + 0.035),
                metal,
            )
        r = min(half, 0.3) * 0.5
        item.box((-r * 0.8, r * 0.8), (deep - 0.02, deep), (middle - r * 0.8, middle + r * 0.8), glass)
    elif door == "window":
        item.box(
            (-half + 0.07, right - 0.06),
            (deep - 0.02, deep),
            (low + 0.25 * (top - low), top - 0.18 * (top - low)),
            glass,
        )
    if door != "round" and high > 0.5:
        item.box((-half + 0.08, half - 0.08), (deep + 0.02, deep + 0.045), (top - 0.07, top - 0.045), metal)
    if plan.has("panel"):
        for x in np.linspace(-half + 0.08, half - 0.08, 5):
            item.box((x - 0.025, x + 0.025), (deep - 0.04, deep + 0.01), (high - 0.09, high - 0.04), metal)
    if plan.has("hob"):
        for x in (-half * 0.5, half * 0.5):
            for y in (deep * 0.3, deep * 0.7):
                item.turned([(0.09, high), (0.09, high + 0.02), (0.0, high + 0.02)], (x, y), glass)
        item.box((-half, half), (0, 0.04), (high, high + 0.12), look)
    if plan.has("feed"):
        item.box((-half * 0.7, half * 0.7), (deep - 0.02, deep + 0.16), (0.06, 0.085), metal)
        item.box((-half * 0.6, half * 0.6), (0.02, 0.08), (high, high + 0.16), metal)


def _tank(item: Furniture, plan: Plan) -> None:
    """Make an aquarium: glass between two frames, gravel and plants, on a cabinet."""
    half, deep, high, stand = plan.width / 2, plan.depth, plan.height, plan.number("stand", 0.7)
    item.box((-half, half), (0, deep), (0, stand), plan.look(0))
    for z in (stand, stand + high - 0.03):
        item.box((-half, half), (0, deep), (z, z + 0.03), plan.look(1))
    water = material(item.rng, "water")
    item.box((-half + 0.01, half - 0.01), (0.01, deep - 0.01), (stand + 0.03, stand + high - 0.03), water)


def _refrigerator_doors(item: Furniture, plan: Plan, door: str) -> None:
    """Add two doors, one over or beside the other, with long handles."""
    half, deep, high, look, metal = plan.width / 2, plan.depth, plan.height, plan.look(0), plan.look(1)
    split = item.rng.uniform(0.35, 0.7) * high
    if door == "double":
        doors = [((-half, -0.01), (0.08, high - 0.01)), ((0.01, half), (0.08, high - 0.01))]
    else:
        doors = [((-half, half), (0.08, split - 0.015)), ((-half, half), (split + 0.015, high))]
    for x, z in doors:
        item.box(x, (deep - 0.05, deep), z, look)
        grip = x[1] - 0.07 if x[0] < 0 and door == "double" else x[0] + 0.07
        low, top = z[0] + 0.15 * (z[1] - z[0]), z[1] - 0.15 * (z[1] - z[0])
        item.box((grip - 0.02, grip + 0.02), (deep + 0.03, deep + 0.07), (low, top), metal)
        for end in (low, top - 0.03):
            item.box((grip - 0.02, grip + 0.02), (deep, deep + 0.04), (end, end + 0.03), metal)


def bathtub(item: Furniture, plan: Plan) -> None:
    """Make a tub, with a shower curtain on a rod before it or not. Options: oval, panel, curtain."""
    white, metal, half, deep, high = plan.look(0), plan.look(1), plan.width / 2, plan.depth, plan.height
    if plan.has("oval"):
        outer = [(half * 0.75, 0.0), (half, high), (half * 0.92, high), (half * 0.65, 0.15), (0.0, 0.12)]
        item.turned(outer, (0, deep / 2), white, stretch=(1.0, deep / plan.width))
    else:
        front = material(item.rng, "front") if plan.has("panel") else white
        item.box((-half, half), (deep - 0.06, deep), (0, high), front)
        for side in (-half, half - 0.08):
            item.box((side, side + 0.08), (0, deep), (0, high), white)
        item.box((-half, half), (0, 0.08), (0, high), white)
        item.box((-half, half), (deep - 0.1, deep + 0.02), (high - 0.05, high), white)
        item.box((-half, half), (0, deep), (0.1, 0.14), white)
    tap(item, -half + 0.3, 0.08, high, metal, item.label)
    if not plan.has("curtain"):
        return
    cloth, top = Furniture(item.rng, CLASS["shower curtain"]), item.rng.uniform(1.95, 2.1)
    spans = ([(-half, half)], [(-half, 0.0)], [(-half, -0.2), (0.35, half)])[item.rng.integers(3)]
    look, wavelength = material(item.rng, "shower"), item.rng.uniform(0.12, 0.18)
    for x in spans:
        cloth.wave(x, (0.25, top), deep + 0.05, wavelength, look)
    cloth.box((-half, half), (deep + 0.03, deep + 0.07), (top, top + 0.04), metal)
    for block, surface in zip(cloth.triangles, cloth.materials, strict=True):
        item.add(block, surface, cloth.label)


def toilet(item: Furniture, plan: Plan) -> None:
    """Make a toilet with a tank, hung from the wall, or with its lid up; or a bidet. Options: hung, open, bidet."""
    white, high = plan.look(0), plan.height
    foot = 0.14 if plan.has("hung") else 0.0
    profile = [(0.12, foot), (0.13, foot + 0.12), (0.2, high - 0.08), (0.21, high)]
    profile += [(0.14, high), (0.1, high - 0.15), (0.0, high - 0.18)]
    item.turned(profile, (0, 0.45), white, stretch=(0.9, 1.25))
    item.box((-0.12, 0.12), (0.0, 0.3), (foot, high - 0.05), white)
    if plan.has("bidet"):
        tap(item, 0.0, 0.22, high, plan.look(1), item.label)
        return
    if plan.has("hung"):
        item.box((-0.25, 0.25), (0, 0.14), (0, 1.1), white)
    else:
        item.box((-0.2, 0.2), (0, 0.18), (high - 0.04, high + 0.38), white)
        item.box((-0.21, 0.21), (0, 0.2), (high + 0.38, high + 0.42), white)
    if plan.has("open"):
        item.box((-0.19, 0.19), (0.2, 0.24), (high, high + 0.42), white)
    else:
        item.turned([(0.2, high), (0.2, high + 0.04), (0.0, high + 0.04)], (0, 0.45), white, stretch=(0.9, 1.25))


def sink(item: Furniture, plan: Plan) -> None:
    """Make a wash-basin on a pedestal, on a cabinet, or a bowl on a shelf. Options: on (pedestal, cabinet, shelf)."""
    white, metal, look, half, top = plan.look(0), plan.look(1), plan.look(2), plan.width / 2, plan.height
    on, cabinet = plan.word("on", "pedestal"), CLASS["cabinet"]
    if on == "pedestal":
        item.turned([(0.13, 0), (0.08, 0.2), (0.1, top - 0.15)], (0, 0.2), white)
    elif on == "cabinet":
        item.box((-half, half), (0, 0.42), (0.1, top - 0.16), look, cabinet)
        fronts(item, 2 * half, 0.42, (0.12, top - 0.18), 2, 1, look, metal, cabinet)
    else:
        item.box((-half - 0.15, half + 0.15), (0, 0.48), (top - 0.2, top - 0.14), look, cabinet)
    if on == "shelf":
        bowl = [(0.12, top - 0.14), (0.22, top + 0.02), (0.2, top + 0.02), (0.1, top - 0.08), (0.0, top - 0.1)]
        item.turned(bowl, (0, 0.24), white)
    else:
        basin(item, (-half, half), (0.02, 0.46), top, 0.15, white, item.label)
    tap(item, 0.0, 0.05, top, metal, item.label)


def shower(item: Furniture, plan: Plan) -> None:
    """Make a shower cabin: a tray, frames with frosted panes on two sides, a head on a pipe."""
    half, deep, high, metal, white = plan.width / 2, plan.depth, plan.height, plan.look(1), plan.look(0)
    item.box((-half, half), (0, deep), (0, 0.12), white)
    glass = material(item.rng, "glass")
    for x in (-half, half - 0.03):
        item.box((x, x + 0.03), (0, 0.03), (0.12, high), metal)
        item.box((x, x + 0.03), (deep - 0.03, deep), (0.12, high), metal)
        item.box((x, x + 0.03), (0, deep), (high - 0.04, high), metal)
    item.box((-half, half), (deep - 0.03, deep), (high - 0.04, high), metal)
    item.box((half - 0.02, half - 0.01), (0.03, deep - 0.03), (0.15, high - 0.04), glass)
    item.box((-half + 0.02, 0.0), (deep - 0.02, deep - 0.01), (0.15, high - 0.04), glass)
    item.box((-half * 0.5, -half * 0.5 + 0.03), (0, 0.04), (0.9, high - 0.05), metal)
    item.turned([(0.0, high - 0.1), (0.1, high - 0.12), (0.0, high - 0.06)], (-half * 0.5, 0.2), metal)
