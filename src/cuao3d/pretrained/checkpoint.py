"""LSeg's checkpoint: its tensors, of which the image side and the text side each take theirs; never code."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from cuao3d.errors import NotFoundError
from cuao3d.pickles import check_weights, read_torch

NETWORK = "net."
"""What the names of the network's tensors begin with in a checkpoint of its training."""

UNNEEDED = ("pytorch_lightning.", "lightning.", "argparse.", "numpy.")
"""Packages that a checkpoint of the training may name, for its settings and scores; nothing of that is needed."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read LSeg's tensors, without the `net.` before their names; what is not used of a checkpoint is not read.

    Raises:
        NotFoundError: There is no such file.
        InputError: It is no checkpoint, a damaged one, or one with code in it.
    """
    if not path.is_file():
        folder = "a folder" if path.is_dir() else "not there"
        raise NotFoundError(f"{path} is {folder}; LSeg needs the file of its checkpoint, demo_e200.ckpt.")
    if path.suffix == ".safetensors":
        check_weights(path)
        content: Any = load_file(path)
    else:
        content = read_torch(path, mapped=True, unneeded=UNNEEDED)
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    named = content.items() if isinstance(content, dict) else ()
    tensors = {str(name): value for name, value in named if isinstance(value, Tensor)}
    of_network = {name: value for name, value in tensors.items() if name.startswith(NETWORK)}
    return {name.removeprefix(NETWORK): value for name, value in (of_network or tensors).items()}
