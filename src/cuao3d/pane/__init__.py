"""The 3D pane of a page: clouds that turn in the browser, with a switch for each way to colour them.

A page stays one file that loads nothing: three.js is inlined, and so are the points, in at most 16 bits an axis, and
their colours in 8 bits a channel, packed and in base64. `pane.js` draws them. Where there are no scripts or no WebGL
the pane is not shown, and the still pictures of the page are what there is.
"""

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from markupsafe import Markup
from numpy.typing import NDArray
from torch import Tensor

from cuao3d.colors import COLD, NOTHING, class_colors, cold_colors, glow_of, heat_colors
from cuao3d.labels import LabelSet
from cuao3d.pictures import View
from cuao3d.scene import UNLABELLED

MAX_POINTS = 220_000
"""Points of all clouds of a page together, so that the page stays small."""

PHOTOGRAPH = "Cloud"
"""What the colours of a cloud itself stand under."""

FINE = 16
"""Steps of a position to the radius of a point: nobody sees finer ones, and coarser ones pack better."""

LIGHT_STEPS = 51
"""Steps of the brightness of surfaces; fewer than its byte has, as they pack better."""

NO_SCRIPT = "'none'"

SCRIPTS = ("three.min.js", "pane.js")


@dataclass(frozen=True, eq=False)
class Layer:
    """One way to colour a cloud."""

    name: str
    """What the switch says."""
    group: str
    """What it stands under."""
    colors: Float[Tensor, "N 3"]
    """RGB of each point, in [0, 1]."""
    note: str = ""
    """What it shows, in a few words."""
    legend: tuple[tuple[str, str], ...] = ()
    """Names and their colours, as #rrggbb; empty: no legend."""
    glow: Float[Tensor, "N"] | None = None
    """Of a heat map: how much each point glows over a grey picture of the scene, in [0, 1]."""
    cold: Float[Tensor, "N 3"] | None = None
    """That picture, RGB in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Exhibit:
    """A cloud and its layers."""

    name: str
    """Name of the scene."""
    view: View
    """Its points, and from where they are first looked at."""
    layers: Sequence[Layer]
    """At least one."""


def photograph(colors: Float[Tensor, "N 3"]) -> Layer:
    """Return the layer of the colours that the cloud has."""
    return Layer("Photograph colours", PHOTOGRAPH, colors)


def classes(name: str, group: str, rows: Int64[Tensor, "N"], label_set: LabelSet, note: str = "") -> Layer:
    """Return the layer of a class for each point, a row of a label set; 255 for none."""
    present = torch.bincount(rows, minlength=UNLABELLED + 1)[: len(label_set)].nonzero()[:, 0].tolist()
    legend = [(label_set.names[row], as_hex(label_set.colors[row])) for row in present]
    if UNLABELLED in rows:
        legend.append(("none", as_hex(torch.full((3,), NOTHING))))
    return Layer(name, group, class_colors(rows, label_set), note, tuple(legend))


def heat(
    name: str,
    group: str,
    values: Float[Tensor, "N"],
    colors: Float[Tensor, "N 3"] | None,
    seen: Bool[Tensor, "N"] | None,
    note: str = "",
) -> Layer:
    """Return the layer of a value for each point, in [0, 1]; see `heat_colors`."""
    cold = cold_colors(len(values), colors, seen)
    return Layer(name, group, heat_colors(values, colors, seen), note, glow=values, cold=cold)


def as_hex(color: Tensor) -> str:
    """Return a colour, RGB (3,) in [0, 1], as #rrggbb."""
    return "#" + "".join(f"{round(255 * float(value)):02x}" for value in color)


@dataclass(frozen=True)
class ForPage:
    """What `pane.html.j2` and the head of a page need."""

    policy: str
    """The page's Content-Security-Policy: nothing is loaded, and no script runs but ours."""
    scripts: tuple[Markup, ...]
    """three.js and the script that draws; none where there is nothing to show."""
    data: Markup
    """What it draws."""


def for_page(exhibits: Sequence[Exhibit]) -> ForPage:
    """Return what a page needs to show clouds; without any, it has no pane and may run no script."""
    allowed = scripts() if exhibits else ()
    return ForPage(_policy(allowed), allowed, as_json(exhibits))


def as_json(exhibits: Sequence[Exhibit]) -> Markup:
    """Return what `pane.js` draws, to be put into a script element: no text in it can end that element."""
    weights = [math.sqrt(len(one.layers)) * len(one.view.positions) for one in exhibits]
    share = MAX_POINTS / max(sum(weights), 1)
    glow, strength = glow_of(torch.arange(256) / 255)
    said = {
        "glow": _as_bytes(torch.cat([glow, strength], dim=1)).tolist(),
        "exhibits": [_packed(one, share * weight) for one, weight in zip(exhibits, weights, strict=True)],
    }
    text = json.dumps(said, separators=(",", ":"))
    for character in "<>&":  # `</script>` and `<!--` mean something to a browser even inside a string
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


