"""Posed RGB-D in, a 3D model that understands any words out."""

import os
from importlib.metadata import version

# Large tensors in huge pages, where the system has them: fresh ones otherwise cost more than what is computed in them.
# PyTorch looks at this when it first makes a tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# OpenMP's threads spin when a loop is over, on cores that the threads of `threads.py` want by then. A tenth of a
# millisecond is long enough to catch the next loop. It is looked at when PyTorch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = version("cuao3d")
