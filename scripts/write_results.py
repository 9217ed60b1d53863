"""Write docs/results.md from the results of demos.

for seed in 0 1 2; do cuao3d demo --seed $seed --out demo-$seed; cuao3d demo --full --seed $seed --out full-$seed; done
cuao3d reproduce rooms --out reproduction
python scripts/write_results.py --demos demo-0 demo-1 demo-2 --fulls full-0 full-1 full-2 --curve ablation/rooms/runs \
    --reproductions reproduction

The curve is that of the arm "LSeg only" of scripts/ablate.py.
"""

import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib
import tyro

from cuao3d.metrics import mean_interval
from cuao3d.pipeline import SHIPPED_STUDENT
from cuao3d.published import published
from cuao3d.tables import read_tables

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(
    demos: tuple[Path, ...] = (),
    fulls: tuple[Path, ...] = (),
    before: tuple[Path, ...] = (),
    curve: Path | None = None,
    reproductions: tuple[Path, ...] = (),
    out: Path = Path("docs/results.md"),
    note: str = "",
) -> None:
    """Collect the `results.json` of several seeds, and write the page and its figure.

    Args:
        demos: Folders of demos.
        fulls: Folders of full demos.
        before: Folders of demos of an earlier version, for comparison.
        curve: Folder of runs of scripts/ablate.py, whose first arm shows how scores grow with steps.
        reproductions: Folders of `cuao3d reproduce`, whose tables are shown.
        out: Page to write.
        note: Sentence about how they were run.
    """
    groups = {"demo": [_read(path) for path in demos], "full": [_read(path) for path in fulls]}
    sources = " and ".join(
        f"`cuao3d {name}`"
        for name, given in {"demo": demos, "demo --full": fulls, "reproduce": reproductions}.items()
        if given
    )
    lines = [
        "# Results on made rooms and houses",
        "",
        *(["`cuao3d demo --full` has not been completed with this version.", ""] if demos and not fulls else []),
        "All figures on this page were written by `python scripts/write_results.py`, from the `results.json` files of",
        f"{sources}, on {time.strftime('%Y-%m-%d')}.",
        *([note] if note else []),
        "Scores are percentages over all original points of held-out rooms, single pass; points that no view sees",
        "count as wrong. mIoU and mAcc are means over the classes present. In the f-mIoU, wall, floor, ceiling and",
        "other can neither be predicted nor are their points scored.",
        "",
    ]
    for name, results in groups.items():
        if results:
            lines += _group(name, results)
        if name == "demo" and before:
            lines += _beside([_read(path) for path in before], results)
    if groups["full"]:
        _figure(groups["full"], out.parent / "images" / "sigma.png")
        lines += ["## Noise levels", "", "![Learned noise levels over the steps](images/sigma.png)", ""]
    lines += _curve(curve) if curve else []
    for folder in reproductions:
        lines += _reproduced(folder)
    lines += _published()
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _group(name: str, results: list[dict[str, Any]]) -> list[str]:
    first = results[0]
    config = first["config"]
    command = "cuao3d demo" + (" --full" if name == "full" else "")
    lines = [
        f"## `{command}`",
        "",
        f"Seed{'s' * (len(results) > 1)} {', '.join(str(result['seed']) for result in results)}; "
        f"{config['num_train_rooms']} training and {config['num_val_rooms']} held-out rooms, "
        f"{config['num_views']} views",
        f"each, {config['num_steps']} steps per student, voxels "
        f"of {100 * first['voxel_size']:.0f} cm (the paper: 2 cm);",
        f"{first['machine']}.",
        "",
        "| model | read-out | mIoU | per seed | mAcc | f-mIoU | official mIoU "
        "| student's words | seen / unseen / harmonic | teacher's words | seen / unseen / harmonic |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    keys = [
        (row["model"], row["readout"], row["split"])
        for row in first["rows"] + first.get("shipped", []) + first.get("ceiling", [])
    ]
    for key in keys:
        rows = [_find(result, key) for result in results]
        means = [_mean([row[score] for row in rows]) for score in ("miou", "macc", "fmiou", "miou_official")]
        each = ", ".join(f"{row['miou']:.1f}" for row in rows)
        model = key[0] if key[1] != "supervised" else f"ceiling: trained on labels, {key[2]} rooms"
        lines.append(
            f"| {model} | {key[1]} | **{means[0]:.1f}** | {each} | {means[1]:.1f} | {means[2]:.1f} | {means[3]:.1f} "
            f"| {_by_seen(rows, 'by_student')} | {_by_seen(rows, 'by_teacher')} |"
        )
    gains = [
        _find(result, ("three-teachers", "distilled", "val"))["miou"]
        - _find(result, ("single-teacher", "distilled", "val"))["miou"]
        for result in results
    ]
    constant = _mean([result["constant_miou"] for result in results])
    shuffled = _mean([result["chance_miou"] for result in results])
    lines += [
        f"| floor: wall everywhere | | {constant:.1f} | | | | | | | | |",
        f"| floor: fused labels shuffled | | {shuffled:.1f} | | | | | | | | |",
        *_retrieval(results),
        *_coarse(results),
        "",
        f"Three teachers against one, distilled, with equal steps: {_mean(gains):+.1f} mIoU "
        f"({', '.join(f'{gain:+.1f}' for gain in gains)}). {_verdict(gains)}",
        "",
        "| stage | seconds, median over seeds | peak memory, MB |",
        "|---|---|---|",
    ]
    seconds = _seconds(results)
    for index, stage in enumerate(first["stages"]):
        peak = max(result["stages"][index]["peak_rss_mb"] for result in results)
        lines.append(f"| {stage['name']} | {seconds[stage['name']]:.0f} | {peak} |")
    return [*lines, f"| all | {seconds['all']:.0f} | |", ""]


