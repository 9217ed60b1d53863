"""What the files of a store must hold: JSON by keys and types, tensors by names, types and shapes."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import torch
from torch import Tensor

from cuao3d.codecs import Codec
from cuao3d.errors import InputError
from cuao3d.names import check_file_name
from cuao3d.scene import Problem, Split
from cuao3d.schema import CountOrZero, Length, Range, fit
from cuao3d.seals import read_sealed
from cuao3d.store.header import Setting
from cuao3d.store.stored import POINTS_FILE, cure, damaged, read_checked
from cuao3d.teachers.teacher import TeacherCard


class _Header(TypedDict):
    """What is read of a `store.json`."""

    cell: Length
    teachers: dict[str, TeacherCard]
    settings: dict[str, Setting]
    codec: NotRequired[str]
    bases: NotRequired[dict[str, str]]


class _Codec(TypedDict):
    codec: str
    basis_sha256: str | None
    cosine_error: float | None


class _File(TypedDict):
    bytes: Annotated[int, Range(0, 2**62)]
    sha256: str


class _Source(TypedDict):
    settings: dict[str, Any]
    files_sha256: str


class _Manifest(TypedDict):
    """What is read of a `manifest.json`; those of earlier versions lack some."""

    name: str
    split: Split
    label_set: str | None
    label_set_sha256: NotRequired[str | None]
    problems: list[Problem | str]
    num_points: CountOrZero
    num_samples: CountOrZero
    num_seen: CountOrZero
    cell: NotRequired[Length]
    teachers: NotRequired[dict[str, dict[str, Any]]]
    is_finite: NotRequired[bool]
    codecs: NotRequired[dict[str, _Codec]]
    source: NotRequired[_Source | None]
    files: dict[str, _File]


INTEGERS, FLOATS = (torch.int32, torch.int64), (torch.float32, torch.float64)

CLOUD = {
    "points": ((torch.float32,), "N 3"),
    "index_of_sample": (INTEGERS, "S"),
    "sample_of_point": (INTEGERS, "N"),
    "num_views": (INTEGERS, "S"),
    "colors": ((torch.uint8,), "N 3"),
    "labels": ((torch.int16, *INTEGERS), "N"),
    "normals": ((torch.float16, torch.float32), "N 3"),
    "intrinsics": (FLOATS, "F 6"),
    "world_from_camera": (FLOATS, "F 4 4"),
    "capture_from_world": (FLOATS, "4 4"),
    "up": (FLOATS, "3"),
}
"""Types and shape of each tensor of a scene's cloud; a letter is a length that is the same everywhere."""

NEEDED = ("points", "index_of_sample", "sample_of_point", "num_views")


def read_header(
    header: Mapping[str, Any], path: Path, cure: str
) -> tuple[float, dict[str, TeacherCard], dict[str, Setting], Codec, dict[str, str]]:
    """Return cell, teachers, settings, codec and the SHA-256 of the bases of a store.

    Raises:
        InputError: They are not what they should be.
    """
    read: _Header = fit(dict(header), _Header, str(path), cure)
    for name in read["teachers"]:
        _check_name(name, "teacher", path, cure)
    try:
        codec = Codec.parse(read.get("codec", "fp16"))
    except InputError as error:
        raise InputError(f"{path}: {error} Open it with the version of cuao3d that wrote it.") from None
    return read["cell"], read["teachers"], read["settings"], codec, read.get("bases", {})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a scene.

    Args:
        folder: The scene.

    Raises:
        NotFoundError: There is none.
        InputError: It is damaged, or does not hold what it should; the names of its files lead nowhere else.
    """
    path = folder / "manifest.json"
    manifest = read_sealed(path, cure(path))
    read: _Manifest = fit(manifest, _Manifest, str(path), cure(path))
    for name in read["files"]:
        _check_name(name, "file", path, cure(path))
    if POINTS_FILE not in read["files"]:
        raise damaged(path, f"it lacks {POINTS_FILE}")
    return manifest


def codec_of_scenes(store: Path) -> Codec:
    """Return how the scenes of a store keep features, where its header cannot tell.

    Args:
        store: Folder of the store.

    Raises:
        InputError: It has bases, but no manifest of a scene says of which codec.
    """
    for path in sorted((store / "scenes").glob("*/manifest.json")):
        with suppress(InputError):
            for about in read_manifest(path.parent).get("codecs", {}).values():
                return Codec.parse(about["codec"])
    if any((store / "bases").glob("*.safetensors")):
        raise InputError(
            f"{store / 'store.json'} is damaged, and no scene says how the store keeps features. Say it: --codec, as "
            "the store was made with."
        )
    return Codec()


def read_cloud(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the tensors of a scene's cloud.

    Args:
        folder: The scene.
        manifest: Its manifest.

    Raises:
        InputError: They are not those that were written, or not what they should be.
    """
    path = folder / POINTS_FILE
    tensors = read_checked(path, manifest["files"][POINTS_FILE])
    check_cloud(tensors, path, cure(path))
    return tensors


def _check_name(name: str, kind: str, path: Path, cure: str) -> None:
    try:
        check_file_name(name, kind)
    except InputError as error:
        raise InputError(f"{path}: {error}; {cure}.") from None


def check_cloud(tensors: Mapping[str, Tensor], path: Path, cure: str) -> None:
    """Raise InputError unless the tensors of a scene's cloud are what they should be, and index each other."""
    lengths = check_shapes(tensors, CLOUD, path, cure, needed=NEEDED)
    for name, limit in (("index_of_sample", lengths["N"]), ("sample_of_point", lengths["S"]), ("num_views", 1 << 31)):
        indices = tensors[name]
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < limit:
            raise InputError(f"{path}: {name} goes from {int(indices.min())} to {int(indices.max())}; {cure}.")
    if ("intrinsics" in tensors) != ("world_from_camera" in tensors):
        raise InputError(f"{path} holds intrinsics or poses without the others; {cure}.")


def check_shapes(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, tuple[tuple[torch.dtype, ...], str]],
    path: Path,
    cure: str,
    *,
    needed: tuple[str, ...],
) -> dict[str, int]:
    """Check types and shapes of tensors.

    Args:
        tensors: The tensors; those that are not expected are not checked.
        expected: Types and shape of each, as in `CLOUD`.
        path: Where they were read.
        cure: What to do about a damaged file.
        needed: Tensors that must be there.

    Returns:
        The length that each letter stands for.

    Raises:
        InputError: One is missing, or of another type or shape.
    """
    lengths: dict[str, int] = {}
    for name, (types, shape) in expected.items():
        if name not in tensors:
            if name in needed:
                raise InputError(f"{path} lacks {name}; {cure}.")
            continue
        tensor, sides = tensors[name], shape.split()
        told = [int(side) if side.isdecimal() else lengths.get(side, -1) for side in sides]
        fits = tensor.ndim == len(told) and all(a == b or b < 0 for a, b in zip(tensor.shape, told, strict=True))
        if tensor.dtype not in types or not fits:
            raise InputError(
                f"{path}: {name} is {tuple(tensor.shape)} of {tensor.dtype}; expected ({', '.join(sides)}) of "
                f"{' or '.join(map(str, types))}; {cure}."
            )
        lengths |= {side: length for side, length in zip(sides, tensor.shape, strict=True) if not side.isdecimal()}
    return lengths
