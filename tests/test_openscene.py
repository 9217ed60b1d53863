"""Facts about OpenScene's processed scenes: what is written in its layout is read back, numbers are classes."""

import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from cuao3d.geometry import visible_points
from cuao3d.labels import convert, label_set
from cuao3d.readers import open_dataset
from cuao3d.readers.openscene import OpenScene
from cuao3d.scene import Scene
from cuao3d.worlds.rooms import make_room
from make_fixture_openscene import write_processed
from test_pickles import Evil
from written import damage, save_numbers

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_fixture_openscene.py"
SCAN, REGION = "scene0568_00", "17DRP5sb8fy_region0"
UNITS = {"scannet": 0.001, "matterport": 0.00025}


@pytest.fixture(scope="module")
def room() -> Scene:
    return make_room(0, num_views=2)


@pytest.fixture
def scannet(synthetic_scene: Scene, tmp_path: Path) -> Path:
    """The synthetic scene as OpenScene's ScanNet; returns the folder of clouds."""
    write_processed([replace(synthetic_scene, name=SCAN, split="val")], tmp_path)
    return tmp_path / "scannet_3d"


@pytest.fixture
def matterport(synthetic_scene: Scene, tmp_path: Path) -> Path:
    """The synthetic scene as a region; its cameras stand outside its bounding box, so that the nearest count."""
    write_processed([replace(synthetic_scene, name=REGION, split="test")], tmp_path, dataset="matterport")
    return tmp_path / "matterport_3d"


