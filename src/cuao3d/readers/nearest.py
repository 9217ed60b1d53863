"""What to say of a path that no reader knows: the layout that it comes nearest to, what is missing, what lies there."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from cuao3d.files import nearby

MOST_SUBFOLDERS = 50
"""Subfolders in which a layout is looked for."""

COMMON = ("color/", "depth/", "images/", "pose/", "rgb.mp4", "photographs")
"""Pieces that many layouts have; any other counts twice."""

MOST_CURES = 2
"""Missing pieces of which a message says what to do; of more it gives the names."""

_VIDEO = (
    "a video; extract its frames (ffmpeg -i {name} color/%06d.jpg), and find their poses with COLMAP; depth has to "
    "come from a sensor, or from the mesh or dense cloud of COLMAP"
)
RECORDINGS = {
    ".bag": "a recording of ROS or of RealSense; extract its frames (rs-convert -i {name} -p frames/, or rosbag) into "
    "color/ and depth/, and write the poses of a SLAM system to pose/",
    ".db3": "a recording of ROS 2; extract its frames (ros2 bag) into color/ and depth/, and its poses into pose/",
    ".mcap": "a recording of ROS 2; extract its frames (ros2 bag) into color/ and depth/, and its poses into pose/",
    ".mkv": "a recording, as of an Azure Kinect; extract its frames (Open3D's azure_kinect_mkv_reader.py --input "
    "{name} --output DIR, or ffmpeg) into color/ and depth/; Open3D's reconstruction system then writes the poses",
    ".oni": "a recording of OpenNI; extract its frames into color/ and depth/, and write their poses to pose/",
    ".r3d": "a recording of Record3D; export it from the app as EXR + RGB instead, which gives a folder of frames (its "
    "depth is compressed by LZFSE, which is not read)",
    ".svo": "a recording of a ZED camera; extract its frames (SVO export of the ZED SDK) into color/ depth/ pose/",
    ".svo2": "a recording of a ZED camera; extract its frames (SVO export of the ZED SDK) into color/ depth/ pose/",
    ".mp4": _VIDEO,
    ".mov": _VIDEO,
    ".avi": _VIDEO,
    ".m4v": _VIDEO,
    ".zip": "an archive; unpack it, and give the folder",
    ".7z": "an archive; unpack it, and give the folder",
    ".tar": "an archive; unpack it, and give the folder",
    ".gz": "an archive; unpack it, and give the folder",
}
"""What files with an ending are, if they are no cloud, and what makes frames of them."""


@dataclass(frozen=True)
class Piece:
    """A file or folder that a layout needs."""

    called: str
    """Name for messages."""
    patterns: tuple[str, ...]
    """What shows that it is there, in small letters; a folder ends in a slash."""
    cure: str
    """What to do where it is missing."""
    alike: tuple[str, ...] = ()
    """Names that others give it; such a file or folder has to be renamed."""


@dataclass(frozen=True)
class Near:
    """A layout as the pieces that it is recognised by."""

    called: str
    """Name for messages."""
    pieces: tuple[Piece, ...]
    """What it needs."""


_MATRICES = "write a 4 x 4 file for each frame there (camera to world, metres)"
_POSES = Piece(
    "pose/",
    ("pose/",),
    f"{_MATRICES}; where the poses are in Open3D's trajectory.log, that file will do",
    ("poses/", "camera_poses/", "cam_poses/", "extrinsics/", "extrinsic/"),
)
_COLORS = Piece(
    "color/",
    ("color/",),
    "put the photographs there",
    ("rgb/", "image/", "images/", "colour/", "colors/", "rgb_images/"),
)
_DEPTHS = Piece(
    "depth/",
    ("depth/",),
    "put 16-bit depth images in millimetres there",
    ("depths/", "depth_images/", "depth_maps/", "depth_png/"),
)
_LENS = Piece(
    "intrinsics.txt",
    ("intrinsics.txt", "intrinsic/"),
    "write fx 0 cx / 0 fy cy / 0 0 1, in pixels of the depth images",
    ("camera-intrinsics.txt", "intrinsic.txt", "k.txt", "cam_k.txt", "camera_intrinsics.txt", "*intrinsic*.json"),
)


def _model(kind: str) -> tuple[str, ...]:
    """Return where a file of a model of COLMAP may lie."""
    return tuple(f"{where}{kind}.{end}" for where in ("", "sparse/", "sparse/0/") for end in ("bin", "txt"))


LAYOUTS = (
    Near("plain folders", (_COLORS, _DEPTHS, _POSES, _LENS)),
    Near(
        "7-Scenes",
        (
            Piece("frame-000000.color.png", ("frame-*.color.*",), "put the photographs there under such names"),
            Piece("frame-000000.depth.png", ("frame-*.depth.*",), "put 16-bit depth images in millimetres there"),
            Piece("frame-000000.pose.txt", ("frame-*.pose.txt",), _MATRICES),
            Piece(
                "camera-intrinsics.txt", ("camera-intrinsics.txt",), "write the 3 x 3 matrix there", ("*intrinsic*",)
            ),
        ),
    ),
    Near(
        "TUM RGB-D",
        (
            Piece("rgb.txt", ("rgb.txt",), "list times and names of the photographs there"),
            Piece("depth.txt", ("depth.txt",), "list times and names of the depth images there"),
            Piece(
                "groundtruth.txt",
                ("groundtruth.txt",),
                "write a row for each pose there: time tx ty tz qx qy qz qw",
                ("*trajectory*.txt", "poses.txt"),
            ),
        ),
    ),
    Near(
        "nerfstudio",
        (
            Piece(
                "transforms.json",
                ("transforms.json",),
                "write it with ns-process-data",
                ("transforms_train.json", "transform.json", "cameras.json"),
            ),
            Piece("images/", ("images/",), "put the photographs there"),
        ),
    ),
    Near(
        "ARKitScenes",
        (
            Piece("lowres_wide/", ("lowres_wide/",), "download it (--raw_dataset_assets lowres_wide)"),
            Piece("lowres_depth/", ("lowres_depth/",), "download it (--raw_dataset_assets lowres_depth)"),
            Piece(
                "lowres_wide_intrinsics/",
                ("lowres_wide_intrinsics/",),
                "download it (--raw_dataset_assets lowres_wide_intrinsics)",
            ),
            Piece("lowres_wide.traj", ("lowres_wide.traj",), "download it (--raw_dataset_assets lowres_wide.traj)"),
        ),
    ),
    Near(
        "Replica",
        (
            Piece("results/", ("results/",), "put frame000000.jpg and depth000000.png there"),
            Piece("traj.txt", ("traj.txt",), "write a row of 16 numbers for each frame: 4 x 4, camera to world"),
        ),
    ),
    Near(
        "ScanNet++",
        (
            Piece(
                "iphone/pose_intrinsic_imu.json",
                ("iphone/pose_intrinsic_imu.json",),
                "download it; it holds the poses",
                ("pose_intrinsic_imu.json",),
            ),
            Piece(
                "iphone/rgb/",
                ("iphone/rgb/", "iphone/frames/", "iphone/rgb.mkv", "iphone/rgb.mp4"),
                "extract it with ScanNet++'s toolbox",
            ),
        ),
    ),
    Near(
        "Hypersim",
        (
            Piece(
                "_detail/metadata_scene.csv",
                ("_detail/metadata_scene.csv",),
                "download it; it holds the unit of lengths",
                ("metadata_scene.csv",),
            ),
            Piece(
                "_detail/cam_00/camera_keyframe_positions.hdf5",
                ("_detail/cam_00/camera_keyframe_positions.hdf5",),
                "download it, and camera_keyframe_orientations.hdf5; they hold the poses",
            ),
            Piece("images/", ("images/",), "download or unpack scene_cam_00_final_preview/ and the like into it"),
        ),
    ),
    Near(
        "raw ScanNet",
        (
            Piece("ID.sens", ("*.sens",), "download it; it holds photographs, depth and poses"),
            Piece("ID_vh_clean_2.ply", ("*_vh_clean_2.ply",), "download it; its vertices are the cloud"),
        ),
    ),
    Near(
        "Polycam's raw export",
        (
            Piece(
                "keyframes/images/", ("keyframes/images/", "keyframes/corrected_images/"), "export the raw data again"
            ),
            Piece(
                "keyframes/cameras/",
                ("keyframes/cameras/",),
                "export the raw data, with developer mode on in the app's settings",
            ),
        ),
    ),
    Near(
        "Stray Scanner",
        (
            Piece("odometry.csv", ("odometry.csv",), "copy it from the phone again; it holds the poses"),
            Piece("camera_matrix.csv", ("camera_matrix.csv",), "copy it from the phone again; it holds the intrinsics"),
            Piece("rgb.mp4", ("rgb.mp4",), "copy it from the phone again"),
            Piece("depth/", ("depth/",), "copy it from the phone again"),
        ),
    ),
    Near(
        "COLMAP",
        (
            Piece("images/", ("images/",), "put the photographs of the model there"),
            Piece("sparse/0/cameras.bin", _model("cameras"), "copy it; it holds the intrinsics"),
            Piece("sparse/0/images.bin", _model("images"), "copy it; it holds the poses"),
        ),
    ),
    Near(
        "photographs alone",
        (
            Piece("photographs", ("*.jpg", "*.jpeg", "*.png", "*.heic"), "put them there"),
            Piece("poses", (), "find them with COLMAP, or with an app that saves poses"),
            Piece("depth", (), "it comes from a sensor, or from a mesh of the room"),
        ),
    ),
)
"""Layouts of captures as they are told apart; of two that come equally near, the first counts."""


def recording(path: Path) -> str | None:
    """Return a sentence on a file that is a recording or an archive; None for any other."""
    what = RECORDINGS.get(path.suffix.lower())
    return None if what is None else f"{path} is {what.format(name=path.name)}."


def nearest(path: Path, layouts: Sequence[Near] = LAYOUTS) -> str:
    """Return sentences on a folder that no reader knows.

    Args:
        path: The folder. Its subfolders are looked at, too: it may be a folder of captures.
        layouts: Those that it may come near to.

    Returns:
        The layout that it comes nearest to, what is missing and what to do, recordings, and what lies there.
    """
    folders = [path, *subfolders(path)]
    found = [(_score(layout, _names(folder), folder), folder, layout) for folder in folders for layout in layouts]
    score, folder, layout = max(found, key=lambda candidate: candidate[0])
    lines = [_missing(folder, layout) if score > 0 else ""]
    lines += [line for line in map(recording, _recordings(folder if score > 0 else path)) if line]
    if not any(lines):
        lines = ["Nothing there looks like photographs, depth or poses; README.md lists the layouts that are read."]
    return " ".join(filter(None, lines)) + nearby(folder if score > 0 else path)


def _missing(folder: Path, layout: Near) -> str:
    """Say which pieces of a layout are there, and which are not."""
    names = _names(folder)
    here = [piece.called for piece in layout.pieces if _has(piece.patterns, names, folder)]
    gone = [piece for piece in layout.pieces if piece.called not in here]
    cures = [f"{piece.called} is missing: {_cure(piece, names)}" for piece in gone[:MOST_CURES]]
    if rest := [piece.called for piece in gone[MOST_CURES:]]:
        cures.append(f"{', '.join(rest)} {'is' if len(rest) == 1 else 'are'} missing too")
    there = f"{' and '.join(filter(None, [', '.join(here[:-1]), here[-1]]))} {'is' if len(here) == 1 else 'are'} here; "
    return f"{folder.name} comes nearest to {layout.called}: {there if here else ''}{'; '.join(cures)}."


def _cure(piece: Piece, names: Sequence[str]) -> str:
    alike = next((name for name in names if _fits(name, piece.alike)), None)
    if alike is None or alike.endswith(".json"):
        return piece.cure
    return f"if {alike} is it, rename it to {piece.called}"


def _score(layout: Near, names: Sequence[str], folder: Path) -> float:
    """Return how near a folder comes to a layout: pieces that are there, less some part of those that are not."""
    score = 0.0
    for piece in layout.pieces:
        if _has(piece.patterns, names, folder):
            score += 1 if piece.called in COMMON else 2
        elif any(_fits(name, piece.alike) for name in names):
            score += 0.5
        else:
            score -= 0.1
    return score


def _has(patterns: Sequence[str], names: Sequence[str], folder: Path) -> bool:
    deep = [pattern for pattern in patterns if "/" in pattern[:-1]]
    return any(_fits(name, patterns) for name in names) or any((folder / pattern).exists() for pattern in deep)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in patterns)


def _names(folder: Path) -> list[str]:
    """Return the names in a folder, those of folders with a slash; hidden ones do not count."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return []
    return [entry.name + ("/" if entry.is_dir() else "") for entry in entries]


def subfolders(path: Path) -> list[Path]:
    """Return the first subfolders of a folder, by name; hidden ones do not count."""
    try:
        entries = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
    return entries[:MOST_SUBFOLDERS]


def _recordings(folder: Path) -> list[Path]:
    """Return the first recording of each kind in a folder."""
    first: dict[str, Path] = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_file() and entry.suffix.lower() in RECORDINGS and not entry.name.startswith("."):
            first.setdefault(RECORDINGS[entry.suffix.lower()], entry)
    return list(first.values())
