"""Facts about raw Matterport3D: what is written as a building is read back, and a region gets its views and labels."""

import runpy
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cuao3d.formats.ply import Mesh, read_mesh
from cuao3d.geometry import visible_points
from cuao3d.labels import convert, label_set
from cuao3d.readers import open_dataset
from cuao3d.readers.matterport import Matterport, majority
from cuao3d.readers.splits import categories, scenes, split_of
from cuao3d.scene import Scene
from cuao3d.worlds.rooms import make_room
from make_fixture_matterport import write_building, write_mesh

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_fixture_matterport.py"
NAME = "2azQ1b91cZZ"
"""The first building of the official validation list."""


@pytest.fixture(scope="module")
def room() -> Scene:
    return make_room(0, num_views=2)


@pytest.fixture
def building(synthetic_scene: Scene, tmp_path: Path) -> Path:
    """A building of one region, outside of which its two cameras stand."""
    write_building([synthetic_scene], tmp_path / "scans" / NAME)
    return tmp_path / "scans" / NAME


def conf(building: Path) -> Path:
    return building / "undistorted_camera_parameters" / f"{building.name}.conf"


def put_conf(building: Path, *lines: str) -> None:
    conf(building).write_text("\n".join(["dataset matterport", "n_images 1", "", *lines, ""]))


def put_views(building: Path, width: int, height: int, names: list[str]) -> None:
    """Give a building images of a size, of noise."""
    rng = np.random.default_rng(0)
    for name in names:
        color = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        color.save(building / "undistorted_color_images" / f"{name[:-4]}_i{name[-3:]}.jpg")
        depth = Image.fromarray(rng.integers(0, 65536, (height, width)).astype(np.uint16))
        depth.save(building / "undistorted_depth_images" / f"{name[:-4]}_d{name[-3:]}.png")


def test_a_room_written_as_a_region_is_read_back(room: Scene, tmp_path: Path):
    write_building([room], tmp_path / NAME)
    (back,) = Matterport(tmp_path, size=(320, 240))
    assert (back.name, back.split, back.label_set) == (f"{NAME}_region0", "val", "matterport21")
    assert (back.occlusion_tolerance, back.problems) == (0.02, ())
    assert back.points.equal(room.points)
    assert back.labels.equal(room.labels)  # the first twenty classes of both sets are the same
    assert back.normals.equal(room.normals)
    torch.testing.assert_close(back.colors, room.colors, rtol=0, atol=0.5 / 255)
    for one, other in zip(back.frames, room.frames, strict=True):
        difference = one.camera.world_from_camera - other.camera.world_from_camera
        assert difference.abs().max() < 1e-6
        assert one.camera.focal.equal(other.camera.focal)
        torch.testing.assert_close(one.camera.center, other.camera.center, rtol=0, atol=1e-9)
        assert one.read_depth().equal(other.read_depth())
        assert (one.read_image() - other.read_image()).abs().mean() < 0.03


def test_every_folder_that_leads_to_a_building_is_recognised(building: Path, tmp_path: Path):
    root = tmp_path / "root"
    (root / "v1" / "scans").mkdir(parents=True)
    folders = [tmp_path, building.parent, building]
    assert [open_dataset(folder).names for folder in folders] == [(f"{NAME}_region0",)] * 3
    # An archive that was unpacked in the building's folder has the building's name once more inside.
    shutil.copytree(building, root / "v1" / "scans" / NAME / NAME)
    assert [open_dataset(folder).names for folder in (root, root / "v1" / "scans")] == [(f"{NAME}_region0",)] * 2
    assert isinstance(open_dataset(root), Matterport)
    with pytest.raises(FileNotFoundError, match=r"No region of a building in .*Expected ID/undistorted_camera"):
        Matterport(Path(__file__).parent)


