"""`cuao3d evaluate`: zero-shot segmentation, scored."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from cuao3d.cli.shared import print_rows


def evaluate(
    store: Positional[Path],
    *,
    run: Path | None = None,
    labels: str = "scannet20",
    split: Literal["train", "val", "test", "all"] = "val",
    text: str | None = None,
    json: Path | None = None,
) -> int:
    """Segment the scenes of a store by class names alone and score it: fused, or with a run distilled and 2D3D.

    Args:
        store: Folder of the store.
        run: Folder of a finished run.
        labels: Name of a label set, or a CSV of one's own.
        split: Which scenes.
        text: Text encoder that reads the names, such as table:FILE for vectors of one's own; the store's unless given.
        json: Also write the rows here.
    """
    from cuao3d import pipeline
    from cuao3d.files import write_json
    from cuao3d.store import Store

    rows = pipeline.evaluate(
        Store.open(store),
        run,
        labels=labels,
        split=None if split == "all" else split,
        text=text,
        model=run.name if run else "none",
    )
    print_rows([asdict(row) for row in rows])
    if json:
        write_json(json, {"rows": [asdict(row) for row in rows]})
    return 0
