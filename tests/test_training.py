import errno
import json
import math
import os
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from cuao3d.batches import STILL, Batches
from cuao3d.errors import TerminatedError
from cuao3d.files import write_chunks
from cuao3d.history import read_history
from cuao3d.objective import RowMeans
from cuao3d.progress import training_bars
from cuao3d.run import CHECKPOINT, MetricsFile
from cuao3d.training import NOISE_GROUP, OPTIMIZERS, STUDENT_GROUP, TrainConfig, rate_fraction, train
from test_batches import make_scene

CONFIG = TrainConfig(voxel_size=0.1, num_steps=7, batch_size=2, augmentation=STILL, checkpoint_every=3)


def test_rates_by_hand():
    half = {"constant": 1.0, "cooldown": 1.0, "exponential": 0.1, "poly": 0.5**0.9, "cosine": 0.5}
    for schedule, fraction in half.items():
        config = replace(CONFIG, schedule=schedule, final_rate=0.01)
        assert rate_fraction(0.0, config) == pytest.approx(1)
        assert rate_fraction(0.5, config) == pytest.approx(fraction)


@pytest.mark.parametrize(
    ("optimizer", "moves"),
    [("sgd", 1 + 1.9), ("adam", 2), ("adamw", 2)],  # momentum 0.9; Adam's first steps are as long as its rate
)
def test_steps_by_hand(optimizer, moves):
    weight = torch.ones(1, requires_grad=True)
    steps = OPTIMIZERS[optimizer]([{"params": [weight], "lr": 0.01, "weight_decay": 0.0}])
    for _ in range(2):
        weight.grad = torch.ones(1)
        steps.step()
    assert weight.item() == pytest.approx(1 - 0.01 * moves, abs=1e-6)


def test_weight_decay_of_adamw_is_apart_from_the_gradient():
    for optimizer, left in (("adamw", 1 - 0.01 * 0.5), ("adam", 1 - 0.01)):
        weight = torch.ones(1, requires_grad=True)
        weight.grad = torch.zeros(1)
        OPTIMIZERS[optimizer]([{"params": [weight], "lr": 0.01, "weight_decay": 0.5}]).step()
        assert weight.item() == pytest.approx(left, abs=1e-6)