@cache
def scripts() -> tuple[Markup, ...]:
    """Return three.js and the script that draws the pane, each to be put into a script element as it is."""
    return tuple(Markup((files("cuao3d.pane") / name).read_text(encoding="utf-8")) for name in SCRIPTS)


def _policy(allowed: Sequence[str]) -> str:
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in allowed]
    inline = "img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {' '.join(hashes) or NO_SCRIPT}; {inline}"


def _packed(exhibit: Exhibit, most: float) -> dict[str, Any]:
    """Return a cloud of at most so many points, as JSON can hold it."""
    view = exhibit.view
    every = max(1, math.ceil(len(view.positions) / max(most, 1)))
    positions = view.positions[::every].astype(np.float64)
    low, size = positions.min(axis=0), max(float(np.ptp(positions, axis=0).max()), 1e-6)
    radius = view.radius * math.sqrt(every)
    levels = min(65535, math.ceil(size / radius * FINE))
    steps = np.round((positions - low) / size * levels).astype("<u2")
    order = _along_a_curve(steps)
    walls = np.zeros(len(positions), np.uint8)
    for index, (_, hidden) in enumerate(view.sides):
        walls |= hidden[::every].astype(np.uint8) << index
    kept = torch.arange(0, len(exhibit.layers[0].colors), view.every * every)[torch.from_numpy(order)]
    groups = [layer.group for layer in exhibit.layers]
    layers = sorted(exhibit.layers, key=lambda layer: groups.index(layer.group))
    cold: list[str] = []
    return {
        "name": exhibit.name,
        "points": len(positions),
        "every": view.every * every,
        "low": low.tolist(),
        "size": size,
        "levels": levels,
        "radius": radius,
        "azimuth": view.azimuth,
        "elevation": view.elevation,
        "sides": [np.asarray(outward, np.float64).round(6).tolist() for outward, _ in view.sides],
        "positions": _base64(_differences(steps[order])),
        "walls": _base64(walls[order]),
        "light": _base64((np.round(view.light[::every] * LIGHT_STEPS) * (255 // LIGHT_STEPS)).astype(np.uint8)[order]),
        "layers": [
            {"name": layer.name, "group": layer.group, "note": layer.note, "legend": layer.legend}
            | _colored(layer, kept, cold)
            for layer in layers
        ],
        "cold": cold,
    }


def _colored(layer: Layer, kept: Int64[Tensor, "M"], cold: list[str]) -> dict[str, Any]:
    """Return the colours of the points that are kept: a table and an index, three planes, or a glow over a picture.

    Heat maps of one scene share that picture, which is put into `cold` once.
    """
    if layer.glow is not None and layer.cold is not None:
        picture = _base64(_planes(layer.cold[kept]))
        if picture not in cold:
            cold.append(picture)
        values = layer.glow[kept]
        return {"glow": _base64(_as_bytes(values.where(values > COLD, 0))), "cold": cold.index(picture)}
    table, index = np.unique(_as_bytes(layer.colors[kept]), axis=0, return_inverse=True)
    if len(table) <= 256:
        return {"table": table.tolist(), "index": _base64(index.astype(np.uint8))}
    return {"colors": _base64(_planes(layer.colors[kept]))}


def _planes(colors: Float[Tensor, "M 3"]) -> NDArray[np.uint8]:
    """Return red, and how green and blue differ from it, (3, M): differences of what is grey are nothing."""
    planes = _as_bytes(colors).T.copy()
    planes[1:] -= planes[0]
    return planes


def _as_bytes(colors: Tensor) -> NDArray[np.uint8]:
    table: NDArray[np.uint8] = (colors.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return table


def _along_a_curve(steps: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Return the order of points (N, 3) along Morton's curve: near ones follow each other, which packs well."""
    keys = np.zeros(len(steps), np.uint64)
    for bit in range(16):
        for axis in range(3):
            keys |= (steps[:, axis].astype(np.uint64) >> np.uint64(bit) & np.uint64(1)) << np.uint64(3 * bit + axis)
    return np.argsort(keys, kind="stable")


def _differences(steps: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return how positions (N, 3) differ from the ones before, axis by axis, low bytes first: (3, 2, N)."""
    before = np.concatenate([np.zeros((1, 3), np.uint16), steps[:-1]])
    changes = np.ascontiguousarray((steps - before).T.astype("<u2"))  # of 16 bits, so that differences wrap around
    return np.ascontiguousarray(changes.view(np.uint8).reshape(3, len(steps), 2).transpose(0, 2, 1))


def _base64(values: NDArray[np.uint8]) -> str:
    return base64.b64encode(gzip.compress(np.ascontiguousarray(values).tobytes(), 9, mtime=0)).decode()
