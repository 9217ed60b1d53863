"""A teacher of your own in twenty lines: it describes every pixel by the words for the colours that it resembles.

A teacher is any object with a name, a width and a call. `text` names the encoder of the words that its features are
compared with; without it a student can learn from the teacher, but nobody can ask it. The last lines look at the true
colours of the points that answer.

    python examples/02_own_teacher.py
    python examples/02_own_teacher.py SCAN

In Python a teacher is used as it is. On the command line it goes by its file, which is run:

    cuao3d fuse SCAN --teachers ./examples/02_own_teacher.py:ColorWords --cell 0.05 --out STORE
    cuao3d query STORE "something white" --out white.html
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import cuao3d

COLORS = {
    "red": (0.8, 0.1, 0.1),
    "green": (0.2, 0.6, 0.2),
    "blue": (0.1, 0.2, 0.8),
    "white": (1, 1, 1),
    "brown": (0.4, 0.3, 0.2),
}


class ColorWords:
    """Knows five colours by name."""

    name = "color-words"
    num_channels = 384
    text = "minilm"

    def __init__(self) -> None:
        self.words = cuao3d.load_text_encoder(self.text)([f"something {color}" for color in COLORS])
        self.colors = torch.tensor(list(COLORS.values()))

    def __call__(self, image: Tensor) -> Tensor:
        """Describe an image (3, H, W), RGB in [0, 1], by a map (384, H / 8, W / 8)."""
        small = functional.avg_pool2d(image, 8)
        distance = (small - self.colors[:, :, None, None]).square().sum(dim=1)
        return torch.einsum("khw,kc->chw", (-20 * distance).softmax(dim=0), self.words)


def main(scan: str | None = None) -> None:
    """Lift the teacher onto a capture, or onto a made room, and ask it for two colours."""
    dataset = cuao3d.open_dataset(scan) if scan else cuao3d.Rooms([0], num_views=4)
    with tempfile.TemporaryDirectory() as folder:
        store = cuao3d.fuse(dataset, [ColorWords()], Path(folder) / "store", cell=0.05)
        scene = store[store.names()[0]]
        answers = cuao3d.Predictor.open(store).ask(scene, ["something white", "something brown"])
    for answer in answers:
        best = answer.relevance.topk(min(100, len(scene.points))).indices
        print(f"{answer.words!r}: {answer.verdict}; the {len(best)} points that fit best are", end=" ")
        if scene.colors is None:
            print(f"around {[round(value, 1) for value in scene.points[best].mean(dim=0).tolist()]} m")
        else:
            red, green, blue = scene.colors[best].mean(dim=0).tolist()
            print(f"on average of the colour ({red:.2f}, {green:.2f}, {blue:.2f})")


if __name__ == "__main__":
    main(*sys.argv[1:2])
