import numpy as np
import pytest
import torch

from cuao3d.geometry import visible_points
from cuao3d.labels import convert, label_set
from cuao3d.scene import UNLABELLED, pose_problem
from cuao3d.worlds.houses import (
    EYE_HEIGHT,
    HEIGHT,
    KINDS,
    NUM_HEADINGS,
    NUM_PER_TRIPOD,
    PITCHES,
    WIDTH,
    Houses,
    furnish_house,
    make_house,
    panoramas,
)
from cuao3d.worlds.joinery import material
from cuao3d.worlds.kinds import kinds
from cuao3d.worlds.layout import LOWEST_TOP
from cuao3d.worlds.rooms import TEACHER_SEEDS


@pytest.fixture(scope="module")
def exact_house():
    return make_house(0, num_views=3, noise=False)


@pytest.fixture(scope="module")
def regions():
    return [furnish_house(np.random.default_rng([seed, 2026]), KINDS[seed % len(KINDS)]) for seed in range(20)]


def test_the_seed_decides_everything(exact_house):
    again = make_house(0, num_views=3, noise=False)
    assert torch.equal(exact_house.points, again.points)
    assert torch.equal(exact_house.labels, again.labels)
    for one, other in zip(exact_house.frames, again.frames, strict=True):
        assert torch.equal(one.read_image(), other.read_image())
        assert torch.equal(one.read_depth(), other.read_depth())
        assert torch.equal(one.camera.world_from_camera, other.camera.world_from_camera)


def test_two_seeds_differ_in_style(regions):
    one, other = regions[0], regions[len(KINDS)]  # two bedrooms
    assert not set(one.materials) & set(other.materials)
    assert not np.allclose(one.size, other.size, atol=0.05)
    assert not np.allclose(one.light_colors[0], other.light_colors[0])


def test_regions_hold_all_classes_of_matterport21_and_most_of_its_forty(regions):
    made = label_set("made100")
    names = {made.names[id_] for region in regions for id_ in np.unique(region.labels)}
    missing = set(label_set("matterport40").names) - {kinds()[name].matterport160 for name in names}
    assert missing <= {"pot", "book", "faucet"}  # parts of other things here
    ids = torch.tensor([made.names.index(name) for name in sorted(names)])
    coarse = convert(ids, made, label_set("matterport21"))
    assert set(coarse.tolist()) == {*label_set("matterport21").ids, UNLABELLED}


def test_regions_are_higher_than_rooms_and_some_have_a_corner_cut_off(regions):
    assert all(2.6 <= region.size[2] <= 3.6 for region in regions)
    full = [np.isclose(np.ptp(region.boxes, axis=1)[:, 2], region.size[2], atol=1e-6) for region in regions]
    wide = [np.ptp(region.boxes, axis=1)[:, :2].min(axis=1) > 0.45 for region in regions]  # wider than a column
    assert 0 < sum((tall & broad).any() for tall, broad in zip(full, wide, strict=True)) < len(regions)


def test_no_piece_of_furniture_cuts_another(regions):
    for region in regions:
        low, high = region.boxes[:, 0], region.boxes[:, 1]
        meets = (low[:, None] < high - 1e-6).all(2) & (low < high[:, None] - 1e-6).all(2)
        on_top = (low[:, None, 2] > LOWEST_TOP) | (low[:, 2] > LOWEST_TOP)  # a vase may stand before a mirror
        assert not (meets & ~on_top & ~np.eye(len(low), dtype=bool)).any()


def test_labels_of_the_two_sets_agree_by_name_and_through_nyu40(exact_house):
    coarse, fine = label_set("matterport21"), label_set("matterport40")
    in_fine = make_house(0, num_views=3, noise=False, label_set="matterport40").labels
    assert set(exact_house.labels.tolist()) <= {*coarse.ids, UNLABELLED}
    assert set(in_fine.tolist()) <= {*fine.ids, UNLABELLED}
    known = in_fine != UNLABELLED
    assert 0.9 < known.double().mean() < 1
    assert torch.equal(convert(in_fine, fine, coarse)[known], exact_house.labels[known])
    for one, other in set(zip(exact_house.labels[known].tolist(), in_fine[known].tolist(), strict=True)):
        assert one == UNLABELLED or coarse.names[one] in (fine.names[other], "other")


