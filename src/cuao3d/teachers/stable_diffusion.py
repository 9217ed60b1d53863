"""Stable Diffusion as a teacher: what its U-Net's decoder computes while it looks at an image with a little noise.

Reads any checkpoint of the 1.x and 2.x family in the format of diffusers. Nothing of its folder is run.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cuao3d.download import CARDS, find
from cuao3d.errors import InputError, NotFoundError, NotInstalledError
from cuao3d.files import read_json, sha256_of
from cuao3d.pickles import check_weights, some_of
from cuao3d.pretrained.huggingface import misfits
from cuao3d.schema import Width, fit
from cuao3d.teachers.network import Level, NetworkTeacher

PARTS = "model_index.json, unet/, vae/, text_encoder/, tokenizer/ and scheduler/"
"""What a folder in the format of diffusers holds."""

LICENCES = {768: CARDS["stable-diffusion"].licence, 1024: CARDS["stable-diffusion-2.1"].licence}
"""Licences of 1.x and 2.x, by the width of the words that their U-Nets read."""

MULTIPLE = 64
"""An image that keeps its own size is brought to multiples of this, pixels; then no level has half a cell."""


class StableDiffusion(NetworkTeacher):
    """Denoising U-Net of Stable Diffusion: the outputs of its up-blocks, after one pass over a noised image.

    An up-block is read after its upsampler, so at the size that the next block works at. An image of 640 x 480 is a
    latent of 80 x 60; the U-Net takes that down to 40 x 30, 20 x 15 and 10 x 8, and its up-blocks 0, 1 and 2 bring it
    back to 20 x 15, 40 x 30 and 80 x 60, with 1280, 1280 and 640 channels. Up-block 3 has no upsampler: 80 x 60 again.
    What comes after the last block that is read is never computed, nor kept in memory.

    The latent is drawn from the VAE's distribution for the image, and noise is added to it. Both draws come from a
    generator seeded by the image's 8-bit pixels: the same image gives the same features in any order or batch.
    """

    loss = "demeaned-cosine"

    def __init__(
        self,
        weights: Path | None = None,
        *,
        name: str = "stable_diffusion",
        step: int = 100,
        prompt: str = "",
        blocks: Sequence[int] = (0, 1, 2),
        ensemble: int = 1,
        image_size: tuple[int, int] | None = (480, 640),
    ) -> None:
        """Load the U-Net and the VAE's encoder, and embed the prompt.

        Args:
            weights: Folder in the format of diffusers; if not given, that of the weights called `name`.
            name: Name of the teacher: "stable_diffusion" is 1.5, "stable_diffusion_2_1" is 2.1.
            step: Noising step that the image is taken to.
            prompt: Words that the U-Net reads beside the image.
            blocks: Up-blocks to read, 0 the coarsest; maps come in this order.
            ensemble: Draws of latent and noise; the maps are the means over as many passes.
            image_size: Height and width, pixels, that images are resized to, swapped for an image that stands where
                this lies; None keeps an image's own size, to the nearest multiples of 64.

        Raises:
            NotFoundError: The folder is not there, or something is missing from it.
            InputError: The folder holds another model, a file is broken or could run code, or an argument is off.
            NotInstalledError: diffusers or transformers is not installed.
        """
        try:
            import diffusers
            import transformers
        except ImportError:
            raise NotInstalledError("Stable Diffusion needs diffusers: pip install 'cuao3d[teachers]'") from None
        folder = weights or find(name)
        _check_family(folder)
        of_unet, of_vae = _parts(folder)
        # The noise schedule is that of the training, whichever sampler the checkpoint names to walk it.
        schedule = _settings(folder / "scheduler" / "scheduler_config.json")
        self.scheduler = diffusers.DDPMScheduler.from_config(schedule)
        self.name, self.step, self.prompt = name, step, prompt
        self.blocks, self.ensemble = tuple(blocks), ensemble
        self.image_size = image_size
        shrinks_by = 2 ** (len(of_vae["block_out_channels"]) - 1)
        self._check_arguments(num_blocks=len(of_unet["block_out_channels"]), shrinks_by=shrinks_by)
        self.levels = _levels(of_unet["block_out_channels"], self.blocks, shrinks_by)
        self.num_channels = sum(level.channels for level in self.levels)
        self.licence = LICENCES.get(of_unet["cross_attention_dim"], "unknown")
        with _quietly(diffusers.utils.logging, transformers.utils.logging):
            words = _embed(folder, prompt)
            if words.shape[2] != of_unet["cross_attention_dim"]:
                raise InputError(
                    f"The U-Net of {folder} reads words of width {of_unet['cross_attention_dim']}, its text encoder "
                    f"gives {words.shape[2]}: they are of different checkpoints."
                )
            vae, vae_file = _load(diffusers.AutoencoderKL, folder / "vae")
            unet, unet_file = _load(diffusers.UNet2DConditionModel, folder / "unet")
        hashes = "".join(sha256_of(file) for file in (unet_file, vae_file))
        self.weights_sha256 = hashlib.sha256(hashes.encode()).hexdigest()
        network = _Network(unet, vae, words, self.blocks).eval().requires_grad_(False)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _check_arguments(self, *, num_blocks: int, shrinks_by: int) -> None:
        num_steps = len(self.scheduler.alphas_cumprod)
        if not 0 <= self.step < num_steps:
            raise InputError(f"The noising step must be within 0 to {num_steps - 1}; got {self.step}.")
        if not self.blocks or len(set(self.blocks) & set(range(num_blocks))) < len(self.blocks):
            raise InputError(f"The up-blocks must be different ones of 0 to {num_blocks - 1}; got {self.blocks}.")
        if self.ensemble < 1:
            raise InputError(f"An ensemble has at least one member; got {self.ensemble}.")
        if self.image_size and any(side < 1 or side % shrinks_by for side in self.image_size):
            raise InputError(f"The sides of images must be multiples of {shrinks_by} pixels; got {self.image_size}.")

    def _describe(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        network = self.network
        assert isinstance(network, _Network)
        size = self._size(images.shape[2], images.shape[3])
        seen = F.interpolate(images, size, mode="bilinear", antialias=True) * 2 - 1
        # In fp16 activations of this VAE can pass its largest number, 65504, and all is NaN from there: fp32 then.
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            mean, deviation = network.encode(seen)
        draws = _draw(images, self.ensemble, mean.shape[1:]).to(images.device)
        steps = torch.full((len(images),), self.step, device=images.device)
        sums: tuple[Tensor, ...] = ()
        for of_latent, of_noise in draws:
            noisy = self.scheduler.add_noise(mean + deviation * of_latent, of_noise, steps)
            maps = network.decode(noisy, steps)
            sums = tuple(one + more for one, more in zip(sums, maps, strict=True)) if sums else maps
        return tuple(one / self.ensemble for one in sums)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width at which the network looks at an image of this size."""
        if self.image_size is None:
            return max(round(height / MULTIPLE), 1) * MULTIPLE, max(round(width / MULTIPLE), 1) * MULTIPLE
        tall, wide = self.image_size
        return (wide, tall) if (height - width) * (tall - wide) < 0 else (tall, wide)


