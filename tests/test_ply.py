"""Facts about PLY files: three formats, meshes, and files that lie about what they hold."""

import random
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from cuao3d.formats.ply import Mesh, read_mesh, read_ply, write_ply
from make_fixture_matterport import write_mesh

VERTICES = [(0.0, 0.0, 0.5, 7), (1.0, 0.0, 0.5, 300), (0.0, 1.0, 0.5, 0), (1.0, 1.0, -2.0, 65535)]
FACES = [((0, 1, 2), -1), ((1, 3, 2), 1659)]


def header(order: str, num_vertices: int = 4, num_faces: int = 2) -> bytes:
    return (
        f"ply\nformat {order} 1.0\ncomment a small mesh\nelement vertex {num_vertices}\nproperty float x\n"
        f"property double y\nproperty float z\nproperty ushort label\nelement face {num_faces}\n"
        "property list uchar int vertex_indices\nproperty int category_id\nend_header\n"
    ).encode()


def mesh_file(order: str) -> bytes:
    """The same two triangles in any format, put together value by value."""
    if order == "ascii":
        rows = [" ".join(map(str, vertex)) for vertex in VERTICES]
        rows += [f"3 {a} {b} {c} {category}" for (a, b, c), category in FACES]
        return header(order) + "\n".join(rows).encode() + b"\n"
    sign = "<" if order == "binary_little_endian" else ">"
    body = b"".join(struct.pack(f"{sign}fdfH", *vertex) for vertex in VERTICES)
    return header(order) + body + b"".join(struct.pack(f"{sign}B3ii", 3, *corners, c) for corners, c in FACES)


ORDERS = ("ascii", "binary_little_endian", "binary_big_endian")


@pytest.mark.parametrize("order", ORDERS)
def test_a_mesh_is_the_same_in_every_format(tmp_path: Path, order: str):
    path = tmp_path / "mesh.ply"
    path.write_bytes(mesh_file(order))
    mesh = read_mesh(path)
    assert list(mesh.vertices) == ["x", "y", "z", "label"]
    for name, column, dtype in zip(mesh.vertices, zip(*VERTICES, strict=True), ("f4", "f8", "f4", "u2"), strict=True):
        assert mesh.vertices[name].dtype == np.dtype(dtype)
        assert mesh.vertices[name].tolist() == list(column)
    assert mesh.triangles.tolist() == [[0, 1, 2], [1, 3, 2]]
    assert mesh.faces["category_id"].tolist() == [-1, 1659]
    for name, column in read_ply(path).items():
        np.testing.assert_array_equal(column, mesh.vertices[name])


def test_a_written_cloud_is_a_header_and_rows_in_little_endian(tmp_path: Path):
    write_ply(tmp_path / "cloud.ply", {"x": np.array([0.5, -2], np.float32), "label": np.array([3, 65535], np.uint16)})
    rows = struct.pack("<fHfH", 0.5, 3, -2, 65535)
    assert (tmp_path / "cloud.ply").read_bytes() == (
        b"ply\nformat binary_little_endian 1.0\nelement vertex 2\nproperty float x\nproperty ushort label\nend_header\n"
        + rows
    )


def test_a_mesh_that_another_wrote_is_read(tmp_path: Path):
    rng = np.random.default_rng(0)
    points = {axis: rng.normal(size=50).astype(np.float32) for axis in "xyz"}
    mesh = Mesh(
        points | {"red": rng.integers(0, 256, 50, dtype=np.uint8)},
        rng.integers(0, 50, (30, 3)),
        {"category_id": rng.integers(-1, 1660, 30, dtype=np.int32)},
    )
    write_mesh(tmp_path / "mesh.ply", mesh)
    back = read_mesh(tmp_path / "mesh.ply")
    np.testing.assert_array_equal(back.triangles, mesh.triangles)
    np.testing.assert_array_equal(back.faces["category_id"], mesh.faces["category_id"])
    for name, column in mesh.vertices.items():
        np.testing.assert_array_equal(back.vertices[name], column)


def test_a_mesh_without_faces_is_a_mesh(tmp_path: Path):
    (tmp_path / "mesh.ply").write_bytes(header("binary_little_endian", 0, 0))
    mesh = read_mesh(tmp_path / "mesh.ply")
    assert (mesh.vertices, mesh.triangles.shape) == ({}, (0, 3))


