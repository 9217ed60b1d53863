"""The claims of the paper, judged by what the cells hold: by students, or probes, of the same seed."""

from collections.abc import Sequence

from cuao3d import reproduce as room
from cuao3d.probe import SHUFFLED
from cuao3d.reproduce.arms import BASE, DIFFUSION, DINO, LSEG, OURS, PAPERS_WAY
from cuao3d.reproduce.tables import Claim, Row, claim, differences, miou_of

LIFTED = "lifted"

NAMES = {DINO: "DINOv2", DIFFUSION: "Stable Diffusion"}
"""Teachers whose geometry is claimed."""


def make_claims(done: "room.Reproduction") -> list[Claim]:
    """Judge the claims of the paper that the cells can tell about, and those that are ours."""
    found: list[Claim] = []
    if "ablation" in done.asked:
        found += _ablation_claims(done)
    if {"zero-shot", "vocabularies"} & set(done.asked):
        found += _zero_shot_claims(done)
    if done.other is not None:
        found += _transfer_claims(done)
    if "linear-probe" in done.asked:
        found += _probe_claims(done)
    if "geometry" in done.asked:
        found += _geometry_claims(done)
    return found


def rows_of(done: "room.Reproduction", where: str, arm: str, what: str) -> list[Sequence[Row] | None]:
    """Return the rows of a student's cells, one entry a seed; None where it failed."""
    return [done.cells.value(f"{where}/{arm}-{seed}/{what}") for seed in done.seeds]


def headroom(done: "room.Reproduction") -> float | None:
    """Return what linear probes find more in all lifted features than in those of the teacher with words, mIoU."""
    apart = []
    for rows in rows_of(done, done.world.name, LIFTED, "linear-probe"):
        of = {row["readout"]: row["miou"] for row in rows or ()}
        words = of.get(f"probe: lifted {done.world.stand_in[LSEG]}")
        together = of.get("probe: lifted concatenated")
        if words is not None and together is not None:
            apart.append(together - words)
    return sum(apart) / len(apart) if apart else None


def _ablation_claims(done: "room.Reproduction") -> list[Claim]:
    main, known = done.world.labels[0], headroom(done)
    miou = {arm: miou_of(rows_of(done, room.CONTROLLED, arm, main)) for arm in done.ladder}

    def gain(arm: str, other: str = BASE) -> list[float]:
        return differences(miou.get(arm, {}), miou.get(other, {}))

    random = {"over random weights, demeaned": gain(PAPERS_WAY, "random weights")}
    return [
        claim(text, gain(arm), oracle=gain(oracle), shuffled=gain(shuffled), headroom=known)
        for text, arm, oracle, shuffled in (
            ("three teachers beat LSeg alone, in the paper's way", PAPERS_WAY, "oracle", "shuffled"),
            ("three teachers beat LSeg alone, conditioned", OURS, "conditioned, oracle", "conditioned, shuffled"),
        )
    ] + [
        claim("learned noise levels beat equal weights", gain("all + sigma", "all, equal"), beside=random),
        claim("demeaning helps", gain(PAPERS_WAY, "all + sigma")),
    ]


def _zero_shot_claims(done: "room.Reproduction") -> list[Claim]:
    main = done.world.labels[0]
    paper, ours = (rows_of(done, done.world.name, arm, main) for arm in (PAPERS_WAY, OURS))
    alone = miou_of([done.cells.value(f"{done.world.name}/lifted/{main}")] * done.num_seeds, "fused")
    lifted = {"lifted features alone": differences(alone, miou_of(paper))}
    return [
        claim("2D3D beats 3D", differences(miou_of(paper, "2d3d"), miou_of(paper)), beside=lifted),
        claim("(ours) conditioning beats the paper's way", differences(miou_of(ours), miou_of(paper))),
    ]


def _transfer_claims(done: "room.Reproduction") -> list[Claim]:
    assert done.other is not None
    found, here, there = [], done.world, done.other
    for trained, scored in ((here, there), (there, here)):
        what, where = f"in-{scored.name}-{scored.labels[0]}", f"from {trained.name} to {scored.name}"
        paper, base, ours = (miou_of(rows_of(done, trained.name, arm, what)) for arm in (PAPERS_WAY, BASE, OURS))
        known = headroom(done) if trained is here else None
        if trained is here:  # in the other world no student is trained in the paper's way
            gains = differences(paper, base)
            found.append(claim(f"three teachers beat LSeg alone, in the paper's way, {where}", gains, headroom=known))
        gains = differences(ours, base)
        found.append(claim(f"three teachers beat LSeg alone, conditioned, {where}", gains, headroom=known))
        if trained is here:
            found.append(claim(f"(ours) conditioning beats the paper's way, {where}", differences(ours, paper)))
    return found


def _probe_claims(done: "room.Reproduction") -> list[Claim]:
    of_head, of_base, of_nothing = [], [], []
    for seed in done.seeds:
        ours, base = (done.cells.value(f"{done.world.name}/{arm}-{seed}/linear-probe") or () for arm in (OURS, BASE))
        of = {row["readout"]: row["miou"] for row in ours}
        heads = [miou for readout, miou in of.items() if readout.startswith("probe: head")]
        alone = [row["miou"] for row in base if row["readout"].startswith("probe: head")]
        if "probe: concatenated" in of and heads and alone:
            of_head.append(of["probe: concatenated"] - max(heads))
            of_base.append(of["probe: concatenated"] - alone[0])
            of_nothing.append(of[SHUFFLED] - alone[0])
    return [
        claim("the probe of all heads beats that of the best head", of_head),
        claim("the probe of all heads beats that of LSeg's student", of_base, shuffled=of_nothing),
    ]


def _geometry_claims(done: "room.Reproduction") -> list[Claim]:
    """Judge by lifted features; a seed is one of the draw of the samples that probes learn from."""
    gains: dict[tuple[str, str, str], tuple[list[float], list[float]]] = {}
    for rows in rows_of(done, done.world.name, LIFTED, "geometry"):
        errors: dict[tuple[str, str], dict[str, float]] = {}
        for row in rows or ():
            scale, unit = (100, "cm") if row["unit"] == "metres" else (1, row["unit"])
            errors.setdefault((row["quantity"], unit), {})[row["readout"]] = scale * row["error"]
        for (quantity, unit), of in errors.items():
            words = of.get(f"probe: lifted {done.world.stand_in.get(LSEG)}")
            blind = [error for readout, error in of.items() if readout.startswith("control")]
            for role, who in NAMES.items():
                error = of.get(f"probe: lifted {done.world.stand_in.get(role)}")
                if words is not None and error is not None and blind:
                    seeing, without = gains.setdefault((who, quantity, unit), ([], []))
                    seeing.append(words - error)
                    without.append(words - min(blind))
    return [
        claim(f"{who} knows {quantity} better than LSeg (less error, {unit})", seeing, blind=without)
        for (who, quantity, unit), (seeing, without) in gains.items()
    ]
