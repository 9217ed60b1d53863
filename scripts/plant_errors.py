"""Plant common capture errors in synthetic rooms and count how often `cuao3d check` notices and names each.

python scripts/plant_errors.py --seeds 20 --clean 200

Rooms are rendered once and cached as NumPy arrays in a folder; errors are planted in memory, one at a time.
"""

import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from cuao3d.check import check
from cuao3d.scene import Camera, Frame, Scene
from cuao3d.worlds.houses import make_house
from cuao3d.worlds.rooms import make_room
from planted import MISTAKES, Mistake, turned, with_strays

NUM_VIEWS, NUM_OF_HOUSE, MANY = 10, 18, 60
FIRST_SEED = 5000
"""Seeds from here on were not used to choose thresholds."""

World = Literal["rooms", "houses"]

ROOMS = Path(tempfile.gettempdir()) / "cuao3d-rooms"


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


def main(
    seeds: int = 3,
    first: int = FIRST_SEED,
    clean: int = 0,
    strays: int = 0,
    rooms: Path = ROOMS,
    only: tuple[str, ...] = (),
) -> None:
    """Print a table: error, how often it was named first, other verdicts; then how well up is found in tilted rooms.

    Args:
        seeds: Rooms per error.
        first: Seed of the first room.
        clean: Rooms, and as many regions of houses, in which nothing is planted; their seeds are different.
        strays: Rooms of 60 views whose poses drift, and three of them are bad.
        rooms: Folder of the cached rooms.
        only: Errors to plant; by default all.
    """
    print(f"{'planted':30} noticed, named   other verdicts, and how often")
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
    if strays:
        _count_strays(range(first, first + strays), rooms)
    if clean:
        unseen = range(first + 1000, first + 1000 + clean)
        _count("nothing", Mistake(None, lambda scene, seed: scene), unseen, rooms)
        _count("nothing, houses", Mistake(None, lambda scene, seed: scene), unseen, rooms, "houses")


def _count(name: str, mistake: Mistake, seeds: range, rooms: Path, world: World = "rooms") -> None:
    wanted = () if mistake.cause is None else (mistake.cause,)
    scenes = (
        load_room(seed, rooms, num_views=NUM_VIEWS if world == "rooms" else NUM_OF_HOUSE, world=world) for seed in seeds
    )
    found = Counter(check(mistake.plant(scene, seed)).causes for scene, seed in zip(scenes, seeds, strict=True))
    right = sum(count for causes, count in found.items() if causes[:1] == wanted)
    noticed = sum(count for causes, count in found.items() if causes)
    other = ", ".join(f"{' + '.join(causes) or 'ok'}: {count}" for causes, count in found.items() if causes != wanted)
    print(f"{name:30} {noticed:4d} {right:4d} / {len(seeds)}   {other}", flush=True)


def _count_strays(seeds: range, rooms: Path) -> None:
    num_right, num_named, num_bad = 0, 0, 0
    for seed in seeds:
        scene, bad = with_strays(load_room(seed, rooms, num_views=MANY), seed)
        named = set(check(scene).measurements["stray"])
        num_right, num_named, num_bad = num_right + len(named & bad), num_named + len(named), num_bad + len(bad)
    print(f"bad frames: {num_bad} of {len(seeds)} x {MANY}, {num_named} named, {num_right} of them rightly", flush=True)


def load_room(seed: int, folder: Path, *, num_views: int = NUM_VIEWS, world: World = "rooms") -> Scene:
    """Return a made room, or the region of a house, rendered on the first call and cached in `folder`."""
    path = folder / f"{'' if world == 'rooms' else 'house-'}{seed}-{num_views}.npz"
    if not path.is_file():
        _save((make_room if world == "rooms" else make_house)(seed, num_views=num_views), path)
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
