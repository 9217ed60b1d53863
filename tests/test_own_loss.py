"""Facts about losses of one's own: the same numbers as the built-in ones, found by name or file, refused early."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from cuao3d.cli import main
from cuao3d.distill import distill
from cuao3d.errors import InputError
from cuao3d.objective import (
    LOSSES,
    Compressed,
    NormalizerKind,
    RowMeans,
    Targets,
    code_of_losses,
    find_loss,
    fit_normalizer,
    voxel_losses,
)
from test_distill import CARDS, CONFIG, make_store, metrics, read

L2 = """
from dataclasses import dataclass


@dataclass
class SquaredError:
    power: int = 2

    def __call__(self, predicted, target):
        return (predicted - target).pow(self.power).mean(dim=1)


def squared_error(predicted, target):
    return (predicted - target).square().mean(dim=1)
"""
NUM, HIDDEN, WIDTH = 90, 7, 12


def own_l2(predicted: Tensor, target: Tensor) -> Tensor:
    return (predicted - target).square().mean(dim=1)


@pytest.fixture
def registered() -> Iterator[None]:
    LOSSES["own-l2"] = own_l2
    yield
    del LOSSES["own-l2"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "my_loss.py").write_text(L2)
    return tmp_path / "my_loss.py"


def as_rows(features: Tensor) -> Targets:
    return features


def as_means(features: Tensor) -> Targets:
    return RowMeans(features, torch.arange(NUM), torch.arange(NUM))


def compressed(features: Tensor) -> Targets:
    return Compressed(features[:, :3].contiguous(), torch.randn(3, WIDTH), torch.randn(WIDTH))


@pytest.mark.parametrize("normalizer", get_args(NormalizerKind))
@pytest.mark.parametrize("as_targets", [as_rows, as_means, compressed])
@pytest.mark.parametrize("num_chunks", [1, 3])
def test_an_l2_of_ones_own_equals_the_built_in_one(
    normalizer: NormalizerKind, as_targets: Callable, num_chunks: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cuao3d.objective.targets.CHUNK_VALUES", {"cpu": NUM * WIDTH // num_chunks})
    features = torch.randn(NUM, WIDTH) @ torch.randn(WIDTH, WIDTH) + 3
    targets, fitted = as_targets(features), fit_normalizer(normalizer, [features])
    hidden, weight, counts = torch.randn(NUM, HIDDEN), torch.randn(HIDDEN, WIDTH), torch.rand(NUM)
    results = []
    for kind in ("l2", own_l2):
        tensors = [tensor.clone().requires_grad_() for tensor in (hidden, weight, counts)]
        total, of_voxels = voxel_losses(tensors[0], tensors[1], targets, tensors[2], kind, fitted)
        results.append([total.detach(), of_voxels, *torch.autograd.grad(3 * total, tensors)])
    for theirs, ours in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


def test_a_loss_is_given_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cuao3d.objective.targets.CHUNK_VALUES", {"cpu": 1})  # 32 rows are the least
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def loss(predicted: Tensor, target: Tensor) -> Tensor:
        seen.append((tuple(predicted.shape), tuple(target.shape)))
        return own_l2(predicted, target)

    voxel_losses(torch.randn(NUM, HIDDEN), torch.randn(HIDDEN, WIDTH), torch.randn(NUM, WIDTH), torch.ones(NUM), loss)
    assert sum(predicted[0] for predicted, _ in seen) == NUM
    assert all(predicted == target and predicted[0] <= 32 for predicted, target in seen)


@pytest.mark.slow
def test_a_student_learns_by_a_loss_from_a_file_and_by_a_registered_one_as_by_the_built_in(file, tmp_path, registered):
    store = make_store(tmp_path / "store")
    config = replace(CONFIG, num_steps=2, normalizers=("none", "standardize"))
    curves = []
    for index, loss in enumerate(("l2", "own-l2", f"{file}:squared_error", f"{file}:SquaredError")):
        run = distill(store, replace(config, losses=(loss, loss)), tmp_path / f"run{index}")
        curves.append([[*row["losses"].values()] for row in metrics(run)])
        assert read(run, "config.json")["config"]["losses"] == [loss, loss]
        assert read(run, "config.json").get("own_code_sha256", {}) == code_of_losses([loss])
    for curve in curves[1:]:
        assert torch.tensor(curve[0]).allclose(torch.tensor(curves[0][0]), rtol=1e-6)
        assert torch.tensor(curve[1]).allclose(torch.tensor(curves[0][1]), rtol=1e-4)


def test_another_file_is_another_run(file, tmp_path):
    store = make_store(tmp_path / "store")
    config = replace(CONFIG, num_steps=1, teachers=("height",), losses=(f"{file}:squared_error",))
    run = distill(store, config, tmp_path / "run")
    made = (run / "run.json").stat().st_mtime_ns
    assert distill(store, config, run) == run
    assert (run / "run.json").stat().st_mtime_ns == made
    file.write_text(L2.replace("square().mean", "abs().mean"))
    with pytest.raises(ValueError, match="holds another run"):
        distill(store, config, run)
    again = distill(store, config, tmp_path / "again")  # the file that is there now is what runs
    assert metrics(again)[0]["losses"] != metrics(run)[0]["losses"]


@pytest.mark.slow
def test_the_command_line_takes_a_loss_of_ones_own(file, tmp_path, capsys):
    store, loss = make_store(tmp_path / "store"), f"{file}:squared_error"
    command = ["distill", str(store.path), "--recipe", "ours", "--voxel-size", "0.1", "--teachers", "height,noise"]
    command += ["--config.architecture", "MinkUNet14Mini", "--steps", "1", "--out"]
    assert main([*command, str(tmp_path / "own"), "--config.losses", loss, "l2"]) == 0
    assert main([*command, str(tmp_path / "built-in"), "--config.losses", "l2", "l2"]) == 0
    ours, theirs = (metrics(tmp_path / name)[0]["losses"] for name in ("own", "built-in"))
    assert ours == pytest.approx(theirs, rel=1e-6)
    again = [*command, str(tmp_path / "again"), "--config-file", str(tmp_path / "own")]
    assert main([word for word in again if word not in ("--recipe", "ours")]) == 0
    assert metrics(tmp_path / "again")[0]["losses"] == ours
    assert main([*command, str(tmp_path / "bad"), "--config.losses", f"{file}:cubed_error", "l2"]) == 2
    assert "my_loss.py defines no cubed_error" in capsys.readouterr().err


def test_a_card_may_name_a_loss_of_ones_own(file, tmp_path, monkeypatch):
    monkeypatch.setitem(CARDS, "height", replace(CARDS["height"], loss=f"{file}:SquaredError"))
    store = make_store(tmp_path / "store")
    run = distill(store, replace(CONFIG, num_steps=1, teachers=("height",)), tmp_path / "run")
    assert read(run, "config.json")["config"]["losses"] == [f"{file}:SquaredError"]


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("", "defines no loss"),
        ("loss = 3", "is not a loss: .*both \\(n, C\\), and returns a loss for each row"),
        ("def loss(predicted): return predicted", "failed: TypeError.*1 positional argument"),
        ("def loss(p, t): return (p - t).square().mean()", r"returned \(\) for 3 rows"),
        ("def loss(p, t): return (p - t).square()", r"returned \(3, 4\) for 3 rows"),
        ("def loss(p, t): return p.tolist()", "returned list for 3 rows"),
        ("def loss(p, t): return (p.detach() - t).square().mean(dim=1)", "no gradient"),
        ("def loss(p, t): return (p - p.mean(dim=0) - t).square().mean(dim=1)", "of a row changes with the other rows"),
        ("import torch\ndef loss(p, t): return (p - t).abs().mean(dim=1) + torch.rand(len(p))", "nothing random"),
        ("def loss(p, t): raise SystemExit", "failed: SystemExit"),
        ("import sys\nsys.exit()", r"cannot be run: SystemExit:  \(line 2\)"),
        ("class loss:\n  def __init__(self): raise MemoryError", r"loss cannot be made: MemoryError:  \(line 2\)"),
        ("\n1 / 0", r"my_loss\.py cannot be run: ZeroDivisionError: division by zero \(line 2\)"),
    ],
)
def test_what_is_no_loss_is_refused_before_anything_is_written(file, tmp_path, code, complaint):
    file.write_text(code)
    store = make_store(tmp_path / "store")
    with pytest.raises(ValueError, match=complaint):
        distill(store, replace(CONFIG, teachers=("height",), losses=(f"{file}:loss",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_fails_in_training_is_named(file, tmp_path):
    code = "def loss(p, t):\n    if len(p) > 3: raise KeyError('x')\n    return (p - t).square().mean(dim=1)"
    file.write_text(code)
    config = replace(CONFIG, teachers=("height",), losses=(f"{file}:loss",), num_steps=1)
    with pytest.raises(InputError, match="The loss loss failed: KeyError: 'x'"):
        distill(make_store(tmp_path / "store"), config, tmp_path / "run")


def test_unknown_losses_say_which_there_are(registered):
    with pytest.raises(
        ValueError, match=r"Unknown loss 'l3'; choose from cosine, .*, own-l2, or give your own function"
    ):
        find_loss("l3", 4)
    with pytest.raises(FileNotFoundError, match=r"no file nowhere\.py to take loss from"):
        find_loss("nowhere.py:loss", 4)


def test_a_loss_may_import_a_file_beside_it(tmp_path):
    (tmp_path / "beside_my_loss.py").write_text("POWER = 2\n")
    (tmp_path / "my_loss.py").write_text(
        "from beside_my_loss import POWER\ndef loss(p, t):\n    return (p - t).pow(POWER).mean(dim=1)\n"
    )
    loss = find_loss(f"{tmp_path / 'my_loss.py'}:loss", 2)
    assert loss(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2)).item() == 5
