"""All that a machine with a GPU can tell, in nine minutes: tests, comparisons with a CPU, NCCL, and benchmarks.

Each step runs in a process of its own, within a budget of time. What fails or takes too long is recorded, and the
next step goes on. The result is one JSON file, of which a section of docs/gpu.md is made:

    python scripts/gpu_check.py --json gpu.json --page docs/gpu.md

Steps that need checkpoints or stores make them as the tests do, so this runs in a clone with its `dev` extra.
"""

import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from common import write_section

ROOT = Path(__file__).parents[1]
TOTAL_SECONDS = 530
"""Budget of all steps together."""

MEASURED = ("comparisons", "student", "spconv-triton", "objective", "teachers")
"""Steps that write rows."""

PACKAGES = ("torch", "triton", "spconv", "spconv-triton", "transformers", "diffusers", "cuao3d")


@dataclass(frozen=True)
class Step:
    """One process of the check."""

    name: str
    command: tuple[str, ...]
    """Arguments of the Python interpreter."""
    seconds: float
    """Budget."""
    rows: Path | None = None
    """JSON that it writes: a list, or one value a line."""


def main(
    json_file: Annotated[Path, tyro.conf.arg(name="json")] = Path("gpu.json"),
    page: Path | None = None,
    device: str = "cuda",
    dry_run: bool = False,
    only: str | None = None,
    read: Path | None = None,
) -> int:
    """Check a GPU.

    Args:
        json_file: Where to write the results.
        page: Page to write a section of them into.
        device: Device to check.
        dry_run: Run everything at tiny sizes, to see that it runs.
        only: Names of the steps to run, with commas; all unless given.
        read: Run nothing; write the page from this file, which an earlier check has written.
    """
    if read:
        report = json.loads(read.read_text())
    else:
        if device.startswith("cuda") and not torch.cuda.is_available():
            print("This machine has no CUDA device; nothing was checked.", file=sys.stderr)
            return 2
        with tempfile.TemporaryDirectory() as folder:
            chosen = steps(Path(folder), device, dry_run)
            report = check([step for step in chosen if only is None or step.name in only.split(",")], device, json_file)
    if page:
        write_section(page, "gpu", section(report))
    return 0


def steps(folder: Path, device: str, dry_run: bool) -> list[Step]:
    """The steps of the check, the most telling first."""
    rows = {name: folder / f"{name}.json" for name in MEASURED}
    store = folder / "store"
    make_store = f"from pathlib import Path; from test_distill import make_store; make_store(Path({str(store)!r}))"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
    distil = (
        "-m",
        "cuao3d",
        "distill",
        str(store),
        "--out",
        str(folder / "run"),
        "--steps",
        "5",
        "--teachers",
        "height",
    )
    variants = ["naive", "fp32", "naive_bf16", "bf16"]
    variants += [name for b in ("triton", "spconv") if find_spec(b) for name in (b, f"{b}_bf16")]
    planned = [
        Step("tests", ("-m", "pytest", "-q", "-m", "gpu", "-rs", "tests"), 100),
        Step("comparisons", _program("scripts/gpu_comparisons.py", device, rows["comparisons"]), 120),
        Step("store", ("-c", make_store), 30),
        Step("nccl", (*launcher, *distil, "--voxel-size", "0.1", "--device", device), 50),
        Step("student", _program("benchmarks/student.py", device, rows["student"]), 110),
        Step("objective", _program("benchmarks/objective.py", device, rows["objective"]), 90),
        Step("teachers", _program("benchmarks/teachers.py", device, rows["teachers"]), 110),
    ]
    if find_spec("spconv_triton"):
        rival = _program("benchmarks/spconv_rival.py", device, rows["spconv-triton"])
        planned.insert(5, Step("spconv-triton", rival, 60))
    planned = [replace(step, rows=rows.get(step.name)) for step in planned]
    options = {
        "student": ("--variants", ",".join(variants), "--voxels", "50000,200000,1000000", "--repeats", "3"),
        "spconv-triton": ("--variants", "spconv_triton,spconv_triton_bf16", "--voxels", "50000,200000,1000000"),
        "teachers": ("--precision", "bf16", "--batch", "4"),
    }
    if dry_run:
        planned[0] = replace(planned[0], command=(*planned[0].command[:-1], "tests/test_sparse.py"))
        options = {
            "comparisons": ("--voxels", "50", "--kinds", "loss"),
            "student": (
                "--variants",
                "naive,fp32",
                "--voxels",
                "100",
                "--repeats",
                "1",
                "--architecture",
                "MinkUNet14A",
            ),
            "objective": ("--voxels", "100", "--repeats", "1"),
            "teachers": ("--teachers", "mini-dino", "--repeats", "1"),
        }
    return [replace(step, command=(*step.command, *options.get(step.name, ()))) for step in planned]


