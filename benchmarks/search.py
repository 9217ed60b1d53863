"""How long a question to many scans takes, and how much of the exact answer the graph of near neighbours finds.

    python benchmarks/search.py INDEX --readme benchmarks/README.md

INDEX is one that `cuao3d index` made. Its parts are copied, each time with noise, until there are as many as asked for;
the classes of made100 are asked for. "Exact" is one product with all vectors, as `cuao3d query` does it; the library's
own exact search is shown beside.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
import tyro
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from tyro.conf import Positional

from common import provenance, write_section
from cuao3d.index import as_rows, read_about
from cuao3d.index.named_colors import NAMES
from cuao3d.index.search import CANDIDATES
from cuao3d.index.vectors import Vectors
from cuao3d.labels import label_set
from cuao3d.query import scores
from cuao3d.text import load_text_encoder

NOISE = 0.5
"""Norm of the noise that is added to a unit vector."""

TOP = 10
"""Neighbours whose recall is measured."""


def main(index: Positional[Path], parts: int = 500_000, readme: Path | None = None) -> None:
    """Measure, and print or write the table.

    Args:
        index: Folder of an index.
        parts: Parts that it is blown up to.
        readme: Page to write the table into, with machine and date.
    """
    read = [load_file(file) for file in sorted((index / "scenes").iterdir())]
    vectors, colors = (torch.cat([one[name].float() for one in read]) for name in ("vectors", "colors"))
    asked = load_text_encoder(read_about(index)["text"])([f"a {name}" for name in label_set("made100").names])
    rows = np.concatenate([as_rows(*some) for some in copies(vectors, colors, parts)]).astype(np.float16)
    questions = functional.pad(asked.float(), (0, len(NAMES))).numpy()
    found, timed, build, size = by_library(rows, questions)
    halves = torch.from_numpy(rows)
    _, timed["one product with all"] = ask(
        lambda row: scores(halves, torch.from_numpy(row)[None])[:, 0].topk(TOP).indices.numpy(), questions
    )
    inner = halves.float() @ torch.from_numpy(questions).T  # the product divides by norms; the library does not
    true = inner.topk(TOP, dim=0).indices.T.numpy()
    recall = np.mean([len(set(one) & set(other)) / TOP for one, other in zip(found, true, strict=True)])
    lines = [
        "## Search",
        "",
        *provenance(f"python benchmarks/search.py INDEX --parts {parts}"),
        f"{parts:,} parts of {rows.shape[1]} values, {len(questions)} questions; one thread for the library. Recall "
        f"of the exact {TOP} by the graph: {recall:.3f}. Building the graph took {build:.0f} s; its file has "
        f"{size:.0f} MB.",
        "",
        "| how | median, ms | slowest, ms |",
        "|---|---|---|",
        *(f"| {how} | {1e3 * median(taken):.2f} | {1e3 * max(taken):.2f} |" for how, taken in timed.items()),
    ]
    print("\n".join(lines))
    if readme:
        write_section(readme, "search", lines)


def copies(vectors: Tensor, colors: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """Return so many parts, in blocks: copies of some, with noise."""
    generator, blocks = torch.Generator().manual_seed(0), []
    for start in range(0, count, 50_000):
        index = torch.randint(len(vectors), (min(50_000, count - start),), generator=generator)
        noise = torch.randn(len(index), vectors.shape[1], generator=generator) * NOISE / vectors.shape[1] ** 0.5
        blocks.append((functional.normalize(vectors[index] + noise, dim=1), colors[index]))
    return blocks


def by_library(
    rows: np.ndarray, questions: np.ndarray
) -> tuple[list[np.ndarray], dict[str, list[float]], float, float]:
    """Ask the library; return the nearest, seconds of each way, seconds of building, and megabytes."""
    built = Vectors.empty(rows.shape[1])
    begin = time.perf_counter()
    built.add(np.arange(len(rows)), rows)
    build = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vectors.usearch"
        built.write(file)
        del built
        opened = Vectors.read(file, rows.shape[1], "")
        found, taken = ask(lambda row: opened.nearest(row, CANDIDATES)[0], questions)
        _, exactly = ask(lambda row: opened.nearest(row, CANDIDATES, exact=True)[0], questions)
        size = file.stat().st_size / 1e6
    return [one[:TOP] for one in found], {"graph of near neighbours": taken, "library, exact": exactly}, build, size


def ask(search: Callable[[np.ndarray], np.ndarray], questions: np.ndarray) -> tuple[list[np.ndarray], list[float]]:
    """Ask all questions, one after the other; return what is found and the seconds of each."""
    found, seconds = [], []
    search(questions[0])
    for row in questions:
        begin = time.perf_counter()
        found.append(search(row))
        seconds.append(time.perf_counter() - begin)
    return found, seconds


if __name__ == "__main__":
    tyro.cli(main)
