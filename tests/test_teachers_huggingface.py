"""Teachers of the transformers library, on tiny random checkpoints that are written as the published ones are."""

import hashlib
import json
import os
import shutil
import socket
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from cuao3d.files import sha256_of
from cuao3d.teachers import TEACHERS, load_teacher
from cuao3d.teachers.clip import CLIPDense
from cuao3d.teachers.dinov2 import DINOv2
from cuao3d.teachers.dinov3 import DINOv3
from cuao3d.teachers.radio import RADIO
from cuao3d.teachers.siglip2 import SigLIP2
from cuao3d.teachers.vit import ViT

transformers = pytest.importorskip("transformers")

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = {**TINY, "intermediate_size": 32}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

KINDS = {
    "dinov2": (DINOv2, 14, IMAGENET),
    "dinov2-giant": (DINOv2, 14, IMAGENET),
    "dinov2-registers": (DINOv2, 14, IMAGENET),
    "dinov3": (DINOv3, 16, IMAGENET),
    "vit": (ViT, 16, HALF),
    "clip": (CLIPDense, 16, CLIP),
    "siglip2": (SigLIP2, 16, HALF),
    "radio": (RADIO, 16, None),
}
"""Teacher, pixels of a patch, and statistics of colours of each kind of checkpoint."""


def tiny_model(kind):
    hf = transformers
    two_sides = {"text_config": {**WIDE, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}}
    match kind:
        case "dinov2" | "dinov2-giant":
            swiglu = kind == "dinov2-giant"
            config = hf.Dinov2Config(**TINY, mlp_ratio=2, image_size=42, patch_size=14, use_swiglu_ffn=swiglu)
            return hf.Dinov2Model(config)
        case "dinov2-registers":
            config = hf.Dinov2WithRegistersConfig(
                **TINY, mlp_ratio=2, image_size=42, patch_size=14, num_register_tokens=3
            )
            return hf.Dinov2WithRegistersModel(config)
        case "dinov3":
            return hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**WIDE, num_register_tokens=4))
        case "vit":
            return hf.ViTForImageClassification(hf.ViTConfig(**WIDE, image_size=48))
        case "clip":
            vision = {**WIDE, "image_size": 48, "patch_size": 16, "projection_dim": 8}
            return hf.CLIPModel(hf.CLIPConfig(vision_config=vision, projection_dim=8, **two_sides))
        case "siglip2":
            vision = {**WIDE, "image_size": 48, "patch_size": 16}
            return hf.SiglipModel(hf.SiglipConfig(vision_config=vision, **two_sides))
        case "radio":
            return hf.RadioModel(hf.RadioConfig(**TINY, mlp_ratio=2.0, max_img_size=64))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


