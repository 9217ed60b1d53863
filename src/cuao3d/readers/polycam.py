"""Polycam's raw export: a phone's photographs, LiDAR depth and one JSON a frame."""

from pathlib import Path
from typing import Any

from jaxtyping import Float64
from torch import Tensor

from cuao3d.errors import InputError, NotFoundError, UserError
from cuao3d.files import read_json
from cuao3d.formats.entries import by_number, number, only_file, pose_entry, summarise, whole
from cuao3d.formats.images import DEPTH_ENDINGS, PHOTOGRAPHS, NoDepth, image_size, open_frame
from cuao3d.formats.lens import Lens, Size
from cuao3d.formats.listing import files_in
from cuao3d.readers.capture import Captures, build_scene, open_frames
from cuao3d.readers.surface import read_surface
from cuao3d.scene import OPENGL, Frame, Scene

KEYFRAMES, MESH = "keyframes", "mesh.ply"


class Polycam(Captures):
    """Raw exports of Polycam (its developer mode writes them); a folder of them is many scenes.

    ```
    SCAN/keyframes/images/72513413100.jpg        8-bit RGB; the number is a time
    SCAN/keyframes/cameras/72513413100.json      fx fy cx cy, pixels; t_00 ... t_23, the first three rows of the pose;
                                                 width and height, where they are not missing
    SCAN/keyframes/depth/72513413100.png         16-bit, millimetres along the optical axis, 0 = missing
    SCAN/keyframes/confidence/72513413100.png    optional: 0 = low; depth of low confidence is left out
    SCAN/mesh.ply                                optional: the cloud or mesh in the frame of the poses; any name if it
                                                 is the only .ply
    ```
    Where the app closed loops there are corrected_images/ and corrected_cameras/ too, and these are read. Poses take
    the camera (OpenGL axes: x right, y up, z backward) to a world whose y is up, metres; it stays as it is (`"up": "y"`
    in `capture.json` turns it). cx and cy are taken to count from the corner of the image, as nerfstudio takes them.
    Scans without LiDAR have no depth/; then depth is cast from the faces of a .ply, if there is one.
    """

    layout = f"{KEYFRAMES}/images/, {KEYFRAMES}/cameras/ and {KEYFRAMES}/depth/, in the folder or in its subfolders"
    files = (f"{KEYFRAMES}/*/*", "*.ply")

    @classmethod
    def is_capture(cls, folder: Path) -> bool:
        """Say whether a folder is a capture of this layout."""
        return any((folder / KEYFRAMES / kind).is_dir() for kind in ("cameras", "corrected_cameras"))

    @classmethod
    def read(cls, folder: Path, annotations: str | None = None) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them.

        Raises:
            NotFoundError: There are no photographs.
            InputError: No frame is usable, or there is neither depth nor a mesh.
        """
        keyframes = folder / KEYFRAMES
        prefix = "corrected_" if (keyframes / "corrected_images").is_dir() else ""
        colors = files_in(keyframes / f"{prefix}images", PHOTOGRAPHS)
        cameras = files_in(keyframes / f"{prefix}cameras", (".json",))
        depths, confidences = (files_in(keyframes / kind, DEPTH_ENDINGS) for kind in ("depth", "confidence"))
        if not colors:
            raise NotFoundError(
                f"There is no photograph in {keyframes / f'{prefix}images'}; export the raw data again."
            )
        points, mesh, problems = read_surface(only_file(folder, "*.ply", MESH), has_depth=bool(depths))
        no_depth = NoDepth(
            f"{keyframes} has no depth/: Polycam saves it of scans by LiDAR alone. What can still be done: put the "
            f"mesh, in the frame of the cameras, to {folder / MESH}, and depth is cast from its faces; or scan again "
            "in a LiDAR mode."
        )
        if not depths and points is None:
            raise InputError(no_depth.reason)

        def open_one(name: str) -> Frame:
            if name not in cameras:
                raise InputError(f"{prefix}cameras/{name}.json is missing; restore it, or remove the photograph.")
            about, where = read_json(cameras[name]), f"{prefix}cameras/{name}.json"
            lens = _lens(about, image_size(colors[name]), where)
            depth = depths.get(name, keyframes / "depth" / f"{name}.png") if depths else no_depth
            return open_frame(
                name,
                _pose(about, where),
                color=colors[name],
                lens=lens,
                depth=depth,
                confidence=confidences.get(name),
            )

        frames, unusable = open_frames(sorted(colors, key=by_number), open_one)
        alone = sorted((path.name for name, path in cameras.items() if name not in colors), key=by_number)
        problems += summarise(f"files of {prefix}cameras/ have no photograph", alone)
        mesh = None if depths else mesh
        return build_scene(folder, frames, [*unusable, *problems], points, mesh=mesh, annotations=annotations)


def _pose(about: dict[str, Any], where: str) -> Float64[Tensor, "4 4"]:
    rows = [[about.get(f"t_{row}{column}") for column in range(4)] for row in range(3)]
    return pose_entry(rows, f"{where}: the pose t_00 to t_23", rows=3) @ OPENGL


def _lens(about: dict[str, Any], size: Size, where: str) -> Lens:
    """Return the lens of a photograph of a size; the file's own width and height count where it has them."""
    fx, fy, cx, cy = (number(about.get(key), f"{where}, {key}") for key in ("fx", "fy", "cx", "cy"))
    width, height = (
        whole(about.get(key, given), f"{where}, {key}") for key, given in zip(("width", "height"), size, strict=True)
    )
    try:
        return Lens((fx, fy), (cx - 0.5, cy - 0.5), (width, height))
    except UserError as error:
        raise InputError(f"{where}: {error}.") from error