def put(path: Path, *content: Any) -> Path:
    """Put a cloud where another was, or a new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def cloud_in(folder: Path) -> Path:
    (path,) = folder.rglob("*.pth")
    return path


@pytest.mark.parametrize("dataset", ["scannet", "matterport"])
def test_a_room_is_read_back(dataset: Literal["scannet", "matterport"], room: Scene, tmp_path: Path):
    name, labels = {"scannet": (SCAN, "scannet20"), "matterport": (REGION, "matterport21")}[dataset]
    write_processed([replace(room, name=name, split="val")], tmp_path, dataset=dataset)
    opened = open_dataset(tmp_path / f"{dataset}_3d")
    assert isinstance(opened, OpenScene)
    (back,) = opened
    assert (back.name, back.split, back.label_set, back.problems) == (name, "val", labels, ())
    assert back.occlusion_tolerance == {"scannet": 0.25, "matterport": 0.02}[dataset]
    assert back.points.equal(room.points)
    assert back.labels.equal(convert(room.labels, label_set("scannet20"), label_set(labels)))
    torch.testing.assert_close(back.colors, room.colors, rtol=0, atol=0.51 / 255)
    assert len(back.frames) == len(room.frames)
    for view, true in zip(back.frames, room.frames, strict=True):
        for field in ("world_from_camera", "focal", "center"):
            torch.testing.assert_close(getattr(view.camera, field), getattr(true.camera, field), rtol=0, atol=1e-6)
        torch.testing.assert_close(view.read_depth(), true.read_depth(), rtol=0, atol=0.51 * UNITS[dataset])
        assert (view.read_image() - true.read_image()).abs().mean() < 0.03  # JPEG


def test_what_the_official_scripts_write_is_read(tmp_path: Path):
    # preprocess_3d_scannet.py saves doubles throughout, and 255 for what has no label; older files have -100.
    points, colors = np.array([[0.1, 0.2, 0.3], [1, 2, 3], [4, 5, 6.0]]), np.array([[-1, 0, 1], [1, 1, 1], [-1, -1, 0]])
    put(tmp_path / "scannet_3d" / "train" / f"{SCAN}_vh_clean_2.pth", points, colors / 1.0, np.array([19.0, 255, -100]))
    (scene,) = open_dataset(tmp_path)
    assert (scene.name, scene.split, scene.frames, scene.problems) == (SCAN, "train", (), ())
    assert scene.points.equal(torch.from_numpy(points).float())
    assert scene.colors.tolist() == [[0, 0.5, 1], [1, 1, 1], [0, 0, 0.5]]
    assert scene.labels.tolist() == [19, 255, 255]


@pytest.mark.parametrize("saved", ["tensors", "before PyTorch 1.6"])
def test_clouds_come_as_tensors_and_in_the_old_format_too(saved: str, scannet: Path):
    cloud, before = cloud_in(scannet), OpenScene(scannet)[0]
    content = torch.load(cloud, weights_only=False)
    if saved == "tensors":
        put(cloud, *map(torch.from_numpy, content))
    else:
        torch.save(content, cloud, _use_new_zipfile_serialization=False)
    after = OpenScene(scannet)[0]
    for field in ("points", "colors", "labels"):
        assert getattr(after, field).equal(getattr(before, field))


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("scannet_3d", "scannet20"),
        ("scannet200_3d", "scannet200"),
        ("scannet_3d_200", "scannet200"),
        ("matterport_3d", "matterport21"),
        ("matterport_3d_40", "matterport40"),
        ("matterport_3d_80", "matterport80"),
        ("matterport_3d_160", "matterport160"),
    ],
)
def test_the_folders_name_says_what_labels_mean(folder: str, name: str, tmp_path: Path):
    last = len(label_set(name)) - 1
    put(tmp_path / folder / "val" / "a_region0.pth", np.zeros((4, 3)), np.zeros((4, 3)), np.array([0, last, 255, 254]))
    (scene,) = open_dataset(tmp_path / folder)
    assert scene.label_set == name
    assert scene.labels.tolist() == [label_set(name).ids[0], label_set(name).ids[-1], 255, 255]
    assert tuple(map(str, scene.problems)) == (
        f"1 labels of a_region0.pth left out: they are not among the {last + 1} classes of {name}.",
    )


def test_labels_of_an_unknown_set_are_not_guessed(tmp_path: Path):
    put(tmp_path / "matterport_3d_30" / "val" / "a.pth", np.zeros((2, 3)), 0, np.array([0, 3]))
    (scene,) = open_dataset(tmp_path)
    assert (scene.labels, scene.label_set, scene.colors) == (None, None, None)
    assert "does not tell their label set" in scene.problems[0].text
    assert OpenScene(tmp_path, annotations="nyu40")[0].labels.tolist() == [1, 4]  # ids of that set begin at 1
    with pytest.raises(ValueError, match=r"--annotations is 'nyu41'; choose from"):
        OpenScene(tmp_path, annotations="nyu41")


def test_replica_has_no_labels_and_a_depth_unit_of_its_own(synthetic_scene: Scene, tmp_path: Path):
    frame = synthetic_scene.frames[0]
    put(
        tmp_path / "replica_3d" / "room0.pth",
        synthetic_scene.points.numpy(),
        0,
        np.full(len(synthetic_scene.points), 255),
    )
    write_processed([replace(synthetic_scene, name="room0")], tmp_path / "as")
    shutil.copytree(tmp_path / "as" / "scannet_2d", tmp_path / "replica_2d")
    units = (frame.read_depth() * 6553.5).round().numpy().astype(np.uint16)
    Image.fromarray(units).save(tmp_path / "replica_2d" / "room0" / "depth" / "0.png")
    (scene,) = open_dataset(tmp_path / "replica_3d")
    assert (scene.name, scene.split, scene.labels, scene.label_set) == ("room0", "train", None, None)
    torch.testing.assert_close(scene.frames[0].read_depth(), frame.read_depth(), rtol=0, atol=1e-4)


def test_every_folder_that_leads_to_clouds_is_recognised(scannet: Path):
    for path in (scannet.parent, scannet, scannet / "val"):
        dataset = open_dataset(path)
        assert isinstance(dataset, OpenScene)
        assert dataset.names == (SCAN,)
        assert (dataset[0].split, len(dataset[0].frames)) == ("val", 2)
    with pytest.raises(FileNotFoundError, match=r"No processed scene in .*Expected scannet_3d/train/ID"):
        OpenScene(Path(__file__).parent)


def test_of_several_folders_of_clouds_one_must_be_named(scannet: Path):
    shutil.copytree(scannet, scannet.with_name("matterport_3d_40"))
    with pytest.raises(ValueError, match=r"several folders .*\(matterport_3d_40, scannet_3d\); name one"):
        open_dataset(scannet.parent)


def test_clouds_outside_splits_know_theirs_by_the_official_lists(scannet: Path, matterport: Path):
    cloud_in(scannet).rename(scannet / f"{SCAN}.pth")
    assert (OpenScene(scannet).names, OpenScene(scannet)[0].split) == ((SCAN,), "val")
    cloud_in(matterport).rename(matterport / f"{REGION}.pth")
    assert OpenScene(matterport)[0].split == "train"


def test_views_share_the_official_camera_where_no_file_says_one(scannet: Path):
    (scannet.with_name("scannet_2d") / "intrinsics.txt").unlink()
    for path in (scannet.with_name("scannet_2d") / SCAN).glob("*/*.[jp][pn]g"):
        with Image.open(path) as image:
            resized = image.resize((320, 240), Image.Resampling.NEAREST)
        resized.save(path)
    camera = OpenScene(scannet)[0].frames[0].camera
    assert camera.focal.tolist() == [577.870605 / 2] * 2
    assert camera.center.tolist() == [159.5, 119.5]


def test_matterports_principal_point_is_turned_unless_official(matterport: Path):
    (view, _) = sorted((matterport.with_name("matterport_2d") / "17DRP5sb8fy" / "intrinsic").iterdir())
    save_numbers([[40, 0, 30], [0, 41, 20], [0, 0, 1]], view)
    cameras = [OpenScene(matterport, official=official)[0].frames[0].camera for official in (False, True)]
    assert [camera.center.tolist() for camera in cameras] == [[30, 47 - 20], [30, 20]]


def test_a_region_takes_the_views_that_stand_in_it(synthetic_scene: Scene, tmp_path: Path):
    far = torch.tensor([100.0, 0, 0])
    wide = torch.tensor([[-9.0, -9, -9], [9, 9, 9]])
    regions = [
        replace(
            synthetic_scene,
            name=f"17DRP5sb8fy_region{index}",
            points=torch.cat([synthetic_scene.points, wide]) + index * far,
            colors=None,
            labels=None,
            frames=tuple(
                replace(frame, camera=replace(frame.camera, world_from_camera=moved(frame, index * far)))
                for frame in synthetic_scene.frames
            ),
        )
        for index in range(2)
    ]
    write_processed(regions, tmp_path, dataset="matterport")
    for region, scene in zip(regions, open_dataset(tmp_path), strict=True):
        there = [frame.camera.world_from_camera[0, 3].item() for frame in scene.frames]
        assert there == [frame.camera.world_from_camera[0, 3].item() for frame in region.frames]


def moved(frame: Any, offset: torch.Tensor) -> torch.Tensor:
    pose = frame.camera.world_from_camera.clone()
    pose[:3, 3] += offset
    return pose


def test_bad_views_are_left_out_and_named(scannet: Path):
    views = scannet.with_name("scannet_2d") / SCAN
    (views / "pose" / "0.txt").write_text("-inf " * 4 + "\n" + ("-inf " * 4 + "\n") * 3)
    (views / "depth" / "20.png").unlink()
    scene = OpenScene(scannet)[0]
    assert scene.frames == ()
    assert [
        "0 left out: 0.txt: the pose is lost" in scene.problems[0].text,
        "depth/20.png is missing" in scene.problems[1].text,
    ] == [
        True,
        True,
    ]
    shutil.rmtree(views / "color")
    assert OpenScene(scannet)[0].problems == ()  # a lone cloud


def test_code_in_a_cloud_is_refused_and_never_run(scannet: Path, tmp_path: Path):
    cloud = put(cloud_in(scannet), np.zeros((1, 3)), Evil(tmp_path / "made"), np.zeros(1))
    with pytest.raises(ValueError, match=rf"{cloud.name}: refused, because .* may run code \(it names \w+\.mkdir\)"):
        OpenScene(scannet)[0]
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((np.zeros((2, 3)), np.zeros((2, 3))), "expected points, colours and labels"),
        ((np.zeros((2, 4)), 0, np.zeros(2)), r"its points have the shape \(2, 4\)"),
        ((np.zeros((0, 3)), 0, np.zeros(0)), r"its points have the shape \(0, 3\)"),
        ((np.full((2, 3), np.nan), 0, np.zeros(2)), "not finite"),
        ((np.full((2, 3), 1e200), 0, np.zeros(2)), "not finite"),
        ((np.zeros((2, 3)), np.zeros((3, 3)), np.zeros(2)), r"its colours have the shape \(3, 3\), not \(2, 3\)"),
        ((np.zeros((2, 3)), 0, np.zeros(3)), r"its labels have the shape \(3,\), not \(2,\)"),
        (("points", "colors", "labels"), "holds str where numbers should be"),
    ],
)
def test_what_is_no_cloud_is_named(content: tuple[Any, ...], message: str, scannet: Path):
    cloud = put(cloud_in(scannet), *content)
    with pytest.raises(ValueError, match=rf"{cloud.name} is no cloud of OpenScene: .*{message}"):
        OpenScene(scannet)[0]


def test_colours_of_another_range_are_not_used(scannet: Path):
    put(cloud_in(scannet), np.zeros((2, 3)), np.full((2, 3), 200), np.zeros(2))
    scene = OpenScene(scannet)[0]
    assert scene.colors is None
    assert "do not lie in [-1, 1]" in scene.problems[0].text


def test_names_cannot_lead_out_of_the_folder(scannet: Path):
    for name in ("..", ".._region0", "..%2f", ".._vh_clean_2", "._scene0568_00"):
        put(scannet / "val" / f"{name}.pth", np.zeros((1, 3)), 0, np.zeros(1))
    put(scannet / "val" / "_region7.pth", np.zeros((1, 3)), 0, np.zeros(1))
    put(scannet / "val" / "_vh_clean_2.pth", np.zeros((1, 3)), 0, np.zeros(1))
    dataset = OpenScene(scannet)
    assert dataset.names == ("_region7", "_vh_clean_2", SCAN)
    assert [len(scene.frames) for scene in dataset] == [0, 0, 2]


@pytest.mark.parametrize("name", ["3d", "intrinsics.txt", "color/0.jpg", "depth/0.png", "pose/0.txt"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_cleanly(name: str, scannet: Path):
    views = scannet.with_name("scannet_2d")
    path = cloud_in(scannet) if name == "3d" else views / name if name == "intrinsics.txt" else views / SCAN / name

    def read() -> None:
        for frame in OpenScene(scannet)[0].frames:
            frame.read_image()
            frame.read_depth()

    damage(path, read, times=120)


def test_the_script_writes_a_miniature_of_both(tmp_path: Path):
    runpy.run_path(str(SCRIPT))["main"](tmp_path, num_scenes=1, num_views=1)
    for dataset in ("scannet", "matterport"):
        scenes = list(open_dataset(tmp_path / f"{dataset}_3d"))
        assert [scene.split for scene in scenes] == ["train", "val"]
        for scene in scenes:
            (frame,) = scene.frames
            assert (
                len(visible_points(scene.points, frame.camera, frame.read_depth(), occlusion_tolerance=0.05).index)
                > 1000
            )
