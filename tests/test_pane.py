"""The 3D pane of a page: what is packed for it, and what a browser without a network makes of it."""

import base64
import gzip
import hashlib
import io
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial import cKDTree

from conftest import PICTURE_COLOR, WALL_COLOR
from cuao3d import pane
from cuao3d.colors import HEAT, class_colors, heat_colors
from cuao3d.labels import label_set
from cuao3d.pictures import ASLANT, Dollhouse, View
from cuao3d.report import Cloud, Gallery, Heat, write_report
from cuao3d.scene import Scene
from cuao3d.worlds.rooms import make_room

SCANNET = label_set("scannet20")
EVIL = "<img src=x onerror='window.hacked = 1'></script><script>window.hacked = 1</script><!-- & \u2028"

ARGUMENTS = [
    *("--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
]
"""Nothing is fetched by the browser itself, and no graphics card is needed."""


def unpacked(text: str) -> np.ndarray:
    return np.frombuffer(gzip.decompress(base64.b64decode(text)), np.uint8)


def positions_of(packed: dict[str, Any]) -> np.ndarray:
    """What `pane.js` makes of packed positions, in a slow loop."""
    rows = unpacked(packed["positions"]).reshape(3, 2, -1)
    positions = np.zeros((packed["points"], 3))
    for axis in range(3):
        step = 0
        for point in range(packed["points"]):
            step = (step + int(rows[axis, 0, point]) + 256 * int(rows[axis, 1, point])) % 65536
            positions[point, axis] = packed["low"][axis] + step / packed["levels"] * packed["size"]
    return positions


def a_view(positions: torch.Tensor, *, every: int = 1, radius: float = 0.02) -> View:
    light = np.ones(len(positions), np.float32)
    return View(every, positions.numpy(), radius, 30.0, 38.0, light, [])


def test_positions_and_colors_come_back_in_one_order():
    points, colors = torch.rand(400, 3) * 7 - 3, torch.rand(400, 3)
    values, seen = torch.rand(400), torch.rand(400) > 0.2
    layers = [pane.photograph(colors), pane.heat("a", "b", values, colors, seen)]
    layers.append(pane.classes("c", "d", torch.arange(400) % 20, SCANNET))
    said = json.loads(pane.as_json([pane.Exhibit("room", a_view(points), layers)]))
    (packed,) = said["exhibits"]
    found = positions_of(packed)
    distance, point = (torch.cdist(torch.from_numpy(found), points.double())).min(dim=1)
    assert sorted(point.tolist()) == list(range(400)), "each point once"
    assert distance.max() < 0.02 / pane.FINE, "within half a step along each axis"

    def planes(text: str) -> np.ndarray:
        red, green, blue = unpacked(text).reshape(3, 400)
        return np.stack([red, green + red, blue + red], axis=1)

    of_photograph, of_heat, of_classes = packed["layers"]
    assert np.array_equal(planes(of_photograph["colors"]), (colors[point] * 255).round().byte().numpy())
    expected = class_colors(torch.arange(400) % 20, SCANNET)[point]
    table = np.array(of_classes["table"])[unpacked(of_classes["index"])]
    assert np.array_equal(table, (expected * 255).round().byte().numpy())
    glow = np.array(said["glow"])[unpacked(of_heat["glow"])] / 255
    cold = planes(packed["cold"][of_heat["cold"]]) / 255
    mixed = cold + (glow[:, :3] - cold) * glow[:, 3:]
    assert np.abs(mixed - heat_colors(values, colors, seen)[point].numpy()).max() < 0.02


def test_heat_maps_of_one_scene_share_the_picture_below():
    points, colors = torch.rand(50, 3), torch.rand(50, 3)
    layers = [pane.heat(name, "asked", torch.rand(50), colors, None) for name in "ab"]
    layers.append(pane.heat("c", "trust", torch.rand(50), colors, torch.arange(50) > 9))
    (packed,) = json.loads(pane.as_json([pane.Exhibit("room", a_view(points), layers)]))["exhibits"]
    assert [layer["cold"] for layer in packed["layers"]] == [0, 0, 1]
    assert len(packed["cold"]) == 2


def test_large_clouds_are_thinned_together_and_say_so(monkeypatch):
    monkeypatch.setattr(pane, "MAX_POINTS", 600)
    exhibits = []
    for name, num, every in (("small", 300, 1), ("large", 1500, 2)):
        colors = torch.linspace(0, 1, num * every)[:, None].expand(-1, 3)
        positions = torch.linspace(0, 5, num)[:, None] * torch.tensor([1.0, 0.5, 0.25])
        exhibits.append(pane.Exhibit(name, a_view(positions, every=every), [pane.photograph(colors)]))
    small, large = json.loads(pane.as_json(exhibits))["exhibits"]
    assert small["points"] + large["points"] <= 600
    assert (small["every"], large["every"]) == (3, 6)
    assert large["radius"] == pytest.approx(0.02 * 3**0.5)
    (layer,) = large["layers"]
    brightness = np.array(layer["table"])[unpacked(layer["index"])][:, 0] if "table" in layer else None
    assert brightness is not None
    assert np.abs(brightness / 255 * 5 - positions_of(large)[:, 0]).max() < 0.02, "a colour stays with its point"


def test_walls_go_where_the_still_pictures_take_them_away(monkeypatch):
    room = make_room(0, num_views=1)
    outward, _ = Dollhouse(room.points, room.normals, size=(64, 48)).view.sides[0]
    azimuth = math.degrees(math.atan2(outward[1], outward[0])) + 30
    house = Dollhouse(room.points, room.normals, size=(64, 48), azimuth=azimuth, elevation=38)
    view, (a, e) = house.view, (math.radians(azimuth), math.radians(38))
    eye = np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    hidden = np.zeros(len(view.positions), bool)
    for outward, in_the_way in view.sides:
        if outward @ eye > ASLANT:
            hidden |= in_the_way
    assert 0.05 < hidden.mean() < 0.8
    shown = np.asarray(house._matrix.sum(axis=0))[0] > 0
    assert not shown[hidden].any(), "what the pane hides is in no picture"
    monkeypatch.setattr(pane, "MAX_POINTS", 2000)
    layer = pane.photograph(torch.zeros(len(view.positions), 3))
    (packed,) = json.loads(pane.as_json([pane.Exhibit("room", view, [layer])]))["exhibits"]
    point = cKDTree(view.positions).query(positions_of(packed))[1]
    bits = unpacked(packed["walls"])
    for index, (_, in_the_way) in enumerate(view.sides):
        assert np.array_equal(bits >> index & 1, in_the_way[point])
    light = unpacked(packed["light"]) / 255
    assert (np.abs(light - view.light[point]) < 0.02).mean() > 0.98, "all but those where surfaces meet"
    up = np.abs(room.normals[:, 2].numpy())
    assert view.light[up > 0.999].min() > 0.99
    assert view.light[up < 0.01].max() < 0.93


def test_what_users_wrote_never_is_markup(tmp_path, synthetic_scene):
    page = written(tmp_path / "page.html", synthetic_scene, EVIL).read_text(encoding="utf-8")
    scripts = re.findall(r"<script[^>]*>", page)
    assert scripts == ['<script type="application/json" id="pane-data">', "<script>", "<script>"]
    assert page.count("</script") == 3
    assert "<!--" not in page
    (data,) = re.findall(r'id="pane-data">(.*?)</script>', page, re.DOTALL)
    names = {layer["name"] for exhibit in json.loads(data)["exhibits"] for layer in exhibit["layers"]}
    assert EVIL in names


def test_only_our_scripts_may_run(tmp_path, synthetic_scene):
    page = written(tmp_path / "page.html", synthetic_scene, "a").read_text(encoding="utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    policy = policy.replace("&#39;", "'")
    allowed = dict(part.split(" ", 1) for part in policy.split("; "))
    hashes = {
        "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"
        for script in re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    }
    assert set(allowed["script-src"].split()) == hashes
    assert allowed["default-src"] == "'none'"
    write_report(tmp_path / "bare.html", {}, Gallery(scene="bare", points=torch.rand(9, 3)))
    bare = (tmp_path / "bare.html").read_text(encoding="utf-8").replace("&#39;", "'")
    assert "script-src 'none'" in bare
    assert "<script" not in bare


def written(path: Path, scene: Scene, words: str) -> Path:
    """A page on the synthetic scene, and on its picture alone."""
    labels = scene.labels
    assert labels is not None
    assert scene.colors is not None
    kitchen = Cloud("kitchen", scene.points[labels == 10], scene.colors[labels == 10])
    gallery = Gallery(
        scene=words,
        points=scene.points,
        colors=scene.colors,
        label_set=SCANNET,
        labels=labels,
        heats={
            words: Heat((labels == 10).float(), words),
            "a fridge": Heat(torch.ones(len(kitchen.points)), "here", kitchen),
        },
    )
    write_report(path, {}, gallery)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, drawing without a graphics card."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    if (chromium := shutil.which("chromium") or shutil.which("chromium-browser")) is None:
        pytest.skip("needs Chromium on the path")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield opened
        opened.close()


def colors_in(picture: bytes) -> np.ndarray:
    """The colours (P, 3) of the pixels that are not white, in [0, 1]."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), np.float64).reshape(-1, 3) / 255
    return pixels[pixels.min(axis=1) < 0.98]


def share_of(pixels: np.ndarray, *colors: Any) -> list[float]:
    """The shares of pixels that have each colour, in any light that surfaces may have."""
    shares = []
    for color in colors:
        tone = np.asarray(color, np.float64)
        light = (pixels @ tone / (tone @ tone)).clip(0.8, 1.02)[:, None]
        shares.append(float((np.abs(pixels - light * tone).max(axis=1) < 0.03).mean()))
    return shares


def test_without_a_network_the_page_turns_switches_and_says_nothing(browser, tmp_path, synthetic_scene):
    path = written(tmp_path / "page.html", synthetic_scene, EVIL)
    context = browser.new_context(viewport={"width": 480, "height": 500}, offline=True)
    page, heard, asked = context.new_page(), [], []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    canvas = page.locator("#pane canvas")

    def drawn(layer: str) -> np.ndarray:
        page.wait_for_function(
            "name => document.getElementById('pane').dataset.shown?.endsWith(name)", arg=f"/ {layer}"
        )
        return colors_in(canvas.screenshot())

    pixels = drawn("Photograph colours")
    assert len(pixels) > 3000
    red, green = share_of(pixels, WALL_COLOR, PICTURE_COLOR)
    assert red > 0.5
    assert green > 0.02
    assert red + green > 0.95
    page.get_by_role("button", name="Truth").click()
    wall, picture = share_of(drawn("Truth"), SCANNET.colors[0], SCANNET.colors[10])
    assert wall > 0.5
    assert picture > 0.02
    assert wall + picture > 0.95
    assert page.get_by_role("button", name="Truth").get_attribute("aria-pressed") == "true"
    assert page.locator("#pane .caption .key").all_inner_texts() == ["wall", "picture"]
    page.get_by_role("button", name=EVIL).click()
    hot, cold = share_of(drawn(EVIL), HEAT[-1], np.full(3, 0.5 + 0.42 * 0.4))
    assert hot == pytest.approx(picture, rel=0.1)
    assert hot + cold > 0.95
    before, box = canvas.screenshot(), canvas.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 210)
    page.mouse.up()
    page.wait_for_timeout(100)
    assert canvas.screenshot() != before, "it turns"
    page.get_by_role("button", name="Reset the view").click()
    page.wait_for_timeout(100)
    assert canvas.screenshot() == before, "and back"
    page.get_by_label("scene").select_option(label="kitchen")
    (green,) = share_of(drawn("Photograph colours"), PICTURE_COLOR)
    assert green > 0.95
    assert page.evaluate("window.hacked") is None
    assert (heard, asked) == ([], [path.as_uri()])
    context.close()


def test_a_class_of_the_legend_is_a_switch_and_a_slider_says_from_where_an_answer_glows(
    browser, tmp_path, synthetic_scene
):
    path = tmp_path / "page.html"
    ramp = torch.where(synthetic_scene.labels == 10, 0.9, 0.45)
    heats = {"green": Heat(ramp, "green")}
    about = {"colors": synthetic_scene.colors, "label_set": SCANNET, "labels": synthetic_scene.labels}
    write_report(path, {}, Gallery(scene="room", points=synthetic_scene.points, heats=heats, **about))
    context = browser.new_context(viewport={"width": 480, "height": 500}, offline=True)
    page, heard = context.new_page(), []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.goto(path.as_uri())
    canvas = page.locator("#pane canvas")

    def drawn() -> np.ndarray:
        page.wait_for_timeout(300)
        return colors_in(canvas.screenshot())

    page.get_by_role("button", name="Truth").click()
    page.wait_for_function("() => document.getElementById('pane').dataset.shown?.endsWith('/ Truth')")
    switch = page.get_by_role("button", name="wall", exact=True)
    before = drawn()
    switch.click()
    assert switch.get_attribute("aria-pressed") == "false"
    wall, picture = share_of(drawn(), SCANNET.colors[0], SCANNET.colors[10])
    assert wall < 0.02, "the wall is gone"
    assert picture > 0.6, "and the picture stays; what else is not white is the frame"
    switch.click()
    assert len(drawn()) == len(before)
    page.get_by_role("button", name="green").click()
    page.wait_for_function("() => document.getElementById('pane').dataset.shown?.endsWith('/ green')")
    cold = np.full(3, 0.5 + 0.42 * 0.4)
    assert share_of(drawn(), cold)[0] < 0.2, "all of it glows"
    page.get_by_label("threshold").fill("0.7")
    assert share_of(drawn(), cold)[0] > 0.5, "the wall is cold"
    page.get_by_label("threshold").fill("1")
    assert share_of(drawn(), cold)[0] > 0.95
    assert heard == []
    context.close()


def test_without_scripts_the_still_pictures_are_what_there_is(browser, tmp_path, synthetic_scene):
    path = written(tmp_path / "page.html", synthetic_scene, "green")
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(path.as_uri())
    assert not page.locator("#pane").is_visible()
    assert page.get_by_role("img", name="Truth").is_visible()
    context.close()
