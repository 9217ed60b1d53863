"""Stable Diffusion against its U-Net run whole, on small random checkpoints, saved as the published ones are."""

import hashlib
import json
import logging
import pickle
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from cuao3d.download import CARDS
from cuao3d.names import match_name
from cuao3d.teachers import load_teacher, stable_diffusion
from cuao3d.teachers.stable_diffusion import StableDiffusion

SIZE = (96, 160)
"""Height and width that most tests look at; the latent is 12 x 20, so that the coarsest levels are odd."""

START, END, ROOM = 515, 516, 514
"""Tokens of the small vocabulary."""

WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A folder, and the networks that were saved in it."""

    folder: Path
    unet: nn.Module
    vae: Any
    text: nn.Module
    scheduler: Any
    pad: int
    """Token that fills up a prompt."""


@pytest.fixture(scope="module", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    """In the way of 1.5: epsilon prediction, PNDM, prompts filled up with their end."""
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints") / "one")


@pytest.fixture(scope="module")
def teacher(checkpoint) -> StableDiffusion:
    return StableDiffusion(checkpoint.folder, image_size=SIZE)


def save_checkpoint(folder: Path, *, second: bool = False, words: int = 8) -> Checkpoint:
    """Save a small checkpoint as 1.5 was published, or as 2.1."""
    from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    of_second = {"attention_head_dim": (1, 2, 4, 4), "use_linear_projection": True, "upcast_attention": True}
    unet = UNet2DConditionModel(
        block_out_channels=(4, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=words,
        **(of_second if second else {"attention_head_dim": 2}),
    )
    vae = AutoencoderKL(
        block_out_channels=(2, 2, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=1,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=517, hidden_size=words, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
        )
    )
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    scheduler = (
        DDIMScheduler(prediction_type="v_prediction", clip_sample=False, **betas)
        if second
        else PNDMScheduler(skip_prk_steps=True, **betas)
    )
    for name, part in {"unet": unet, "vae": vae, "text_encoder": text, "scheduler": scheduler}.items():
        part.save_pretrained(folder / name)
    name_as_published(folder)
    save_tokenizer(folder / "tokenizer", pad="!" if second else "<|endoftext|>")
    index = {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return Checkpoint(folder, unet.eval(), vae.eval(), text.eval(), scheduler, pad=0 if second else END)


def name_as_published(folder: Path) -> None:
    """Give tensors the names that they have in the published files, which are older than today's."""
    path = folder / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name}": tensor for name, tensor in load_file(path).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, path, {"format": "pt"})
    path = folder / "vae" / WEIGHTS
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    for new, old in older.items():
        tensors = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in tensors.items()}
    save_file(tensors, path, {"format": "pt"})


def save_tokenizer(folder: Path, *, pad: str) -> None:
    """Save a CLIP tokenizer that knows all bytes, inside and at the end of a word, and the word room."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(256 - len(printable))]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "ro", "om</w>", "room</w>"]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr o\no m</w>\nro om</w>\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {**special, "pad_token": "<|endoftext|>", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": pad}))


def picture(height: int = 48, width: int = 64, seed: int = 0) -> Tensor:
    """An image of 8-bit values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), generator=generator) / 255


@torch.no_grad()
def whole(
    checkpoint: Checkpoint,
    image: Tensor,
    *,
    image_size: tuple[int, int] = SIZE,
    step: int = 100,
    tokens: Sequence[int] = (),
    blocks: Sequence[int] = (0, 1, 2),
    ensemble: int = 1,
) -> tuple[Tensor, ...]:
    """Maps of one image by the published recipe, with the U-Net run to its end."""
    seen = functional.interpolate(image[None], image_size, mode="bilinear") * 2 - 1
    latent = checkpoint.vae.encode(seen).latent_dist
    prompt = [START, *tokens, END]
    prompt += [checkpoint.pad] * (77 - len(prompt))
    words = checkpoint.text(torch.tensor([prompt])).last_hidden_state
    pixels = (image * 255).round().to(torch.uint8).numpy().tobytes()
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(pixels).digest()[:8], "little"))
    read: list[list[Tensor]] = [[] for _ in blocks]
    hooks = [
        checkpoint.unet.up_blocks[block].register_forward_hook(
            lambda _module, _inputs, output, maps=maps: maps.append(output)
        )
        for block, maps in zip(blocks, read, strict=True)
    ]
    for _ in range(ensemble):
        of_latent, of_noise = torch.randn(2, *latent.mean.shape[1:], generator=generator)
        clean = (latent.mean + latent.std * of_latent) * 0.18215
        noisy = checkpoint.scheduler.add_noise(clean, of_noise[None], torch.tensor([step]))
        assert checkpoint.unet(noisy, step, words).sample.shape == noisy.shape
    for hook in hooks:
        hook.remove()
    return tuple(sum(maps)[0] / ensemble for maps in read)


