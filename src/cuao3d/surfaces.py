"""Surfaces: what the geometry of a scene is at its samples, for probes of features to predict.

A feature can only know what its point of view allows. A student's feature has no view, and its training turns scenes
about the vertical, so it can know of a point what no turn changes: `inclination` and `height`. A lifted feature is a
mean over views; where a single view sees a sample it is that view's feature alone, and what the view shows is well
defined: `normal` and `depth` in its camera, as Probe3D (El Banani et al., CVPR 2024) asks of image models.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from cuao3d.geometry import quarters_to_upright, visible_points
from cuao3d.store import StoredScene

Quantity = Literal["inclination", "height", "normal", "depth"]

UP = torch.tensor([0.0, 0.0, 1.0])
"""The world's up."""

QUARTER = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
"""Camera axes of an image from those of the same image turned counter-clockwise by a quarter."""

FLOOR = 0.01
"""Share of a scene's points that lie below its floor: outliers."""


@dataclass(frozen=True)
class Kind:
    """What a quantity is."""

    unit: str
    """Unit of its error."""
    width: int
    """Numbers that it consists of."""
    about: str
    """What it is, in one line."""
    of_view: bool
    """Whether it is of the view that sees a sample and not of the place: only lifted features can know it."""


KINDS: dict[Quantity, Kind] = {
    "inclination": Kind("degrees", 1, "of the normal to the vertical: 0 on floors, 90 on walls", of_view=False),
    "height": Kind("metres", 1, "above the floor, the lowest hundredth of the scene's points", of_view=False),
    "normal": Kind("degrees", 3, "in the axes of the only view that sees the sample, towards the camera", of_view=True),
    "depth": Kind("metres", 1, "along the optical axis of the only view that sees the sample", of_view=True),
}
"""The quantities."""


@dataclass(frozen=True)
class Surfaces:
    """The surface at each sample of a scene."""

    values: dict[Quantity, Float[Tensor, "S D"]]
    """Each quantity; NaN where it is not defined."""
    place: Float[Tensor, "S 2"]
    """Where in the image of its only view a sample lies: (x, y) from -1 at the left and top border to 1; else NaN."""


def surfaces(scene: StoredScene, *, upright: bool = False) -> Surfaces:
    """Measure the surface at each sample of a scene.

    - `inclination`: `acos |n . up|`, degrees, 0 to 90. The sign of a normal, which clouds do not agree on, is left out.
    - `height`: metres above the floor, below which `FLOOR` of the points lie.
    - `normal`: unit normal in camera axes (x right, y down, z forward), turned towards the camera.
    - `depth`: metres along the optical axis.

    The last two are of samples that one view sees and whose place lies in the image of one camera only, which therefore
    is the view's.

    Args:
        scene: The scene.
        upright: Whether the images were turned to be upright; the camera axes are turned with them.

    Returns:
        The quantities; those that need a normal are not defined anywhere if the cloud has none.
    """
    points = scene.sample_points
    normals = torch.full_like(points, torch.nan)
    if scene.normals is not None:
        normals = functional.normalize(scene.normals[scene.index_of_sample].float(), dim=1)
        normals[normals.norm(dim=1) < 0.5] = torch.nan  # of points without one
    floor = scene.points[:, 2].kthvalue(max(1, round(FLOOR * len(scene.points)))).values
    camera_of_sample, place = only_cameras(scene)
    normal, depth = torch.full_like(points, torch.nan), torch.full_like(points[:, :1], torch.nan)
    quarters = quarters_to_upright(scene.cameras, UP.double()) if upright else [0] * len(scene.cameras)
    for index, camera in enumerate(scene.cameras):
        rows = torch.nonzero(camera_of_sample == index).squeeze(1)
        turn = torch.matrix_power(QUARTER, quarters[index])
        rotation = camera.world_from_camera[:3, :3] @ turn
        towards = camera.world_from_camera[:3, 3].float() - points[rows]
        facing = normals[rows] * (normals[rows] * towards).sum(dim=1, keepdim=True).sign()
        normal[rows] = facing @ rotation.float()
        place[rows] = place[rows] @ turn[:2, :2].float()
        depth[rows, 0] = camera.camera_from_world(points[rows])[:, 2].float()
    inclination = torch.rad2deg(torch.acos((normals @ UP).abs().clamp(max=1)))
    values: dict[Quantity, Tensor] = {"inclination": inclination[:, None], "height": points[:, 2:] - floor}
    return Surfaces(values | {"normal": normal, "depth": depth}, place)


def only_cameras(scene: StoredScene) -> tuple[Int64[Tensor, "S"], Float[Tensor, "S 2"]]:
    """Return the camera of the only view that sees each sample, and where in its image.

    A store keeps how many views see a sample, and not which. It is certain where one view sees it at all and it lies in
    the image of a single camera.

    Args:
        scene: The scene.

    Returns:
        The index of the camera, or -1, and the place, as in `Surfaces`.
    """
    num_inside = torch.zeros_like(scene.num_views)
    camera_of_sample = torch.full_like(scene.num_views, -1)
    place = torch.zeros(len(scene.num_views), 2)
    for index, camera in enumerate(scene.cameras):
        anywhere = torch.ones(camera.height, camera.width)
        inside = visible_points(scene.sample_points, camera, anywhere, occlusion_tolerance=math.inf)
        num_inside[inside.index] += 1
        camera_of_sample[inside.index] = index
        size = torch.tensor([camera.width - 1, camera.height - 1])
        place[inside.index] = (2 * inside.pixels / size - 1).float()
    certain = (scene.num_views == 1) & (num_inside == 1)
    return camera_of_sample.where(certain, -1), place.where(certain[:, None], math.nan)
