"""Facts about walks through Habitat."""

from pathlib import Path

import pytest

from cuao3d.errors import NotFoundError
from cuao3d.readers import open_dataset
from cuao3d.readers.habitat import Habitat
from cuao3d.scene import Scene
from written import damage, read_all, same_views, write_habitat


@pytest.fixture
def capture(synthetic_scene: Scene, tmp_path: Path) -> Path:
    return write_habitat(synthetic_scene, tmp_path / "5LpN3gDmAk7_1")


def one_file_a_frame(capture: Path) -> None:
    (capture / "pose").mkdir()
    for index, row in enumerate((capture / "poses.txt").read_text().splitlines()):
        (capture / "pose" / f"walk_{index:06d}.txt").write_text(row)
    (capture / "poses.txt").unlink()


def test_a_written_walk_is_read_back(capture: Path, synthetic_scene: Scene):
    dataset = open_dataset(capture)
    assert isinstance(dataset, Habitat)
    scene = dataset[0]
    same_views(scene, synthetic_scene, depth_unit=1e-6)
    assert scene.problems == ()
    one_file_a_frame(capture)
    assert isinstance(open_dataset(capture), Habitat)
    same_views(open_dataset(capture)[0], synthetic_scene, depth_unit=1e-6)


def test_without_intrinsics_those_of_habitat_are_proposed_and_not_assumed(capture: Path):
    (capture / "intrinsics.txt").unlink()
    with pytest.raises(NotFoundError, match=r"90 degrees: write 32 0 31\.5 / 0 32 23\.5 / 0 0 1 there"):
        open_dataset(capture)[0]


def test_poses_of_other_forms_are_not_habitats(capture: Path):
    (capture / "poses.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1\n")
    assert not Habitat.recognises(capture)
    (capture / "poses.txt").write_text("")
    assert not Habitat.recognises(capture)


def test_a_frame_without_a_pose_or_depth_is_named(capture: Path):
    rows = (capture / "poses.txt").read_text().splitlines()
    (capture / "poses.txt").write_text(rows[0])
    (capture / "depth" / "000001.npy").rename(capture / "depth" / "000007.npy")
    first, second = map(str, Habitat(capture)[0].problems)
    assert first.startswith("000001 left out: poses.txt has 1 rows and none for 000001")
    assert second == "1 depth images have no colour image: 000007.npy"


@pytest.mark.parametrize("name", ["poses.txt", "intrinsics.txt"])
def test_damaged_files_are_refused_cleanly(name: str, capture: Path):
    assert damage(capture / name, lambda: read_all(capture), times=40) > 0.05
