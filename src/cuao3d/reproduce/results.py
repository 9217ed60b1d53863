"""What is made of the cells: tables, claims, costs, figures, and the page that holds them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from cuao3d import __version__
from cuao3d import reproduce as room
from cuao3d.console import note
from cuao3d.figures.panels import as_uri
from cuao3d.figures.sides import draw_sides
from cuao3d.files import write_text
from cuao3d.own_report.case import Case, Section, open_case
from cuao3d.own_report.pictures import disagreement, histograms, segments
from cuao3d.own_report.pictures import training as training_of
from cuao3d.predictor import Predictor
from cuao3d.progress import machine, waiting
from cuao3d.published import published
from cuao3d.reproduce import tables as lines
from cuao3d.reproduce.arms import BASE, DINO, LSEG, OURS, PAPERS_WAY, TITLES
from cuao3d.reproduce.tables import Claim, Row, claim, differences, miou_of
from cuao3d.reproduce.worlds import QUICK
from cuao3d.tables import Table, Value, write_tables

HERE, LIFTED = "here", "lifted"


def make_tables(done: "room.Reproduction") -> list[Table]:
    """Return the tables that were asked for, then the claims and the costs."""
    makers = {
        "zero-shot": _zero_shot,
        "vocabularies": _vocabularies,
        "cross-dataset": _cross_dataset,
        "ablation": _ablation,
        "linear-probe": _linear_probe,
        "geometry": _geometry,
        "trust": _trust,
    }
    made = [makers[name](done) for name in room.TABLES if name in done.asked]
    claims = make_claims(done)
    extra = [lines.claims_table(claims)] if claims else []
    return [_without_empty(table) for table in (*made, *extra, _costs(done)) if table is not None and table.rows]


def _without_empty(table: Table) -> Table:
    """Leave out the columns of a table that hold nothing."""
    kept = [index for index in range(len(table.columns)) if any(row[index] is not None for row in table.rows)]
    rows = tuple(tuple(row[index] for index in kept) for row in table.rows)
    return replace(table, columns=tuple(table.columns[index] for index in kept), rows=rows)


def rows_of(done: "room.Reproduction", where: str, arm: str, what: str) -> list[Sequence[Row] | None]:
    """Return the rows of a student's cells, one entry a seed; None where it failed."""
    return [done.cells.value(f"{where}/{arm}-{seed}/{what}") for seed in done.seeds]


def _zero_shot(done: "room.Reproduction") -> Table:
    world, main = done.world, done.world.labels[0]
    lifted = done.cells.value(f"{world.name}/lifted/{main}") or []
    found: list[tuple[Value, ...]] = lines.controls_lines(lifted, HERE)
    found += lines.score_lines("lifted features", [lifted], HERE)
    found += lines.score_lines("lifted features", [done.cells.value(f"{world.name}/voting/{main}")], HERE)
    for arm in room.MODELS:
        found += lines.score_lines(TITLES[arm], rows_of(done, world.name, arm, main), HERE)
        found += lines.score_lines(TITLES[arm], rows_of(done, world.name, arm, f"{main}-{room.PASSES}-passes"), HERE)
    found += lines.score_lines(room.SUPERVISED, rows_of(done, world.name, room.SUPERVISED, main), HERE)
    found += lines.published_lines(published("zero-shot", main))
    return Table(
        "zero-shot",
        f"Segmentation by the names of the classes of {main}, without labels: lifted features, students by their "
        "own read-out and together with the lifted features (2d3d, by three rules), and a student trained with labels.",
        lines.SCORES,
        tuple(found),
        f"{_scenes(lifted)} {_seeds(done)} mIoU over the classes that occur, on all original points. Published figures "
        "are of real scans and the full-size teachers; beside made scenes they only orient.",
    )


def _vocabularies(done: "room.Reproduction") -> Table:
    world = done.world
    found: list[tuple[Value, ...]] = []
    for labels in world.labels:
        lifted = done.cells.value(f"{world.name}/lifted/{labels}") or []
        models = {"lifted features": [lifted]}
        models |= {TITLES[arm]: rows_of(done, world.name, arm, labels) for arm in room.MODELS}
        for model, of_seed in models.items():
            for readout, rows, scores in lines.scored_lines(of_seed):
                if rows[0].get("ensemble") in (None, "unit-average"):
                    groups = [lines.number(row["by_group"].get(group) for row in rows) for group in _GROUPS]
                    found.append((labels, model, readout, *scores, *groups, HERE))
        found += [
            (labels, row.method, row.readout or "–", row.miou, row.macc, None, None, None, lines.source_of(row))
            for row in published(None, labels)
            if row.table in ("zero-shot", "cross-dataset")
        ]
    return Table(
        "vocabularies",
        "The same students asked with vocabularies of different sizes; nothing is trained again for any of them.",
        ("label set", "model", "read-out", "mIoU", "mAcc", *_GROUPS, "source"),
        tuple(found),
        "Head, common and tail are the groups of ScanNet200's classes.",
    )


