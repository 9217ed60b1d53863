"""Captures as folders of colour images, depth images and poses, as ScanNet's exporter writes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cuao3d.errors import InputError, NotFoundError, UserError
from cuao3d.formats.entries import (
    by_number,
    only_file,
    read_matrix,
    read_pose,
    summarise,
)
from cuao3d.formats.images import (
    COLOR_ENDINGS,
    DEPTH_ENDINGS,
    depth_size,
    image_size,
    lens_of,
    open_depth,
    open_frame,
    usual_size,
)
from cuao3d.formats.lens import Lens
from cuao3d.formats.listing import entry_named, files_in, match_names, what_lies_in
from cuao3d.formats.points import read_points
from cuao3d.readers.capture import Captures, build_scene, open_frames
from cuao3d.scene import Frame, Scene

KINDS = {
    "color": ("color", "colour", "colors", "rgb", "image", "images"),
    "depth": ("depth", "depths"),
    "pose": ("pose", "poses"),
}
"""Names that the folder of each kind may have, in any case; the first that is there counts."""

COLOR_INTRINSICS, DEPTH_INTRINSICS = "intrinsic/intrinsic_color.txt", "intrinsic/intrinsic_depth.txt"
INTRINSICS, POINTS = "intrinsics.txt", "points.ply"


class Folder(Captures):
    """Captures whose files lie in folders by kind; a folder of them is many scenes.

    ```
    FOLDER/color/0.jpg                      colours; 0, 1, 2 ... or any other names; also rgb/, images/
    FOLDER/depth/0.png                      16-bit, millimetres along the optical axis, 0 or 65535 = missing; or floats,
                                            metres (.tiff, .npy, .exr); optional where a dense cloud gives depth
                                            ("depth": "cloud" in capture.json)
    FOLDER/pose/0.txt                       4 x 4 or 3 x 4, camera to world, metres, OpenCV axes; -inf or nan = lost
    FOLDER/intrinsic/intrinsic_color.txt    3 x 3 or 4 x 4, pixels of the colour images
    FOLDER/intrinsic/intrinsic_depth.txt    the same for the depth images; one of the two is enough
    FOLDER/intrinsic/0.txt                  instead of these two: one for each colour image
    FOLDER/intrinsics.txt                   instead of all these: for the depth images
    FOLDER/points.ply                       optional: the cloud, or the mesh; any name if it is the only .ply
    ```
    Case does not count in names, and files are matched by the numbers in them where they are padded differently.
    Both images share one pose. Where they differ in size or intrinsics, colours are brought to the depth's camera. A
    lone matrix without depth images is that of the colour images. Without color/ the scene has points and depth, and no
    teacher can lift it.
    """

    layout = f"color/0.jpg, pose/0.txt, {COLOR_INTRINSICS} or {INTRINSICS}, and depth/0.png or a dense cloud *.ply"
    files = ("*/*", "*.[tT][xX][tT]", "*.[pP][lL][yY]")

    @classmethod
    def is_capture(cls, folder: Path) -> bool:
        """Say whether a folder is a capture of this layout."""
        of_kind = _folders(folder)
        return of_kind["pose"] is not None and (of_kind["color"] or of_kind["depth"]) is not None

    @classmethod
    def read(cls, folder: Path, annotations: str | None = None) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them.

        Raises:
            NotFoundError: There are no intrinsics.
            InputError: No frame is usable, or intrinsics or cloud are damaged.
        """
        of_kind = _folders(folder)
        colors, all_depths = files_in(of_kind["color"], COLOR_ENDINGS), files_in(of_kind["depth"], DEPTH_ENDINGS)
        _check_readable(of_kind["color"], colors, COLOR_ENDINGS)
        names = sorted(colors or all_depths, key=by_number)
        depths = match_names(names, all_depths)
        poses = match_names(names, files_in(of_kind["pose"], (".txt",)))
        lenses = _Lenses.read(folder, names, [*colors.values()], [*depths.values()])

        def open_one(name: str) -> Frame:
            pose = read_pose(poses.get(name, _expected(of_kind["pose"], name, ".txt")))
            depth = depths.get(name, _expected(of_kind["depth"] or folder / "depth", name, ".png"))
            if not colors:
                return open_depth(name, pose, depth=depth, lens=lenses.depth)
            lens, depth_lens = lenses.of_frame(name)
            return open_frame(name, pose, color=colors[name], lens=lens, depth=depth, depth_lens=depth_lens)

        frames, problems = open_frames(names, open_one)
        alone = {path.name for path in all_depths.values()} - {path.name for path in depths.values()}
        problems += summarise("depth images have no colour image in color/", sorted(alone, key=by_number))
        points = only_file(folder, "*.ply", POINTS)
        return build_scene(
            folder, frames, problems, None if points is None else read_points(points), annotations=annotations
        )


