"""Units that depth and positions are written in, told by the factor between the two."""

import math

EXACT = 0.012
"""A factor is called by a round number or a known unit within this part of it."""

UNITS = {
    "millimetres": 1000.0,
    "centimetres": 100.0,
    "inches": 39.3701,
    "feet": 3.28084,
    "1/5000 m": 5000.0,
    "1/6553.5 m": 6553.5,
    "1/65.535 m": 65.535,
    "1/256 m": 256.0,
    "0.25 mm": 4000.0,
    "0.125 mm": 8000.0,
    "0.1 mm": 10000.0,
    "metres": 1.0,
}
"""Units in which depth or positions are written, and how many make a metre."""

PLAIN_FACTORS = (*(10.0**power for power in range(-4, 5)), 0.25, 4.0, 0.2, 5.0, 0.5, 2.0)
"""Factors between units of sensors, the commonest first."""

DEPTH_UNITS = ("millimetres", "1/5000 m", "metres")
"""Units in which depth is taken by the readers."""


PLAUSIBLE_DEPTH = (0.2, 20.0)
"""Median depth of a room, metres: outside of it the unit is wrong."""

USUAL_DEPTH = 2.0
"""Median depth of most rooms, metres."""


def round_factor(factor: float) -> float:
    """Return the known factor near a factor; else three digits of it."""
    known = known_factor(factor)
    return float(f"{factor:.3g}") if known is None else known


def known_factor(factor: float) -> float | None:
    """Return the whole factor, or that between known units, which is within `EXACT` of a factor; None if none is."""
    large = max(factor, 1 / factor)
    magnitude = 10 ** math.floor(math.log10(large) + 1e-9)
    whole = round(large / magnitude) * magnitude
    if abs(large / whole - 1) < EXACT:
        return float(f"{whole if factor >= 1 else 1 / whole:.12g}")
    units = [to / by for by in UNITS.values() for to in (UNITS[name] for name in DEPTH_UNITS)]
    near = min((known for known in (*units, *(1 / unit for unit in units))), key=lambda known: abs(factor / known - 1))
    return float(f"{near:.6g}") if abs(factor / near - 1) < EXACT else None


def unit_of_depth(factor: float) -> str:
    """Say in what unit depth would be written that must be multiplied by a factor, or nothing."""
    for name in DEPTH_UNITS:
        for unit, per_metre in UNITS.items():
            if unit != name and abs(factor * per_metre / UNITS[name] - 1) < EXACT / 2:
                return f"in {unit}, read as {name}"
    return ""


def unit_of_positions(factor: float) -> str:
    """Say in what unit positions would be written that must be multiplied by a factor, or nothing."""
    known = (unit for unit in ("millimetres", "centimetres", "inches", "feet"))
    return next((f"in {unit}" for unit in known if abs(factor * UNITS[unit] - 1) < EXACT), "")


def is_plausible(median: float) -> bool:
    """Say whether a room may have this median depth, metres."""
    return PLAUSIBLE_DEPTH[0] <= median <= PLAUSIBLE_DEPTH[1]


def are_positions_off(median: float, factor: float) -> bool:
    """Say whether positions rather than depth have another unit, where depth times a factor would fit them.

    Args:
        median: Of depth as given, metres.
        factor: Of depth.
    """
    as_given, scaled = is_plausible(median), is_plausible(median * factor)
    if as_given != scaled:
        return as_given
    if not unit_of_depth(factor) and not _is_whole(factor):  # structure from motion has no unit, sensors have theirs
        return True
    return abs(math.log(median / USUAL_DEPTH)) < abs(math.log(median * factor / USUAL_DEPTH))


def _is_whole(factor: float) -> bool:
    large = max(factor, 1 / factor)
    return abs(large - round(large)) < 1e-6 * large
