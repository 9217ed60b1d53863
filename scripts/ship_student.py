"""Copy a student into the package, in half precision, with its card; its verdicts are fitted afterwards.

    python scripts/ablation_store.py rooms --out ablation/rooms
    python scripts/ablate.py ablation --worlds rooms --arms 1
    python scripts/ship_student.py --run ablation/rooms/runs/00-4000-0 --store ablation/rooms/store
    python scripts/calibrate_verdicts.py ablation/rooms/store --run src/cuao3d/students/rooms

The run may be any other one too. It learned from the store's split `train`; the card's scores are of the split `test`.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import tyro

from cuao3d.demo import COARSE, LABELS
from cuao3d.evaluate import Row
from cuao3d.files import read_json, sha256_of, write_json
from cuao3d.pipeline import SHIPPED_STUDENT, evaluate
from cuao3d.predictor import Predictor
from cuao3d.progress import machine
from cuao3d.seals import read_sealed, write_sealed
from cuao3d.store import Store
from cuao3d.student import Student

MAX_BYTES = 8_000_000
"""Largest student allowed in the wheel, bytes."""


def main(run: Path, store: Path, out: Path = SHIPPED_STUDENT) -> None:
    """Write `out` as the folder of a run, and a card.json with the copy's scores.

    Args:
        run: Folder of a finished run.
        store: Store of labelled rooms, those of the split `test` used by nothing else.
        out: Folder to write.
    """
    config, summary = read_json(run / "config.json"), read_sealed(run / "run.json", "train again")
    student = Student.load(run / "student.safetensors").half()
    settings = config["config"]
    student.voxel_size, student.teachers = settings["voxel_size"], summary["teachers"]
    student.save(out / "student.safetensors")
    size = (out / "student.safetensors").stat().st_size
    assert size <= MAX_BYTES, f"{size} bytes exceed the limit of {MAX_BYTES}"
    digest = sha256_of(out / "student.safetensors")
    write_json(out / "config.json", config)
    write_sealed(out / "run.json", summary | {"student_sha256": digest})
    told = " and a softmax loss over words" if summary["vocabulary"]["words"] else ""
    learned = f"; teachers weighted by {settings['weighting']}" if len(settings["teachers"]) > 1 else ""
    opened = Store.open(store)
    card = {
        "teachers": settings["teachers"],
        "data": f"{len(config['scenes_sha256'])} rooms of cuao3d.worlds.rooms, lifted with the mini teachers",
        "objective": f"losses {', '.join(settings['losses'])}{told}{learned} (docs/method.md, section 5), no labels",
        "vocabulary": summary["vocabulary"],
        "steps": settings["num_steps"],
        "learning_rate": settings["learning_rate"],
        "seed": settings["seed"],
        "seconds_of_training": summary["seconds"],
        "machine": machine(),
        "scores_on_fresh_rooms": {labels: scored(opened, out, labels) for labels in (LABELS, COARSE)},
        "fresh_rooms": opened.names("test"),
        "num_parameters": sum(parameter.numel() for parameter in student.parameters()),
        "precision": str(torch.float16),
        "sha256": digest,
        "licence": "Apache-2.0",
    }
    write_json(out / "card.json", card)
    print(json.dumps(card["scores_on_fresh_rooms"], indent=1))


def scored(store: Store, run: Path, labels: str) -> list[dict[str, Any]]:
    """Score lifted features and student in a label set."""
    predictors = (Predictor.open(store), Predictor.open(store, run=run))
    return [
        figures(row) for one in predictors for row in evaluate(store, one, dataset="rooms", labels=labels, split="test")
    ]


def figures(row: Row) -> dict[str, Any]:
    """Return what a card says of a read-out."""
    of_row = asdict(row)
    means = ("vocabulary", "miou_seen", "miou_unseen", "harmonic", "reason")
    return {
        **{key: of_row[key] for key in ("readout", "miou", "macc", "fmiou", "foreground_miou", "num_points")},
        **{who: {key: of_row[who][key] for key in means} for who in ("by_student", "by_teacher")},
        **{kind: {"ap": found["ap"], "auroc": found["auroc"]} for kind, found in of_row["retrieval"].items()},
    }


if __name__ == "__main__":
    tyro.cli(main)
