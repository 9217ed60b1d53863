"""Play the pointing game on a real capture with several teachers, and write the table of README.md.

python scripts/play_pointing.py LOUNGE --readme README.md

LOUNGE is the folder of a capture with `objects.json` and `pointing.py`: do the places that are named for things lie on
them, and do these things rank above things that are not there?
"""

import contextlib
import io
import json
import re
import runpy
import statistics
import tempfile
import time
from pathlib import Path

import tyro
from tyro.conf import Positional

from cuao3d import pipeline
from cuao3d.exports import ask_store
from cuao3d.predictor import Predictor
from cuao3d.readers import open_dataset
from cuao3d.teachers import load_teacher
from cuao3d.view_weights import ViewWeights

HEAD = [
    "| teacher | first place | one of three | AUROC | seconds a view |",
    "|---|---|---|---|---|",
]

NAMES = {
    "mini-lseg": "`mini-lseg`, trained on made rooms",
    "efficientnet": "`photo` without the network for ADE20K",
    "photo": "`photo`",
}


def main(
    folder: Positional[Path],
    teachers: tuple[str, ...] = ("mini-lseg", "efficientnet", "photo"),
    readme: Path | None = None,
) -> None:
    """Play the game and print a table.

    Args:
        folder: The capture.
        teachers: The teachers, as for `cuao3d fuse --teachers`.
        readme: Page whose table is replaced.
    """
    rows = [*HEAD]
    print("\n".join(rows))
    for name in teachers:
        rows.append(play(folder, name))
        print(rows[-1], flush=True)
    if readme is not None:
        page = readme.read_text(encoding="utf-8")
        found = re.compile(re.escape(HEAD[0]) + r"\n(\|.*\n)*")
        assert len(found.findall(page)) == 1, f"{readme} should have one table with these columns"
        readme.write_text(found.sub(lambda _: "\n".join(rows) + "\n", page), encoding="utf-8")


def play(folder: Path, name: str, *, view_weights: ViewWeights = "none") -> str:
    """Lift a capture with a teacher, ask for all words and let the capture's script judge; return a row."""
    truth = json.loads((folder / "objects.json").read_text())
    teacher, dataset = load_teacher(name), open_dataset(folder)
    seconds = []
    for frame in dataset[0].frames:
        image = frame.read_image()
        begin = time.perf_counter()
        teacher(image)
        seconds.append(time.perf_counter() - begin)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        store = pipeline.fuse(dataset, [teacher], out / "store", view_weights=view_weights)
        ask_store(store, Predictor.open(store), [*truth["present"], *truth["absent"]], out / "answers.json")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(folder / "pointing.py"))["main"](out / "answers.json")
    first, third, auroc = re.findall(r"(\d+/\d+).*?(\d+/\d+).*?AUROC (\S+)", printed.getvalue().replace("\n", " "))[-1]
    return f"| {NAMES.get(name, name)} | {first} | {third} | {auroc} | {statistics.median(seconds):.2f} |"


if __name__ == "__main__":
    tyro.cli(main)