def assert_same(maps: Sequence[Tensor], others: Sequence[Tensor], tolerance: float = 1e-4) -> None:
    assert [one.shape for one in maps] == [one.shape for one in others]
    for one, other in zip(maps, others, strict=True):
        assert (one - other).abs().max() < tolerance * other.abs().max()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"step": 700, "ensemble": 3},
        {"blocks": (3, 1)},
        {"image_size": (120, 72), "blocks": (0, 1)},
    ],
    ids=str,
)
def test_maps_are_those_of_the_whole_u_net(checkpoint, settings):
    teacher = StableDiffusion(checkpoint.folder, **{"image_size": SIZE, **settings})
    image = picture(64, 48) if "image_size" in settings else picture()
    maps = teacher(image)
    assert_same(maps, whole(checkpoint, image, **settings))
    assert [len(one) for one in maps] == [level.channels for level in teacher.levels]


def test_the_prompt_is_read_as_clip_reads_it(checkpoint):
    image = picture()
    plain = whole(checkpoint, image)
    described = StableDiffusion(checkpoint.folder, prompt="Room", image_size=SIZE)(image)
    assert_same(described, whole(checkpoint, image, tokens=[ROOM]))
    assert (described[2] - plain[2]).abs().max() > 1e-3 * plain[2].abs().max()


def test_a_checkpoint_of_the_second_kind_is_read_with_v_prediction_and_its_own_filling(tmp_path):
    second = save_checkpoint(tmp_path / "two", second=True, words=12)
    teacher = StableDiffusion(second.folder, image_size=SIZE)
    assert second.scheduler.config.prediction_type == "v_prediction"
    assert_same(teacher(picture()), whole(second, picture()))


def test_640_by_480_is_described_at_20_by_15_40_by_30_and_80_by_60(checkpoint):
    teacher = StableDiffusion(checkpoint.folder)
    assert [one.shape for one in teacher(picture(240, 320))] == [(16, 15, 20), (16, 30, 40), (8, 60, 80)]
    assert [tuple(level) for level in teacher.levels] == [(16, 32), (16, 16), (8, 8)]
    assert teacher.num_channels == 40
    assert (teacher.name, teacher.text, teacher.loss) == ("stable_diffusion", None, "demeaned-cosine")


@pytest.mark.parametrize(("blocks", "up_blocks"), [((0,), 1), ((2, 0), 3)])
def test_nothing_past_the_last_block_is_computed(checkpoint, blocks, up_blocks):
    teacher = StableDiffusion(checkpoint.folder, blocks=blocks, image_size=SIZE)
    calls: Counter[str] = Counter()
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.update([type(module).__name__]))
    teacher(picture())
    hook.remove()
    # The VAE's encoder has 4 x 1 + 2 residual blocks, the U-Net 4 x 1 + 2 before its up-blocks and 2 in each of those.
    assert calls["ResnetBlock2D"] == 6 + 6 + 2 * up_blocks
    assert calls["Upsample2D"] == up_blocks
    assert calls["Decoder"] == 0
    kept = {name.split(".")[1] for name, _ in teacher.network.unet.up_blocks.named_parameters(prefix="up")}
    assert kept == {str(block) for block in range(up_blocks)}


