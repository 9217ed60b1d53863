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
from cuao3d.evaluate import labels_of
from cuao3d.files import read_json, sha256_of, write_json
from cuao3d.predictor import Predictor
from cuao3d.query import scores
from cuao3d.retrieval import Queries, Tally
from cuao3d.run import STUDENT
from cuao3d.seals import read_sealed, write_sealed
from cuao3d.store import Store
from cuao3d.student import Student
from cuao3d.teachers import Calibration
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
    predictor, classes = Predictor.open(opened, run=run), opened.label_set(labels)
    queries = Queries.read(classes, predictor.encoder, names=True)
    assert queries is not None, f"{labels} asks nothing"
    readout = "fused" if run is None else "distilled"
    tallies = {"val": Tally(queries), "test": Tally(queries)}
    for split, tally in tallies.items():
        for name in opened.names(split):
            scene = opened[name]
            cosines = {readout: scores(predictor.features(scene), queries.questions.texts)}
            tally.add(cosines, scene.seen, scene.sample_of_point, labels_of(scene, classes))
    fitted, counted = (tally.peaks(readout) for tally in tallies.values())
    who = f"lifted features of {predictor.teacher}" if run is None else "this student"
    calibration = fit_verdicts(fitted, f"{who} in {len(opened.names('val'))} {where}")
    wrong = {kind: wrong_verdicts(peaks, calibration) for kind, peaks in counted.items()}
    rows = [
        (kind, *(f"{share:.1f}" for share in wrong[kind] if share is not None), f"{len(one)}", f"{len(other)}")
        for kind, (one, other) in counted.items()
    ]
    note(f"here from {calibration.here:.3f}, absent below {calibration.absent:.3f}")
    tell_table(("asked", "wrongly absent, %", "wrongly here, %", "present", "absent"), rows)
    keep(run, predictor.teacher, calibration, {kind: list(shares) for kind, shares in wrong.items()})


def keep(run: Path | None, teacher: str, calibration: Calibration, wrong: dict[str, Any]) -> None:
    """Write the calibration onto the card of the teacher's weights, or into the student's file and onto its card."""
    entries = {"calibration": asdict(calibration), "wrong_verdicts_elsewhere": wrong}
    card = WEIGHTS / f"{teacher.replace('-', '_')}.json"
    if run is not None:
        student = Student.load(run / STUDENT)
        student.calibration = calibration
        student.save(run / STUDENT)
        card, digest = run / "card.json", sha256_of(run / STUDENT)
        write_sealed(run / "run.json", read_sealed(run / "run.json", "ship it again") | {"student_sha256": digest})
        entries |= {"sha256": digest}
    if card.is_file():
        write_json(card, read_json(card) | entries)


if __name__ == "__main__":
    tyro.cli(main)
