"""Captures of others that are fetched when they are asked for: each file at a pinned address, known by its SHA-256."""

from pathlib import Path

from cuao3d.console import note
from cuao3d.download import data_folder, is_offline
from cuao3d.errors import NotFoundError
from cuao3d.files import cache_folder, check_sha256, sha256_of
from cuao3d.pinned import download_pinned

LOUNGE_ADDRESS = "https://raw.githubusercontent.com/nvidia-isaac/nvblox/7c76f90749aa26b89faeca2044fbdcabd910d0a6/"
"""Repository of the lounge, at the commit whose files are known."""

LOUNGE_FOLDER = "nvblox/tests/data/3dmatch/"
"""Where the capture lies in the repository: the intrinsics here, the frames in `seq-01`."""

LOUNGE_ABOUT = "five frames of a lounge from 3DMatch, 2 MB, Apache-2.0, from github.com/nvidia-isaac/nvblox"

LOUNGE_FILES = {
    "LICENSE": "e4ebd2adc202fa8915aff260a52a99b4206e1d47423dc487775f0fbb2caa6e5b",
    "camera-intrinsics.txt": "72c4cef6bcbf70aa3b0b323b498b4cbe94c21380870ee6902e06abce577b01a4",
    "frame-000000.color.png": "7410165e2af4e2f97ed6e6ebf365c55638acbedb3a9ac63ace563f8b16fe5471",
    "frame-000000.depth.png": "8b4b31293499016a41a3307c84c74ebf111b84720954c467b990d1bdf6f025aa",
    "frame-000000.pose.txt": "72f8722fb38fd7ba6c02719222fdf7c4d17d2a3e439a0c5ea22cf202816bf4e9",
    "frame-000001.color.png": "e983f6b56f118ad7eddb7da5bf68a2afa563bb99e6e9007b72cbb2309d680597",
    "frame-000001.depth.png": "c24ca2a661ae3f5c15e03923fe33ba380cff5bea59338372291bb0a4728e095d",
    "frame-000001.pose.txt": "8e5eac2ab3e79c126350c3a7cbd226f68a8f48b87f6d2fcc361b98c49d269f16",
    "frame-000002.color.png": "9314530486d1641834090d3d373c9b01b77d743e22e7f20188708a25425d9e72",
    "frame-000002.depth.png": "fd4dcc3763ff6c67c0180bd330dddca52d2071efa66e681af756243be9c1d6fc",
    "frame-000002.pose.txt": "edf2c494bdaec4d6ddcab15989d858c468564e154ce7bd6a528e832d6497d0bb",
    "frame-000116.color.png": "7726364989133cded72687b773bd435028ee02ebb1e0fe2643b4ff67c48e67aa",
    "frame-000116.depth.png": "52ac7a395b4137a548885d1e3c84f9603cc515149141b4dd2af71c8fb7cd2cc5",
    "frame-000116.pose.txt": "3b3b27c0084e838372095babe9ca090ba8d40042fb8a198e7a259d8e96753629",
    "frame-000422.color.png": "a787b2afd8344650f896a6c13fcc44cf5b39833cb912e80bbeb0f249ccb3c138",
    "frame-000422.depth.png": "81fa583f9c055fb55b6ea019f07f40cf8028d6731b64c0461d589fb2a4a72c2d",
    "frame-000422.pose.txt": "4e6067540c6b0b19b5943b74ccf140b262598cda9702fb33b8935910a30ea084",
}
"""SHA-256 of each file."""


def lounge() -> Path:
    """Return the folder of a small real capture, a lounge with sofas, tables and chairs; download it if it is not here.

    It is looked for in `CUAO3D_DATA`, then in cuao3d's cache, into which it is downloaded. The hashes of its files are
    compared each time.

    Returns:
        A folder for `open_dataset`.

    Raises:
        NotFoundError: It is not on this machine, and cannot be downloaded: `CUAO3D_OFFLINE` is set, or there is no
            network. Or the folder in `CUAO3D_DATA` lacks a file.
        InputError: A file in `CUAO3D_DATA` is not the published one.
        NotInstalledError: pooch, which downloads, is not installed.
    """
    data = data_folder()
    if data and (data / "lounge").is_dir():
        _check(data / "lounge")
        return data / "lounge"
    folder = cache_folder() / "datasets" / "lounge"
    missing = [name for name in LOUNGE_FILES if not _is_published(folder / name)]
    if missing and is_offline():
        raise NotFoundError(
            f"The lounge is not on this machine ({folder} lacks {missing[0]}), and CUAO3D_OFFLINE forbids downloading. "
            "Unset it, or put its files into the folder `lounge` of a folder that CUAO3D_DATA names."
        )
    if missing:
        note(f"downloading the lounge ({LOUNGE_ABOUT}) into {folder}")
    for name in missing:
        download_pinned(LOUNGE_ADDRESS + _path_there(name), folder / name, LOUNGE_FILES[name])
    return folder


def _check(folder: Path) -> None:
    """Check a copy that somebody put somewhere; it may lack the licence and hold more."""
    for name, sha256 in LOUNGE_FILES.items():
        path = folder / name
        if name == "LICENSE" and not path.is_file():
            continue
        if not path.is_file():
            raise NotFoundError(f"{path} is missing. Copy it there, or move {folder} away, to have it downloaded.")
        cure = f"Copy it again, or move {folder} away, to have it downloaded."
        check_sha256(path, sha256, what="the published file", cure=cure)


def _is_published(path: Path) -> bool:
    return path.is_file() and sha256_of(path) == LOUNGE_FILES[path.name]


def _path_there(name: str) -> str:
    """Return where a file lies in the repository."""
    if name == "LICENSE":
        return name
    return LOUNGE_FOLDER + (f"seq-01/{name}" if name.startswith("frame-") else name)
