"""Custom losses: registered in Python under a name, or loaded from a file, `FILE.py:NAME`."""

import hashlib
import inspect
from collections.abc import Iterable
from typing import Any, cast, get_args

import torch
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.files import sha256_of
from cuao3d.objective.losses import LossKind, OwnLoss
from cuao3d.plugins import errors_of, file_of, is_own, load_own

LOSSES: dict[str, OwnLoss] = {}
"""Custom losses by name. `LOSSES["huber"] = huber` makes "huber" valid in `DistillConfig.losses`."""

TRIAL_ROWS = 3
"""Rows that a custom loss is tried on before training."""


def find_loss(spec: str, num_channels: int) -> LossKind | OwnLoss:
    """Find a loss by name or file; a custom one is tried on a few random rows.

    Args:
        spec: A `LossKind`, a name in `LOSSES`, or FILE.py:NAME: a function, or a class that is instantiated without
            arguments and then called. The file is executed.
        num_channels: Channels of the features that it will compare.

    Returns:
        The `LossKind`, or the custom loss as a function.

    Raises:
        NotFoundError: There is no such file.
        InputError: There is no loss of that name, or it does not map (n, C), (n, C) to (n,), each row by itself.
    """
    if spec in get_args(LossKind):
        return cast(LossKind, spec)
    if spec not in LOSSES and not is_own(spec):
        known = ", ".join([*get_args(LossKind), *LOSSES])
        raise InputError(f"Unknown loss {spec!r}; choose from {known}, or give your own function: my_loss.py:my_loss.")
    loss: Any = LOSSES[spec] if spec in LOSSES else load_own(spec)
    _try(loss, spec, num_channels)
    return cast(OwnLoss, loss)


def code_of_losses(specs: Iterable[str]) -> dict[str, str | None]:
    """Return the SHA-256 of the code of each custom loss.

    Args:
        specs: Losses; built-in ones are skipped.

    Returns:
        By spec, the hash of the loss's file, or of a registered loss's source; None if Python cannot find the source.

    Raises:
        NotFoundError: There is no such file.
    """
    return {spec: _code_sha256(spec) for spec in specs if spec not in get_args(LossKind)}


def _code_sha256(spec: str) -> str | None:
    if spec not in LOSSES:
        return sha256_of(file_of(spec))
    loss = LOSSES[spec]
    try:
        source = inspect.getsource(loss if inspect.isroutine(loss) else type(loss))
    except (OSError, TypeError):
        return None
    return hashlib.sha256(source.encode()).hexdigest()


def _try(loss: Any, spec: str, num_channels: int) -> None:
    """Raise InputError unless an object compares row by row and is differentiable."""
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.randn(2, TRIAL_ROWS, num_channels, generator=generator).unbind()
    predicted.requires_grad_()
    needed = "a loss takes predicted and target features, both (n, C), and returns a loss for each row, (n,)"
    if not callable(loss):
        raise InputError(f"{spec} is not a loss: {needed}.")
    with errors_of(f"The loss {spec} failed", cure=needed), torch.enable_grad():
        of_rows, of_first = loss(predicted, target.clone()), loss(predicted[:1], target[:1].clone())
    if not isinstance(of_rows, Tensor) or of_rows.shape != (TRIAL_ROWS,):
        got = tuple(of_rows.shape) if isinstance(of_rows, Tensor) else type(of_rows).__name__
        raise InputError(f"The loss {spec} returned {got} for {TRIAL_ROWS} rows; {needed}.")
    if not of_rows.requires_grad:
        raise InputError(f"The loss {spec} has no gradient with respect to the predicted features.")
    if of_first.shape != (1,) or not torch.allclose(of_rows[:1], of_first, rtol=1e-3, atol=1e-5):
        raise InputError(
            f"The loss {spec} of a row changes with the other rows. It is called with a chunk of rows at a time, so "
            "each row's loss must depend on that row alone, and on nothing random."
        )