def _program(path: str, device: str, rows: Path) -> tuple[str, ...]:
    return (path, "--device", device, "--json", str(rows))


def check(steps: Sequence[Step], device: str, out: Path) -> dict[str, Any]:
    """Run steps one after the other; write the results after each, so that none is lost."""
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "device": describe(device),
        "versions": versions(),
        "steps": {},
    }
    end = time.monotonic() + TOTAL_SECONDS
    for step in steps:
        left = min(step.seconds, end - time.monotonic())
        result = run(replace(step, seconds=left)) if left > 1 else {"outcome": "no time left", "seconds": 0.0}
        report["steps"][step.name] = result
        print(f"{step.name:<12} {result['outcome']:<14} {result['seconds']:6.1f} s", flush=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
    return report


def run(step: Step) -> dict[str, Any]:
    """Run one step; return how it ended, what it printed last, and its rows, as far as it came."""
    paths = [str(ROOT / folder) for folder in ("src", "tests", "benchmarks", "scripts")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *step.command],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that what it starts ends with it
    )
    try:
        output, _ = process.communicate(timeout=step.seconds)
        outcome = "done" if process.returncode == 0 else f"exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        outcome = "out of time"
    return {
        "outcome": outcome,
        "seconds": round(time.monotonic() - start, 1),
        "command": " ".join(["python", *step.command]),
        "output": output.splitlines()[-60:],
        "rows": read_rows(step.rows),
    }


def read_rows(path: Path | None) -> list[dict[str, Any]]:
    """Read a list, or one value a line; an unfinished last line is left out."""
    if path is None or not path.is_file():
        return []
    text = path.read_text()
    if text.startswith("["):
        rows: list[dict[str, Any]] = json.loads(text)
        return rows
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def describe(device: str) -> str:
    """Name a device, with its compute capability and memory."""
    if not device.startswith("cuda"):
        return device
    found = torch.cuda.get_device_properties(device)
    return f"{found.name}, compute capability {found.major}.{found.minor}, {found.total_memory / 2**30:.0f} GiB"


def versions() -> dict[str, str]:
    """Versions of Python, CUDA and the packages that matter."""
    known = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in PACKAGES:
        try:
            known[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            known[name] = "not installed"
    return known


def section(report: dict[str, Any]) -> list[str]:
    """The results as tables."""
    known = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [f"Measured on {report['date']}, {report['device']}; {known}.", ""]
    lines += ["| step | outcome | seconds |", "|---|---|---|"]
    lines += [f"| {name} | {step['outcome']} | {step['seconds']:.0f} |" for name, step in report["steps"].items()]
    for name, step in report["steps"].items():
        if step.get("rows"):
            lines += ["", f"### {name.capitalize()}", "", f"`{step['command'].partition(' --json')[0]}`", ""]
            lines += comparisons(step["rows"]) if name == "comparisons" else table(step["rows"])
    return lines


def comparisons(rows: list[dict[str, Any]]) -> list[str]:
    """Largest relative errors, a line for each thing that was compared and a column for each precision."""
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    lines = [f"| what | {' | '.join(precisions)} |", "|---|" + "---|" * len(precisions)]
    for kind, name in dict.fromkeys((row["kind"], row["name"]) for row in rows):
        found = {row["precision"]: row for row in rows if (row["kind"], row["name"]) == (kind, name)}
        cells = [_error(found[precision]) if precision in found else "" for precision in precisions]
        lines.append(f"| {kind}: {name} | {' | '.join(cells)} |")
    return lines


def _error(row: dict[str, Any]) -> str:
    return f"{row['error']:.1e}" if row["error"] is not None else str(row["failure"]).replace("|", "/")


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows of a benchmark as they are, and how many times as fast as the first variant of the same work."""
    is_compared = "variant" in rows[0]
    titles = [*rows[0], *(["times as fast"] if is_compared else [])]
    lines = [f"| {' | '.join(titles).replace('_', ' ')} |", "|---" * len(titles) + "|"]
    for row in rows:
        cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()]
        if is_compared:
            first = next(one for one in rows if all(one.get(key) == row.get(key) for key in ("voxels", "what")))
            cells.append(f"{first['seconds'] / row['seconds']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
