"""CLIP's text side, from a folder in transformers' format."""

from pathlib import Path

from jaxtyping import Float32
from torch import Tensor

from cuao3d.pretrained.huggingface import open_model
from cuao3d.text.cache import Cached, sha256_of_folder
from cuao3d.text.encoder import ModelEncoder, pad
from cuao3d.text.folder import IMAGE_SIDE, find_folder, load_tokenizer

CLASSES = {"clip": "CLIPTextModelWithProjection", "clip_text_model": "CLIPTextModelWithProjection"}
"""Class of transformers by the model_type that a folder gives."""


class ClipText(ModelEncoder):
    """CLIP: what the token that ends a text became, projected to where images are."""

    def __init__(self, folder: Path) -> None:
        """Load the weights.

        Args:
            folder: A CLIPModel or CLIPTextModelWithProjection of transformers, and its tokenizer.

        Raises:
            NotInstalledError: transformers is not installed.
            InputError: Another model lies there, or a damaged one.
        """
        self._model = open_model(folder, CLASSES, unused=IMAGE_SIDE)
        self._tokenizer = load_tokenizer(folder)
        self.num_channels = self._model.config.projection_dim
        self.max_tokens = self._model.config.max_position_embeddings

    @staticmethod
    def cached(where: str = "") -> Cached:
        """Return CLIP's text side, which is loaded when a text is new to it.

        Args:
            where: Folder of the model, of which the text side is enough; or the name of weights.
        """
        folder = find_folder("clip", where)
        return Cached("clip", lambda: ClipText(folder), sha256_of_folder(folder))

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        tokens: list[list[int]] = self._tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        return tokens

    def _encode(self, tokens: list[list[int]]) -> Float32[Tensor, "B C"]:
        # What follows the first end of a text is seen neither by it nor by what comes before it.
        vectors: Tensor = self._model(pad(tokens, self._tokenizer.eos_token_id)).text_embeds
        return vectors