def test_regions_are_in_the_order_of_their_numbers(building: Path):
    regions = building / "region_segmentations"
    for number in (10, 2):
        shutil.copyfile(regions / "region0.ply", regions / f"region{number}.ply")
    shutil.copyfile(regions / "region0.ply", regions / "region0.semseg.ply")
    assert Matterport(building).names == tuple(f"{NAME}_region{number}" for number in (0, 2, 10))


def test_depth_is_in_quarters_of_a_millimetre_and_every_second_pixel_is_taken(building: Path):
    put_views(building, 128, 96, ["a_0_0"])
    matrix = "1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"
    put_conf(building, "intrinsics_matrix 100 0 64 0 100 48 0 0 1", f"scan a_d0_0.png a_i0_0.jpg {matrix}")
    (frame,) = Matterport(building, size=(64, 48))[0].frames
    units = np.asarray(Image.open(building / "undistorted_depth_images" / "a_d0_0.png"))
    np.testing.assert_allclose(frame.read_depth(), units[::2, ::2] / 4000, rtol=1e-6)
    pixels = np.asarray(Image.open(building / "undistorted_color_images" / "a_i0_0.jpg"))
    np.testing.assert_array_equal((frame.read_image() * 255).round(), pixels[::2, ::2].transpose(2, 0, 1))


def test_cameras_are_turned_from_opengl_axes(building: Path):
    # The pose of one image of the data set, and what its other file of poses, in our axes, says of it: columns 2 and 3
    # have the other sign (https://github.com/niessner/Matterport/issues/53).
    numbers = (
        "0.863804 0.361417 0.351025 -5.69715 0.502959 -0.577708 -0.642872 2.5578 "
        "-0.0295543 0.731867 -0.680806 1.41593 0 0 0 1"
    )
    ours = [
        [0.863804, -0.361417, -0.351025, -5.69715],
        [0.502959, 0.577708, 0.642872, 2.5578],
        [-0.0295543, -0.731867, 0.680806, 1.41593],
        [0, 0, 0, 1],
    ]
    put_views(building, 1280, 1024, ["a_0_0"])
    put_conf(
        building,
        "intrinsics_matrix 1076.45 0 631.116  0 1077.19 509.202  0 0 1",
        f"scan a_d0_0.png a_i0_0.jpg {numbers}",
    )
    camera = Matterport(building)[0].frames[0].camera
    assert camera.world_from_camera.tolist() == ours
    assert camera.focal.tolist() == [1076.45 / 2, 1077.19 / 2]
    # Of a camera whose .conf says 509.202, the data set's own calibration, which counts from the top, says 513.798.
    expected = [631.116 * 639 / 1279, 513.798 * 511 / 1023]
    np.testing.assert_allclose(camera.center, expected, rtol=1e-12)
    official = Matterport(building, official=True)[0].frames[0].camera
    np.testing.assert_allclose(official.center, [expected[0], 509.202 * 511 / 1023], rtol=1e-12)
    assert official.focal.equal(camera.focal)


def test_a_region_takes_the_views_that_stand_in_its_box(synthetic_scene: Scene, tmp_path: Path):
    # The scene's points span x in [-1, 1], y in [1, 2], z in [0, 2]; its cameras stand at y = 0.
    def at(x: float, y: float, z: float):
        frame = synthetic_scene.frames[0]
        pose = frame.camera.world_from_camera.clone()
        pose[:3, 3] = torch.tensor([x, y, z])
        return replace(frame, camera=replace(frame.camera, world_from_camera=pose))

    inside, on_the_border, above = at(0.5, 1.5, 1), at(1, 1.5, 1), at(0, 1.5, 2.1)
    other = replace(synthetic_scene, points=synthetic_scene.points + torch.tensor([0, 0, 2.05]), frames=(above,))
    write_building([replace(synthetic_scene, frames=(on_the_border, inside)), other], tmp_path / NAME)
    first, second = Matterport(tmp_path / NAME)
    assert [frame.camera.world_from_camera[:3, 3].tolist() for frame in first.frames] == [[0.5, 1.5, 1]]
    np.testing.assert_allclose(second.frames[0].camera.world_from_camera[:3, 3], [0, 1.5, 2.1], rtol=1e-6)
    assert len(second.frames) == 1