def save_models(root):
    """Save a folder of each kind; its weights are larger than where training starts, so that each of them matters."""
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    for kind, (_, _, statistics) in KINDS.items():
        model = tiny_model(kind)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.5 * parameter[0].numel() ** -0.5)
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(root / kind)
        if statistics:
            resample = 3 if kind.startswith(("dinov2", "clip")) else 2
            settings = {"image_mean": statistics[0], "image_std": statistics[1], "resample": resample}
            (root / kind / "preprocessor_config.json").write_text(json.dumps(settings))
    # As published: CLIP's old buffers, no layer scales in RADIO.
    edit_tensors(root / "clip", add={"vision_model.embeddings.position_ids": torch.arange(10)[None]})
    edit_tensors(root / "radio", remove="layer_scale")
    transformers.utils.logging.enable_progress_bar()
    return root


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing may reach for the network."""

    def refuse(*_):
        raise AssertionError("reached for the network")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def teacher(kind, folders):
    return KINDS[kind][0](folders / kind)


def edit_tensors(folder, *, remove="no such name", add=None):
    kept = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if remove not in name}
    save_file({**kept, **(add or {})}, folder / "model.safetensors", {"format": "pt"})


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def image(height, width):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(1))


def normalised(picture, statistics):
    mean, std = (torch.tensor(values)[:, None, None] for values in statistics)
    return ((picture - mean) / std)[None]


@torch.no_grad()
def expected_tokens(kind, folder, picture):
    """The model's own tokens of the patches of an image, by its plain forward; a patch alone where that is asked."""
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    if kind == "radio":
        return model(picture[None]).last_hidden_state[0, 3 + 7 :]
    images = normalised(picture, KINDS[kind][2])
    match kind:
        case "dinov2" | "dinov2-giant":
            return model(images).last_hidden_state[0, 1:]
        case "dinov2-registers":
            return model(images).last_hidden_state[0, 1 + 3 :]
        case "dinov3":
            return model(images).last_hidden_state[0, 1 + 4 :]
        case "vit":
            return model(images, interpolate_pos_encoding=True).last_hidden_state[0, 1:]
        case "clip":
            vision = model.vision_model
            all_states = vision(images, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
            alone = [vision.encoder.layers[-1](token[None, None], None)[0, 0] for token in all_states[-2][0, 1:]]
            features = model.visual_projection(vision.post_layernorm(torch.stack(alone)))
        case "siglip2":
            tokens = model.vision_model(images, interpolate_pos_encoding=True).last_hidden_state[0]
            features = torch.stack([model.vision_model.head(token[None, None])[0] for token in tokens])
    return features / features.norm(dim=1, keepdim=True)


def test_a_map_holds_the_models_own_patch_tokens_row_by_row(kind, teacher, folders):
    rows, columns = 3, 5
    picture = image(rows * teacher.patch, columns * teacher.patch)
    (described,) = teacher(picture)
    tokens = expected_tokens(kind, folders / kind, picture)
    assert described.shape == (teacher.num_channels, rows, columns)
    for row in range(rows):
        for column in range(columns):
            assert torch.allclose(described[:, row, column], tokens[row * columns + column], atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "published"),
    [
        ("dinov2", "encoder.layer.1.attention.attention.query.weight"),
        ("dinov2-giant", "encoder.layer.1.mlp.weights_in.weight"),
        ("dinov2-registers", "embeddings.register_tokens"),
        ("dinov3", "layer.1.attention.q_proj.weight"),
        ("vit", "vit.encoder.layer.1.intermediate.dense.weight"),
        ("clip", "vision_model.encoder.layers.1.self_attn.v_proj.weight"),
        ("siglip2", "vision_model.head.attention.in_proj_weight"),
        ("radio", "radio_model.model.blocks.1.attn.qkv.weight"),
    ],
)
def test_the_checkpoints_of_these_tests_name_tensors_as_the_published_ones_do(kind, published, folders):
    assert published in load_file(folders / kind / "model.safetensors")


def test_what_a_teacher_promises_is_so(kind, teacher, folders):
    assert teacher.levels == ((teacher.num_channels, KINDS[kind][1]),)
    assert teacher.weights_sha256 == sha256_of(folders / kind / "model.safetensors")
    assert teacher.name == kind.split("-")[0]
    assert teacher.text == (f"{kind}:{folders / kind}" if kind in ("clip", "siglip2") else None)
    parameters = teacher.network.named_parameters()
    assert not any("text" in name or parameter.requires_grad for name, parameter in parameters)


def test_images_in_a_batch_do_not_mix(teacher):
    pictures = torch.stack([image(96, 64), 1 - image(96, 64)])
    (together,) = teacher.batch(pictures)
    for alone, one in zip(pictures, together, strict=True):
        assert torch.allclose(teacher(alone)[0], one, atol=1e-5)


def test_the_same_image_gives_the_same_features_however_many_came_before(teacher):
    first = teacher(image(64, 96))[0]
    teacher(1 - image(64, 96))
    assert torch.equal(teacher(image(64, 96))[0], first)


