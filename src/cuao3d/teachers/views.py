"""Running teachers over views: images are prefetched and batched; a batch that does not fit in memory is halved."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from cuao3d.errors import InputError, TeacherError
from cuao3d.plugins import errors_of

ReadImage = Callable[[], Float32[Tensor, "3 H W"] | None]

BATCH = 4
"""Images shown to a teacher at a time, if it takes several."""


Described = tuple[tuple[Tensor, ...], ...] | InputError | None
"""What teachers say of an image: the maps (C, h, w) of each; or why it is left out: a map of it has values that are not
finite; None where it could not be read."""


def describe_together(
    teachers: Sequence[Any],
    images: Sequence[ReadImage],
    *,
    batch_size: int = BATCH,
    seconds: dict[str, float] | None = None,
) -> Iterator[Described]:
    """Yield what all teachers say of each image, in order. Each image is read once.

    While a batch is described the next one is read; if a teacher is on a GPU into pinned memory, so that copying it
    there costs no waiting. A batch for which the GPU has no memory is halved, and so are all after it for this teacher;
    that is said once.

    Args:
        teachers: Of `cuao3d.teachers.Teacher`; one that has `batch` is shown several images at a time.
        images: Each reads an image, RGB in [0, 1], or returns None if it could not.
        batch_size: Images at a time, at most; maps of so many are held.
        seconds: The time that each teacher takes is added here, by its name.

    Raises:
        TeacherError: A teacher returns something else than maps of its width, for the first image already.
        InputError: It does so later on, not even one image fits into the memory, or the teacher fails in any other way:
            nothing that its code raises gets past here but an interrupt.
    """
    pinned = any(_device(teacher).type == "cuda" for teacher in teachers)
    step = batch_size if any(hasattr(teacher, "batch") for teacher in teachers) else 1
    several = [_Describer(teacher, batch_size if hasattr(teacher, "batch") else 1) for teacher in teachers]
    chunks = [images[start : start + step] for start in range(0, len(images), step)]
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(_read, chunks[0], pinned) if chunks else None
        for index in range(len(chunks)):
            assert coming is not None
            read = coming.result()
            coming = ahead.submit(_read, chunks[index + 1], pinned) if index + 1 < len(chunks) else None
            there = [image for image in read if image is not None]
            of_teachers = [one.describe(there, {} if seconds is None else seconds) for one in several]
            of_image = iter(list(zip(*of_teachers, strict=True)))
            for image in read:
                yield None if image is None else _together(next(of_image))


def _together(maps: tuple[tuple[Tensor, ...] | InputError, ...]) -> Described:
    """Return the maps of all teachers, or what is wrong with those of the first that has something wrong."""
    wrong = next((one for one in maps if isinstance(one, InputError)), None)
    return wrong or tuple(one for one in maps if not isinstance(one, InputError))


class _Describer:
    """A teacher that describes images, as many at a time as fit."""

    def __init__(self, teacher: Any, size: int) -> None:
        self._teacher, self._size, self._is_proven = teacher, size, False

    def describe(self, images: Sequence[Tensor], seconds: dict[str, float]) -> list[tuple[Tensor, ...] | InputError]:
        """Return the maps of each image, or what is wrong with them."""
        begun, found = time.perf_counter(), list[tuple[Tensor, ...] | InputError]()
        for _, group in groupby(images, key=lambda image: image.shape):
            alike = list(group)
            while alike:
                maps = self._try(alike[: self._size])
                found += maps
                alike = alike[len(maps) :]
        name = self._teacher.name
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begun
        return found

    def _try(self, few: list[Tensor]) -> list[tuple[Tensor, ...] | InputError]:
        """Describe images of one size; nothing if they do not fit, and fewer are to be tried."""
        teacher = self._teacher
        try:
            with errors_of(f"Teacher {teacher.name!r} failed", passing=(torch.OutOfMemoryError,)):
                maps = _call(teacher, few)
        except TeacherError as error:
            if self._is_proven:  # it kept its promise before: another scene may do
                raise InputError(str(error)) from None
            raise
        except torch.OutOfMemoryError:
            if len(few) == 1:
                height, width = few[0].shape[1:]
                raise InputError(
                    f"{teacher.name}: the memory of {_device(teacher)} does not hold one image of {width} x {height}. "
                    "Use --precision bf16, a smaller model, or --device cpu."
                ) from None
            self._size = len(few) // 2
            torch.cuda.empty_cache()
            warnings.warn(
                f"{teacher.name}: no memory for {len(few)} images at a time, goes on with {self._size}.", stacklevel=2
            )
            return []
        self._is_proven = True
        return maps


def _device(teacher: Any) -> torch.device:
    """Return where a teacher says that it runs."""
    return torch.device(getattr(teacher, "device", "cpu"))


def _read(images: Sequence[ReadImage], pinned: bool) -> list[Tensor | None]:
    read = [image() for image in images]
    return [image.pin_memory() if pinned and image is not None else image for image in read]


def _call(teacher: Any, images: list[Tensor]) -> list[tuple[Tensor, ...] | InputError]:
    """Let a teacher describe images of one size, and check what it returns."""
    if hasattr(teacher, "batch"):
        maps = _checked(teacher, teacher.batch(torch.stack(images)), len(images))
        return [_finite(teacher, tuple(one[index] for one in maps)) for index in range(len(images))]
    return [_finite(teacher, _checked(teacher, teacher(images[0])))]


def _finite(teacher: Any, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...] | InputError:
    """Return the maps of an image, or what is wrong with them if values are not finite."""
    for one in maps:
        if not bool(one.isfinite().all()):
            count = int((~one.isfinite()).sum())
            return InputError(
                f"Teacher {teacher.name!r} gave {count} of {one.numel()} values that are not finite (NaN or infinity)."
            )
    return maps


def _checked(teacher: Any, returned: Any, batch: int | None = None) -> tuple[Tensor, ...]:
    """Return a teacher's maps as tensors, if they are what it promises.

    Args:
        teacher: The teacher.
        returned: What it returned: a map (C, h, w) or several, tensors or arrays; of a batch, maps (B, C, h, w).
        batch: Number of images described at once; None for one image alone.

    Raises:
        TeacherError: They are of another type, shape or width.
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
    return found


def _as_tensor(one: Any) -> Tensor | None:
    """Return a tensor or an array of real numbers as a tensor of its own; None of anything else.

    It is copied: it is still to be summed when the teacher is called again, which may use its memory again.
    """
    if isinstance(one, np.ndarray) and one.dtype.kind in "biuf":
        return torch.from_numpy(np.array(one, dtype=np.float32))
    return one.detach().clone() if isinstance(one, Tensor) and not one.is_complex() else None


def _kind(one: Any) -> str:
    """Say of what type a value is."""
    numbers = f" of {one.dtype}" if isinstance(one, Tensor | np.ndarray) else ""
    return "None" if one is None else f"a {type(one).__name__}{numbers}"
