"""Score open-vocabulary segmentation: every point is named by class names alone, and compared with its true label.

Scores are on the original points of scenes with labels. Beside each score stands what shuffled predictions reach, and
what calling every point by the most frequent class reaches: a score near these means nothing. Without a path a room is
made, and the student that comes with the package is scored beside the lifted features.

    python examples/04_evaluate.py
    python examples/04_evaluate.py STORE
    python examples/04_evaluate.py STORE RUN

The same on the command line:

    cuao3d evaluate STORE
    cuao3d evaluate STORE --run RUN
"""

import sys
import tempfile
from pathlib import Path

import cuao3d

SHIPPED_STUDENT = Path(cuao3d.__file__).parent / "students" / "rooms"


def show(rows: tuple[cuao3d.Row, ...]) -> None:
    """Print scores, percent, and the best and the worst class."""
    for row in rows:
        best, worst = max(row.iou, key=row.iou.__getitem__), min(row.iou, key=row.iou.__getitem__)
        print(
            f"{row.readout}: mIoU {row.miou:.1f} (shuffled {row.chance_miou:.1f}, one class {row.constant_miou:.1f}), "
            f"{row.coverage:.0f} % of {row.num_points} labelled points named; "
            f"best {best} {row.iou[best]:.0f}, worst {worst} {row.iou[worst]:.0f}"
        )


def main(path: str | None = None, run: str | None = None) -> None:
    """Score all scenes of a store, or a made room."""
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            rooms, teacher = cuao3d.Rooms([3], split="val", num_views=6), cuao3d.load_teacher("mini-lseg")
            store, student = cuao3d.fuse(rooms, [teacher], Path(folder) / "store", cell=0.1), SHIPPED_STUDENT
        else:
            store, student = cuao3d.Store.open(path), Path(run) if run else None
        show(cuao3d.evaluate_store(store, cuao3d.Predictor.open(store), split=None))
        if student is not None:
            show(cuao3d.evaluate_store(store, cuao3d.Predictor.open(store, run=student), split=None))


if __name__ == "__main__":
    main(*sys.argv[1:3])
