"""What the tests check at every call: types everywhere, and shapes wherever there are arrays."""

import pytest
import torch
from jaxtyping import TypeCheckError

from cuao3d import ranks, threads
from cuao3d.geometry import group_mean
from cuao3d.sparse.voxels import VoxelSet
from cuao3d.store import TeacherCard


def test_shapes_that_do_not_fit_each_other_are_refused():
    with pytest.raises(TypeCheckError, match="group_mean"):
        group_mean(torch.ones(3, 2), torch.zeros(4, dtype=torch.int64), 1)
    with pytest.raises(TypeCheckError, match="group_mean"):
        group_mean(torch.ones(3, 2), torch.zeros(3), 1)
    with pytest.raises(TypeCheckError):  # annotations that are strings
        VoxelSet(torch.ones(3, 3, dtype=torch.int64))


def test_types_are_checked_where_there_are_no_arrays(monkeypatch):
    with pytest.raises(TypeCheckError):
        TeacherCard("384")
    with pytest.raises(TypeCheckError, match="in_shares"):
        threads.in_shares(lambda share, shares: share, "cpu")
    monkeypatch.setattr(ranks.distributed, "is_initialized", lambda: "yes")
    with pytest.raises(TypeCheckError, match="in_group"):
        ranks.in_group()