def test_a_region_without_a_camera_takes_the_hundred_nearest(building: Path):
    # 130 cameras in a row, of which the far ones come first; the middle of the region is at (0, 1.5, 1).
    put_views(building, 64, 48, [f"{index:03d}_0_0" for index in range(130)])
    lines = ["intrinsics_matrix 40 0 31.5 0 40 23.5 0 0 1"]
    for index in range(130):
        pose = f"1 0 0 0 0 1 0 {-1.0 - (130 - index):g} 0 0 1 1 0 0 0 1"
        lines.append(f"scan {index:03d}_d0_0.png {index:03d}_i0_0.jpg {pose}")
    put_conf(building, *lines)
    frames = Matterport(building)[0].frames
    assert [frame.name for frame in frames] == [f"{index:03d}_i0_0" for index in range(30, 130)]


def test_a_vertex_takes_the_class_of_most_of_its_faces():
    triangles = np.array([[0, 1, 2], [0, 1, 3], [0, 2, 3], [0, 1, 4]])
    classes = np.array([7, 255, 7, 5])
    # Vertex 0: 7 twice, 5, none. 1: a tie of 7, none and 5. 2: 7 twice. 3: a tie of none and 7. 4: 5. 5: no face.
    assert majority(triangles, classes, 6).tolist() == [7, 255, 7, 255, 5, 255]
    assert majority(triangles[[0, 3]], np.array([7, 5]), 5).tolist() == [5, 5, 7, 255, 5]
    assert majority(np.empty((0, 3), np.int64), np.empty(0, np.int64), 2).tolist() == [255, 255]


def test_the_vote_is_that_of_a_loop_over_the_faces():
    rng = np.random.default_rng(0)
    triangles, classes = rng.integers(0, 60, (200, 3)), rng.choice([0, 1, 2, 254, 255], 200)
    votes: list[Counter[int]] = [Counter() for _ in range(60)]
    for corners, label in zip(triangles, classes, strict=True):
        for corner in corners:
            votes[corner][int(label)] += 1
    order = [255, 0, 1, 2, 254]
    expected = [max(order, key=lambda label: counts[label]) if counts else 255 for counts in votes]
    assert majority(triangles, classes, 60).tolist() == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Categories 1 wall, 2 door, 3 ceiling, 4 floor; -1, 0 and 5000 are none.
        ("matterport21", [0, 7, 20, 1, 255, 255, 255]),
        ("nyu40", [1, 8, 22, 2, 255, 255, 255]),
        ("matterport40", [0, 1, 2, 3, 255, 255, 255]),
        ("matterport160", [0, 1, 2, 3, 255, 255, 255]),
    ],
)
def test_categories_become_classes(building: Path, name: str, expected: list[int]):
    path = building / "region_segmentations" / "region0.ply"
    mesh = read_mesh(path)
    numbers = np.array([1, 2, 3, 4, -1, 0, 5000], dtype=np.int32)
    triangles = np.arange(21).reshape(7, 3)
    write_mesh(path, Mesh(mesh.vertices, triangles, {"category_id": numbers}))
    scene = Matterport(building, annotations=name)[0]
    assert scene.label_set == name
    assert scene.labels[:21:3].tolist() == expected
    assert (scene.labels[21:] == 255).all()


def test_every_class_of_every_set_has_a_category():
    rows = categories("matterport")
    assert [int(row["index"]) for row in rows] == list(range(1, 1660))
    nyu40 = {int(row["nyu40id"] or 0) for row in rows}
    assert {nyu40 for (nyu40,) in label_set("matterport21").nyu40} <= nyu40
    for name in ("matterport40", "matterport80", "matterport160"):
        # The first so many distinct names, in the order of the table, without "void" and "unknown".
        named = dict.fromkeys(row["nyuClass"] for row in rows if row["nyuClass"] not in ("", "void", "unknown"))
        assert label_set(name).names == tuple(named)[: len(label_set(name))]


