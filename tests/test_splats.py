import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import camera_at
from cuao3d.check import dataset as check_dataset
from cuao3d.check.options import fix
from cuao3d.fusion import sample_cells, see
from cuao3d.readers import open_dataset, splats
from cuao3d.readers.capture import NoDepthError
from cuao3d.readers.splats import Surface, cover, splat_depth
from cuao3d.scene import Scene
from written import WRITERS, save_cloud


def wall(y: float, spacing: float, *, half: float = 1.2) -> Tensor:
    """A grid of points on the plane of a y, around the cameras' height."""
    steps = torch.arange(-half, half, spacing) + spacing / 3
    return torch.cartesian_prod(steps, torch.tensor([y]), steps + 1)


@pytest.fixture
def dense_scene(synthetic_scene: Scene) -> Scene:
    """The synthetic scene with a point every 1.5 cm: the wall, and the picture that hides its middle."""
    back = wall(2.0, 0.015, half=1.0)
    front = wall(1.0, 0.015, half=0.25)
    return replace(
        synthetic_scene,
        points=torch.cat([back, front]),
        colors=torch.full((len(back) + len(front), 3), 0.5),
        labels=None,
    )


def without_depth(scene: Scene, layout: str, folder: Path) -> Path:
    """Write a scene in a layout, and remove its depth images."""
    path = WRITERS[layout](scene, folder)
    for depth in [*path.rglob("*depth*/*.png"), *path.rglob("*depth*.png")]:
        depth.unlink(missing_ok=True)
    if (about := path / "transforms.json").is_file():
        content = json.loads(about.read_text())
        for entry in content["frames"]:
            del entry["depth_file_path"]
        about.write_text(json.dumps(content))
        save_cloud(scene, path / "points.ply")
    return path


@pytest.mark.parametrize("spacing", [0.02, 0.05, 0.1])
def test_a_wall_of_points_has_its_depth_without_holes_at_any_spacing(spacing: float):
    depth = splat_depth(cover(wall(2.0, spacing, half=2)), camera_at(0))
    torch.testing.assert_close(depth, torch.full((48, 64), 2.0), rtol=0, atol=1e-4)


def test_discs_lie_in_the_plane_of_their_neighbours_and_span_to_the_eighth_of_them():
    surface = cover(wall(2.0, 0.1))
    assert surface.normals[:, 1].abs().min() > 0.999
    # On a grid the eighth neighbour of a point in the middle is a diagonal one.
    assert surface.radii.median().item() == pytest.approx(0.7 * 0.1 * 2**0.5, rel=1e-4)


def test_a_slanted_wall_has_the_depth_of_its_plane():
    # y = 2 + x: a ray (r, d, 1) of the camera at the origin meets it at depth 2 / (1 - r).
    points = wall(0.0, 0.1, half=3)
    points[:, 1] = 2 + points[:, 0]
    depth = splat_depth(cover(points), camera_at(0))
    right = (torch.arange(64.0) - 31.5) / 40
    expected = (2 / (1 - right)).expand(48, 64)
    torch.testing.assert_close(depth[:, :40], expected[:, :40], rtol=0, atol=2e-3)


def test_the_nearest_surface_counts_and_what_is_behind_the_camera_does_not():
    points = torch.cat([wall(3.0, 0.03, half=3), wall(1.0, 0.03, half=0.5), wall(-1.0, 0.03)])
    depth = splat_depth(cover(points), camera_at(0))
    assert (depth[14:34, 22:42] - 1).abs().max() < 1e-4  # half of 0.5 m at 1 m: 20 pixels of focal length 40
    assert (depth[:, :8] - 3).abs().max() < 1e-4
    assert splat_depth(cover(wall(-1.0, 0.03)), camera_at(0)).eq(0).all()


def test_denser_parts_have_smaller_discs():
    surface = cover(torch.cat([wall(2.0, 0.02, half=0.5), wall(3.0, 0.04, half=0.5)]))
    near, far = (surface.radii[(surface.centers[:, 1] - y).abs() < 0.1].median() for y in (2.0, 3.0))
    assert far / near == pytest.approx(2, rel=0.01)


def test_a_lone_point_is_no_large_surface():
    surface = cover(torch.cat([wall(2.0, 0.02), torch.tensor([[0.0, 1.0, 1.0]])]))
    assert surface.radii.max() <= splats.LARGEST * surface.radii.median() * 1.001
    assert 0 < (splat_depth(surface, camera_at(0)) - 1).abs().lt(1e-3).sum() <= 25