_GROUPS = ("head", "common", "tail")


def _cross_dataset(done: "room.Reproduction") -> Table | None:
    if done.other is None:
        return None
    found: list[tuple[Value, ...]] = []
    for trained, scored in ((done.world, done.other), (done.other, done.world)):
        for labels in scored.labels:
            for arm in room.MODELS:
                rows = rows_of(done, trained.name, arm, f"in-{scored.name}-{labels}")
                for readout, _, scores in lines.scored_lines(rows):
                    found.append((trained.name, scored.name, labels, TITLES[arm], readout, *scores, HERE))
            found += [
                (
                    row.trained_on,
                    row.evaluated_on,
                    labels,
                    row.method,
                    row.readout,
                    row.miou,
                    row.macc,
                    lines.source_of(row),
                )
                for row in published("cross-dataset", labels)
            ]
    return Table(
        "cross-dataset",
        "Students that were trained in one world, and are asked in the other.",
        ("trained on", "scored in", "label set", "model", "read-out", "mIoU", "mAcc", "source"),
        tuple(found),
        "2d3d joins the student with features lifted in the world that it is asked in. Some published lines compare "
        "one read-out with another; their notes in cuao3d.published say which.",
    )


def _ablation(done: "room.Reproduction") -> Table:
    main = done.world.labels[0]
    scores = {arm: rows_of(done, room.CONTROLLED, arm, main) for arm in done.ladder}
    steps = (
        "as many steps as their recipes say" if done.size.num_ablation is None else f"{done.size.num_ablation} steps"
    )
    return lines.ablation_table(scores, headroom(done), f"Students of {steps}, scored on {main}.")


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


def _linear_probe(done: "room.Reproduction") -> Table:
    world = done.world
    found: list[tuple[Value, ...]] = []
    seen = set[str]()
    models = {TITLES[arm]: rows_of(done, world.name, arm, "linear-probe") for arm in (OURS, BASE)}
    for model, of_seed in models.items():
        for readout, _, scores in lines.scored_lines(of_seed):
            if "lifted" not in readout and not (readout.startswith("control") and readout in seen):
                seen.add(readout)
                found.append((model, readout, *scores, HERE))
    others = {
        "lifted features": rows_of(done, world.name, LIFTED, "linear-probe"),
        room.SUPERVISED: rows_of(done, world.name, room.SUPERVISED, world.labels[0]),
    }
    for model, of_seed in others.items():
        found += [(model, readout, *scores, HERE) for readout, _, scores in lines.scored_lines(of_seed)]
    found += [(row.method, row.readout, row.miou, row.macc, lines.source_of(row)) for row in published("linear-probe")]
    return Table(
        "linear-probe",
        "What a linear map, trained with labels, finds in frozen features: of all heads of a student together, of each "
        "head, and of the lifted features.",
        ("model", "probe", "mIoU", "mAcc", "source"),
        tuple(found),
        "The control learned from labels that were shuffled among its samples.",
    )


def _geometry(done: "room.Reproduction") -> Table:
    world = done.world
    of_model = {"lifted features": rows_of(done, world.name, LIFTED, "geometry")}
    of_model |= {TITLES[arm]: rows_of(done, world.name, arm, "geometry") for arm in (OURS, BASE)}
    errors: dict[tuple[str, str], dict[str, list[float]]] = {}
    units: dict[str, str] = {}
    for model, of_seed in of_model.items():
        for row in (row for rows in of_seed for row in rows or ()):
            units[row["quantity"]] = row["unit"]
            is_control = row["readout"].startswith("control")
            if model == "lifted features" or not is_control:
                whose = "control" if is_control else model
                errors.setdefault((whose, row["readout"]), {}).setdefault(row["quantity"], []).append(row["error"])
    order = sorted(errors, key=lambda line: line[0] != "control")
    found = [(*line, *(lines.number(errors[line].get(quantity, ()), 2) for quantity in units)) for line in order]
    return Table(
        "geometry",
        "How well a linear map reads the direction of a surface, its height, and depth off frozen features; smaller is "
        "better.",
        ("model", "probe", *(f"{quantity}, {unit}" for quantity, unit in units.items())),
        tuple(found),
        "Mean absolute error; of normals the mean angle. The controls see no feature: the mean and the median of what "
        "the probes learn from, and a probe of the place in the image.",
    )


