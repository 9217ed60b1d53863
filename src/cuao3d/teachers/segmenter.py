"""Any semantic segmenter that transformers opens, by words: BEiT, SegFormer, UPerNet, Mask2Former and their like."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cuao3d.cards import SEGMENTER
from cuao3d.download import find
from cuao3d.errors import InputError, NotFoundError
from cuao3d.files import read_json
from cuao3d.pretrained.huggingface import (
    Preprocessing,
    import_transformers,
    open_model,
    read_preprocessing,
    weights_sha256,
)
from cuao3d.schema import fit
from cuao3d.teachers.classes import NAMES, ClassNames, WordNetwork, WordTeacher, class_words, read_class_names
from cuao3d.teachers.options import LongSide
from cuao3d.text import load_text_encoder

UNIVERSAL = ("eomt", "eomt_dinov3", "mask2former", "maskformer")
"""Segmenters whose queries have a mask and a class each, of transformers' "universal" ones."""

SAY_NOTHING = ("background", "ignore", "n/a", "none", "other", "unknown", "unlabeled", "unlabelled", "void")
"""Names of classes that stand for all the rest."""

MULTIPLE = 32
"""Sides of images are multiples of this, pixels, where the checkpoint fixes only one of them."""


class Segmenter(WordTeacher):
    """A network that gives each pixel a class, of which its settings tell the names."""

    licence = "see its page"

    def __init__(self, weights: Path | None = None, *, text: str = WordTeacher.text, long_side: LongSide = 640) -> None:
        """Load the network from this machine.

        Args:
            weights: Folder of the model; or a repository of the Hugging Face hub, OWNER/NAME, that was fetched.
            text: Text encoder in whose vectors it speaks; see `load_text_encoder`.
            long_side: Longer side, pixels, of images of whose pixels every fourth gets a feature. The network sees the
                size that its settings ask for.

        Raises:
            NotInstalledError: transformers or the text encoder is not installed.
            NotFoundError: The weights are not there.
            InputError: They are not given, are no semantic segmenter's, or its classes have no names.
        """
        if weights is None:
            raise InputError("Say which segmenter: segmenter:FOLDER, or segmenter:OWNER/NAME of the Hugging Face hub.")
        folder = _folder(weights)
        model = open_model(folder, _classes(), attention=None)
        words = class_words(load_text_encoder(text), class_names(model.config.id2label, folder / "config.json"))
        path = folder / "preprocessor_config.json"
        resizing: _Resizing = fit(read_json(path), _Resizing, str(path), "download it again")
        network = SegmenterNetwork(model, words, read_preprocessing(folder), resizing.get("size"))
        super().__init__([network], name=f"segmenter-{weights.name}", text=text, long_side=long_side)
        self.folder = folder
        self.weights_sha256 = weights_sha256(folder)


class _Size(TypedDict, total=False):
    height: LongSide
    width: LongSide
    shortest_edge: LongSide
    longest_edge: LongSide


class _Resizing(TypedDict, total=False):
    """What a `preprocessor_config.json` says of the size of images."""

    size: LongSide | _Size | None


class SegmenterNetwork(WordNetwork):
    """A segmenter of transformers, and the words of its classes."""

    def __init__(
        self, network: nn.Module, words: Float[Tensor, "K C"], preprocessing: Preprocessing, size: Any
    ) -> None:
        """Join the two.

        Args:
            network: The segmenter.
            words: Vector of each class.
            preprocessing: How it wants its images.
            size: Size of images as its settings tell it.
        """
        super().__init__(network, words)
        self.preprocessing, self.size = preprocessing, size

    def forward(
        self, images: Float[Tensor, "B 3 H W"], long_side: LongSide, size: tuple[int, int]
    ) -> Float[Tensor, "B C rows columns"]:
        """Describe images (RGB in [0, 1]) by words on a grid of a size; its `long_side` decides nothing here."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in self.preprocessing[:2])
        wanted = input_size(self.size, images.shape[2], images.shape[3])
        resized = F.interpolate(images, wanted, mode=self.preprocessing.mode, align_corners=False, antialias=True)
        probabilities = class_probabilities(self.network((resized.clamp(0, 1) - mean) / std))
        on_grid = F.interpolate(probabilities, size, mode="bilinear", align_corners=False, antialias=True)
        return torch.einsum("bkhw,kc->bchw", on_grid, self.words)


def class_probabilities(output: Any) -> Float[Tensor, "B K h w"]:
    """Return the probability of each class at each place.

    Of queries with a mask and a class each, a class has the sum of the masks, each as far as its query is of the class;
    where they add up to more than one, their shares.
    """
    if hasattr(output, "logits"):
        logits: Tensor = output.logits
        return logits.float().softmax(dim=1)
    of_query = output.class_queries_logits.float().softmax(dim=2)[:, :, :-1]
    masks = output.masks_queries_logits.float().sigmoid()
    scores = torch.einsum("bqk,bqhw->bkhw", of_query, masks)
    return scores / scores.sum(dim=1, keepdim=True).clamp(min=1)


def input_size(size: Any, height: int, width: int) -> tuple[int, int]:
    """Return the height and width to which an image is resized.

    Args:
        size: As `preprocessor_config.json` tells it: a number or `height` and `width` are exact; `shortest_edge` and
            `longest_edge` keep the image's shape.
        height: Of the image.
        width: Of the image.
    """
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and "height" in size and "width" in size:
        return int(size["height"]), int(size["width"])
    limits = size if isinstance(size, Mapping) else {}
    scale = limits.get("shortest_edge", 512) / min(height, width)
    scale = min(scale, limits.get("longest_edge", 4 * 512) / max(height, width))
    rows, columns = (max(1, round(side * scale / MULTIPLE)) * MULTIPLE for side in (height, width))
    return rows, columns


def class_names(id2label: Mapping[int, str], source: Path) -> ClassNames:
    """Return what a network's classes are called.

    What never stands in a room is left out, where our own lists know the name.

    Args:
        id2label: Name of each class, synonyms separated by commas or semicolons.
        source: Where it was read, for the error.

    Raises:
        InputError: The names are transformers' placeholders, or not one for each class.
    """
    labels = [str(id2label.get(index, "LABEL")) for index in range(len(id2label))]
    if not labels or any(re.fullmatch(r"LABEL(_\d+)?", label) for label in labels):
        raise InputError(
            f"{source} does not name the classes of its network (id2label); words cannot be found with it."
        )
    reasons = dict.fromkeys(SAY_NOTHING, "says nothing")
    for file in ("ade150.csv", "imagenet1000.csv"):
        known = read_class_names(NAMES / file)
        reasons |= {names[0].lower(): why for names, why in zip(known.names, known.left_out, strict=True) if why}
    names = [tuple(re.sub("[-_]", " ", word).strip() for word in re.split("[;,]", label)) for label in labels]
    return ClassNames(tuple(names), tuple(reasons.get(name[0].lower(), "") for name in names))


def _folder(weights: Path) -> Path:
    """Return the folder of a model: the one given, or that of a repository that was fetched."""
    if weights.is_dir():
        return weights
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", weights.as_posix()):
        raise NotFoundError(
            f"There is no folder {weights}; give a model's folder, or a repository: segmenter:OWNER/NAME."
        )
    return find(f"{SEGMENTER}{weights.as_posix()}")


def _classes() -> dict[str, str]:
    """Return the class that opens each type of segmenter."""
    import_transformers()
    from transformers.models.auto import modeling_auto

    universal = modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES
    semantic: dict[str, str] = dict(modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES)
    return semantic | {kind: universal[kind] for kind in UNIVERSAL if kind in universal}