def _coarse(results: list[dict[str, Any]]) -> list[str]:
    """Return a table of the same scores in ScanNet's 20 classes."""
    lines = ["", "The same in ScanNet's 20 classes:", "", "| model | read-out | mIoU | f-mIoU |", "|---|---|---|---|"]
    for row in results[0].get("coarse", []):
        rows = [_find(result, (row["model"], row["readout"], row["split"]), "coarse") for result in results]
        means = [_mean([one[score] for one in rows]) for score in ("miou", "fmiou")]
        lines.append(f"| {row['model']} | {row['readout']} | {means[0]:.1f} | {means[1]:.1f} |")
    return lines if len(lines) > 5 else []


def _retrieval(results: list[dict[str, Any]]) -> list[str]:
    """Return the rows of a table of how well synonyms and questions do; nothing where none were asked."""
    lines = []
    for row in results[0]["rows"] + results[0].get("shipped", []):
        rows = [_find(result, (row["model"], row["readout"], row["split"])) for result in results]
        for kind in row.get("retrieval", {}):
            found = [one["retrieval"][kind] for one in rows if kind in one.get("retrieval", {})]
            scores = [[one[key] for one in found if one[key] is not None] for key in ("ap", "ap_shuffled", "auroc")]
            shown = [f"{_mean(values):{form}}" for values, form in zip(scores, (".1f", ".1f", ".2f"), strict=True)]
            lines.append(f"| {row['model']} | {row['readout']} | {kind} | {' | '.join(shown)} |")
    titles = ["", "| model | read-out | asked | AP | AP, shuffled | AUROC |", "|---|---|---|---|---|---|"]
    return [*titles, *lines] if lines else []


def _curve(folder: Path) -> list[str]:
    """Return a table of a student's scores against its steps, beside those of the features that it learned from."""
    card = json.loads((SHIPPED_STUDENT / "card.json").read_text(encoding="utf-8"))
    lifted = next(row for row in card["scores_on_fresh_rooms"]["made100"] if row["readout"] == "fused")
    lines = [
        "## Scores against steps",
        "",
        "A student of `mini-lseg` alone, by `mini()` without a vocabulary, at a constant rate that falls to 0 over the",
        f"last fifth; the shorter runs branch off the longest. {len(card['fresh_rooms'])} fresh rooms; "
        "100 names, 17 of which no teacher was taught.",
        "",
        "| steps | seconds | mIoU | mIoU, taught names | 2d3d | synonyms: AP, AUROC | questions: AP, AUROC |",
        "|---|---|---|---|---|---|---|",
        f"| lifted features | | {lifted['miou']:.1f} | {lifted['by_teacher']['miou_seen']:.1f} | | {_asked(lifted)} |",
    ]
    scores = {tuple(map(int, path.parent.name.split("-")[1:])): path for path in folder.glob("00-[0-9]*/score.json")}
    for (steps, seed), path in sorted(scores.items()):
        score = json.loads(path.read_text(encoding="utf-8"))
        row, both = score["distilled"], score["2d3d"]
        lines.append(
            f"| {steps}{f', seed {seed}' if seed else ''} | {score['seconds']:.0f} | {row['miou']:.1f} "
            f"| {row['taught']:.1f} | {both['miou']:.1f} | {_asked(row)} |"
        )
    return [*lines, ""]


def _reproduced(folder: Path) -> list[str]:
    """Return the tables of a reproduction, and what it was made of."""
    tables = read_tables(folder)
    about = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    sizes = [f"{name.removeprefix('num_')} {count}" for name, count in about["size"].items() if count is not None]
    seeds = ", ".join(map(str, range(about["seeds"])))
    lines = [f"## `cuao3d reproduce {about['world']}`", ""]
    lines += [f"{about['date']}, version {about['version']}, {about['machine']}."]
    lines += [f"Seed{'s' * (about['seeds'] > 1)} {seeds} of each student; {', '.join(sizes)}."]
    if about["is_quick"]:
        lines += ["A short run that passes through every stage: its numbers mean nothing."]
    lines += [f"Failed: `{name}`: {reason}" for name, reason in about["failures"].items()]
    lines += [f"Left out: `{name}`: {reason}" for name, reason in about["left_out"].items()]
    lines += [""]
    for table in tables:
        rows = [table.columns, ["---:" if one else "---" for one in table.is_number], *table.texts]
        lines += [f"### {table.name}", "", f"{table.caption} {table.note}".strip(), ""]
        lines += [*(f"| {' | '.join(text.replace('|', '/') for text in row)} |" for row in rows), ""]
    return lines