def _trust(done: "room.Reproduction") -> Table:
    world, main = done.world, done.world.labels[0]
    found: list[tuple[Value, ...]] = []
    models = {"lifted features": [done.cells.value(f"{world.name}/lifted/{main}")]}
    models |= {TITLES[arm]: rows_of(done, world.name, arm, main) for arm in room.MODELS}
    for model, of_seed in models.items():
        for readout, rows in lines.by_readout(of_seed).items():
            trusts = [row["trust"] for row in rows if row.get("trust")]
            if trusts:
                scores = [("error", 1), ("aurc", 2), ("auroc", 3), ("calibration_error", 1)]
                error, aurc, auroc, off = (lines.number((one[key] for one in trusts), digits) for key, digits in scores)
                kept = [lines.number(one["error_at"][share] for one in trusts) for share in ("50", "80", "90")]
                found.append((model, readout, error, *kept, aurc, auroc, off))
    return Table(
        "trust",
        "Does a model know where it is wrong? Share of wrong points among those that it is surest of; how well its "
        "confidence sorts wrong from right; and how far confidence is from the share that is right.",
        ("model", "read-out", "error, %", "at 50 %", "at 80 %", "at 90 %", "AURC", "AUROC of errors", "off, %"),
        tuple(found),
        "AURC: mean error over all coverages; withholding points at random leaves the error as it is. Off: expected "
        "calibration error; confidence is fitted on scenes that no table shows; where it is not, there is none.",
    )


def make_claims(done: "room.Reproduction") -> list[Claim]:
    """Judge the claims of the paper that the cells can tell about."""
    found: list[Claim] = []
    main = done.world.labels[0]
    if "ablation" in done.asked:
        miou = {arm: miou_of(rows_of(done, room.CONTROLLED, arm, main)) for arm in done.ladder}

        def gain(arm: str, other: str = BASE) -> list[float]:
            return differences(miou.get(arm, {}), miou.get(other, {}))

        known = headroom(done)
        for text, arm, oracle, shuffled in (
            ("three teachers beat LSeg alone, in the paper's way", PAPERS_WAY, "oracle", "shuffled"),
            ("three teachers beat LSeg alone, conditioned", OURS, "conditioned, oracle", "conditioned, shuffled"),
        ):
            found.append(claim(text, gain(arm), oracle=gain(oracle), shuffled=gain(shuffled), headroom=known))
        found.append(claim("learned noise levels beat equal weights", gain("all + sigma", "all, equal")))
        found.append(claim("demeaning helps", gain(PAPERS_WAY, "all + sigma")))
    if {"zero-shot", "vocabularies"} & set(done.asked):
        rows = rows_of(done, done.world.name, PAPERS_WAY, main)
        found.append(claim("2D3D beats 3D", differences(miou_of(rows, "2d3d"), miou_of(rows))))
        ours = miou_of(rows_of(done, done.world.name, OURS, main))
        found.append(claim("(ours) conditioning beats the paper's way", differences(ours, miou_of(rows))))
    if done.other is not None:
        what = f"in-{done.other.name}-{done.other.labels[0]}"
        paper, base, ours = (miou_of(rows_of(done, done.world.name, arm, what)) for arm in (PAPERS_WAY, BASE, OURS))
        where = f"taken to {done.other.name}"
        found.append(
            claim(f"three teachers beat LSeg alone, {where}", differences(paper, base), headroom=headroom(done))
        )
        found.append(claim(f"(ours) conditioning beats the paper's way, {where}", differences(ours, paper)))
    if "linear-probe" in done.asked:
        found += _probe_claims(done)
    if "geometry" in done.asked:
        found += _geometry_claims(done)
    return found


def _probe_claims(done: "room.Reproduction") -> list[Claim]:
    of_seed = []
    for seed in done.seeds:
        ours, base = (done.cells.value(f"{done.world.name}/{arm}-{seed}/linear-probe") or () for arm in (OURS, BASE))
        of = {row["readout"]: row["miou"] for row in ours}
        heads = [miou for readout, miou in of.items() if readout.startswith("probe: head")]
        alone = [row["miou"] for row in base if row["readout"].startswith("probe: head")]
        if "probe: concatenated" in of and heads and alone:
            of_seed.append((of["probe: concatenated"], max(heads), alone[0]))
    return [
        claim("the probe of all heads beats that of the best head", [one - best for one, best, _ in of_seed]),
        claim("the probe of all heads beats that of LSeg's student", [one - base for one, _, base in of_seed]),
    ]


