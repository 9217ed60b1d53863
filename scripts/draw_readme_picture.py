"""Draw the picture of the README from a demo's output: a photo, the point cloud, its classes, an answer.

cuao3d demo --out demo-out
python scripts/draw_readme_picture.py demo-out --out docs/images/demo.png
"""

from pathlib import Path

import matplotlib
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from cuao3d.colors import class_colors, heat_colors
from cuao3d.labels import label_set
from cuao3d.pictures import Dollhouse
from cuao3d.predictor import Predictor
from cuao3d.query import heat
from cuao3d.store import Store
from cuao3d.worlds.rooms import make_room


def main(demo: tyro.conf.Positional[Path], out: Path, scene: str = "", question: str = "somewhere to sit") -> None:
    """Write one wide PNG; the scene is a held-out room, by default the first living room."""
    store = Store.open(demo / "store")
    name = scene or next(name for name in store.names("val") if "living" in name)
    stored, classes = store[name], label_set("scannet20")
    predictor = Predictor.open(store)
    predicted = predictor.segment(stored, classes)
    (answer,) = predictor.ask(stored, [question])
    view = Dollhouse(stored.points, stored.normals, size=(560, 440))
    photo = make_room(int(name.rpartition("-")[2])).frames[0].read_image().permute(1, 2, 0).numpy()
    assert stored.colors is not None
    panels = {
        "posed RGB-D views in": photo,
        "the cloud, a held-out room": view.draw(stored.colors),
        "classes, by their names alone": view.draw(class_colors(predicted, classes)),
        f"“{question}”": view.draw(heat_colors(heat(answer.relevance), stored.colors, answer.seen)),
    }
    figure, axes = plt.subplots(1, 4, figsize=(16, 3.7), constrained_layout=True)
    for axis, (caption, picture) in zip(axes, panels.items(), strict=True):
        axis.imshow(picture)
        axis.set_title(caption, fontsize=13)
        axis.axis("off")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    tyro.cli(main)
