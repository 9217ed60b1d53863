"""Facts about memory over many scenes."""

import ctypes
import gc
import os
from pathlib import Path

import pytest
import torch

from cuao3d.files import write_tensors
from cuao3d.memory import _trim, give_back


def test_files_of_any_size_leave_no_types_behind(tmp_path):
    def array_types() -> int:
        gc.collect()
        return sum(type(one) is type(ctypes.c_ubyte * 1) for one in gc.get_objects())

    write_tensors(tmp_path / "a", {"a": torch.zeros(10)})
    before = array_types()
    for size in range(1001, 1011):
        write_tensors(tmp_path / "a", {"a": torch.zeros(size), "b": torch.zeros(size, 3)})
    assert array_types() == before


@pytest.mark.skipif(_trim() is None, reason="only glibc gives back what lies between other memory")
def test_what_lay_between_freed_tensors_is_given_back():
    def megabytes() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    # 64 kB are too few for a mapping of their own, and what stays between them keeps their heap from shrinking.
    freed, kept = [], []
    for _ in range(2_000):
        freed.append(torch.ones(16_384))
        kept.append(torch.ones(16))
    before = megabytes()
    freed.clear()
    give_back()
    assert before - megabytes() > 100
    assert len(kept) == 2_000
