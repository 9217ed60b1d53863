"""Answers are in the coordinates of the capture's pose files, whatever was turned, scaled or moved inside."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cuao3d.cli import main
from cuao3d.coordinates import as_matrix, describe_place, in_capture, size_in_words, unit_of
from cuao3d.formats.ply import read_ply
from cuao3d.geometry import move
from cuao3d.pipeline import fuse
from cuao3d.places import Upright
from cuao3d.readers import open_dataset
from cuao3d.readers.sevenscenes import write_capture
from cuao3d.scene import Scene
from cuao3d.store import Store
from cuao3d.worlds.rooms import make_room
from plant_errors import tilt_of
from planted import turned, with_poses

WORDS = ("a bed", "a door", "a window", "a floor")


def scaled(pose: Tensor) -> Tensor:
    """A pose in millimetres."""
    pose = pose.clone()
    pose[:3, 3] *= 1000
    return pose


@pytest.fixture(scope="module")
def room() -> Scene:
    return replace(make_room(0, num_views=6), normals=None)


def test_a_place_by_hand_in_a_world_that_was_turned_and_scaled():
    # Our x is the capture's y, our y its -x; 1000 of its units make a metre; its origin lies at (1, 2, 3) m of it.
    capture_from_world = torch.tensor([[0, -1, 0, 1.0], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 0.001]]) * 1000
    points = torch.tensor(
        [[0.0, 0, 0], [2.0, 0.5, 0.25], [1.0, 0.1, 0.05], [2.0, 0, 0.1], [0, 0.5, 0.1], [1, 0.2, 0.1]]
    )
    place = describe_place(points, points[:3], capture_from_world.double(), floor=-0.5)
    assert place["center"] == pytest.approx([1000 - 200, 2000 + 1000, 3000 + 100])
    assert place["box"]["size"] == pytest.approx([2000, 500, 250])
    assert place["box"]["center"] == pytest.approx([1000 - 250, 2000 + 1000, 3000 + 125])
    assert place["box"]["yaw"] == 90.0
    assert place["size_m"] == [2, 0.5, 0.25]
    assert place["above_floor_m"] == 0.5
    assert size_in_words(place) == "2.00 x 0.50 x 0.25 m, 0.50 m above the floor"
    assert place["corners"][0] == pytest.approx([1000, 2000, 3000])
    assert place["corners"][1] == pytest.approx([1000, 4000, 3000])
    assert place["corners"][2] == pytest.approx([500, 2000, 3000])
    assert place["corners"][7] == pytest.approx([500, 4000, 3250])
    assert unit_of(capture_from_world.double()) == ""


def test_where_nothing_was_changed_places_are_in_metres_to_a_millimetre():
    points = torch.tensor([[0.0, 0, 0], [1.23456, 0, 0], [1.23456, 1, 1], [0, 1, 1], [0.61728, 0.5, 0.5]])
    place = describe_place(points, points, None)
    assert place["center"] == [0.617, 0.5, 0.5]
    assert place["box"] == {"center": [0.617, 0.5, 0.5], "size": [1.235, 1.0, 1.0], "yaw": 0.0}
    assert place["above_floor_m"] is None
    assert size_in_words(place) == "1.24 x 1.00 x 1.00 m"
    assert size_in_words(place | {"above_floor_m": 0.05}) == "1.24 x 1.00 x 1.00 m, on the floor"
    assert unit_of(None) == " m"
    assert in_capture(points, None).equal(points)
    assert as_matrix(None) == torch.eye(4).tolist()


def test_in_a_large_unit_places_keep_their_millimetres():
    kilometres = torch.diag(torch.tensor([0.001, 0.001, 0.001, 1.0], dtype=torch.float64))
    points = torch.tensor([[0.0, 0, 0], [1.2, 0.5, 0.5], [2.502, 1, 1]])
    assert describe_place(points, points, kilometres)["center"][0] == 0.001234


def test_the_centre_of_a_place_is_that_of_its_best_points_and_lies_on_the_thing():
    bar = torch.tensor([[0.1 * i, 0.0, 0.0] for i in range(11)])
    assert describe_place(bar, bar[:3], None)["center"] == [0.1, 0.0, 0.0]
    ends = torch.cat([bar[:2], bar[-2:]])  # its middle is in the air
    assert describe_place(ends, ends, None)["center"] in ([0.1, 0.0, 0.0], [0.9, 0.0, 0.0])


def test_the_way_back_is_kept_with_the_scene(room: Scene, tmp_path: Path):
    write_capture(turned(room, tilt_of(0)), tmp_path / "room")
    (tmp_path / "room" / "capture.json").write_text(json.dumps({"up": tilt_of(0)[:3, 2].tolist(), "world_scale": 2}))
    dataset = open_dataset(tmp_path / "room")
    fuse(dataset, [], tmp_path / "store", cell=0.05)
    stored = Store.open(tmp_path / "store")["room"]
    assert stored.capture_from_world is not None
    assert stored.capture_from_world.equal(dataset[0].capture_from_world)
    written = torch.stack([torch.from_numpy(read_ply(tmp_path / "room" / "points.ply")[axis]) for axis in "xyz"], dim=1)
    torch.testing.assert_close(in_capture(stored.points, stored.capture_from_world), written, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def untouched(room: Scene, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Answers about the room as it was made."""
    return asked(room, {}, tmp_path_factory.mktemp("untouched"))


