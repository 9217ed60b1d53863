"""Facts about words as vectors."""

import sys

import pytest
import torch
from safetensors.torch import save_file

from cuao3d.labels import LABEL_SETS, label_set
from cuao3d.text import MINILM_PACKAGE, TEMPLATES, CentredText, MiniLM, class_vectors, load_text_encoder, minilm_centred


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


def test_an_ensemble_is_the_normalised_mean_of_its_unit_vectors():
    classes, templates = label_set("scannet20"), ("{name}", "aaa {name} bb", "{name} c {name}")
    vectors = class_vectors(Letters(), classes, templates)
    for row, name in enumerate(classes.names[:19]):
        each = [Letters()([template.replace("{name}", name)])[0] for template in templates]
        expected = torch.stack(each).mean(dim=0)
        torch.testing.assert_close(vectors[row], expected / expected.norm())
    # By hand: "bed" has one b, (0, 1, 0); "aaa bed bb" three a and three b, (1, 1, 0) / sqrt 2; "bed c bed" (0, 2, 1) /
    # sqrt 5. Their sum is (0.7071, 2.6015, 0.4472).
    torch.testing.assert_close(vectors[3], torch.tensor([0.2587, 0.9519, 0.1636]), atol=1e-4, rtol=0)


def test_a_class_that_words_its_own_prompt_keeps_it_in_an_ensemble():
    classes = label_set("scannet20")
    assert classes.prompts[19] == "other"
    assert torch.equal(class_vectors(Letters(), classes, ("aaa {name}",))[19:], Letters()(["other"]))


def test_label_sets_ask_by_the_first_of_the_templates():
    for name in LABEL_SETS:
        classes = label_set(name)
        usual = [TEMPLATES[0].replace("{name}", one) for one in classes.names]
        assert sum(a != b for a, b in zip(usual, classes.prompts, strict=True)) <= 4
    assert len(set(TEMPLATES)) == 7


@pytest.mark.parametrize("templates", [(), ("a chair",), ("a {name}", "a {}")])
def test_a_template_without_a_place_for_the_name_is_refused(templates):
    with pytest.raises(ValueError, match=r"A template holds {name}"):
        class_vectors(Letters(), label_set("scannet20"), templates)


def test_other_weights_are_refused(tmp_path):
    pytest.importorskip("transformers", reason="needs cuao3d[demo]")
    with pytest.raises(FileNotFoundError, match=r"holds no model.safetensors"):
        MiniLM(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"model.safetensors is not the known file: its SHA-256"):
        MiniLM(tmp_path)


def test_an_unknown_encoder_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown text encoder 'elmo'; choose from \['clip', 'lseg', 'minilm'"):
        load_text_encoder("elmo")