@pytest.mark.parametrize("cell", [(0, 0), (1, 4), (3, 2)])
@pytest.mark.parametrize("zoom", [1, 2])
def test_a_spot_that_changes_moves_the_features_of_its_place_most(teacher, cell, zoom, monkeypatch):
    side = teacher.patch * zoom
    plain = torch.full((3, 4 * side, 6 * side), 0.2)
    spotted = plain.clone()
    spotted[:, cell[0] * side : (cell[0] + 1) * side, cell[1] * side : (cell[1] + 1) * side] = image(side, side)
    monkeypatch.setattr(teacher, "long_side", 6 * teacher.patch)
    moved = (teacher(spotted)[0] - teacher(plain)[0]).norm(dim=0)
    assert moved.shape == (4, 6)
    assert divmod(int(moved.argmax()), 6) == cell


def test_sides_are_rounded_to_whole_patches(folders):
    # 320 = 22.9 patches of 14 pixels, 240 = 17.1: the paper's 322 x 238.
    assert DINOv2(folders / "dinov2")(image(240, 320))[0].shape == (16, 17, 23)
    assert DINOv2(folders / "dinov2", long_side=322)(image(480, 640))[0].shape == (16, 17, 23)
    assert DINOv3(folders / "dinov3", long_side=160)(image(512, 640))[0].shape == (16, 8, 10)
    assert ViT(folders / "vit")(image(5, 40))[0].shape == (16, 1, 2)


@pytest.mark.parametrize(
    ("kind", "resample"), [("dinov2", Image.Resampling.BICUBIC), ("vit", Image.Resampling.BILINEAR)]
)
def test_images_are_resized_as_pillow_does(kind, resample, folders):
    teacher = KINDS[kind][0](folders / kind)
    pixels = (image(60, 90) * 100 + 80).round().byte()  # no overshoot, which Pillow cuts off after each of two passes
    whole = teacher._whole_patches(pixels[None] / 255)[0]
    small = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((whole.shape[2], whole.shape[1]), resample)
    theirs = torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255
    assert (whole - theirs).abs().max() < 1.5 / 255


def test_clips_statistics_are_those_of_another_picture(folders):
    # (x - m) / s by CLIP's numbers is what ImageNet's make of x', so x' must look to the one as x to the other.
    picture = image(42, 70) * 0.5 + 0.25
    (mean, std), (clip_mean, clip_std) = (
        [torch.tensor(values)[:, None, None] for values in statistics] for statistics in (IMAGENET, CLIP)
    )
    other = (picture - clip_mean) / clip_std * std + mean
    assert other.min() > 0
    assert other.max() < 1
    ours = DINOv2(folders / "dinov2", normalisation="clip")(picture)[0]
    assert torch.allclose(ours, DINOv2(folders / "dinov2")(other)[0], atol=1e-4)
    assert not torch.allclose(ours, DINOv2(folders / "dinov2")(picture)[0], atol=1e-2)


def test_where_all_tokens_are_alike_every_patch_of_clip_is_the_image(folders, tmp_path):
    # Attention over equal values returns that value: then the dense read-out is CLIP's own image vector.
    folder = shutil.copytree(folders / "clip", tmp_path / "clip")
    tensors = load_file(folder / "model.safetensors")
    prefix = "vision_model.embeddings."
    plain = torch.full((3, 48, 48), 0.3)
    kernels = tensors[prefix + "patch_embedding.weight"]
    patch = F.conv2d(normalised(plain, CLIP)[:, :, :16, :16], kernels)[0, :, 0, 0]
    positions = torch.zeros_like(tensors[prefix + "position_embedding.weight"])
    alike = {prefix + "class_embedding": patch, prefix + "position_embedding.weight": positions}
    edit_tensors(folder, add=alike)
    (described,) = CLIPDense(folder)(plain)
    model = transformers.CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        vector = model.get_image_features(normalised(plain, CLIP)).pooler_output[0]
    assert torch.allclose(described, F.normalize(vector, dim=0)[:, None, None].expand(-1, 3, 3), atol=1e-5)