class _Network(nn.Module):
    """Encoder of the VAE, and the U-Net up to the last block that is read."""

    words: Tensor
    """Embedding of the prompt."""

    def __init__(self, unet: Any, vae: Any, words: Float[Tensor, "1 words width"], blocks: Sequence[int]) -> None:
        super().__init__()
        vae.decoder = vae.post_quant_conv = None
        last = max(blocks)
        del unet.up_blocks[last + 2 :]
        if len(unet.up_blocks) > last + 1:
            # Where sizes are odd, diffusers tells a block the size of its output only if another one comes after it.
            unet.up_blocks[last + 1] = _End()
        unet.conv_norm_out, unet.conv_out = None, nn.Identity()
        self.unet, self.vae, self.blocks = unet, vae, tuple(blocks)
        self.register_buffer("words", words)

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation of the latents of images in [-1, 1], scaled for the U-Net."""
        latents = self.vae.encode(images).latent_dist
        scale = self.vae.config.scaling_factor
        return latents.mean.float() * scale, latents.std.float() * scale

    def decode(self, noisy: Float[Tensor, "B C h w"], steps: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the blocks, fp32."""
        read: dict[int, Tensor] = {}
        hooks = [
            self.unet.up_blocks[block].register_forward_hook(
                lambda _module, _inputs, output, block=block: read.update({block: output.float()})
            )
            for block in self.blocks
        ]
        try:
            self.unet(noisy, steps, self.words.expand(len(noisy), -1, -1), return_dict=False)
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(read[block] for block in self.blocks)


class _End(nn.Module):
    """Stands for the first up-block that is not read: hands on what it is given, at no cost."""

    resnets = ()

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return hidden_states


def _levels(channels: Sequence[int], blocks: Sequence[int], shrinks_by: int) -> tuple[Level, ...]:
    """Return width and stride of up-blocks; all but the finest double the size of what they take.

    Args:
        channels: Width of the levels of the U-Net, fine to coarse.
        blocks: Up-blocks, 0 the coarsest.
        shrinks_by: Pixels along a cell of the latent.
    """
    finest = len(channels) - 1
    return tuple(Level(channels[finest - block], shrinks_by * 2 ** max(finest - 1 - block, 0)) for block in blocks)


