"""Time and memory of asking features with words, against one pass over the memory that holds them."""

import cuao3d  # noqa: F401 - before PyTorch, which looks at what it asks for when it is imported

# isort: split
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest import mock

import torch
import tyro
from torch.nn import functional

from common import keep_memory, peak, peak_of, provenance, take_turns, write_section
from cuao3d import half_rows
from cuao3d.query import Questions, ask, scores

Variant = Literal["pass", "widened", "plain", "one", "product", "hundred", "ask", "ask hundred"]
VARIANTS: dict[Variant, str] = {
    "pass": "every byte of the rows is read once and added up",
    "widened": "every number is read once and widened to single precision, in blocks that stay in the cache",
    "plain": "`rows.float()`, one product, one norm: all rows at once; one text",
    "one": "`query.scores` of one text, by the loop that Numba compiles",
    "product": "the same in PyTorch alone, where Numba is not installed",
    "hundred": "`query.scores` of a hundred texts",
    "ask": "`query.ask`: one question with its contrast words, verdict and answer included",
    "ask hundred": "`query.ask`: a hundred questions",
}
TARGETS: dict[tuple[Variant, Variant], float] = {("one", "pass"): 1.5, ("hundred", "one"): 3.0}
"""How many times the second the first may take."""

NUM_CONTRAST = 6
"""Contrast words of a question."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    variant: Variant
    seconds: float
    """Median of the repeats."""
    times_pass: float
    """In units of one pass over memory."""
    peak_extra_mb: float
    """Memory on top of rows and texts, measured in a process of its own."""


def main(
    rows: int = 1_000_000,
    channels: int = 512,
    repeats: int = 7,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    readme: Path | None = None,
    memory_of: str | None = None,
    device: str = "cpu",
) -> None:
    """Measure text queries over rows of half precision.

    Args:
        rows: Rows of features.
        channels: Numbers in a row.
        repeats: How often each is timed; the variants take turns.
        json_file: Where to write the rows.
        readme: Page to write the table into, with machine and date.
        memory_of: Only run this variant once and print its peak memory, megabytes.
        device: Where it runs.
    """
    runs = prepare(rows, channels, device)
    if memory_of:
        print(peak_of(runs[memory_of]))
        return
    keep_memory()
    seconds = take_turns(runs, repeats)
    found: list[Row] = []
    for variant, run in runs.items():
        arguments = ["--rows", str(rows), "--channels", str(channels), "--memory-of", variant]
        extra = peak(run, device, arguments)
        found.append(Row(variant, seconds[variant], seconds[variant] / seconds["pass"], extra))
        print(f"{variant:<11}  {seconds[variant]:7.3f} s  {found[-1].times_pass:6.2f} passes  {extra:6.0f} MB")
    for line in verdicts(seconds):
        print(line)
    if json_file:
        json_file.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")
    if readme:
        write_section(readme, "query", section(found, seconds, rows, channels, repeats))


def prepare(rows: int, channels: int, device: str) -> dict[Any, Callable[[], Any]]:
    """Make rows and texts; return what is timed, by its name."""
    half_rows.load()
    generator = torch.Generator().manual_seed(0)
    features = torch.empty(rows, channels, dtype=torch.float16)
    for part in features.split(1 << 16):
        part.copy_(torch.randn(part.shape, generator=generator))
    features = features.to(device)
    texts = functional.normalize(torch.randn(100, channels, generator=generator), dim=1)
    contrast = functional.normalize(torch.randn(NUM_CONTRAST, channels, generator=generator), dim=1)
    raw = features.view(torch.int64)
    buffer = torch.empty(512, channels, device=device)

    def widen() -> None:
        for part in features.split(len(buffer)):
            buffer[: len(part)].copy_(part)

    def plain() -> torch.Tensor:
        wide = features.float()
        return wide @ texts[:1].T.to(device) / torch.linalg.vector_norm(wide, dim=1, keepdim=True)

    def product() -> torch.Tensor:
        with mock.patch.object(half_rows, "fits", return_value=False):
            return scores(features, texts[:1])

    def questions(count: int) -> Questions:
        words = tuple(f"question {index}" for index in range(count))
        applies = torch.ones(count, NUM_CONTRAST, dtype=torch.bool)
        return Questions(words, texts[:count], contrast, applies, (None,) * count, (True,) * count)

    return {
        "pass": raw.sum,
        "widened": widen,
        "plain": plain,
        "one": lambda: scores(features, texts[:1]),
        "product": product,
        "hundred": lambda: scores(features, texts),
        "ask": lambda: ask(features, questions(1)),
        "ask hundred": lambda: ask(features, questions(100)),
    }


def verdicts(seconds: dict[Any, float]) -> list[str]:
    """Say of each target whether it is met."""
    lines = []
    for (variant, base), target in TARGETS.items():
        ratio = seconds[variant] / seconds[base]
        met = "met" if ratio <= target else "missed"
        lines.append(f"`{variant}` takes {ratio:.2f} times `{base}`; the target of {target:g} is {met}.")
    return lines


def section(found: list[Row], seconds: dict[Any, float], rows: int, channels: int, repeats: int) -> list[str]:
    """Lay the rows out for the page."""
    command = f"python benchmarks/query.py --rows {rows} --channels {channels} --repeats {repeats}"
    lines = ["## Asking with words", "", *provenance(f"{command} --readme benchmarks/README.md")]
    lines += [f"{rows:,} rows of {channels} numbers in half precision; medians of {repeats}, variants taking turns."]
    lines += ["", *(f"- `{name}`: {what}." for name, what in VARIANTS.items()), ""]
    lines += ["| variant | seconds | passes over memory | extra MB |", "|---|---|---|---|"]
    lines += [
        f"| {row.variant} | {row.seconds:.3f} | {row.times_pass:.2f} | {row.peak_extra_mb:,.0f} |" for row in found
    ]
    return [*lines, "", *verdicts(seconds)]


if __name__ == "__main__":
    tyro.cli(main)
