"""LSeg's text side: CLIP ViT-B/32's, out of LSeg's own checkpoint, in plain PyTorch.

Parameters are named as OpenAI named them, so the tensors of the checkpoint are taken as they are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from cuao3d.download import find
from cuao3d.errors import InputError, NotFoundError
from cuao3d.pickles import load_into
from cuao3d.pretrained.checkpoint import read_checkpoint
from cuao3d.text.cache import Cached, known_sha256
from cuao3d.text.clip_tokens import ClipTokenizer
from cuao3d.text.encoder import ModelEncoder, pad

PREFIX = "clip_pretrained."
"""What the names of CLIP's tensors begin with in the checkpoint."""

OTHER_SIDES = (f"{PREFIX}visual.", f"{PREFIX}logit_scale")
"""Tensors of CLIP that words do not need."""

CHANNELS_OF_HEAD = 64
"""Channels of an attention head, in every CLIP of OpenAI."""


class LSegText(ModelEncoder):
    """CLIP as LSeg carries it: what the token that ends a text became, projected to where pixels are."""

    def __init__(self, path: Path) -> None:
        """Load the weights.

        Args:
            path: LSeg's checkpoint.

        Raises:
            NotInstalledError: tokenizers is not installed.
            NotFoundError: The checkpoint is not there.
            InputError: It is something else, or damaged.
        """
        self._tokenizer = ClipTokenizer()
        tensors = {
            name.removeprefix(PREFIX): tensor.float()
            for name, tensor in read_checkpoint(path).items()
            if name.startswith(PREFIX) and not name.startswith(OTHER_SIDES)
        }
        try:
            self._network = TextTransformer.from_official(tensors, num_tokens=self._tokenizer.num_tokens)
        except ValueError as error:
            raise InputError(f"{path} has no text side that can be used. {error}") from None
        self.max_tokens, _ = self._network.positional_embedding.shape
        _, self.num_channels = self._network.text_projection.shape

    @staticmethod
    def cached(where: str | Path = "") -> Cached:
        """Return LSeg's text side, which is loaded when a text is new to it.

        Args:
            where: LSeg's checkpoint; by default the one that `cuao3d.download.find` finds.

        Raises:
            NotFoundError: It is not there.
        """
        path = Path(where) if where else find("lseg")
        if not path.is_file():
            raise NotFoundError(f"There is no checkpoint of LSeg at {path}.")
        return Cached("lseg", lambda: LSegText(path), known_sha256(path))

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts)

    def _encode(self, tokens: list[list[int]]) -> Float32[Tensor, "B C"]:
        vectors: Tensor = self._network(pad(tokens, 0))
        return vectors


class TextTransformer(nn.Module):
    """CLIP's text side: a transformer in which every token sees those before it."""

    def __init__(self, *, num_tokens: int, max_tokens: int, width: int, depth: int, num_channels: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(num_tokens, width)
        self.positional_embedding = nn.Parameter(torch.empty(max_tokens, width))
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(_Block(width) for _ in range(depth))})
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, num_channels))

    @staticmethod
    def from_official(tensors: Mapping[str, Tensor], *, num_tokens: int) -> "TextTransformer":
        """Build the network that tensors of OpenAI's CLIP belong to.

        Args:
            tensors: Tensors by their official names.
            num_tokens: Size of the vocabulary.

        Raises:
            InputError: Tensors are missing, extra, or of another shape.
        """
        needed = ("positional_embedding", "text_projection")
        missing = [name for name in needed if name not in tensors]
        if missing:
            raise InputError(f"It lacks {', '.join(PREFIX + name for name in missing)}.")
        positions, projection = (tensors[name] for name in needed)
        with torch.device("meta"):
            network = TextTransformer(
                num_tokens=num_tokens,
                max_tokens=positions.shape[0],
                width=positions.shape[1],
                depth=len({name.split(".")[2] for name in tensors if name.startswith("transformer.resblocks.")}),
                num_channels=projection.shape[1],
            )
        load_into(network, tensors, what="CLIP", assign=True)
        return network.eval().requires_grad_(False)

    def forward(self, tokens: Int64[Tensor, "B T"]) -> Float[Tensor, "B C"]:
        """Encode texts; what stands after the token that ends one does not matter."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        for block in cast(nn.ModuleList, self.transformer["resblocks"]):
            x = block(x)
        # The token that ends a text has the largest number of all.
        ends = x[torch.arange(len(tokens)), tokens.argmax(dim=1)]
        vectors: Tensor = self.ln_final(ends) @ self.text_projection
        return vectors


class _Block(nn.Module):
    """Attention to what came before and a two-layer perceptron, each added to what it reads normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = width // CHANNELS_OF_HEAD
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, self.num_heads)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        seen = F.linear(self.ln_1(x), self.attn.in_proj_weight, self.attn.in_proj_bias)
        query, key, value = seen.reshape(*x.shape[:2], 3, self.num_heads, CHANNELS_OF_HEAD).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.attn.out_proj(attended)
        wide = self.mlp["c_fc"](self.ln_2(x))
        out: Tensor = x + self.mlp["c_proj"](wide * torch.sigmoid(1.702 * wide))
        return out
