"""What a store takes up on disk by codec, what that costs in cosine, and how fast it is written and read.

The paper's three teachers stand in as features of their widths whose spectrum is natural: the variance along the i-th
principal direction falls as i to a power, around a mean that holds a part of the squared length. Power and part are
measured on the lifted features of a small teacher of the same kind where a ready store is given; spectra that fall more
slowly are shown beside them.

Three official layouts are compared with, all of five files a scene and teacher, each with rows in 16 bits and a mask
over all points, as `torch.save` writes them, beside the cloud: `five whole`, each with all visible points, as the
released code writes them in scenes of up to 300,000; `five parts`, each with 20,000 random ones; and `one whole`.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from common import HEADS, provenance, write_section
from cuao3d.codecs import Basis, Codec, Coded
from cuao3d.fusion import Samples, Visibility
from cuao3d.scene import Scene
from cuao3d.store import Store, TeacherCard

LAYOUTS = {"five whole": (5, None), "five parts": (5, 20_000), "one whole": (1, None)}
"""Files of a scene and teacher, and points in each."""

KIND_OF = {"lseg": "mini-lseg", "dinov2": "mini-dino", "stable_diffusion": "mini-diffusion"}
"""The small teacher that is of the kind of a large one."""

CHUNK = 2048
"""Rows that are made at a time."""

NUM_FIT = 8 * CHUNK
"""Rows that a basis is fitted to; the error is measured on others."""


@dataclass(frozen=True)
class Spectrum:
    """How a teacher's features vary."""

    power: float
    """The variance along the i-th direction is i to minus this."""
    of_mean: float
    """Share of the squared length that their mean has."""


SPECTRA = {"steep": Spectrum(2.0, 0.2), "middle": Spectrum(1.5, 0.2), "flat": Spectrum(1.0, 0.2)}
"""Spectra that are shown beside those that are measured."""


@dataclass(frozen=True)
class Size:
    """A scene of the three teachers on disk."""

    codec: str
    bytes_a_sample: float
    """All files of the scene."""
    of: dict[str, float]
    """Official layouts: how many times as large they are."""
    write: float
    """Samples written a second, features in float32 at hand."""
    read: float
    """Samples read and decoded a second, all of them."""
    rows: float
    """Milliseconds to read 20,000 random rows of the widest teacher."""
    errors: dict[str, float]
    """Mean cosine error by teacher."""


@dataclass(frozen=True)
class Point:
    """A point of a curve: directions of the basis against the error."""

    spectrum: str
    teacher: str
    channels: int
    codec: str
    cosine_error: float


def main(
    samples: int = 60_000,
    codecs: tuple[str, ...] = ("fp16", "int8", "pca:256", "pca:256+int8"),
    ranks: tuple[int, ...] = (16, 32, 64, 96, 128, 192, 256, 384, 512),
    store: Path | None = None,
    widths: tuple[int, int, int] = (512, 1024, 3200),
    repeats: int = 3,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    readme: Path | None = None,
) -> None:
    """Measure sizes, errors and speeds.

    Args:
        samples: Seen samples of the scene.
        codecs: Codecs to compare.
        ranks: Directions of the curve.
        store: A store with features of mini-lseg, mini-dino and mini-diffusion: its spectra are used, and its own
            curves shown.
        widths: Channels of the three teachers.
        repeats: Times that each is read and written.
        json_file: Where to write the figures.
        readme: Page to write the tables into, with machine and date.
    """
    teachers = dict(zip(HEADS, widths, strict=True))
    own = {} if store is None else {name: _measured(Store.open(store), kind) for name, kind in KIND_OF.items()}
    curves = [] if store is None else list(_curves_of_store(Store.open(store), ranks))
    kinds = {"measured": own} if own else {}
    kinds |= {name: dict.fromkeys(teachers, spectrum) for name, spectrum in SPECTRA.items()}
    first, bases = next(iter(kinds)), dict[str, Basis]()
    for kind, spectra in kinds.items():
        for teacher, width in teachers.items():
            widest = min(max(*ranks, *(Codec.parse(codec).rank or 0 for codec in codecs)), width - 1)
            basis = Basis.fit(_features(spectra[teacher], width, NUM_FIT, seed=1), widest)
            rows = torch.cat(list(_features(spectra[teacher], width, CHUNK, seed=2)))
            curves += _curve(kind, teacher, rows, basis, ranks)
            if kind == first:
                bases[teacher] = basis
        print(f"curves of {kind}", flush=True)
    sizes = list(_sizes(samples, codecs, kinds[first], teachers, bases, repeats))
    for size in sizes:
        print(size, flush=True)
    content = {
        "samples": samples,
        "spectra": {kind: {name: asdict(one) for name, one in spectra.items()} for kind, spectra in kinds.items()},
        "sizes": [asdict(size) for size in sizes],
        "curves": [asdict(point) for point in curves],
    }
    if json_file:
        json_file.write_text(json.dumps(content, indent=1) + "\n")
    lines = _section(sizes, curves, kinds, samples, repeats)
    print("\n".join(lines))
    if readme:
        write_section(readme, "store", lines)


