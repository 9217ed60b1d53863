"""The viewer in a browser: the pane of one client and its points, wired to a session.

What somebody wrote (words, names of scenes and classes, messages) is shown as text and never as markup.
"""

import html
import io
import math
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from cuao3d.console import note_block, visible
from cuao3d.errors import UserError
from cuao3d.names import as_file_name
from cuao3d.view.asking import MOST_LETTERS, SYNTAX
from cuao3d.view.layers import LAYERS, RADIUS, Click, Layers
from cuao3d.view.session import NOTHING_BESIDE, Picture, Session, Wanted, first_height
from cuao3d.view.worker import Newest

if TYPE_CHECKING:
    import viser

NOBODY = "nobody"
NO_HISTORY = "(nothing yet)"
MOST_HISTORY = 20
"""Questions that were asked and can be asked again."""

MOST_SAID = 400
"""Letters of a message."""

MOST_SWITCHES = 60
"""Entries of a legend that have a switch; rarer ones are always drawn."""

HIDDEN_COLOR = (225, 225, 228)
ELEVATION = math.radians(50)
"""Of the first look, above the horizon."""

RENDER_SECONDS = 30.0
"""Time that a browser has to render a screenshot."""

OF_FEATURES = "features", "segments"
BY_CLICK = "like the clicked point"


