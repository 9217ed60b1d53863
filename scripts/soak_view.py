"""Soak test of the viewer: minutes of random clicking and typing in a real browser; does it live, does it grow?

A store of a few made rooms is looked at by one browser with several tabs. At each step a tab asks something (sensible,
empty, long, in other scripts, HTML), changes the scene, a layer, a slider or a switch, clicks into the picture,
exports, or leaves and comes back. Now and then a message of 10 MB, of garbage, or with a path for a scene's name is
sent past the page. The exit code is 1 if a tab reports an error, if the server says that something is a defect, or if
memory grew by more than 5 % (and 20 MB) after the first quarter. The window is small and a scene has few points, so
that a browser without a graphics card keeps up on a machine that does other things as well. A line a minute says how
far it is.

    python scripts/soak_view.py                                     ten minutes, on rooms that it makes
    python scripts/soak_view.py --minutes 1 --store STORE           shorter, on a store that is there
"""

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cuao3d.pipeline import fuse
from cuao3d.store import Store
from cuao3d.teachers import load_teacher
from cuao3d.view.models import open_models
from cuao3d.view.server import Viewer
from cuao3d.view.session import Session
from cuao3d.worlds.rooms import Rooms
from soak import measure

FLAGS = [
    *("--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
]
WORDS = (
    *("a chair", "somewhere to sit", "a bed, not a pillow", "a lamp; a door; a table", "", "   ", ";;;", ", not ,"),
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "{1+1} ${x} **bold** [a](javascript:alert(1))"),
    *(
        "\N{DOG FACE}\N{PARTY POPPER}",
        "椅子",
        "стул",
        "كرسي",
        "x" * 299,
        "x" * 5000,
        "a\x00b\x1b[31m",
        "'; DROP TABLE --",
    ),
)
PATHS = ("../../etc/passwd", "..", "/", "a\x00b", "<b>", "C:\\x", "x" * 10_000)
GROWTH, LEAST_GROWTH = 0.05, 20
"""Part by which memory may grow, and megabytes that are noise."""

NUM_TABS = 2

SIZE = {"width": 720, "height": 360}
"""Of the window, pixels: all that a processor has to draw, again and again."""

MOST_POINTS = 10_000
"""Points of a scene that are drawn."""

SECONDS_TO_OPEN, SECONDS_TO_USE = 240.0, 30.0
"""Time that a tab has to open, and an entry to be there before it counts as gone."""


class Tab:
    """A browser tab that is used at random."""

    def __init__(self, browser: Any, viewer: Viewer, wrong: list[str]) -> None:
        self.viewer, before = viewer, set(viewer._panes)
        begin = time.monotonic()
        self.page = browser.new_page(viewport=SIZE)
        self.page.set_default_timeout(1000 * SECONDS_TO_OPEN)
        self.page.on("crash", lambda _: wrong.append("page: crashed"))
        self.page.on("pageerror", lambda error: wrong.append(f"page: {error}"))
        self.page.on("console", lambda one: wrong.append(f"console: {one.text}") if one.type == "error" else None)
        self.page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.goto(viewer.url, wait_until="commit")
        while not (new := set(viewer._panes) - before):
            assert time.monotonic() < begin + SECONDS_TO_OPEN, "the pane was not built in time"
            self.page.wait_for_timeout(100)  # it also lets what the page reports be heard
        (self.id,) = new
        self.page.get_by_label("Colour by").wait_for()
        self.page.set_default_timeout(1000 * SECONDS_TO_USE)
        self.seconds = time.monotonic() - begin

    @property
    def pane(self) -> Any:
        """Its pane on the server."""
        return self.viewer._panes[self.id]

    def ask(self) -> None:
        """Type a question."""
        box = '//label[text()="Ask"]/ancestor::div[contains(@class, "mantine-Flex-root")][1]//input'
        self.page.locator(box).fill(random.choice(WORDS))

    def choose(self) -> None:
        """Choose a scene, a layer, or a question that was asked before."""
        label = random.choice(("Scene", "Colour by", "Asked before"))
        self.page.get_by_label(label, exact=True).first.click()
        options = self.page.get_by_role("option").all()
        if options:
            random.choice(options).click()

    def slide(self) -> None:
        """Move a slider."""
        label = random.choice(("Threshold", "Layer strength", "Height", "Point size"))
        row = f'//label[text()="{label}"]/ancestor::div[contains(@class, "mantine-Flex-root")][1]//input[@type="text"]'
        self.page.locator(row).last.fill(str(round(random.random(), 2)))

    def click(self) -> None:
        """Click into the picture."""
        self.page.mouse.click(*self.somewhere())

    def somewhere(self) -> tuple[float, float]:
        """Return a place in the picture, beside the pane, pixels."""
        panel = self.page.get_by_label("Colour by").bounding_box()
        return random.uniform(20, max(panel["x"] - 150, 60)), random.uniform(20, SIZE["height"] - 20)

    def toggle(self) -> None:
        """Hide or show an entry of the legend."""
        buttons = self.pane._legend
        if buttons:
            self.page.get_by_role("button", name=random.choice(buttons).label, exact=True).first.click()

    def cameras(self) -> None:
        """Draw the cameras or not."""
        self.page.get_by_label("Cameras and photographs").click()

    def export(self) -> None:
        """Export what is seen."""
        with self.page.expect_download() as got:
            self.page.get_by_role("button", name="Export what is seen").click()
        Path(got.value.path()).unlink()

    def turn(self) -> None:
        """Turn the scene."""
        self.page.mouse.move(*self.somewhere())
        self.page.mouse.down()
        self.page.mouse.move(*self.somewhere(), steps=3)
        self.page.mouse.up()


