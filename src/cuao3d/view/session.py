"""What one viewer of a store wants to see, and the picture that this is: all of the viewer but the browser."""

import io
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from PIL import Image
from torch import Tensor

from cuao3d.answers import write_cloud
from cuao3d.coordinates import in_capture
from cuao3d.errors import InputError, NotFoundError
from cuao3d.geometry import voxelize
from cuao3d.names import check_file_name
from cuao3d.photographs import MOST, encode_jpeg, read_photographs
from cuao3d.predictor import Predictor
from cuao3d.readers import Dataset
from cuao3d.scene import Camera
from cuao3d.store import Store
from cuao3d.view.asking import read_questions
from cuao3d.view.layers import MOST_POINTS, Click, Layers
from cuao3d.view.painted import Painted

NOTHING_BESIDE = "nothing"
"""What stands beside the scene unless something is chosen."""

MOST_SCENES = 4
"""Scenes that are kept in memory: those that were looked at last."""

MOST_CAMERAS = 150
"""Cameras of a scene that are drawn at most."""

PICTURE_SIDE = 320
"""Longer side of a photograph in the scene, pixels."""

CEILING = 0.2
"""A scene whose uppermost part, this thick in metres, covers much of it has a ceiling, which is not drawn at first."""

PLAN = 0.25
"""Edge of the cells in which it is looked at from above, metres."""


@dataclass(frozen=True)
class Wanted:
    """What a viewer wants to see."""

    scene: str
    model: str = ""
    """Who answers; one of `Session.models`."""
    layer: str = "photograph"
    described: str = ""
    """Whose features are shown, where the layer shows features."""
    text: str = ""
    """The questions, as they were typed."""
    threshold: float = 0.5
    """Points answer from this share of the peak on."""
    opacity: float = 1.0
    """How much of the layer covers the photograph, 0 to 1."""
    height: float = 1.0
    """Points above this share of the scene's height are not drawn."""
    hidden: frozenset[str] = frozenset()
    """Entries of the legend that are not drawn."""
    beside: str = NOTHING_BESIDE
    """Layer of the second picture."""
    beside_model: str = ""
    click: int | None = None
    """The point that was clicked; of those that are drawn."""


@dataclass(frozen=True, eq=False)
class Picture:
    """Points as they are drawn."""

    positions: Float32[Tensor, "P 3"]
    """Metres, relative to `Layers.middle`."""
    colors: UInt8[Tensor, "P 3"]
    """RGB."""
    drawn: Bool[Tensor, "M"]
    """Which of the points of `Layers.drawn` these are."""
    note: str
    """What is shown, in words."""
    legend: tuple[tuple[str, tuple[float, float, float]], ...]
    values: Float32[Tensor, "P"] | None
    """The numbers that the colours stand for."""


@dataclass(frozen=True, eq=False)
class Shot:
    """A camera of a scene."""

    camera: Camera
    image: UInt8[np.ndarray, "H W 3"] | None = None
    """What it saw, made small."""


