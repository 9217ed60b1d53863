"""Copy the three-teacher student of a full demo into the package, in half precision, with its card.

cuao3d demo --full --seed 0 --out full-0
python scripts/ship_student.py --store full-0/store --run full-0/runs/three-teachers
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
import tyro

from cuao3d.demo import SHIPPED_STUDENT
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
    card = {
        "student": "three-teachers",
        "data": f"{len(lifted.names('train'))} rooms of cuao3d.worlds.rooms, lifted with the mini teachers",
        "data_settings": lifted.settings,
        "objective": "the teachers' losses, weighted by learned noise levels, and a softmax loss over words "
        "(docs/method.md, section 5); no labels are used",
        "command": f"cuao3d distill {store.parent.name}/{store.name} --steps {settings['num_steps']} --out {run.name} "
        f"--seed {settings['seed']}",
        "seconds_of_training": summary["seconds"],
        "machine": machine(),
        "scores_on_held_out_rooms": [
            {key: asdict(row)[key] for key in ("readout", "miou", "macc", "fmiou", "foreground_miou", "num_points")}
            for row in rows
        ],
        "num_parameters": sum(parameter.numel() for parameter in student.parameters()),
        "precision": str(torch.float16),
        "sha256": digest,
        "licence": "Apache-2.0",
    }
    write_json(out / "card.json", card)
    print(json.dumps(card["scores_on_held_out_rooms"], indent=1))


if __name__ == "__main__":
    tyro.cli(main)