def _features(spectrum: Spectrum, width: int, count: int, seed: int) -> Iterator[Tensor]:
    """Yield features whose principal directions are those of a cosine transform, with random signs."""
    from scipy.fft import idct

    signs = torch.randn(width, generator=torch.Generator().manual_seed(0)).sign()
    deviation = torch.arange(1, width + 1).double().pow(-spectrum.power / 2)
    deviation = (deviation / deviation.norm() * math.sqrt(1 - spectrum.of_mean)).float()
    mean = torch.randn(width, generator=torch.Generator().manual_seed(3))
    mean = mean / mean.norm() * math.sqrt(spectrum.of_mean)
    random = torch.Generator().manual_seed(seed)
    for start in range(0, count, CHUNK):
        codes = torch.randn(min(CHUNK, count - start), width, generator=random) * deviation
        yield torch.from_numpy(idct(codes.numpy(), norm="ortho", axis=1)) * signs + mean


def _measured(store: Store, teacher: str, *, low: int = 4, high: int = 64) -> Spectrum:
    """Measure the spectrum of a teacher's lifted features: the power by a line through logarithms."""
    rows = torch.cat(list(_rows(store, teacher))).double()
    rows /= rows.norm(dim=1, keepdim=True).clamp(min=1e-9)
    mean = rows.mean(dim=0)
    variances = torch.linalg.eigvalsh((rows - mean).T @ (rows - mean) / len(rows)).flip(0)[low:high]
    places = torch.arange(low + 1, low + 1 + len(variances)).double().log()
    line = torch.stack([places, torch.ones_like(places)], dim=1)
    slope = torch.linalg.lstsq(line, variances.clamp(min=1e-15).log()[:, None]).solution[0, 0]
    return Spectrum(round(-float(slope), 2), round(float(mean.square().sum()), 3))


