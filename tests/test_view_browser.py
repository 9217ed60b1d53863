"""The viewer in a real browser: what is asked glows on the screen where it is, and everything that can be set works.

They need Chromium and Playwright, and are skipped without; what is seen is judged by pixels.
"""

import io
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import PICTURE
from cuao3d.colors import HEAT
from cuao3d.figures.palette import palette
from cuao3d.formats.ply import read_ply
from cuao3d.view.layers import RADIUS
from cuao3d.view.server import Viewer
from cuao3d.view.session import Session
from viewed import CLASSES, make_session, picture_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
]
SIZE = {"width": 900, "height": 480}
SECONDS = 30.0
"""Time in which what is awaited happens, on a machine that does other things as well."""

NAME = "synthetic"
HARMLESS = ("THREE.Clock", "GPU stall due to ReadPixels", "GL Driver Message", "Software WebGL")
"""Warnings of the page's own libraries."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (a browser named chromium on the path)")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return make_session(tmp_path_factory.mktemp("browsed"))


@pytest.fixture(scope="module")
def viewer(session: Session) -> Iterator[Viewer]:
    pytest.importorskip("viser", reason="needs viser: pip install 'cuao3d[view]'")
    with Viewer(session, scene=NAME) as viewer:
        yield viewer


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'cuao3d[dev]'")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A browser tab that looks at a viewer."""

    def __init__(self, browser: Any, viewer: Viewer) -> None:
        self.viewer, self.wrong = viewer, []
        before = set(viewer.server.get_clients())
        self.page = browser.new_page(viewport=SIZE, accept_downloads=True)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", self._listen)
        self.page.goto(viewer.url)
        await_(lambda: set(viewer.server.get_clients()) - before)
        (self.id,) = set(viewer.server.get_clients()) - before
        self.client = viewer.server.get_clients()[self.id]
        await_(lambda: self.id in viewer._panes and viewer._panes[self.id]._pictures)
        self.pane = viewer._panes[self.id]
        self.page.get_by_label("Colour by").wait_for()
        # That this browser draws without a GPU is told over the picture.
        self.page.add_style_tag(content=".mantine-Notifications-root, .mantine-Notification-root {display: none}")

        self._settle()

    def _settle(self) -> None:
        """Wait until the browser looks from where it was told to."""
        before = None
        while not np.array_equal(before, self.client.camera.position):
            before = self.client.camera.position
            time.sleep(0.4)

    def _listen(self, message: Any) -> None:
        if message.type in ("error", "warning") and not any(one in message.text for one in HARMLESS):
            self.wrong.append(message.text)

    def ask(self, text: str) -> None:
        box = self.page.locator('//label[text()="Ask"]/ancestor::div[contains(@class, "mantine-Flex-root")][1]//input')
        box.fill(text)
        await_(lambda: self.pane._text.value == text)

    def choose(self, label: str, option: str) -> None:
        self.page.get_by_label(label, exact=True).first.click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def slide(self, label: str, value: float) -> None:
        box = self.page.locator(
            f'//label[text()="{label}"]/ancestor::div[contains(@class, "mantine-Flex-root")][1]//input[@type="text"]'
        ).last
        box.fill(str(value))
        box.press("Enter")

    def pixels(self) -> np.ndarray:
        """The canvas as RGB (H, W, 3), in [0, 255]."""
        shot = self.page.locator("canvas[data-engine]").screenshot()
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)

    def screen(self, positions: torch.Tensor) -> np.ndarray:
        """Where points (P, 3) lie on the canvas, pixels (x, y) by the camera of the browser; OpenCV axes."""
        from viser.transforms import SO3

        camera = self.client.camera
        own = (positions.double().numpy() - camera.position) @ SO3(camera.wxyz).as_matrix()
        box = self.page.locator("canvas[data-engine]").bounding_box()
        focal = box["height"] / 2 / np.tan(camera.fov / 2)
        return own[:, :2] / own[:, 2:] * focal + np.array([box["width"], box["height"]]) / 2

    def colors_at(self, positions: torch.Tensor) -> np.ndarray:
        """Colours (P, 3) of the screen where points lie."""
        pixels, (x, y) = self.pixels(), np.round(self.screen(positions)).astype(int).T
        return pixels[y.clip(0, pixels.shape[0] - 1), x.clip(0, pixels.shape[1] - 1)]

    def close(self) -> None:
        self.page.close()
        assert self.wrong == []


