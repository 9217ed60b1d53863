import json
from functools import partial
from pathlib import Path

import laspy
import numpy as np
import pytest
import torch

from cuao3d import pipeline
from cuao3d.check import check
from cuao3d.coordinates import in_capture
from cuao3d.formats.ply import write_ply
from cuao3d.formats.points import read_points
from cuao3d.readers import open_dataset
from cuao3d.readers.pointcloud import PointCloud
from cuao3d.scene import Scene
from written import damage, save_cloud

POINTS = np.array([[0, 1, 2], [3, 4.5, 5], [-6, 7, 8e-3]], np.float32)
COLORS = np.array([[0, 255, 51], [102, 153, 204], [255, 255, 255]], np.uint8)
NORMALS = np.array([[0, 0, 1], [0, -1, 0], [1, 0, 0]], np.float32)


def write_pcd(path: Path, data: str, *, points: np.ndarray = POINTS) -> None:
    """A cloud with packed colours and normals, and a field that nobody asked for."""
    packed = (COLORS.astype(np.uint32) << np.array([16, 8, 0], np.uint32)).sum(1).astype(np.uint32).view(np.float32)
    table = np.zeros(len(points), "<f4,<f4,<f4,<f4,<f4,<f4,<f4,2<u2")
    for index, column in enumerate([*points.T, packed, *NORMALS.T]):
        table[f"f{index}"] = column
    header = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z rgb normal_x normal_y normal_z ring\nSIZE 4 4 4 4 4 4 4 2\n"
        f"TYPE F F F F F F F U\nCOUNT 1 1 1 1 1 1 1 2\nWIDTH {len(points)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\n"
        f"POINTS {len(points)}\nDATA {data}\n"
    ).encode()
    rows = [[*(f"{value:.9g}" for value in list(row)[:7]), "0 0"] for row in table.tolist()]
    body = "\n".join(map(" ".join, rows)).encode() if data == "ascii" else table.tobytes()
    path.write_bytes(header + body)


def write_npz(path: Path) -> None:
    np.savez(path, points=POINTS.astype(np.float64), colors=COLORS, normals=2 * NORMALS, unused=np.zeros(7))


def write_las(path: Path, color_scale: int = 257) -> None:
    las = laspy.create(point_format=2)
    las.header.scales = [1e-4] * 3
    las.x, las.y, las.z = POINTS.T.astype(np.float64)
    las.red, las.green, las.blue = COLORS.T.astype(np.uint16) * color_scale
    las.write(path)


def write_colored_ply(path: Path) -> None:
    names = ("x", "y", "z", "red", "green", "blue", "nx", "ny", "nz")
    write_ply(path, dict(zip(names, [*POINTS.T, *COLORS.T, *NORMALS.T], strict=True)))


WRITE = {
    "a.ply": write_colored_ply,
    "a.pcd": partial(write_pcd, data="binary"),
    "b.PCD": partial(write_pcd, data="ascii"),
    "a.npz": write_npz,
}


@pytest.mark.parametrize("name", WRITE)
def test_a_cloud_is_read_with_colours_and_normals(name: str, tmp_path: Path):
    WRITE[name](tmp_path / name)
    dataset = open_dataset(tmp_path / name)
    assert (type(dataset), dataset.names) == (PointCloud, (name[0],))
    scene = dataset[0]
    assert (scene.name, scene.frames, scene.labels) == (name[0], (), None)
    others = {"a.ply": [], "a.npz": ["'unused'"]}.get(name, ["'ring'"])
    assert [problem.text.split(" has ")[1].split(",")[0] for problem in scene.problems] == others
    assert scene.points.equal(torch.from_numpy(POINTS))
    assert scene.colors.equal(torch.from_numpy(COLORS.astype(np.float32) / 255))
    assert scene.normals.equal(torch.from_numpy(NORMALS))


