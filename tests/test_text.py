"""Facts about words as vectors."""

import sys

import pytest
import torch
from safetensors.torch import save_file

from cuao3d.labels import label_set
from cuao3d.text import MINILM_PACKAGE, CentredText, MiniLM, class_vectors, load_text_encoder, minilm_centred


class Letters:
    """Toy encoder: what part of a text's letters is each of a, b, c, as a unit vector. Needs no weights."""

    num_channels = 3

    def __call__(self, texts):
        counts = torch.tensor([[float(text.count(letter)) for letter in "abc"] for text in texts])
        return torch.nn.functional.normalize(counts, dim=1)


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("transformers", reason="needs cuao3d[demo]")
    pytest.importorskip(MINILM_PACKAGE, reason="needs cuao3d[demo]")
    return MiniLM()


@pytest.mark.weights
def test_the_five_questions_rank_the_right_class_first(minilm):
    classes = label_set("scannet20")
    answers = {
        "somewhere to sit": "chair",
        "a place to sleep": "bed",
        "somewhere to keep food cold": "refrigerator",
        "where are the books": "bookshelf",
        "work at a computer": "desk",
    }
    best = (minilm(list(answers)) @ class_vectors(minilm, classes).T).argmax(dim=1)
    assert [classes.names[row] for row in best] == list(answers.values())


@pytest.mark.weights
def test_a_vector_depends_on_its_text_alone(minilm):
    texts = ["wall", "a very much longer text that pads all the others"] * 40
    together = minilm(texts)
    assert together.shape == (80, 384)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(80))
    torch.testing.assert_close(together[:1], minilm(["wall"]), atol=1e-5, rtol=0)
    assert minilm([]).shape == (0, 384)


@pytest.mark.weights
def test_transformers_does_not_bring_torchvision(minilm):
    assert "torchvision" not in sys.modules


def test_centring_by_hand():
    # (1, 0, 0) - (0.4, 0, 0.8) = (0.6, 0, -0.8), a unit vector already.
    centred = CentredText(Letters(), torch.tensor([0.4, 0.0, 0.8]))
    torch.testing.assert_close(centred(["aa"]), torch.tensor([[0.6, 0.0, -0.8]]))


@pytest.mark.weights
def test_the_centre_is_read_from_the_weights_of_the_mini_segmenter(minilm, tmp_path):
    mean = minilm(["wall", "floor"]).mean(dim=0)
    save_file({"text_mean": mean.half()}, tmp_path / "weights.safetensors")
    both = minilm_centred(centre_file=tmp_path / "weights.safetensors")(["wall", "floor"])
    torch.testing.assert_close(both[0], -both[1], atol=1e-2, rtol=0)


def test_a_missing_centre_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.safetensors is missing"):
        minilm_centred(centre_file=tmp_path / "nothing.safetensors")


def test_class_vectors_follow_the_prompts():
    vectors = class_vectors(Letters(), label_set("scannet20"))
    assert torch.equal(vectors[:1], Letters()(["a wall in a scene"]))
    assert torch.equal(vectors[19:], Letters()(["other"]))


def test_other_weights_are_refused(tmp_path):
    pytest.importorskip("transformers", reason="needs cuao3d[demo]")
    with pytest.raises(FileNotFoundError, match=r"holds no model.safetensors"):
        MiniLM(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"model.safetensors is not the known file: its SHA-256"):
        MiniLM(tmp_path)


def test_an_unknown_encoder_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown text encoder 'elmo'; choose from \['minilm', 'minilm-centred'\]"):
        load_text_encoder("elmo")
