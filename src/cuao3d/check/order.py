"""Do poses belong to other frames? Asked of the cloud, where it tells, and of the usual mistakes of order."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cuao3d.check.cloud import CELL, share_beside
from cuao3d.check.consistency import BETTER, CONSISTENT, PAIRS, Consistency, measure_consistency
from cuao3d.check.readings import AS_GIVEN
from cuao3d.check.views import View
from cuao3d.fusion import sample_cells
from cuao3d.scene import Scene

LAGS = (1, -1, 2, -2, 3, -3)
"""How many frames later the poses are that are tried."""

NUM_VIEWS, NUM_PROBES = 10, 40
"""Views, and probes of each, that are held against the cloud under the poses of others."""

AT_HOME = 0.8
"""Share of a view's surfaces that meet the cloud under its own pose."""


def frames_elsewhere(scene: Scene, views: list[View], given: Consistency) -> str | None:
    """Say what tells that poses belong to other frames, or return None.

    Args:
        scene: The scene, all of whose poses may be given to its views.
        views: Views that were read.
        given: How they fit together as given.
    """
    place_of = {frame.name: index for index, frame in enumerate(scene.frames)}
    places = [place_of[view.name] for view in views]
    for what, order in _orders(scene):
        moved = [
            view._replace(camera=replace(view.camera, world_from_camera=_pose(scene, order[place])))
            for view, place in zip(views, places, strict=True)
            if 0 <= order[place] < len(scene.frames) and _pose(scene, order[place]).isfinite().all()
        ]
        if len(moved) > 2:
            found = measure_consistency(moved, AS_GIVEN)
            clear = found.agreement > BETTER * given.agreement * (len(moved) / len(views)) ** 2
            if clear and found.consistent >= CONSISTENT and found.num_pairs >= PAIRS:
                return f"They fit ({found.consistent:.0%}) {what}."
    return _by_cloud(scene, views)


def _orders(scene: Scene) -> list[tuple[str, list[int]]]:
    """List the orders in which poses may have been given to frames: the place of the pose of each frame."""
    count = len(scene.frames)
    own = list(range(count))
    by_text = sorted(own, key=lambda index: scene.frames[index].name)
    by_length = sorted(own, key=lambda index: (len(scene.frames[index].name), scene.frames[index].name))
    orders = [
        (f"if each frame has the pose {abs(lag)} {'later' if lag > 0 else 'earlier'}", [one + lag for one in own])
        for lag in LAGS
    ]
    orders.append(("if poses are in reverse order", own[::-1]))
    for order in (by_text, by_length):
        for ranks in (order, np.argsort(order).tolist()):
            if ranks != own:
                orders.append(("if one of both was sorted by text, the other by number", ranks))
    return orders


def _pose(scene: Scene, place: int) -> Tensor:
    return scene.frames[place].camera.world_from_camera


def _by_cloud(scene: Scene, views: list[View]) -> str | None:
    """Say how many views meet the cloud under the pose of another frame, if most do; built from depth it tells none."""
    points = scene.points[sample_cells(scene.points, CELL).index_of_sample]
    poses = [view.camera.world_from_camera for view in views]
    tested = [views[place] for place in np.linspace(0, len(views) - 1, min(len(views), NUM_VIEWS)).round().astype(int)]
    found = 0
    for view in tested:
        few = _thinned(view)
        shares = [
            share_beside(points, [few._replace(camera=replace(few.camera, world_from_camera=pose))], AS_GIVEN)
            for pose in poses
        ]
        own = share_beside(points, [few], AS_GIVEN)
        found += max(shares) >= max(AT_HOME, BETTER * own)
    if found <= len(tested) / 2:
        return None
    return f"{found} of {len(tested)} views meet the cloud under the pose of another frame."


def _thinned(view: View) -> View:
    """Return a view with few probes."""
    pixel = torch.nonzero(view.probes.flatten() > 0).squeeze(1)
    chosen = pixel[np.linspace(0, len(pixel) - 1, min(NUM_PROBES, len(pixel))).round().astype(int)]
    probes = torch.zeros_like(view.probes)
    probes.view(-1)[chosen] = view.probes.reshape(-1)[chosen]
    return view._replace(probes=probes)