def test_features_depend_on_the_image_alone(teacher):
    image, others = picture(), [picture(seed=seed) for seed in (1, 2)]
    alone = teacher(image)
    teacher(others[0])
    assert all(torch.equal(one, again) for one, again in zip(alone, teacher(image), strict=True))
    batch = teacher.batch(torch.stack([*others, image]))
    assert_same(tuple(one[2] for one in batch), alone)
    assert (batch[0][0] - batch[0][2]).abs().max() > 0.01 * alone[0].abs().max()


def test_noise_is_the_same_in_any_batch_and_whatever_is_drawn_after_it():
    images = torch.stack([picture(seed=seed) for seed in range(3)])
    draws = stable_diffusion._draw(images, 2, (4, 3, 5))
    assert torch.equal(stable_diffusion._draw(images[1:2], 1, (4, 3, 5)), draws[:1, :, 1:2])
    # An image that is a hair off its 8-bit values, as after a calculation on another device, has the same noise.
    assert torch.equal(stable_diffusion._draw(images - 1e-4, 2, (4, 3, 5)), draws)
    assert len({draw.sum().item() for draw in draws.flatten(0, 2)}) == 2 * 2 * 3


def test_the_vae_is_kept_out_of_fp16(teacher):
    exact = teacher(picture())
    seen = {}
    for name, module in (("vae", teacher.network.vae.encoder.conv_in), ("unet", teacher.network.unet.conv_in)):
        module.register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output.dtype}))
    for precision, dtypes in {
        "fp16": (torch.float32, torch.float16),
        "bf16": (torch.bfloat16, torch.bfloat16),
        "fp32": (torch.float32, torch.float32),
    }.items():
        rounded = teacher.to("cpu", precision)(picture())
        assert (seen["vae"], seen["unet"]) == dtypes
        assert {one.dtype for one in rounded} == {torch.float32}
        assert_same(rounded, exact, tolerance=0.1)


@pytest.mark.parametrize(
    ("image_size", "image", "seen"),
    [
        ((480, 640), (240, 320), (480, 640)),
        ((480, 640), (512, 640), (480, 640)),
        ((480, 640), (320, 240), (640, 480)),
        ((640, 480), (240, 320), (480, 640)),
        ((480, 640), (300, 300), (480, 640)),
        (None, (480, 640), (512, 640)),
        (None, (968, 1296), (960, 1280)),
        (None, (20, 100), (64, 128)),
    ],
)
def test_images_are_looked_at_whole_in_their_own_orientation(teacher, monkeypatch, image_size, image, seen):
    monkeypatch.setattr(teacher, "image_size", image_size)
    assert teacher._size(*image) == seen


def test_an_image_that_keeps_its_size_is_described_at_a_fraction_of_it(teacher, monkeypatch):
    monkeypatch.setattr(teacher, "image_size", None)
    for one, level in zip(teacher(picture(130, 190)), teacher.levels, strict=True):
        assert one.shape == (level.channels, 128 / level.stride, 192 / level.stride)


def test_weights_are_known_by_the_hashes_of_u_net_and_vae(checkpoint, teacher):
    hashes = [hashlib.sha256((checkpoint.folder / part / WEIGHTS).read_bytes()).hexdigest() for part in ("unet", "vae")]
    assert teacher.weights_sha256 == hashlib.sha256("".join(hashes).encode()).hexdigest()


def test_names_on_the_command_line_find_their_own_weights(checkpoint, monkeypatch):
    asked = []
    monkeypatch.setattr(stable_diffusion, "find", lambda name: asked.append(name) or checkpoint.folder)
    names = [load_teacher(name).name for name in ("stable-diffusion", "stable-diffusion-2.1")]
    assert [match_name(name, CARDS) for name in asked] == ["stable-diffusion", "stable-diffusion-2.1"]
    assert names == ["stable_diffusion", "stable_diffusion_2_1"]
    assert load_teacher(f"stable-diffusion={checkpoint.folder}").num_channels == 40
    assert len(asked) == 2


@pytest.fixture
def copied(checkpoint, tmp_path) -> Path:
    """A copy of the checkpoint, to be damaged."""
    return Path(shutil.copytree(checkpoint.folder, tmp_path / "copy"))


