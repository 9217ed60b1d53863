"""Facts about Hypersim's scenes as published."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cuao3d.errors import InputError, NotInstalledError
from cuao3d.formats.hdf5 import hdf5_size, read_map, read_radiance
from cuao3d.readers import open_dataset
from cuao3d.readers.hypersim import Hypersim
from cuao3d.scene import Scene
from written import damage, read_all, same_views, write_hypersim

h5py = pytest.importorskip("h5py", reason="needs cuao3d[hdf5]")

DISTANCE = "images/scene_cam_00_geometry_hdf5/frame.0010.depth_meters.hdf5"
COLOR = "images/scene_cam_00_final_preview/frame.0010.tonemap.jpg"


@pytest.fixture
def capture(synthetic_scene: Scene, tmp_path: Path) -> Path:
    return write_hypersim(synthetic_scene, tmp_path / "ai_001_001")


def save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["dataset"] = array


def test_a_written_scene_is_read_back(capture: Path, synthetic_scene: Scene):
    dataset = open_dataset(capture.parent)
    assert isinstance(dataset, Hypersim)
    scene = dataset[0]
    same_views(scene, synthetic_scene, depth_unit=1e-6)  # distances along rays, in metres, are depths again
    assert [frame.name for frame in scene.frames] == ["cam_00.0000", "cam_00.0010"]
    assert scene.problems == ()
    assert len(scene.points) > 1000
    source = dataset.source(0)
    assert sum("camera_keyframe" in name for name in source.files) == 3


def test_without_the_table_lenses_see_60_degrees(capture: Path):
    (capture / "metadata_camera_parameters.csv").unlink()
    camera = Hypersim(capture)[0].frames[0].camera
    assert camera.focal.tolist() == pytest.approx([camera.width / 2 * 3**0.5] * 2)
    assert camera.center.tolist() == [(camera.width - 1) / 2, (camera.height - 1) / 2]


def test_linear_colours_are_shown_as_hypersims_pictures(tmp_path: Path):
    # The 90 % quantile of brightness, 2, is shown at 0.8; a quarter of it at 0.8 * 0.25 ** (1 / 2.2).
    linear = np.full((10, 10, 3), 2, np.float16)
    linear[0], linear[1, 0] = 0.5, np.nan
    save(linear, tmp_path / "frame.0000.color.hdf5")
    colors = read_radiance(tmp_path / "frame.0000.color.hdf5")
    assert colors[5, 5].tolist() == pytest.approx([0.8] * 3, abs=1e-3)
    assert colors[0, 0].tolist() == pytest.approx([0.8 * 0.25 ** (1 / 2.2)] * 3, abs=1e-3)
    assert colors[1, 0].tolist() == [0, 0, 0]


def test_linear_colours_do_where_there_is_no_picture(capture: Path):
    for path in (capture / "images" / "scene_cam_00_final_preview").iterdir():
        pixels = np.asarray(Image.open(path)).astype(np.float32) / 255
        number = path.name.split(".")[1]
        save(pixels**2.2, capture / "images" / "scene_cam_00_final_hdf5" / f"frame.{number}.color.hdf5")
        path.unlink()
    scene = Hypersim(capture)[0]
    assert (len(scene.frames), scene.problems) == (2, ())
    image = scene.frames[0].read_image()
    assert image.shape == (3, *scene.frames[0].read_depth().shape)
    assert torch.linalg.vector_norm(image, dim=0).quantile(0.9) > 0.5


def test_what_is_missing_is_named(capture: Path):
    (capture / DISTANCE).unlink()
    (problem,) = Hypersim(capture)[0].problems
    assert str(problem) == (
        "cam_00.0010 left out: scene_cam_00_geometry_hdf5/frame.0010.depth_meters.hdf5 is missing; restore it, or "
        "remove the frame's other files."
    )
    (capture / COLOR).rename(capture / COLOR.replace("0010", "0011"))
    assert "cam_00.0011 has no pose" in str(Hypersim(capture)[0].problems[0])


def test_a_tilted_lens_is_refused(capture: Path):
    path = capture / "metadata_camera_parameters.csv"
    path.write_text(path.read_text().replace(",1,0.0", ",1,0.2"))
    with pytest.raises(InputError, match=r"ai_001_001 has a tilted lens \(M_cam_from_uv_01\)"):
        Hypersim(capture)[0]


@pytest.mark.parametrize(
    ("file", "array", "cause"),
    [
        ("positions", np.zeros((2, 4)), "expected N x 3"),
        ("orientations", np.zeros((2, 3)), "expected N x 3 x 3"),
        ("positions", np.zeros((3, 3)), "3 positions and 2 orientations"),
        ("frame_indices", np.zeros(2), "expected N. Copy it again"),
    ],
)
def test_wrong_arrays_are_refused(file: str, array: np.ndarray, cause: str, capture: Path):
    save(array, capture / "_detail" / "cam_00" / f"camera_keyframe_{file}.hdf5")
    with pytest.raises(InputError, match=cause):
        Hypersim(capture)[0]


def test_only_an_array_of_the_file_itself_is_read(tmp_path: Path):
    save(np.zeros((2, 2)), tmp_path / "other.hdf5")
    path = tmp_path / "linked.hdf5"
    with h5py.File(path, "w") as file:
        file["dataset"] = h5py.ExternalLink("other.hdf5", "dataset")
    with pytest.raises(InputError, match="holds no 'dataset' of its own"):
        read_map(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset", (2, 2), dtype="f4", external=[("raw.bin", 0, 16)])
    with pytest.raises(InputError, match="no array of numbers that lies in this file"):
        read_map(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset", (1 << 20, 1 << 20), dtype="f4", chunks=(16, 16))
    with pytest.raises(InputError, match="expected at most"):
        read_map(path)


def test_a_row_of_numbers_has_no_width_and_height(tmp_path: Path):
    for shape, size in (((2, 5), (5, 2)), ((2, 5, 3), (5, 2)), ((7,), None), ((1, 2, 3, 4), None)):
        save(np.zeros(shape), path := tmp_path / "array.hdf5")
        if size is not None:
            assert hdf5_size(path) == size
            continue
        with pytest.raises(InputError, match=r"array.hdf5 has the shape .* expected a map"):
            hdf5_size(path)


def test_without_h5py_the_package_is_named(capture: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(NotInstalledError, match=r"pip install 'cuao3d\[hdf5\]'"):
        Hypersim(capture)[0]


@pytest.mark.parametrize("name", ["_detail/cam_00/camera_keyframe_positions.hdf5", "_detail/metadata_scene.csv"])
def test_damaged_files_are_refused_cleanly(name: str, capture: Path):
    assert damage(capture / name, lambda: read_all(capture), times=40) > 0.05