def _asked(row: dict[str, Any]) -> str:
    """Return average precision and AUROC of synonyms, and of questions."""
    return " | ".join(f"{row[kind]['ap']:.1f}, {row[kind]['auroc']:.2f}" for kind in ("synonyms", "questions"))


def _by_seen(rows: list[dict[str, Any]], key: str) -> str:
    """Return the vocabulary of rows of several seeds, and their means over seen and unseen names and of both."""
    divided = [row[key] for row in rows if row.get(key)]
    if not divided:
        return "not recorded | "
    means = []
    for score in ("miou_seen", "miou_unseen", "harmonic"):
        known = [one[score] for one in divided if one[score] is not None]
        means.append(f"{_mean(known):.1f}" if known else "–")
    return f"{divided[0]['vocabulary']} | {' / '.join(means)}"


def _verdict(gains: list[float]) -> str:
    """State whether the paper's claim that further teachers help holds at 95 % confidence."""
    mean, half = mean_interval(gains)
    if half is None:
        return "One seed allows no conclusion."
    found = "does too" if mean > half else "loses by them" if mean < -half else "shows no difference"
    return f"The paper's student gains from the other teachers; ours {found} (95 %: ± {half:.1f})."


def _beside(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    """Compare demos of an earlier version with current ones, by stage and by score."""
    (old_steps, old_voxel), (steps, voxel) = (
        (side[0]["config"]["num_steps"], 100 * side[0]["voxel_size"]) for side in (before, now)
    )
    old, new = _seconds(before), _seconds(now)
    lines = [
        f"Before (the version of {before[0]['date']}: {old_steps} steps, voxels of {old_voxel:.0f} cm) and now "
        f"({steps} steps, {voxel:.0f} cm):",
        "seconds are medians over seeds, mIoU means, with single seeds in brackets.",
        "",
        "| | before | now |",
        "|---|---|---|",
        *(f"| {name}, s | {old[name]:.0f} | {new[name]:.0f} |" for name in new),
    ]
    for row in now[0]["rows"]:
        scores = [
            [_find(result, (row["model"], row["readout"], row["split"]))["miou"] for result in side]
            for side in (before, now)
        ]
        cells = [f"{_mean(side):.1f} ({', '.join(f'{score:.1f}' for score in side)})" for side in scores]
        lines.append(f"| {row['model']}, {row['readout']}, mIoU | {cells[0]} | {cells[1]} |")
    return [*lines, ""]


def _seconds(results: list[dict[str, Any]]) -> dict[str, float]:
    """Return the median seconds of each stage, and of their sum."""
    taken = [{stage["name"]: stage["seconds"] for stage in result["stages"]} for result in results]
    return {
        **{name: statistics.median(seconds[name] for seconds in taken) for name in taken[0]},
        "all": statistics.median(sum(seconds.values()) for seconds in taken),
    }


def _figure(results: list[dict[str, Any]], path: Path) -> None:
    """Plot every teacher's sigma over the steps."""
    figure, axes = plt.subplots(figsize=(6, 3), constrained_layout=True)
    for index, teacher in enumerate(results[0]["sigma_steps"]["sigmas"]):
        for result in results:
            curve = result["sigma_steps"]
            label = teacher if result is results[0] else None
            axes.plot(curve["steps"], curve["sigmas"][teacher], color=f"C{index}", linewidth=1, label=label)
    axes.set(xlabel="step", ylabel="sigma")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _published() -> list[str]:
    """Return a section with published figures, which are measured on other data."""
    rows = [row for row in published("zero-shot") if row.readout]
    lines = [
        "## Published figures, for orientation",
        "",
        "These are for ScanNet and Matterport3D with the full-size teachers (`src/cuao3d/published.csv`). The rooms",
        "above are smaller and simpler, so the figures are not comparable.",
        "",
        "| method | read-out | data | mIoU | mAcc |",
        "|---|---|---|---|---|",
    ]
    return lines + [f"| {row.method} | {row.readout} | {row.evaluated_on} | {row.miou} | {row.macc} |" for row in rows]


def _read(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((path / "results.json").read_text(encoding="utf-8"))
    return result


def _find(result: dict[str, Any], key: tuple[str, str, str], table: str = "rows") -> dict[str, Any]:
    rows = result[table] + (result.get("ceiling", []) + result.get("shipped", []) if table == "rows" else [])
    return next(row for row in rows if (row["model"], row["readout"], row["split"]) == key)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


if __name__ == "__main__":
    tyro.cli(main)
