"""What was found for a question, laid out for a page: places outlined in the photographs that show them."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cuao3d.photographs import Outline, Photograph
from cuao3d.query import Verdict

UNDER_EDGE, NEAR_EDGE = 0.09, 0.6
"""The label of an outline goes inside if its top lies above this part of the photograph's height, and ends where the
outline ends, not begins where it begins, if its left edge lies beyond this part of the width."""


@dataclass(frozen=True, eq=False)
class Place:
    """A place that was found."""

    note: str
    """Its relevance, size and position in words."""
    outline: Outline | None
    """Where it lies in a photograph; None if no photograph shows it."""


@dataclass(frozen=True, eq=False)
class Find:
    """The places that answer a question."""

    words: str
    """The question."""
    verdict: Verdict
    """Whether it was found."""
    note: str
    """The answer in words."""
    places: Sequence[Place]
    """The best places, a few at most; none if the verdict is absent."""


@dataclass(frozen=True, eq=False)
class Finds:
    """Answers to questions about one scene."""

    finds: Sequence[Find]
    """An answer for each question."""
    title: str = "Found in the photographs"
    """Title of the section."""
    about: str = (
        "Up to three places for each question, the most relevant first, each in a photograph that shows most of it. "
        "Dashed: unsure."
    )
    """What the section shows."""
    page_title: str = ""
    """Title of the page, where the finds are of another scene than the one that the page shows next."""


def layout(finds: Finds) -> dict[str, Any]:
    """Return what the template of a page needs: each photograph once, a card for each that shows a find, and the rest.

    Args:
        finds: What was found.
    """
    outlines = [place.outline for find in finds.finds for place in find.places if place.outline]
    photographs = {outline.photograph.name: outline.photograph for outline in outlines}
    return {
        "title": finds.title,
        "about": finds.about,
        "page_title": finds.page_title,
        "photographs": {one.name: _as_image(one, number) for number, one in enumerate(photographs.values(), start=1)},
        "cards": [card for find in finds.finds for card in _cards(find)],
        "rest": [find for find in finds.finds if not any(place.outline for place in find.places)],
    }


def _cards(find: Find) -> list[dict[str, Any]]:
    """Return a card for each photograph that shows a place of a find; the first names places that none shows."""
    boxes: dict[str, list[dict[str, Any]]] = {}
    for number, place in enumerate(find.places, start=1):
        if place.outline is not None:
            name = place.outline.photograph.name
            boxes.setdefault(name, []).append({"number": number, "note": place.note, **_as_box(place.outline)})
    hidden = [(number, place.note) for number, place in enumerate(find.places, start=1) if place.outline is None]
    return [
        {"find": find, "photograph": name, "boxes": own, "first": index == 0, "hidden": hidden if index == 0 else []}
        for index, (name, own) in enumerate(boxes.items())
    ]


def _as_box(outline: Outline) -> dict[str, Any]:
    """Return the position of an outline and the classes of its label, in CSS."""
    width, height = outline.photograph.camera.width, outline.photograph.camera.height
    edges = {
        "left": outline.left / width,
        "top": outline.top / height,
        "width": (outline.right - outline.left) / width,
        "height": (outline.bottom - outline.top) / height,
    }
    style = "; ".join(f"{name}: {100 * value:.2f}%" for name, value in edges.items())
    classes = {"inside": edges["top"] < UNDER_EDGE, "end": edges["left"] > NEAR_EDGE}
    return {"style": style, "classes": [name for name, applies in classes.items() if applies]}


def _as_image(photograph: Photograph, number: int) -> dict[str, Any]:
    uri = "data:image/jpeg;base64," + base64.b64encode(photograph.jpeg).decode()
    return {"number": number, "uri": uri, "width": photograph.camera.width, "height": photograph.camera.height}