def _draw(images: Float[Tensor, "B 3 H W"], count: int, shape: Sequence[int]) -> Float[Tensor, "k 2 B C h w"]:
    """Draw what is random about images: `count` times, for the latent and for the noise.

    Each image has a generator of its own, seeded by its pixels, on the CPU: its first draws are the same however many
    follow, in any batch, on any device.
    """
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    draws = []
    for image in pixels:
        digest = hashlib.sha256(image.contiguous().numpy().tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        draws.append(torch.stack([torch.randn(2, *shape, generator=generator) for _ in range(count)]))
    return torch.stack(draws, dim=2)


def _check_family(folder: Path) -> None:
    """Refuse a folder of another model."""
    path = folder / "model_index.json"
    index = _settings(path)
    if index.get("_class_name") != "StableDiffusionPipeline" or "text_encoder_2" in index:
        raise InputError(
            f"{path} is of a {index.get('_class_name', 'model without a name')}. This teacher reads Stable Diffusion "
            "1.x and 2.x (StableDiffusionPipeline), not SDXL, Stable Diffusion 3 or models for inpainting."
        )


def _parts(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the settings of the U-Net and of the VAE, which must fit each other."""
    of_unet = _settings(folder / "unet" / "config.json", "block_out_channels", "in_channels", "cross_attention_dim")
    of_vae = _settings(folder / "vae" / "config.json", "block_out_channels", "latent_channels")
    if of_unet["in_channels"] != of_vae["latent_channels"]:
        raise InputError(
            f"The U-Net of {folder} reads {of_unet['in_channels']} channels, its VAE gives "
            f"{of_vae['latent_channels']}: this is no plain text-to-image model."
        )
    return of_unet, of_vae


class _Settings(TypedDict, total=False):
    """What is read of the settings of a U-Net or a VAE; diffusers reads the rest."""

    block_out_channels: list[Width]
    in_channels: Width
    latent_channels: Width
    cross_attention_dim: Width


def _settings(path: Path, *needed: str) -> dict[str, Any]:
    """Read a JSON file of a checkpoint, which must have the settings that are needed."""
    if not path.is_file():
        raise NotFoundError(f"There is no {path}. A folder of Stable Diffusion holds {PARTS}.")
    settings = read_json(path, "download it again")
    if not set(needed) <= settings.keys():
        raise InputError(f"{path} does not hold {', '.join(needed) or 'settings'}; get it again.")
    fit(settings, _Settings, str(path), "download it again")
    return settings


def _load(
    part: Any, folder: Path, safe: str = "diffusion_pytorch_model", pickled: str = "diffusion_pytorch_model"
) -> tuple[Any, Path]:
    """Load a part of a checkpoint in fp32; return it and the file of its weights.

    Args:
        part: Class of the part.
        folder: Its folder.
        safe: Name of its file of weights without the ending, as safetensors.
        pickled: The same as a pickle.
    """
    settings = folder / "config.json"
    _settings(settings)
    file = _weights_file(folder, safe, pickled)
    try:
        module, found = part.from_pretrained(
            folder.parent,
            subfolder=folder.name,
            local_files_only=True,
            use_safetensors=file.suffix == ".safetensors",
            variant="fp16" if ".fp16." in file.name else None,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{file} does not fit {settings}: {shorten(str(error), 300)}") from error
    # Tensors that are missing or of another shape come as random numbers; further ones do no harm.
    if problems := misfits({**found, "unexpected_keys": ()}):
        raise InputError(f"{file} does not fit {settings}: {some_of(problems)}.")
    return module.float(), file


def _weights_file(folder: Path, safe: str, pickled: str) -> Path:
    """Find the weights of a part, and refuse a file that is broken or that could run code."""
    names = f"{safe}.safetensors", f"{safe}.fp16.safetensors", f"{pickled}.bin", f"{pickled}.fp16.bin"
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise NotFoundError(f"There is no {folder / names[0]}, nor any of {', '.join(names[1:])} beside it.")
    check_weights(file)
    return file


def _embed(folder: Path, prompt: str) -> Float[Tensor, "1 words width"]:
    """Embed a prompt; the text encoder is dropped afterwards."""
    from transformers import CLIPTextModel, CLIPTokenizer

    place = folder / "tokenizer"
    # Without them transformers makes up a vocabulary of two words.
    if not (place / "tokenizer.json").is_file():
        for file in (place / "vocab.json", place / "merges.txt"):
            if not file.is_file():
                raise NotFoundError(f"There is no {file}. A folder of Stable Diffusion holds {PARTS}.")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(place, local_files_only=True)
    except Exception as error:  # the reader of vocabularies raises plain Exceptions
        raise InputError(f"{place} holds no vocabulary of CLIP: {shorten(str(error), 300)}") from error
    text, file = _load(CLIPTextModel, folder / "text_encoder", safe="model", pickled="pytorch_model")
    if len(tokenizer) != text.config.vocab_size:
        raise InputError(f"{place} knows {len(tokenizer)} words, {file} {text.config.vocab_size}; one is broken.")
    tokens = tokenizer(
        prompt,
        padding="max_length",
        max_length=text.config.max_position_embeddings,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        words: Tensor = text(tokens.input_ids).last_hidden_state
    return words


@contextmanager
def _quietly(of_diffusers: Any, of_transformers: Any) -> Iterator[None]:
    """Keep both libraries from drawing bars and writing reports of what our own errors say in a line."""
    libraries = of_diffusers, of_transformers
    verbosities = [library.get_verbosity() for library in libraries]
    had_bars = of_transformers.is_progress_bar_enabled()
    of_transformers.disable_progress_bar()
    for library in libraries:
        library.set_verbosity(library.CRITICAL)
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, verbosities, strict=True):
            library.set_verbosity(verbosity)
        if had_bars:
            of_transformers.enable_progress_bar()
