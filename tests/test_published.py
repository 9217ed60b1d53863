"""Facts about the published figures."""

import math

import pytest

from cuao3d.errors import InputError
from cuao3d.published import published


def test_a_table_has_its_rows_with_their_protocol():
    (ours,) = published("zero-shot", "scannet20", readout="2d3d")[-1:]
    assert (ours.method, ours.miou, ours.macc, ours.is_foreground) == ("CUA-O3D", 55.3, 65.6, False)
    assert ours.protocol == "2d3d; trained on scannet20; evaluated on scannet20; talk"
    across = published("cross-dataset", "scannet20", trained_on="matterport21")
    assert [(row.method, row.miou) for row in across] == [("OpenScene", 36.5), ("CUA-O3D", 38.6)]
    assert {row.table for row in published()} == {
        "ablation", "cross-dataset", "fully-supervised", "linear-probe", "zero-shot"
    }  # fmt: skip


def test_a_figure_that_is_not_given_is_none_and_one_that_diverged_is_nan():
    tangent = published("fully-supervised")[0]
    assert (tangent.method, tangent.miou, tangent.macc) == ("TangentConv", 40.9, None)
    assert math.isnan(published("ablation")[-1].miou)


def test_the_figures_of_foreground_classes_are_marked():
    marked = {row.method: row for row in published() if row.is_foreground}
    assert set(marked) == {"PLA", "RegionPLC"}
    assert marked["PLA"].protocol.endswith("(its authors: github.com/CVMI-Lab/PLA/issues/26)")


def test_an_unknown_table_is_said():
    with pytest.raises(InputError, match="No table 'zeroshot' is published; choose from \\['ablation', "):
        published("zeroshot")
