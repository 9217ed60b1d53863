"""Shares of work on threads of one core each."""

import time

import pytest
import torch

from cuao3d.threads import in_shares

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_every_share_is_done_on_one_core_without_gradients_and_results_are_in_order():
    def work(share, num_shares):
        return share, num_shares, torch.get_num_threads(), torch.is_grad_enabled()

    assert in_shares(work, CPU) == [(0, 2, 1, False), (1, 2, 1, False)]
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (2, True)


def test_where_there_is_one_thread_the_caller_does_all():
    torch.set_num_threads(1)
    assert in_shares(lambda share, num_shares: (share, num_shares, torch.is_grad_enabled()), CPU) == [(0, 1, False)]


def test_a_failure_is_raised_once_all_shares_are_over():
    over = []

    def work(share, num_shares):
        if share == 0:
            raise ValueError("share 0 is broken")
        time.sleep(0.05)
        over.append(share)

    with pytest.raises(ValueError, match="share 0 is broken"):
        in_shares(work, CPU)
    assert over == [1]
