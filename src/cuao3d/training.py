"""Training: one loop that minimises the loss of a learner, in one process or several."""

import math
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cuao3d import run
from cuao3d.batches import Batch, BatchConfig, Batches
from cuao3d.checkpoints import COOLDOWN
from cuao3d.errors import InputError, TerminatedError
from cuao3d.heads import HeadKind
from cuao3d.progress import OnStep, peak_memory
from cuao3d.ranks import gather, in_group, num_ranks, rank
from cuao3d.schema import Count, Range, Weight
from cuao3d.student import ARCHITECTURES, Student
from cuao3d.trunk import describe_trunk

OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "adam": lambda groups: torch.optim.Adam(groups, fused=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, fused=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.0, momentum=0.9, fused=True),
}

CHECKPOINT_SECONDS = 300
"""Time after which a checkpoint is saved, however few steps were done."""

STUDENT_GROUP, NOISE_GROUP = "student", "noise levels"
"""Names of the optimiser's groups."""

WATCH_EVERY = 100
"""Steps between looks at the student's trunk, the first included; see `describe_trunk`."""

RATE_OF_GROUP = {STUDENT_GROUP: "rate", NOISE_GROUP: "sigma_rate"}
"""Key in `metrics.jsonl` of each group's learning rate."""


@dataclass(frozen=True)
class TrainConfig(BatchConfig):
    """How a student is trained, whatever its targets."""

    architecture: str = "MinkUNet18A"
    """Network of the student."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the network; weights, batch statistics and losses are fp32 either way."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimiser; `sgd` has momentum 0.9."""
    learning_rate: Weight = 1e-4
    """Initial learning rate."""
    weight_decay: Weight = 0.0
    """Weight decay of the student."""
    schedule: Literal["constant", "cooldown", "exponential", "poly", "cosine"] = "exponential"
    """Decay of the learning rate: to `final_rate` (exponential), to 0 as (1 - t)^0.9 (poly), to 0 as a half cosine,
    or to 0 in a line over the last fifth of the steps (cooldown)."""
    final_rate: Annotated[float, Range(1e-9, 1e6)] = 0.1
    """Learning rate at the end of the exponential schedule, as a fraction of the initial one."""
    clip_norm: Annotated[float, Range(1e-12, 1e12)] | None = None
    """Norm to which the student's gradient is clipped; None: no clipping."""
    checkpoint_every: Count = 200
    """Steps between checkpoints, from which an interrupted run resumes, and between validations on held-out scenes.
    Further checkpoints are saved every five minutes and at Ctrl-C or SIGTERM."""
    keep_every: Count | None = None
    """Steps between checkpoints that are kept for good; None: only the last one is kept, until the run is finished."""

    def validate(self) -> None:
        """Check that all numbers lie in their ranges and the network exists; raises InputError."""
        super().validate()
        if self.architecture not in ARCHITECTURES:
            raise InputError(f"--config.architecture is {self.architecture!r}; choose from {', '.join(ARCHITECTURES)}.")


@dataclass(frozen=True)
class Outcome:
    """Result of a training."""

    seconds: float
    """Training time, including that before an interruption."""
    best_step: int | None = None
    """Steps after which the student did best on the held-out scenes and was kept; None: no scene was held out."""
    best_loss: float | None = None
    """Its loss on them."""


class Learner(nn.Module):
    """What `train` trains, if the student's trunk is to be watched meanwhile."""

    watched = False
    """Whether the metrics of the next batch shall include `trunk`, what `measure_trunk` returns."""


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
    """Minimise a learner's loss; resume from the folder's checkpoint if there is one.

    With held-out scenes, the learner ends with the weights that had the lowest sum of losses on them.

    Args:
        learner: Maps a batch to its loss, a mean over the supervised voxels, and a dictionary of metrics. Its
            `finished()` returns the student for inference.
        groups: Parameter groups, each with a `name` and its initial learning rate: `STUDENT_GROUP`, the only one whose
            gradient is clipped, and, if noise levels are learned, `NOISE_GROUP`.
        batches: The batches of each step.
        config: Configuration of the run.
        out: Folder of the run, for metrics and checkpoints.
        device: Device to train on.
        on_step: Called after each step.

    Raises:
        InputError: The training diverged.
        DiskFullError: There is no space left for a checkpoint.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint was saved first.
    """
    rates = {group["name"]: group["lr"] for group in groups}
    learner.to(device).train()
    optimizer = OPTIMIZERS[config.optimizer](groups)
    start = run.restore(out, learner, optimizer)
    best, started = start.best, time.perf_counter() - start.seconds
    model = DistributedDataParallel(learner) if in_group() else learner
    metrics = run.MetricsFile(out, start.step)
    checkpoints = _Checkpoints(out, metrics, learner, optimizer, config)
    with _signals_held() as signals, closing(metrics), closing(batches.ahead(start.step, device)) as coming:
        for step, parts in enumerate(coming, start=start.step):
            _watch(learner, step)
            used = _set_rates(optimizer, rates, rate_fraction(step / len(batches), config))
            row = {"step": step} | _add_gradients(model, optimizer, parts) | used
            _check_loss(row, out, config)
            _clip(optimizer, config)
            optimizer.step()
            done = step + 1
            if done % config.checkpoint_every == 0 or done == len(batches):
                _check_weights(learner, row, out, config)
                best = _validate(best, row, learner, batches, out, config, device)
            metrics.write(row)
            stops = any(gather([bool(signals)]))
            checkpoints.save(run.TrainingState(done, time.perf_counter() - started, best), row, at_once=stops)
            if on_step is not None:
                on_step(done, len(batches), _line(row))
            if stops:
                break
    if best is not None:
        learner.load_state_dict(best.learner)
    return Outcome(time.perf_counter() - started, *((best.step, best.loss) if best else ()))


