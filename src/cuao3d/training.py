"""Training: one loop minimises whatever a learner says of its batches, alone or with other processes."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cuao3d import run
from cuao3d.batches import Batch, BatchConfig, Batches
from cuao3d.errors import InputError
from cuao3d.progress import OnStep, peak_memory
from cuao3d.ranks import gather, num_ranks, rank
from cuao3d.student import HeadKind, Student

OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "adam": lambda groups: torch.optim.Adam(groups, fused=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, fused=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.0, momentum=0.9, fused=True),
}


@dataclass(frozen=True)
class TrainConfig(BatchConfig):
    """How a student is trained, whatever it learns."""

    architecture: str = "MinkUNet18A"
    """Name of the student's network."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Numbers that the network computes with; weights, statistics and losses are fp32 either way."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimiser; `sgd` has momentum 0.9."""
    learning_rate: float = 1e-4
    """Rate at the start."""
    weight_decay: float = 0.0
    """Weight decay of the student."""
    schedule: Literal["constant", "exponential", "poly", "cosine"] = "exponential"
    """How the rate falls: to `final_rate` (exponential), to 0 as (1 - t)^0.9 (poly), to 0 as a half wave (cosine)."""
    final_rate: float = 0.1
    """Rate at the end of the exponential schedule, as a fraction of the start."""
    clip_norm: float | None = None
    """Largest norm of the student's gradient; None: not clipped."""
    checkpoint_every: int = 200
    """Steps between the checkpoints from which an interrupted run goes on, and between looks at the held-out scenes."""
    keep_every: int | None = None
    """Steps between the checkpoints that are kept; None: only the last one is, until the run is finished."""


@dataclass(frozen=True)
class Outcome:
    """How a training went."""

    seconds: float
    """Time spent, that before an interruption included."""
    best_step: int | None = None
    """Steps after which the student did best on the held-out scenes and was kept; None: there are none."""
    best_loss: float | None = None
    """Its loss on them."""


def train(
    learner: nn.Module,
    groups: list[dict[str, Any]],
    batches: Batches,
    config: TrainConfig,
    out: Path,
    *,
    device: str = "cpu",
    on_step: OnStep | None = None,
) -> Outcome:
    """Minimise what a learner says of each batch; goes on from the folder's checkpoint if there is one.

    Where scenes are held out, the learner ends as it was when it did best on them: by the plain sum of its losses, with
    `words` if it reports that.

    Args:
        learner: Called with a batch; returns its loss, a mean over the supervised voxels, and what to report of it. Its
            `finished()` is the student as it is to be used.
        groups: Parameter groups with their rates at the start: the student's, whose gradient is the one that is
            clipped, and, if there is one, that of the noise levels.
        batches: The batches of each step.
        config: Configuration of the run.
        out: Folder of the run, for metrics and checkpoints.
        device: Where to train.
        on_step: Told after each step.

    Raises:
        InputError: The training diverged.
        OSError: There is no space left for a checkpoint.
    """
    rates, diverged = [group["lr"] for group in groups], partial(_diverged, out, config)
    learner.to(device).train()
    optimizer = OPTIMIZERS[config.optimizer](groups)
    start = run.restore(out, learner, optimizer)
    best, started = start.best, time.perf_counter() - start.seconds
    model = DistributedDataParallel(learner) if num_ranks() > 1 else learner
    with closing(run.Metrics(out, start.step)) as metrics, closing(batches.ahead(start.step, device)) as coming:
        for step, parts in enumerate(coming, start=start.step):
            fraction = rate_fraction(step / len(batches), config)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * fraction
            optimizer.zero_grad()
            row = {"step": step} | _add_gradients(model, parts)
            row |= zip(("rate", "sigma_rate"), (group["lr"] for group in optimizer.param_groups), strict=False)
            if not math.isfinite(row["loss"]):
                raise diverged(f"at step {step} the loss is {row['loss']}", row["losses"])
            if config.clip_norm is not None:
                nn.utils.clip_grad_norm_(groups[0]["params"], config.clip_norm)
            optimizer.step()
            done = step + 1
            if done % config.checkpoint_every == 0 or done == len(batches):
                if not all(bool(tensor.isfinite().all()) for tensor in learner.state_dict().values()):
                    raise diverged(f"after step {step} the weights are not all numbers", row["losses"])
                if batches.held_out:
                    row["validation"] = said = _look_at_held_out(learner, batches, device)
                    if not math.isfinite(said["loss"]):
                        raise diverged(f"after step {step} the held-out loss is {said['loss']}", said["losses"])
                    if best is None or said["loss"] < best.loss:
                        best = _keep_as_best(learner, done, said["loss"], out)
            metrics.write(row)
            for every, name in ((config.checkpoint_every, run.CHECKPOINT), (config.keep_every, run.kept_name(done))):
                if every is not None and done % every == 0 and rank() == 0:
                    metrics.flush()
                    progress = run.Progress(done, time.perf_counter() - started, best)
                    run.save_checkpoint(out / name, learner, optimizer, progress)
            if on_step is not None:
                on_step(done, len(batches), _line(row))
    seconds = time.perf_counter() - started
    if best is None:
        return Outcome(seconds)
    learner.load_state_dict(best.learner)
    return Outcome(seconds, best.step, best.loss)


