"""The student's heads: per teacher, a map from the student's features to the teacher's."""

import re
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cuao3d.sparse import multiply

HeadKind = Literal["linear", "mlp"]


class Head(nn.Module):
    """Map from the student's features to one teacher's: linear, or with a hidden layer (`mlp`).

    Attributes:
        bias: None while training. A head that learned normalised features gets one when the normaliser is undone.
    """

    bias: Tensor | None

    def __init__(self, num_hidden: int, num_channels: int, kind: HeadKind = "linear") -> None:
        super().__init__()
        self.inner = nn.Linear(num_hidden, num_hidden) if kind == "mlp" else None
        self.weight = nn.Parameter(torch.empty(num_hidden, num_channels))
        self.register_buffer("bias", None)
        nn.init.normal_(self.weight, std=(2 / num_hidden) ** 0.5)

    def forward(self, hidden: Float[Tensor, "V H"]) -> Float[Tensor, "V C"]:
        """Predict the teacher's features."""
        out = multiply(self.before(hidden), self.weight)
        return out if self.bias is None else out + self.bias

    def before(self, hidden: Float[Tensor, "V H"]) -> Float[Tensor, "V H"]:
        """Return the input of the linear map."""
        return hidden if self.inner is None else F.relu(self.inner(hidden))


class Heads(nn.Module):
    """Heads by teacher, under any name: `nn.ModuleDict` refuses "resnet-1.5", "half" and "keys".

    Tensors are named after the teacher, as in an `nn.ModuleDict`; see `tensor_name`.
    """

    def __init__(self, heads: Mapping[str, Head]) -> None:
        super().__init__()
        self._names = tuple(heads)
        for name, head in heads.items():
            self._modules[tensor_name(name)] = head  # `add_module` refuses the names of its own methods

    def __getitem__(self, name: str) -> Head:
        head = self._modules[tensor_name(name)]
        assert isinstance(head, Head)
        return head

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def items(self) -> Iterator[tuple[str, Head]]:
        """Return each teacher and its head."""
        return ((name, self[name]) for name in self)

    def values(self) -> Iterator[Head]:
        """Return the heads."""
        return (self[name] for name in self)


def tensor_name(teacher: str) -> str:
    """Escape a teacher's name for the names of its head's tensors; no two teachers get the same one.

    Dots separate the parts of a tensor's name, and a module has attributes called `training` and `_...` already.
    """
    return re.sub(r"[.%]|^_|^t(?=raining\Z)", lambda match: f"%{ord(match[0]):02X}", teacher)