def _rows(store: Store, teacher: str, split: str = "train", count: int = 8) -> Iterator[Tensor]:
    """Yield some rows of a teacher from some scenes."""
    names = store.names(split) or store.names()  # type: ignore[arg-type]
    for name in names[:: max(1, len(names) // count)][:count]:
        seen = len(store[name].seen_samples)
        yield store[name].rows(teacher, torch.arange(0, seen, max(1, seen // CHUNK))).float()


def _curves_of_store(store: Store, ranks: tuple[int, ...]) -> Iterator[Point]:
    """Yield the curves of the small teachers themselves: fitted on training scenes, measured on those of the tests."""
    for teacher in KIND_OF.values():
        width = store.teachers[teacher].num_channels
        basis = Basis.fit(_rows(store, teacher), min(max(ranks), width - 1))
        yield from _curve("the store's", teacher, torch.cat(list(_rows(store, teacher, "test"))), basis, ranks)


def _curve(kind: str, teacher: str, rows: Tensor, basis: Basis, ranks: tuple[int, ...]) -> Iterator[Point]:
    for rank in (one for one in ranks if one <= len(basis.vectors)):
        small = Basis(basis.vectors[:rank].contiguous(), basis.mean)
        codec = Codec(rank, True)
        error = Coded.of(rows, codec, small).cosine_error(rows)
        yield Point(kind, teacher, rows.shape[1], str(codec), error or 0.0)


def _sizes(
    samples: int,
    codecs: tuple[str, ...],
    spectra: dict[str, Spectrum],
    teachers: dict[str, int],
    bases: dict[str, Basis],
    repeats: int,
) -> Iterator[Size]:
    """Write a scene under each codec, read it, and compare."""
    features = {
        name: torch.cat(list(_features(spectra[name], width, samples, seed=4))) for name, width in teachers.items()
    }
    points = torch.rand(samples * 5 // 4, 3, generator=torch.Generator().manual_seed(0))  # a fifth is never seen
    scene = Scene("scene", points, (), colors=torch.zeros_like(points), labels=torch.zeros(len(points)).long())
    order = torch.arange(len(points))
    visibility = Visibility((), (order < samples).long())
    official = {name: _official(*how, samples, len(points), sum(teachers.values())) for name, how in LAYOUTS.items()}
    for text in codecs:
        with tempfile.TemporaryDirectory() as folder:
            made = _begin(Path(folder), Codec.parse(text), teachers, bases)
            add = partial(made.add_scene, scene, Samples(order, order), visibility, features)
            yield _measure(text, made, features, official, add, repeats)


def _begin(folder: Path, codec: Codec, teachers: dict[str, int], bases: dict[str, Basis]) -> Store:
    """Begin a store with its bases."""
    cards = {name: TeacherCard(width) for name, width in teachers.items()}
    made = Store.create(folder, teachers=cards, codec=codec)
    for name, basis in bases.items():
        if (rank := codec.rank_of(teachers[name])) is not None:
            made.keep_basis(name, Basis(basis.vectors[:rank].contiguous(), basis.mean))
    return made


def _measure(
    codec: str,
    store: Store,
    features: dict[str, Tensor],
    official: dict[str, int],
    add: Callable[[], None],
    repeats: int,
) -> Size:
    """Write a scene, read it, and take its measure."""
    samples, widest = len(next(iter(features.values()))), max(features, key=lambda name: features[name].shape[1])
    index = torch.randperm(samples, generator=torch.Generator().manual_seed(0))[:20_000]
    wrote = median(_seconds(add) for _ in range(repeats))
    read = median(_seconds(lambda: _read_all(store)) for _ in range(repeats))
    rows = median(_seconds(lambda: store["scene"].rows(widest, index)) for _ in range(repeats))
    size = sum(path.stat().st_size for path in (store.path / "scenes").rglob("*") if path.is_file())
    some, stored = torch.arange(min(CHUNK, samples)), store["scene"]
    errors = {name: stored.coded(name).cosine_error(exact[some], some) for name, exact in features.items()}
    return Size(
        codec,
        size / samples,
        {name: total / size for name, total in official.items()},
        samples / wrote,
        samples / read,
        1000 * rows,
        {name: error or 0.0 for name, error in errors.items()},
    )


def _official(num_files: int, num_points: int | None, samples: int, all_points: int, width: int) -> int:
    """Return the bytes of a scene in an official layout, from a cloud and a file of one number, which are written."""
    rows = min(num_points or samples, samples)
    with tempfile.TemporaryDirectory() as folder:
        cloud, mask = Path(folder) / "cloud.pth", Path(folder) / "mask.pt"
        positions = torch.zeros(all_points, 3)
        torch.save((positions.numpy(), positions.numpy(), positions[:, 0].numpy()), cloud)
        torch.save({"feat": torch.zeros(1, 1).half(), "mask_full": torch.zeros(all_points, dtype=torch.bool)}, mask)
        of_teachers = 3 * num_files * mask.stat().st_size
        return cloud.stat().st_size + of_teachers + num_files * 2 * width * rows


def _seconds(run: Any) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _read_all(store: Store) -> None:
    scene = store["scene"]
    for teacher in store.teachers:
        scene.features(teacher)[:].float().sum()


def _section(
    sizes: list[Size], curves: list[Point], kinds: dict[str, dict[str, Spectrum]], samples: int, repeats: int
) -> list[str]:
    first, names = next(iter(kinds)), list(HEADS)
    told = ", ".join(f"{name} {one.power:g} and {one.of_mean:g}" for name, one in kinds[first].items())
    command = f"python benchmarks/store.py --samples {samples} --repeats {repeats} --readme benchmarks/README.md"
    titles = ["codec", "bytes a sample", *(f"official, {name}" for name in LAYOUTS)]
    titles += [f"cosine error, {name}" for name in names] + ["samples written/s", "read/s", "20,000 rows, ms"]
    rows = []
    for size in sizes:
        rows.append([size.codec, f"{size.bytes_a_sample:.0f}", *(f"{size.of[name]:.1f}" for name in LAYOUTS)])
        rows[-1] += [f"{size.errors[name]:.2g}" for name in names]
        rows[-1] += [f"{size.write:,.0f}", f"{size.read:,.0f}", f"{size.rows:.0f}"]
    return [
        "## The store",
        "",
        *provenance(command),
        f"A scene of {samples:,} seen samples and the paper's three teachers, by stand-ins whose spectra are natural;",
        f"power and share of the mean, *{first}*: {told}.",
        f"Medians of {repeats}, files in the page cache. *Official* says how many times as large a layout of the",
        "official code is; see the script.",
        "",
        *_table(titles, rows),
        "",
        "Mean cosine error by directions of the basis:",
        "",
        *_curve_table(curves),
    ]


def _curve_table(curves: list[Point]) -> list[str]:
    codecs, rows = list(dict.fromkeys(point.codec for point in curves)), []
    for kind, teacher, channels in dict.fromkeys((one.spectrum, one.teacher, one.channels) for one in curves):
        found = {one.codec: one.cosine_error for one in curves if (one.spectrum, one.teacher) == (kind, teacher)}
        rows.append(
            [kind, teacher, str(channels), *(f"{found[codec]:.2g}" if codec in found else "" for codec in codecs)]
        )
    return _table(["spectrum", "teacher", "channels", *codecs], rows)


def _table(titles: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows)]


if __name__ == "__main__":
    tyro.cli(main)