@pytest.mark.parametrize("kind", ["u1", "f4"])
@pytest.mark.parametrize(
    ("colors", "label"),
    [
        ("r g b", "Label"),
        ("R G B", "scalar_Classification"),
        ("diffuse_red diffuse_green diffuse_blue", "class"),
        ("scalar_red scalar_green scalar_blue", "scalar_label"),
    ],
)
def test_columns_are_known_by_other_names(colors: str, label: str, kind: str, tmp_path: Path):
    values = COLORS if kind == "u1" else COLORS.astype(np.float32) / 255
    columns = dict(zip("XYZ", POINTS.T, strict=True)) | dict(zip(colors.split(), values.T, strict=True))
    write_ply(tmp_path / "a.ply", columns | {label: np.array([3, 1, 2], np.float32), "alpha": COLORS[:, 0]})
    read = read_points(tmp_path / "a.ply")
    assert read.points.equal(torch.from_numpy(POINTS))
    assert read.colors.numpy() == pytest.approx(COLORS / 255)
    assert read.labels.tolist() == [3, 1, 2]
    assert read.problems == ()


def test_the_plainest_name_counts_and_the_others_are_told(tmp_path: Path):
    columns = dict(zip("xyz", POINTS.T, strict=True)) | {
        "classification": np.array([9, 9, 9], np.int32),
        "label": np.array([3, 1, 2], np.int32),
        "red": COLORS[:, 0],
        "intensity": POINTS[:, 0],
    }
    write_ply(tmp_path / "a.ply", columns)
    read = read_points(tmp_path / "a.ply")
    assert (read.labels.tolist(), read.colors) == ([3, 1, 2], None)
    (problem,) = read.problems
    assert "a.ply has 'classification', 'red', 'intensity', which is not used" in problem.text


def test_a_list_of_points_and_arrays_of_other_names(tmp_path: Path):
    np.savez(tmp_path / "a.npz", XYZ=POINTS, rgb=COLORS, semantic=np.array([4, 5, 6]))
    read = read_points(tmp_path / "a.npz")
    assert (read.labels.tolist(), read.problems) == ([4, 5, 6], ())
    assert read.colors.numpy() == pytest.approx(COLORS / 255)
    (tmp_path / "a.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\n"
        "property list uchar float descriptor\nend_header\n1 2 3 1 9\n4 5 6 2 9 9\n"
    )
    read = read_points(tmp_path / "a.ply")
    assert read.points.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert "'descriptor'" in read.problems[0].text


def test_a_lone_cloud_is_fused_without_teachers_and_check_says_that_it_has_no_views(
    synthetic_scene: Scene, tmp_path: Path
):
    save_cloud(synthetic_scene, tmp_path / "cloud.ply")
    dataset = open_dataset(tmp_path / "cloud.ply")
    stored = pipeline.fuse(dataset, [], tmp_path / "store", cell=0.05)["cloud"]
    assert stored.points.equal(synthetic_scene.points)
    assert (stored.cameras, int(stored.num_views.sum())) == ((), 0)
    assert check(dataset[0]).reasons == ("Scene cloud has no view that can be read.",)


def test_what_is_up_is_said_beside_the_file(tmp_path: Path):
    write_colored_ply(tmp_path / "a.ply")
    (tmp_path / "capture.json").write_text('{"up": "y"}')
    scene = open_dataset(tmp_path / "a.ply")[0]
    assert scene.points.tolist() == [[0, -2, 1], [3, -5, 4.5], [-6, -torch.tensor(8e-3).item(), 7]]
    assert scene.normals.tolist() == [[0, -1, 0], [0, 0, -1], [1, 0, 0]]


@pytest.mark.parametrize("data", ["ascii", "binary"])
def test_points_without_a_position_are_left_out_and_counted(data: str, tmp_path: Path):
    points = POINTS.copy()
    points[1, 2] = np.nan
    write_pcd(tmp_path / "a.pcd", data, points=points)
    scene = open_dataset(tmp_path / "a.pcd")[0]
    assert scene.points.equal(torch.from_numpy(POINTS[[0, 2]]))
    assert scene.colors.equal(torch.from_numpy(COLORS[[0, 2]].astype(np.float32) / 255))
    assert str(scene.problems[0]) == "1 of 3 points of a.pcd left out: they have no position."


