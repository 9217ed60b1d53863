"""Voting over views, a baseline without lifted features: each view names the classes of the pixels that it sees."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import cast

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn import functional

from cuao3d.errors import InputError, UserError
from cuao3d.evaluate import count
from cuao3d.fusion import Samples, image_quarters, see
from cuao3d.labels import LabelSet
from cuao3d.metrics import NOTHING_TOLD, Row, make_row
from cuao3d.progress import OnCount
from cuao3d.readers import Dataset
from cuao3d.scene import Frame, Scene, Split
from cuao3d.store import Store, StoredScene
from cuao3d.store.header import difference
from cuao3d.teachers import TEACHERS, Teacher, TeacherSpec, card_of, load_teacher
from cuao3d.teachers.network import Precision
from cuao3d.teachers.views import BATCH, describe_together
from cuao3d.vocabulary import Told

CHUNK = 16
"""Classes whose scores are brought to the size of the image at a time."""


@dataclass(frozen=True)
class Votes:
    """What the views of a scene say of its samples."""

    of_class: Int64[Tensor, "S K"]
    """Number of views that name each class at each sample."""
    num_views: Int64[Tensor, "S"]
    """Number of views that see each sample; those whose image cannot be read are not counted."""


@torch.no_grad()
def vote(
    scene: Scene,
    samples: Samples,
    teacher: Teacher,
    class_vectors: Float[Tensor, "K C"],
    *,
    upright: bool = True,
    batch_size: int = BATCH,
) -> Votes:
    """Let each view of a scene name the class of every sample that it sees: the best at the pixel where it sees it.

    Pixels are read as lifting reads them: at the nearest one, of the map upsampled to the image by bicubic
    interpolation. That is linear, so scores are upsampled instead of features.

    Args:
        scene: The scene; a frame whose image cannot be read, or whose maps are not finite, does not vote.
        samples: Its samples.
        teacher: Turns an image into feature maps.
        class_vectors: Unit vector of each class, in the teacher's text space.
        upright: Show each image upright; see `fusion.lift_together`.
        batch_size: Frames shown at a time, to a teacher that takes several.
    """
    visibility, quarters = see(scene, samples), image_quarters(scene, upright=upright)
    num_views = torch.zeros(len(samples.index_of_sample), dtype=torch.int64)
    of_class = torch.zeros(len(num_views), len(class_vectors), dtype=torch.int64)
    images = [partial(_read, scene.frames[view.frame], quarters[view.frame]) for view in visibility.views]
    described = describe_together([teacher], images, batch_size=batch_size)
    for view, several in zip(visibility.views, described, strict=True):
        if isinstance(several, tuple):  # lifting has left out all else, and said so
            size = view.camera.height, view.camera.width
            maps = tuple(one.rot90(-quarters[view.frame], (1, 2)) for one in several[0])
            of_pixel = _scores_at(maps, class_vectors, view.pixels, size).cpu()
            sample, named = view.sample, (of_pixel != 0).any(dim=1)
            num_views[sample] += 1
            of_class[sample[named], of_pixel[named].argmax(dim=1)] += 1  # a view sees a sample once
    return Votes(of_class, num_views)


def score_voting(
    store: Store,
    dataset: Dataset,
    teacher: Teacher,
    classes: LabelSet,
    class_vectors: Float[Tensor, "K C"],
    *,
    name: str = "",
    split: Split | None = "val",
    seen_only: bool = False,
    told: Told = NOTHING_TOLD,
    progress: OnCount | None = None,
) -> Row:
    """Score the majority over views; of classes with equally many votes the first is taken.

    Args:
        store: Scenes with labels.
        dataset: The data that they were lifted from, read in the same way.
        teacher: Names the classes.
        classes: Label set to score in.
        class_vectors: Unit vector of each class, in the teacher's text space.
        name: Name of the dataset, for the row.
        split: Split to evaluate; None for all scenes.
        seen_only: Score only points whose sample at least one view sees.
        told: Words that the teacher was trained with.
        progress: Called after each scene.

    Raises:
        InputError: The data lack a scene of the store, or have other points or views of it.
    """
    index_of = {scene: index for index, scene in enumerate(dataset.names)}

    def score_classes(stored: StoredScene) -> Mapping[str, Tensor]:
        if stored.name not in index_of:
            raise InputError(f"The data have no scene {stored.name}; name those that {store.path} was lifted from.")
        votes = _votes_of(store, stored, dataset[index_of[stored.name]], teacher, class_vectors)
        return {"voting": votes.of_class.float()}

    counted = count(store, classes, score_classes, split=split, seen_only=seen_only, progress=progress)
    return make_row(
        counted,
        classes,
        model="none",
        readout="voting",
        dataset=name,
        split=split or "all",
        seen_only=seen_only,
        told=told,
    )


def lifting_teacher(store: Store, name: str, *, device: str = "cpu") -> Teacher:
    """Load the teacher that a store was lifted by, with the options that the store records.

    Args:
        store: The store.
        name: Name of the teacher.
        device: Where it runs.

    Raises:
        InputError: The store has no such teacher, it is none of the package's, or its weights are others by now.
    """
    if (card := store.teachers.get(name)) is None:
        raise InputError(f"{store.path} has no features of {name}; it has {', '.join(store.teachers) or 'none'}.")
    if name not in TEACHERS:
        raise InputError(f"{name} is not known by its name; have it vote from Python: cuao3d.voting.score_voting.")
    options = dict(card.options)
    precision = options.pop("precision", "fp32")
    written = {key: str(value) for key, value in options.items()}
    teacher = load_teacher(TeacherSpec(name, options=written), device=device, precision=cast(Precision, precision))
    if (here := card_of(teacher)) != card:
        mine, other = asdict(here), asdict(card)
        raise InputError(f"{name} is not the teacher that {store.path} was lifted by: its {difference(other, mine)}.")
    return teacher


def _votes_of(store: Store, stored: StoredScene, scene: Scene, teacher: Teacher, class_vectors: Tensor) -> Votes:
    """Let the views of a scene vote on the samples of the store; raise InputError where it is another scene by now."""
    if not torch.equal(scene.points, stored.points):
        raise InputError(f"The data have other points in {stored.name} than {store.path}; lift it again: cuao3d fuse")
    upright = bool(store.settings.get("upright", True))
    samples = Samples(stored.index_of_sample, stored.sample_of_point)
    votes = vote(scene, samples, teacher, class_vectors, upright=upright)
    is_imported = store.settings.get("features") == "imported"  # then how many views saw a sample is not on file
    if not is_imported and not torch.equal(votes.num_views, stored.num_views):
        raise InputError(f"The data have other views of {stored.name} than {store.path}; lift it again: cuao3d fuse")
    return votes


def _read(frame: Frame, quarters: int) -> Tensor | None:
    """Read an image, turned counter-clockwise by quarters; None where it cannot be read or is of another size."""
    try:
        image: Tensor = frame.read_image()
    except (UserError, OSError):
        return None  # lifting has left it out too, and said so
    if tuple(image.shape) != (3, frame.camera.height, frame.camera.width):
        return None
    return image.rot90(quarters, (1, 2)).contiguous()


def _scores_at(
    maps: tuple[Tensor, ...], class_vectors: Tensor, pixels: Float64[Tensor, "n 2"], size: tuple[int, int]
) -> Float[Tensor, "n K"]:
    """Score the classes at pixels (x, y) of an image of a size (height, width), by maps (C, h, w) of it."""
    total = torch.zeros(len(pixels), len(class_vectors), device=maps[0].device)
    column, row = pixels.round().long().to(total.device).unbind(dim=1)
    for one, part in zip(maps, torch.split(class_vectors, [len(one) for one in maps], dim=1), strict=True):
        small = torch.einsum("kc,chw->khw", part.to(total.device, torch.float32), one.float())
        large = (functional.interpolate(few[None], size=size, mode="bicubic")[0] for few in torch.split(small, CHUNK))
        total += torch.cat([few[:, row, column] for few in large]).T
    return total
