"""The students of the tables: which teachers each learns from, and how it differs from the open recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cuao3d import recipes

ROLES = tuple(recipes.PAPER_TEACHERS)
"""The paper's teachers; in made worlds the small ones stand for them."""

LSEG, DINO, DIFFUSION, VIT = *ROLES, "vit"
SHUFFLED, ORACLE = "shuffled-", "oracle"
"""Names of the teachers that are controls; see `controls`."""

MINI = dict(zip((LSEG, VIT, DINO, DIFFUSION), recipes.SMALL_TEACHERS, strict=True))
"""Which small teacher stands for which."""


@dataclass(frozen=True)
class Arm:
    """A student of the tables."""

    teachers: tuple[str, ...]
    """Its teachers: roles, or controls."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the open recipe, which standardises the features of teachers without words, compares all by
    cosine, and weights by sigma."""

    def names(self, stand_in: Mapping[str, str]) -> tuple[str, ...]:
        """Return its teachers, with those of a world in place of the roles."""
        names = []
        for name in self.teachers:
            role = name.removeprefix(SHUFFLED)
            names.append(name.removesuffix(role) + stand_in.get(role, role))
        return tuple(names)


PAPERS, ALL_SHUFFLED = (LSEG, DINO, DIFFUSION), (LSEG, SHUFFLED + DINO, SHUFFLED + DIFFUSION)
COSINE, PLAIN, DEMEANED = ("cosine", "cosine"), ("cosine", "l1", "cosine"), ("cosine", "l1", "demeaned-cosine")
EQUAL = {"normalizers": (), "weighting": "equal"}

BASE, OURS, PAPERS_WAY = "LSeg only", "conditioned", "all + sigma + demean"
ARMS: dict[str, Arm] = {
    BASE: Arm((LSEG,)),
    OURS: Arm(PAPERS),
    PAPERS_WAY: Arm(PAPERS, {"losses": DEMEANED, "normalizers": ()}),
    "all + sigma": Arm(PAPERS, {"losses": PLAIN, "normalizers": ()}),
    "all, equal": Arm(PAPERS, {"losses": PLAIN, **EQUAL}),
    "conditioned, shuffled": Arm(ALL_SHUFFLED),
    "conditioned, oracle": Arm((LSEG, ORACLE)),
    "conditioned, + ViT": Arm((*PAPERS, VIT)),
    "+ ViT": Arm((LSEG, VIT), {"losses": COSINE, **EQUAL}),
    "+ DINOv2": Arm((LSEG, DINO), {"losses": PLAIN[:2], **EQUAL}),
    "+ SD": Arm((LSEG, DIFFUSION), {"losses": PLAIN[::2], **EQUAL}),
    "shuffled": Arm(ALL_SHUFFLED, {"losses": DEMEANED, "normalizers": ()}),
    "oracle": Arm((LSEG, ORACLE), {"losses": COSINE, **EQUAL}),
    "random weights": Arm(PAPERS, {"losses": DEMEANED, "normalizers": (), "weighting": "random"}),
    "free weights": Arm(PAPERS, {"losses": DEMEANED, "normalizers": (), "weighting": "free"}),
}
"""Students by what the ablation calls them, the most important first."""

TITLES = {
    BASE: "LSeg alone (OpenScene's way)",
    OURS: "three teachers, conditioned (ours)",
    PAPERS_WAY: "three teachers, the paper's way",
}
"""What the other tables call them."""