@pytest.mark.parametrize(
    ("colors", "expected"),
    [
        (np.array([[0, 65535, 13107]], np.uint16), [[0, 1, 0.2]]),
        (np.array([[0, 255, 51]], np.int64), [[0, 1, 0.2]]),
        (np.array([[0, 1, 0.2]], np.float64), [[0, 1, 0.2]]),
        (np.array([[0, 255, 51]], np.float32), [[0, 1, 0.2]]),
        (np.array([[0, np.nan, 0.2]], np.float32), None),
    ],
)
def test_colours_count_to_what_their_type_holds(colors: np.ndarray, expected: list | None, tmp_path: Path):
    np.savez(tmp_path / "a.npz", points=POINTS[:1], colors=colors)
    found = read_points(tmp_path / "a.npz").colors
    assert (found is None) == (expected is None)
    if expected is not None:
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("scale", [1, 257])
def test_a_las_holds_colours_of_eight_or_of_sixteen_bits(scale: int, tmp_path: Path):
    write_las(tmp_path / "a.las", scale)
    found = read_points(tmp_path / "a.las")
    torch.testing.assert_close(found.points, torch.from_numpy(POINTS).float(), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.colors, torch.from_numpy(COLORS).float() / 255)


def test_a_las_without_colours_or_points(tmp_path: Path):
    write_las(tmp_path / "a.las", 0)
    assert read_points(tmp_path / "a.las").colors is None
    path = tmp_path / "a.las"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"a\.las is no readable LAS file \(it promises 3 points and is too short"):
        read_points(path)


def test_normals_become_unit_vectors(tmp_path: Path):
    np.savez(tmp_path / "a.npz", points=POINTS, normals=5 * NORMALS)
    assert read_points(tmp_path / "a.npz").normals.equal(torch.from_numpy(NORMALS))


@pytest.mark.parametrize("bad", [0, np.nan, np.inf])
def test_a_point_without_a_normal_or_a_colour_has_that_of_the_nearest(bad: float, tmp_path: Path):
    points = np.array([[0, 0, 0], [1, 0, 0], [1.1, 0, 0], [9, 0, 0]], np.float32)
    normals = np.eye(4, 3, dtype=np.float32)
    normals[3] = [0, 0.6, 0.8]
    colors = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], np.float32)
    normals[2] = bad
    if bad:
        colors[1, 1] = bad
    np.savez(tmp_path / "a.npz", points=points, normals=normals, colors=colors)
    found = read_points(tmp_path / "a.npz")
    assert found.normals.tolist() == torch.from_numpy(normals[[0, 1, 1, 3]]).tolist()
    assert found.colors.tolist() == colors[[0, 2, 2, 3] if bad else [0, 1, 2, 3]].tolist()
    said = [
        f"1 of 4 points of a.npz have no {what} that make sense; they have those of the nearest point."
        for what in (["colours"] if bad else []) + ["normals"]
    ]
    assert list(map(str, found.problems)) == said
    np.savez(tmp_path / "a.npz", points=points, normals=normals * np.nan)
    found = read_points(tmp_path / "a.npz")
    assert found.normals is None
    assert list(map(str, found.problems)) == ["The normals of a.npz are not used: those of no point make sense."]


@pytest.mark.parametrize("outlier", [1e9, -3e38, 6000])
def test_an_outlier_is_left_out_and_costs_nothing_else(outlier: float, tmp_path: Path):
    points = np.concatenate([POINTS, [[outlier, 0, 0]]]).astype(np.float32)
    np.savez(tmp_path / "a.npz", points=points, colors=np.concatenate([COLORS, [[1, 2, 3]]]).astype(np.uint8))
    scene = open_dataset(tmp_path / "a.npz")[0]
    assert scene.points.equal(torch.from_numpy(POINTS))
    assert len(scene.colors) == len(POINTS)
    assert list(map(str, scene.problems)) == ["1 of 4 points of a.npz left out: over 5000 m from the others."]