def test_elements_before_the_vertices_are_skipped(tmp_path: Path):
    (tmp_path / "mesh.ply").write_text(
        "ply\nformat ascii 1.0\nelement face 2\nproperty list uchar int vertex_indices\n"
        "element nothing 1000000000000\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
        "property list int float weights\nend_header\n3 0 0 0\n3 0 0 0\n1 2 3\n2 0.5 0.5\n"
    )
    columns = {name: column.tolist() for name, column in read_ply(tmp_path / "mesh.ply").items()}
    assert columns == {"x": [1], "y": [2], "z": [3], "weights": [0]}  # the list is named, and not read


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"3 0 1 2", b"2 0 1", "not there"),
        (b"3 0 1 2", b"4 0 1 2 -1", "negative"),
        (b"3 0 1 2", b"3 0 1 4", "not there"),
        (b"3 0 1 2", b"3 0 1 -1", "not there"),
        (b"3 0 1 2", b"3 0 1 1.5", "no int32"),
        (b"300", b"70000", "no uint16"),
        (b"300", b"many", "no readable PLY"),
        (b"list uchar int vertex_indices", b"list float int vertex_indices", "header says 'property list float"),
        (b"vertex_indices", b"corners", "which vertices its faces join"),
        (b"property float x", b"property float y", "two properties y"),
        (b"property float x", b"property float u", "without x, y and z"),
        (b"element face 2", b"element face 3", "fewer faces than the 3"),
        (b"element face 2", b"element vertex 2", "header says 'element vertex 2'"),
        (b"element face", b"element faces", "no element face"),
        (b"end_header", b"end of header", "header says 'end of header'"),
        (b"format ascii 1.0", b"format utf8 1.0", "header says 'format utf8"),
    ],
)
def test_what_is_wrong_with_a_mesh_is_said(tmp_path: Path, old: bytes, new: bytes, words: str):
    (tmp_path / "mesh.ply").write_bytes(mesh_file("ascii").replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"mesh\.ply.*{words}"):
        read_mesh(tmp_path / "mesh.ply")


def test_faces_of_more_corners_are_cut_into_triangles(tmp_path: Path):
    quads = mesh_file("ascii").replace(b"3 0 1 2", b"4 0 1 2 3").replace(b"3 1 3 2", b"4 1 3 2 0")
    (tmp_path / "mesh.ply").write_bytes(quads)
    mesh, once = read_mesh(tmp_path / "mesh.ply"), read_mesh_of("ascii", tmp_path)
    assert mesh.triangles.tolist() == [[0, 1, 2], [0, 2, 3], [1, 3, 2], [1, 2, 0]]
    for name, column in mesh.faces.items():
        assert column.tolist() == [value for value in once.faces[name].tolist() for _ in range(2)]


@pytest.mark.parametrize("order", ORDERS)
def test_faces_and_lists_of_different_lengths_are_read(tmp_path: Path, order: str):
    head = header(order, 4, 3).replace(b"ushort label\n", b"ushort label\nproperty list uchar double descriptor\n")
    lists, polygons = ([], [0.5], [1.0, 2.0], [3.0]), ([0, 1, 2], [0, 1, 2, 3, 1], [3, 2, 1, 0])
    sign = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}[order]
    if sign:
        rows = [
            struct.pack(f"{sign}fdfHB{len(some)}d", *vertex, len(some), *some)
            for vertex, some in zip(VERTICES, lists, strict=True)
        ]
        rows += [
            struct.pack(f"{sign}B{len(corners)}ii", len(corners), *corners, number)
            for number, corners in enumerate(polygons)
        ]
        body = b"".join(rows)
    else:
        lines = [[*vertex, len(some), *some] for vertex, some in zip(VERTICES, lists, strict=True)]
        lines += [[len(corners), *corners, number] for number, corners in enumerate(polygons)]
        body = "".join(" ".join(map(str, line)) + "\n" for line in lines).encode()
    (tmp_path / "mesh.ply").write_bytes(head + body)
    mesh, even = read_mesh(tmp_path / "mesh.ply"), read_mesh_of(order, tmp_path)
    assert mesh.triangles.tolist() == [[0, 1, 2], [0, 1, 2], [0, 2, 3], [0, 3, 1], [3, 2, 1], [3, 1, 0]]
    assert [column.tolist() for column in mesh.faces.values()] == [[0, 1, 1, 1, 2, 2]]
    assert mesh.vertices.keys() == even.vertices.keys() | {"descriptor"}
    for name, column in even.vertices.items():
        np.testing.assert_array_equal(mesh.vertices[name], column)
    for length in range(len(head), len(head + body) - 1):  # a cut file is refused
        (tmp_path / "mesh.ply").write_bytes((head + body)[:length])
        with pytest.raises(ValueError, match=r"mesh\.ply"):
            read_mesh(tmp_path / "mesh.ply")


