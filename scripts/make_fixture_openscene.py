"""Write a miniature of OpenScene's processed data: synthetic rooms as ScanNet, and as regions of Matterport3D.

python scripts/make_fixture_openscene.py --out mini-openscene
cuao3d check mini-openscene/scannet_3d
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from cuao3d.files import write_whole
from cuao3d.labels import convert, label_set
from cuao3d.readers import splits
from cuao3d.readers.openscene import CLOUD_SUFFIX, ENDING, INTRINSICS, SOURCES, Processing
from cuao3d.scene import UNLABELLED, Camera, Frame, Scene, Split
from cuao3d.worlds.rooms import make_room
from make_fixture_matterport import SPACING, moved
from make_fixture_scannet import eight_bit


def main(out: Path, num_scenes: int = 2, num_views: int = 6) -> None:
    """Write `out`/scannet_3d, `out`/scannet_2d and the same of Matterport3D, with `num_scenes` rooms per split."""
    sources: tuple[Literal["scannet", "matterport"], ...] = ("scannet", "matterport")
    parts: tuple[Split, ...] = ("train", "val")
    for dataset in sources:
        for first, split in enumerate(track(parts, f"writing {dataset}")):
            rooms = [make_room(first * num_scenes + index, num_views=num_views) for index in range(num_scenes)]
            if dataset == "matterport":
                building = splits.scenes(dataset, split)[0]
                rooms = [moved(room, SPACING * index) for index, room in enumerate(rooms)]
                names = [f"{building}_region{index}" for index in range(num_scenes)]
            else:
                names = list(splits.scenes(dataset, split)[:num_scenes])
            scenes = [replace(room, name=name, split=split) for room, name in zip(rooms, names, strict=True)]
            write_processed(scenes, out, dataset=dataset)


def write_processed(
    scenes: Sequence[Scene], folder: Path | str, *, dataset: Literal["scannet", "matterport"] = "scannet"
) -> None:
    """Write scenes as OpenScene's scripts process a dataset, into DATASET_3d/ and DATASET_2d/ of a folder.

    Reading them back restores points, poses, depth (to its unit), labels (in the dataset's set) and colours (those of
    views pass through JPEG).

    Args:
        scenes: Scenes to write; for Matterport3D they are named ID_region0 and so on, in one frame per building.
        folder: Folder to write.
        dataset: Dataset whose layout is used.
    """
    folder, source = Path(folder), SOURCES[dataset]
    for scene in scenes:
        suffix, views = (CLOUD_SUFFIX, scene.name) if dataset == "scannet" else ("", scene.name.partition("_region")[0])
        content = _content(scene, str(source.labels))
        path = folder / f"{dataset}_3d" / scene.split / f"{scene.name}{suffix}{ENDING}"
        write_whole(path, partial(torch.save, content))
        for index, frame in enumerate(scene.frames):
            panorama = f"{scene.name.encode().hex():0>32}_i{index // 6}_{index % 6}"
            view = str(20 * index) if dataset == "scannet" else panorama
            _write_view(frame, folder / f"{dataset}_2d" / views, view, source)


def _content(scene: Scene, labels_name: str) -> tuple[NDArray[Any], Any, NDArray[Any]]:
    """Return the content of a scene's point file."""
    labels = torch.full((len(scene.points),), UNLABELLED)
    if scene.labels is not None and scene.label_set is not None:
        target = label_set(labels_name)
        labels = target.classes(convert(scene.labels, label_set(scene.label_set), target))
    colors = 0 if scene.colors is None else ((scene.colors * 255).round() / 127.5 - 1).numpy()
    return scene.points.numpy(), colors, labels.double().numpy()


def _write_view(frame: Frame, folder: Path, view: str, source: Processing) -> None:
    for kind in ("color", "depth", "pose"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(eight_bit(frame)).save(folder / "color" / f"{view}.jpg", quality=95)
    units = (frame.read_depth() / source.depth_unit).round()
    depth = units.where(units < 65535, 0).numpy().astype(np.uint16)
    Image.fromarray(depth).save(folder / "depth" / f"{view.replace('_i', '_d')}.png")
    np.savetxt(folder / "pose" / f"{view}.txt", frame.camera.world_from_camera.numpy(), fmt="%.17g")
    matrix = _matrix(frame.camera, from_bottom=source.center_from_bottom)
    if source.center_from_bottom:
        (folder / "intrinsic").mkdir(exist_ok=True)
        np.savetxt(folder / "intrinsic" / f"{view}.txt", matrix[:3, :3], fmt="%.17g")
    else:
        np.savetxt(folder.parent / INTRINSICS, matrix, fmt="%.17g")


def _matrix(camera: Camera, *, from_bottom: bool) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[[0, 1], [0, 1]], matrix[:2, 2] = camera.focal, camera.center
    if from_bottom:
        matrix[1, 2] = camera.height - 1 - matrix[1, 2]
    return matrix


if __name__ == "__main__":
    tyro.cli(main)
