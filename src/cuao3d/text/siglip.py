"""SigLIP 2's text side, from a folder in transformers' format."""

from pathlib import Path
from typing import Any

from jaxtyping import Float32
from torch import Tensor

from cuao3d.errors import InputError, NotFoundError
from cuao3d.pretrained.huggingface import open_model
from cuao3d.text.cache import Cached, sha256_of_folder
from cuao3d.text.encoder import ModelEncoder, pad
from cuao3d.text.folder import IMAGE_SIDE, find_folder

# Models of one resolution are saved as the first SigLIP, whose text side is the same network.
CLASSES = {
    "siglip": "SiglipTextModel",
    "siglip_text_model": "SiglipTextModel",
    "siglip2": "Siglip2TextModel",
    "siglip2_text_model": "Siglip2TextModel",
}
"""Class of transformers by the model_type that a folder gives."""


class SiglipText(ModelEncoder):
    """SigLIP 2: what the last of 64 tokens became. As in its training, texts are lower-cased, ended and filled up."""

    reads = "any language"

    def __init__(self, folder: Path) -> None:
        """Load the weights.

        Args:
            folder: A SigLIP 2 of transformers, or its text side, and its tokenizer.json.

        Raises:
            NotInstalledError: transformers is not installed.
            InputError: Another model lies there, or a damaged one.
        """
        self._model = open_model(folder, CLASSES, unused=IMAGE_SIDE)
        self._tokenizer, self._end, self._filler = _read_tokenizer(folder / "tokenizer.json")
        self.num_channels = self._model.config.projection_size
        self.max_tokens = self._model.config.max_position_embeddings

    @staticmethod
    def cached(where: str = "") -> Cached:
        """Return SigLIP 2's text side, which is loaded when a text is new to it.

        Args:
            where: Folder of the model, of which the text side is enough; or the name of weights.
        """
        folder = find_folder("siglip2", where)
        return Cached("siglip2", lambda: SiglipText(folder), sha256_of_folder(folder), reads=SiglipText.reads)

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        lower = [text.lower() for text in texts]
        return [[*one.ids, self._end] for one in self._tokenizer.encode_batch(lower, add_special_tokens=False)]

    def _encode(self, tokens: list[list[int]]) -> Float32[Tensor, "B C"]:
        vectors: Tensor = self._model(pad(tokens, self._filler, self.max_tokens)).pooler_output
        return vectors


def _read_tokenizer(path: Path) -> tuple[Any, int, int]:
    """Read what splits texts, and the tokens that end them and fill them up.

    Ending and filling up are ours: on which side it is done differs between versions of transformers, and the vector
    with it.
    """
    from tokenizers import Tokenizer

    if not path.is_file():
        raise NotFoundError(f"{path} is missing; SigLIP 2 comes with one.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers has no class for its errors
        raise InputError(f"{path} cannot be read: {error}") from None
    end, filler = tokenizer.token_to_id("<eos>"), tokenizer.token_to_id("<pad>")
    if end is None or filler is None:
        raise InputError(f"{path} is not of SigLIP 2: it has no <eos> or no <pad>.")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, end, filler
