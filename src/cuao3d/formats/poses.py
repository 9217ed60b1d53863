"""Poses as files write them: a position and a quaternion, or the numbers of a matrix one after the other."""

import torch
from jaxtyping import Float64
from scipy.spatial.transform import Rotation
from torch import Tensor

from cuao3d.errors import PoseError
from cuao3d.schema import is_number_or_lost, shown

UNIT_LENGTH = 0.05
"""How far the length of a quaternion may be from 1; many files have few decimals."""


def from_quaternion(
    quaternion: Float64[Tensor, "4"], position: Float64[Tensor, "3"], where: str
) -> Float64[Tensor, "4 4"]:
    """Return the rigid motion of a quaternion and a position.

    Args:
        quaternion: x y z w; its length is 1, or nearly so.
        position: x y z.
        where: File and entry, for messages.

    Raises:
        PoseError: The pose is lost (NaN or infinity), or the quaternion has another length.
    """
    if not (quaternion.isfinite().all() and position.isfinite().all()):
        raise PoseError(f"{where}: the pose is lost (it holds NaN or infinity).")
    length = float(quaternion.norm())
    if not abs(length - 1) <= UNIT_LENGTH:
        raise PoseError(f"{where}: its quaternion has length {length:.3g}, not 1; correct it, or remove the frame.")
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.from_numpy(Rotation.from_quat(quaternion.numpy()).as_matrix())
    pose[:3, 3] = position
    return pose


def from_flat(entry: object, where: str, *, size: int) -> Float64[Tensor, "S S"]:
    """Return a square matrix from an entry of a JSON file that lists its numbers, row by row.

    Args:
        entry: The entry; numbers may be NaN or infinite.
        where: File and entry, for messages.
        size: Rows of the matrix.

    Raises:
        PoseError: The entry is something else; the message begins with `where`.
    """
    if not isinstance(entry, list) or len(entry) != size * size or not all(map(is_number_or_lost, entry)):
        raise PoseError(f"{where} is {shown(entry)}; expected a list of {size * size} numbers.")
    return torch.tensor(entry, dtype=torch.float64).reshape(size, size)
