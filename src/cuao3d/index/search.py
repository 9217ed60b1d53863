"""One question to many scans: the parts of an index that answer it best, in words, as JSON or as a page."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader
from torch.nn import functional

from cuao3d import __version__
from cuao3d.answers import UNKNOWN_WORDS
from cuao3d.coordinates import size_in_words
from cuao3d.errors import InputError, UserError
from cuao3d.files import write_json, write_text
from cuao3d.index import COLOR_SCALE, Hold, Index
from cuao3d.index.named_colors import NAMES, split_colors
from cuao3d.names import url_of
from cuao3d.photographs import Photograph, read_photographs
from cuao3d.query import Questions, relevance_of
from cuao3d.store import Store
from cuao3d.text import TextEncoder

TOP = 10
"""Results unless told."""

CANDIDATES = 200
"""Parts nearest to the question that are compared with contrast words, at least; four times the results if more."""

COLOR_WEIGHT = 0.3
"""What the colour of a part adds to its score if all of it has the colour that is asked for."""


@dataclass(frozen=True)
class Hit:
    """A part that answers."""

    hold: Hold
    score: float
    """Relevance plus `COLOR_WEIGHT` times the share of the part that has the colour asked for."""
    relevance: float
    """Margin of the question, without its colour words, over contrast words; see `query.Answer.relevance`."""
    color_share: float | None
    """Share of the part that has a colour that was asked for; None where none was."""
    about: dict[str, Any]
    """What is told of the part; see `Index.part`."""


@dataclass(frozen=True)
class Found:
    """What was found for a question."""

    question: str
    words: str
    """The question without its colour words."""
    colors: tuple[str, ...]
    """The colours that it asks for."""
    hits: tuple[Hit, ...]
    """The best parts first."""
    words_known: bool
    """Whether the text encoder knows the words; where it does not, the results mean nothing."""


def search(
    index: Index,
    encoder: TextEncoder,
    question: str,
    *,
    top: int = TOP,
    split: bool = True,
    exact: bool = False,
) -> Found:
    """Put a question to an index.

    The parts with the largest sum of cosine and colour are looked up, and ordered by their scores.

    Args:
        index: The index.
        encoder: The text encoder of the index.
        question: The question.
        top: Number of results at most.
        split: Let colour words be answered by the colours of the parts; else the encoder reads the whole question.
        exact: Compare with all parts instead of following the graph of near neighbours.

    Raises:
        InputError: The question is blank, or the number is not positive.
    """
    if top < 1:
        raise InputError(f"--top {top} asks for nothing; choose 1 or more.")
    words, colors = split_colors(question) if split else (question, ())
    questions = Questions.read(encoder, [words])
    if questions.vectors.shape[1] != index.about["num_channels"]:
        width = questions.vectors.shape[1]
        raise InputError(
            f"The vectors of {index.about['text']} have {width} channels, the parts of {index.path} "
            f"{index.about['num_channels']}."
        )
    asked = torch.zeros(len(NAMES))
    asked[[NAMES.index(name) for name in colors]] = 1
    row = torch.cat([questions.vectors[0].float().cpu(), COLOR_WEIGHT / COLOR_SCALE * asked]).numpy()
    keys, rows = index.vectors.nearest(row, max(CANDIDATES, 4 * top), exact=exact)
    width = len(row) - len(NAMES)
    cosines = functional.normalize(torch.from_numpy(rows[:, :width]), dim=1) @ questions.texts.float().cpu().T
    relevance = relevance_of(cosines, questions)[:, 0].numpy()
    shares = rows[:, width:] @ asked.numpy() / COLOR_SCALE
    scores = relevance + COLOR_WEIGHT * shares
    hits = []
    for place in np.argsort(-scores, kind="stable")[:top]:
        hold = index.holder(int(keys[place]))
        share = float(shares[place]) if colors else None
        hits.append(Hit(hold, float(scores[place]), float(relevance[place]), share, index.part(hold)))
    return Found(question, words, colors, tuple(hits), questions.words_known[0])


def in_lines(found: Found) -> list[str]:
    """Say what was found, a line for each result."""
    lines = []
    for number, hit in enumerate(found.hits, start=1):
        x, y, z = hit.about["center"]
        color = "" if hit.color_share is None else f", {100 * hit.color_share:.0f} % {' or '.join(found.colors)}"
        unit = f" {hit.about['unit']}" if hit.about["unit"] else ""
        where = f"at ({x:.2f}, {y:.2f}, {z:.2f}){unit}, {size_in_words(hit.about)}"
        lines.append(f"{number:2}. {hit.hold.entry.scene}: {where}; score {hit.score:.2f}{color}")
    return lines


def write_found(path: Path, found: Found, index: Index) -> None:
    """Write what was found.

    Args:
        path: File to write; its ending says what: `.html`, `.json` or `.txt`.
        found: What was found.
        index: The index that was asked.

    Raises:
        InputError: The ending is none of these.
    """
    check_ending(path)
    if path.suffix == ".json":
        write_json(path, as_json(found, index))
    elif path.suffix == ".txt":
        doubt = [] if found.words_known else [UNKNOWN_WORDS]
        write_text(path, "\n".join([*doubt, *in_lines(found)]) + "\n")
    else:
        write_text(path, _as_page(found, index).encode("utf-8", errors="backslashreplace").decode())


def check_ending(path: Path) -> None:
    """Refuse a file of another kind than those that are written."""
    if path.suffix not in (".html", ".json", ".txt"):
        raise InputError(f"{path} should end in .html (a page to look at), .json or .txt.")


def as_json(found: Found, index: Index) -> dict[str, Any]:
    """Return what was found as JSON."""
    return {
        "question": found.question,
        "words": found.words,
        "words_known": found.words_known,
        "colors": list(found.colors),
        "teacher": index.about["teacher"],
        "text_encoder": index.about["text"],
        "results": [
            {
                "scene": hit.hold.entry.scene,
                "store": hit.hold.entry.store,
                "score": round(hit.score, 4),
                "relevance": round(hit.relevance, 4),
                "color_share": None if hit.color_share is None else round(hit.color_share, 4),
                "place": hit.about,
            }
            for hit in found.hits
        ],
    }


def _as_page(found: Found, index: Index) -> str:
    photographs = _Photographs()
    cards = []
    for number, (hit, line) in enumerate(zip(found.hits, in_lines(found), strict=True), start=1):
        picture, why = photographs.of(hit)
        cards.append(
            {
                "number": number,
                "scene": hit.hold.entry.scene,
                "note": line.partition(": ")[2].partition("; score")[0],
                "score": hit.score,
                "relevance": hit.relevance,
                "share": hit.color_share,
                "color": _css(hit.about["color"]),
                "picture": picture,
                "why": why,
            }
        )
    environment = Environment(loader=FileSystemLoader(Path(__file__).parents[1]), autoescape=True, trim_blocks=True)
    return environment.get_template("index/page.html.j2").render(
        found=found,
        cards=cards,
        unknown=UNKNOWN_WORDS,
        about=index.about,
        count=index.count_in_words(),
        version=__version__,
    )


class _Photographs:
    """Photographs of scenes, each read once."""

    def __init__(self) -> None:
        self._of_scene: dict[tuple[str, str], tuple[dict[str, Photograph], str]] = {}

    def of(self, hit: Hit) -> tuple[dict[str, Any] | None, str]:
        """Return the photograph that shows a part, or why there is none."""
        entry, shown = hit.hold.entry, hit.about["photograph"]
        if shown is None:
            return None, "none of the photographs of the scene shows it"
        if (entry.store, entry.scene) not in self._of_scene:
            self._of_scene[entry.store, entry.scene] = self._read(entry.store, entry.scene, entry.sha256)
        photographs, why = self._of_scene[entry.store, entry.scene]
        if shown["name"] not in photographs:
            return None, why
        one = photographs[shown["name"]]
        left, top, right, bottom = (100 * edge for edge in shown["outline"])
        uri = "data:image/jpeg;base64," + base64.b64encode(one.jpeg).decode()
        box = f"left: {left:.2f}%; top: {top:.2f}%; width: {right - left:.2f}%; height: {bottom - top:.2f}%"
        return {"uri": uri, "name": one.name, "box": box, "width": one.camera.width, "height": one.camera.height}, ""

    @staticmethod
    def _read(store: str, scene: str, sha256: str) -> tuple[dict[str, Photograph], str]:
        if url_of(store):  # an index of somebody else could name any
            return {}, "its store is at a URL, which is not asked for pictures"
        try:
            stored = Store.open(store)[scene]
            if stored.sha256 != sha256:
                return {}, "the scene has changed since it was indexed"
            return {one.name: one for one in read_photographs(stored)}, ""
        except (UserError, OSError) as error:
            return {}, f"the scene cannot be read now: {error}"


def _css(color: list[float] | None) -> str:
    return "" if color is None else "rgb({}, {}, {})".format(*(round(255 * value) for value in color))