class Session:
    """A store that is looked at: its scenes and who can be asked about them. Viewers share it."""

    def __init__(
        self,
        store: Store,
        models: Mapping[str, Predictor],
        *,
        data: Dataset | None = None,
        most_points: int = MOST_POINTS,
    ) -> None:
        """Look at a store.

        Args:
            store: The store.
            models: Who can be asked, by name; may be empty.
            data: What the store was made from; photographs come from there if the store keeps none.
            most_points: Points that are drawn of a scene at most.
        """
        self.store, self.models, self.data, self.most_points = store, dict(models), data, most_points
        self._layers: dict[str, tuple[tuple[int, int], Layers]] = {}
        self._lock = threading.Lock()

    def scenes(self) -> tuple[str, ...]:
        """Return the names of the scenes that the store holds now.

        Raises:
            InputError: A file of the store is damaged.
        """
        return self.store.names()

    def layers(self, scene: str) -> Layers:
        """Return a scene; it is read anew if the store has changed since.

        Args:
            scene: Its name.

        Raises:
            NotFoundError: There is no such scene.
            InputError: The name cannot be that of a scene, or a file of it is damaged.
        """
        check_file_name(scene, "scene")
        with self._lock:
            kept = self._layers.pop(scene, None)
            if kept is not None and kept[0] == self._state(scene):
                self._layers[scene] = kept
                return kept[1]
            stored = self.store[scene]
            found = Layers(self.store, self.models, stored, self.most_points)
            if not len(stored.points):
                raise InputError(f"Scene {scene!r} has no points; there is nothing to look at.")
            self._layers[scene] = self._state(scene), found
            while len(self._layers) > MOST_SCENES:
                self._layers.pop(next(iter(self._layers)))
            return found

    def picture(self, wanted: Wanted) -> tuple[Picture, ...]:
        """Return what a viewer wants to see: one picture, or two that stand side by side.

        Raises:
            UserError: The scene or the layer is not there, or a word is not known; the message says so.
        """
        layers = self.layers(wanted.scene)
        with layers.lock:
            painted = [self._paint(layers, wanted, wanted.layer, wanted.model)]
            if wanted.beside != NOTHING_BESIDE:
                painted.append(self._paint(layers, wanted, wanted.beside, wanted.beside_model or wanted.model))
        low_enough = _below(layers, wanted.height)
        return tuple(_as_picture(layers, one, wanted, low_enough) for one in painted)

    def click(
        self, wanted: Wanted, origin: Sequence[float], direction: Sequence[float], drawn: Bool[Tensor, "M"] | None
    ) -> Click | None:
        """Return what a ray meets first, and the words for it; None if it meets nothing.

        Args:
            wanted: What the viewer sees.
            origin: Where the ray begins, metres, relative to `Layers.middle`.
            direction: Where it goes.
            drawn: Which of the points of `Layers.drawn` the viewer sees.
        """
        layers = self.layers(wanted.scene)
        with layers.lock:
            if drawn is not None and len(drawn) != len(layers.drawn):
                return None  # the scene has changed meanwhile
            point = layers.click(origin, direction, drawn)
            if point is None:
                return None
            if wanted.model not in self.models:
                return Click(point, (), "There is nobody who could tell words.")
            return layers.about_click(wanted.model, point)

    def shots(self, scene: str) -> list[Shot]:
        """Return cameras of a scene, those with photographs first.

        Args:
            scene: Its name.
        """
        layers = self.layers(scene)
        shots = [Shot(one.camera, _small(one.jpeg)) for one in read_photographs(layers.scene)]
        if not shots and self.data is not None and scene in self.data.names:
            shots = self._from_data(scene)
        cameras = layers.scene.cameras[:: max(1, -(-len(layers.scene.cameras) // MOST_CAMERAS))]
        places = {tuple(one.camera.world_from_camera[:3, 3].tolist()) for one in shots}
        others = [Shot(camera) for camera in cameras if tuple(camera.world_from_camera[:3, 3].tolist()) not in places]
        return shots + others

    def export(self, scene: str, pictures: Sequence[Picture]) -> bytes:
        """Return what is seen as a PLY file, in the coordinates of the capture.

        Args:
            scene: Name of the scene.
            pictures: As of `picture`; the first is exported.

        Raises:
            InputError: The scene has changed since.
        """
        layers, picture = self.layers(scene), pictures[0]
        if len(picture.drawn) != len(layers.drawn):
            raise InputError(f"Scene {scene!r} has changed since it was shown; look at it again, then export.")
        points = layers.scene.points[layers.drawn[picture.drawn]]
        more = {} if picture.values is None else {"value": picture.values.float().numpy()}
        with tempfile.TemporaryDirectory(prefix="cuao3d-view-") as folder:
            path = Path(folder) / "seen.ply"
            write_cloud(path, in_capture(points, layers.scene.capture_from_world), picture.colors.float() / 255, more)
            return path.read_bytes()

    def _state(self, scene: str) -> tuple[int, int]:
        """Return what changes when a scene is written anew."""
        try:
            state = (self.store.path / "scenes" / scene / "manifest.json").stat()
        except (OSError, ValueError):
            return (0, 0)
        return state.st_mtime_ns, state.st_size

    def _paint(self, layers: Layers, wanted: Wanted, layer: str, model: str) -> Painted:
        if layer == "relevance":
            questions = read_questions(wanted.text)
            if not questions:
                return Painted(layers.photograph, "Ask something: somewhere to sit")
            return layers.relevance(model, questions, wanted.threshold)
        if layer == "like the clicked point":
            if wanted.click is None or wanted.click >= len(layers.drawn):
                return Painted(layers.photograph, "Click a point: what is like it glows.")
            if model not in self.models:
                raise InputError(f"There is nobody {model!r} to ask.")
            return layers.like(model, wanted.click, wanted.threshold)
        described = wanted.described or next(iter(layers.described_by()), "")
        return layers.paint(layer, model, described)

    def _from_data(self, scene: str) -> list[Shot]:
        """Read photographs of a scene from the data, spread evenly over its frames."""
        assert self.data is not None
        frames = self.data[list(self.data.names).index(scene)].frames
        shots = []
        for frame in frames[:: max(1, -(-len(frames) // MOST))]:
            try:
                image = frame.read_image()
            except (InputError, NotFoundError, OSError):
                continue  # `cuao3d check` tells of frames that cannot be read
            shots.append(Shot(frame.camera, _small(encode_jpeg(image))))
        return shots


def first_height(layers: Layers) -> float:
    """Return the share of a scene's height up to which it is drawn at first: without a ceiling, if it has one."""
    height = layers.positions.double() @ layers.up.double()
    low, high = float(height.min()), float(height.max())
    if high - low < 4 * CEILING:
        return 1.0
    flat = layers.positions.double() - height[:, None] * layers.up.double()
    cells = voxelize(flat - flat.amin(dim=0), PLAN)
    sides = cells.coordinates.amax(dim=0) + 1
    covered = torch.unique(cells.voxel_of_point[height > high - CEILING])
    level = sides.sort(descending=True).values[:2]  # of the plan, which has no height
    has_ceiling = int(level[1]) * PLAN > 1 and len(covered) > 0.4 * int(level.prod())
    return round(1 - 1.5 * CEILING / (high - low), 2) if has_ceiling else 1.0


def _below(layers: Layers, share: float) -> Bool[Tensor, "M"]:
    """Return which points lie below a share of the scene's height."""
    height = layers.positions @ layers.up.float()
    low, high = height.min(), height.max()
    return height <= low + (high - low) * min(max(share, 0.0), 1.0) + 1e-6


def _as_picture(layers: Layers, painted: Painted, wanted: Wanted, low_enough: Tensor) -> Picture:
    drawn, opacity = low_enough, min(max(wanted.opacity, 0.0), 1.0)
    if painted.entry_of_point is not None and wanted.hidden:
        shown = torch.tensor([name not in wanted.hidden for name, _ in painted.legend] + [True])
        drawn = drawn & shown[painted.entry_of_point]
    mixed = torch.lerp(layers.photograph, painted.colors.float(), opacity)[drawn]
    return Picture(
        positions=layers.positions[drawn],
        colors=(mixed.clamp(0, 1) * 255).round().to(torch.uint8),
        drawn=drawn,
        note=painted.note,
        legend=painted.legend,
        values=None if painted.values is None else painted.values[drawn],
    )


def _small(jpeg: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """Return a photograph as an image of at most `PICTURE_SIDE` pixels a side."""
    with Image.open(io.BytesIO(jpeg)) as image:
        image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        return np.asarray(image.convert("RGB"))