def _geometry_claims(done: "room.Reproduction") -> list[Claim]:
    gains: dict[tuple[str, str], list[float]] = {}
    for rows in rows_of(done, done.world.name, LIFTED, "geometry"):
        errors = {(row["quantity"], row["unit"], row["readout"]): row["error"] for row in rows or ()}
        for quantity, unit in dict.fromkeys(key[:2] for key in errors):
            words, dino = (
                errors.get((quantity, unit, f"probe: lifted {done.world.stand_in.get(role)}")) for role in (LSEG, DINO)
            )
            if words is not None and dino is not None:
                gains.setdefault((quantity, unit), []).append(words - dino)
    return [
        claim(f"DINOv2 knows {quantity} better than LSeg (less error, {unit})", values)
        for (quantity, unit), values in gains.items()
    ]


def _costs(done: "room.Reproduction") -> Table:
    """Return what each group of cells cost."""
    groups: dict[str, list[Any]] = {}
    for name, result in done.cells.results.items():
        place, _, rest = name.partition("/")
        what = "training" if "/" not in rest else rest.partition("/")[2]
        groups.setdefault(f"{place}: {what}", []).append(result)
    total = sum(result.seconds for of in groups.values() for result in of) or 1
    found = []
    for name, of in sorted(groups.items(), key=lambda group: -sum(result.seconds for result in group[1])):
        seconds = sum(result.seconds for result in of)
        found.append((name, len(of), seconds, 100 * seconds / total, max(result.peak_rss_mb for result in of)))
    return Table(
        "costs",
        "What the cells cost, each in a process of its own; kept ones cost nothing the second time.",
        ("cells", "number", "seconds", "share, %", "peak memory, MB"),
        tuple(found),
        "Lifting is not among them. " + "; ".join(f"{row['name']}: {row['seconds']:.0f} s" for row in done.stages.rows),
    )


def _scenes(rows: Sequence[Row]) -> str:
    return f"Scored on {rows[0]['scenes']}." if rows else ""


def _seeds(done: "room.Reproduction") -> str:
    if done.num_seeds < 2:
        return "One training of each student, so that no number has an interval."
    return f"A number is the mean over {done.num_seeds} trainings, with its 95 % interval and their number."


def draw_figures(done: "room.Reproduction") -> list[Section]:
    """Draw the figures of the talk for the first scene that is scored, with the students of the first seed."""
    world, store = done.world, done.stores[done.world.name]
    runs = {arm: Path(value["run"]) for arm, seed, value in done.trained(world.name, room.MODELS) if seed == 0}
    with waiting("drawing"):
        case = open_case(store, runs.get(OURS), done.datasets[world.name], world.labels[0], None)
        sections = (_sides(done, case, runs), segments(case), disagreement(case), histograms(case), training_of(case))
    for name, reason in case.written.left_out:
        note(f"{name}: {reason}", head="left out")
    return [section for section in sections if section is not None]


def _sides(done: "room.Reproduction", case: Case, runs: Mapping[str, Path]) -> Section:
    """Show input, truth, lifted features and the students side by side."""
    predictors = {"Lifted features": case.lifted}
    predictors |= {TITLES[arm]: Predictor.open(case.store, run=run) for arm, run in runs.items()}
    predictions = {name: one.segment(case.scene, case.classes) for name, one in predictors.items() if one}
    title = f"{case.scene.name}: input, truth, and what each point is taken for"
    figure = draw_sides(case.scene, case.classes, predictions, title, labels=case.labels, looks=case.looks)
    about = "Above: a look into the scene from one of its corners, without ceiling and front walls. Below: from above."
    return Section("Input, truth, baseline, ours", about, figures=((title, as_uri(figure)),))


def write_results(done: "room.Reproduction", tables: Sequence[Table], sections: Sequence[Section]) -> Path:
    """Write tables as CSV, LaTeX and JSON, and the page.

    Args:
        done: What was reproduced.
        tables: Its tables.
        sections: Its figures.

    Returns:
        The page.
    """
    settings = {
        "world": done.world.name,
        "seeds": done.num_seeds,
        "size": asdict(done.size),
        "protocol": asdict(done.protocol),
        "is_quick": done.size == QUICK,
        "failures": done.cells.failures,
        "left_out": done.left_out,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "version": __version__,
    }
    write_tables(tables, done.out, results=settings | {"stages": done.stages.rows})
    templates = [Path(__file__).parent, Path(__file__).parents[1]]
    environment = Environment(loader=FileSystemLoader(templates), autoescape=True, trim_blocks=True)
    page = environment.get_template("reproduce.html.j2").render(done=done, tables=tables, sections=sections, **settings)
    write_text(done.out / "report.html", page)
    return done.out / "report.html"
