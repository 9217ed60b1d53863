"""Facts about datasets that the package scenezoo reads."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cuao3d.errors import InputError, NotFoundError, NotInstalledError
from cuao3d.readers import open_dataset
from cuao3d.readers.scenezoo import SceneZoo
from cuao3d.scene import Scene
from written import eight_bit, intrinsics, pose, same_views, write_arkitscenes


@dataclass
class Zoo:
    """Stands for a dataset of scenezoo: the views of a scene, in the shapes that it documents."""

    scene: Scene
    mode: str | None = None
    model: str = "PINHOLE"
    distortion: Any = None
    poses: Any = None
    items: tuple[str, ...] = ("rgb", "depth", "rgb_intrinsics", "depth_intrinsics", "world_to_camera")
    asked: list[Any] = field(default_factory=list)

    @property
    def spec(self) -> Any:
        return SimpleNamespace(frame_sources=(SimpleNamespace(name="iphone", items=self.items),))

    def get_ids(self) -> list[str]:
        return ["one", "never-downloaded"]

    def get_frames(self, sample_id: str, *, indices: Any, items: Any, rotate_to_up: bool, source: str = "") -> Any:
        self.asked.append((items, indices, source))
        if sample_id != "one" or rotate_to_up:
            raise KeyError(sample_id)
        wanted = [0, 4] if indices is None else indices
        views = [self.scene.frames[[0, 4].index(number)] for number in wanted]
        every = {
            "rgb": [eight_bit(view.read_image()) for view in views],
            "depth": [view.read_depth().numpy() for view in views],
            "rgb_intrinsics": [intrinsics(view.camera) for view in views],
            "depth_intrinsics": [intrinsics(view.camera) for view in views],
            "world_to_camera": [np.linalg.inv(pose(view)) for view in views] if self.poses is None else self.poses,
        }
        given = {name: np.stack(values) if name in items else None for name, values in every.items()}
        return SimpleNamespace(
            indices=np.array(wanted), frame_keys=None, camera_model=self.model, depth_mode=self.mode,
            distortion=self.distortion, **given,
        )  # fmt: skip


@pytest.fixture
def zoo(synthetic_scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    (tmp_path / "data" / "scans" / "one").mkdir(parents=True)
    dataset, package = Zoo(synthetic_scene), ModuleType("scenezoo")
    package.__dict__.update(__version__="0.3.1", get_dataset=lambda name, root, offline: {"rooms": dataset}[name])
    monkeypatch.setitem(sys.modules, "scenezoo", package)
    return dataset


def test_scenes_are_those_that_scenezoo_gives(zoo: Zoo, synthetic_scene: Scene, tmp_path: Path):
    dataset = open_dataset(f"scenezoo:rooms/iphone:{tmp_path / 'data'}")
    assert dataset.names == ("one",)  # of its lists only what is there
    scene = dataset[0]
    assert [frame.name for frame in scene.frames] == ["000000", "000004"]
    assert len(zoo.asked) < 8  # the pixels of the first view, and those from which the cloud is built
    assert {source for *_, source in zoo.asked} == {"iphone"}
    same_views(scene, synthetic_scene, depth_unit=1e-6)
    assert len(scene.points) > 1000
    assert dataset.source(0).settings["version"] == "0.3.1"
    strict = open_dataset(f"scenezoo:rooms:{tmp_path / 'data'}", tolerance=0.03)[0]
    assert strict.occlusion_tolerance == 0.03


def test_distances_along_rays_become_depths(zoo: Zoo, synthetic_scene: Scene, tmp_path: Path):
    plain = open_dataset(f"scenezoo:rooms:{tmp_path / 'data'}")[0].frames[0].read_depth()
    zoo.mode = "ray_distance"
    frame = open_dataset(f"scenezoo:rooms:{tmp_path / 'data'}")[0].frames[0]
    camera = frame.camera
    ray = torch.tensor([-camera.center[0] / camera.focal[0], -camera.center[1] / camera.focal[1], 1.0]).norm()
    torch.testing.assert_close(frame.read_depth()[0, 0] * ray.float(), plain[0, 0])


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"model": "FISHEYE624"}, "its camera is FISHEYE624"),
        ({"items": ("rgb",)}, "has no frames with depth and poses"),
        ({"distortion": np.full((2, 8), 0.1)}, "8 numbers of distortion"),
        ({"poses": [np.zeros((4, 4))] * 2}, "its pose has no inverse"),
    ],
)
def test_what_is_no_pinhole_with_depth_is_refused(changes: dict[str, Any], cause: str, zoo: Zoo, tmp_path: Path):
    for name, value in changes.items():
        setattr(zoo, name, value)
    with pytest.raises(InputError, match=cause):
        open_dataset(f"scenezoo:rooms:{tmp_path / 'data'}")[0]


def test_wrong_specs_are_named(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "empty").mkdir()
    for spec, error, cause in (
        ("scenezoo:rooms", InputError, "should be scenezoo:NAME:PATH"),
        ("scenezoo:rooms:nowhere", NotFoundError, "There is no folder"),
        (f"scenezoo:rooms:{tmp_path / 'empty'}", NotFoundError, "finds no scene"),
        (f"scenezoo:zoos:{tmp_path / 'data'}", InputError, "cannot open .* as 'zoos'"),
        (f"scenezoo:rooms/dslr:{tmp_path / 'data'}", InputError, "no source 'dslr'; it has iphone"),
    ):
        with pytest.raises(error, match=cause):
            open_dataset(spec)
    with pytest.raises(InputError, match="does not take --every"):
        open_dataset(f"scenezoo:rooms:{tmp_path / 'data'}", every=2)
    monkeypatch.setitem(sys.modules, "scenezoo", None)
    with pytest.raises(NotInstalledError, match="pip install scenezoo"):
        SceneZoo(f"scenezoo:rooms:{tmp_path / 'data'}")


@pytest.mark.data
def test_scenezoo_and_we_read_the_same_arkitscenes(synthetic_scene: Scene, tmp_path: Path):
    pytest.importorskip("scenezoo", reason="needs scenezoo")
    raw = tmp_path / "raw"
    capture = write_arkitscenes(synthetic_scene, raw / "Training" / "40753679")
    (raw / "metadata.csv").write_text(
        "video_id,visit_id,fold,sky_direction,is_in_upsampling\n40753679,1,Training,Up,False\n"
    )
    ours, theirs = open_dataset(capture)[0], open_dataset(f"scenezoo:arkitscenes/lowres_wide:{tmp_path}")[0]
    assert len(theirs.frames) == len(ours.frames) > 0
    names = [frame.name for frame in ours.frames]
    frames = tuple(replace(frame, name=name) for frame, name in zip(theirs.frames, names, strict=True))
    same_views(replace(theirs, frames=frames), ours, depth_unit=0.001)
