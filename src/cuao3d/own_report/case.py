"""What the parts of a report are made from: the store, what may be opened beside it, and what could not."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Int64
from torch import Tensor

from cuao3d.answers import UNLESS_LABELLED
from cuao3d.errors import InputError, UserError
from cuao3d.evaluate import labels_of
from cuao3d.labels import LabelSet
from cuao3d.pane import Layer
from cuao3d.predictor import Predictor, student_features
from cuao3d.progress import OnCount
from cuao3d.readers import Dataset, open_dataset
from cuao3d.run import Run, load_student
from cuao3d.scene import Split
from cuao3d.store import Store, StoredScene
from cuao3d.tables import Table

if TYPE_CHECKING:
    from cuao3d.figures.panels import Looks

READING = ("tolerance", "every", "official")
"""Settings of a store that `open_dataset` takes."""


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    about: str
    """What it shows, in a sentence or two."""
    tables: tuple[Table, ...] = ()
    figures: tuple[tuple[str, str], ...] = ()
    """What each picture shows, and the picture."""
    lines: tuple[str, ...] = ()


@dataclass
class Written:
    """What a report could not show."""

    missing: dict[str, str]
    """Why each scene is missing in the store, or in the scores."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Parts of the page that are not there, and why."""


@dataclass
class Case:
    """All that the parts of a page are made from."""

    store: Store
    scene: StoredScene
    split: Split | None
    """Split that is scored; None for all scenes."""
    classes: LabelSet
    spelled: str
    """What the classes are called in commands: a name, or the path of a CSV."""
    run: Path | None
    data: Dataset | None
    """What the store was made from."""
    student: Run | None
    lifted: Predictor | None
    ours: Predictor | None
    written: Written
    looks: "Looks"
    layers: list[Layer] = field(default_factory=list)
    """What the 3D pane shows of the scene."""
    told: OnCount = lambda done, total: None
    """Told after each scene or view that a part goes through."""

    @property
    def labels(self) -> Int64[Tensor, "N"] | None:
        """Class of each point of the scene that is shown, as a row of the classes; None without labels."""
        return None if self.scene.labels is None else labels_of(self.scene, self.classes)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Leave a part of the page out, and say why, if something that a user can mend is missing for it."""
        try:
            yield
        except UserError as error:
            self.written.left_out.append((name, str(error)))


def open_case(
    store: Store, run: Path | None, data: Path | Dataset | None, labels: str | None, scene: str | None
) -> Case:
    """Open what the page is made from; what cannot be opened, though it was named, is an error."""
    from cuao3d.figures.panels import Looks

    if not store.names():
        raise InputError(f"{store.path} holds no finished scene. Run `cuao3d fuse` again to finish it.")
    split, labelled = scored(store)
    first = labelled or store[store.names()[0]]
    shown = first if scene is None else store[scene]
    spelled = labels or (labelled.label_set if labelled else None) or UNLESS_LABELLED
    classes = store.label_set(spelled)
    written = Written(store.missing())
    student = None if run is None else load_student(run)
    dataset = None if data is None else _data_of(store, shown, data)
    case = Case(store, shown, split, classes, spelled, run, dataset, student, None, None, written, Looks(shown))
    with case.part("Words for the lifted features"):
        case.lifted = Predictor.open(store)
    if student is not None:
        for head in student.student.num_channels:
            student_features(student.student, store, head=head, voxel_size=student.voxel_size)  # refuses finer voxels
        with case.part("Words for the student"):
            case.ours = Predictor.open(store, run=run)
    if labelled is None:
        written.left_out.append(("Scores", "No scene has labels: there is no truth to compare with."))
    return case


def _data_of(store: Store, scene: StoredScene, data: Path | Dataset) -> Dataset:
    """Open what a store was made from, in the way in which it was read then.

    Raises:
        InputError: It does not hold the scene.
    """
    options: dict[str, Any] = {key: store.settings[key] for key in READING if key in store.settings}
    dataset = open_dataset(data, **options) if isinstance(data, Path) else data
    if scene.name not in dataset.names:
        where = data if isinstance(data, Path) else "The dataset"
        raise InputError(f"{where} holds no scene {scene.name}, but {', '.join(dataset.names[:3])}. Give its own data.")
    return dataset


def scored(store: Store) -> tuple[Split | None, StoredScene | None]:
    """Find the split to score, validation before test before all, and its first scene with labels."""
    for split in ("val", "test", None):
        for name in store.names(split):
            if (scene := store[name]).labels is not None:
                return split, scene
    return None, None
