"""What tests share: shape checks in all functions, a tiny posed RGB-D room with known answers, golden numbers."""

from jaxtyping import install_import_hook

import shape_checker  # noqa: F401

install_import_hook("cuao3d", "shape_checker.check")

import os  # noqa: E402
import pickle  # noqa: E402
from collections.abc import Callable, Iterator, Mapping, Sequence  # noqa: E402
from contextlib import AbstractContextManager, contextmanager  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from jaxtyping import Float, Float32  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional  # noqa: E402

from cuao3d.fusion import lift, sample_cells, see  # noqa: E402
from cuao3d.readers import open_dataset  # noqa: E402
from cuao3d.readers.sevenscenes import write_capture  # noqa: E402
from cuao3d.scene import Camera, Frame, Scene  # noqa: E402
from cuao3d.store import Store, TeacherCard  # noqa: E402
from cuao3d.teachers.classes import ClassNames, class_words  # noqa: E402
from cuao3d.text import TextEncoder  # noqa: E402
from cuao3d.worlds.rooms import make_room  # noqa: E402

# The same examples on every run; to look for new ones: HYPOTHESIS_PROFILE=default pytest
settings.register_profile("gate", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))

WALL, PICTURE = 0, 10
WALL_COLOR, PICTURE_COLOR = (0.75, 0.25, 0.25), (0.25, 0.75, 0.25)
CAMERAS_X = (-0.25, 0.25)
"""Where the two cameras stand, metres; both look along +y from (x, 0, 1)."""

DATA = Path(os.environ.get("CUAO3D_DATA") or Path(__file__).parents[2] / "shared" / "data")
"""Data of others, which the repository does not ship: `$CUAO3D_DATA`, or `../shared/data` beside the checkout."""


def turned(frame: Frame, quarters: int) -> Frame:
    """A frame whose images are turned counter-clockwise by quarters, its camera with them."""
    for _ in range(quarters % 4):
        frame = _turned_once(frame)
    return frame


def _turned_once(frame: Frame) -> Frame:
    """Pixel (x, y) moves to (y, width - 1 - x), so camera axes (x, y) become (y, -x)."""
    camera = frame.camera
    old_from_new = torch.eye(4, dtype=torch.float64)
    old_from_new[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    center = torch.stack([camera.center[1], camera.width - 1 - camera.center[0]])
    pose = camera.world_from_camera @ old_from_new
    return Frame(
        frame.name,
        Camera(camera.focal.flip(0), center, camera.height, camera.width, pose),
        lambda: frame.read_image().rot90(1, (1, 2)),
        lambda: frame.read_depth().rot90(1, (0, 1)),
    )


class ColorTeacher:
    """Toy teacher: the mean colour of every 4 x 4 pixels. It cannot be wrong, so what it lifts is known."""

    name = "color"
    num_channels = 3

    def __call__(self, image: Float[Tensor, "3 H W"]) -> Float[Tensor, "3 h w"]:
        return functional.avg_pool2d(image, 4)


def camera_at(x: float) -> Camera:
    """A camera at (x, 0, 1) that looks along +y: its x is the world's x, its y the world's -z."""
    pose = torch.tensor([[1, 0, 0, x], [0, 0, 1, 0], [0, -1, 0, 1], [0, 0, 0, 1]], dtype=torch.float64)
    focal, center = torch.tensor([40.0, 40.0]), torch.tensor([31.5, 23.5])
    return Camera(focal.double(), center.double(), 64, 48, pose)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Random numbers of a test are the same on every day, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded or taken from `DATA`, unless a test asks for it."""
    monkeypatch.setenv("CUAO3D_OFFLINE", "1")
    monkeypatch.delenv("CUAO3D_DATA", raising=False)


def make_synthetic_scene() -> Scene:
    """A red wall at y = 2, x in [-1, 1], z in [0, 2], and a green picture at y = 1 that hides the wall's middle.

    The picture spans x in [-0.25, 0.25] and z in [0.75, 1.25]; its points keep 3 cm from its edges, so every one of
    them is seen by both cameras. A camera at x sees no wall within [-0.5 - x, 0.5 - x] x [0.5, 1.5].
    """
    wall = torch.cartesian_prod(torch.linspace(-1, 1, 21), torch.tensor([2.0]), torch.linspace(0, 2, 21))
    picture = torch.cartesian_prod(torch.linspace(-0.22, 0.22, 12), torch.tensor([1.0]), torch.linspace(0.78, 1.22, 12))
    num_points = torch.tensor([len(wall), len(picture)])
    return Scene(
        name="synthetic",
        points=torch.cat([wall, picture]),
        frames=tuple(_frame(x) for x in CAMERAS_X),
        colors=torch.tensor([WALL_COLOR, PICTURE_COLOR]).repeat_interleave(num_points, dim=0),
        labels=torch.tensor([WALL, PICTURE]).repeat_interleave(num_points),
        label_set="scannet20",
    )


@pytest.fixture
def synthetic_scene() -> Scene:
    """See `make_synthetic_scene`."""
    return make_synthetic_scene()


@pytest.fixture
def synthetic_store(synthetic_scene: Scene, tmp_path: Path) -> Store:
    """The synthetic scene in a store of 5 cm cells, with what the colour teacher sees."""
    return make_synthetic_store(synthetic_scene, tmp_path / "store")


def make_synthetic_store(synthetic_scene: Scene, path: Path) -> Store:
    """Lift the synthetic scene by the colour teacher."""
    store = Store.create(path, cell=0.05, teachers={"color": TeacherCard(num_channels=3)})
    samples = sample_cells(synthetic_scene.points, store.cell)
    visibility = see(synthetic_scene, samples)
    store.add_scene(synthetic_scene, samples, visibility, {"color": lift(synthetic_scene, visibility, ColorTeacher())})
    return store


@pytest.fixture(scope="session")
def room_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six views of a made room and its labelled cloud, in the layout of 7-Scenes; not to be changed."""
    folder = tmp_path_factory.mktemp("captures") / "room"
    write_capture(make_room(0, num_views=6), folder)
    return folder


def in_turn(jobs: Sequence[Any], num_workers: int, on_step: Callable[..., None]) -> list[Any]:
    """Run jobs as the processes of `side_by_side` would, each on its own copy, but one after another."""
    assert len(jobs) == num_workers
    return [pickle.loads(pickle.dumps(job))(partial(on_step, index)) for index, job in enumerate(jobs)]


def data_folder(name: str) -> Path:
    """A folder of `DATA`; where it is not there, the test is skipped."""
    if not (DATA / name).is_dir():
        pytest.skip(f"needs the folder {name} in $CUAO3D_DATA or ../shared/data; there is no {DATA / name}")
    return DATA / name


@pytest.fixture(scope="session")
def lounge_folder() -> Path:
    """Five frames of a real capture, in the layout of 7-Scenes; tests that use it are marked `data`."""
    return data_folder("lounge")


@pytest.fixture(scope="session")
def lounge(lounge_folder: Path) -> Scene:
    """The real capture, opened."""
    return open_dataset(lounge_folder)[0]


@pytest.fixture(scope="session")
def clip_text() -> Path:
    """CLIP's vectors for names of classes, made by others; tests that use them are marked `data`."""
    return data_folder("clip_text")


@pytest.fixture(scope="session")
def words_of_classes() -> dict[Any, Tensor]:
    """What `known_words` has encoded."""
    return {}


@pytest.fixture
def known_words(monkeypatch: pytest.MonkeyPatch, words_of_classes: dict[Any, Tensor]) -> None:
    """Encodes the class names of the networks for photographs but once: a thousand of them take seconds."""

    def remembered(encoder: Any, classes: ClassNames) -> Tensor:
        if not isinstance(encoder, TextEncoder):
            return class_words(encoder, classes)
        key = type(encoder), classes.names
        if key not in words_of_classes:
            words_of_classes[key] = class_words(encoder, classes)
        return words_of_classes[key]

    monkeypatch.setattr("cuao3d.teachers.photo.class_words", remembered)


class ToyWords:
    """Toy text encoder: the channels take turns."""

    def __init__(self, num_channels: int) -> None:
        self.num_channels = num_channels

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "K C"]:
        return torch.eye(self.num_channels)[torch.arange(len(texts)) % self.num_channels]


