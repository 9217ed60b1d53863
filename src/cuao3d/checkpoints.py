"""Checkpoints: all that the later steps of a training depend on, sealed, and known to be of one run."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cuao3d.errors import InputError
from cuao3d.files import read_whole_json, write_tensors
from cuao3d.schema import CountOrZero, parse
from cuao3d.seals import check_tensors, sealed

CHECKPOINT = "checkpoint.safetensors"
"""File from which an unfinished run resumes."""

MADE_WITH = ("code_sha256", "torch_version")
"""What a run records of the code that it was begun with."""

COOLDOWN = 0.2
"""Share of the steps of the schedule "cooldown" in which the learning rate falls to 0; before, it is constant, so that
runs of several lengths begin alike (Hägele et al., Scaling Laws and Compute-Optimal Training Beyond Fixed Training
Durations, NeurIPS 2024)."""

_LENGTH = ("num_steps", "keep_every")
"""Settings in which runs that begin alike may differ."""


@dataclass(frozen=True)
class Best:
    """The best learner on the held-out scenes so far."""

    step: int
    """Steps until then."""
    loss: float
    """Its loss on them."""
    learner: dict[str, Tensor]
    """State of the learner."""


@dataclass(frozen=True)
class TrainingState:
    """TrainingState of a training."""

    step: int
    """Steps done."""
    seconds: float
    """Training time so far."""
    best: Best | None = None
    """The best learner so far, if scenes are held out."""


class _Progress(TypedDict):
    """What a checkpoint says of its training."""

    run: str
    step: CountOrZero
    seconds: float
    best_step: NotRequired[CountOrZero]
    best_loss: NotRequired[float]


def kept_name(step: int) -> str:
    """Return the file name of the kept checkpoint after `step` steps."""
    return f"checkpoint-{step:06d}.safetensors"


def save_checkpoint(file: Path, learner: nn.Module, optimizer: torch.optim.Optimizer, progress: TrainingState) -> None:
    """Save all that later steps depend on; their randomness is determined by the seed and the step."""
    tensors = {f"learner.{name}": tensor for name, tensor in learner.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items() if tensor is not None}
    state_of_run = {"run": _identity(file.parent), "step": progress.step, "seconds": progress.seconds}
    if progress.best is not None:
        tensors |= {f"best.{name}": tensor for name, tensor in progress.best.learner.items()}
        state_of_run |= {"best_step": progress.best.step, "best_loss": progress.best.loss}
    write_tensors(file, tensors, {"progress": sealed(tensors, state_of_run)})


def restore(out: Path, learner: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Restore learner and optimiser from the checkpoint of a run, if there is one, bit for bit.

    Raises:
        InputError: It is damaged.
    """
    file = out / CHECKPOINT
    if not file.is_file():
        return TrainingState(step=0, seconds=0.0)
    try:
        with safe_open(file, framework="pt") as opened:
            saved: _Progress = parse((opened.metadata() or {})["progress"], _Progress, "its progress")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            check_tensors(tensors, opened.metadata()["progress"], has_seal=True)
        if saved["run"] != _identity(out):
            raise InputError("it is of another run")
        learner.load_state_dict(_part(tensors, "learner."))
        states = optimizer.state_dict()
        for name, tensor in _part(tensors, "optimizer.").items():
            index, key = name.split(".")
            states["state"].setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict(states)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:  # the last where tensors do not fit
        raise InputError(f"{file} is damaged ({error}). Delete it, or name another checkpoint to resume.") from None
    best_step, best_loss = saved.get("best_step"), saved.get("best_loss")
    held = best_step is not None and best_loss is not None
    best = Best(cast(int, best_step), cast(float, best_loss), _part(tensors, "best.")) if held else None
    return TrainingState(saved["step"], saved["seconds"], best)


def _identity(folder: Path) -> str:
    """Return a SHA-256 that tells the run in a folder from all others.

    It is of its configuration but for `MADE_WITH` and, where runs of any length begin alike, for its length.
    """
    held = read_whole_json(folder / "config.json") or {}
    rest = without_length({name: value for name, value in held.items() if name not in MADE_WITH})
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def without_length(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a run without its length where its first steps do not depend on it."""
    config = description.get("config") or {}
    if config.get("schedule") != "cooldown":
        return dict(description)
    return {**description, "config": {name: value for name, value in config.items() if name not in _LENGTH}}


def may_branch(file: Path, description: Mapping[str, Any]) -> bool:
    """Return whether a run may go on from a checkpoint of a run of another length: both were to cool down later.

    Args:
        file: The checkpoint, in the folder of its run.
        description: What the folder of the new run holds in `config.json`.
    """
    held = read_whole_json(file.parent / "config.json") or {}
    lengths = [one.get("config", {}).get("num_steps") for one in (held, description)]
    alike = without_length({name: held.get(name) for name in description}) == without_length(description)
    if not alike or description["config"].get("schedule") != "cooldown" or not all(lengths):
        return False
    try:
        with safe_open(file, framework="pt") as opened:
            step = parse((opened.metadata() or {})["progress"], _Progress, "its progress")["step"]
    except (SafetensorError, KeyError):
        return False
    return bool(step <= (1 - COOLDOWN) * min(lengths) + 1e-9)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
