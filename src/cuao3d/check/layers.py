"""Colours laid on depth: as given, moved, through another lens, upside down, mirrored, or of another frame."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

from cuao3d.check.registration import NEARBY, PEAK, REACH, STANDS_OUT, correlate, edges_of, find_offset
from cuao3d.check.views import View, thin_photo
from cuao3d.errors import UserError
from cuao3d.scene import Scene

JUMPS = 0.004
"""Share of a view's pixels where depth must jump for its edges to tell anything."""

LEAST_VIEWS = 3
"""Views with enough jumps that must agree before colours are called moved, or of another lens."""

MOST_OF = 0.6
"""... and that must be at least this share of the views with enough jumps."""

MANY_VIEWS = 5
"""Views with enough jumps from which on it means something that none of their edges fit."""

NUM_VIEWS = 16
"""Views whose edges are looked at through other lenses."""

NUM_READ = 12
"""Views for which the photographs of other frames are read."""

LAGS = (1, -1, 2, -2, 3, -3)
"""How many frames later the photographs are that are tried."""

RATIOS = np.arange(0.84, 1.161, 0.02)
"""Focal lengths of the colours' lens that are tried, as parts of the depth's."""

FINER = np.arange(-0.02, 0.0201, 0.005)
"""... and around the best of them."""

OTHER_LENS = 0.015
"""Part by which the focal lengths differ before it matters; also the precision of the ratio, about."""

FITS_BETTER = 1.15
"""Edges must fit this many times better through the other lens, or with photographs turned."""

Kind = Literal["as given", "moved", "other lens", "upside down", "mirrored", "another frame", "none", "untold"]


class Layers(NamedTuple):
    """Where colours lie on depth."""

    kind: Kind
    """"none": edges fit nowhere, though there are many; "untold": there are too few."""
    x: int
    """Pixels of the image that a thing is further right in colour than in depth."""
    y: int
    """Pixels that it is further down."""
    certain: bool
    """Whether edges fit clearly best there; otherwise x and y mean nothing."""
    moved: bool
    """Whether the offset is certain and large enough to matter, in enough views."""
    focal: float
    """Focal length of the colours' lens, as a part of the depth's; 1 unless that fits clearly better."""
    lag: int
    """How many frames later the photograph is that fits."""
    fit: float
    """Correlation of edges and jumps, as given."""
    best: float
    """... and at its best."""
    num_views: int
    """Views with enough jumps."""


