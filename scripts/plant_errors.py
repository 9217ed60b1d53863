"""Plant common capture errors in synthetic rooms and count how often `cuao3d check` notices and names each.

python scripts/plant_errors.py --seeds 20 --clean 200 --strays 20 --results planted.json --page docs/check.md

Rooms are rendered once and cached as NumPy arrays in a folder; errors are planted in memory, one or two at a time.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from cuao3d.check import Report, check
from cuao3d.check.registration import jumps_of
from cuao3d.scene import Camera, Frame, Scene
from cuao3d.worlds.houses import make_house
from cuao3d.worlds.rooms import make_room

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from common import write_section
from planted import MISTAKES, PAIRS, lens_of_seed, turned, with_both, with_strays

NUM_VIEWS, NUM_OF_HOUSE, MANY = 10, 18, 60
FIRST_SEED = 5000
"""Seeds from here on were not used to choose thresholds."""

World = Literal["rooms", "houses"]

ROOMS = Path(tempfile.gettempdir()) / "cuao3d-rooms"


@dataclass(frozen=True)
class Row:
    """What became of one kind of mistake."""

    planted: str
    num_rooms: int
    noticed: int
    """Rooms in which something was wrong or doubtful."""
    named: int
    """Rooms in which what was planted was named first, or nothing where nothing was; of two mistakes, both."""
    otherwise: str
    """Other verdicts, and how often."""
    first: int
    """Seed of the first room."""
    date: str


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
    results: Path | None = None,
    page: Path | None = None,
) -> None:
    """Print a table: error, how often it was noticed and named, other verdicts; then how well what is measured is met.

    Args:
        seeds: Rooms per error.
        first: Seed of the first room.
        clean: Rooms, and as many regions of houses, in which nothing is planted; their seeds are different.
        strays: Rooms of 60 views whose poses drift, and three of them are bad.
        rooms: Folder of the cached rooms.
        only: Errors to plant, "A + B" for two of them, "tilted", "nothing"; by default all.
        results: JSON file into which rows are written; those of other errors in it are kept.
        page: Page into which the table of `results` is written.
    """
    planted = range(first, first + seeds)
    unseen = range(first + 1000, first + 1000 + clean)
    tasks: dict[str, Callable[[], Row]] = {
        name: partial(_count, name, (mistake.cause,) if mistake.cause else (), mistake.plant, planted, rooms)
        for name, mistake in MISTAKES.items()
    }
    tasks |= {
        " + ".join(pair): partial(_count, " + ".join(pair), causes, with_both(pair), planted, rooms)
        for pair, causes in PAIRS.items()
    }
    tasks["tilted"] = partial(_count_tilted, planted, rooms)
    if strays:
        tasks["three bad poses of 60, drift"] = partial(_count_strays, range(first, first + strays), rooms)
    if clean:
        tasks["nothing"] = partial(_count, "nothing", (), _as_it_is, unseen, rooms)
        tasks["nothing, houses"] = partial(_count, "nothing, houses", (), _as_it_is, unseen, rooms, "houses")
    print(f"{'planted':48} noticed, named   other verdicts, and how often")
    rows = (
        {row["planted"]: Row(**row) for row in json.loads(results.read_text())} if results and results.exists() else {}
    )
    for name, count in tasks.items():
        if not only or name in only:
            row = rows[name] = count()
            print(f"{name:48} {row.noticed:4d} {row.named:4d} / {row.num_rooms}   {row.otherwise}", flush=True)
            if results:
                results.write_text(json.dumps([asdict(rows[key]) for key in tasks if key in rows], indent=1) + "\n")
    if page:
        write_section(page, "planted", _table([rows[key] for key in tasks if key in rows]))


def _as_it_is(scene: Scene, seed: int) -> Scene:
    return scene


def _row(planted: str, seeds: range, noticed: int, named: int, otherwise: str) -> Row:
    return Row(planted, len(seeds), noticed, named, otherwise, seeds[0], time.strftime("%Y-%m-%d"))


def _count(
    name: str,
    wanted: tuple[str, ...],
    plant: Callable[[Scene, int], Scene],
    seeds: range,
    rooms: Path,
    world: World = "rooms",
) -> Row:
    """Plant a mistake in rooms and count the verdicts."""
    found: Counter[tuple[str, ...]] = Counter()
    off = []
    for seed in seeds:
        room = load_room(seed, rooms, num_views=NUM_VIEWS if world == "rooms" else NUM_OF_HOUSE, world=world)
        scene = plant(room, seed)
        report = check(scene)
        found[report.causes] += 1
        if name == "two lenses":
            off.append(_off_lens(scene, report, seed))
    right = sum(count for causes, count in found.items() if (causes[: len(wanted)] if wanted else causes) == wanted)
    noticed = sum(count for causes, count in found.items() if causes)
    other = ", ".join(f"{' + '.join(causes) or 'ok'}: {count}" for causes, count in found.items() if causes != wanted)
    if off:
        ratio, shift = np.array(off).max(axis=0)
        other = f"{other}; " * bool(other) + f"largest error of the ratio {ratio:.1%}, of the shift {shift:.1f} pixels"
    return _row(name, seeds, noticed, right, other)


def _off_lens(scene: Scene, report: Report, seed: int) -> tuple[float, float]:
    """Return by which part the ratio of focal lengths is off, and by how many pixels the shift.

    The shift of each edge depends on its depth; that of the middle one of those in front of jumps is taken as true.
    """
    ratio, baseline = lens_of_seed(seed)
    shifts = []
    for frame in scene.frames:
        depth = frame.read_depth()
        near = -functional.max_pool2d(-depth.where(depth > 0, torch.inf)[None], 3, stride=1, padding=1)[0]
        shifts.append(frame.camera.focal[0] * ratio * baseline / near[jumps_of(depth)])
    found = report.measurements["registration"]
    shift = float(torch.cat(shifts).median())
    return abs(found["focal"] / ratio - 1), max(abs(found["x"] - shift), abs(found["y"]))


def _count_tilted(seeds: range, rooms: Path) -> Row:
    """Count how often up is found within a degree in tilted worlds."""
    tilted = {seed: tilt_of(seed) for seed in seeds}
    off = [off_up(turned(load_room(seed, rooms), world), world[:3, 2]) for seed, world in tilted.items()]
    told = [one for one in off if one is not None]
    right = sum(one <= 1 for one in told)
    other = f"not told: {len(off) - len(told)}, wrong: {len(told) - right}; "
    other += f"largest error {max(told, default=0):.2f} degrees"
    return _row("tilted", seeds, len(told), right, other)


def _count_strays(seeds: range, rooms: Path) -> Row:
    """Count the bad frames that are named, and how many of those named are bad."""
    num_right, num_named, num_bad = 0, 0, 0
    noticed, named = 0, 0
    for seed in seeds:
        scene, bad = with_strays(load_room(seed, rooms, num_views=MANY), seed)
        strays = set(check(scene).measurements["stray"])
        num_right, num_named, num_bad = num_right + len(strays & bad), num_named + len(strays), num_bad + len(bad)
        noticed, named = noticed + bool(strays), named + (strays == bad)
    other = f"of {num_bad} bad frames {num_right} named, and {num_named - num_right} others: precision "
    other += f"{num_right / max(num_named, 1):.3f}, recall {num_right / num_bad:.3f}"
    return _row("three bad poses of 60, drift", seeds, noticed, named, other)


def _table(rows: list[Row]) -> list[str]:
    return [
        "| planted | rooms | from seed | noticed | named | otherwise | on |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {' | '.join(map(str, (row.planted, row.num_rooms, row.first, row.noticed, row.named)))} "
            f"| {row.otherwise} | {row.date} |"
            for row in rows
        ),
    ]


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
