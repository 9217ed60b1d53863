"""The teachers that go by a name, and what is known of each before its weights are read."""

from collections.abc import Iterable
from typing import Any

from cuao3d.download import CARDS
from cuao3d.files import read_json
from cuao3d.names import match_name
from cuao3d.schema import fit
from cuao3d.teachers.classes import read_class_names
from cuao3d.teachers.clip import CLIPDense
from cuao3d.teachers.dinov2 import DINOv2
from cuao3d.teachers.dinov3 import DINOv3
from cuao3d.teachers.lseg import LSegTeacher
from cuao3d.teachers.mini import WEIGHTS, MiniDiffusion, MiniDino, MiniLSeg, MiniVit
from cuao3d.teachers.photo import ADE20K, CLASS_LISTS, EfficientNetTeacher, Photo
from cuao3d.teachers.radio import RADIO
from cuao3d.teachers.segmenter import Segmenter
from cuao3d.teachers.siglip2 import SigLIP2
from cuao3d.teachers.stable_diffusion import StableDiffusion
from cuao3d.teachers.teacher import DEFAULT, Calibration, TeacherCard
from cuao3d.teachers.vit import ViT
from cuao3d.vocabulary import Vocabulary

TEACHERS: dict[str, type[Any]] = {
    "lseg": LSegTeacher,
    "mini-lseg": MiniLSeg,
    "mini-vit": MiniVit,
    "mini-dino": MiniDino,
    "mini-diffusion": MiniDiffusion,
    "photo": Photo,
    "efficientnet": EfficientNetTeacher,
    "ade20k": ADE20K,
    "segmenter": Segmenter,
    "dinov2": DINOv2,
    "dinov2-small": DINOv2,
    "dinov2-base": DINOv2,
    "dinov2-giant": DINOv2,
    "dinov2-registers": DINOv2,
    "dinov2-small-registers": DINOv2,
    "dinov2-base-registers": DINOv2,
    "dinov2-giant-registers": DINOv2,
    "dinov3": DINOv3,
    "dinov3-small": DINOv3,
    "dinov3-base": DINOv3,
    "clip": CLIPDense,
    "clip-large": CLIPDense,
    "siglip2": SigLIP2,
    "siglip2-large": SigLIP2,
    "radio": RADIO,
    "vit": ViT,
    "stable_diffusion": StableDiffusion,
    "stable_diffusion_2_1": StableDiffusion,
}
"""Class by name. Stores and students hold these names; users may write "-", "_" and "." for each other."""

IMPORTED = {"openseg": TeacherCard(CARDS["clip-large"].num_channels, CARDS["clip-large"].text)}
"""Teachers whose features are imported only. OpenSeg learned the space of CLIP's ViT-L/14@336px."""

SHORT = {"sd": "stable_diffusion", "amradio": "radio"}
"""What CUA-O3D's files call teachers."""


def canonical(name: str, among: Iterable[str] | None = None) -> str:
    """Return the name under which a teacher is stored, however it is spelled.

    Args:
        name: Name of a teacher as it is typed: "stable-diffusion", "stable_diffusion" or "sd".
        among: Names to choose from, such as those of a store; the known teachers' unless given.

    Returns:
        The name; `name` itself if none is meant.
    """
    known = match_name(name, (*TEACHERS, *IMPORTED))
    known = SHORT.get(known, known)
    if among is None:
        return known
    names = tuple(among)
    return next((found for one in (name, known) if (found := match_name(one, names)) in names), name)


def known_card(name: str) -> TeacherCard | None:
    """Return what is known of a teacher by its name; None if nothing is.

    Args:
        name: Name of a teacher, in any spelling.
    """
    name = canonical(name)
    if name in IMPORTED or name not in TEACHERS:
        return IMPORTED.get(name)
    teacher = TEACHERS[name]
    about = CARDS.get(match_name(name, CARDS), teacher)  # the small ones come with the package
    return TeacherCard(about.num_channels, about.text, teacher.loss, licence=about.licence)


def calibration_of(name: str, weights_sha256: str | None = None) -> Calibration:
    """Return at which relevance verdicts about a teacher's lifted features change.

    Args:
        name: Name of a teacher, in any spelling; another one has the default.
        weights_sha256: SHA-256 of its weights, as its card has it; the card of weights of the package may say more.
    """
    kept = shipped_card(weights_sha256).get("calibration") if weights_sha256 else None
    if kept is not None:
        of_weights: Calibration = fit(kept, Calibration, f"The calibration of {name}")
        return of_weights
    calibration: Calibration = getattr(TEACHERS.get(canonical(name)), "calibration", DEFAULT)
    return calibration


def class_names_of(weights_sha256: str | None) -> tuple[str, ...]:
    """Return the names of the classes that a teacher can tell apart, synonyms included; none if it knows any words.

    Args:
        weights_sha256: SHA-256 of the teacher's weights, as its card has it.
    """
    lists = map(read_class_names, CLASS_LISTS.get(weights_sha256 or "", ()))
    names = (
        name
        for classes in lists
        for own, reason in zip(classes.names, classes.left_out, strict=True)
        if not reason
        for name in own
    )
    return tuple(dict.fromkeys(names))


def vocabulary_of(name: str, weights_sha256: str | None) -> Vocabulary | None:
    """Return the words that a teacher was trained with; None where they are not known.

    They may be hundreds, so stores and students do not repeat them: the weights tell which they are.

    Args:
        name: Name of the teacher.
        weights_sha256: SHA-256 of its weights, as its card has it.
    """
    if weights_sha256 is None:
        return None
    words = [*class_names_of(weights_sha256)] or shipped_card(weights_sha256).get("vocabulary")
    return None if words is None else Vocabulary(tuple(fit(words, list[str], f"The vocabulary of {name}")), name)


def shipped_card(weights_sha256: str) -> dict[str, Any]:
    """Return the card of weights that ship with the package; an empty one for others.

    Args:
        weights_sha256: SHA-256 of the weights.
    """
    cards = (read_json(path) for path in sorted(WEIGHTS.glob("*.json")))
    return next((card for card in cards if card.get("sha256") == weights_sha256), {})