def rate_fraction(progress: float, config: TrainConfig) -> float:
    """Return the learning rate as a fraction of the one at the start.

    Args:
        progress: Steps done as a fraction of all.
        config: Its `schedule` and `final_rate` count.
    """
    match config.schedule:
        case "exponential":
            return math.pow(config.final_rate, progress)
        case "poly":
            return math.pow(1 - progress, 0.9)
        case "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        case "constant":
            return 1.0


def make_student(
    heads: dict[str, int], config: TrainConfig, *, head: HeadKind = "linear", noise: bool = False
) -> Student:
    """Make a student whose initial weights follow from the seed.

    Args:
        heads: Width of each head.
        config: Its `architecture` and `seed` count.
        head: Kind of the heads.
        noise: Whether it learns how unsure it is, voxel by voxel.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Student(heads, config.architecture, head=head, noise=noise)


def student_group(student: Student, config: TrainConfig) -> dict[str, Any]:
    """Return the optimiser's settings for a student."""
    return {"params": list(student.parameters()), "lr": config.learning_rate, "weight_decay": config.weight_decay}


def supervised_features(student: Student, batch: Batch, config: TrainConfig) -> Float[Tensor, "N H"]:
    """Run the student on a batch of bare geometry and return its features where the batch has targets."""
    device = batch.coordinates.device
    constant = torch.ones(len(batch.coordinates), 3, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        hidden = student.hidden(batch.coordinates, constant)
    return hidden.index_select(0, batch.supervised).to(constant.dtype)


def _add_gradients(model: nn.Module, parts: Sequence[Batch]) -> dict[str, Any]:
    """Add the gradients of a step's mean over the voxels of all its parts and processes; return what is said of it."""
    reports = []
    voxels = sum(gather([len(batch.supervised) for batch in parts]))
    for batch in parts:
        weight, is_last = len(batch.supervised) / voxels, batch is parts[-1]
        waits: AbstractContextManager[None] = nullcontext()
        if isinstance(model, DistributedDataParallel) and not is_last:
            waits = model.no_sync()
        with waits:
            loss, report = model(batch)
            (loss * (weight * num_ranks())).backward()  # the mean over processes is taken of their gradients
        reports.append((weight, {"loss": loss.item(), **report}))
    return _weighted_sum(gather(reports)) | {"voxels": voxels}


def _look_at_held_out(learner: nn.Module, batches: Batches, device: str) -> dict[str, Any]:
    """Return what is to be said of the held-out scenes; its `loss` is the plain sum of the losses."""
    reports = []
    learner.eval()
    with torch.no_grad():
        for batch in batches.still():
            _, report = learner(batch.to(device))
            reports.append((len(batch.supervised), report))
    learner.train()
    reports = gather(reports)
    voxels = sum(count for count, _ in reports)
    said = _weighted_sum([(count / voxels, report) for count, report in reports])
    losses: dict[str, Any] = {name: said[name] for name in ("losses", "words") if name in said}
    return {"loss": sum(said["losses"].values()) + said.get("words", 0.0), **losses}


def _keep_as_best(learner: nn.Module, step: int, loss: float, out: Path) -> run.Best:
    """Write the student, and return what to remember of it."""
    if rank() == 0:
        cast(Callable[[], Student], learner.finished)().save(out / "best.safetensors")
    state = {name: tensor.detach().cpu().clone() for name, tensor in learner.state_dict().items()}
    return run.Best(step, loss, state)


def _weighted_sum(reports: Sequence[tuple[float, dict[str, Any]]]) -> dict[str, Any]:
    """Add weighted reports, number by number."""
    return {
        name: _weighted_sum([(weight, report[name]) for weight, report in reports])
        if isinstance(value, dict)
        else sum(weight * report[name] for weight, report in reports)
        for name, value in reports[0][1].items()
    }


def _diverged(out: Path, config: TrainConfig, what: str, losses: dict[str, float]) -> ValueError:
    """Say what went wrong, by whose loss, and what to do."""
    culprits = {name: loss for name, loss in losses.items() if not math.isfinite(loss)} or losses
    return InputError(
        f"Training in {out} diverged: {what} ({', '.join(f'{name} {loss:g}' for name, loss in culprits.items())}). "
        f"Lower learning_rate (now {config.learning_rate:g}) or set clip_norm. The last checkpoint is from before that."
    )


def _line(row: dict[str, Any]) -> str:
    """Say a step's losses and noise levels, and the memory used so far, in one short line."""
    sigmas = row.get("sigmas", {})
    parts = [
        f"{name} {loss:.3f}" + (f" (σ {sigmas[name]:.2f})" if name in sigmas else "")
        for name, loss in row["losses"].items()
    ]
    words = [f"words {row['words']:.3f}"] if "words" in row else []
    return "  ".join([*parts, *words, f"{peak_memory():.0f} MB"])