def test_an_image_of_one_patch_has_siglips_own_image_vector(folders):
    picture = image(16, 16)
    model = transformers.SiglipModel.from_pretrained(folders / "siglip2")
    with torch.no_grad():
        vector = model.get_image_features(normalised(picture, HALF), interpolate_pos_encoding=True).pooler_output[0]
    (described,) = SigLIP2(folders / "siglip2")(picture)
    assert torch.allclose(described[:, 0, 0], F.normalize(vector, dim=0), atol=1e-5)


def test_half_the_bits_change_little_and_units_stay_units(kind, teacher):
    picture = image(64, 80)
    full = teacher(picture)[0]
    half = teacher.to("cpu", "bf16")(picture)[0]
    teacher.to("cpu")
    assert half.dtype == torch.float32
    assert 0 < (half - full).norm() < 0.05 * full.norm()
    if kind in ("clip", "siglip2"):
        for described in (full, half):
            assert torch.allclose(described.norm(dim=0), torch.ones(4, 5), atol=1e-5)


def test_names_find_their_weights_and_a_folder_of_ones_own_is_named(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path))
    shutil.copytree(folders / "clip", tmp_path / "weights" / "clip-large")
    found = load_teacher("clip-large")
    assert (found.name, found.text) == ("clip-large", "clip:clip-large")
    own = load_teacher(f"clip-large={folders / 'clip'}")
    assert (own.name, own.text) == ("clip-large", f"clip:{folders / 'clip'}")


@pytest.mark.parametrize("name", [name for name in TEACHERS if name.split("-")[0] in KINDS])
def test_every_name_makes_a_teacher_of_that_name(name, folders):
    family = name.split("-")[0]
    kind = "dinov2-registers" if name.endswith("-registers") else family
    teacher = load_teacher(f"{name}={folders / kind}")
    assert teacher.name == name
    assert type(teacher) is KINDS[kind][0]


def test_weights_in_pieces_and_in_the_old_format_are_the_same_weights(folders, tmp_path):
    picture, whole = image(42, 56), DINOv2(folders / "dinov2")
    tensors = load_file(folders / "dinov2" / "model.safetensors")
    pieces, old = (shutil.copytree(folders / "dinov2", tmp_path / name) for name in ("pieces", "old"))
    for folder in (pieces, old):
        (folder / "model.safetensors").unlink()
    places = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, pieces / file, {"format": "pt"})
    (pieces / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    torch.save(tensors, old / "pytorch_model.bin")
    for folder in (pieces, old):
        assert torch.equal(DINOv2(folder)(picture)[0], whole(picture)[0])
    hashes = "".join(sha256_of(pieces / f"model-{index}.safetensors") for index in (0, 1))
    assert DINOv2(pieces).weights_sha256 == hashlib.sha256(hashes.encode()).hexdigest()
    (pieces / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"pieces/model-1\.safetensors is missing"):
        DINOv2(pieces)


def test_weights_of_half_the_bits_are_computed_with_in_full(folders, tmp_path):
    folder = shutil.copytree(folders / "vit", tmp_path / "vit")
    tensors = load_file(folder / "model.safetensors")
    edit_tensors(folder, add={name: tensor.half() for name, tensor in tensors.items()})
    edit_json(folder / "config.json", dtype="float16")
    assert {parameter.dtype for parameter in ViT(folder).network.parameters()} == {torch.float32}


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


class Danger:
    def __reduce__(self):
        return os.mkdir, ("dangerous",)


def pickle_with_code(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"layernorm.weight": Danger()}, folder / "pytorch_model.bin")


def truncated_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    truncate(folder / "pytorch_model.bin")