def _folders(folder: Path) -> dict[str, Path | None]:
    """Return the folder of each kind of files; None where there is none."""
    found = {kind: entry_named(folder, *names) if folder.is_dir() else None for kind, names in KINDS.items()}
    return {kind: path if path is not None and path.is_dir() else None for kind, path in found.items()}


def _expected(folder: Path | None, name: str, ending: str) -> Path:
    """Return the file that a frame should have, for the message that it is missing."""
    return (folder or Path("pose")) / f"{name}{ending}"


def _check_readable(folder: Path | None, found: dict[str, Path], endings: Sequence[str]) -> None:
    """Refuse a folder that holds files, none of which has an ending that is read."""
    if folder is not None and not found and (lies := what_lies_in(folder)) != "nothing":
        raise InputError(f"{folder} holds {lies}; none is read. Convert the images to {' or '.join(endings[:3])}.")


@dataclass(frozen=True)
class _Lenses:
    """Lenses of a capture's images."""

    color: Lens
    depth: Lens
    color_of_frame: dict[str, Lens]
    """Where each photograph has intrinsics of its own."""

    def of_frame(self, name: str) -> tuple[Lens, Lens]:
        """Return the lenses of a frame's photograph and depth."""
        own = self.color_of_frame.get(name)
        return (self.color, self.depth) if own is None else (own, own.at(self.depth.size))

    @staticmethod
    def read(folder: Path, names: list[str], colors: list[Path], depths: list[Path]) -> "_Lenses":
        """Read the lenses of colour and depth; their matrices are for images of the size that most have.

        Raises:
            NotFoundError: There is no matrix.
            InputError: A matrix is damaged, or no image tells its size.
        """
        paths = [_file(folder, name) for name in (COLOR_INTRINSICS, DEPTH_INTRINSICS, INTRINSICS)]
        own = match_names(names, files_in(entry_named(folder, "intrinsic", "intrinsics"), (".txt",)))
        color_path, depth_path, shared_path = paths
        depth_path = depth_path or (None if color_path else shared_path)
        if color_path is None and depth_path is None and len(own) < max(len(names), 1):
            raise NotFoundError(
                f"No {DEPTH_INTRINSICS} and no {INTRINSICS} in {folder}. Write the 3 x 3 matrix fx 0 cx / 0 fy cy / "
                "0 0 1 of the depth images there, in pixels; or one for each frame, intrinsic/0.txt."
            )
        try:
            color_size = usual_size(colors, image_size) if colors or not depths else usual_size(depths, depth_size)
            size = usual_size(depths, depth_size) if depths else color_size
            if color_path is None and depth_path is None:
                of_frame = {name: _lens(path, color_size) for name, path in own.items()}
                first = of_frame[names[0]]
                return _Lenses(first, first.at(size), of_frame)
            lens = _lens(color_path, color_size) if color_path else None
            depth_lens = _lens(depth_path, size) if depth_path else None
            if lens is None:
                assert depth_lens is not None
                return _Lenses(depth_lens.at(color_size), depth_lens, {})
            return _Lenses(lens, depth_lens or lens.at(size), {})
        except UserError as error:
            raise InputError(f"No usable frame in {folder}: {error}") from error


def _lens(path: Path, size: tuple[int, int]) -> Lens:
    return lens_of(read_matrix(path, 3, 4), size, str(path))


def _file(folder: Path, name: str) -> Path | None:
    """Return a file of the capture by its path, in any case."""
    *up, last = name.split("/")
    for part in up:
        folder = entry_named(folder, part, f"{part}s") or folder / part
    found = entry_named(folder, last)
    return found if found is not None and found.is_file() else None