class Pane:
    """What one client sees and sets; no other client has a part in it."""

    def __init__(self, client: "viser.ClientHandle", session: Session, scene: str) -> None:
        """Build the pane and show a scene.

        Args:
            client: The client.
            session: What it looks at.
            scene: The scene that is shown first.
        """
        self._client, self._session = client, session
        self._clouds: list[viser.PointCloudHandle] = []
        self._pictures: tuple[Picture, ...] = ()
        self._shown: Wanted | None = None
        self._click: int | None = None
        self._hidden: set[str] = set()
        self._legend: list[viser.GuiButtonHandle] = []
        self._legend_of: tuple[tuple[str, tuple[float, float, float]], ...] = ()
        self._history: list[str] = []
        self._offset = np.zeros(3)
        self._ray: tuple[Sequence[float], Sequence[float]] | None = None
        self._offered: tuple[object, ...] = ()
        self._cameras_of: str | None = None
        self._is_closed = False
        self._build(scene)
        self._worker = Newest(f"viewer of client {client.client_id}")
        self._refresh()

    def close(self) -> None:
        """Stop: the client has left."""
        self._is_closed = True
        self._worker.close()

    def join(self, seconds: float) -> bool:
        """Wait for work that still runs; return whether it has ended."""
        return self._worker.join(seconds)

    def _build(self, scene: str) -> None:
        """Make what can be set."""
        gui, models = self._client.gui, tuple(self._session.models)
        scenes = self._session.scenes()
        self._scene = gui.add_dropdown("Scene", scenes if scene in scenes else (scene, *scenes), initial_value=scene)
        self._model = gui.add_dropdown("Answered by", models or (NOBODY,), visible=len(models) > 1)
        self._text = gui.add_text("Ask", "", hint=SYNTAX)
        self._add_text(SYNTAX, color="#868e96")
        self._past = gui.add_dropdown("Asked before", (NO_HISTORY,))
        self._status = gui.add_html("")
        self._layer = gui.add_dropdown("Colour by", LAYERS, initial_value="photograph")
        self._described = gui.add_dropdown("Features of", (NOBODY,), visible=False)
        self._threshold = gui.add_slider(
            "Threshold", min=0.0, max=1.0, step=0.01, initial_value=0.5, hint="Answers glow from this share of the best"
        )
        self._opacity = gui.add_slider(
            "Layer strength",
            min=0.0,
            max=1.0,
            step=0.01,
            initial_value=1.0,
            hint="How much of it covers the photograph",
        )
        self._height = gui.add_slider(
            "Height", min=0.05, max=1.0, step=0.01, initial_value=1.0, hint="What is higher in the room is not drawn"
        )
        self._size = gui.add_slider("Point size", min=0.2, max=4.0, step=0.1, initial_value=1.0)
        self._cameras = gui.add_checkbox("Cameras and photographs", False)
        with gui.add_folder("Legend", visible=False) as self._legend_folder:
            self._all = gui.add_button_group("Show", ("all", "none"))
        with gui.add_folder("Clicked point"):
            self._clicked = gui.add_html(_text("Click a point to read what it is like.", "#868e96"))
        with gui.add_folder("Side by side", expand_by_default=False):
            self._beside = gui.add_dropdown("Beside it", (NOTHING_BESIDE, *LAYERS), initial_value=NOTHING_BESIDE)
            self._beside_model = gui.add_dropdown("Answered by", models or (NOBODY,), visible=len(models) > 1)
        self._picture_button = gui.add_button("Screenshot", icon="camera")
        self._export_button = gui.add_button("Export what is seen (.ply)", icon="download")
        with gui.add_folder("Not shown here", expand_by_default=False):
            self._missing = gui.add_html("")
        self._wire()

    def _wire(self) -> None:
        """Say what each setting changes."""
        for plain in (self._model, self._layer, self._described, self._threshold, self._opacity, self._height):
            plain.on_update(lambda _: self._refresh())
        for more in (self._beside, self._beside_model, self._cameras):
            more.on_update(lambda _: self._refresh())
        self._scene.on_update(lambda _: self._change_scene())
        self._text.on_update(lambda _: self._asked())
        self._past.on_update(lambda event: self._ask_again(event.client_id))
        self._size.on_update(lambda _: self._resize())
        self._all.on_click(lambda _: self._show_all(self._all.value == "all"))
        self._picture_button.on_click(lambda _: self._trying(self._screenshot))
        self._export_button.on_click(lambda _: self._trying(self._export))
        self._client.scene.on_click()(lambda event: self._pick(event.ray_origin, event.ray_direction))

    def _wanted(self) -> Wanted:
        """Return what is set; values come from a browser and may be anything."""
        return Wanted(
            scene=str(self._scene.value),
            model=str(self._model.value),
            layer=str(self._layer.value),
            described="" if self._described.value == NOBODY else str(self._described.value),
            text=str(self._text.value),
            threshold=_share(self._threshold.value, 0.5),
            opacity=_share(self._opacity.value, 1.0),
            height=_share(self._height.value, 1.0),
            hidden=frozenset(self._hidden),
            beside=str(self._beside.value),
            beside_model=str(self._beside_model.value),
            click=self._click,
        )

    def _refresh(self) -> None:
        """Show what is set now, as soon as there is time for it."""
        self._worker.submit(lambda is_outdated: self._trying(lambda: self._show(is_outdated)))

    def _show(self, is_outdated: Callable[[], bool]) -> None:
        """Show what is set, a click included; what is out of date meanwhile is dropped."""
        self._find_click()
        wanted = self._wanted()
        layers = self._session.layers(wanted.scene)
        if self._offered != (layers, wanted.model):
            self._offer(layers, wanted.model)
            wanted = self._wanted()
        self._described.visible = wanted.layer in OF_FEATURES or wanted.beside in OF_FEATURES
        pictures = () if is_outdated() else self._session.picture(wanted)
        if is_outdated():
            return
        before, self._shown = self._shown, wanted
        is_new = before is None or before.scene != wanted.scene
        with self._client.atomic():
            self._draw(layers, pictures, is_new=is_new)
            self._write_legend(wanted, pictures)
            self._status.content = _text(" | ".join(one.note for one in pictures if one.note))
            if is_new or len(pictures) != (2 if before and before.beside != NOTHING_BESIDE else 1):
                self._look(layers, len(pictures), turn=is_new)
        if wanted.layer == "relevance" and pictures[0].values is not None:
            self._remember(wanted.text)
        self._draw_cameras(layers, wanted.scene)

    def _draw(self, layers: Layers, pictures: Sequence[Picture], *, is_new: bool) -> None:
        """Send points; only colours where the points are those that are there."""
        width = float((layers.positions @ torch.from_numpy(_axes(layers)[0]).float()).abs().max())
        self._offset = _axes(layers)[0] * 2.15 * width
        for index, picture in enumerate(pictures):
            old = self._pictures[index] if index < len(self._pictures) else None
            if old is not None and not is_new and torch.equal(old.drawn, picture.drawn):
                if not torch.equal(old.colors, picture.colors):
                    self._clouds[index].colors = picture.colors.numpy()
                continue
            cloud = self._client.scene.add_point_cloud(
                f"/points {index}",
                picture.positions.numpy(),
                picture.colors.numpy(),
                point_size=self._point_size(layers),
                point_shape="circle",
                point_shading="flat",
                precision="float32",
                position=tuple(self._offset * index),
            )
            self._clouds[index : index + 1] = [cloud]
        for cloud in self._clouds[len(pictures) :]:
            cloud.remove()
        del self._clouds[len(pictures) :]
        self._pictures = tuple(pictures)

    def _offer(self, layers: Layers, model: str) -> None:
        """Offer the layers that a scene has, and say why others are not there."""
        missing = layers.offered(model)
        here = tuple(layer for layer in LAYERS if not missing[layer])
        described = tuple(layers.described_by()) or (NOBODY,)
        for dropdown, options in (
            (self._layer, here),
            (self._beside, (NOTHING_BESIDE, *here)),
            (self._described, described),
        ):
            if dropdown.options != options:
                dropdown.options = options
        if not self._offered or self._offered[0] is not layers:
            self._height.value = first_height(layers)
        self._offered = layers, model
        lines = [f"{layer}: {reason}" for layer, reason in missing.items() if reason]
        self._missing.content = "".join(map(_text, lines or ["Everything is shown."]))

    def _write_legend(self, wanted: Wanted, pictures: Sequence[Picture]) -> None:
        """Write the legend anew where it has changed: a button for each entry, in its colour, which switches it."""
        entries = dict(entry for picture in pictures for entry in picture.legend)
        legend_of = tuple(entries.items())
        if legend_of != self._legend_of:
            for button in self._legend:
                button.remove()
            with self._legend_folder:
                self._legend = [self._switch(name, color) for name, color in legend_of[:MOST_SWITCHES]]
            self._legend_of = legend_of
            self._legend_folder.visible = bool(legend_of)
        for button, (name, color) in zip(self._legend, legend_of, strict=False):
            shown = HIDDEN_COLOR if name in wanted.hidden else _bytes(color)
            if button.color != shown:
                button.color = shown
                button.icon = "eye-off" if name in wanted.hidden else "eye"

    def _switch(self, name: str, color: tuple[float, float, float]) -> "viser.GuiButtonHandle":
        button = self._client.gui.add_button(visible(name), color=_bytes(color), icon="eye", hint="Hide or show")

        def switch(_: object) -> None:
            self._hidden ^= {name}
            self._refresh()

        button.on_click(switch)
        return button

    def _show_all(self, is_shown: bool) -> None:
        self._hidden = set() if is_shown else {name for name, _ in self._legend_of[:MOST_SWITCHES]}
        self._refresh()

    def _change_scene(self) -> None:
        self._hidden, self._click = set(), None
        self._clicked.content = _text("Click a point to read what it is like.", "#868e96")
        self._refresh()

    def _asked(self) -> None:
        """Show the answer while it is typed."""
        if len(self._text.value) > 10 * MOST_LETTERS:
            self._status.content = _text(f"That is too long; ask in {MOST_LETTERS} letters at most.", "#c92a2a")
            self._text.value = ""
            return
        if "relevance" in self._layer.options and self._text.value.strip():
            self._layer.value = "relevance"
        self._refresh()

    def _ask_again(self, client_id: int | None) -> None:
        """Ask what somebody has chosen; what `_remember` sets is past, and something else may be typed by now."""
        if client_id is None:
            return
        if self._past.value not in (NO_HISTORY, self._text.value) and self._past.value in self._history:
            self._text.value = self._past.value

    def _remember(self, text: str) -> None:
        """Remember a question; one that is still being typed takes the place of its beginning."""
        text = " ".join(text.split())
        if self._history and (text.startswith(self._history[0]) or self._history[0].startswith(text)):
            del self._history[0]
        self._history = [text, *(one for one in self._history if one != text)][:MOST_HISTORY]
        self._past.options = tuple(self._history)
        self._past.value = self._history[0]

    def _pick(self, origin: Sequence[float], direction: Sequence[float]) -> None:
        """Tell of the point under the pointer."""
        self._ray = origin, direction
        self._refresh()

    def _find_click(self) -> None:
        ray, self._ray = self._ray, None
        if ray is None or self._shown is None:
            return
        origin, direction = ray
        found: list[tuple[float, Click, np.ndarray]] = []
        for index, picture in enumerate(self._pictures):
            begin = np.asarray(origin) - self._offset * index
            click = self._session.click(self._shown, begin.tolist(), direction, picture.drawn)
            if click is not None:
                where = self._session.layers(self._shown.scene).positions[click.point].numpy()
                found.append((float(np.linalg.norm(where - begin)), click, where + self._offset * index))
        if not found:
            return
        _, click, where = min(found, key=lambda one: one[0])
        self._click = click.point
        self._mark(where)
        lines = [f"{word} ({cosine:.2f})" for word, cosine in click.words]
        about = ["Nearest words, by cosine:", *lines] if lines else [click.nothing]
        self._clicked.content = "".join(map(_text, about))
        if BY_CLICK in self._layer.options and click.words:
            self._layer.value = BY_CLICK

    def _mark(self, where: np.ndarray) -> None:
        assert self._shown is not None
        layers = self._session.layers(self._shown.scene)
        self._client.scene.add_point_cloud(
            "/clicked",
            np.zeros((1, 3), np.float32),
            np.array([[230, 30, 30]], np.uint8),
            point_size=2.5 * self._point_size(layers),
            point_shape="circle",
            point_shading="flat",
            position=where,
        )

    def _resize(self) -> None:
        if self._shown is not None:
            layers = self._session.layers(self._shown.scene)
            for cloud in self._clouds:
                cloud.point_size = self._point_size(layers)

    def _point_size(self, layers: Layers) -> float:
        scale = self._size.value if math.isfinite(self._size.value) else 1.0
        return RADIUS * layers.spacing * min(max(scale, 0.1), 10.0)

    def _draw_cameras(self, layers: Layers, scene: str) -> None:
        """Draw the cameras of the scene with their photographs, or take them away."""
        wanted = scene if self._cameras.value else None
        if wanted == self._cameras_of:
            return
        self._client.scene.remove_by_name("/cameras")
        self._cameras_of = wanted
        if wanted is None:
            return
        self._client.scene.add_frame("/cameras", show_axes=False)
        size = 0.04 * float(layers.positions.norm(dim=1).max())
        for index, shot in enumerate(self._session.shots(scene)):
            self._add_camera(f"/cameras/{index}", shot, layers, size)

    def _add_camera(self, name: str, shot: Any, layers: Layers, size: float) -> None:
        from viser.transforms import SO3

        pose = shot.camera.world_from_camera.double().numpy()
        position = pose[:3, 3] - layers.middle.double().numpy()
        turn = SO3.from_matrix(pose[:3, :3]).wxyz
        fov = 2 * math.atan(shot.camera.height / 2 / float(shot.camera.focal[1]))
        frustum = self._client.scene.add_camera_frustum(
            name,
            fov,
            shot.camera.width / shot.camera.height,
            scale=size,
            thickness=size / 40,
            color=(40, 90, 160),
            image=shot.image,
            wxyz=turn,
            position=position,
        )

        def look_through(_: object) -> None:
            camera = self._client.camera
            with self._client.atomic():
                camera.up_direction = tuple(layers.up.tolist())
                camera.position = tuple(position)
                camera.look_at = tuple(position + pose[:3, 2])

        frustum.on_click(look_through)

    def _look(self, layers: Layers, num_pictures: int, *, turn: bool) -> None:
        """Look at everything from above a corner."""
        forward = _axes(layers)[1]
        up = layers.up.double().numpy()
        camera, size = self._client.camera, float(layers.positions.norm(dim=1).max())
        target = self._offset / 2 * (num_pictures - 1) - 0.1 * size * up
        distance = size * (1.25 + 0.75 * (num_pictures - 1)) / math.tan(max(camera.fov, 0.5) / 2)
        from_target = distance * (math.sin(ELEVATION) * up - math.cos(ELEVATION) * forward)
        if turn:
            self._client.scene.set_up_direction(tuple(up))
        with self._client.atomic():
            camera.up_direction = tuple(up)
            camera.position = tuple(target + from_target)
            camera.look_at = tuple(target)

    def _screenshot(self) -> None:
        if self._shown is None:
            return
        camera = self._client.camera
        height, width = int(camera.image_height), int(camera.image_width)
        rendered = self._client.get_render(height, width, transport_format="png", timeout=RENDER_SECONDS)
        picture = Image.new("RGB", (rendered.shape[1], rendered.shape[0]), "white")
        image = Image.fromarray(rendered)
        picture.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
        content = io.BytesIO()
        picture.save(content, format="PNG")
        self._send(".png", content.getvalue())

    def _export(self) -> None:
        if self._shown is not None and self._pictures:
            self._send(".ply", self._session.export(self._shown.scene, self._pictures))

    def _send(self, ending: str, content: bytes) -> None:
        assert self._shown is not None  # what is sent is what is shown, though another scene may be chosen by now
        name = as_file_name(self._shown.scene) + ending
        self._client.send_file_download(name, content, save_immediately=True)

    def _trying(self, work: Callable[[], None]) -> None:
        """Do some work; what goes wrong is said in the pane, and nothing else stops."""
        try:
            work()
        except (UserError, OSError) as error:
            self._say(str(error))
            self._list_scenes()
        except (RuntimeError, TimeoutError) as error:  # of a screenshot; where the client has left, nobody reads it
            self._say(str(error))
        except Exception as error:
            self._say(f"This is a defect: {error}")
            note_block(traceback.format_exc())

    def _say(self, words: str) -> None:
        if not self._is_closed:
            self._status.content = _text(words[:MOST_SAID], "#c92a2a")

    def _list_scenes(self) -> None:
        """List the scenes that there are by now, where one could not be shown."""
        with suppress(UserError, OSError):
            scenes = self._session.scenes()
            if not self._is_closed and scenes and scenes != self._scene.options:
                self._scene.options = scenes

    def _add_text(self, text: str, color: str) -> None:
        self._client.gui.add_html(_text(text, color))


def _axes(layers: Layers) -> tuple[np.ndarray, np.ndarray]:
    """Return where right and forward are in the first look, both level."""
    up = layers.up.double().numpy()
    level = np.eye(3)[np.abs(up).argmin()]
    x = level - level @ up * up
    x /= np.linalg.norm(x)
    y = np.cross(up, x)
    forward = (x + 1.6 * y) / np.linalg.norm(x + 1.6 * y)
    return np.cross(forward, up), forward


def _text(words: str, color: str = "#495057") -> str:
    """Return words as a line of HTML that shows them as they are."""
    style = f"font-size: 0.85em; color: {color}; padding: 0 0.75em 0.25em; overflow-wrap: anywhere"
    return f'<div style="{style}">{html.escape(visible(words))}</div>'


def _share(value: object, usual: float) -> float:
    """Return a number between 0 and 1, whatever came from a browser."""
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return min(max(float(value), 0.0), 1.0) if is_number else usual  # type: ignore[arg-type]


def _bytes(color: Sequence[float]) -> tuple[int, int, int]:
    red, green, blue = (round(255 * min(max(channel, 0.0), 1.0)) for channel in color)
    return red, green, blue
