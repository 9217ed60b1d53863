"""Families of shapes: each makes one object from a plan, that is, from a row of `kinds.csv`.

An object has its own frame: x to its right, y away from the wall (its back is at y = 0), z up, metres. What hangs from
the ceiling has it at z = 0. Similar kinds differ in geometry, size or placement, not by colour alone.
"""

from collections.abc import Callable

from cuao3d.worlds.families import building, seats, storage, things, wet
from cuao3d.worlds.joinery import Furniture, Plan

Family = Callable[[Furniture, Plan], None]

FAMILIES: dict[str, Family] = {
    make.__name__: make
    for make in (
        seats.seat, seats.bed, seats.crib, storage.cabinet, storage.shelf, storage.table, storage.counter,
        storage.crate, storage.vessel, building.door, building.doorway, building.window, building.curtain,
        building.blinds, building.stairs, building.column, building.fireplace, building.radiator, building.vent,
        building.hood, building.panel, building.divider, building.lamp, building.rail, wet.appliance, wet.bathtub,
        wet.toilet, wet.sink, wet.shower, things.coat_rack, things.fan, things.ladder, things.piano, things.guitar,
        things.drum, things.treadmill, things.exercise_bike, things.bicycle, things.stroller, things.rocking_horse,
        things.teddy_bear, things.ball, things.cat_tree, things.plant, things.clock, things.loudspeaker,
        things.drying_rack,
    )
}  # fmt: skip
"""Every family, by its name in `kinds.csv`."""
