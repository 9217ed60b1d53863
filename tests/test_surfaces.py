from dataclasses import replace

import pytest
import torch

from conftest import ColorTeacher, turned
from cuao3d.fusion import lift, sample_cells, see
from cuao3d.store import Store, TeacherCard
from cuao3d.surfaces import only_cameras, surfaces

WALL = 21 * 21


def stored(scene, folder, upright=False):
    store = Store.create(folder, cell=0.001, teachers={"color": TeacherCard(3)}, settings={"upright": upright})
    samples = sample_cells(scene.points, store.cell)
    visibility = see(scene, samples)
    store.add_scene(scene, samples, visibility, {"color": lift(scene, visibility, ColorTeacher())})
    return store["synthetic"]


def with_normals(scene, signs=None):
    """Wall and picture face -y, from where the cameras look."""
    normals = torch.tensor([0.0, -1.0, 0.0]).repeat(len(scene.points), 1)
    return replace(scene, normals=normals if signs is None else normals * signs[:, None])


def test_a_sample_is_of_a_camera_where_one_alone_can_see_it(synthetic_scene, tmp_path):
    scene = stored(synthetic_scene, tmp_path)
    camera, place = only_cameras(scene)
    x, _, z = scene.sample_points.unbind(1)
    on_wall = scene.sample_points[:, 1] == 2
    # Ten pixels from the border of 64 x 48, focal length 40: at 2 m, 1.1 m to the sides and 0.7 up and down.
    in_left, in_right = ((x - at).abs() < 1.1 for at in (-0.25, 0.25))
    alone = on_wall & (in_left ^ in_right) & ((z - 1).abs() < 0.69) & (scene.num_views == 1)
    on_edge = ((z - 1).abs() - 0.7).abs() < 0.01
    assert alone.sum() > 20
    assert (camera >= 0)[~on_edge].tolist() == alone[~on_edge].tolist()
    assert camera[alone].tolist() == in_right[alone].long().tolist()
    # From 0 to 63 across, 0 to 47 down; the camera is at x = -0.25 or 0.25 and z = 1.
    at = torch.where(camera == 0, -0.25, 0.25)
    expected = torch.stack([(31.5 + (x - at) / 2 * 40) / 31.5 - 1, (23.5 + (1 - z) / 2 * 40) / 23.5 - 1], dim=1)
    torch.testing.assert_close(place[alone], expected[alone])
    assert place[camera < 0].isnan().all()


def test_the_surfaces_of_the_synthetic_scene_by_hand(synthetic_scene, tmp_path):
    scene = stored(with_normals(synthetic_scene), tmp_path)
    found = surfaces(scene).values
    certain = only_cameras(scene)[0] >= 0
    assert found["inclination"].unique().tolist() == [90]
    # The lowest hundredth of 585 points are six of the wall's lowest row, at z = 0.
    torch.testing.assert_close(found["height"], scene.sample_points[:, 2:])
    assert found["depth"][certain].unique().tolist() == pytest.approx([2])
    torch.testing.assert_close(found["normal"][certain], torch.tensor([[0.0, 0.0, -1.0]]).expand(int(certain.sum()), 3))
    assert found["depth"][~certain].isnan().all()
    assert found["normal"][~certain].isnan().all()


def test_the_sign_of_normals_does_not_matter(synthetic_scene, tmp_path):
    signs = torch.where(torch.arange(len(synthetic_scene.points)) % 2 == 0, 1.0, -1.0)
    one = surfaces(stored(with_normals(synthetic_scene), tmp_path / "one")).values
    other = surfaces(stored(with_normals(synthetic_scene, signs), tmp_path / "other")).values
    for quantity, values in one.items():
        torch.testing.assert_close(other[quantity], values, equal_nan=True)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_upright_normals_and_places_are_those_of_cameras_held_upright(synthetic_scene, tmp_path, quarters):
    slanted = torch.nn.functional.normalize(torch.tensor([0.3, -1.0, 0.2]), dim=0)
    scene = replace(synthetic_scene, normals=slanted.repeat(len(synthetic_scene.points), 1))
    held = surfaces(stored(scene, tmp_path / "held"))
    frames = tuple(turned(frame, quarters) for frame in scene.frames)
    lying = stored(replace(scene, frames=frames), tmp_path / "lying")
    certain = (only_cameras(lying)[0] >= 0) & held.place.isfinite().all(dim=1)
    assert certain.sum() > 10
    found = surfaces(lying, upright=True)
    torch.testing.assert_close(found.values["normal"][certain], held.values["normal"][certain])
    torch.testing.assert_close(found.place[certain], held.place[certain], rtol=0, atol=1e-5)
    as_taken = surfaces(lying).values["normal"][certain]
    assert (as_taken - held.values["normal"][certain]).abs().max() > 0.1


def test_without_normals_there_is_height_and_depth(synthetic_scene, tmp_path):
    found = surfaces(stored(synthetic_scene, tmp_path)).values
    assert found["inclination"].isnan().all()
    assert found["normal"].isnan().all()
    assert found["height"].isfinite().all()
    assert found["depth"].isfinite().any()
