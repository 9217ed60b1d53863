"""Teachers for real photographs that are small enough to come with a package: ImageNet, ADE20K, and both together."""

import hashlib
from pathlib import Path
from typing import Literal

from cuao3d import download
from cuao3d.cards import CARDS
from cuao3d.console import note
from cuao3d.errors import NotFoundError
from cuao3d.files import check_sha256
from cuao3d.teachers.classes import NAMES, LogitNetwork, WordTeacher, class_words, read_class_names
from cuao3d.teachers.deeplab import load_deeplab
from cuao3d.teachers.efficientnet import VARIANTS, load_efficientnet
from cuao3d.teachers.options import LongSide
from cuao3d.teachers.teacher import Calibration
from cuao3d.text import load_text_encoder

(SHA256,) = CARDS["ade20k"].sha256.values()
"""Of the TFLite file of ADE20K's network."""

LONG_SIDE = 640
"""Longer side, pixels, to which images are scaled."""


def _joined(*sha256: str) -> str:
    """Return one hash for several files."""
    return hashlib.sha256("".join(sha256).encode()).hexdigest()


_IMAGENET, _ADE20K = NAMES / "imagenet1000.csv", NAMES / "ade150.csv"

CLASS_LISTS: dict[str, tuple[Path, ...]] = {
    **{variant.sha256: (_IMAGENET,) for variant in VARIANTS.values()},
    SHA256: (_ADE20K,),
    _joined(VARIANTS["lite2"].sha256): (_IMAGENET,),
    _joined(VARIANTS["lite2"].sha256, SHA256): (_IMAGENET, _ADE20K),
}
"""The lists of classes of a teacher, by the SHA-256 of its weights."""

CALIBRATION = Calibration(0.3, 0.0, "48 photographs of COCO")
"""Of all three; measured by `scripts/calibrate_photographs.py`."""


class EfficientNetTeacher(WordTeacher):
    """EfficientNet-Lite, which learned ImageNet's classes: knows things, not walls and floors."""

    licence = "Apache-2.0"
    calibration = CALIBRATION
    about = "a small network trained on photographs"

    def __init__(
        self,
        weights: Path | None = None,
        *,
        name: str = "efficientnet",
        variant: Literal["lite0", "lite2"] = "lite2",
        text: str = WordTeacher.text,
        long_side: LongSide = LONG_SIDE,
    ) -> None:
        """Load the network.

        Args:
            weights: File of the weights; if not given, that of the package which `cuao3d[demo]` installs.
            name: Name of the teacher.
            variant: Which network of the family.
            text: Text encoder in whose vectors it speaks; see `load_text_encoder`.
            long_side: Longer side, pixels, to which images are scaled.

        Raises:
            NotInstalledError: The package with the weights, or the text encoder, is not installed.
            InputError: The file is not the known one.
        """
        super().__init__([_efficientnet(weights, variant, text)], name=name, text=text, long_side=long_side)
        self.variant = variant
        self.weights_sha256 = VARIANTS[variant].sha256


class ADE20K(WordTeacher):
    """DeepLabv3 on MobileNetV2, which learned the 150 classes of ADE20K: knows walls, floors and furniture."""

    licence = CARDS["ade20k"].licence
    calibration = CALIBRATION
    about = "a small network trained on photographs"

    def __init__(
        self,
        weights: Path | None = None,
        *,
        name: str = "ade20k",
        text: str = WordTeacher.text,
        long_side: LongSide = LONG_SIDE,
    ) -> None:
        """Load the network.

        Args:
            weights: Its TFLite file; if not given, the weights called "ade20k".
            name: Name of the teacher.
            text: Text encoder in whose vectors it speaks; see `load_text_encoder`.
            long_side: Longer side, pixels, to which images are scaled.

        Raises:
            NotFoundError: The weights are not there.
            NotInstalledError: What reads TFLite files, or the text encoder, is not installed.
            InputError: The file is not the known one.
        """
        super().__init__([_ade20k(weights, text)], name=name, text=text, long_side=long_side)
        self.weights_sha256 = SHA256


class Photo(WordTeacher):
    """Both: EfficientNet-Lite2 and ADE20K's network, or the first alone where the second cannot be had.

    Its weights are looked for on this machine and then downloaded, 2 MB, unless `CUAO3D_OFFLINE` is set.
    """

    licence = "Apache-2.0"
    calibration = CALIBRATION
    about = "made of small networks trained on photographs"

    def __init__(
        self,
        weights: Path | None = None,
        *,
        name: str = "photo",
        text: str = WordTeacher.text,
        long_side: LongSide = LONG_SIDE,
    ) -> None:
        """Load the networks.

        Args:
            weights: TFLite file of ADE20K's network; if not given, the weights called "ade20k".
            name: Name of the teacher.
            text: Text encoder in whose vectors it speaks; see `load_text_encoder`.
            long_side: Longer side, pixels, to which images are scaled.

        Raises:
            NotInstalledError: The package with EfficientNet's weights, what reads TFLite files, or the text encoder is
                not installed.
            NotFoundError: `weights` is given and not there.
            InputError: A file is not the known one.
        """
        networks, hashes = [_efficientnet(None, "lite2", text)], [VARIANTS["lite2"].sha256]
        self.notes: tuple[str, ...] = ()
        try:
            networks.append(_ade20k(weights or _fetched(name), text))
            hashes.append(SHA256)
        except NotFoundError as error:
            if weights:
                raise
            self.notes = (f"{name} uses EfficientNet alone, which knows things but not walls and floors: {error}",)
        super().__init__(networks, name=name, text=text, long_side=long_side)
        self.weights_sha256 = _joined(*hashes)


def _fetched(name: str) -> Path:
    """Return the file of ADE20K's network, which is downloaded if it is nowhere on this machine; a line says so."""
    card = CARDS["ade20k"]
    if not download.is_here("ade20k") and not download.is_offline():
        size = download.size_in_words(card)
        line = f"{name} downloads the weights ade20k ({size}, licence {card.licence}) from {card.repository}"
        note(line)
    return download.fetch("ade20k")


def _efficientnet(weights: Path | None, variant: str, text: str) -> LogitNetwork:
    words = class_words(load_text_encoder(text), read_class_names(_IMAGENET))
    network = load_efficientnet(variant, weights, stride=32)
    return LogitNetwork(network, words, stride=32, multiple=32, grey=127.0, scales=(1.0, 1.5))


def _ade20k(weights: Path | None, text: str) -> LogitNetwork:
    path = weights or download.find("ade20k")
    if not path.is_file():
        raise NotFoundError(f"There is no file {path} with the weights ade20k.")
    check_sha256(path, SHA256)
    words = class_words(load_text_encoder(text), read_class_names(_ADE20K))
    return LogitNetwork(load_deeplab(path), words, stride=4, multiple=8, scales=(0.5, 1.0))