def await_(fact: Callable[[], Any]) -> None:
    end = time.monotonic() + SECONDS
    while not fact():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def first(browser: Any, viewer: Viewer) -> Iterator[Visit]:
    visit = Visit(browser, viewer)
    yield visit
    visit.close()


def parts(visit: Visit, session: Session) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the picture, and of the wall where it is on the screen and the picture does not hide it."""
    positions, own = session.layers(NAME).positions, picture_of(session, NAME)
    on_screen, size = visit.screen(positions), np.array(visit.pixels().shape[1::-1])
    low, high = on_screen[own].min(axis=0) - 2 * disc_of(visit, session), on_screen[own].max(axis=0)
    beside = ((on_screen < low) | (on_screen > high + 2 * disc_of(visit, session))).any(axis=1)
    inside = ((on_screen > 2) & (on_screen < size - 3)).all(axis=1)
    return positions[own], positions[~own & torch.from_numpy(beside & inside)]


def disc_of(visit: Visit, session: Session) -> float:
    """Radius of the disc of a point of the picture, pixels."""
    height = visit.screen(session.layers(NAME).positions[picture_of(session, NAME)])[:, 1]
    return float(np.ptp(height)) / 0.44 * RADIUS * session.layers(NAME).spacing * 1.5  # it is 44 cm high, and oblique


def is_warm(colors: np.ndarray) -> np.ndarray:
    return colors[:, 0] - colors[:, 2] > 40


def is_orange(colors: np.ndarray) -> np.ndarray:
    return (np.abs(colors - 255 * palette()[1].numpy()) < 20).all(axis=1)


def test_what_is_asked_glows_where_it_is(first, session):
    picture, wall = parts(first, session)
    first.ask("picture")
    await_(lambda: is_warm(first.colors_at(picture)).mean() > 0.95)
    assert is_warm(first.colors_at(wall)).mean() < 0.05
    assert "here, relevance 1.00" in first.page.content()
    pixels = first.pixels().reshape(-1, 3)
    hottest = np.abs(pixels - 255 * np.array(HEAT[-1])).max(axis=1) < 30
    row, column = np.nonzero(hottest.reshape(first.pixels().shape[:2]))
    x, y = first.screen(picture).T
    assert len(row) > 0.3 * (x.max() - x.min()) * (y.max() - y.min())
    disc = disc_of(first, session)
    for at, edges in ((column, x), (row, y)):
        assert edges.min() - disc < at.min() < at.max() < edges.max() + disc  # there, and nowhere else


def test_several_questions_have_a_legend_whose_switches_hide(first, session):
    picture, wall = parts(first, session)
    first.ask("wall; picture")
    switch = first.page.get_by_role("button", name="picture", exact=True)
    await_(lambda: is_orange(first.colors_at(picture)).mean() > 0.95)
    blue = first.colors_at(wall)
    assert (blue[:, 2] > blue[:, 0] + 40).mean() > 0.9
    switch.click()
    await_(lambda: is_orange(first.colors_at(picture)).mean() < 0.05)
    switch.click()
    await_(lambda: is_orange(first.colors_at(picture)).mean() > 0.95)


@pytest.mark.slow
def test_sliders_change_what_is_seen(first, session):
    picture, _ = parts(first, session)
    first.choose("Colour by", "truth")
    label = 255 * CLASSES.colors[CLASSES.ids.index(PICTURE)].numpy()
    await_(lambda: (np.abs(first.colors_at(picture) - label) < 12).all(axis=1).mean() > 0.95)
    first.slide("Layer strength", 0)
    own = 255 * session.layers(NAME).photograph[picture_of(session, NAME)][0].numpy()
    await_(lambda: (np.abs(first.colors_at(picture) - own) < 12).all(axis=1).mean() > 0.95)
    first.slide("Layer strength", 1)
    first.slide("Height", 0.3)
    await_(lambda: (first.colors_at(picture) > 240).all(axis=1).mean() > 0.9)  # white: there is nothing
    first.slide("Height", 1)
    await_(lambda: (np.abs(first.colors_at(picture) - label) < 12).all(axis=1).mean() > 0.95)


def test_a_click_names_the_point_and_shows_what_is_like_it(first, session):
    picture, wall = parts(first, session)
    first.choose("Colour by", "photograph")
    x, y = first.screen(picture.mean(dim=0, keepdim=True))[0]
    first.page.mouse.click(x, y)  # the canvas begins in the corner
    await_(lambda: "picture (1.00)" in first.page.content())
    await_(lambda: is_warm(first.colors_at(picture)).mean() > 0.95)
    assert is_warm(first.colors_at(wall)).mean() < 0.05
    assert first.page.get_by_label("Colour by").input_value() == "like the clicked point"


@pytest.mark.slow
def test_what_is_seen_is_exported_and_photographed(first, session, tmp_path):
    first.choose("Colour by", "truth")
    first.page.get_by_role("button", name="wall", exact=True).click()
    await_(lambda: len(first.pane._pictures[0].positions) == int(picture_of(session, NAME).sum()))
    with first.page.expect_download() as got:
        first.page.get_by_role("button", name="Export what is seen").click()
    assert got.value.suggested_filename == "synthetic.ply"
    got.value.save_as(tmp_path / "seen.ply")
    assert len(read_ply(tmp_path / "seen.ply")["x"]) == 144
    with first.page.expect_download() as got:
        first.page.get_by_role("button", name="Screenshot").click()
    got.value.save_as(tmp_path / "seen.png")
    shot = np.asarray(Image.open(tmp_path / "seen.png"))
    colors = shot.reshape(-1, 3).astype(int)
    label = 255 * CLASSES.colors[CLASSES.ids.index(PICTURE)].numpy()
    assert (np.abs(colors - label).max(axis=1) < 12).sum() > 500
    first.page.get_by_role("button", name="wall", exact=True).click()


def test_what_is_typed_is_text_and_never_markup(first):
    for text in ("<img src=x onerror=\"document.title='owned'\"> {1+1}", "\N{DOG FACE}", "x" * 10_000_000, "  "):
        first.ask(text) if len(text) < 1000 else first.pane._text.__setattr__("value", text)
    first.ask("<b id=owned>wall</b>")
    await_(lambda: "&lt;b id=owned&gt;wall" in first.page.content())
    assert first.page.locator("#owned").count() == 0
    assert first.page.title() != "owned"
    first.ask("picture")
    await_(lambda: "picture: here" in first.page.content())


@pytest.mark.slow
def test_two_browsers_have_their_own_questions_and_scenes_and_one_that_leaves_disturbs_nobody(browser, viewer, first):
    second = Visit(browser, viewer)
    first.ask("picture")
    second.choose("Scene", "half")
    second.ask("wall")
    await_(lambda: "wall: here" in second.page.content() and "picture: here" in first.page.content())
    assert len(second.pane._pictures[0].positions) < len(first.pane._pictures[0].positions)
    assert "wall: here" not in first.page.content()
    second.ask("picture; wall; sofa")  # and leaves while it is answered
    pane = second.pane
    second.close()
    await_(lambda: second.id not in viewer._panes and pane.join(5))
    first.ask("wall")
    await_(lambda: "wall: here" in first.page.content())


@pytest.mark.slow
def test_cameras_and_a_second_picture_are_drawn(first, session):
    first.page.get_by_text("Side by side").click()
    first.choose("Beside it", "truth")
    await_(lambda: len(first.pane._clouds) == 2)
    positions = session.layers(NAME).positions[picture_of(session, NAME)] + torch.from_numpy(first.pane._offset).float()
    label = 255 * CLASSES.colors[CLASSES.ids.index(PICTURE)].numpy()
    await_(lambda: (np.abs(first.colors_at(positions) - label) < 12).all(axis=1).mean() > 0.9)
    before = first.pixels()
    first.page.get_by_label("Cameras and photographs").check()
    await_(lambda: (np.abs(first.pixels() - before).max(axis=2) > 30).sum() > 100)
    first.choose("Beside it", "nothing")
    await_(lambda: len(first.pane._clouds) == 1)
