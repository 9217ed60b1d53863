"""Posed RGB-D in, a 3D model that understands any words out. The public names, listed in `docs/api.md`.

Each name is loaded when it is first used, so `import cuao3d` costs nothing.
"""

import os
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

# Large tensors in huge pages, where the system has them: fresh ones otherwise cost more than what is computed in them.
# PyTorch looks at this when it first makes a tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# OpenMP's threads spin when a loop is over, on cores that the threads of `threads.py` want by then. A tenth of a
# millisecond is long enough to catch the next loop. It is looked at when PyTorch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = version("cuao3d")

_HOME = {
    "UserError": "errors",
    "InputError": "errors",
    "NotFoundError": "errors",
    "NotInstalledError": "errors",
    "DiskFullError": "errors",
    "Camera": "scene",
    "Frame": "scene",
    "Scene": "scene",
    "in_capture": "coordinates",
    "LabelSet": "labels",
    "label_set": "labels",
    "open_dataset": "readers",
    "Rooms": "worlds.rooms",
    "make_room": "worlds.rooms",
    "Teacher": "teachers",
    "load_teacher": "teachers",
    "TextEncoder": "text",
    "load_text_encoder": "text",
    "Store": "store",
    "StoredScene": "store",
    "import_features": "imported",
    "fuse": "pipeline",
    "Student": "student",
    "import_student": "pipeline",
    "LOSSES": "objective",
    "DistillConfig": "distill",
    "distill_student": "distill",
    "Answer": "query",
    "Predictor": "predictor",
    "Row": "metrics",
    "save_answers": "exports",
    "show_answers": "exports",
    "evaluate_store": "pipeline",
    "Index": "index",
    "index_stores": "index",
}
"""The room of each public name."""

_NAME_THERE = {"distill_student": "distill", "evaluate_store": "evaluate"}
"""Functions that have the name of a room, and so another one here."""

__all__ = [
    "LOSSES",
    "Answer",
    "Camera",
    "DiskFullError",
    "DistillConfig",
    "Frame",
    "Index",
    "InputError",
    "LabelSet",
    "NotFoundError",
    "NotInstalledError",
    "Predictor",
    "Rooms",
    "Row",
    "Scene",
    "Store",
    "StoredScene",
    "Student",
    "Teacher",
    "TextEncoder",
    "UserError",
    "__version__",
    "datasets",
    "distill_student",
    "evaluate_store",
    "fuse",
    "import_features",
    "import_student",
    "in_capture",
    "index_stores",
    "label_set",
    "load_teacher",
    "load_text_encoder",
    "make_room",
    "open_dataset",
    "recipes",
    "save_answers",
    "show_answers",
]

if TYPE_CHECKING:
    from cuao3d import datasets as datasets
    from cuao3d import recipes as recipes
    from cuao3d.coordinates import in_capture as in_capture
    from cuao3d.distill import DistillConfig as DistillConfig
    from cuao3d.distill import distill as distill_student
    from cuao3d.errors import DiskFullError as DiskFullError
    from cuao3d.errors import InputError as InputError
    from cuao3d.errors import NotFoundError as NotFoundError
    from cuao3d.errors import NotInstalledError as NotInstalledError
    from cuao3d.errors import UserError as UserError
    from cuao3d.exports import save_answers as save_answers
    from cuao3d.exports import show_answers as show_answers
    from cuao3d.imported import import_features as import_features
    from cuao3d.index import Index as Index
    from cuao3d.index import index_stores as index_stores
    from cuao3d.labels import LabelSet as LabelSet
    from cuao3d.labels import label_set as label_set
    from cuao3d.metrics import Row as Row
    from cuao3d.objective import LOSSES as LOSSES
    from cuao3d.pipeline import evaluate as evaluate_store
    from cuao3d.pipeline import fuse as fuse
    from cuao3d.pipeline import import_student as import_student
    from cuao3d.predictor import Predictor as Predictor
    from cuao3d.query import Answer as Answer
    from cuao3d.readers import open_dataset as open_dataset
    from cuao3d.scene import Camera as Camera
    from cuao3d.scene import Frame as Frame
    from cuao3d.scene import Scene as Scene
    from cuao3d.store import Store as Store
    from cuao3d.store import StoredScene as StoredScene
    from cuao3d.student import Student as Student
    from cuao3d.teachers import Teacher as Teacher
    from cuao3d.teachers import load_teacher as load_teacher
    from cuao3d.text import TextEncoder as TextEncoder
    from cuao3d.text import load_text_encoder as load_text_encoder
    from cuao3d.worlds.rooms import Rooms as Rooms
    from cuao3d.worlds.rooms import make_room as make_room


def __getattr__(name: str) -> Any:
    """Load a public name from its room."""
    if name in ("datasets", "recipes"):
        return import_module(f"cuao3d.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'cuao3d' has no attribute {name!r}")
    return getattr(import_module(f"cuao3d.{_HOME[name]}"), _NAME_THERE.get(name, name))


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
