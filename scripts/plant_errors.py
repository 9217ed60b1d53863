"""Plant common capture errors in synthetic rooms and count how often `cuao3d check` names each.

python scripts/plant_errors.py --seeds 20 --clean 200

Rooms are rendered once and cached as NumPy arrays in a folder; errors are planted in memory, one at a time.
"""

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from cuao3d.check import check
from cuao3d.scene import OPENGL, Camera, Frame, Scene
from cuao3d.worlds.rooms import make_room

NUM_VIEWS = 10
FIRST_SEED = 5000
"""Seeds from here on were not used to choose thresholds."""

ROOMS = Path(tempfile.gettempdir()) / "cuao3d-rooms"

OTHER_SIZES = ((640, 480), (1296, 968), (160, 120))
"""Image sizes that the wrong intrinsics belong to, in turn; the rooms' images are 320 x 240."""

OFFSETS = ((8, 0), (-8, 0), (0, 8), (0, -8))
"""Offsets of the colour image (columns, rows), in turn, pixels."""


class Mistake(NamedTuple):
    """An error to plant, and the cause that `check` should name."""

    cause: str | None
    """Expected cause; None: nothing is wrong."""
    plant: Callable[[Scene, int], Scene]
    """Maps a clean scene and its seed to the corrupted scene."""


def with_cameras(scene: Scene, change: Callable[[Camera], Camera]) -> Scene:
    return replace(scene, frames=tuple(replace(frame, camera=change(frame.camera)) for frame in scene.frames))


def with_poses(scene: Scene, change: Callable[[Tensor], Tensor]) -> Scene:
    """Change the pose of every frame."""
    return with_cameras(
        scene, lambda camera: replace(camera, world_from_camera=change(camera.world_from_camera).clone())
    )


def with_depth(scene: Scene, scale: float) -> Scene:
    frames = [replace(frame, read_depth=lambda frame=frame: frame.read_depth() * scale) for frame in scene.frames]
    return replace(scene, frames=tuple(frames))


