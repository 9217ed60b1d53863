"""Measure whether colour words help a search over made rooms, and write the table into docs/search.md.

    python scripts/measure_places.py --fresh fresh
    python scripts/measure_search.py fresh --out fresh-index --page docs/search.md

For each kind of furniture and each colour that a thing of this kind has in the rooms, "a red chair" is asked: with its
colour word split off and answered by the colours of the parts, and read whole by the text encoder. The first answer is
right in colour if most of the thing that it lies on has this colour, and right if it is such a thing as well. Things
and their classes are known from the layout; a thing's colour is the most frequent of its points'.
"""

from collections import Counter
from pathlib import Path

import torch
import tyro
from tyro.conf import Positional

from cuao3d.coordinates import as_matrix
from cuao3d.files import write_text
from cuao3d.index import update
from cuao3d.index.named_colors import NAMES, color_of_points
from cuao3d.index.search import Hit, search
from cuao3d.labels import label_set
from cuao3d.predictor import Predictor
from cuao3d.store import Store
from things import things_of

KINDS = (
    *("chair", "sofa", "armchair", "stool", "table", "bookshelf", "cabinet", "bed", "curtain", "rug", "wardrobe"),
    "basket",
)
"""What is asked for."""

SEEN = 150
"""Things of which fewer points were scanned do not count."""

PAGE_BEGIN, PAGE_END = "<!-- measured by scripts/measure_search.py -->", "<!-- end -->"


def main(store: Positional[Path], out: Path = Path("fresh-index"), page: Path | None = None) -> None:
    """Index the rooms, ask, and print or write the table.

    Args:
        store: Store of made rooms.
        out: Folder of the index.
        page: Page to write the table into.
    """
    opened = Store.open(store)
    predictor = Predictor.open(opened, teacher="mini-lseg")
    index = update(out, [opened], [predictor], None).index
    rooms = {name: Truth(opened, name) for name in opened.names()}
    asked = sorted({(kind, color) for room in rooms.values() for kind, color in room.things if kind in KINDS})
    lines = ["| colour words | first answer has the colour | is the thing | is both |", "|---|---|---|---|"]
    for way, split in (("split off, by the colours of the parts", True), ("read by the text encoder", False)):
        right: Counter[str] = Counter()
        for kind, color in asked:
            (hit,) = search(index, predictor.encoder, f"a {color} {kind}", top=1, split=split).hits
            found_kind, found_color = rooms[hit.hold.entry.scene].at(hit)
            right["color"] += found_color == color
            right["kind"] += found_kind == kind
            right["both"] += found_kind == kind and found_color == color
        shares = [f"{100 * right[what] / len(asked):.0f} %" for what in ("color", "kind", "both")]
        lines.append(f"| {way} | {' | '.join(shares)} |")
    lines += ["", f"{len(asked)} questions about {index.count_in_words()}; each has an answer in the rooms."]
    print("\n".join(lines))
    if page is not None:
        before, _, rest = page.read_text(encoding="utf-8").partition(PAGE_BEGIN)
        write_text(page, f"{before}{PAGE_BEGIN}\n" + "\n".join(lines) + f"\n{PAGE_END}{rest.partition(PAGE_END)[2]}")


class Truth:
    """The things of a room, with their colours."""

    def __init__(self, store: Store, name: str) -> None:
        scene, classes = store[name], label_set("made100")
        assert scene.labels is not None
        assert scene.colors is not None
        assert as_matrix(scene.capture_from_world) == torch.eye(4).tolist()
        found = things_of(int(name.rpartition("-")[2]), scene.points, scene.labels)
        named = color_of_points(scene.colors)
        self.points, self.thing_of_point = scene.points, found.thing_of_point
        self.of_thing = []
        for row, label in enumerate(found.classes):
            own = named[found.thing_of_point == row]
            color = NAMES[int(own.mode().values)] if len(own) >= SEEN else ""
            self.of_thing.append((classes.names[label], color))
        self.things = [thing for thing in self.of_thing if thing[1]]

    def at(self, hit: Hit) -> tuple[str, str]:
        """Return the kind and the colour of the thing that most points in the box of a part belong to."""
        corners = torch.tensor(hit.about["corners"])
        axes = [corners[1] - corners[0], corners[2] - corners[0], corners[4] - corners[0]]
        inside = torch.ones(len(self.points), dtype=torch.bool)
        for axis, length in zip(axes, hit.about["box"]["size"], strict=True):
            along = (self.points - corners[0]) @ torch.nn.functional.normalize(axis, dim=0) if length else None
            inside &= (along > -0.01) & (along < length + 0.01) if along is not None else inside
        things = self.thing_of_point[inside & (self.thing_of_point >= 0)]
        return self.of_thing[int(things.mode().values)] if len(things) else ("", "")


if __name__ == "__main__":
    tyro.cli(main)