@pytest.fixture
def toy_words(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes distillation read words by a toy of a number of channels."""
    return lambda num_channels: monkeypatch.setattr(
        "cuao3d.distill.load_text_encoder", lambda name: ToyWords(num_channels)
    )


@pytest.fixture(scope="session")
def golden() -> Mapping[str, np.ndarray]:
    """Outputs of the official functions; `golden/README.md` says which."""
    with np.load(Path(__file__).parent / "golden" / "reference.npz") as file:
        return dict(file)


def golden_camera(golden: Mapping[str, np.ndarray], view: int) -> Camera:
    """The camera of one of the golden views."""
    intrinsics = torch.from_numpy(golden["intrinsics_640x480_to_320x240"])
    pose = torch.from_numpy(golden["world_from_camera"][view])
    return Camera(intrinsics[[0, 1], [0, 1]], intrinsics[:2, 2], 320, 240, pose)


def _frame(x: float) -> Frame:
    camera = camera_at(x)
    column, row = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="xy")
    right, down = (column - 31.5) / 40, (row - 23.5) / 40
    on_picture = ((x + right).abs() <= 0.25) & (down.abs() <= 0.25)
    on_wall = ((x + 2 * right).abs() <= 1) & ((2 * down).abs() <= 1) & ~on_picture
    depth: Float32[Tensor, "48 64"] = on_picture.float() + 2 * on_wall.float()
    red, green = torch.tensor(WALL_COLOR), torch.tensor(PICTURE_COLOR)
    image = on_wall * red[:, None, None] + on_picture * green[:, None, None]
    return Frame(f"x={x}", camera, read_image=lambda: image, read_depth=lambda: depth)


@contextmanager
def _extra_memory(*, limit_mb: int) -> Iterator[None]:
    """Fail if the memory of this process grows by more than a limit, if only for a moment."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        pytest.skip("only Linux tells the peak of a process's memory anew")

    def megabytes(key: str) -> int:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) >> 10

    reset.write_text("5")  # the peak begins anew
    before = megabytes("VmRSS")
    yield
    extra = megabytes("VmHWM") - before
    assert extra <= limit_mb, f"{extra} MB"


@pytest.fixture
def extra_memory() -> Callable[..., AbstractContextManager[None]]:
    """Fails a test if its memory grows by more than `limit_mb` while the context is open."""
    return _extra_memory


class Alone:
    """One scene as a dataset."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.names = scene, (scene.name,)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Scene:
        return self.scene