def test_tripods_turn_once_round_at_three_pitches_and_stand_in_free_space(regions):
    region = regions[1]
    cameras = panoramas(region, np.random.default_rng(0), 2)
    assert list(cameras)[:4] == ["00_i0_0", "00_i1_0", "00_i2_0", "00_i0_1"]
    assert list(cameras)[NUM_PER_TRIPOD] == "01_i0_0"
    room_from_world = np.linalg.inv(region.world_from_room)
    poses = room_from_world @ np.stack([camera.world_from_camera.numpy() for camera in cameras.values()])
    eyes = poses[:, :3, 3].reshape(2, NUM_PER_TRIPOD, 3)
    assert np.allclose(eyes, eyes[:, :1])
    assert np.allclose(eyes[..., 2], EYE_HEIGHT)
    assert np.linalg.norm(eyes[0, 0] - eyes[1, 0]) > 1
    for eye in eyes[:, 0]:
        assert not ((eye > region.boxes[:, 0]) & (eye < region.boxes[:, 1])).all(axis=1).any()
    forward = poses[:NUM_PER_TRIPOD, :3, 2]
    pitch = np.degrees(np.arcsin(forward[:, 2])).reshape(NUM_HEADINGS, 3)
    assert np.allclose(pitch, PITCHES)
    heading = np.degrees(np.arctan2(forward[1::3, 1], forward[1::3, 0]))
    assert np.allclose((heading[:-1] - heading[1:]) % 360, 60)


def test_cameras_are_those_of_matterport_at_a_quarter(exact_house):
    for frame in exact_house.frames:
        assert pose_problem(frame.camera.world_from_camera) is None
        assert (frame.camera.width, frame.camera.height) == (WIDTH, HEIGHT)
        assert frame.camera.focal.tolist() == [268.75, 268.75]  # 1075 / 4
        assert frame.read_image().shape == (3, HEIGHT, WIDTH)


def test_views_up_see_the_ceiling_and_views_down_the_floor(exact_house):
    def share_seen(frame, class_):
        near = visible_points(exact_house.points, frame.camera, frame.read_depth(), occlusion_tolerance=0.02)
        return (exact_house.labels[near.index] == class_).double().mean()

    up, _, down = exact_house.frames
    names = label_set("matterport21").names
    assert share_seen(up, names.index("ceiling")) > 0.2
    assert share_seen(down, names.index("ceiling")) == 0
    assert share_seen(down, names.index("floor")) > 0.1


def test_depth_is_whole_quarters_of_a_millimetre_and_agrees_with_the_points(exact_house):
    for frame in exact_house.frames:
        depth = frame.read_depth()
        units = depth.double() * 4000
        assert (units - units.round()).abs().max() < 1e-2
        near = visible_points(exact_house.points, frame.camera, depth, occlusion_tolerance=0.04, border=1)
        column, row = near.pixels.round().long().unbind(1)
        error = (depth[row, column].double() - near.depth).abs()
        assert len(error) > 500
        assert error.median() < 0.003
        assert (error < exact_house.occlusion_tolerance * near.depth).double().mean() > 0.95


def test_normals_look_at_a_tripod(exact_house):
    assert torch.allclose(exact_house.normals.norm(dim=1), torch.ones(len(exact_house.points)), atol=1e-5)
    names = label_set("matterport21").names
    up = exact_house.normals[:, 2]
    assert (up[exact_house.labels == names.index("floor")] > 0.9).double().mean() > 0.9
    assert (up[exact_house.labels == names.index("ceiling")] < -0.9).double().mean() > 0.8


def test_the_dataset_names_its_regions_and_refuses_what_it_cannot_do():
    houses = Houses(range(10), split="val", num_views=1, label_set="matterport40")
    assert houses.names[1] == "val-lounge-1"
    scene = houses[4]
    assert (scene.name, scene.split, scene.label_set) == ("val-bathroom-4", "val", "matterport40")
    assert scene.occlusion_tolerance == 0.02
    assert houses.source(4) != Houses(range(10), split="val", num_views=1).source(4)  # in another label set
    assert len(scene.frames) == 1
    with pytest.raises(ValueError, match="teachers"):
        Houses([TEACHER_SEEDS])
    with pytest.raises(ValueError, match="scannet20"):
        make_house(0, label_set="scannet20")


def test_styles_of_houses_can_be_drawn():
    for style in ("house wall", "house floor", "house tiles", "ceiling", "hearth", "soot", "rug", "glass", "vessel"):
        assert all(0 <= channel <= 1.0001 for channel in material(np.random.default_rng(0), style).second)
