"""Captures as folders of colour images, depth images and poses, as ScanNet's exporter writes them."""

from pathlib import Path

from cuao3d.errors import InputError, NotFoundError, UserError
from cuao3d.formats.entries import (
    by_number,
    only_file,
    read_matrix,
    read_pose,
    summarise,
)
from cuao3d.formats.images import depth_size, image_size, lens_of, open_depth, open_frame, usual_size
from cuao3d.formats.lens import Lens
from cuao3d.formats.points import read_points
from cuao3d.readers.capture import Captures, build_scene, open_frames
from cuao3d.scene import Frame, Scene

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
"""Endings of colour images."""

COLOR_INTRINSICS, DEPTH_INTRINSICS = "intrinsic/intrinsic_color.txt", "intrinsic/intrinsic_depth.txt"
INTRINSICS, POINTS = "intrinsics.txt", "points.ply"


class Folder(Captures):
    """Captures whose files lie in folders by kind; a folder of them is many scenes.

    ```
    FOLDER/color/0.jpg                      colours; 0, 1, 2 ... or any other names
    FOLDER/depth/0.png                      16-bit, millimetres along the optical axis, 0 or 65535 = missing; optional
                                            where a dense cloud gives depth ("depth": "cloud" in capture.json)
    FOLDER/pose/0.txt                       4 x 4, camera to world, metres, OpenCV axes; -inf or nan = lost
    FOLDER/intrinsic/intrinsic_color.txt    3 x 3 or 4 x 4, pixels of the colour images
    FOLDER/intrinsic/intrinsic_depth.txt    the same for the depth images; one of the two is enough
    FOLDER/intrinsics.txt                   instead of these two: for the depth images
    FOLDER/points.ply                       optional: the cloud, or the mesh; any name if it is the only .ply
    ```
    Both images share one pose. Where they differ in size or intrinsics, colours are brought to the depth's camera. A
    lone matrix without depth images is that of the colour images. Without color/ the scene has points and depth, and no
    teacher can lift it.
    """

    layout = f"color/0.jpg, pose/0.txt, {COLOR_INTRINSICS} or {INTRINSICS}, and depth/0.png or a dense cloud *.ply"
    files = ("color/*", "depth/*.png", "pose/*.txt", "intrinsic/*.txt", INTRINSICS, "*.ply")

    @classmethod
    def is_capture(cls, folder: Path) -> bool:
        """Say whether a folder is a capture of this layout."""
        return (folder / "pose").is_dir() and any((folder / kind).is_dir() for kind in ("color", "depth"))

    @classmethod
    def read(cls, folder: Path, annotations: str | None = None) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them.

        Raises:
            NotFoundError: There are no intrinsics.
            InputError: No frame is usable, or intrinsics or cloud are damaged.
        """
        colors = {path.stem: path for path in (folder / "color").glob("*") if path.suffix.lower() in ENDINGS}
        names = list(colors) or [path.stem for path in (folder / "depth").glob("*.png")]
        depths = {name: folder / "depth" / f"{name}.png" for name in names}
        lens, depth_lens = _read_lenses(folder, list(colors.values()), list(depths.values()))

        def open_one(name: str) -> Frame:
            pose = read_pose(folder / "pose" / f"{name}.txt")
            if not colors:
                return open_depth(name, pose, depth=depths[name], lens=depth_lens)
            return open_frame(name, pose, color=colors[name], lens=lens, depth=depths[name], depth_lens=depth_lens)

        frames, problems = open_frames(sorted(names, key=by_number), open_one)
        alone = sorted(
            (path.name for path in (folder / "depth").glob("*.png") if path.stem not in names), key=by_number
        )
        problems += summarise("depth images have no colour image in color/", sorted(alone, key=by_number))
        points = only_file(folder, "*.ply", POINTS)
        return build_scene(
            folder, frames, problems, None if points is None else read_points(points), annotations=annotations
        )


def _read_lenses(folder: Path, colors: list[Path], depths: list[Path]) -> tuple[Lens, Lens]:
    """Read the lenses of colour and depth; their matrices are for images of the size that most have."""
    paths = [folder / name for name in (COLOR_INTRINSICS, DEPTH_INTRINSICS, INTRINSICS)]
    color_path, depth_path, shared_path = (path if path.is_file() else None for path in paths)
    depth_path = depth_path or (None if color_path else shared_path)
    if color_path is None and depth_path is None:
        raise NotFoundError(
            f"No {DEPTH_INTRINSICS} and no {INTRINSICS} in {folder}. Write the 3 x 3 matrix fx 0 cx / 0 fy cy / 0 0 1 "
            "of the depth images there, in pixels."
        )
    try:
        there = [depth for depth in depths if depth.is_file()]
        color_size = usual_size(colors, image_size) if colors or not there else usual_size(there, depth_size)
        size = usual_size(there, depth_size) if there else color_size
        lens = lens_of(read_matrix(color_path, 3, 4), color_size, str(color_path)) if color_path else None
        depth_lens = lens_of(read_matrix(depth_path, 3, 4), size, str(depth_path)) if depth_path else None
        if lens is None:
            assert depth_lens is not None
            return depth_lens.at(color_size), depth_lens
        return lens, depth_lens or lens.at(size)
    except UserError as error:
        raise InputError(f"No usable frame in {folder}: {error}") from error
