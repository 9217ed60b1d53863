"""A scene side by side: what went in, the truth, and what each predictor takes its points for."""

from collections.abc import Mapping

import torch
from jaxtyping import Int64
from matplotlib.figure import Figure
from torch import Tensor

from cuao3d.colors import NOTHING, class_colors
from cuao3d.console import counted
from cuao3d.figures.panels import Looks, Panel, class_legend, draw_panels
from cuao3d.labels import LabelSet
from cuao3d.metrics import confusion_matrix, measure
from cuao3d.scene import UNLABELLED
from cuao3d.store import StoredScene


def draw_sides(
    scene: StoredScene,
    label_set: LabelSet,
    predictions: Mapping[str, Int64[Tensor, "N"]],
    title: str,
    *,
    labels: Int64[Tensor, "N"] | None = None,
    looks: Looks | None = None,
) -> Figure:
    """Draw input, truth and predictions of a scene, from a corner and from above.

    Args:
        scene: The scene.
        label_set: The classes.
        predictions: For each predictor, by its name, the class of each point, a row of the label set; 255 for none.
        title: Title of the figure.
        labels: True class of each point, likewise; None where it is not known.
        looks: Views of the scene, if they are known.
    """
    looks = looks or Looks(scene)
    colors = torch.full((len(scene.points), 3), NOTHING) if scene.colors is None else scene.colors
    note = counted(len(scene.points), "point") + ("" if scene.colors is not None else ", without colours")
    panels = [Panel("Input", looks(colors), note)]
    if labels is not None:
        panels.append(Panel("Truth", looks(class_colors(labels, label_set)), "shown to nobody"))
    for name, classes in predictions.items():
        panels.append(Panel(name, looks(class_colors(classes, label_set)), _score(classes, labels, label_set)))
    shown = [*([] if labels is None else [labels]), *predictions.values()]
    return draw_panels(title, panels, legend=class_legend(label_set, shown))


def _score(classes: Tensor, labels: Tensor | None, label_set: LabelSet) -> str:
    """Say how well a prediction does in this scene; nothing where no point has a label."""
    if labels is None or bool((labels == UNLABELLED).all()):
        return ""
    return f"mIoU {100 * measure(confusion_matrix(classes, labels, len(label_set))).miou:.0f} in this scene"