@pytest.mark.parametrize("name", ["matterport40", "matterport80"])
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None)
def test_labels_of_160_classes_become_those_of_fewer(name: str, seed: int):
    """Converted labels are those read in a coarser set, and know a class where it does not outnumber all others."""
    rng = np.random.default_rng(seed)
    fine, coarse = label_set("matterport160"), label_set(name)
    classes = rng.choice([0, 1, 2, 39, 40, 79, 80, 159, 255], 60)
    triangles = rng.integers(0, 30, (60, 3))
    converted = convert(torch.from_numpy(majority(triangles, classes, 30)), fine, coarse).numpy()
    direct = majority(triangles, np.where(np.isin(classes, coarse.ids), classes, 255), 30)
    assert (converted == direct)[direct != 255].all()
    for vertex in np.flatnonzero(converted != direct):
        votes = Counter(classes[(triangles == vertex).nonzero()[0]].tolist())
        others = {label: count for label, count in votes.items() if label not in coarse.ids}
        assert max(others.values()) <= votes[converted[vertex]] <= sum(others.values())


def test_a_building_read_in_160_classes_is_the_one_read_in_fewer(building: Path):
    path = building / "region_segmentations" / "region0.ply"
    mesh = read_mesh(path)
    rng = np.random.default_rng(0)
    numbers = rng.integers(-1, 1660, 40).astype(np.int32)
    write_mesh(path, Mesh(mesh.vertices, np.arange(120).reshape(40, 3), {"category_id": numbers}))
    fine = Matterport(building, annotations="matterport160")[0].labels
    for name in ("matterport40", "matterport80"):
        coarse = Matterport(building, annotations=name)[0].labels
        assert convert(fine, label_set("matterport160"), label_set(name)).equal(coarse)
        assert coarse.unique().numel() > 2


def test_the_official_lists_are_whole():
    assert [len(set(scenes("matterport", split))) for split in ("train", "val", "test")] == [61, 11, 18]
    assert len({name for split in ("train", "val", "test") for name in scenes("matterport", split)}) == 90
    names = ("17DRP5sb8fy", NAME, "2t7WUuJeko7", "elsewhere")
    assert [split_of("matterport", name) for name in names] == ["train", "val", "test", "train"]


