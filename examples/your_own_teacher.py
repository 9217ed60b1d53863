"""A teacher of one's own in twenty lines: every pixel is described by the words of the colours that it resembles.

A teacher is any object with a name, a width and a call. `text` says whose words it understands; without it the teacher
can be learned from, but not asked. In Python it is used as it is, as below; on the command line it goes by its file:

    cuao3d fuse SCAN --teachers ./examples/your_own_teacher.py:ColorWords --out store
    cuao3d distill store --out run
    cuao3d query store --run run "something red" --out red.html
"""

import torch
from torch import Tensor
from torch.nn import functional

from cuao3d.fusion import lift, sample_cells, see
from cuao3d.query import Questions, ask
from cuao3d.text import load_text_encoder
from cuao3d.worlds.rooms import make_room

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
        self.words = load_text_encoder(self.text)([f"something {color}" for color in COLORS])
        self.colors = torch.tensor(list(COLORS.values()))

    def __call__(self, image: Tensor) -> Tensor:
        """Describe an image (3, H, W), RGB in [0, 1], by a map (384, H / 8, W / 8)."""
        small = functional.avg_pool2d(image, 8)
        distance = (small - self.colors[:, :, None, None]).square().sum(dim=1)
        return torch.einsum("khw,kc->chw", (-20 * distance).softmax(dim=0), self.words)


if __name__ == "__main__":
    room = make_room(seed=0, num_views=6)
    samples = sample_cells(room.points, cell=0.05)
    visibility = see(room, samples)
    teacher = ColorWords()
    features = lift(room, visibility, teacher)
    colors = room.colors[samples.index_of_sample[visibility.seen_samples]]
    questions = Questions.read(load_text_encoder(teacher.text), ["something white", "something brown"])
    for answer in ask(features, questions):
        red, green, blue = colors[answer.relevance.topk(100).indices].mean(dim=0).tolist()
        print(f"{answer.words!r}: the 100 samples that fit best have the colour ({red:.2f}, {green:.2f}, {blue:.2f})")
