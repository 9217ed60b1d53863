"""Features as the files of a store hold them: encoded by its codec, in the bases that its folder keeps."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cuao3d.codecs import Basis, Codec, Coded
from cuao3d.durable import remove
from cuao3d.errors import InputError
from cuao3d.files import write_tensors
from cuao3d.store.stored import DISAGREEMENT, features_file
from cuao3d.teachers.teacher import TeacherCard

BASES = "bases"
"""Folder of a store that holds the basis of each teacher; `store.json` has their SHA-256.

A part of it is in the name of each file, so that a new basis never replaces the one that scenes are kept in.
"""

NUM_MEASURED = 4096
"""Features of a scene whose cosine error is measured, at most; spread evenly over all."""


def basis_path(store: Path, teacher: str, sha256: str | None) -> Path:
    """Return the file of a teacher's basis, given its SHA-256; where none is known, one that is not there."""
    return store / BASES / f"{teacher}.{(sha256 or 'unknown')[:12]}.basis.safetensors"


def write_basis(store: Path, teacher: str, basis: Basis) -> None:
    """Write the basis of a teacher."""
    write_tensors(basis_path(store, teacher, basis.sha256), basis.tensors)


def read_basis(store: Path, teacher: str, sha256: str | None, shape: tuple[int, int], cure: str) -> Basis:
    """Read the basis of a teacher.

    Args:
        store: Folder of the store.
        teacher: Name of the teacher.
        sha256: SHA-256 of the basis that the scenes were written in; None: none is known.
        shape: Its directions, and the teacher's channels.
        cure: What to do about a basis that is missing, damaged or another one.

    Raises:
        InputError: It is.
    """
    path = basis_path(store, teacher, sha256)
    if sha256 is None or not path.is_file():
        raise InputError(f"{path}, the basis of the features of {teacher}, is missing; {cure}.")
    try:
        with safe_open(path, framework="pt") as file:
            vectors, mean = file.get_tensor("vectors"), file.get_tensor("mean")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}; {cure}.") from None
    if (vectors.shape, mean.shape, vectors.dtype, mean.dtype) != (shape, shape[1:], torch.float32, torch.float32):
        found = f"{tuple(vectors.shape)} with a mean of {tuple(mean.shape)}"
        raise InputError(f"{path} does not fit: it is {found}, expected {shape} with ({shape[1]},); {cure}.")
    basis = Basis(vectors, mean)
    if basis.sha256 != sha256:
        raise InputError(f"{path} does not fit: its SHA-256 is not the one that store.json states; {cure}.")
    return basis


def has_files_of(store: Path, teacher: str) -> bool:
    """Say whether a store has a basis of a teacher, known or not."""
    name = re.compile(rf"{re.escape(teacher)}\.[0-9a-f]{{12}}\.basis\.safetensors")
    return any(name.fullmatch(path.name) for path in (store / BASES).glob("*"))


def remove_other_bases(store: Path, bases: Mapping[str, str]) -> None:
    """Remove the bases that a store does not have any more; `bases` has the SHA-256 of those that it has."""
    kept = {basis_path(store, teacher, sha256) for teacher, sha256 in bases.items()}
    for path in sorted((store / BASES).glob("*.safetensors")):
        if path not in kept:
            remove(path)


def encode(
    scene: str,
    num_seen: int,
    features: Mapping[str, Tensor],
    errors: Mapping[str, float | None],
    codec: Codec,
    bases: Mapping[str, Basis | None],
    cards: Mapping[str, TeacherCard],
) -> tuple[dict[str, Coded], dict[str, dict[str, Any]]]:
    """Encode a scene's features.

    Args:
        scene: Name of the scene, for messages.
        num_seen: Its seen samples.
        features: For each teacher a row for each of them: features, or codes in the teacher's basis.
        errors: Mean cosine error of each teacher whose codes are given.
        codec: How they are kept.
        bases: Basis of each teacher, if it has one.
        cards: Card of each teacher.

    Returns:
        What is kept by teacher, and what the manifest says of it; nothing of features in plain 16 bits.

    Raises:
        InputError: They are of another shape, or not finite.
    """
    kept: dict[str, Coded] = {}
    about: dict[str, dict[str, Any]] = {}
    for teacher, rows in features.items():
        basis, expected = bases.get(teacher), (num_seen, cards[teacher].num_channels)
        is_code = basis is not None and tuple(rows.shape) == (num_seen, len(basis.vectors))
        if tuple(rows.shape) != expected and not is_code:
            raise InputError(
                f"Scene {scene}, teacher {teacher!r}: expected {expected} features, got {tuple(rows.shape)}."
            )
        on_cpu = rows.to("cpu")
        kept[teacher] = coded = Coded.of(on_cpu, codec, basis)
        if not all(bool(torch.isfinite(part).all()) for part in coded.tensors.values()):
            raise InputError(f"Scene {scene}, teacher {teacher!r}: a feature is not finite in 16 bits.")
        if codec != Codec():
            some = torch.arange(0, num_seen, -(-num_seen // NUM_MEASURED) or 1)
            error = errors.get(teacher) if is_code else coded.cosine_error(on_cpu[some], some)
            basis_sha256 = None if basis is None else basis.sha256
            about[teacher] = {"codec": str(codec), "basis_sha256": basis_sha256, "cosine_error": error}
    return kept, about


def feature_files(kept: Mapping[str, Coded], disagreement: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return what the file of each teacher holds: features (V, _) and, where measured, how far views disagree (V,)."""
    files = {features_file(teacher): dict(coded.tensors) for teacher, coded in kept.items()}
    for teacher in kept.keys() & disagreement.keys():
        files[features_file(teacher)][DISAGREEMENT] = disagreement[teacher].to("cpu", torch.float16)
    return files