def squeezed(scene: Scene, seed: int) -> Scene:
    """Resize every image to three quarters of its width: fx and fy then differ by a quarter, but remain correct."""

    def squeeze(frame: Frame) -> Frame:
        camera = frame.camera
        size = (camera.height, camera.width * 3 // 4)
        column = torch.linspace(0, camera.width - 1, size[1]).round().long()

        def image() -> Tensor:
            return functional.interpolate(frame.read_image()[None], size, mode="bilinear", align_corners=True)[0]

        return replace(
            frame,
            camera=camera.resized(size[1], size[0]),
            read_image=image,
            read_depth=lambda: frame.read_depth()[:, column],
        )

    return replace(scene, frames=tuple(squeeze(frame) for frame in scene.frames))


def with_swapped_focal(scene: Scene, seed: int) -> Scene:
    """Exchange fx and fy, in squeezed images, as they are equal otherwise."""
    return with_cameras(squeezed(scene, seed), lambda camera: replace(camera, focal=camera.focal.flip(0)))


def with_intrinsics_of_another_size(scene: Scene, seed: int) -> Scene:
    width, height = OTHER_SIZES[seed % len(OTHER_SIZES)]

    def change(camera: Camera) -> Camera:
        return replace(camera.resized(width, height), width=camera.width, height=camera.height)

    return with_cameras(scene, change)


def with_shuffled_poses(scene: Scene, seed: int) -> Scene:
    """Give every frame the pose of another one."""
    rng, own = np.random.default_rng(seed), np.arange(len(scene.frames))
    order = own
    while (order == own).any():
        order = rng.permutation(own)
    frames = [replace(frame, camera=scene.frames[k].camera) for frame, k in zip(scene.frames, order, strict=True)]
    return replace(scene, frames=tuple(frames))


def with_moved_colours(scene: Scene, seed: int) -> Scene:
    """Shift colours against depth and crop both to the overlap: column x of depth shows column x + dx of colour."""
    dx, dy = OFFSETS[seed % len(OFFSETS)]

    def move(frame: Frame) -> Frame:
        camera = frame.camera
        x, y = max(0, dx), max(0, dy)
        width, height = camera.width - abs(dx), camera.height - abs(dy)
        corner = torch.tensor([x, y], dtype=torch.float64)
        return replace(
            frame,
            camera=replace(camera, center=camera.center - corner, width=width, height=height),
            read_image=lambda: frame.read_image()[:, y - dy : y - dy + height, x - dx : x - dx + width],
            read_depth=lambda: frame.read_depth()[y : y + height, x : x + width].contiguous(),
        )

    return replace(scene, frames=tuple(move(frame) for frame in scene.frames))


def with_lost_poses(scene: Scene, seed: int) -> Scene:
    """Lose 30 % of the poses."""
    lost = set(np.random.default_rng(seed).permutation(len(scene.frames))[: round(0.3 * len(scene.frames))].tolist())
    nowhere = torch.full((4, 4), torch.nan, dtype=torch.float64)
    frames = [
        replace(frame, camera=replace(frame.camera, world_from_camera=nowhere)) if index in lost else frame
        for index, frame in enumerate(scene.frames)
    ]
    return replace(scene, frames=tuple(frames))


def turned(scene: Scene, world: Tensor) -> Scene:
    """Transform cloud and poses by a rigid motion (4, 4) of the world."""
    rotation = world[:3, :3].float()
    points = scene.points @ rotation.T
    return with_poses(replace(scene, points=points.contiguous()), lambda pose: world @ pose)


def tilt_of(seed: int) -> Tensor:
    """Return a rotation (4, 4) about any axis by 5 to 30 degrees."""
    rng = np.random.default_rng([seed, 30])
    axis = rng.normal(size=3)
    world = torch.eye(4, dtype=torch.float64)
    turn = Rotation.from_rotvec(np.radians(rng.uniform(5, 30)) * axis / np.linalg.norm(axis))
    world[:3, :3] = torch.from_numpy(turn.as_matrix())
    return world


def off_up(scene: Scene, up: Tensor) -> float | None:
    """Return by how many degrees `check` is off the true up vector, or None where it says that it could not tell."""
    found = check(scene).measurements["up"]["direction"]
    if found is None:
        return None
    found = torch.tensor(found, dtype=torch.float64)
    return float(torch.rad2deg(torch.atan2(torch.linalg.cross(found, up).norm(), found @ up)))


MISTAKES = {
    "poses inverted": Mistake(
        "inverse poses", lambda scene, seed: with_poses(scene, lambda pose: torch.linalg.inv(pose))
    ),
    "OpenGL axes": Mistake("OpenGL axes", lambda scene, seed: with_poses(scene, lambda pose: pose @ OPENGL)),
    "inverted, OpenGL axes": Mistake(
        "inverse poses with OpenGL axes",
        lambda scene, seed: with_poses(scene, lambda pose: torch.linalg.inv(pose @ OPENGL)),
    ),
    "depth x 10": Mistake("depth x 0.1", lambda scene, seed: with_depth(scene, 10)),
    "depth x 0.25": Mistake("depth x 4", lambda scene, seed: with_depth(scene, 0.25)),
    "inverted, depth x 10": Mistake(
        "inverse poses, depth x 0.1",
        lambda scene, seed: with_depth(with_poses(scene, lambda pose: torch.linalg.inv(pose)), 10),
    ),
    "OpenGL axes, depth x 0.25": Mistake(
        "OpenGL axes, depth x 4", lambda scene, seed: with_depth(with_poses(scene, lambda pose: pose @ OPENGL), 0.25)
    ),
    "fx and fy swapped": Mistake("swapped focal lengths", with_swapped_focal),
    "intrinsics of another size": Mistake("intrinsics of another image size", with_intrinsics_of_another_size),
    "poses shuffled": Mistake("poses of other frames", with_shuffled_poses),
    "colours moved by 8 pixels": Mistake("colours off depth", with_moved_colours),
    "30 % of the poses NaN": Mistake("lost poses", with_lost_poses),
    "world upside down": Mistake("upside down", lambda scene, seed: turned(scene, OPENGL)),
    "squeezed, but right": Mistake(None, squeezed),
}


def main(
    seeds: int = 3,
    first: int = FIRST_SEED,
    clean: int = 0,
    rooms: Path = ROOMS,
    only: tuple[str, ...] = (),
) -> None:
    """Print a table: error, how often it was named first, other verdicts; then how well up is found in tilted rooms.

    Args:
        seeds: Rooms per error.
        first: Seed of the first room.
        clean: Rooms in which nothing is planted; their seeds are different.
        rooms: Folder of the cached rooms.
        only: Errors to plant; by default all.
    """
    print(f"{'planted':28} {'named':>9}   other verdicts, and how often")
    for name, mistake in MISTAKES.items():
        if not only or name in only:
            _count(name, mistake, range(first, first + seeds), rooms)
    tilted = {seed: tilt_of(seed) for seed in range(first, first + seeds)}
    off = [off_up(turned(load_room(seed, rooms), world), world[:3, 2]) for seed, world in tilted.items()]
    told = [one for one in off if one is not None]
    print(
        f"tilted: up within a degree {sum(one <= 1 for one in told)}, wrong {sum(one > 1 for one in told)}, not told "
        f"{len(off) - len(told)}, of {seeds}; largest error {max(told, default=0):.2f} degrees",
        flush=True,
    )
    if clean:
        _count("nothing", Mistake(None, lambda scene, seed: scene), range(first + 1000, first + 1000 + clean), rooms)


def _count(name: str, mistake: Mistake, seeds: range, rooms: Path) -> None:
    wanted = () if mistake.cause is None else (mistake.cause,)
    found = Counter(check(mistake.plant(load_room(seed, rooms), seed)).causes for seed in seeds)
    right = sum(count for causes, count in found.items() if causes[:1] == wanted)
    other = ", ".join(f"{' + '.join(causes) or 'ok'}: {count}" for causes, count in found.items() if causes != wanted)
    print(f"{name:28} {right:4d} / {len(seeds)}   {other}", flush=True)


def load_room(seed: int, folder: Path) -> Scene:
    """Return a synthetic room, rendered on the first call and cached in `folder`."""
    path = folder / f"{seed}-{NUM_VIEWS}.npz"
    if not path.is_file():
        _save(make_room(seed, num_views=NUM_VIEWS), path)
    with np.load(path, allow_pickle=False) as file:
        room = dict(file)
    height, width = room["depths"].shape[1:]
    focal, center = torch.from_numpy(room["lens"])
    frames = tuple(
        Frame(
            f"{index:06d}",
            Camera(focal, center, width, height, torch.from_numpy(pose)),
            partial(_as_image, image),
            partial(_as_depth, depth),
        )
        for index, (image, depth, pose) in enumerate(zip(room["images"], room["depths"], room["poses"], strict=True))
    )
    return Scene(f"room-{seed}", torch.from_numpy(room["points"]), frames, occlusion_tolerance=0.05)


def _save(scene: Scene, path: Path) -> None:
    camera = scene.frames[0].camera
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial.npz")
    np.savez(
        temporary,
        images=np.stack([(frame.read_image() * 255).round().to(torch.uint8).numpy() for frame in scene.frames]),
        depths=np.stack([(frame.read_depth() * 1000).round().numpy().astype(np.uint16) for frame in scene.frames]),
        poses=np.stack([frame.camera.world_from_camera.numpy() for frame in scene.frames]),
        lens=torch.stack([camera.focal, camera.center]).numpy(),
        points=scene.points.numpy(),
    )
    temporary.replace(path)


def _as_image(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255)


def _as_depth(millimetres: NDArray[np.uint16]) -> Tensor:
    return torch.from_numpy(millimetres.astype(np.float32) / 1000)


if __name__ == "__main__":
    tyro.cli(main)
