"""3D Scanner App, all data: an iPhone's photographs, LiDAR depth, confidence, and one JSON a frame."""

from pathlib import Path

from cuao3d.errors import InputError, NotFoundError, UserError
from cuao3d.files import read_json
from cuao3d.formats.entries import by_number, only_file, summarise
from cuao3d.formats.images import DEPTH_ENDINGS, PHOTOGRAPHS, image_size, lens_of, open_frame, usual_size
from cuao3d.formats.listing import files_in
from cuao3d.formats.poses import from_flat
from cuao3d.readers.capture import Captures, build_scene, open_frames
from cuao3d.readers.surface import read_surface
from cuao3d.scene import OPENGL, Frame, Scene

POSE = "cameraPoseARFrame"
"""Entry of a frame's JSON, by which the layout is recognised."""

BEGINNING = 1 << 16
"""Bytes of a JSON that are searched for it."""


class ScannerApp(Captures):
    """Exports of 3D Scanner App ("All Data"); a folder of them is many scenes.

    ```
    SCAN/frame_00000.json    cameraPoseARFrame: 16 numbers, row by row, camera to world, metres, OpenGL axes;
                             intrinsics: 9 numbers, row by row, pixels of the photograph
    SCAN/frame_00000.jpg     8-bit RGB; the app keeps that of one frame in several
    SCAN/depth_00000.png     16-bit, millimetres along the optical axis, 0 = missing; or frame_00000.exr, metres
    SCAN/conf_00000.png      optional: 0 = low, 1, 2 = high; depth of low confidence is left out
    SCAN/points.ply          optional: the cloud or mesh; any name if it is the only .ply
    ```
    Only frames with a photograph are used. The world's y is up, and stays so (`"up": "y"` in `capture.json` turns it).
    """

    layout = "frame_00000.json, frame_00000.jpg and depth_00000.png, in the folder or in its subfolders"
    files = ("frame_*", "depth_*", "conf_*", "*.ply")

    @classmethod
    def is_capture(cls, folder: Path) -> bool:
        """Say whether a folder is a capture of this layout."""
        first = (
            next((path for path in folder.glob("frame_*.json") if path.is_file()), None) if folder.is_dir() else None
        )
        if first is None:
            return False
        with first.open("rb") as file:
            return POSE.encode() in file.read(BEGINNING)

    @classmethod
    def read(cls, folder: Path, annotations: str | None = None) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them.

        Raises:
            NotFoundError: There is no photograph, or no depth.
            InputError: No frame is usable, or the mesh is damaged.
        """
        cameras, colors, depths = (
            files_in(folder, endings, prefix=prefix)
            for endings, prefix in (((".json",), "frame_"), (PHOTOGRAPHS, "frame_"), (DEPTH_ENDINGS, "depth_"))
        )
        depths = depths or files_in(folder, (".exr",), prefix="frame_")
        confidences = files_in(folder, DEPTH_ENDINGS, prefix="conf_")
        if not colors or not depths:
            gone = "depth_00000.png" if colors else "frame_00000.jpg"
            raise NotFoundError(f'There is no {gone} or the like in {folder}; export "All Data" from the app.')
        try:
            size = usual_size(colors.values(), image_size)
        except UserError as error:
            raise InputError(f"No usable frame in {folder}: {error}") from error

        def open_one(name: str) -> Frame:
            if name not in cameras:
                raise InputError(f"frame_{name}.json is missing; restore it, or remove the photograph.")
            about, where = read_json(cameras[name]), f"frame_{name}.json"
            pose = from_flat(about.get(POSE), f"{where}, {POSE}", size=4) @ OPENGL
            try:
                intrinsics = from_flat(about.get("intrinsics"), f"{where}, intrinsics", size=3)
            except UserError as error:
                raise InputError(str(error)) from error
            return open_frame(
                name,
                pose,
                color=colors[name],
                lens=lens_of(intrinsics, size, f"{where}, intrinsics"),
                depth=depths.get(name, folder / f"depth_{name}.png"),
                confidence=confidences.get(name),
            )

        frames, problems = open_frames(sorted(colors, key=by_number), open_one)
        without = sorted((path.name for name, path in cameras.items() if name not in colors), key=by_number)
        problems += summarise("frames have no photograph and are not used", without)
        points, _, unused = read_surface(only_file(folder, "*.ply", "points.ply"), has_depth=True)
        return build_scene(folder, frames, [*problems, *unused], points, annotations=annotations)
