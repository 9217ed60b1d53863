"""`cuao3d evaluate`: score zero-shot segmentation."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from cuao3d.cli.shared import check_device, note_missing, print_rows
from cuao3d.cli.trust import check_picture, draw_trust, print_trust
from cuao3d.console import tell


def evaluate(
    store: Positional[Path],
    *,
    run: Path | None = None,
    labels: str = "scannet20",
    split: Literal["train", "val", "test", "all"] = "val",
    teacher: str | None = None,
    text: str | None = None,
    seen: bool = False,
    device: str = "cpu",
    json: Path | None = None,
    curves: Path | None = None,
) -> int:
    """Segment the scenes of a store by class names alone and score the result: fused, or distilled and 2D3D with --run.

    Args:
        store: Folder of the store.
        run: Folder of a finished run, or a student's .safetensors.
        labels: Label set to score in: its name, or a CSV of your own.
        split: Split to evaluate.
        teacher: Which teacher names the classes, where several have a text encoder; the first unless given.
        text: Text encoder for the names, such as table:FILE for vectors of your own; the teacher's unless given.
        seen: Score only points whose sample some view saw.
        device: Where the student runs, such as cuda.
        json: Also write the rows here.
        curves: Also draw how reliable confidence is, and the errors against the labels kept, here (.png, .pdf, .svg).
    """
    from cuao3d import pipeline
    from cuao3d.files import check_output, write_json
    from cuao3d.predictor import Predictor
    from cuao3d.progress import waiting
    from cuao3d.store import Store

    check_device(device)
    check_output(json)
    check_output(curves)
    check_picture(curves)
    opened = Store.open(store)
    with waiting("opening the predictor"):
        predictor = Predictor.open(opened, run=run, teacher=teacher, text=text, device=device)
    rows = pipeline.evaluate(
        opened,
        predictor,
        labels=labels,
        split=None if split == "all" else split,
        model=run.stem if run else "none",
        seen_only=seen,
    )
    tell(predictor.about)
    print_rows([asdict(row) for row in rows])
    print_trust(rows)
    if curves:
        draw_trust(curves, rows)
    if json:
        write_json(json, {"rows": [asdict(row) for row in rows]})
    return note_missing(rows[0].missing)
