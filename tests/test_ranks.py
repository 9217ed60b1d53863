"""Processes that train together: they learn what one would, and only the first writes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from cuao3d.distill import DistillConfig, distill
from cuao3d.ranks import from_first, gather, in_group, joined, mean_over_ranks, num_ranks, rank
from cuao3d.store import Store
from cuao3d.student import ARCHITECTURES, Architecture, Norm
from test_distill import CONFIG, make_store

SHARED = replace(
    CONFIG, architecture="tiny", batch_size=4, num_steps=3, clip_norm=1.0, num_held_out=1, checkpoint_every=2
)


def together(num_ranks: int, job, folder: Path) -> None:
    """Run job(rank) in processes that know each other; they meet through a file, so no port is needed."""
    forks = get_context("forkserver")
    forks.set_forkserver_preload(["cuao3d.distill"])
    processes = [forks.Process(target=meet, args=(rank, num_ranks, job, folder)) for rank in range(num_ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0


def meet(rank: int, num_ranks: int, job, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=num_ranks)
    job(rank)
    distributed.destroy_process_group()


def agree(rank: int) -> None:
    assert gather([rank, 10 + rank]) == [0, 10, 1, 11]
    assert from_first(lambda: f"said by {rank}") == "said by 0"
    with pytest.raises(ValueError, match="of 0"):
        from_first(partial(fail, rank))
    mean, count = mean_over_ranks(torch.tensor([3.0 - rank, 0.0]), 1 + rank)  # 3 once, 2 twice
    assert mean.tolist() == pytest.approx([7 / 3, 0])
    assert count == 3
    normalise(rank)


def fail(rank: int) -> None:
    raise ValueError(f"of {rank}")


def normalise(rank: int) -> None:
    """Compare the batch norm of two shares of some rows with that of all of them."""
    generator = torch.Generator().manual_seed(0)
    rows, weights = (torch.randn(50, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    share = slice(0, 20) if rank == 0 else slice(20, 50)
    ours, theirs = Norm(4).double(), torch.nn.BatchNorm1d(4).double()
    own, whole = rows[share].clone().requires_grad_(), rows.clone().requires_grad_()
    out, expected = ours(own), theirs(whole)
    torch.testing.assert_close(out, expected[share])
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    (out * weights[share]).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(own.grad, whole.grad[share])
    for one, other in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        torch.testing.assert_close(sum(gather([one.grad])), other.grad)


@pytest.mark.slow
def test_processes_agree_and_normalise_over_the_rows_of_all(tmp_path):
    together(2, agree, tmp_path)


def learn(rank: int, *, store: Path, config: DistillConfig, out: Path, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    ARCHITECTURES["tiny"] = Architecture((4,) * 8, (1,) * 8, num_stem=4)
    steps: list[int] = []
    distill(Store.open(store), config, out, on_step=lambda done, total, line: steps.append(done))
    assert len(steps) == config.num_steps
    torch.set_default_dtype(torch.float32)


def difference(first: Path, second: Path) -> float:
    """Largest difference of two students' weights."""
    one, other = (load_file(run / "student.safetensors") for run in (first, second))
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


# Adam divides a gradient by its size. Where it should be zero, as in the middle of the stem's kernel, which batch norm
# undoes, that blows up what float32 has rounded. So Adam is compared in float64, where two steps of a recipe agree to
# 1e-10. In float32 some weights are 5e-2 apart after them, and the loss of the second step differs by 3e-4 of itself.
@pytest.mark.parametrize(
    ("num_parts", "optimizer", "dtype", "tolerance"),
    [
        pytest.param(1, "sgd", torch.float32, 1e-5, id="float32", marks=pytest.mark.slow),
        pytest.param(2, "adam", torch.float64, 1e-8, id="float64-in-parts", marks=pytest.mark.slow),
    ],
)
def test_two_processes_learn_what_one_learns(tmp_path, num_parts, optimizer, dtype, tolerance):
    store, config = make_store(tmp_path / "store"), replace(SHARED, num_parts=num_parts, optimizer=optimizer)
    job = partial(learn, store=store.path, config=config, dtype=dtype)
    job(0, out=tmp_path / "one")
    together(2, partial(job, out=tmp_path / "two"), tmp_path)
    assert difference(tmp_path / "one", tmp_path / "two") < tolerance
    lines = ([json.loads(line) for line in (tmp_path / run / "metrics.jsonl").open()] for run in ("one", "two"))
    for one, two in zip(*lines, strict=True):
        assert one["voxels"] == two["voxels"]
        assert ("validation" in one) == ("validation" in two)
        for said, again in ((one, two), (one.get("validation", one), two.get("validation", two))):
            assert said["losses"] == pytest.approx(again["losses"], rel=1e-3)
        assert ("trunk" in one) == ("trunk" in two) == (one["step"] == 0)
        for key in one.get("trunk", {}):
            assert one["trunk"][key] == pytest.approx(two["trunk"][key], rel=1e-3)


def refuse(rank: int, *, store: Path, out: Path) -> None:
    with pytest.raises(ValueError, match=r"3 scenes of a step .* by 2 processes in 1 parts\. Set .* multiple of 2"):
        distill(Store.open(store), replace(CONFIG, batch_size=3), out)


@pytest.mark.slow
def test_scenes_that_cannot_be_shared_are_refused(tmp_path):
    store = make_store(tmp_path / "store")
    together(2, partial(refuse, store=store.path, out=tmp_path / "run"), tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("is_launched", [False, True])
def test_a_process_that_torchrun_starts_alone_joins_a_group_and_no_other_does(is_launched, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(distributed, "is_torchelastic_launched", lambda: is_launched)
    start = distributed.init_process_group
    meeting = partial(start, init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    monkeypatch.setattr(distributed, "init_process_group", meeting)
    with joined("cpu") as device:
        assert (device, in_group(), num_ranks(), rank()) == ("cpu", is_launched, 1, 0)
        assert gather([5]) == [5]
        assert from_first(lambda: "said") == "said"
        mean, count = mean_over_ranks(torch.tensor([2.0, 4.0]), 3)
        assert (mean.tolist(), count) == ([2.0, 4.0], 3)
    assert not in_group()


@pytest.mark.slow
def test_torchrun_trains_one_student(tmp_path):
    store = make_store(tmp_path / "store")
    command = [
        "-m",
        "cuao3d",
        "distill",
        str(store.path),
        "--steps",
        "2",
        "--voxel-size",
        "0.1",
        "--teachers",
        "height",
        "--config.optimizer",
        "sgd",  # Adam would blow up the rounding of sums in another order; see above
    ]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    starts = ([], "one"), ([*launcher, "1"], "alone"), ([*launcher, "2"], "two")
    one, alone, two = (
        subprocess.run(
            [sys.executable, *start, *command, "--out", str(tmp_path / name)],
            check=False,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for start, name in starts
    )
    assert one.returncode == alone.returncode == two.returncode == 0, alone.stderr + two.stderr
    assert two.stderr.count("distilling: height into") == 1
    lines = [[json.loads(line) for line in (tmp_path / run / "metrics.jsonl").open()] for _, run in starts]
    losses = [[row["losses"] for row in rows] for rows in lines]
    assert losses[1:] == [[pytest.approx(row, rel=1e-4) for row in losses[0]]] * 2
