"""The training objective: one loss per teacher, computed without an N x C tensor, and their weighting."""

from cuao3d.objective.constant import ConstantLoss, best_constant
from cuao3d.objective.losses import LossKind, OwnLoss, teacher_loss, voxel_losses, word_loss
from cuao3d.objective.normalizers import RESOLUTION, Normalizer, NormalizerKind, fit_normalizer
from cuao3d.objective.own import LOSSES, code_of_losses, find_loss
from cuao3d.objective.targets import (
    Compressed,
    RowMeans,
    Table,
    Targets,
    finite_rows,
    parts_of,
    row_means,
    select,
    table_of,
)
from cuao3d.objective.weightings import WeightingKind, make_weighting, settled_sigmas

__all__ = [
    "LOSSES",
    "RESOLUTION",
    "Compressed",
    "ConstantLoss",
    "LossKind",
    "Normalizer",
    "NormalizerKind",
    "OwnLoss",
    "RowMeans",
    "Table",
    "Targets",
    "WeightingKind",
    "best_constant",
    "code_of_losses",
    "find_loss",
    "finite_rows",
    "fit_normalizer",
    "make_weighting",
    "parts_of",
    "row_means",
    "select",
    "settled_sigmas",
    "table_of",
    "teacher_loss",
    "voxel_losses",
    "word_loss",
]