def test_labels_that_are_no_whole_numbers_are_no_labels(tmp_path: Path):
    # Cut to 16 or 64 bits, or to whole numbers, each of these would be a class.
    wrong = [3.5, np.nan, np.inf, 65536.0 * 65536 + 3, 1e30]
    points = np.arange(18, dtype=np.float32).reshape(6, 3)
    np.savez(tmp_path / "a.npz", points=points, labels=np.array([3, *wrong]))
    found = read_points(tmp_path / "a.npz")
    assert found.labels.tolist() == [3] + [-1] * 5
    assert list(map(str, found.problems)) == ["5 labels of a.npz left out: they are no whole numbers."]


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("points", {"points": np.zeros((3, 2))}, r"points is float64 \(3, 2\); expected numbers \(3, 3\)"),
        ("colors", {"points": POINTS, "colors": COLORS[:2]}, r"colors is uint8 \(2, 3\); expected numbers \(3, 3\)"),
        ("names", {"points": np.array([["a"] * 3])}, r"points is <U1"),
        ("scalar", {"points": np.array(3.0)}, r"points is float64 \(\)"),
        ("none", {"other": POINTS}, r"has no array of points"),
        ("objects", {"points": np.array([{}, [], None], dtype=object)}, "is no readable NPZ"),
    ],
)
def test_wrong_arrays_are_named(name: str, arrays: dict[str, np.ndarray], message: str, tmp_path: Path):
    np.savez(tmp_path / f"{name}.npz", **arrays)
    with pytest.raises(ValueError, match=rf"{name}\.npz.*{message}"):
        open_dataset(tmp_path / f"{name}.npz")[0]


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    np.savez_compressed(tmp_path / "a.npz", points=np.zeros((1_000_000, 3), np.float32))
    assert (tmp_path / "a.npz").stat().st_size < 20_000
    monkeypatch.setattr("cuao3d.formats.points.NPZ_SLACK", 1_000_000)
    with pytest.raises(ValueError, match=r"a\.npz is no readable NPZ file \(its \d+ bytes would unpack to 12000"):
        open_dataset(tmp_path / "a.npz")[0]


@pytest.mark.parametrize("name", ["scan.laz", "scan.e57", "scan.xyz", "transforms.json"])
def test_a_file_of_another_format_says_how_to_convert_it(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b"LASF")
    with pytest.raises(ValueError, match=rf"{name} is no cloud that can be read \(\.ply, .*pdal translate {name}"):
        open_dataset(tmp_path / name)[0]


def test_an_empty_cloud_is_refused(tmp_path: Path):
    np.savez(tmp_path / "a.npz", points=POINTS[:0])
    with pytest.raises(ValueError, match=r"a\.npz holds no point"):
        open_dataset(tmp_path / "a.npz")[0]


@pytest.mark.parametrize("up", ["z", "-y"])
def test_a_cloud_far_from_the_origin_keeps_its_detail_and_its_coordinates(up: str, tmp_path: Path):
    positions = POINTS + np.array([350_000.25, 5_600_000.5, 12])
    np.savez(tmp_path / "a.npz", points=positions)
    (tmp_path / "capture.json").write_text(json.dumps({"up": up}))
    scene = open_dataset(tmp_path / "a.npz")[0]
    assert scene.points.abs().max() < 20
    back = in_capture(scene.points, scene.capture_from_world)
    assert back.dtype == torch.float64
    assert back.numpy() == pytest.approx(positions, abs=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"DATA binary", b"DATA binary_compressed", "its data are 'binary_compressed'; write it as ascii or binary"),
        (b"DATA binary", b"DOTA binary", "no header that ends in DATA"),
        (b"POINTS 3", b"POINTS 4", "no readable PCD"),
        (b"FIELDS x", b"FIELDS q", "has no x, y and z"),
        (b"SIZE 4", b"SIZE 3", "no readable PCD"),
    ],
)
def test_a_wrong_pcd_is_named(old: bytes, new: bytes, message: str, tmp_path: Path):
    path = tmp_path / "a.pcd"
    write_pcd(path, "binary")
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(ValueError, match=rf"a\.pcd .*{message}"):
        open_dataset(path)[0]


@pytest.mark.parametrize("name", [*WRITE, "a.las"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_clouds_are_refused_cleanly(name: str, tmp_path: Path):
    (WRITE | {"a.las": write_las})[name](tmp_path / name)
    assert damage(tmp_path / name, lambda: open_dataset(tmp_path / name)[0], times=120) > 0.1