def test_a_view_whose_images_are_damaged_is_left_out_and_named(building: Path):
    put_views(building, 64, 48, ["a_0_0", "b_0_0", "c_0_0", "d_0_0"])
    matrix = "1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"
    put_conf(
        building,
        "intrinsics_matrix 40 0 31.5 0 40 23.5 0 0 1",
        *(f"scan {name}_d0_0.png {name}_i0_0.jpg {matrix}" for name in "abcd"),
    )
    (building / "undistorted_color_images" / "a_i0_0.jpg").unlink()
    Image.new("I;16", (32, 48)).save(building / "undistorted_depth_images" / "b_d0_0.png")
    (building / "undistorted_depth_images" / "c_d0_0.png").write_bytes(b"no picture")
    scene = Matterport(building)[0]
    assert [frame.name for frame in scene.frames] == ["d_i0_0"]
    first, second, third = map(str, scene.problems)
    assert first.startswith("a_i0_0 left out: undistorted_color_images/a_i0_0.jpg is missing")
    assert second == "b_i0_0 left out: b_d0_0.png and b_i0_0.jpg differ in size or have none; copy them again"
    assert third.startswith("c_i0_0 left out: undistorted_depth_images/c_d0_0.png is no readable image")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("scan ../../secret.png a_i0_0.jpg 1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1", "is not the name of a file"),
        ("scan a_d0_0.png /etc/passwd 1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1", "is not the name of a file"),
        ("scan .. .. 1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1", "is not the name of a file"),
        ("scan", "is not the name of a file"),
        ("scan a_d0_0.png a_i0_0.jpg 1 0 0", "has 3 numbers, expected 16"),
        ("scan a_d0_0.png a_i0_0.jpg 1 0 0 x 0 1 0 0 0 0 1 0 0 0 0 1", "could not convert"),
        ("scan a_d0_0.png a_i0_0.jpg 1 0 0 nan 0 1 0 0 0 0 1 0 0 0 0 1", "the pose is lost"),
        ("scan a_d0_0.png a_i0_0.jpg 2 0 0 0 0 2 0 0 0 0 2 0 0 0 0 1", "the pose is no rotation"),
        ("intrinsics_matrix 40 0 31.5", "has 3 numbers, expected 9"),
        ("intrinsics_matrix 0 0 31.5 0 40 23.5 0 0 1", "has no focal lengths"),
    ],
)
def test_a_line_that_cannot_be_used_is_left_out_and_named(building: Path, line: str, words: str):
    good = "scan {0}_d0_0.png {0}_i0_0.jpg 1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"
    put_views(building, 64, 48, ["a_0_0", "b_0_0"])
    put_conf(building, "intrinsics_matrix 40 0 31.5 0 40 23.5 0 0 1", good.format("b"), line)
    scene = Matterport(building)[0]
    assert [frame.name for frame in scene.frames] == ["b_i0_0"]
    (problem,) = map(str, scene.problems)
    assert problem.startswith(f"{NAME}.conf, line 6 left out: ")
    assert words in problem
    # Views behind a camera that cannot be read do not take the one before.
    put_conf(building, "intrinsics_matrix 40 0 31.5 0 40 23.5 0 0 1", good.format("b"), line, good.format("a"))
    num_frames = 1 if line.startswith("intrinsics") else 2
    assert len(Matterport(building)[0].frames) == num_frames


def test_depth_must_have_sixteen_bits(building: Path):
    path = sorted((building / "undistorted_depth_images").iterdir())[0]
    Image.new("L", (64, 48)).save(path)
    frame = Matterport(building)[0].frames[0]
    with pytest.raises(ValueError, match=rf"{path.name} has mode L; expected 16-bit depth"):
        frame.read_depth()


def test_what_makes_a_region_unreadable_is_named(building: Path):
    path = building / "region_segmentations" / "region0.ply"
    mesh = read_mesh(path)
    write_mesh(path, Mesh(mesh.vertices, mesh.triangles, {}))
    with pytest.raises(ValueError, match=r"region0\.ply has faces without category_id"):
        Matterport(building)[0]
    write_mesh(path, mesh)
    put_conf(building)
    with pytest.raises(ValueError, match=r"No usable frame in .*: there is none"):
        Matterport(building)[0]
    with pytest.raises(ValueError, match=r"--annotations is 'scannet20'; choose from matterport21, "):
        Matterport(building, annotations="scannet20")


def test_a_building_is_written_over_nothing_and_without_labels_too(
    building: Path, synthetic_scene: Scene, tmp_path: Path
):
    with pytest.raises(ValueError, match="is not empty"):
        write_building([synthetic_scene], building)


def test_a_building_may_be_without_labels(synthetic_scene: Scene, tmp_path: Path):
    write_building([replace(synthetic_scene, labels=None, label_set=None)], tmp_path / "other")
    assert (Matterport(tmp_path / "other")[0].labels == 255).all()


def test_the_script_writes_a_miniature_of_both_splits(tmp_path: Path):
    runpy.run_path(str(SCRIPT))["main"](tmp_path, num_regions=2, num_views=1)
    dataset = open_dataset(tmp_path)
    names = [f"{name}_region{number}" for name in ("17DRP5sb8fy", NAME) for number in (0, 1)]
    assert [(scene.name, scene.split) for scene in dataset] == list(
        zip(names, ("train", "train", "val", "val"), strict=True)
    )
    for scene in dataset:
        (frame,) = scene.frames  # and not the other region's
        seen = visible_points(scene.points, frame.camera, frame.read_depth(), occlusion_tolerance=0.05).index
        assert len(seen) > 1000