def rate_fraction(progress: float, config: TrainConfig) -> float:
    """Return the learning rate as a fraction of the initial one.

    Args:
        progress: Steps done as a fraction of all.
        config: Its `schedule` and `final_rate` are used.
    """
    match config.schedule:
        case "exponential":
            return math.pow(config.final_rate, progress)
        case "poly":
            return math.pow(1 - progress, 0.9)
        case "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        case "cooldown":
            return min(1.0, (1 - progress) / COOLDOWN)
        case "constant":
            return 1.0


def make_student(
    heads: dict[str, int], config: TrainConfig, *, head: HeadKind = "linear", noise: bool = False
) -> Student:
    """Make a student whose initial weights are determined by the seed.

    Args:
        heads: Width of each head.
        config: Its `architecture`, `seed` and `voxel_size` are used.
        head: Kind of the heads.
        noise: Whether it learns its uncertainty for each voxel.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        student = Student(heads, config.architecture, head=head, noise=noise)
    student.voxel_size = config.voxel_size
    return student


def student_group(student: Student, config: TrainConfig) -> dict[str, Any]:
    """Return the optimiser's parameter group of a student."""
    return {
        "name": STUDENT_GROUP,
        "params": list(student.parameters()),
        "lr": config.learning_rate,
        "weight_decay": config.weight_decay,
    }


def supervised_features(student: Student, batch: Batch, config: TrainConfig) -> Float[Tensor, "N H"]:
    """Run the student on a batch, geometry only, and return its features at the supervised voxels."""
    device = batch.coordinates.device
    constant = torch.ones(len(batch.coordinates), 3, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        hidden = student.hidden(batch.coordinates, constant)
    return hidden.index_select(0, batch.supervised).to(constant.dtype)


def _add_gradients(model: nn.Module, optimizer: torch.optim.Optimizer, parts: Sequence[Batch]) -> dict[str, Any]:
    """Compute the gradients of a step's mean loss over all micro-batches and processes. Return its metrics."""
    optimizer.zero_grad()
    reports = []
    voxels = sum(gather([len(batch.supervised) for batch in parts]))
    for batch in parts:
        weight, is_last = len(batch.supervised) / voxels, batch is parts[-1]
        waits: AbstractContextManager[None] = nullcontext()
        if isinstance(model, DistributedDataParallel) and not is_last:
            waits = model.no_sync()
        with waits:
            loss, report = model(batch)
            (loss * (weight * num_ranks())).backward()  # gradients are averaged over processes
        reports.append((weight, {"loss": loss.item(), **report}))
    row = _weighted_sum(gather(reports)) | {"voxels": voxels}
    return row | ({"trunk": describe_trunk(row["trunk"])} if "trunk" in row else {})


def _watch(learner: nn.Module, step: int) -> None:
    """Say whether a learner shall watch the trunk in this step, if it can."""
    if isinstance(learner, Learner):
        learner.watched = step % WATCH_EVERY == 0


def _set_rates(optimizer: torch.optim.Optimizer, rates: Mapping[str, float], fraction: float) -> dict[str, float]:
    """Set the learning rate of each group to a fraction of its initial one; return them by their key in the metrics."""
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]] * fraction
    return {RATE_OF_GROUP[group["name"]]: group["lr"] for group in optimizer.param_groups}


