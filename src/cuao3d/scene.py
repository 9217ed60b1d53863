"""What a capture is: cameras, frames and scenes, as frozen dataclasses that every room shares.

Metres; world frame z up; camera axes as in OpenCV (x right, y down, z forward); pixel (0, 0) is the centre of the
top-left pixel; RGB in [0, 1]; a depth of 0 is missing; label 255 is unlabelled. See `docs/conventions.md`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Float32, Float64, Int16, Int64
from torch import Tensor

from cuao3d.errors import InputError, PoseError

UNLABELLED = 255
"""Label of a point that belongs to no class of its label set; ignored by every score."""

ROTATION_TOLERANCE = 1e-3
"""How far R Rᵀ may be from the identity in a pose written by a real capture."""

OPENGL = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
"""Turns camera axes as in OpenGL (x right, y up, z backward) into ours, and back: `world_from_camera @ OPENGL`."""

Split = Literal["train", "val", "test"]

ProblemKind = Literal["pose", "frame", "file", "cloud", "labels", "features", "other"]


@dataclass(frozen=True)
class Problem:
    """Something that was left out, and why."""

    kind: ProblemKind
    """What was left out: a frame because of its pose or for another reason, a file that no frame needs or a part of
    one, points or colours of the cloud, labels, or features."""
    text: str
    """One line for people; names the frame or file."""

    def __str__(self) -> str:
        return self.text

    @staticmethod
    def of_frame(name: str, error: Exception) -> "Problem":
        """Return the problem of a frame that an error leaves out."""
        return Problem("pose" if isinstance(error, PoseError) else "frame", f"{name} left out: {error}")


@dataclass(frozen=True)
class Camera:
    """Pinhole camera of one view, without distortion."""

    focal: Float64[Tensor, "2"]
    """Focal lengths (fx, fy), pixels."""
    center: Float64[Tensor, "2"]
    """Principal point (cx, cy), pixels."""
    width: int
    """Image width, pixels."""
    height: int
    """Image height, pixels."""
    world_from_camera: Float64[Tensor, "4 4"]
    """Pose: camera to world, metres."""

    def camera_from_world(self, points: Float[Tensor, "N 3"]) -> Float64[Tensor, "N 3"]:
        """Move world points into the camera's frame.

        Args:
            points: World positions, metres.

        Returns:
            Positions in camera axes, metres, in double precision: rounding to a pixel must not depend on it.
        """
        camera_from_world: Tensor = torch.linalg.inv(self.world_from_camera.to(points.device))
        return points.double() @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]

    def resized(self, width: int, height: int) -> "Camera":
        """Return this camera for its image resized.

        The centres of the corner pixels stay where they are, as in the official intrinsics.

        Args:
            width: New width, pixels.
            height: New height, pixels.
        """
        scale = torch.tensor([width / self.width, height / self.height], dtype=torch.float64)
        corner = torch.tensor([(width - 1) / (self.width - 1), (height - 1) / (self.height - 1)], dtype=torch.float64)
        return replace(self, focal=self.focal * scale, center=self.center * corner, width=width, height=height)


@dataclass(frozen=True)
class Frame:
    """One posed RGB-D view; its pixels are read when asked for. Colour and depth are registered and of one size."""

    name: str
    """Name of the view within its scene, for messages."""
    camera: Camera
    """Camera of both images."""
    read_image: Callable[[], Float32[Tensor, "3 H W"]]
    """Reads the colours, RGB in [0, 1]; raises UserError or OSError that names the file."""
    read_depth: Callable[[], Float32[Tensor, "H W"]]
    """Reads the depth along the optical axis, metres, 0 = missing; raises UserError or OSError that names the file."""
    has_colors: bool = True
    """Whether there is a photograph; without one `read_image` raises InputError."""


@dataclass(frozen=True)
class Scene:
    """A room: its points and the views of it."""

    name: str
    """Name of the scene within its dataset."""
    points: Float32[Tensor, "N 3"]
    """World positions, metres."""
    frames: tuple[Frame, ...]
    """Views, in capture order."""
    colors: Float32[Tensor, "N 3"] | None = None
    """RGB of each point, in [0, 1]."""
    labels: Int64[Tensor, "N"] | None = None
    """Class of each point, an id of `label_set`; 255 where unlabelled. Never read by teachers or by distillation."""
    label_set: str | None = None
    """Label set of `labels`: one of `labels.LABEL_SETS`, or the path of a CSV."""
    normals: Float32[Tensor, "N 3"] | None = None
    """Unit surface normals, world axes."""
    split: Split = "train"
    """Part of its dataset that the scene belongs to."""
    occlusion_tolerance: float = 0.25
    """A point is visible where |z - depth| <= tolerance * depth; belongs to the dataset's recipe."""
    problems: tuple[Problem, ...] = ()
    """What the reader left out and why."""
    capture_from_world: Float64[Tensor, "4 4"] | None = None
    """Takes world positions to the coordinates of the capture's pose files: a similarity; None where they are the
    same."""


@dataclass(frozen=True)
class Source:
    """What decides a scene: if nothing of it has changed, the scene is the same and need not be lifted again."""

    settings: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    """How the files are read, or what the scene is made from."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Files that are read for the scene, by a name that stays the same when their folder is moved."""
    folder: Path | None = None
    """Folder of the capture."""

    @staticmethod
    def of_folder(folder: Path, patterns: Iterable[str], **settings: str | int | float | bool | None) -> "Source":
        """Return the source of a capture.

        Args:
            folder: The capture.
            patterns: Which of its files are read, as of `Path.glob`; with "../" before it, files beside the folder.
            settings: How they are read.
        """
        files = {}
        for pattern in patterns:
            where = folder.parent if pattern.startswith("../") else folder
            for path in where.glob(pattern.removeprefix("../")):
                if path.is_file() and not path.name.startswith("."):
                    files[("../" if where != folder else "") + path.relative_to(where).as_posix()] = path
        return Source(settings, files, folder)


def narrow_labels(labels: Int64[Tensor, "N"]) -> Int16[Tensor, "N"]:
    """Return labels in 16 bits.

    Raises:
        InputError: One is no id of any label set; in 16 bits it could become one.
    """
    wrong = labels[(labels > UNLABELLED) | (labels < -UNLABELLED)]
    if len(wrong):
        raise InputError(
            f"Labels go from 0 to {UNLABELLED - 1}, and {UNLABELLED} is unlabelled; {wrong[0]} is neither."
        )
    return labels.to(torch.int16)


def pose_problem(world_from_camera: Float64[Tensor, "4 4"], *, tolerance: float = ROTATION_TOLERANCE) -> str | None:
    """Say what is wrong with a pose, or return None for a rigid motion.

    Args:
        world_from_camera: Camera-to-world matrix, metres.
        tolerance: Largest |R Rᵀ - 1| that a real capture may have.
    """
    if not torch.isfinite(world_from_camera).all():
        return "the pose is lost (it holds NaN or infinity)"
    rotation = world_from_camera[:3, :3]
    error = (rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max().item()
    if not error <= tolerance:  # huge entries overflow to NaN
        return f"the pose is no rotation (|R Rᵀ - 1| is {error:.2g}, more than {tolerance:g})"
    if torch.linalg.det(rotation) < 0:
        return "the pose mirrors space (its determinant is -1)"
    if (world_from_camera[3] - torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)).abs().max() > tolerance:
        return "the pose's last row is not 0 0 0 1"
    return None
