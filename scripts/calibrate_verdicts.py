"""Fit the verdicts of mini-lseg's lifted features or of a student, and write them onto its card.

    python scripts/calibrate_verdicts.py ablation/rooms/store
    python scripts/calibrate_verdicts.py ablation/rooms/store --run src/cuao3d/students/rooms

Class names, synonyms and questions are asked in the store's split `val`, labelled scenes that are neither scored nor
shown anywhere; see `cuao3d.verdicts`. The split `test` tells how often the verdicts are wrong elsewhere.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from cuao3d.console import note, tell_table
from cuao3d.files import read_json, sha256_of, write_json
from cuao3d.pipeline import ask_everything, fit_student
from cuao3d.predictor import Predictor
from cuao3d.run import STUDENT
from cuao3d.store import Store
from cuao3d.teachers.mini import WEIGHTS
from cuao3d.verdicts import fit_verdicts, wrong_verdicts


def main(store: Positional[Path], run: Path | None = None, labels: str = "made100", where: str = "made rooms") -> None:
    """Fit, count, and write.

    Args:
        store: The scenes.
        run: Folder of a student's run; without it the lifted features answer.
        labels: Label set with synonyms and questions.
        where: What the scenes are, for the card.
    """
    opened = Store.open(store)
    if run is not None:
        fit_student(opened, run, labels=labels, split="val", where=where)
    predictor = Predictor.open(opened, run=run)
    calibration = predictor.calibration
    if run is None:
        who = f"lifted features of {predictor.teacher} in {len(opened.names('val'))} {where}"
        calibration = fit_verdicts(ask_everything(opened, predictor, labels=labels, split="val"), who)
    counted = ask_everything(opened, predictor, labels=labels, split="test")
    wrong = {kind: wrong_verdicts(peaks, calibration) for kind, peaks in counted.items()}
    rows = [
        (kind, *(f"{share:.1f}" for share in wrong[kind] if share is not None), f"{len(one)}", f"{len(other)}")
        for kind, (one, other) in counted.items()
    ]
    note(f"here from {calibration.here:.3f}, absent below {calibration.absent:.3f}")
    tell_table(("asked", "wrongly absent, %", "wrongly here, %", "present", "absent"), rows)
    card = WEIGHTS / f"{predictor.teacher.replace('-', '_')}.json" if run is None else run / "card.json"
    entries: dict[str, Any] = {"calibration": asdict(calibration), "wrong_verdicts_elsewhere": wrong}
    if run is not None:
        entries |= {"sha256": sha256_of(run / STUDENT)}
    if card.is_file():
        write_json(card, read_json(card) | entries)


if __name__ == "__main__":
    tyro.cli(main)