@pytest.mark.parametrize("end", [b"\r", b"\r\n"])
@pytest.mark.parametrize("first", [b"\n", b"7"])
def test_lines_of_a_header_may_end_in_cr(tmp_path: Path, end: bytes, first: bytes):
    head = b"ply\nformat binary_little_endian 1.0\nelement vertex 1\n" + b"".join(
        b"property uchar %c\n" % axis for axis in b"xyz"
    )
    (tmp_path / "cloud.ply").write_bytes((head + b"end_header\n").replace(b"\n", end) + first + b"ab")
    assert [int(column[0]) for column in read_ply(tmp_path / "cloud.ply").values()] == [first[0], 97, 98]


def read_mesh_of(order: str, folder: Path) -> Mesh:
    (folder / "triangles.ply").write_bytes(mesh_file(order))
    return read_mesh(folder / "triangles.ply")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [5, 10**9, 10**18 - 1, 10**30])
def test_absurd_counts_are_refused_at_once(tmp_path: Path, order: str, count: int):
    path = tmp_path / "mesh.ply"
    start = time.monotonic()
    for promised in (header(order, num_vertices=count), header(order, num_faces=count)):
        path.write_bytes(mesh_file(order).replace(header(order), promised))
        with pytest.raises(ValueError, match=r"mesh\.ply"):
            read_mesh(path)
    assert time.monotonic() - start < 2


def test_a_list_longer_than_the_file_is_refused(tmp_path: Path):
    for order, sign in (("binary_little_endian", "<"), ("binary_big_endian", ">")):
        content = header(order).replace(b"list uchar int", b"list uint int")
        body = b"".join(struct.pack(f"{sign}fdfH", *vertex) for vertex in VERTICES)
        (tmp_path / "mesh.ply").write_bytes(content + body + struct.pack(f"{sign}I3ii", 2**32 - 1, 0, 1, 2, 0))
        with pytest.raises(ValueError, match="fewer faces"):
            read_mesh(tmp_path / "mesh.ply")


@pytest.mark.parametrize("order", ORDERS[1:])
def test_a_cut_file_gives_all_its_vertices_or_an_error(tmp_path: Path, order: str):
    content = mesh_file(order)
    end_of_vertices = len(header(order)) + 4 * 18
    for length in range(len(content)):
        (tmp_path / "mesh.ply").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"mesh\.ply"):
            read_mesh(tmp_path / "mesh.ply")
        if length < end_of_vertices:
            with pytest.raises(ValueError, match=r"mesh\.ply"):
                read_ply(tmp_path / "mesh.ply")
        else:
            assert read_ply(tmp_path / "mesh.ply")["label"].tolist() == [7, 300, 0, 65535]


@pytest.mark.parametrize("order", ORDERS)
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, order: str):
    rng, content, path = random.Random(0), mesh_file(order), tmp_path / "mesh.ply"
    refused: list[str] = []
    for _ in range(300):
        path.write_bytes(damaged(content, rng))
        try:
            mesh = read_mesh(path)
            assert all(len(column) == len(mesh.vertices["x"]) for column in mesh.vertices.values())
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all("mesh.ply" in message for message in refused)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Change some bytes of a file, or cut it, or put something in."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(changed))
        match rng.randrange(4):
            case 0:
                changed[place] = rng.randrange(256)
            case 1:
                changed[place] ^= 1 << rng.randrange(8)
            case 2:
                changed[place:place] = rng.choice([b"9", b"-", b" ", b"\n", b"\xff" * 8, b"\0" * 4])
            case 3:
                del changed[place : place + rng.randint(1, 16)]
    return bytes(changed)
