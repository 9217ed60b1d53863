"""A store to look at: a red wall with a green picture, lifted by their colours, and words that are colours."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from conftest import PICTURE, WALL, make_synthetic_scene
from cuao3d.fusion import lift_measured, sample_cells, see
from cuao3d.labels import label_set
from cuao3d.photographs import Album
from cuao3d.predictor import Predictor
from cuao3d.store import Store, TeacherCard
from cuao3d.view.session import Session

CLASSES = label_set("scannet20")
RED, GREEN = [0.75, 0.25, 0.25], [0.25, 0.75, 0.25]


class Pixels:
    """Toy teacher: the colour of every pixel."""

    name = "color"
    num_channels = 3

    def __call__(self, image: Float[Tensor, "3 H W"]) -> Float[Tensor, "3 H W"]:
        return image


def write_words(folder: Path) -> str:
    """Write a table of words for scannet20: a wall is red, a picture green, all else blue; return its spec."""
    rows = np.tile(np.array([0.1, 0.1, 1.0], np.float32), (len(CLASSES), 1))
    rows += np.linspace(0, 0.05, rows.size, dtype=np.float32).reshape(rows.shape)
    rows[CLASSES.ids.index(WALL)], rows[CLASSES.ids.index(PICTURE)] = RED, GREEN
    np.save(folder / "words.npy", rows)
    return f"table:{folder / 'words.npy'}@scannet20"


def make_store(path: Path) -> Store:
    """Lift the synthetic scene and its half into a store: of "half" only what is right of the middle is there."""
    whole = make_synthetic_scene()
    right = whole.points[:, 0] > 0
    half = replace(
        whole, name="half", points=whole.points[right], colors=whole.colors[right], labels=whole.labels[right]
    )
    store = Store.create(path, cell=0.05, teachers={"color": TeacherCard(num_channels=3)})
    for scene in (whole, half):
        samples = sample_cells(scene.points, store.cell)
        visibility = see(scene, samples)
        album = Album(scene, visibility, [0] * len(scene.frames))
        lifted = lift_measured(album.watch(scene), visibility, Pixels())
        store.add_scene(
            scene,
            samples,
            visibility,
            {"color": lifted.features},
            disagreement={"color": lifted.disagreement},
            photographs=album.tensors(visibility),
        )
    return store


def make_session(folder: Path, **options: object) -> Session:
    """Open a session on such a store, whose words are colours."""
    store = make_store(folder / "store")
    predictor = Predictor.open(store, teacher="color", text=write_words(folder))
    return Session(store, {"colours": predictor}, **options)


def picture_of(session: Session, scene: str) -> torch.Tensor:
    """Which of the points that are drawn belong to the picture."""
    layers = session.layers(scene)
    return layers.scene.labels[layers.drawn] == PICTURE
