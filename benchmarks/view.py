"""How long the viewer takes to show a large scene and to answer, and whether others wait meanwhile.

    python benchmarks/view.py --readme benchmarks/README.md

A server of its own shows a store that is written here; this process connects to it as browsers do. One client opens the
scene and asks; two others, who look at a small scene, measure at the same time how long the server keeps them waiting.
How fluid a browser draws so many points depends on its graphics card, and is not measured.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import tyro
from torch.nn import functional

from common import provenance, room, write_section
from cuao3d.scene import Scene
from cuao3d.store import Store, TeacherCard
from cuao3d.text import load_text_encoder
from cuao3d.view.models import open_models
from cuao3d.view.server import Viewer
from cuao3d.view.session import Session
from cuao3d.visibility import Visibility, sample_cells

CELL = 0.02
TEXT = "minilm"
QUESTIONS = ("somewhere to sit", "a lamp; a door; a table", "a bed, not a pillow", "something to read", "a red rug")
LONGEST = 60.0
"""Seconds after which an answer does not come any more."""

SMALL = "small"
"""Scene that the others look at."""

COLUMNS = (
    *("points", "samples", "drawn", "opened, s", "sent, MB"),
    *("first question, s", "next ones, s", "sent, MB", "ping, s", "other, s"),
)

TARGETS = {"load": 3.0, "query": 0.3}
"""Seconds that are allowed, of `TARGETS_AT` points."""

TARGETS_AT = 500_000


@dataclass(frozen=True)
class Row:
    """One scene."""

    points: int
    samples: int
    drawn: int
    load: float
    """Seconds from choosing the scene until its points have come; median over servers."""
    load_mb: float
    """Megabytes that came until then."""
    first_query: float
    """Seconds of the first question, until its colours have come; median over servers."""
    query: float
    """Seconds of the following ones; median."""
    query_mb: float
    """Megabytes of an answer."""
    ping: float
    """Longest time without an answer to a ping, seconds: while the scene was opened and asked."""
    other: float
    """Longest time until another client, who looks at another scene, saw what it had changed, seconds."""


def main(
    points: tuple[int, ...] = (500_000, 5_000_000),
    samples: tuple[int, ...] = (500_000, 1_000_000),
    repeats: int = 3,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    readme: Path | None = None,
    serve: Path | None = None,
) -> None:
    """Measure the viewer on scenes of several sizes.

    Args:
        points: Points of each scene.
        samples: Samples of each, which have a feature.
        repeats: Servers that are started for each scene, one after the other.
        json_file: Where to write the rows.
        readme: Page to write the table into, with machine and date.
        serve: Only serve this store, until the input ends.
    """
    if serve:
        serve_until_told(serve)
        return
    rows = []
    for num_points, num_samples in zip(points, samples, strict=True):
        with tempfile.TemporaryDirectory(prefix="cuao3d-view-") as folder:
            store = write_store(Path(folder) / "store", num_points, num_samples)
            rows.append(measure(store, repeats))
        print(asdict(rows[-1]), flush=True)
    for line in verdicts(rows):
        print(line)
    if json_file:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if readme:
        write_section(readme, "view", section(rows, repeats))


def write_store(path: Path, num_points: int, num_samples: int) -> Store:
    """Write a store of a large and a small scene, whose features are words with noise."""
    encoder = load_text_encoder(TEXT)
    words = encoder(["a chair", "a wall", "a floor", "a lamp", "a bed", "a table", "a door", "a book"]).float()
    store = Store.create(path, cell=CELL, teachers={"words": TeacherCard(num_channels=words.shape[1], text=TEXT)})
    generator = torch.Generator().manual_seed(0)
    for name, count, cells in (("large", num_points, num_samples), (SMALL, 5_000, 5_000)):
        voxels = room(cells, CELL)[0][:, 1:]
        index = torch.arange(count) % len(voxels)
        points = (voxels[index] + torch.rand(count, 3, generator=generator)) * CELL
        chosen = sample_cells(points, CELL)
        kinds = (points[chosen.index_of_sample] / 2).floor().long().sum(dim=1) % len(words)
        features = torch.empty(len(kinds), words.shape[1], dtype=torch.float16)
        for own, kind in zip(features.split(1 << 16), kinds.split(1 << 16), strict=True):
            noise = torch.randn(own.shape, generator=generator) / own.shape[1] ** 0.5
            own.copy_(functional.normalize(words[kind] + noise, dim=1))
        scene = Scene(name, points, (), colors=torch.rand(count, 3, generator=generator))
        store.add_scene(scene, chosen, Visibility((), torch.full((len(kinds),), 3)), {"words": features})
    return store


def serve_until_told(path: Path) -> None:
    """Serve a store as `cuao3d view` does; print the address."""
    store = Store.open(path)
    with Viewer(Session(store, open_models(store)), scene=SMALL) as viewer:
        print(viewer.url, flush=True)
        sys.stdin.read()


@contextmanager
def server(store: Store) -> Iterator[str]:
    """Serve in a process of its own; the address."""
    command = [sys.executable, __file__, "--serve", str(store.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def measure(store: Store, repeats: int) -> Row:
    """Open the large scene and ask, with others beside; a server for each repeat."""
    about = store.summary("large")
    load, first, later, pings, others = [], [], [], [], []
    for _ in range(repeats):
        with server(store) as url, Client(url) as one, Client(url) as pinging, Client(url) as other:
            other.ask("a chair")
            with watch(pinging.ping, pings), watch(other.change, others):
                load.append(one.set("Scene", "large"))
                first.append(one.ask(QUESTIONS[0]))
                later += [one.ask(words) for words in QUESTIONS[1:]]
    return Row(
        about.num_points,
        about.num_samples,
        load[0].points,
        median(one.seconds for one in load),
        load[0].megabytes,
        median(one.seconds for one in first),
        median(one.seconds for one in later),
        median(one.megabytes for one in later),
        max(pings),
        max(others),
    )


@dataclass(frozen=True)
class Shown:
    """What came of a change."""

    seconds: float
    megabytes: float
    points: int


class Client:
    """Someone who looks at the viewer, without a browser: it sends and reads what a page does."""

    def __init__(self, url: str) -> None:
        import viser
        from websockets.sync.client import connect

        protocol = f"viser-v{viser.__version__}"
        self._socket = connect(url.replace("http", "ws"), subprotocols=[protocol], max_size=None, compression=None)
        self._id_of_label: dict[str, str] = {}
        self._strength = 1.0

    def __enter__(self) -> "Client":
        """Open the page, and wait for the first points."""
        camera = {"type": "ViewerCameraMessage", "wxyz": (1, 0, 0, 0), "position": (0, 0, 0), "fov": 1.0}
        camera |= {"near": 0.01, "far": 100, "look_at": (0, 0, 1), "up_direction": (0, 0, 1)}
        self._show(camera | {"image_height": 100, "image_width": 100})
        return self

    def __exit__(self, *_: object) -> None:
        """Leave."""
        self._socket.close()

    def set(self, label: str, value: Any) -> Shown:
        """Change what has a label in the pane, and wait until points or colours have come."""
        change = {"type": "GuiUpdateMessage", "uuid": self._id_of_label[label], "updates": {"value": value}}
        return self._show(change)

    def ask(self, words: str) -> Shown:
        """Ask, and wait for what is said of the answer; it comes after the colours, if these have changed."""
        change = {"type": "GuiUpdateMessage", "uuid": self._id_of_label["Ask"], "updates": {"value": words}}
        return self._show(change, words.split(";")[0] + ":")

    def ping(self) -> None:
        """Wait for the answer to a ping."""
        assert self._socket.ping().wait(LONGEST)

    def change(self) -> None:
        """Change how strong the colours are, and wait for them."""
        self._strength = 1.5 - self._strength
        self.set("Layer strength", self._strength)

    def _show(self, change: dict[str, Any], said: str = "") -> Shown:
        import msgspec

        begin, size, num_points = time.perf_counter(), 0, 0
        self._socket.send(msgspec.msgpack.encode(change))
        while True:
            raw = self._socket.recv(timeout=LONGEST)
            size += len(raw)
            messages, lengths = self._read(raw)
            for message in messages:
                changed = message.get("props", message.get("updates", {}))
                if message.get("name") == "/points 0" and "colors" in changed:
                    num_points = lengths[changed["colors"]["__binary_index"]] // 3
                if said in changed.get("content", "") if said else num_points:
                    return Shown(time.perf_counter() - begin, size / 1e6, num_points)

    def _read(self, raw: bytes) -> tuple[list[dict[str, Any]], list[int]]:
        """Read the messages of a window, and the lengths of their arrays, which are left where they lie."""
        import msgspec
        import zstandard

        size = int.from_bytes(raw[8:16], "little")
        window = msgspec.msgpack.decode(zstandard.decompress(raw[16 : 16 + size]))
        for message in window["messages"]:
            if label := message.get("props", {}).get("label"):
                self._id_of_label.setdefault(label, message.get("uuid", ""))
        return window["messages"], window["binaryBufferLengths"]


@contextmanager
def watch(run: Callable[[], None], seconds: list[float]) -> Iterator[None]:
    """Do something again and again in a thread; note how long it takes each time."""
    is_over = threading.Event()

    def repeat() -> None:
        while not is_over.wait(0.02):
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def verdicts(rows: list[Row]) -> list[str]:
    """Say of each target whether it is met."""
    return [
        f"{what} of {row.points:,} points: {getattr(row, what):.2f} s; the target of {target:g} s is "
        f"{'met' if getattr(row, what) < target else 'missed'}."
        for row in rows
        for what, target in TARGETS.items()
        if row.points == TARGETS_AT
    ]


def section(rows: list[Row], repeats: int) -> list[str]:
    """Lay the rows out for the page."""
    counts = ("points", "samples")
    said = " ".join(f"--{name} {' '.join(str(getattr(row, name)) for row in rows)}" for name in counts)
    command = f"python benchmarks/view.py {said} --repeats {repeats} --readme benchmarks/README.md"
    lines = ["## The viewer", "", *provenance(command)]
    lines += [
        f"{repeats} servers for each scene, {len(QUESTIONS)} questions to each; text encoder {TEXT}. Times are those",
        "of a client on the same machine, from sending a change until its points or colours have come; the first",
        "question reads the features. Meanwhile one other client pings, and one changes the colours of a small scene:",
        "the longest that each had to wait. Drawing in a browser is not measured: it depends on the graphics card.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for row in rows:
        counts = (f"{count:,}" for count in (row.points, row.samples, row.drawn))
        opened = (f"{row.load:.2f}", f"{row.load_mb:.1f}")
        asked = (f"{row.first_query:.2f}", f"{row.query:.2f}", f"{row.query_mb:.1f}")
        lines.append(f"| {' | '.join([*counts, *opened, *asked, f'{row.ping:.2f}', f'{row.other:.2f}'])} |")
    return [*lines, "", *verdicts(rows)]


if __name__ == "__main__":
    tyro.cli(main)
