"""The student's heads: one map from its features to those of each teacher, under the teacher's name."""

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
    """Linear map from the student's features to one teacher's, after a hidden layer if asked for.

    Attributes:
        bias: None, or what was added when a head that learned normalised features was led back to the teacher's own.
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
        """Return what the linear map reads."""
        return hidden if self.inner is None else F.relu(self.inner(hidden))


class Heads(nn.Module):
    """Heads by teacher. Any name will do: `nn.ModuleDict` refuses "resnet-1.5", "half" and "keys".

    Tensors are named after the teacher, as in a `nn.ModuleDict`; see `tensor_name`.
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
    """Return how the names of a head's tensors spell its teacher; no two teachers are spelled alike.

    Dots part the names of tensors, and a module sets `training` and attributes with "_" in front on itself.
    """
    return re.sub(r"[.%]|^_|^t(?=raining\Z)", lambda match: f"%{ord(match[0]):02X}", teacher)
