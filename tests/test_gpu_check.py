"""The check of a GPU: what it does without one, how it survives a step that fails, and the tables that it writes."""

import json
import sys
import time

import pytest

import gpu_check
from cuao3d.sparse import VoxelSet, convolve
from gpu_check import Step
from gpu_comparisons import compare, losses, relative_error


@pytest.mark.skipif(gpu_check.torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_one_line_says_so(capsys, tmp_path):
    assert gpu_check.main(json_file=tmp_path / "gpu.json") == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "This machine has no CUDA device; nothing was checked.\n")
    assert not (tmp_path / "gpu.json").exists()


def test_a_step_that_fails_or_takes_too_long_is_recorded_and_the_next_goes_on(tmp_path, capsys):
    rows = tmp_path / "rows.json"
    slow = f"open({str(rows)!r}, 'w').write('{{\"a\": 1}}\\n{{\"a\"'); import time; time.sleep(60)"
    steps = [
        Step("broken", ("-c", "raise ValueError('of the step')"), 30),
        Step("slow", ("-c", slow), 2, rows),
        Step("fine", ("-c", "print('said')"), 30),
    ]
    start = time.monotonic()
    report = gpu_check.check(steps, "cpu", tmp_path / "gpu.json")["steps"]
    assert time.monotonic() - start < 40
    assert [step["outcome"] for step in report.values()] == ["exit code 1", "out of time", "done"]
    assert report["broken"]["output"][-1] == "ValueError: of the step"
    assert report["slow"]["rows"] == [{"a": 1}]
    assert report["fine"]["output"] == ["said"]
    assert json.loads((tmp_path / "gpu.json").read_text())["steps"] == report


def test_no_step_begins_when_the_time_of_all_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "TOTAL_SECONDS", 0)
    report = gpu_check.check([Step("late", ("-c", "1 / 0"), 30)], "cpu", tmp_path / "gpu.json")
    assert report["steps"]["late"]["outcome"] == "no time left"


def test_all_steps_together_stay_within_nine_minutes(tmp_path):
    assert gpu_check.TOTAL_SECONDS < 9 * 60
    planned = gpu_check.steps(tmp_path, "cuda", dry_run=False)
    assert [step.name for step in planned if step.name != "spconv-triton"] == [
        *("tests", "comparisons", "store", "nccl", "student", "objective", "teachers"),
    ]
    assert all(step.seconds <= 120 for step in planned)


def test_the_page_shows_errors_failures_and_ratios(tmp_path):
    rows = [
        {"kind": "loss", "name": "l2 loss", "precision": "fp32", "error": 2e-7, "failure": None},
        {"kind": "loss", "name": "l2 loss", "precision": "fp16", "error": None, "failure": "RuntimeError: a | b"},
    ]
    seconds = [("naive", 3.0), ("triton", 1.5)]
    timed = [{"voxels": 100, "what": "forward", "variant": name, "seconds": taken} for name, taken in seconds]
    steps = {
        "tests": {"outcome": "out of time", "seconds": 100.0, "command": "python -m pytest"},
        "comparisons": {"outcome": "done", "seconds": 9.0, "command": "python a.py --json x", "rows": rows},
        "student": {"outcome": "done", "seconds": 9.0, "command": "python b.py --json x", "rows": timed},
    }
    report = {"date": "2026-01-02", "device": "GPU", "versions": {"torch": "2"}, "steps": steps}
    (tmp_path / "gpu.json").write_text(json.dumps(report))
    page = tmp_path / "gpu.md"
    page.write_text("# GPU\n\n<!-- gpu -->\nold\n<!-- end of gpu -->\n\nend\n")
    assert gpu_check.main(read=tmp_path / "gpu.json", page=page) == 0
    text = page.read_text()
    assert "old" not in text
    assert text.endswith("<!-- end of gpu -->\n\nend\n")
    assert "Measured on 2026-01-02, GPU; torch 2." in text
    assert "| tests | out of time | 100 |" in text
    assert "| loss: l2 loss | 2.0e-07 | RuntimeError: a / b |" in text
    assert "| 100 | forward | triton | 1.5 | 2.00 |" in text


def test_relative_errors_are_relative_to_the_largest_value():
    torch = gpu_check.torch
    assert relative_error(torch.tensor([1.0, -3.9]), torch.tensor([1.0, -4.0])) == pytest.approx(0.025)
    assert relative_error(torch.tensor([float("nan")]), torch.tensor([1.0])) == float("inf")
    assert relative_error(torch.ones(2), torch.ones(3)) == float("inf")


def test_losses_are_compared_in_three_types_and_a_failure_is_a_row(tmp_path):
    cases = dict(losses(tmp_path))
    rows = list(compare("loss", iter([("cosine loss", cases["cosine loss"])]), "cpu"))
    assert [row.precision for row in rows] == ["fp32", "bf16", "fp16"]
    assert rows[0].error == 0
    assert all(0 < row.error < 0.02 for row in rows[1:])

    def fail(device, dtype):
        if dtype != gpu_check.torch.float32:
            raise ValueError("no such type\nmore")
        return [gpu_check.torch.ones(1)]

    rows = list(compare("loss", iter([("broken", fail)]), "cpu"))
    assert [(row.error, row.failure) for row in rows] == [(0, None), *[(None, "ValueError: no such type")] * 2]


@pytest.mark.parametrize("kind", ["neighbours", "down", "up"])
def test_the_rivals_tables_say_which_rows_meet_at_each_position(kind):
    import spconv_rival  # in benchmarks, which gpu_check adds to the path

    torch = gpu_check.torch
    voxels = VoxelSet(torch.cartesian_prod(torch.tensor([0]), *[torch.arange(4)] * 3)[::3])
    kernel_map = voxels.neighbours(3) if kind == "neighbours" else getattr(voxels, kind)
    x = torch.randn(kernel_map.num_inputs, 2, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(kernel_map.volume, 2, 3, dtype=torch.float64)
    z_fastest = kernel[kernel_map.positions]
    forward, backward = (table.long() for table in spconv_rival.tables(kernel_map))
    seen = torch.cat([x, torch.zeros(1, 2)])[forward]  # -1 is the row of zeros
    out = convolve(x, kernel, kernel_map, "naive")
    torch.testing.assert_close((seen @ z_fastest).sum(dim=0), out)
    grad = torch.randn_like(out)
    seen = torch.cat([grad, torch.zeros(1, 3)])[backward]
    (wanted,) = torch.autograd.grad(out, x, grad)
    torch.testing.assert_close((seen @ z_fastest.transpose(1, 2)).sum(dim=0), wanted)
    mask, order = spconv_rival.masks(forward)
    bits = ((forward[:, order.long()] >= 0).long() << torch.arange(len(forward))[:, None]).sum(dim=0)
    assert torch.equal(mask.long(), bits)
    assert mask.diff().min() >= 0


@pytest.mark.slow
def test_the_whole_check_runs_on_a_cpu_at_tiny_sizes(tmp_path, monkeypatch):
    page = tmp_path / "gpu.md"
    assert gpu_check.main(json_file=tmp_path / "gpu.json", page=page, device="cpu", dry_run=True) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: step["outcome"] for name, step in report["steps"].items()} == dict.fromkeys(report["steps"], "done")
    assert set(report["steps"]) >= {"tests", "comparisons", "nccl", "student", "objective", "teachers"}
    assert report["versions"]["python"] == sys.version.split()[0]
    assert "### Comparisons" in page.read_text()
