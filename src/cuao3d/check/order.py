"""Do poses belong to other frames? Asked of the cloud, where it tells, and of the usual mistakes of order."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float64
from scipy.spatial import cKDTree
from torch import Tensor

from cuao3d.check.cloud import CELL, are_beside
from cuao3d.check.consistency import BETTER, CONSISTENT, PAIRS, measure_consistency
from cuao3d.check.readings import AS_GIVEN
from cuao3d.check.views import View
from cuao3d.fusion import sample_cells
from cuao3d.geometry import back_project
from cuao3d.scene import Scene

LAGS = (1, -1, 2, -2, 3, -3)
"""How many frames later the poses are that are tried."""

MOST_VIEWS = 40
"""Views that are moved into each other under each order, about."""

NUM_VIEWS, NUM_PROBES = 10, 40
"""Views, and probes of each, that are held against the cloud under the poses of others."""

AT_HOME = 0.8
"""Share of a view's surfaces that meet the cloud under its own pose."""


def frames_elsewhere(scene: Scene, views: list[View]) -> str | None:
    """Say what tells that poses belong to other frames, or return None.

    Args:
        scene: The scene, all of whose poses may be given to its views.
        views: Views that were read.
    """
    by_cloud = _by_cloud(scene, views)
    if by_cloud:
        return by_cloud
    views = views[:: max(1, len(views) // MOST_VIEWS)]
    place_of = {frame.name: index for index, frame in enumerate(scene.frames)}
    places = [place_of[view.name] for view in views]
    as_given = measure_consistency(views, AS_GIVEN).agreement
    for what, order in _orders(scene):
        moved = [
            view._replace(camera=replace(view.camera, world_from_camera=_pose(scene, order[place])))
            for view, place in zip(views, places, strict=True)
            if 0 <= order[place] < len(scene.frames) and _pose(scene, order[place]).isfinite().all()
        ]
        if len(moved) > 2:
            found = measure_consistency(moved, AS_GIVEN)
            clear = found.agreement > BETTER * as_given * len(moved) / len(views)
            if clear and found.consistent >= CONSISTENT and found.num_pairs >= PAIRS:
                return f"They fit ({found.consistent:.0%}) {what}."
    return None


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
    tree = cKDTree(scene.points[sample_cells(scene.points, CELL).index_of_sample].numpy())
    poses = torch.stack([view.camera.world_from_camera for view in views])
    tested = np.linspace(0, len(views) - 1, min(len(views), NUM_VIEWS)).round().astype(int).tolist()
    found = 0
    for place in tested:
        seen = _probes_of(views[place])
        surfaces = seen @ poses[:, :3, :3].mT + poses[:, None, :3, 3]
        shares = are_beside(tree, surfaces.flatten(0, 1)).reshape(len(poses), -1).mean(axis=1)
        found += bool(shares.max() >= max(AT_HOME, BETTER * shares[place]))
    if found <= len(tested) / 2:
        return None
    return f"{found} of {len(tested)} views meet the cloud under the pose of another frame."


def _probes_of(view: View) -> Float64[Tensor, "n 3"]:
    """Return some probes of a view in its camera's axes, metres."""
    still = replace(view.camera, world_from_camera=torch.eye(4, dtype=torch.float64))
    points, _ = back_project(view.probes, still)
    return points[np.linspace(0, len(points) - 1, min(NUM_PROBES, len(points))).round().astype(int)].double()
