"""Ambiguity: what single views take the points of a scene for, where they disagree, and whether that is where it errs.

Every view is lifted alone and names its points; the names are votes. Disagreement of a point is the chance that two of
its views, drawn at random, name different classes: 1 - sum n_k (n_k - 1) / (n (n - 1)) for n_k votes of n for class k,
an unbiased estimate of the Gini-Simpson index (Simpson, 1949).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.fusion import Samples, Visibility, image_quarters, lift_measured, see
from cuao3d.geometry import project
from cuao3d.photographs import turned
from cuao3d.progress import OnCount
from cuao3d.query import classify, parts, scores
from cuao3d.scene import UNLABELLED, Frame, Scene
from cuao3d.store import StoredScene
from cuao3d.teachers import Teacher

MOST_SHOWN = 4
"""Views of an object that are shown at most."""

MOSTLY = 0.4
"""Only views are shown that see at least this part of what the best view sees of the object."""


@dataclass(frozen=True, eq=False)
class Vote:
    """What a view takes its points for."""

    frame: int
    """Index of its frame."""
    sample: Int64[Tensor, "n"]
    """Samples that it sees."""
    classes: Int64[Tensor, "n"]
    """Class of each; 255 where it has no feature."""


@dataclass(frozen=True, eq=False)
class Ambiguity:
    """What the views of a scene take its samples for."""

    votes: tuple[Vote, ...]
    """What each view says, in capture order."""
    num_votes: Int64[Tensor, "S"]
    """Views that name a class for each sample."""
    disagreement: Float32[Tensor, "S"]
    """Chance that two of them name different classes; NaN where fewer than two name one."""


@dataclass(frozen=True, eq=False)
class Crop:
    """A view of an object."""

    frame: str
    """Name of the frame."""
    image: UInt8[np.ndarray, "h w 3"]
    """What surrounds the object, upright."""
    pixels: Float64[Tensor, "n 2"]
    """Where the samples of the object lie in it (x, y)."""
    classes: Int64[Tensor, "n"]
    """What the view takes each of them for."""


def study(
    scene: Scene,
    stored: StoredScene,
    teacher: Teacher,
    class_vectors: Float[Tensor, "K C"],
    *,
    progress: OnCount | None = None,
) -> Ambiguity:
    """Let every view of a scene name the points that it sees, by itself; views that cannot be read have no say.

    Args:
        scene: The scene with its images, as of `upright_scene` where the store's views were shown upright.
        stored: The same scene as a store holds it; its samples are named.
        teacher: The teacher that looks.
        class_vectors: Unit vector of each class, in the teacher's text space.
        progress: Told after each view.

    Raises:
        InputError: The two are not one scene.
    """
    if scene.points.shape != stored.points.shape or not torch.allclose(scene.points, stored.points, atol=1e-4):
        raise InputError(
            f"{scene.name} is not the scene of that name in the store: its points are others. Give the data that the "
            "store was made from, or make the store again with `cuao3d fuse`."
        )
    visibility = see(scene, Samples(stored.index_of_sample, stored.sample_of_point))
    votes = []
    for done, view in enumerate(visibility.views, start=1):
        alone = torch.zeros_like(visibility.num_views)
        alone[view.sample] = 1
        lifted = lift_measured(scene, Visibility((view,), alone), teacher, upright=False, skip_unreadable=True)
        if lifted.visibility.views:
            votes.append(Vote(view.frame, view.sample, classify(scores(lifted.features.cpu(), class_vectors))))
        if progress:
            progress(done, len(visibility.views))
    return tally(votes, len(visibility.num_views), len(class_vectors))


def upright_scene(scene: Scene) -> Scene:
    """Return a scene whose frames are turned by the quarter that makes them upright, as teachers see them."""
    frames = [
        frame if not quarters % 4 else _turned(frame, quarters)
        for frame, quarters in zip(scene.frames, image_quarters(scene), strict=True)
    ]
    return replace(scene, frames=tuple(frames))


def tally(votes: Sequence[Vote], num_samples: int, num_classes: int) -> Ambiguity:
    """Count votes: how many there are for each sample, and how much they disagree; see the head of this file."""
    counts = torch.zeros(num_samples, num_classes, dtype=torch.int16)
    for vote in votes:
        named = vote.classes != UNLABELLED
        counts[vote.sample[named], vote.classes[named]] += 1
    num_votes = counts.sum(dim=1)
    same = (counts.float() * (counts.float() - 1)).sum(dim=1)
    pairs = (num_votes * (num_votes - 1)).float()
    return Ambiguity(tuple(votes), num_votes, torch.where(pairs > 0, 1 - same / pairs, math.nan))


def rank_correlation(disagreement: Float[Tensor, "S"], is_wrong: Bool[Tensor, "S"]) -> float | None:
    """Return Spearman's correlation of disagreement with error, over the samples that two views name.

    Args:
        disagreement: As of `Ambiguity`; NaN where it is not known.
        is_wrong: Whether each sample is named wrongly.

    Returns:
        -1 to 1; None where one of the two is the same everywhere.
    """
    from scipy.stats import spearmanr

    known = ~disagreement.isnan()
    values, wrong = disagreement[known], is_wrong[known]
    if len(values) < 2 or values.min() == values.max() or wrong.all() or not wrong.any():
        return None
    return float(spearmanr(values.numpy(), wrong.numpy()).statistic)


def choose_object(
    points: Float[Tensor, "S 3"],
    classes: Int64[Tensor, "S"],
    disagreement: Float[Tensor, "S"],
    background: Bool[Tensor, "K"],
) -> Bool[Tensor, "S"]:
    """Choose the object whose views disagree most, of all connected parts of one class.

    What counts is the mean disagreement times the root of the number of samples: neither a speck wins, nor a large
    thing that nearly all views agree on.


    Args:
        points: World positions of the samples, metres.
        classes: Class of each sample, by its label or by a prediction; 255 for none.
        disagreement: As of `Ambiguity`.
        background: Classes, such as wall, of which a part is taken only where there is no other.

    Returns:
        Which samples are of the object; none where no two views disagree in any part.
    """
    best, highest = torch.zeros(len(points), dtype=torch.bool), (False, 0.0)
    known = ~disagreement.isnan()
    for row in torch.unique(classes[known & (classes != UNLABELLED)]).tolist():
        index = torch.nonzero(known & (classes == row)).squeeze(1)
        part = parts(points[index])
        for number in range(int(part.max()) + 1):
            of_part = index[part == number]
            total = (not bool(background[row]), float(disagreement[of_part].sum()) / math.sqrt(len(of_part)))
            if total[1] > 0 and total > highest:
                best, highest = torch.zeros(len(points), dtype=torch.bool), total
                best[of_part] = True
    return best


def crops(scene: Scene, stored: StoredScene, ambiguity: Ambiguity, of_object: Bool[Tensor, "S"]) -> list[Crop]:
    """Show an object in some of the views that see it well; those that take it for something else come first.

    Args:
        scene: The scene that was studied.
        stored: The same scene as a store holds it.
        ambiguity: What its views say.
        of_object: Which samples are of the object.
    """
    about = [replace(vote, sample=vote.sample[of_object[vote.sample]], classes=vote.classes[of_object[vote.sample]])
             for vote in ambiguity.votes]  # fmt: skip
    most = max((len(vote.sample) for vote in about), default=0)
    good = sorted((vote for vote in about if most and len(vote.sample) >= MOSTLY * most), key=lambda v: -len(v.sample))
    said: set[int] = set()
    first: list[Vote] = []
    rest: list[Vote] = []
    for vote in good:
        mostly = int(vote.classes.mode().values)
        (rest if mostly in said else first).append(vote)
        said.add(mostly)
    return [_crop(scene.frames[vote.frame], stored.sample_points, vote) for vote in (first + rest)[:MOST_SHOWN]]


def _crop(frame: Frame, points: Tensor, vote: Vote) -> Crop:
    """Cut a square out of a view, nearly twice as large as what some samples span, as far as the view reaches."""
    camera, image = frame.camera, frame.read_image()
    pixels, _ = project(points[vote.sample], camera)
    bounds = torch.tensor([camera.width, camera.height])
    span = float((pixels.amax(dim=0) - pixels.amin(dim=0)).max())
    side = torch.tensor(round(max(1.8 * span, 0.2 * camera.width))).minimum(bounds.min())
    low = ((pixels.amin(dim=0) + pixels.amax(dim=0) - side) / 2).round().long().clamp(min=0).minimum(bounds - side)
    cutout = image[:, low[1] : low[1] + side, low[0] : low[0] + side]
    shown = (cutout.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Crop(frame.name, np.ascontiguousarray(shown), pixels - low, vote.classes)


def _turned(frame: Frame, quarters: int) -> Frame:
    """Return a frame turned counter-clockwise by quarters."""
    return replace(
        frame,
        camera=turned(frame.camera, quarters),
        read_image=lambda: frame.read_image().rot90(quarters, (1, 2)).contiguous(),
        read_depth=lambda: frame.read_depth().rot90(quarters, (0, 1)).contiguous(),
    )
