"""Measure how often the verdicts of a teacher for photographs are right, on images whose objects are outlined.

python scripts/calibrate_photographs.py COCO/annotations/instances_train2017.json COCO/train2017

Any annotations in COCO's format will do; COCO128, the first 128 images of COCO, has enough. The words are the things of
COCO that stand in rooms. A thing is present if its outlines cover 0.2 % of an image or more, and absent if it has none.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Bool
from PIL import Image, ImageDraw
from torch import Tensor
from tyro.conf import Positional

from cuao3d.console import progress_bar
from cuao3d.query import Questions, ask
from cuao3d.teachers import calibration_of, load_teacher
from cuao3d.text import load_text_encoder

WORDS = {
    name: f"a {name}"
    for name in [
        "chair",
        "potted plant",
        "bed",
        "dining table",
        "toilet",
        "laptop",
        "cell phone",
        "microwave",
        "toaster",
        "sink",
        "refrigerator",
        "book",
        "clock",
        "vase",
        "scissors",
        "teddy bear",
        "toothbrush",
        "bottle",
        "wine glass",
        "cup",
        "fork",
        "knife",
        "spoon",
        "bowl",
        "banana",
        "sports ball",
        "backpack",
        "handbag",
        "suitcase",
    ]
} | {
    "couch": "a couch",
    "tv": "a television",
    "mouse": "a computer mouse",
    "remote": "a remote control",
    "keyboard": "a computer keyboard",
    "oven": "an oven",
    "hair drier": "a hair dryer",
    "apple": "an apple",
    "orange": "an orange",
    "umbrella": "an umbrella",
}
"""What to ask for each category of COCO that stands in rooms."""

LEAST = 0.002
"""Share of the image that a present thing covers."""


def main(annotations: Positional[Path], images: Positional[Path], teacher: str = "photo", most: int = 48) -> None:
    """Ask for every thing in every image that shows one.

    Args:
        annotations: JSON in COCO's format.
        images: Folder of the images.
        teacher: The teacher, as for `cuao3d fuse --teachers`.
        most: Images that are looked at.
    """
    content = json.loads(annotations.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    outlines: dict[int, list[tuple[str, object]]] = {}
    for one in content["annotations"]:
        if (name := names[one["category_id"]]) in WORDS and isinstance(one["segmentation"], list):
            outlines.setdefault(one["image_id"], []).append((name, one["segmentation"]))
    shown = [image for image in content["images"] if image["id"] in outlines][:most]
    describe = load_teacher(teacher)
    questions = Questions.read(load_text_encoder(describe.text), list(WORDS.values()))
    peaks: dict[bool, list[float]] = {True: [], False: []}
    hits: list[bool] = []
    with progress_bar() as bar:
        for image in bar.track(shown, description="asking"):
            maps = describe(read_image(images / image["file_name"]))
            (features,) = maps if isinstance(maps, tuple) else (maps,)
            covered = masks(outlines[image["id"]], (image["width"], image["height"]), features.shape[1:])
            for name, answer in zip(WORDS, ask(features.flatten(1).T, questions), strict=True):
                mask = covered.get(name)
                if mask is None:
                    peaks[False].append(answer.peak)
                elif mask.float().mean() >= LEAST:
                    peaks[True].append(answer.peak)
                    hits.append(bool(mask.flatten()[answer.relevance.argmax()]))
    print_table(np.array(peaks[True]), np.array(peaks[False]), hits, teacher)


def read_image(path: Path) -> Tensor:
    """Return an image (3, H, W), RGB in [0, 1]."""
    pixels = np.array(Image.open(path).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def masks(
    outlines: Sequence[tuple[str, object]], image_size: tuple[int, int], size: Sequence[int]
) -> Mapping[str, Bool[Tensor, "h w"]]:
    """Draw the outlines of each thing on a grid of a size (rows, columns)."""
    width, height = image_size
    scale = np.array([size[1] / width, size[0] / height])
    drawn: dict[str, Image.Image] = {}
    for name, polygons in outlines:
        canvas = drawn.setdefault(name, Image.new("1", (size[1], size[0])))
        for polygon in polygons:  # type: ignore[attr-defined]
            corners = np.array(polygon).reshape(-1, 2) * scale
            ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in corners], fill=1, outline=1)
    return {name: torch.from_numpy(np.array(canvas)) for name, canvas in drawn.items()}


def print_table(present: np.ndarray, absent: np.ndarray, hits: Sequence[bool], teacher: str) -> None:
    """Print how many words reach each relevance."""
    larger = (present[:, None] > absent).mean() + 0.5 * (present[:, None] == absent).mean()
    calibration = calibration_of(teacher)
    print(f"{len(present)} present words, {len(absent)} absent ones; AUROC {larger:.3f}; ", end="")
    print(f"the most relevant place lies on the thing for {100 * np.mean(hits):.0f} % of the present words")
    for cut in sorted({*np.arange(-0.1, 0.51, 0.05).round(2), calibration.here, calibration.absent}):
        of_present, of_absent = 100 * (present >= cut).mean(), 100 * (absent >= cut).mean()
        print(f"relevance >= {cut:5.2f}: {of_present:3.0f} % of the present, {of_absent:3.0f} % of the absent words")


if __name__ == "__main__":
    tyro.cli(main)
