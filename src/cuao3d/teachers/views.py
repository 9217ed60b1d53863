"""Views past a teacher: images are read ahead, shown in batches, and fewer at a time where memory runs out."""

import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any, cast

import torch
from jaxtyping import Float32
from torch import Tensor

from cuao3d.errors import InputError

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
        InputError: Not even one image fits into the memory.
    """
    pinned = getattr(teacher, "device", torch.device("cpu")).type == "cuda"
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


def _read(images: Sequence[ReadImage], pinned: bool) -> list[Tensor | None]:
    read = [image() for image in images]
    return [image.pin_memory() if pinned and image is not None else image for image in read]


def _describe(teacher: Any, images: list[Tensor], size: int) -> Generator[tuple[Tensor, ...], None, int]:
    """Yield the maps of images of one size, at most `size` at a time; return how many fitted."""
    done = 0
    while done < len(images):
        few = images[done : done + size]
        try:
            maps = _call(teacher, few)
        except torch.OutOfMemoryError:
            if len(few) == 1:
                height, width = few[0].shape[1:]
                raise InputError(
                    f"{teacher.name}: the memory of {teacher.device} does not hold one image of {width} x {height}. "
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
    if hasattr(teacher, "batch"):
        maps = teacher.batch(torch.stack(images))
        return [tuple(one[index] for one in maps) for index in range(len(images))]
    maps = teacher(images[0])
    return [maps if isinstance(maps, tuple) else (maps,)]
