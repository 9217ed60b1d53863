"""Facts about scores from counts: hand-worked means, intervals and groups, and what is no class."""

import math

import pytest
import torch

from cuao3d.labels import label_set
from cuao3d.metrics import confusion_matrix, group_means, mean_interval, measure


def test_the_mean_of_seeds_and_its_interval_by_hand():
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert (mean, half) == pytest.approx((2, 4.302653 / 3**0.5))  # Student's t, two degrees of freedom
    assert mean_interval([1.5]) == (1.5, None)
    assert math.isnan(mean_interval([])[0])


def test_groups_of_scannet200_have_means_of_their_own():
    classes = label_set("scannet200")
    head, tail = classes.groups.index("head"), classes.groups.index("tail")
    labels, predicted = torch.tensor([head] * 4 + [tail] * 2), torch.tensor([head] * 3 + [tail] * 3)
    means = group_means(measure(confusion_matrix(predicted, labels, 200)), classes)
    assert (means["head"], means["tail"]) == pytest.approx((75, 100 * 2 / 3))
    assert math.isnan(means["common"])
    assert group_means(measure(confusion_matrix(predicted, predicted, 200)), label_set("scannet20")) == {}


def test_no_labelled_point_gives_no_score_and_not_zero():
    metrics = measure(confusion_matrix(torch.tensor([1, 2]), torch.tensor([255, 255]), 3))
    assert all(math.isnan(score) for score in (metrics.miou, metrics.macc, metrics.miou_all, metrics.macc_all))


@pytest.mark.parametrize(("predicted", "label"), [(0, 4), (0, -1), (4, 0), (-1, 0), (0, 256), (0, 65536)])
def test_a_class_that_is_none_of_the_set_is_no_cell_of_another(predicted, label):
    with pytest.raises(ValueError, match="there are 4 classes, from 0 on"):
        confusion_matrix(torch.tensor([1, predicted]), torch.tensor([1, label]), 4)
