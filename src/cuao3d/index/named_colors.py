"""Colours by name: which of eleven names each point's colour has, and the colour words of a question."""

import re

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

TYPICAL = {
    "black": ((25, 25, 25),),
    "white": ((240, 240, 240),),
    "grey": ((135, 135, 135),),
    "red": ((195, 30, 35), (90, 15, 20)),
    "orange": ((235, 130, 30),),
    "yellow": ((235, 215, 60),),
    "green": ((55, 140, 65), (25, 60, 30), (150, 200, 130), (0, 255, 0)),
    "blue": ((45, 85, 180), (25, 35, 80), (135, 175, 220), (0, 0, 255)),
    "purple": ((120, 60, 150), (70, 35, 85)),
    "pink": ((235, 150, 185),),
    "brown": ((115, 75, 45), (70, 45, 30)),
}
"""The eleven basic colour terms of English (Berlin and Kay, 1969), each with typical colours, sRGB in 0 to 255."""

NAMES = tuple(TYPICAL)

ALSO = {"gray": "grey", "violet": "purple"}
"""Other words for them."""

LIGHTNESS = 0.5
"""A difference of lightness counts this much less than one of hue: shade changes lightness alone."""

_WORD = "|".join([*NAMES, *ALSO])
_ASKED = re.compile(rf"\b(?:{_WORD})(?:(?:\s*,\s*|\s+and\s+|\s+or\s+|\s+)(?:{_WORD}))*\b", re.IGNORECASE)
_FILLING = re.compile(r"\b(?:a|an|the|some|something|somewhere|thing|things|in|is|of|that)\b|[^\w]", re.IGNORECASE)


def split_colors(question: str) -> tuple[str, tuple[str, ...]]:
    """Split the colour words off a question.

    Args:
        question: Such as "a red chair".

    Returns:
        The rest, "a chair", and the names in `NAMES` of the colours. A question that asks for nothing else, such as
        "an orange" or "something white", is left whole.
    """
    found = list(_ASKED.finditer(question))
    rest = " ".join(_ASKED.sub(" ", question).split())
    if not found or not _FILLING.sub("", rest):
        return question, ()
    words = re.findall(_WORD, " ".join(one.group() for one in found), re.IGNORECASE)
    names = [ALSO.get(word.lower(), word.lower()) for word in words]
    return re.sub(r"\ban (?=[^aeiou])", "a ", rest), tuple(dict.fromkeys(names))


def color_of_points(colors: Float[Tensor, "N 3"]) -> Int64[Tensor, "N"]:
    """Return the row in `NAMES` whose typical colour is nearest to each point's, in CIELAB with lightness toned down.

    Args:
        colors: sRGB in [0, 1].
    """
    rows = torch.tensor([row for row, typical in enumerate(TYPICAL.values()) for _ in typical])
    typical = _lab(torch.tensor([color for colors in TYPICAL.values() for color in colors]) / 255)
    nearest = [torch.cdist(_lab(few), typical).argmin(dim=1) for few in torch.split(colors, 1 << 16)]
    return rows[torch.cat(nearest)]


def _lab(colors: Float[Tensor, "N 3"]) -> Float32[Tensor, "N 3"]:
    """Convert sRGB to CIELAB (D65; CIE 15), its lightness times `LIGHTNESS`."""
    linear = torch.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4).float()
    matrix = torch.tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / torch.tensor([0.9505, 1.0, 1.0890])
    root = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=0) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root.unbind(dim=1)
    return torch.stack([LIGHTNESS * (116 * y - 16), 500 * (x - y), 200 * (y - z)], dim=1)