def send_past_the_page(viewer: Viewer) -> None:
    """Connect as a page does, and send what no page would."""
    import msgspec
    import viser
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect

    def update(handle: Any, value: Any) -> bytes:
        return msgspec.msgpack.encode(
            {"type": "GuiUpdateMessage", "uuid": handle._impl.uuid, "updates": {"value": value}}
        )

    camera = {"type": "ViewerCameraMessage", "wxyz": (1, 0, 0, 0), "position": (0, 0, 0), "fov": 1.0, "near": 0.01}
    camera |= {"far": 100, "look_at": (0, 0, 1), "up_direction": (0, 0, 1), "image_height": 100, "image_width": 100}
    before, address = set(viewer._panes), viewer.url.replace("http", "ws")
    with (
        contextlib.suppress(OSError, WebSocketException, TimeoutError),
        connect(address, subprotocols=[f"viser-v{viser.__version__}"], max_size=None) as one,
    ):
        one.send(msgspec.msgpack.encode(camera))
        end = time.monotonic() + 20
        while not (new := set(viewer._panes) - before) and time.monotonic() < end:
            time.sleep(0.05)
        for pane in (viewer._panes[number] for number in new):
            for handle in (pane._scene, pane._layer, pane._beside, pane._described, pane._past):
                one.send(update(handle, random.choice(PATHS)))
            one.send(update(pane._text, "x" * 10_000_000))
            for value in (float("nan"), -1e30, 1e30):
                one.send(update(random.choice((pane._threshold, pane._opacity, pane._height, pane._size)), value))
            one.send(msgspec.msgpack.encode({"type": "ShareUrlRequest"}))
        time.sleep(0.5)
        one.send(b"\xff" * 1000)
        time.sleep(0.2)


def soak(store: Store, minutes: float, seed: int) -> int:
    """Use the viewer at random; print what was done and what grew; return the exit code."""
    from playwright.sync_api import Error, sync_playwright

    random.seed(seed)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    rows: list[dict[str, int]] = []
    told = io.StringIO()
    session = Session(store, open_models(store), most_points=MOST_POINTS)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with contextlib.redirect_stderr(told), Viewer(session, scene=store.names()[0]) as viewer, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=FLAGS)
        tabs = [Tab(browser, viewer, wrong) for _ in range(NUM_TABS)]
        opened = [round(tab.seconds, 1) for tab in tabs]
        begin = time.monotonic()
        while (passed := time.monotonic() - begin) < 60 * minutes:
            index = random.randrange(len(tabs))
            tab = tabs[index]
            uses: list[Callable[[], None]] = [tab.ask, tab.ask, tab.choose, tab.slide, tab.click, tab.toggle, tab.turn]
            uses += [tab.cameras, tab.export]
            use = random.choice(uses)
            try:
                if random.random() < 0.03:
                    tab.page.close()
                    tabs[index] = Tab(browser, viewer, wrong)
                    counts["left and came back"] += 1
                elif random.random() < 0.03:
                    send_past_the_page(viewer)
                    counts["hostile visits"] += 1
                else:
                    use()
                    counts[use.__name__] += 1
            except Error as error:  # what was to be used has just gone, as a switch of another layer
                counts[f"gone: {use.__name__}"] += 1
                tab.page.keyboard.press("Escape")
                if "closed" in str(error):
                    raise
            if sum(counts.values()) % 20 == 0:
                rows.append({"seconds": round(passed), **measure()})
                if len(rows) == 1 or rows[-1]["seconds"] // 60 > rows[-2]["seconds"] // 60:
                    print(json.dumps({"steps": sum(counts.values()), **rows[-1], "wrong": len(wrong)}), flush=True)
        for tab in tabs:
            tab.page.close()
        browser.close()
        assert viewer.server.get_port(), "the server has died"
    warm, last = rows[len(rows) // 4], rows[-1]
    grew = last["own"] - warm["own"] > max(LEAST_GROWTH, GROWTH * warm["own"])
    wrong += [line for line in told.getvalue().splitlines() if "Traceback" in line or "Error" in line]
    print(json.dumps({"seconds to open": opened, "steps": sum(counts.values()), **counts}))
    print(json.dumps({"after a quarter": warm, "at the end": last, "grew": grew, "wrong": wrong[:20]}))
    return int(grew or bool(wrong))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--store", type=Path, help="a store; unless given, one of three made rooms")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cuao3d-soak-") as folder:
        if arguments.store:
            return soak(Store.open(arguments.store), arguments.minutes, arguments.seed)
        with contextlib.redirect_stderr(io.StringIO()):
            store = fuse(Rooms(range(3), num_views=4), [load_teacher("mini-lseg")], Path(folder) / "store", cell=0.05)
        return soak(store, arguments.minutes, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