@pytest.mark.parametrize("num_points", [1, 2, 5, 9])
def test_a_few_points_are_drawn(num_points: int):
    points = torch.tensor([[0.0, 2.0, 1.0]]) + torch.arange(num_points)[:, None] * torch.tensor([[0.3, 0.0, 0.0]])
    depth = splat_depth(cover(points[:, [0, 1, 2]]), camera_at(0))
    assert depth[24, 32] == 2
    assert torch.isfinite(depth).all()


def test_the_cloud_is_drawn_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch):
    points = torch.cat([wall(3.0, 0.05, half=3), wall(1.0, 0.05, half=0.5)])
    expected = splat_depth(cover(points), camera_at(0))
    monkeypatch.setattr(splats, "BLOCK", 300)
    assert splat_depth(cover(points), camera_at(0)).equal(expected)


def test_a_cloud_far_from_the_origin_and_one_of_repeated_points_are_covered():
    points = wall(2.0, 0.02)
    moved = cover(points + torch.tensor([8000.0, 0.0, 0.0]))
    assert len(moved.centers) == pytest.approx(len(points), rel=0.05)
    surface = cover(points.repeat(20, 1))
    assert (len(surface.centers), surface.radii.min() > 0) == (len(points), True)


def test_large_images_repeat_the_pixels_of_a_small_one(monkeypatch: pytest.MonkeyPatch):
    surface = cover(torch.cat([wall(3.0, 0.03, half=3), wall(1.0, 0.03, half=0.5)]))
    camera = camera_at(0).resized(320, 240)
    large = splat_depth(surface, camera)
    monkeypatch.setattr(splats, "LONGEST_EDGE", 160)
    small = splat_depth(surface, camera)
    assert small.shape == (240, 320)
    assert (small - large).abs().lt(1e-3).double().mean() > 0.98


def test_every_disc_is_drawn_as_by_looking_at_all_of_them():
    torch.manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(40, 3), dim=1)
    centers = torch.rand(40, 3) * torch.tensor([2.0, 2.0, 1.0]) + torch.tensor([-1.0, 0.8, 0.5])
    surface, camera = Surface(centers, normals, torch.rand(40) * 0.2), camera_at(0.1)
    expected = torch.full((48, 64), torch.inf)
    column, row = torch.meshgrid(torch.arange(64.0).double(), torch.arange(48.0).double(), indexing="xy")
    rays = torch.stack([(column - 31.5) / 40, (row - 23.5) / 40, torch.ones(48, 64).double()], dim=-1)
    in_camera = camera.camera_from_world(centers)
    turned = normals.double() @ camera.world_from_camera[:3, :3]
    for center, normal, radius in zip(in_camera, turned, surface.radii.double(), strict=True):
        column, row = (center[:2] / center[2] * camera.focal + camera.center).round().long().tolist()
        z = (center @ normal) / (rays @ normal)
        met = (z[..., None] * rays - center).norm(dim=-1) <= radius
        own = torch.zeros_like(met)
        if 0 <= column < 64 and 0 <= row < 48:
            own[row, column] = True
        expected = expected.minimum(z.where(met, torch.inf).float())
        expected = expected.minimum(center[2].expand(48, 64).where(own & ~met, torch.inf).float())
    depth = splat_depth(surface, camera)
    close = (depth - expected.where(expected.isfinite(), 0)).abs() < 1e-4
    assert close.double().mean() > 0.999  # but for pixels on the rim of a disc


@pytest.mark.parametrize("layout", ["sevenscenes", "folder", "nerfstudio", "replica", "arkitscenes"])
def test_photographs_without_depth_have_that_of_the_cloud(layout: str, dense_scene: Scene, tmp_path: Path):
    path = without_depth(dense_scene, layout, tmp_path / "capture")
    with pytest.raises(NoDepthError, match=r'No frame of .*write \{"depth": "cloud"\} to .*capture\.json.*--fix'):
        open_dataset(path)[0]
    (path / "capture.json").write_text('{"depth": "cloud"}')
    scene = open_dataset(path)[0]
    samples = sample_cells(scene.points, 0.02)
    seen, expected = see(scene, samples, border=2), see(dense_scene, samples, border=2)
    for mine, true in zip(seen.views, expected.views, strict=True):
        found, there = set(mine.sample.tolist()), set(true.sample.tolist())
        assert len(found & there) > 0.9 * len(there)
        assert len(found - there) < 0.02 * len(there)
    for frame, before in zip(scene.frames, dense_scene.frames, strict=True):
        torch.testing.assert_close(frame.read_image(), before.read_image(), rtol=0, atol=0.6 / 255)


