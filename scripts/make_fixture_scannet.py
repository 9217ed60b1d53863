"""Write a miniature ScanNet: synthetic rooms as raw scans, named from the official lists.

python scripts/make_fixture_scannet.py --out mini-scannet
cuao3d check mini-scannet
"""

import io
import shutil
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from jaxtyping import Int64
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.files import write_json, write_text
from cuao3d.formats.ply import cloud_columns, write_ply
from cuao3d.formats.sens import COLORS, FRAME, HEADER, VERSION
from cuao3d.labels import convert, label_set
from cuao3d.readers import splits
from cuao3d.readers.scannet import ABOUT, LABELS, OBJECTS, POINTS, RECORDING, SEGMENTS
from cuao3d.scene import UNLABELLED, Frame, Scene
from cuao3d.worlds.rooms import make_room


def main(
    out: Path,
    num_train: int = 2,
    num_val: int = 1,
    num_views: int = 6,
    color: Literal["png", "jpeg"] = "jpeg",
    every: int = 20,
) -> None:
    """Write `out`/scans/ID, with a number of scans per split, and the category table."""
    names = [*splits.scenes("scannet", "train")[:num_train], *splits.scenes("scannet", "val")[:num_val]]
    for seed, name in enumerate(track(names, "writing")):
        write_scan(make_room(seed, num_views=num_views), out / "scans" / name, color=color, every=every)
    shutil.copyfile(splits.FOLDER / "scannet_categories.tsv", out / "scannetv2-labels.combined.tsv")


def write_scan(scene: Scene, folder: Path | str, *, color: Literal["png", "jpeg"] = "jpeg", every: int = 20) -> None:
    """Write a scene as a raw scan of ScanNet; reading it back restores points, poses, depth (to 1 mm) and labels.

    Args:
        scene: Scene to write; its labels, if any, are of scannet20, and its frames share one set of intrinsics.
        folder: Folder to write; its name becomes the scan's, and it must be empty or missing.
        color: Compression of colour in the recording; "png" is lossless.
        every: Number of times that each view is written, as if the camera had rested.

    Raises:
        InputError: The folder is not empty, or the format cannot hold the scene.
    """
    folder = Path(folder)
    refuse_full(folder)
    if scene.labels is not None and scene.label_set != "scannet20":
        raise InputError(f"Scene {scene.name} has labels of {scene.label_set!r}; a scan of ScanNet takes scannet20.")
    partial_folder = folder.with_name(f"{folder.name}.partial")
    partial_folder.mkdir(parents=True, exist_ok=True)
    scan = partial_folder / folder.name
    columns = cloud_columns(scene.points, scene.colors)
    write_ply(at(scan, POINTS), columns)
    if scene.labels is not None:
        nyu40 = convert(scene.labels, label_set("scannet20"), label_set("nyu40"))
        nyu40 = nyu40.where(nyu40 != UNLABELLED, 0)
        write_ply(at(scan, LABELS), columns | {"label": nyu40.numpy().astype(np.uint16)})
        _write_objects(scan, nyu40)
    write_text(at(scan, ABOUT), f"axisAlignment = {' '.join(f'{number:f}' for number in np.eye(4).ravel())}\n")
    write_sens(at(scan, RECORDING), scene.frames, color=color, every=every)
    partial_folder.replace(folder)


def write_sens(path: Path, frames: Sequence[Frame], *, color: Literal["png", "jpeg"] = "jpeg", every: int = 1) -> None:
    """Write views as a recording, with depth in millimetres.

    Args:
        path: File to write.
        frames: Views with one common set of intrinsics, which the file keeps in single precision.
        color: Compression of colour: "jpeg", as in ScanNet, or "png", which is lossless.
        every: Number of times that each view is written, so that reading every `every`-th frame gives each one once.

    Raises:
        InputError: There are no views, or they differ in intrinsics.
    """
    if not frames:
        raise InputError(f"There are no frames to write to {path}.")
    camera = frames[0].camera
    for other in (frame.camera for frame in frames):
        same_size = (other.width, other.height) == (camera.width, camera.height)
        if not (same_size and other.focal.equal(camera.focal) and other.center.equal(camera.center)):
            raise InputError(f"{path} cannot hold frames that differ in intrinsics; a recording has one set.")
    (fx, fy), (cx, cy) = camera.focal.tolist(), camera.center.tolist()
    intrinsics = (fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1, 0, 0, 0, 0, 1)
    identity = np.eye(4).ravel()
    kinds = next(number for number, name in COLORS.items() if name == color), 1
    sizes = (camera.width, camera.height) * 2
    name = b"made"
    with path.open("wb") as file:
        file.write(struct.pack("<IQ", VERSION, len(name)) + name)
        num_frames = len(frames) * every
        file.write(HEADER.pack(*intrinsics, *identity, *intrinsics, *identity, *kinds, *sizes, 1000.0, num_frames))
        for index, frame in enumerate(frames):
            packed_color, packed_depth = _pack_color(frame, color), _pack_depth(frame)
            pose = frame.camera.world_from_camera.flatten().tolist()
            for time in range(index * every, (index + 1) * every):
                file.write(FRAME.pack(*pose, time, time, len(packed_color), len(packed_depth)))
                file.write(packed_color + packed_depth)


def _write_objects(scan: Path, nyu40: Int64[Tensor, "N"]) -> None:
    """Write one object per class, of one segment, under the first raw category of that class."""
    groups: list[dict[str, Any]] = []
    for index, class_ in enumerate(sorted({*nyu40.tolist()} - {0})):
        name = next(row["raw_category"] for row in splits.categories("scannet") if int(row["nyu40id"]) == class_)
        groups.append({"id": index, "objectId": index, "segments": [class_], "label": name})
    write_json(at(scan, OBJECTS), {"sceneId": f"scannet.{scan.name}", "segGroups": groups})
    write_json(at(scan, SEGMENTS), {"sceneId": f"scannet.{scan.name}", "segIndices": nyu40.tolist()})


def _pack_color(frame: Frame, color: str) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(eight_bit(frame)).save(packed, color.upper(), **({"quality": 95} if color == "jpeg" else {}))
    return packed.getvalue()


def _pack_depth(frame: Frame) -> bytes:
    millimetres = (frame.read_depth() * 1000).round()
    return zlib.compress(millimetres.where(millimetres < 65536, 0).numpy().astype("<u2").tobytes())


def at(scan: Path, suffix: str) -> Path:
    """Return the path of a file of a scan; all begin with the scan's name."""
    return scan.with_name(scan.name + suffix)


def refuse_full(folder: Path) -> None:
    """Raise InputError if a folder holds anything."""
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; choose another folder.")


def eight_bit(frame: Frame) -> NDArray[np.uint8]:
    """Return the colours of a frame as bytes, (H, W, 3)."""
    pixels: NDArray[np.uint8] = (frame.read_image().permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
    return pixels


if __name__ == "__main__":
    tyro.cli(main)
