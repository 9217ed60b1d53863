"""Ray casting: depth maps of a triangle mesh."""

from typing import Any

import numpy as np
import torch
from embreex import rtcore_scene
from embreex.mesh_construction import TriangleMesh
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from cuao3d.scene import Camera


def embree_scene(triangles: NDArray[np.float32]) -> rtcore_scene.EmbreeScene:
    """Prepare a mesh for ray casting.

    Args:
        triangles: Corners (T, 3, 3), metres, world frame.
    """
    embree = rtcore_scene.EmbreeScene()
    TriangleMesh(embree, triangles)
    return embree


def cast_depth(embree: rtcore_scene.EmbreeScene, camera: Camera) -> Float32[Tensor, "H W"]:
    """Render the depth of a mesh along the optical axis of a camera, metres; 0 where no ray hits it.

    Args:
        embree: The mesh; see `embree_scene`.
        camera: Pinhole camera.
    """
    rays = pixel_rays(camera).astype(np.float32)
    eye = np.broadcast_to(camera.world_from_camera[:3, 3].numpy(), rays.shape).astype(np.float32)
    hit = embree.run(eye, rays, query="INTERSECT", output=True)
    depth = np.where(hit["primID"] < 0, 0, hit["tfar"])  # rays have z = 1 in camera axes, so their length is the depth
    return torch.from_numpy(depth.astype(np.float32)).reshape(camera.height, camera.width)


def pixel_rays(camera: Camera) -> NDArray[np.floating[Any]]:
    """Return the world direction of each pixel (H * W, 3), row by row; its z in camera axes is 1."""
    column, row = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    fx, fy = camera.focal.tolist()
    cx, cy = camera.center.tolist()
    rotation: NDArray[np.floating[Any]] = camera.world_from_camera[:3, :3].numpy()
    directions = np.stack([(column - cx) / fx, (row - cy) / fy, np.ones(column.shape)], axis=-1).reshape(-1, 3)
    return rotate(directions, rotation)


def rotate(vectors: NDArray[np.floating[Any]], rotation: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return R v for each row v. Not by `@`: a BLAS's threads take longer to synchronise than to multiply 3 columns."""
    rotated: NDArray[np.floating[Any]] = np.einsum("ij,kj->ik", vectors, rotation)
    return rotated
