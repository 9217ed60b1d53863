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
from cuao3d.reproduce.arms import BASE, OURS, TITLES
from cuao3d.reproduce.judgement import LIFTED, headroom, make_claims, rows_of
from cuao3d.reproduce.tables import Row
from cuao3d.reproduce.worlds import QUICK
from cuao3d.tables import Table, Value, write_tables

HERE = "here"


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
    cells = done.cells
    collapsed = {
        arm: sum("collapsed" in (cells.value(f"{room.CONTROLLED}/{arm}-{seed}") or {}) for seed in done.seeds)
        for arm in done.ladder
    }
    return lines.ablation_table(scores, collapsed, headroom(done), f"Students of {steps}, scored on {main}.")


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
        shown = store.names(world.split)[0]  # not of the split that confidence is fitted on
        case = open_case(store, runs.get(OURS), done.datasets[world.name], world.labels[0], shown)
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