def asked(scene: Scene, options: dict, folder: Path) -> dict:
    """Write a capture, fuse it and ask; return what the JSON file says."""
    write_capture(scene, folder / "room")
    (folder / "room" / "capture.json").write_text(json.dumps(options))
    store, out = folder / "store", folder / "places.json"
    assert main(["fuse", str(folder / "room"), "--teachers", "mini-lseg", "--cell", "0.05", "--out", str(store)]) == 0
    assert main(["query", str(store), *WORDS, "--out", str(out)]) == 0
    return json.loads(out.read_text())


def test_answers_about_a_tilted_room_are_those_of_the_level_one_where_it_stands(
    room: Scene, untouched: dict, tmp_path: Path
):
    tilt = tilt_of(0)
    found = asked(turned(room, tilt), {"up": tilt[:3, 2].tolist()}, tmp_path)
    assert num_places(untouched) >= 3
    compare(found, untouched, tilt, metre=1.0)
    box = torch.tensor(found["answers"]["a bed"]["places"][0]["corners"]).double()
    upright = torch.nn.functional.normalize(box[4] - box[0], dim=0)
    assert float(upright @ tilt[:3, 2]) > math.cos(math.radians(0.1))


def test_boxes_stand_on_the_floor_of_a_world_whose_y_is_up(room: Scene, untouched: dict, tmp_path: Path):
    """As phones write it, and nobody said so in capture.json."""
    y_up = torch.tensor([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    found = asked(turned(room, y_up), {}, tmp_path)
    for own, level in zip(*(one["answers"]["a bed"]["places"] for one in (found, untouched)), strict=True):
        assert own["size_m"] == pytest.approx(level["size_m"], abs=0.02)
        assert own["above_floor_m"] == pytest.approx(level["above_floor_m"], abs=0.02)
        assert own["box"]["center"][1] == pytest.approx(level["box"]["center"][2], abs=0.02)
    unknown = replace(Store.open(tmp_path / "store")["room"], up=None)
    assert Upright.of(unknown).floor is None


@pytest.mark.slow
def test_answers_about_a_room_in_millimetres_are_in_millimetres(
    room: Scene, untouched: dict, tmp_path: Path, capsys: pytest.CaptureFixture
):
    tilt = tilt_of(1)
    scene = with_poses(turned(room, tilt), scaled)
    scene = replace(scene, points=scene.points * 1000)
    found = asked(scene, {"up": tilt[:3, 2].tolist(), "world_scale": 0.001}, tmp_path)
    compare(found, untouched, torch.diag(torch.tensor([1000.0, 1000, 1000, 1])).double() @ tilt, metre=1000.0)
    assert ") m" not in capsys.readouterr().out
    out = tmp_path / "heat.ply"
    assert main(["query", str(tmp_path / "store"), *WORDS, "--out", str(out)]) == 0
    cloud = torch.stack([torch.from_numpy(read_ply(out)[axis].copy()) for axis in "xyz"], dim=1)
    torch.testing.assert_close(cloud, scene.points, rtol=0, atol=0.01)


@pytest.mark.slow
def test_a_page_says_whose_coordinates_it_gives(room: Scene, tmp_path: Path):
    asked(turned(room, tilt_of(0)), {"up": tilt_of(0)[:3, 2].tolist()}, tmp_path)
    assert main(["query", str(tmp_path / "store"), *WORDS, "--out", str(tmp_path / "page.html")]) == 0
    assert "in the coordinates of the capture's pose files" in (tmp_path / "page.html").read_text().replace(
        "&#39;", "'"
    )


def num_places(content: dict) -> int:
    return sum(bool(answer["places"]) for answer in content["answers"].values())


def compare(found: dict, untouched: dict, capture_from_untouched: Tensor, *, metre: float) -> None:
    """Check that the first place of each question is the same, within 5 cm, and that the transform leads there."""
    for words, answer in untouched["answers"].items():
        for place, expected in zip(found["answers"][words]["places"][:1], answer["places"][:1], strict=True):
            there = move(torch.tensor([expected["center"]]), capture_from_untouched)[0]
            assert (torch.tensor(place["center"]) - there).norm() < 0.05 * metre, words
            assert place["num_points"] == pytest.approx(expected["num_points"], rel=0.1)
    transform = torch.tensor(found["capture_from_world"], dtype=torch.float64)
    up = transform[:3, :3] @ torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(up, capture_from_untouched[:3, 2], rtol=1e-4, atol=1e-3)
