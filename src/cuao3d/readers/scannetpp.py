"""ScanNet++: the iPhone's colour and LiDAR depth, with poses in the frame of the laser scan."""

import re
from pathlib import Path

from cuao3d.errors import InputError, NotFoundError, UserError
from cuao3d.files import read_json
from cuao3d.formats.entries import matrix, pose_entry, summarise
from cuao3d.formats.images import image_size, lens_of, open_frame, usual_size
from cuao3d.formats.lens import Size
from cuao3d.formats.points import read_points
from cuao3d.formats.video import CONTAINERS, extract_frames
from cuao3d.readers.capture import Captures, build_scene, open_frames
from cuao3d.scene import Frame, Scene

POSES, MESH = "iphone/pose_intrinsic_imu.json", "scans/mesh_aligned_0.05.ply"


COLORS = ("rgb", "frames")
NUMBERED = re.compile(r"frame_(\d{1,9})")
"""Name of a frame by its number in the video."""


class ScanNetpp(Captures):
    """Scenes of ScanNet++, seen by the iPhone; a folder of them is many scenes.

    ```
    SCENE/iphone/rgb/frame_000000.jpg      8-bit RGB, 1920 x 1440; the folder may also be named frames
    SCENE/iphone/rgb.mkv                   or .mp4: instead of them the video, its frames numbered from 0 on; needs the
                                           extra [video]
    SCENE/iphone/depth/frame_000000.png    16-bit, millimetres along the optical axis, 256 x 192, 0 or 65535 = missing
    SCENE/iphone/pose_intrinsic_imu.json   {"frame_000000": {"aligned_pose": 4 x 4, "intrinsic": 3 x 3, ...}, ...}
    SCENE/scans/mesh_aligned_0.05.ply      optional: the laser scan's mesh, whose vertices are the cloud
    ```
    `aligned_pose` takes the camera to the world of the scan: metres, OpenCV axes. Colours are brought to the camera of
    the depth. Downloads hold videos; ScanNet++'s own toolbox extracts depth.bin to images, and those of the frames that
    it left out are not missed. Of the video only frames with depth are kept, as small JPEGs in the cache. Where
    only some of the images were kept, those that have both are used; one line says how many have not. The annotations
    are not read.
    """

    layout = f"{POSES}, iphone/rgb/frame_000000.jpg, iphone/depth/frame_000000.png, in the folder or in its subfolders"
    files = (
        POSES,
        MESH,
        *(f"iphone/rgb{ending}" for ending in CONTAINERS),
        "iphone/rgb/*",
        "iphone/frames/*",
        "iphone/depth/*",
    )

    @classmethod
    def is_capture(cls, folder: Path) -> bool:
        """Say whether a folder is a capture of this layout."""
        return (folder / POSES).is_file()

    @classmethod
    def read(cls, folder: Path, annotations: str | None = None) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them.

        Raises:
            NotFoundError: The depth is not extracted, or there are no colours.
            NotInstalledError: There is a video, and PyAV is not installed.
            InputError: No frame is usable, or poses or mesh are damaged.
        """
        depths = _images(folder, ("depth",))
        colors, size = _read_colors(folder, depths)
        about, where = read_json(folder / POSES), Path(POSES).name

        def open_one(name: str) -> Frame:
            entry = about.get(name)
            if not isinstance(entry, dict):
                raise InputError(f"{where} has no entry {name}; restore it, or remove the frame's images.")
            pose = pose_entry(entry.get("aligned_pose"), f"{where}: {name}, aligned_pose")
            intrinsics = matrix(entry.get("intrinsic"), f"{where}: {name}, intrinsic", rows=3, columns=3)
            lens = lens_of(intrinsics, size, f"{where}: {name}, intrinsic")
            lens = lens.at(image_size(colors[name], fitting=lens.size))
            depth = depths.get(name, folder / "iphone" / "depth" / f"{name}.png")
            return open_frame(name, pose, color=colors[name], lens=lens, depth=depth)

        flat = [colors[name].name for name in sorted(colors) if depths and name not in depths]
        frames, problems = open_frames([name for name in sorted(colors) if name in depths or not depths], open_one)
        problems += summarise("colour images have no depth image, and are not used", flat)
        alone = [path.name for name, path in sorted(depths.items()) if name not in colors]
        problems += summarise("depth images have no colour image", alone)
        mesh = folder / MESH
        return build_scene(
            folder, frames, problems, read_points(mesh) if mesh.is_file() else None, annotations=annotations
        )


def _read_colors(folder: Path, depths: dict[str, Path]) -> tuple[dict[str, Path], Size]:
    """Return the photographs by the names of their frames, and the size that the intrinsics are for."""
    videos = (folder / "iphone" / f"rgb{ending}" for ending in CONTAINERS)
    video = next((path for path in videos if path.is_file()), None)
    if video is None or any((folder / "iphone" / kind).is_dir() for kind in COLORS):
        colors = _images(folder, COLORS)
        try:
            return colors, usual_size(colors.values(), image_size)
        except UserError as error:
            raise InputError(f"No usable frame in {folder}: {error}") from error
    numbers = {int(match[1]): name for name in depths if (match := NUMBERED.fullmatch(name))}
    frames = extract_frames(video, numbers)
    return {numbers[number]: path for number, path in frames.files.items()}, frames.size


def _images(folder: Path, kinds: tuple[str, ...]) -> dict[str, Path]:
    """Find the images of a kind by the names of their frames."""
    found = next((folder / "iphone" / kind for kind in kinds if (folder / "iphone" / kind).is_dir()), None)
    if found is None:
        raise NotFoundError(
            f"There is no folder {folder / 'iphone' / kinds[0]}. Downloads hold videos; ScanNet++'s toolbox extracts "
            "their images (iphone/prepare_iphone_data.py)."
        )
    return {path.stem: path for path in found.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")}