PARTS = {
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "text_encoder": ("model", "pytorch_model"),
}
"""Names of the files of weights, as safetensors and as pickles."""


def test_half_precision_files_are_taken_where_there_are_no_others_and_computed_in_fp32(checkpoint, copied):
    for part, (name, _) in PARTS.items():
        file = copied / part / f"{name}.safetensors"
        halves = {key: value.half() if value.is_floating_point() else value for key, value in load_file(file).items()}
        save_file(halves, copied / part / f"{name}.fp16.safetensors", {"format": "pt"})
        file.unlink()
    settings = copied / "text_encoder" / "config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "dtype": "float16"}))
    teacher = StableDiffusion(copied, image_size=SIZE)
    assert {tensor.dtype for tensor in teacher.network.state_dict().values()} == {torch.float32}
    assert_same(teacher(picture()), whole(checkpoint, picture()), tolerance=0.02)


def test_pickles_of_tensors_alone_are_read(checkpoint, copied):
    for part, (safe, pickled) in PARTS.items():
        file = copied / part / f"{safe}.safetensors"
        torch.save(load_file(file), copied / part / f"{pickled}.bin")
        file.unlink()
    assert_same(StableDiffusion(copied, image_size=SIZE)(picture()), whole(checkpoint, picture()))


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("save", [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content, 2))])
def test_a_pickle_that_holds_code_is_refused_and_not_run(copied, tmp_path, part, save):
    safe, pickled = PARTS[part]
    (copied / part / f"{safe}.safetensors").unlink()
    file = copied / part / f"{pickled}.bin"
    save({"weight": Code(tmp_path / "ran")}, file)
    with pytest.raises(ValueError, match=rf"{part}/{pickled}\.bin: refused, because .* may run code"):
        StableDiffusion(copied)
    assert not (tmp_path / "ran").exists()


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def lose_a_tensor(file: Path) -> None:
    tensors = load_file(file)
    save_file(dict(sorted(tensors.items())[1:]), file, {"format": "pt"})


def crop_a_tensor(file: Path) -> None:
    tensors = load_file(file)
    name = max(tensors)
    save_file({**tensors, name: tensors[name][:1].clone()}, file, {"format": "pt"})


def write(text: str):
    return lambda file: file.write_text(text)


DAMAGES = {
    "no folder": ("", shutil.rmtree, FileNotFoundError, r"no \S*copy/model_index\.json\. A folder of Stable Diffusion"),
    "no index": ("model_index.json", Path.unlink, FileNotFoundError, r"no \S*model_index\.json"),
    "broken index": ("model_index.json", write("{"), ValueError, r"model_index\.json is not valid JSON"),
    "a list": ("model_index.json", write("[]"), ValueError, r"model_index\.json should hold a JSON object"),
    "SDXL": (
        "model_index.json",
        write('{"_class_name": "StableDiffusionXLPipeline", "text_encoder_2": []}'),
        ValueError,
        r"model_index\.json is of a StableDiffusionXLPipeline\. This teacher reads .* not SDXL",
    ),
    "two text encoders": (
        "model_index.json",
        write('{"_class_name": "StableDiffusionPipeline", "text_encoder_2": []}'),
        ValueError,
        "not SDXL",
    ),
    "bare U-Net": (
        "unet/config.json",
        write("{}"),
        ValueError,
        r"unet/config\.json does not hold block_out_channels, in_ch",
    ),
    "no U-Net": ("unet", shutil.rmtree, FileNotFoundError, r"no \S*unet/config\.json"),
    "no weights": (f"unet/{WEIGHTS}", Path.unlink, FileNotFoundError, rf"no \S*unet/{WEIGHTS}, nor any of .*\.fp16"),
    "cut U-Net": (f"unet/{WEIGHTS}", cut_short, ValueError, rf"unet/{WEIGHTS}: not a safetensors file"),
    "cut VAE": (f"vae/{WEIGHTS}", cut_short, ValueError, rf"vae/{WEIGHTS}: not a safetensors file"),
    "a pointer": (f"unet/{WEIGHTS}", write("version https://git-lfs\n"), ValueError, rf"{WEIGHTS}: not a safetensors"),
    "lost tensor": (f"unet/{WEIGHTS}", lose_a_tensor, ValueError, r"unet/config\.json: missing conv_in\.bias"),
    "other tensor": (f"unet/{WEIGHTS}", crop_a_tensor, ValueError, rf"unet/{WEIGHTS} does not fit .* up_blocks\.3"),
    "other blocks": (
        "unet/config.json",
        lambda file: file.write_text(file.read_text().replace('"CrossAttnUpBlock2D"', '"NoBlock"')),
        ValueError,
        r"does not fit \S*unet/config\.json: .*NoBlock",
    ),
    "lost words": (
        "text_encoder/model.safetensors",
        lose_a_tensor,
        ValueError,
        r"text_encoder/model\.safetensors does not fit .*: missing ",
    ),
    "other words": (
        "text_encoder/model.safetensors",
        crop_a_tensor,
        ValueError,
        r"text_encoder/model\.safetensors does not fit .*: \S+ is \(1,\), not \(8,\)\.",
    ),
    "no vocabulary": ("tokenizer/vocab.json", Path.unlink, FileNotFoundError, r"no \S*tokenizer/vocab\.json"),
    "no merges": ("tokenizer/merges.txt", Path.unlink, FileNotFoundError, r"no \S*tokenizer/merges\.txt"),
    "broken vocabulary": ("tokenizer/vocab.json", write("{"), ValueError, r"tokenizer holds no vocabulary of CLIP"),
    "other vocabulary": (
        "tokenizer/vocab.json",
        write('{"r": 0, "o": 1, "ro": 2, "m</w>": 3, "om</w>": 4, "room</w>": 5}'),
        ValueError,
        r"tokenizer knows 8 words, \S*text_encoder/model\.safetensors 517",
    ),
    "no schedule": ("scheduler", shutil.rmtree, FileNotFoundError, r"no \S*scheduler/scheduler_config\.json"),
}