class Vector(nn.Module):
    """A student that is one vector."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(4))

    def save(self, path):
        path.write_text(json.dumps(self.mean.tolist()))


class Guess(nn.Module):
    """Learns one vector, the mean target."""

    def __init__(self):
        super().__init__()
        self.student = Vector()
        self.noise = nn.Parameter(torch.zeros(1))

    def finished(self):
        return self.student

    def forward(self, batch):
        error = torch.cat([targets[0][:] for targets in batch.targets]) - self.student.mean
        loss = error.square().mean()
        return loss + self.noise.square().sum(), {"losses": {"guess": loss.item()}}


class Killed(Exception):
    pass


def run_guess(out, *, stop_after=None, rate=0.1, scenes=(300, 150, 60), held_out=(), learner=None, **changes):
    """Learn from scenes of some numbers of samples; return what was learned and the metrics."""
    out.mkdir(exist_ok=True)
    learner, config = learner or Guess(), replace(CONFIG, **{"schedule": "cosine", **changes})
    shown = [make_scene(seed, num_samples) for seed, num_samples in enumerate(scenes)]
    batches = Batches(shown, config, RowMeans, [make_scene(seed) for seed in held_out])

    def on_step(done, total, line):
        assert total == config.num_steps
        assert line.startswith("guess ")
        assert line.endswith(" MB")
        if done == stop_after:
            raise Killed

    noise_levels = {"name": NOISE_GROUP, "params": [learner.noise], "lr": 0.5}
    groups = [noise_levels, {"name": STUDENT_GROUP, "params": [learner.student.mean], "lr": rate}]  # in either order
    outcome = train(learner, groups, batches, config, out, on_step=on_step)
    return learner.student.mean.detach(), (out / "metrics.jsonl").read_text(), outcome


def files(out):
    return sorted(path.name for path in out.iterdir() if path.is_file())


def steps_of(file):
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()["progress"])["step"]


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("stop_after", [2, 3, 5])
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, optimizer, stop_after):
    mean, metrics, _ = run_guess(tmp_path / "whole", optimizer=optimizer)
    with pytest.raises(Killed):
        run_guess(tmp_path / "cut", optimizer=optimizer, stop_after=stop_after)
    mean_again, metrics_again, _ = run_guess(tmp_path / "cut", optimizer=optimizer)
    assert torch.equal(mean, mean_again)
    assert metrics == metrics_again


def test_metrics_tell_the_rates_that_were_used(tmp_path):
    run_guess(tmp_path)
    fractions = [0.5 * (1 + math.cos(math.pi * i / 7)) for i in range(7)]
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == list(range(7))
    assert [row["rate"] for row in rows] == [pytest.approx(0.1 * fraction) for fraction in fractions]
    assert [row["sigma_rate"] for row in rows] == [pytest.approx(0.5 * fraction) for fraction in fractions]
    assert all(row["loss"] == row["losses"]["guess"] for row in rows)


@pytest.mark.parametrize("changes", [{"optimizer": "sgd"}, {"schedule": "poly"}, {"batch_size": 1}, {"seed": 1}])
def test_every_setting_of_the_loop_changes_the_result(tmp_path, changes):
    plain, changed = run_guess(tmp_path / "plain")[0], run_guess(tmp_path / "changed", **changes)[0]
    assert not torch.equal(plain, changed)


def test_clipping_bounds_the_gradient_of_the_student_and_of_nothing_else(tmp_path):
    noise_levels = []
    for clip_norm in (None, 1e-6):
        learner = Guess()
        learner.noise.data.fill_(1.0)
        start, _, _ = run_guess(tmp_path / str(clip_norm), learner=learner, optimizer="sgd", clip_norm=clip_norm)
        noise_levels.append(learner.noise.item())
    assert 0 < start.norm() < 1e-5
    assert noise_levels[0] == noise_levels[1] != 1.0


@pytest.mark.parametrize("num_parts", [2, 4])
def test_the_parts_of_a_step_add_up_to_the_step(tmp_path, num_parts):
    whole, _, _ = run_guess(tmp_path / "whole", batch_size=4, optimizer="sgd")
    parts, _, _ = run_guess(tmp_path / "parts", batch_size=4, optimizer="sgd", num_parts=num_parts)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    for one, two in zip(lines(tmp_path / "whole"), lines(tmp_path / "parts"), strict=True):
        assert one["losses"]["guess"] == pytest.approx(two["losses"]["guess"], abs=1e-6)
        assert one["voxels"] == two["voxels"]


def test_checkpoints_are_kept_where_asked_for(tmp_path):
    with pytest.raises(Killed):
        run_guess(tmp_path, keep_every=2, stop_after=6)
    kept = ["checkpoint-000002.safetensors", "checkpoint-000004.safetensors", "checkpoint-000006.safetensors"]
    assert files(tmp_path) == [*kept, CHECKPOINT, "metrics.jsonl"]
    assert load_file(tmp_path / kept[2]).keys() == load_file(tmp_path / CHECKPOINT).keys()


def test_a_kept_checkpoint_is_written_before_the_current_one(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("cuao3d.run.save_checkpoint", lambda file, *_: written.append(file.name))
    run_guess(tmp_path, keep_every=3)
    assert written == ["checkpoint-000003.safetensors", CHECKPOINT, "checkpoint-000006.safetensors", CHECKPOINT]


class Signalled(Guess):
    """A learner whose process gets a signal in the middle of its fourth step, and perhaps more."""

    def __init__(self, number, times=1):
        super().__init__()
        self.number, self.times, self.calls = number, times, 0

    def forward(self, batch):
        self.calls += 1
        if self.calls == 4:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
        return super().forward(batch)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, TerminatedError)])
def test_a_signal_ends_the_step_and_saves_a_checkpoint(tmp_path, number, error):
    mean, metrics, _ = run_guess(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt) as raised:
        run_guess(tmp_path / "cut", learner=Signalled(number))
    assert raised.type is error
    assert len(lines(tmp_path / "cut")) == 4
    assert steps_of(tmp_path / "cut" / CHECKPOINT) == 4
    again, metrics_again, _ = run_guess(tmp_path / "cut")
    assert torch.equal(mean, again)
    assert metrics == metrics_again
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_signal_stops_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_guess(tmp_path, learner=Signalled(signal.SIGINT, times=2))
    assert steps_of(tmp_path / CHECKPOINT) == 3


def test_a_worker_is_stopped_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("multiprocessing.parent_process", lambda: "the process that started it")
    with pytest.raises(KeyboardInterrupt):
        run_guess(tmp_path, learner=Signalled(signal.SIGINT))
    assert steps_of(tmp_path / CHECKPOINT) == 3


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a process in the background
    try:
        run_guess(tmp_path, learner=Signalled(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(lines(tmp_path)) == 7


def test_checkpoints_come_by_time_too(tmp_path, monkeypatch):
    monkeypatch.setattr("cuao3d.training.CHECKPOINT_SECONDS", 0)
    with pytest.raises(Killed):
        run_guess(tmp_path, stop_after=2, checkpoint_every=100)
    assert steps_of(tmp_path / CHECKPOINT) == 2


@pytest.mark.parametrize("tail", [b'{"step": 2, "los', b"\x00" * 40, b"\xff\n", b"7\n"])
def test_a_broken_tail_of_the_metrics_costs_the_tail(tmp_path, tail):
    mean, metrics, _ = run_guess(tmp_path / "whole")
    with pytest.raises(Killed):
        run_guess(tmp_path / "cut", stop_after=4)
    path = tmp_path / "cut" / "metrics.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rows[:2]) + tail)
    assert len(read_history(tmp_path / "cut").steps) == 2
    again, _, _ = run_guess(tmp_path / "cut")
    assert torch.equal(mean, again)
    whole = metrics.splitlines()
    assert path.read_text().splitlines() == [*whole[:2], *whole[3:]]  # the third line is lost, no other


def test_metrics_that_are_no_numbers_are_null_in_the_file_and_nan_in_the_history(tmp_path):
    metrics = MetricsFile(tmp_path, 0)
    metrics.write({"step": 0, "losses": {"guess": math.inf}, "rate": 0.1, "sigmas": {"guess": math.nan}})
    metrics.close()
    assert '{"guess": null}' in (tmp_path / "metrics.jsonl").read_text()
    history = read_history(tmp_path)
    assert math.isnan(history.losses["guess"][0])
    assert history.rate == (0.1,)


def test_the_learner_ends_as_it_was_when_it_did_best_on_the_held_out_scenes(tmp_path):
    best, _, outcome = run_guess(tmp_path / "run", held_out=(5, 6), rate=0.5, checkpoint_every=2)
    rows = lines(tmp_path / "run")
    assert [row["step"] for row in rows if "validation" in row] == [1, 3, 5, 6]
    looks = {row["step"] + 1: row["validation"]["loss"] for row in rows if "validation" in row}
    assert outcome.best_step == min(looks, key=looks.get) < 7
    assert outcome.best_loss == min(looks.values())
    assert json.loads((tmp_path / "run" / "best.safetensors").read_text()) == best.tolist()
    shown = Batches([], CONFIG, RowMeans, [make_scene(5), make_scene(6)]).still()
    targets = torch.cat([batch.targets[0][0][:] for batch in shown])
    assert outcome.best_loss == pytest.approx((targets - best).square().mean().item(), abs=1e-6)


def test_looking_at_held_out_scenes_does_not_change_what_is_learned(tmp_path):
    plain = run_guess(tmp_path / "plain")[1].splitlines()
    looking = run_guess(tmp_path / "looking", held_out=(5,))[1].splitlines()
    assert [json.loads(line) | {"validation": 0} for line in plain] == [
        json.loads(line) | {"validation": 0} for line in looking
    ]


@pytest.mark.parametrize("stop_after", [3, 5])
def test_the_best_so_far_is_remembered_by_an_interrupted_run(tmp_path, stop_after):
    settings = {"held_out": (5, 6), "rate": 0.5, "checkpoint_every": 1}
    best, metrics, outcome = run_guess(tmp_path / "whole", **settings)
    assert outcome.best_step <= stop_after
    with pytest.raises(Killed):
        run_guess(tmp_path / "cut", stop_after=stop_after, **settings)
    (tmp_path / "cut" / "best.safetensors").unlink()  # what is remembered stands in the checkpoint
    again, metrics_again, outcome_again = run_guess(tmp_path / "cut", **settings)
    assert torch.equal(best, again)
    assert metrics == metrics_again
    assert (outcome.best_step, outcome.best_loss) == (outcome_again.best_step, outcome_again.best_loss)


def test_divergence_names_the_step_the_loss_and_the_cure_and_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(Killed):
        run_guess(tmp_path, stop_after=3)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(ValueError, match=r"diverged: at step [4-6] the loss is (inf|nan) \(guess (inf|nan)\)\. Lower"):
        run_guess(tmp_path, rate=1e30)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_weights_that_are_no_numbers_are_not_kept(tmp_path):
    with pytest.raises(ValueError, match=r"diverged: after step 0 not all weights are finite \(guess [\d.]+\)"):
        run_guess(tmp_path, rate=math.inf, checkpoint_every=1)
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_full_disk_is_one_error_and_costs_no_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(Killed):
        run_guess(tmp_path, stop_after=4)
    before = (tmp_path / CHECKPOINT).read_bytes()

    def fill():
        yield b"half a file"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cuao3d.checkpoints.write_tensors", lambda path, *_: write_chunks(path, fill()))
    with pytest.raises(OSError, match=r"no space left on the disk: .*checkpoint.safetensors cannot be .*Make room"):
        run_guess(tmp_path)
    assert files(tmp_path) == [CHECKPOINT, "metrics.jsonl"]
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    monkeypatch.undo()
    assert torch.equal(run_guess(tmp_path)[0], run_guess(tmp_path / "whole")[0])


def test_tensorboard_gets_what_the_metrics_get_and_forgets_the_steps_that_are_done_again(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        flush = close = lambda self: None

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    with pytest.raises(Killed):
        run_guess(tmp_path, stop_after=4, held_out=(5,))
    row = lines(tmp_path)[2]
    assert written[0] == (str(tmp_path / "tensorboard"), 0)
    for name, value in (
        ("losses/guess", row["losses"]["guess"]),
        ("validation/losses/guess", row["validation"]["loss"]),
    ):
        assert (name, value, 2) in written
    written.clear()
    run_guess(tmp_path, held_out=(5,))
    assert written[0] == (str(tmp_path / "tensorboard"), 3)


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint.safetensors is damaged \(.*\)\. Delete it"):
        run_guess(tmp_path)


def test_the_bar_takes_steps():
    with training_bars(["guess"]) as (on_step,):
        on_step(1, 2, "guess 0.5")
