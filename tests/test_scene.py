"""Facts about cameras and poses."""

import math

import pytest
import torch

from conftest import camera_at
from cuao3d.scene import pose_problem


def test_camera_axes_are_opencvs():
    # One metre ahead of the camera, 0.1 to its right and 0.2 above it.
    point = torch.tensor([[0.35, 1.0, 1.2]])
    torch.testing.assert_close(
        camera_at(0.25).camera_from_world(point), torch.tensor([[0.1, -0.2, 1.0]]), check_dtype=False
    )


def test_resizing_keeps_the_centres_of_the_corner_pixels():
    # As the official code turns ScanNet's 640 x 480 intrinsics into those of 320 x 240.
    camera = camera_at(0.0).resized(640, 480).resized(320, 240)
    assert camera.focal.tolist() == pytest.approx([200.0, 200.0])
    assert camera.center.tolist() == pytest.approx([319 / 2, 239 / 2])


def test_a_rotation_has_no_problem():
    cos, sin = math.cos(0.3), math.sin(0.3)
    pose = torch.tensor([[cos, -sin, 0, 5], [sin, cos, 0, -2], [0, 0, 1, 1], [0, 0, 0, 1]], dtype=torch.float64)
    assert pose_problem(pose) is None


@pytest.mark.parametrize(
    ("entry", "value", "words"),
    [((0, 3), math.inf, "lost"), ((0, 0), 2.0, "no rotation"), ((2, 2), -1.0, "mirrors"), ((3, 0), 1.0, "last row")],
)
def test_a_pose_that_moves_nothing_rigidly_is_named(entry, value, words):
    pose = torch.eye(4, dtype=torch.float64)
    pose[entry] = value
    assert words in pose_problem(pose)


def test_a_pose_so_huge_that_its_square_overflows_is_no_rotation():
    pose = torch.eye(4, dtype=torch.float64)
    pose[:2, :2] = torch.tensor([[1e200, 1e200], [-1e200, 1e200]], dtype=torch.float64)
    assert "no rotation" in pose_problem(pose)
