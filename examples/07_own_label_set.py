"""Segment and score in a label set of your own: a CSV with a line for each class.

The columns are `id,name,r,g,b`, and optionally `prompt`, the words that stand for the class ("a {name} in a scene"
unless given), and `nyu40id`, the NYU40 classes that it covers: labels of other sets are converted through these to be
scored. A class may cover several (3;10;15;17: cabinet, bookshelf, shelves, dresser), or none; then it is found, but not
scored.

    python examples/07_own_label_set.py
    python examples/07_own_label_set.py STORE my_classes.csv

The same on the command line:

    cuao3d evaluate STORE --labels my_classes.csv --split all
"""

import sys
import tempfile
from pathlib import Path

import cuao3d

CLASSES = """id,name,r,g,b,nyu40id,prompt
1,wall,174,199,232,1,
2,floor,152,223,138,2,
3,bed,255,187,120,4,a bed
4,storage,31,119,180,3;10;15;17,a cabinet
5,way in or out,214,39,40,8,a door
"""


def main(path: str | None = None, labels: str | None = None) -> None:
    """Name every point of a scene by five classes, and score the store."""
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            rooms, teacher = cuao3d.Rooms([0], num_views=6), cuao3d.load_teacher("mini-lseg")
            store = cuao3d.fuse(rooms, [teacher], Path(folder) / "store", cell=0.05)
        else:
            store = cuao3d.Store.open(path)
        csv = Path(labels) if labels else Path(folder) / "my_classes.csv"
        if labels is None:
            csv.write_text(CLASSES, encoding="utf-8")
        classes, predictor = cuao3d.label_set(csv), cuao3d.Predictor.open(store)
        scene = store[store.names()[0]]
        class_of_point = predictor.segment(scene, classes)  # a row of the set; 255 where no view looked
        for row, (name, prompt) in enumerate(zip(classes.names, classes.prompts, strict=True)):
            print(f"{name} ({prompt!r}): {(class_of_point == row).float().mean():.0%} of the points of {scene.name}")
        if scene.labels is not None:
            (scored,) = cuao3d.evaluate_store(store, predictor, labels=str(csv), split=None)
            of_class = ", ".join(f"{name} {iou:.0f}" for name, iou in scored.iou.items())
            print(f"mIoU {scored.miou:.1f} (shuffled predictions: {scored.chance_miou:.1f}); IoU of {of_class}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