def lay(scene: Scene, views: Sequence[View]) -> Layers:
    """Lay edges of colour on jumps of depth, in every way that usually goes wrong.

    Args:
        scene: The scene; photographs of other frames are read where no edges fit.
        views: Its views that were read.
    """
    telling = [view for view in views if view.photo.jumps.float().mean() >= JUMPS]
    chosen = telling or list(views)
    width, step = scene.frames[0].camera.width, views[0].photo.thinned_by
    offsets = torch.stack([view.photo.offsets for view in chosen])
    offset, fit = find_offset(offsets, step, width), _near(offsets.mean(dim=0), 0, 0)
    best = float(offsets.mean(dim=0).max())
    moved = offset.moved and _in_most(_gain(offsets, offset.x // step, offset.y // step))
    found = Layers("as given", offset.x, offset.y, offset.certain, moved, 1.0, 0, fit, best, len(telling))
    alike = [view for view in telling if view.photo.jumps.shape == telling[0].photo.jumps.shape]
    lies_there = offset.certain and not offset.moved
    turned = None if lies_there or len(alike) < MANY_VIEWS else _turned(alike)
    if turned and turned["best"] > FITS_BETTER * best:
        return found._replace(**turned)
    if len(alike) >= LEAST_VIEWS and (lens := _other_lens(alike, max(best, fit))):
        return found._replace(**lens)
    if moved:
        return found._replace(kind="moved")
    if offset.certain or best > PEAK:
        return found
    if len(alike) < MANY_VIEWS:
        return found._replace(kind="untold")
    return found._replace(**(turned or _of_another_frame(scene, alike) or {"kind": "none"}))


def _near(agreement: Float[Tensor, "d d"], x: int, y: int, within: int = 1) -> float:
    """Return the correlation at an offset, or at one beside it."""
    row, column = REACH + y, REACH + x
    return float(
        agreement[max(0, row - within) : row + within + 1, max(0, column - within) : column + within + 1].max()
    )


def _gain(offsets: Float[Tensor, "V d d"], x: int, y: int) -> list[bool]:
    """Say for each view whether it fits better at an offset than at none."""
    return [_near(one, x, y) > _near(one, 0, 0) for one in offsets]


def _in_most(agree: Sequence[bool]) -> bool:
    return sum(agree) >= max(LEAST_VIEWS, MOST_OF * len(agree))


def _other_lens(views: Sequence[View], best_as_given: float) -> dict[str, Any] | None:
    """Say which other lens fits clearly better, if one does."""
    views = [views[place] for place in np.linspace(0, len(views) - 1, min(len(views), NUM_VIEWS)).round().astype(int)]
    edges = torch.stack([view.photo.edges.float() for view in views])
    jumps = torch.stack([view.photo.jumps.float() for view in views])
    step = views[0].photo.thinned_by
    small = functional.avg_pool2d(edges, 2), functional.max_pool2d(jumps, 2)
    coarse = [float(_through(*small, ratio).mean(dim=0).max()) for ratio in RATIOS.tolist()]
    middle = float(RATIOS[int(np.argmax(coarse))])
    fine = {ratio: _through(edges, jumps, ratio) for ratio in (middle + FINER).tolist()}
    ratio = max(fine, key=lambda one: float(fine[one].mean(dim=0).max()))
    agreement, given = fine[ratio].mean(dim=0), _through(edges, jumps, 1.0)
    best = float(agreement.max())
    if abs(ratio - 1) < OTHER_LENS or best < max(PEAK, FITS_BETTER * max(best_as_given, float(given.mean(0).max()))):
        return None
    row, column = divmod(int(agreement.argmax()), agreement.shape[1])
    joint = divmod(int(given.mean(dim=0).argmax()), agreement.shape[1])
    better = [
        _near(other, column - REACH, row - REACH) > _near(one, joint[1] - REACH, joint[0] - REACH)
        for other, one in zip(fine[ratio], given, strict=True)
    ]
    if not _in_most(better):
        return None
    x, y = (round(_middle(profile) * ratio * step) for profile in (agreement[row], agreement[:, column]))
    return {
        "kind": "other lens", "x": x, "y": y, "certain": True, "moved": False, "focal": round(ratio, 4), "best": best,
    }  # fmt: skip


def _middle(profile: Float[Tensor, "d"]) -> float:
    """Return the offset around which a peak lies: lenses side by side move near edges further than far ones."""
    best = int(profile.argmax())
    first = max(0, best - NEARBY)
    peak = profile[first : best + NEARBY + 1]
    weights = (peak - peak.max() / 2).clamp(min=0)
    return float(weights @ torch.arange(first, first + len(peak), dtype=weights.dtype) / weights.sum()) - REACH


def _through(
    edges: Float32[Tensor, "V H W"], jumps: Float32[Tensor, "V H W"], ratio: float
) -> Float32[Tensor, "V d d"]:
    """Correlate edges with jumps as if colours had a lens whose focal length is a part of the depth's."""
    if ratio == 1:
        return correlate(edges, jumps)
    scaling = torch.tensor([[ratio, 0.0, 0.0], [0.0, ratio, 0.0]], dtype=torch.float32).expand(len(edges), 2, 3)
    grid = functional.affine_grid(scaling, [len(edges), 1, *edges.shape[1:]], align_corners=False)
    inside = (grid.abs() <= 1).all(dim=-1)
    seen = functional.grid_sample(edges[:, None], grid, align_corners=False)[:, 0]
    middle = (seen * inside).sum(dim=(1, 2), keepdim=True) / inside.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    return correlate(seen.where(inside, middle), jumps)  # beyond the image there are no edges that could be missed


def _turned(views: Sequence[View]) -> dict[str, Any] | None:
    """Say whether photographs fit upside down, or mirrored."""
    jumps = torch.stack([view.photo.jumps.float() for view in views])
    edges = torch.stack([view.photo.edges.float() for view in views])
    for kind, turned in (("upside down", edges.flip(1, 2)), ("mirrored", edges.flip(2))):
        if (fit := _clear_fit(correlate(turned, jumps))) is not None:
            return {"kind": kind, "best": fit}
    return None


def _of_another_frame(scene: Scene, views: Sequence[View]) -> dict[str, Any] | None:
    """Say whether photographs fit the depth of frames nearby."""
    views = [views[place] for place in np.linspace(0, len(views) - 1, min(len(views), NUM_READ)).round().astype(int)]
    place_of = {frame.name: index for index, frame in enumerate(scene.frames)}
    for lag in LAGS:
        found = []
        for view in views:
            place = place_of[view.name] + lag
            if 0 <= place < len(scene.frames):
                with suppress(UserError, OSError):  # who reads that frame says what is wrong with it
                    edges = edges_of(thin_photo(scene.frames[place].read_image()))
                    if edges.shape == view.photo.jumps.shape:
                        found.append(correlate(edges, view.photo.jumps.float()))
        if len(found) >= LEAST_VIEWS and (fit := _clear_fit(torch.stack(found))) is not None:
            return {"kind": "another frame", "lag": lag, "best": fit}
    return None


def _clear_fit(offsets: Float[Tensor, "V d d"]) -> float | None:
    """Return how well edges fit without an offset, if that stands out, in most views."""
    agreement = offsets.mean(dim=0)
    rest = agreement.clone()
    rest[REACH - NEARBY : REACH + NEARBY + 1, REACH - NEARBY : REACH + NEARBY + 1] = -1
    fit = _near(agreement, 0, 0, within=2)
    fits = [_near(one, 0, 0, within=2) > PEAK for one in offsets]
    return fit if fit > max(PEAK, STANDS_OUT * float(rest.max())) and _in_most(fits) else None
