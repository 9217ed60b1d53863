"""Copy the three-teacher student of a full demo into the package, in half precision, with its card.

cuao3d demo --full --seed 0 --out full-0
python scripts/ship_student.py --store full-0/store --run full-0/runs/three-teachers
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import tyro

from cuao3d.demo import SHIPPED_STUDENT
from cuao3d.evaluate import Row
from cuao3d.files import sha256_of, write_json
from cuao3d.pipeline import evaluate
from cuao3d.predictor import Predictor
from cuao3d.progress import machine
from cuao3d.store import Store
from cuao3d.student import Student

MAX_BYTES = 8_000_000
"""Largest student allowed in the wheel, bytes."""


def main(store: Path, run: Path, out: Path = SHIPPED_STUDENT) -> None:
    """Write `out` as the folder of a run, and a card.json with the copy's scores on the store's held-out rooms."""
    config, summary = (json.loads((run / name).read_text(encoding="utf-8")) for name in ("config.json", "run.json"))
    student = Student.load(run / "student.safetensors").half()
    student.voxel_size, student.teachers = config["config"]["voxel_size"], summary["teachers"]
    student.save(out / "student.safetensors")
    size = (out / "student.safetensors").stat().st_size
    assert size <= MAX_BYTES, f"{size} bytes exceed the limit of {MAX_BYTES}"
    digest = sha256_of(out / "student.safetensors")
    write_json(out / "config.json", config)
    write_json(out / "run.json", summary | {"student_sha256": digest})
    lifted, settings = Store.open(store), config["config"]
    students = Predictor.open(lifted, run=out)
    rows = [
        *evaluate(lifted, Predictor.open(lifted), dataset="rooms"),
        *evaluate(lifted, students, model="three-teachers", dataset="rooms"),
    ]
    told = " and a softmax loss over words" if summary["vocabulary"]["words"] else ""
    card = {
        "student": "three-teachers",
        "data": f"{len(lifted.names('train'))} rooms of cuao3d.worlds.rooms, lifted with the mini teachers",
        "data_settings": lifted.settings,
        "objective": f"the teachers' losses, weighted by {settings['weighting']}{told} (docs/method.md, section 5); no "
        "labels are used",
        "vocabulary": summary["vocabulary"],
        "command": f"cuao3d distill {store.parent.name}/{store.name} --steps {settings['num_steps']} --out {run.name} "
        f"--seed {settings['seed']}",
        "seconds_of_training": summary["seconds"],
        "machine": machine(),
        "scores_on_held_out_rooms": [_scores(row) for row in rows],
        "num_parameters": sum(parameter.numel() for parameter in student.parameters()),
        "precision": str(torch.float16),
        "sha256": digest,
        "licence": "Apache-2.0",
    }
    write_json(out / "card.json", card)
    print(json.dumps(card["scores_on_held_out_rooms"], indent=1))


def _scores(row: Row) -> dict[str, Any]:
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