def _clip(optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
    """Clip the gradient of the student only."""
    for group in optimizer.param_groups:
        if group["name"] == STUDENT_GROUP and config.clip_norm is not None:
            nn.utils.clip_grad_norm_(group["params"], config.clip_norm)


def _check_loss(row: dict[str, Any], out: Path, config: TrainConfig) -> None:
    """Raise InputError if the loss of a step, or of the held-out scenes after it, is not finite."""
    metrics, name = row.get("validation", row), "held-out loss" if "validation" in row else "loss"
    if not math.isfinite(metrics["loss"]):
        raise _diverged(f"at step {row['step']} the {name} is {metrics['loss']}", metrics["losses"], out, config)


def _check_weights(learner: nn.Module, row: dict[str, Any], out: Path, config: TrainConfig) -> None:
    """Raise InputError if the weights are not finite: they must not be saved."""
    if not all(bool(tensor.isfinite().all()) for tensor in learner.state_dict().values()):
        raise _diverged(f"after step {row['step']} not all weights are finite", row["losses"], out, config)


def _look_at_held_out(learner: nn.Module, batches: Batches, device: str) -> dict[str, Any]:
    """Return the metrics of the held-out scenes; `loss` is the plain sum of the losses."""
    reports = []
    learner.eval()
    with torch.no_grad():
        for batch in batches.still():
            _, report = learner(batch.to(device))
            reports.append((len(batch.supervised), report))
    learner.train()
    reports = gather(reports)
    voxels = sum(count for count, _ in reports)
    mean = _weighted_sum([(count / voxels, report) for count, report in reports])
    losses: dict[str, Any] = {name: mean[name] for name in ("losses", "words") if name in mean}
    return {"loss": sum(mean["losses"].values()) + mean.get("words", 0.0), **losses}


def _validate(
    best: run.Best | None,
    row: dict[str, Any],
    learner: nn.Module,
    batches: Batches,
    out: Path,
    config: TrainConfig,
    device: str,
) -> run.Best | None:
    """Add the metrics of the held-out scenes, if there are any, to the row of a step; return the best learner so far.

    Raises:
        InputError: Their loss is not finite.
    """
    if not batches.held_out:
        return best
    row["validation"] = _look_at_held_out(learner, batches, device)
    _check_loss(row, out, config)
    return _keep_best(best, row, learner, out)


def _keep_best(best: run.Best | None, row: dict[str, Any], learner: nn.Module, out: Path) -> run.Best:
    """Return the best learner on the held-out scenes so far; if it is the current one, write its student."""
    loss = row["validation"]["loss"]
    if best is not None and best.loss <= loss:
        return best
    if rank() == 0:
        cast(Callable[[], Student], learner.finished)().save(out / "best.safetensors")
    state = {name: tensor.detach().cpu().clone() for name, tensor in learner.state_dict().items()}
    return run.Best(row["step"] + 1, loss, state)


class _Checkpoints:
    """Saves the checkpoints of a training: every so many steps, every few minutes, and before it stops."""

    def __init__(
        self,
        out: Path,
        metrics: run.MetricsFile,
        learner: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
    ) -> None:
        self.out, self.metrics, self.learner, self.optimizer, self.config = out, metrics, learner, optimizer, config
        self.saved = time.perf_counter()

    def save(self, progress: run.TrainingState, row: dict[str, Any], *, at_once: bool) -> None:
        """Save the checkpoints that are due after a step, first the one that is kept for good.

        Raises:
            InputError: The weights are not finite.
        """
        step, kept = progress.step, self.config.keep_every
        at_once |= time.perf_counter() - self.saved > CHECKPOINT_SECONDS
        names = [run.kept_name(step)] if kept is not None and step % kept == 0 else []
        names += [run.CHECKPOINT] if at_once or step % self.config.checkpoint_every == 0 else []
        if not names or rank() > 0:
            return
        _check_weights(self.learner, row, self.out, self.config)
        self.metrics.flush()
        for name in names:
            run.save_checkpoint(self.out / name, self.learner, self.optimizer, progress)
        self.saved = time.perf_counter()


@contextmanager
def _signals_held() -> Iterator[list[int]]:
    """Note Ctrl-C and SIGTERM instead of stopping in the middle of a step; a second signal stops at once.

    Yields:
        The signals so far. If there are any at the end of the block, it raises KeyboardInterrupt.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread() or multiprocessing.parent_process() is not None:
        yield noted  # a worker is stopped by the process that started it
        return

    def note(number: int, _: object) -> None:
        if noted:
            raise _stopped(number)
        noted.append(number)

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = {number: handler for number, handler in usual.items() if signal.getsignal(number) == handler}
    for number in ours:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
    if noted:
        raise _stopped(noted[0])


def _stopped(number: int) -> KeyboardInterrupt:
    return TerminatedError() if number == signal.SIGTERM else KeyboardInterrupt()


def _weighted_sum(reports: Sequence[tuple[float, dict[str, Any]]]) -> dict[str, Any]:
    """Sum weighted reports, key by key."""
    return {
        name: _weighted_sum([(weight, report[name]) for weight, report in reports])
        if isinstance(value, dict)
        else sum(weight * report[name] for weight, report in reports)
        for name, value in reports[0][1].items()
    }


def _diverged(what: str, losses: dict[str, float], out: Path, config: TrainConfig) -> InputError:
    """Make the error for a diverged training: what happened, whose loss, and what to do."""
    culprits = {name: loss for name, loss in losses.items() if not math.isfinite(loss)} or losses
    return InputError(
        f"Training in {out} diverged: {what} ({', '.join(f'{name} {loss:g}' for name, loss in culprits.items())}). "
        f"Lower --config.learning-rate (now {config.learning_rate:g}) or set --config.clip-norm. The last checkpoint "
        "is from before the divergence."
    )


def _line(row: dict[str, Any]) -> str:
    """Format a step's losses and noise levels, and the peak memory, in one short line."""
    sigmas = row.get("sigmas", {})
    parts = [
        f"{name} {loss:.3f}" + (f" (σ {sigmas[name]:.2f})" if name in sigmas else "")
        for name, loss in row["losses"].items()
    ]
    words = [f"words {row['words']:.3f}"] if "words" in row else []
    return "  ".join([*parts, *words, f"{peak_memory():.0f} MB"])