@pytest.mark.parametrize(("where", "damage", "error", "message"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_wrong_with_a_checkpoint_is_said_by_the_name_of_the_file(
    copied, where, damage, error, message, monkeypatch, capfd
):
    damage(copied / where)
    reports = []
    monkeypatch.setattr(logging.Logger, "callHandlers", lambda _self, record: reports.append(record.getMessage()))
    with pytest.raises(error, match=message) as raised:
        StableDiffusion(copied)
    assert "\n" not in str(raised.value)
    assert (reports, capfd.readouterr().err) == ([], "")


def test_parts_of_different_checkpoints_are_told(copied, tmp_path):
    other = save_checkpoint(tmp_path / "other", words=12).folder
    shutil.rmtree(copied / "text_encoder")
    shutil.copytree(other / "text_encoder", copied / "text_encoder")
    with pytest.raises(ValueError, match=r"U-Net of \S*copy reads words of width 8, its text encoder gives 12"):
        StableDiffusion(copied)


def test_a_u_net_made_for_inpainting_is_told(copied):
    settings = json.loads((copied / "unet" / "config.json").read_text())
    (copied / "unet" / "config.json").write_text(json.dumps({**settings, "in_channels": 9}))
    with pytest.raises(ValueError, match=r"U-Net of \S*copy reads 9 channels, its VAE gives 4"):
        StableDiffusion(copied)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 1000}, "within 0 to 999; got 1000"),
        ({"step": -1}, "within 0 to 999; got -1"),
        ({"blocks": (0, 4)}, r"different ones of 0 to 3; got \(0, 4\)"),
        ({"blocks": (1, 1)}, "different ones"),
        ({"blocks": ()}, "different ones"),
        ({"ensemble": 0}, "at least one member; got 0"),
        ({"image_size": (476, 640)}, r"multiples of 8 pixels; got \(476, 640\)"),
    ],
)
def test_arguments_that_are_off_are_told(checkpoint, settings, message):
    with pytest.raises(ValueError, match=message):
        StableDiffusion(checkpoint.folder, **settings)


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_without_its_libraries_the_cure_is_named(checkpoint, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"pip install 'cuao3d\[teachers\]'"):
        StableDiffusion(checkpoint.folder)
