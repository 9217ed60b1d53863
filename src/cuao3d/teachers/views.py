"""Running a teacher over views: images are prefetched and batched; a batch that does not fit in memory is halved."""

import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from cuao3d.errors import InputError, TeacherError
from cuao3d.plugins import errors_of

ReadImage = Callable[[], Float32[Tensor, "3 H W"] | None]

BATCH = 4
"""Images shown to a teacher at a time, if it takes several."""


def describe_views(
    teacher: Any, images: Sequence[ReadImage], *, batch_size: int = BATCH
) -> Iterator[tuple[Tensor, ...]]:
    """Yield a teacher's maps (C, h, w) of each image, in order; an empty tuple for an image that could not be read.

    While a batch is described the next one is read; for a teacher on a GPU into pinned memory, so that copying it
    there costs no waiting. A batch for which the GPU has no memory is halved, and so are all after it; that is said
    once.

    Args:
        teacher: Of `cuao3d.teachers.Teacher`; one that has `batch` is shown several images at a time.
        images: Each reads an image, RGB in [0, 1], or returns None if it could not.
        batch_size: Images at a time, at most.

    Raises:
        TeacherError: The teacher returns something else than maps of its width.
        InputError: A map has values that are not finite, not even one image fits into the memory, or the teacher fails
            in any other way: nothing that its code raises gets past here but an interrupt.
    """
    pinned = _device(teacher).type == "cuda"
    size = batch_size if hasattr(teacher, "batch") else 1
    chunks = [images[start : start + size] for start in range(0, len(images), size)]
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(_read, chunks[0], pinned) if chunks else None
        for index in range(len(chunks)):
            assert coming is not None
            read = coming.result()
            coming = ahead.submit(_read, chunks[index + 1], pinned) if index + 1 < len(chunks) else None
            for shape, group in groupby(read, key=lambda image: None if image is None else image.shape):
                alike = list(group)
                if shape is None:
                    yield from [()] * len(alike)
                else:
                    size = yield from _describe(teacher, cast(list[Tensor], alike), size)


def _device(teacher: Any) -> torch.device:
    """Return where a teacher says that it runs."""
    return torch.device(getattr(teacher, "device", "cpu"))


def _read(images: Sequence[ReadImage], pinned: bool) -> list[Tensor | None]:
    read = [image() for image in images]
    return [image.pin_memory() if pinned and image is not None else image for image in read]


def _describe(teacher: Any, images: list[Tensor], size: int) -> Generator[tuple[Tensor, ...], None, int]:
    """Yield the maps of images of one size, at most `size` at a time; return how many fitted."""
    done = 0
    while done < len(images):
        few = images[done : done + size]
        try:
            with errors_of(f"Teacher {teacher.name!r} failed", passing=(torch.OutOfMemoryError,)):
                maps = _call(teacher, few)
        except torch.OutOfMemoryError:
            if len(few) == 1:
                height, width = few[0].shape[1:]
                raise InputError(
                    f"{teacher.name}: the memory of {_device(teacher)} does not hold one image of {width} x {height}. "
                    "Use --precision bf16, a smaller model, or --device cpu."
                ) from None
            size = len(few) // 2
            torch.cuda.empty_cache()
            warnings.warn(
                f"{teacher.name}: no memory for {len(few)} images at a time, goes on with {size}.", stacklevel=2
            )
            continue
        yield from maps
        done += len(few)
    return size


def _call(teacher: Any, images: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """Let a teacher describe images of one size, and check what it returns."""
    if hasattr(teacher, "batch"):
        maps = _checked(teacher, teacher.batch(torch.stack(images)), len(images))
        return [tuple(one[index] for one in maps) for index in range(len(images))]
    return [_checked(teacher, teacher(images[0]))]


def _checked(teacher: Any, returned: Any, batch: int | None = None) -> tuple[Tensor, ...]:
    """Return a teacher's maps as tensors, if they are what it promises.

    Args:
        teacher: The teacher.
        returned: What it returned: a map (C, h, w) or several, tensors or arrays; of a batch, maps (B, C, h, w).
        batch: Number of images described at once; None for one image alone.

    Raises:
        TeacherError: They are of another type, shape or width.
        InputError: They hold values that are not finite.
    """
    dims, who = ("C, h, w" if batch is None else f"{batch}, C, h, w"), f"Teacher {teacher.name!r}"
    several = tuple(returned) if isinstance(returned, tuple | list) else (returned,)
    found = tuple(tensor for one in several if (tensor := _as_tensor(one)) is not None)
    if not several or len(found) < len(several):
        kinds = " and ".join(sorted({_kind(one) for one in several})) or "an empty tuple"
        raise TeacherError(f"{who} returned {kinds}; expected a map ({dims}) of numbers, or a tuple of such maps.")
    if any(one.ndim != 3 + (batch is not None) or not one.numel() for one in found) or (
        batch is not None and any(len(one) != batch for one in found)
    ):
        shapes = " and ".join(str(tuple(one.shape)) for one in found)
        raise TeacherError(f"{who} returned {shapes}; expected a map ({dims}), or a tuple of such maps.")
    widths = [one.shape[-3] for one in found]
    if sum(widths) != teacher.num_channels:
        raise TeacherError(f"{who} promises {teacher.num_channels} channels but gave {' + '.join(map(str, widths))}.")
    for one in found:
        if not bool(one.isfinite().all()):
            count = int((~one.isfinite()).sum())
            raise InputError(f"{who} gave {count} of {one.numel()} values that are not finite (NaN or infinity).")
    return found


def _as_tensor(one: Any) -> Tensor | None:
    """Return a tensor or an array of real numbers as a tensor; None of anything else."""
    if isinstance(one, np.ndarray) and one.dtype.kind in "biuf":
        return torch.from_numpy(np.array(one, dtype=np.float32))
    return one.detach() if isinstance(one, Tensor) and not one.is_complex() else None


def _kind(one: Any) -> str:
    """Say of what type a value is."""
    numbers = f" of {one.dtype}" if isinstance(one, Tensor | np.ndarray) else ""
    return "None" if one is None else f"a {type(one).__name__}{numbers}"
