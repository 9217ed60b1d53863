"""Semantic segmenters of transformers, by words: tiny checkpoints of several kinds, written as published ones are."""

import json
import os

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from cuao3d.cards import segmenter_card
from cuao3d.cli import main
from cuao3d.teachers import card_of, load_teacher, parse_teachers
from cuao3d.teachers.segmenter import Segmenter, class_names, input_size

transformers = pytest.importorskip("transformers")

LABELS = {0: "wall", 1: "chair;seat", 2: "sky", 3: "background"}
"""Of the four, the last two say nothing of a room."""

SIZES = {
    "segformer": {"height": 64, "width": 64},
    "beit": 64,
    "upernet": {"shortest_edge": 64, "longest_edge": 128},
    "mask2former": {"shortest_edge": 64},
}
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def encode(texts):
    """A text encoder that knows three words."""
    return torch.eye(3)[[("wall", "chair", "seat").index(text) for text in texts]]


@pytest.fixture(autouse=True)
def three_words(monkeypatch, tmp_path):
    monkeypatch.setattr("cuao3d.teachers.segmenter.load_text_encoder", lambda _: encode)
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cuao3d"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def tiny_model(kind):
    hf, labels = transformers, {"id2label": LABELS, "label2id": {name: index for index, name in LABELS.items()}}
    four = ["stage1", "stage2", "stage3", "stage4"]
    match kind:
        case "segformer":
            return hf.SegformerForSemanticSegmentation(
                hf.SegformerConfig(
                    hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, **labels
                )
            )
        case "beit":
            sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
            return hf.BeitForSemanticSegmentation(
                hf.BeitConfig(**sizes, image_size=64, out_indices=[1, 2, 3, 4], use_auxiliary_head=False, **labels)
            )
        case "upernet":
            backbone = hf.ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4, out_features=four)
            return hf.UperNetForSemanticSegmentation(
                hf.UperNetConfig(backbone_config=backbone, hidden_size=8, use_auxiliary_head=False, **labels)
            )
        case "mask2former":
            backbone = hf.SwinConfig(
                embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2, image_size=64, out_features=four
            )
            widths = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 2}
            layers = {"encoder_feedforward_dim": 8, "dim_feedforward": 8, "encoder_layers": 1, "decoder_layers": 2}
            return hf.Mask2FormerForUniversalSegmentation(
                hf.Mask2FormerConfig(backbone_config=backbone, num_queries=6, **widths, **layers, **labels)
            )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("segmenters"))


def save_models(root):
    """Save a folder of each kind; weights are larger than where training starts, so that classes differ by place."""
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    for kind, size in SIZES.items():
        model = tiny_model(kind)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=parameter[0].numel() ** -0.5)
        model.save_pretrained(root / kind)
        settings = {"image_mean": MEAN, "image_std": STD, "resample": 2, "size": size}
        (root / kind / "preprocessor_config.json").write_text(json.dumps(settings))
    transformers.utils.logging.enable_progress_bar()
    return root