MISFITS = {
    "missing": (
        lambda folder: edit_tensors(folder, remove="layernorm.weight"),
        r"dinov2/model\.safetensors does not fit .*/config\.json: missing layernorm\.weight\.",
    ),
    "unknown": (
        lambda folder: edit_tensors(folder, add={"extra.weight": torch.zeros(2)}),
        r"model\.safetensors does not fit .*unknown extra\.weight\.",
    ),
    "misfit": (
        lambda folder: edit_tensors(folder, add={"layernorm.weight": torch.zeros(5)}),
        r"model\.safetensors does not fit .*layernorm\.weight is \(5,\), not \(16,\)",
    ),
    "settings-of-a-wider-model": (
        lambda folder: edit_json(folder / "config.json", hidden_size=32),
        r"model\.safetensors does not fit .*embeddings\.cls_token is \(1, 1, 16\), not \(1, 1, 32\)",
    ),
    "settings-that-make-no-sense": (
        lambda folder: edit_json(folder / "config.json", hidden_act="none"),
        r"dinov2/config\.json describes no Dinov2Model that can be built.*none",
    ),
    "settings-of-another-type": (
        lambda folder: edit_json(folder / "config.json", hidden_size="x"),
        r"dinov2/config\.json describes no Dinov2Model that can be built.*hidden_size",
    ),
    "settings-cut-short": (
        lambda folder: truncate(folder / "config.json"),
        r"dinov2/config\.json is not valid JSON",
    ),
    "weights-cut-short": (
        lambda folder: truncate(folder / "model.safetensors"),
        r"dinov2/model\.safetensors: not a safetensors file, or only a part of one",
    ),
    "a-page-instead-of-weights": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs\n"),
        r"dinov2/model\.safetensors: not a safetensors file",
    ),
    "pickle-with-code": (pickle_with_code, r"dinov2/pytorch_model\.bin: refused, because .* may run code"),
    "pickle-cut-short": (
        truncated_pickle,
        r"dinov2/pytorch_model\.bin: not a PyTorch checkpoint, or only a part of one",
    ),
    "empty-index": (
        lambda folder: (folder / "model.safetensors").rename(folder / "model.safetensors.index.json").write_text("{}"),
        r"index\.json does not say which file holds which tensor",
    ),
}


@pytest.mark.parametrize(("damage", "message"), MISFITS.values(), ids=MISFITS)
def test_a_checkpoint_that_cannot_be_used_is_named_with_what_is_wrong(damage, message, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(folders / "dinov2", tmp_path / "dinov2")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        DINOv2(folder)
    assert not (tmp_path / "dangerous").exists()


def test_a_model_of_another_kind_is_refused_by_its_type(folders, tmp_path):
    with pytest.raises(ValueError, match=r"dinov3/config\.json .*'dinov3_vit'; expected dinov2 or dinov2_with_reg"):
        DINOv2(folders / "dinov3")
    folder = shutil.copytree(folders / "siglip2", tmp_path / "naflex")
    edit_json(folder / "config.json", model_type="siglip2")
    with pytest.raises(ValueError, match=r"type 'siglip2'; expected siglip\."):
        SigLIP2(folder)


def test_what_is_missing_is_named(folders, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no .*none/config\.json"):
        ViT(tmp_path / "none")
    folder = shutil.copytree(folders / "vit", tmp_path / "vit")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"vit/preprocessor_config\.json"):
        ViT(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"No weights in .*vit: expected model\.safetensors"):
        ViT(folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'cuao3d\[teachers\]'"):
        ViT(folders / "vit")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"resample": 0}, "resample should be 2"), ({"image_std": [1.0]}, r"image_std is \[1\.0\]; expected a list of 3")],
)
def test_a_preprocessing_that_is_not_understood_is_refused(changes, message, folders, tmp_path):
    folder = shutil.copytree(folders / "vit", tmp_path / "vit")
    edit_json(folder / "preprocessor_config.json", **changes)
    with pytest.raises(ValueError, match=rf"vit/preprocessor_config\.json: {message}"):
        ViT(folder)


def test_loading_says_nothing_and_leaves_transformers_as_talkative_as_it_was(folders, capfd):
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    CLIPDense(folders / "clip")
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