def test_a_folder_without_depth_needs_no_folder_for_it(dense_scene: Scene, tmp_path: Path):
    path = without_depth(dense_scene, "folder", tmp_path / "capture")
    shutil.rmtree(path / "depth")
    shutil.move(path / "intrinsic" / "intrinsic_color.txt", path / "intrinsics.txt")
    shutil.rmtree(path / "intrinsic")
    (path / "capture.json").write_text('{"depth": "cloud"}')
    scene = open_dataset(path)[0]
    assert scene.frames[0].camera.focal.tolist() == [40, 40]
    assert (scene.frames[0].read_depth()[4:-4, 26:36] > 0).all()


def test_the_frames_that_have_depth_keep_it(dense_scene: Scene, tmp_path: Path):
    path = WRITERS["folder"](dense_scene, tmp_path / "capture")
    (path / "depth" / "1.png").unlink()
    scene = open_dataset(path)[0]
    assert [frame.name for frame in scene.frames] == ["0"]
    (problem,) = scene.problems
    assert problem.kind == "frame"
    assert str(problem).endswith('Or take depth from the cloud: {"depth": "cloud"} in capture.json.')
    (path / "capture.json").write_text('{"depth": "cloud", "depth_scale": 2}')
    first, second = open_dataset(path)[0].frames
    assert first.read_depth().equal(2 * dense_scene.frames[0].read_depth())
    assert second.read_depth()[24, 32].item() == pytest.approx(1, abs=1e-3)


def test_a_sparse_cloud_is_no_hint(synthetic_scene: Scene, tmp_path: Path):
    path = without_depth(synthetic_scene, "folder", tmp_path / "capture")
    with pytest.raises(ValueError, match=r"No usable frame in .*0\.png is missing; restore it") as caught:
        open_dataset(path)[0]
    assert "from the cloud" not in str(caught.value)


def test_without_a_cloud_there_is_no_depth_of_it(dense_scene: Scene, tmp_path: Path):
    path = without_depth(dense_scene, "folder", tmp_path / "capture")
    (path / "points.ply").unlink()
    (path / "capture.json").write_text('{"depth": "cloud"}')
    with pytest.raises(ValueError, match=r'capture\.json says "depth": "cloud", but there is no cloud'):
        open_dataset(path)[0]


def test_check_fix_writes_what_gives_depth(dense_scene: Scene, tmp_path: Path):
    path = without_depth(dense_scene, "folder", tmp_path / "capture")
    report = check_dataset.check_dataset(open_dataset(path)).reports["capture"]
    assert (report.verdict, report.options) == ("unreadable", {"depth": "cloud"})
    assert fix(path, report.options) == {"depth": "cloud"}
    report = check_dataset.check_dataset(open_dataset(path)).reports["capture"]
    assert (report.verdict, report.options) == ("ok", {})


@pytest.mark.parametrize("up", ["z", "y"])
def test_where_the_cloud_has_faces_depth_is_that_of_the_faces(up: str, dense_scene: Scene, tmp_path: Path):
    path = without_depth(dense_scene, "folder", tmp_path / "capture")
    corners = np.array([[-3, 1.5, -2], [3, 1.5, -2], [3, 1.5, 4], [-3, 1.5, 4]], np.float32)  # a wall at y = 1.5 alone
    poses = {name: np.loadtxt(path / "pose" / name) for name in ("0.txt", "1.txt")}
    if up == "y":
        files_from_world = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
        corners = corners @ files_from_world[:3, :3].T.astype(np.float32)
        for name, pose in poses.items():
            np.savetxt(path / "pose" / name, files_from_world @ pose)
    lines = ["ply", "format ascii 1.0", "element vertex 4", *(f"property float {axis}" for axis in "xyz")]
    lines += ["element face 1", "property list uchar int vertex_indices", "end_header"]
    lines += [" ".join(map(str, corner)) for corner in corners.tolist()] + ["4 0 1 2 3", ""]
    (path / "points.ply").write_text("\n".join(lines))
    (path / "capture.json").write_text(json.dumps({"depth": "cloud", "up": up}))
    frames = open_dataset(path)[0].frames
    torch.testing.assert_close(frames[0].read_depth(), torch.full((48, 64), 1.5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("content", ['{"depth": "mesh"}', '{"depth": true}'])
def test_another_source_of_depth_is_refused(content: str, dense_scene: Scene, tmp_path: Path):
    path = WRITERS["folder"](dense_scene, tmp_path / "capture")
    (path / "capture.json").write_text(content)
    with pytest.raises(ValueError, match=r"depth is .*; choose from 'images', 'cloud'"):
        open_dataset(path)[0]