@pytest.mark.parametrize("kind", SIZES)
def test_places_are_named_as_the_library_names_them(kind, folders):
    image = torch.rand(3, 64, 96)
    teacher = Segmenter(folders / kind, long_side=96)
    assert (teacher.name, teacher.num_channels, teacher.text) == (f"segmenter-{kind}", 3, "minilm-centred")
    said = teacher(image)[0]
    assert said.shape == (3, 16, 24)

    library = transformers.AutoModelForUniversalSegmentation if kind == "mask2former" else None
    model = (library or transformers.AutoModelForSemanticSegmentation).from_pretrained(folders / kind).eval()
    size = (64, 64) if kind in ("segformer", "beit") else (64, 96)
    seen = F.interpolate(image[None], size, mode="bilinear", antialias=True)
    seen = (seen - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        output = model(seen)
    if kind == "mask2former":
        of_query = output.class_queries_logits.softmax(dim=2)[..., :-1]
        scores = torch.einsum("bqk,bqhw->bkhw", of_query, output.masks_queries_logits.sigmoid())
        probabilities = scores / scores.sum(dim=1, keepdim=True).clamp(min=1)
    else:
        probabilities = output.logits.softmax(dim=1)
    expected = F.interpolate(probabilities, (16, 24), mode="bilinear", antialias=True)[0]
    half = 0.5**0.5  # a chair is a seat as well
    torch.testing.assert_close(said[0], expected[0], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(said[1:], (half * expected[1]).expand(2, -1, -1), atol=1e-4, rtol=1e-3)
    assert said[0].std() > 1e-4


def test_images_in_batches_are_described_as_alone(folders):
    teacher, images = Segmenter(folders / "segformer"), torch.rand(2, 3, 50, 71)
    (batch,) = teacher.batch(images)
    for image, said in zip(images, batch, strict=True):
        assert torch.equal(teacher(image)[0], said)


def test_a_segmenter_is_named_by_its_folder(folders, monkeypatch):
    monkeypatch.chdir(folders)
    teacher = load_teacher("segmenter:segformer,long_side=320")
    assert card_of(teacher).options == {"long_side": 320}
    assert len(card_of(teacher).weights_sha256) == 64
    assert load_teacher(f"segmenter={folders / 'beit'}").name == "segmenter-beit"
    specs = parse_teachers("mini-dino,segmenter:owner/name,photo:long_side=320")
    assert [str(spec) for spec in specs] == ["mini-dino", "segmenter=owner/name", "photo:long_side=320"]


def test_a_repository_is_found_where_it_was_fetched_to(folders, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="cuao3d weights fetch segmenter:owner/tiny"):
        load_teacher("segmenter:owner/tiny")
    files = [str(folders / "segformer" / name) for name in os.listdir(folders / "segformer")]
    assert main(["weights", "add", "segmenter:owner/tiny", *files]) == 0
    assert load_teacher("segmenter:owner/tiny").name == "segmenter-tiny"
    assert main(["weights", "verify", "segmenter:owner/tiny"]) == 0
    assert "segmenter:owner/tiny: model.safetensors" in capsys.readouterr().out
    assert main(["weights", "list", "segmenter:owner/tiny"]) == 0
    assert "size unknown" in capsys.readouterr().out


def test_what_is_no_segmenter_is_told(folders, tmp_path):
    for spec, complaint in {
        "segmenter": "Say which segmenter: segmenter:FOLDER",
        "segmenter:": "names no file or folder of weights",
        f"segmenter:{tmp_path / 'none'}": "There is no folder",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=complaint):
            load_teacher(spec)
    with pytest.raises(ValueError, match="is no repository of the Hugging Face hub; expected OWNER/NAME"):
        segmenter_card("no repository")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"describes a model of type 'bert'; expected beit or"):
        Segmenter(tmp_path)


def test_damaged_weights_are_told(folders, tmp_path):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((folders / "segformer" / name).read_text())
    tensors = load_file(folders / "segformer" / "model.safetensors")
    del tensors["decode_head.classifier.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"does not fit .*missing decode_head\.classifier\.weight"):
        Segmenter(tmp_path)


def test_classes_without_names_are_told(tmp_path):
    for names in ({}, {0: "LABEL_0", 1: "LABEL_1"}, {0: "wall", 2: "chair"}):
        with pytest.raises(ValueError, match=r"config\.json does not name the classes of its network"):
            class_names(names, tmp_path / "config.json")


def test_names_are_words_and_what_is_never_in_a_room_is_left_out(tmp_path):
    names = class_names(LABELS | {4: "floor-wood, flooring", 5: "Zebra"}, tmp_path)
    assert names.names[1:3] == (("chair", "seat"), ("sky",))
    assert names.names[4:] == (("floor wood", "flooring"), ("Zebra",))
    assert names.left_out == ("", "", "stands outdoors", "says nothing", "", "animal")


def test_images_get_the_size_that_the_settings_ask_for():
    assert input_size(640, 480, 640) == (640, 640)
    assert input_size({"height": 512, "width": 256}, 480, 640) == (512, 256)
    assert input_size({"shortest_edge": 512}, 480, 640) == (512, 672)
    assert input_size({"shortest_edge": 640, "longest_edge": 800}, 480, 640) == (608, 800)
    assert input_size(None, 480, 640) == (512, 672)
