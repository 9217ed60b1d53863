"""How teachers are written on the command line, what their options are, and under which names they go."""

from pathlib import Path

import pytest
import torch

from cuao3d.cli import main
from cuao3d.compare import compare
from cuao3d.distill import DistillConfig, _settle
from cuao3d.download import CARDS, find, is_here
from cuao3d.errors import InputError
from cuao3d.fusion import Visibility, sample_cells
from cuao3d.imported import imported_card
from cuao3d.scene import Scene
from cuao3d.store import Store, TeacherCard
from cuao3d.student import _teacher_of_head
from cuao3d.teachers import TEACHERS, canonical, card_of, known_card, load_teacher, parse_teachers
from cuao3d.teachers.options import read_options
from cuao3d.teachers.spec import known_options
from cuao3d.text import load_text_encoder

SPELLINGS = {
    "lseg": [("lseg", None, {}, None)],
    " lseg , dinov2,": [("lseg", None, {}, None), ("dinov2", None, {}, None)],
    "stable-diffusion,dinov2_small": [("stable_diffusion", None, {}, None), ("dinov2-small", None, {}, None)],
    "stable-diffusion-2.1,sd": [("stable_diffusion_2_1", None, {}, None), ("stable_diffusion", None, {}, None)],
    "stable_diffusion_2_1": [("stable_diffusion_2_1", None, {}, None)],
    "none": [],
    "lseg:long_side=1280,mirror=sum,dinov2": [
        ("lseg", None, {"long_side": "1280", "mirror": "sum"}, None),
        ("dinov2", None, {}, None),
    ],
    "lseg:long_side=1280,mirror=sum=models/demo_e200.ckpt,dinov2=models/dinov2-large": [
        ("lseg", None, {"long_side": "1280", "mirror": "sum"}, "models/demo_e200.ckpt"),
        ("dinov2", None, {}, "models/dinov2-large"),
    ],
    "lseg:long_side=1280=models/demo.ckpt": [("lseg", None, {"long_side": "1280"}, "models/demo.ckpt")],
    "lseg:mirror=none,dinov2=a=b": [("lseg", None, {"mirror": "none"}, None), ("dinov2", None, {}, "a=b")],
    "lseg=C:\\models\\demo.ckpt": [("lseg", None, {}, "C:\\models\\demo.ckpt")],
    "dinov2=logs/12:45:03/dinov2": [("dinov2", None, {}, "logs/12:45:03/dinov2")],
    "stable-diffusion:blocks=1+2,image_size=480x640,prompt=an empty room": [
        ("stable_diffusion", None, {"blocks": "1+2", "image_size": "480x640", "prompt": "an empty room"}, None)
    ],
    "my_teacher.py:MyTeacher": [("MyTeacher", "my_teacher.py", {}, None)],
    "./a/my_teacher.py:MyTeacher,lseg": [("MyTeacher", "./a/my_teacher.py", {}, None), ("lseg", None, {}, None)],
    "C:\\code\\my_teacher.py:MyTeacher": [("MyTeacher", "C:\\code\\my_teacher.py", {}, None)],
    "/logs/12:45:03/my.py:Mine:size=3,name=x,dinov2=d": [
        ("Mine", "/logs/12:45:03/my.py", {"size": "3", "name": "x"}, None),
        ("dinov2", None, {}, "d"),
    ],
    "run=3/my.py:Mine:at=a=b": [("Mine", "run=3/my.py", {"at": "a=b"}, None)],
    "my.py:Mine:name=a,my.py:Mine:name=b": [
        ("Mine", "my.py", {"name": "a"}, None),
        ("Mine", "my.py", {"name": "b"}, None),
    ],
}


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_list_of_teachers_is_split_rightly(text):
    found = [(one.name, one.file, dict(one.options), one.weights) for one in parse_teachers(text)]
    expected = SPELLINGS[text]
    assert found == [(name, file and Path(file), options, at and Path(at)) for name, file, options, at in expected]


@pytest.mark.parametrize("text", [text for text in SPELLINGS if text != "none"])
def test_a_spec_is_written_as_it_is_read(text):
    specs = parse_teachers(text)
    assert parse_teachers(",".join(map(str, specs))) == specs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "No teacher is named"),
        (",", "No teacher is named"),
        ("lsg", r"Unknown teacher 'lsg'; choose from \['ade20k', 'clip'.*my_teacher\.py:MyTeacher"),
        ("lsg=models/demo.ckpt", "Unknown teacher 'lsg=models/demo.ckpt'"),
        ("my_teacher.py", "Unknown teacher 'my_teacher.py'.*my_teacher.py:MyTeacher"),
        ("lseg:size=3", "'size=3' is neither a teacher nor an option of lseg; it has long_side, mirror"),
        ("lseg,dinov9=models/d", "'dinov9=models/d' is neither a teacher nor an option of lseg"),
        ("lseg:1280", "'1280' is neither a teacher nor an option of lseg; it has long_side, mirror"),
        ("lseg:", "'' is neither a teacher nor an option of lseg"),
        ("lseg=", "lseg= names no file or folder of weights"),
        ("mini-lseg:long_side=3", "nor an option of mini-lseg; it has none"),
        ("lseg:long_side=large", "lseg: long_side should be a whole number; got 'large'"),
        ("lseg:mirror=twice", "lseg: mirror should be mean or sum or none; got 'twice'"),
        ("dinov2:long_side=1.5", "dinov2: long_side should be a whole number or none; got '1.5'"),
        ("dinov2:long_side=0", "dinov2: long_side is 0; expected a number from 16 to 16384"),
        ("lseg:long_side=-640", "lseg: long_side is -640; expected a number from 16 to 16384"),
        ("photo:long_side=99999999999", "photo: long_side is 1e.11; expected a number from 16 to 16384"),
        ("stable-diffusion:image_size=640", "image_size should be values with . between them.* or none; got '640'"),
        ("lseg:mirror=sum,mirror=mean", "lseg has the option mirror twice"),
        ("lseg,dinov2,lseg:mirror=sum", "lseg is named twice"),
        ("stable-diffusion,stable_diffusion", "stable_diffusion is named twice"),
        ("my.py:Mine,my.py:Mine", "Mine is named twice"),
    ],
)
def test_what_is_no_teacher_is_told_before_anything_is_loaded(text, message):
    with pytest.raises(ValueError, match=message):
        parse_teachers(text)


def test_options_are_the_arguments_of_constructors():
    assert {name: list(known_options(name)) for name in ("lseg", "dinov2", "clip-large", "stable_diffusion")} == {
        "lseg": ["long_side", "mirror"],
        "dinov2": ["normalisation", "long_side"],
        "clip-large": ["long_side"],
        "stable_diffusion": ["step", "prompt", "blocks", "ensemble", "image_size"],
    }


@pytest.mark.parametrize("name", TEACHERS)
def test_a_name_may_be_spelled_in_any_way(name):
    spellings = {name, name.replace("-", "_"), name.replace("_", "-"), name.replace("-", ".")}
    assert {canonical(spelling) for spelling in spellings} == {name}
    assert {parse_teachers(spelling)[0].name for spelling in spellings} == {name}


def test_a_stores_own_spelling_comes_first():
    assert canonical("resnet_1.5") == "resnet_1.5"
    assert canonical("resnet_1.5", ["lseg", "resnet-1.5"]) == "resnet-1.5"
    assert canonical("a_b", ["a-b", "a_b"]) == "a_b"
    assert canonical("stable_diffusion", ["stable-diffusion"]) == "stable-diffusion"  # as an older import wrote it
    assert canonical("sd", ["lseg", "stable_diffusion"]) == "stable_diffusion"
    assert canonical("sd", ["sd", "stable_diffusion"]) == "sd"
    assert canonical("dinov9", ["lseg"]) == "dinov9"


def test_stores_runs_and_comparisons_find_their_teachers_in_any_spelling(tmp_path):
    cards = {"stable_diffusion": TeacherCard(4, loss="l1"), "resnet-1.5": TeacherCard(4)}
    store = Store.create(tmp_path / "store", teachers=cards)
    settled = _settle(DistillConfig(teachers=("resnet_1_5", "sd")), store)
    assert (settled.teachers, settled.losses) == (("resnet-1.5", "stable_diffusion"), ("cosine", "l1"))
    with pytest.raises(InputError, match="holds no finished scene"):
        compare(store, ["stable-diffusion", "resnet_1.5"])
    with pytest.raises(InputError, match=r"has no features of resnet-2, only of stable_diffusion, resnet-1\.5"):
        compare(store, ["resnet-2"])


def test_a_scene_names_the_teachers_that_it_has_features_of(tmp_path):
    store = Store.create(tmp_path / "store", cell=0.1, teachers={"resnet-1.5": TeacherCard(4), "half": TeacherCard(4)})
    points = torch.rand(50, 3)
    samples = sample_cells(points, store.cell)
    count = len(samples.index_of_sample)
    visibility = Visibility((), torch.ones(count, dtype=torch.int64))
    features = {name: torch.ones(count, 4) for name in store.teachers}
    store.add_scene(Scene("a", points, ()), samples, visibility, features)
    assert torch.equal(store["a"].features("resnet-1.5"), torch.ones(count, 4).half())
    with pytest.raises(FileNotFoundError, match=r"resnet.*half.*resnet-1\.5"):
        store["a"].features("resnet")


def test_weights_and_text_encoders_may_be_spelled_in_any_way(capsys):
    assert main(["weights", "list", "stable_diffusion", "dinov2_small"]) == 0
    told = capsys.readouterr().out
    assert "stable-diffusion-v1-5" in told
    assert "dinov2-small" in told
    with pytest.raises(FileNotFoundError, match="nowhere holds no model"):
        load_text_encoder("minilm_centred:nowhere")


@pytest.mark.parametrize(
    ("teacher", "options", "values"),
    [
        ("lseg", {"mirror": "none", "long_side": "64"}, {"mirror": "none", "long_side": 64}),
        ("dinov2", {"long_side": "none", "normalisation": "clip"}, {"long_side": None, "normalisation": "clip"}),
        ("stable_diffusion", {"image_size": "none", "blocks": "1+2"}, {"image_size": None, "blocks": (1, 2)}),
        ("stable_diffusion", {"image_size": "480x640", "prompt": "none"}, {"image_size": (480, 640), "prompt": "none"}),
        ("stable_diffusion", {"image_size": "480+640", "blocks": "3"}, {"image_size": (480, 640), "blocks": (3,)}),
    ],
)
def test_values_are_of_the_types_that_constructors_take(teacher, options, values):
    assert read_options(options, known_options(teacher), teacher) == values


def test_weights_are_found_in_any_spelling(tmp_path, monkeypatch):
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path))
    place = tmp_path / "weights" / "lseg" / "demo_e200.ckpt"
    place.parent.mkdir(parents=True)
    place.touch()
    assert find("lseg") == place
    for spelling in ("dinov2-small", "dinov2_small"):
        assert not is_here(spelling)
        with pytest.raises(FileNotFoundError, match="weights fetch dinov2-small"):
            find(spelling)


@pytest.mark.parametrize("name", TEACHERS)
def test_what_is_known_of_a_teacher_is_what_its_weights_say(name):
    card, teacher = known_card(name.replace("_", "-")), TEACHERS[name]
    if name.startswith("mini-"):
        assert card_of(load_teacher(name)).num_channels == card.num_channels
        assert card_of(load_teacher(name)).text == card.text
    elif name in ("photo", "efficientnet", "segmenter"):  # no weights of one name
        assert (card.num_channels, card.text, card.licence) == (384, "minilm-centred", teacher.licence)
    else:
        (weights,) = (one for key, one in CARDS.items() if canonical(key) == name)
        assert (card.num_channels, card.text, card.licence) == (weights.num_channels, weights.text, weights.licence)
    assert card.loss == teacher.loss


def test_imported_features_have_the_words_of_their_teacher():
    words = {
        name: imported_card(name, 512).text for name in ("lseg", "openseg", "clip", "siglip2_large", "dinov2", "x")
    }
    assert words == {
        "lseg": "lseg",
        "openseg": "clip:clip-large",
        "clip": "clip:clip",
        "siglip2_large": "siglip2:siglip2-large",
        "dinov2": None,
        "x": None,
    }
    assert imported_card("lseg", 512, text="minilm").text == "minilm"
    assert imported_card("stable-diffusion", 3200).loss == "demeaned-cosine"


def test_official_heads_are_told_by_name_or_width():
    heads = {"final.kernel": 512, "final_sd.kernel": 3200, "final_amradio.kernel": 1280, "final_dinov2.kernel": 1024}
    found = [_teacher_of_head(name, torch.empty(96, width)) for name, width in heads.items()]
    assert found == ["lseg", "stable_diffusion", "radio", "dinov2"]
    assert _teacher_of_head("final.kernel", torch.empty(96, 768)) == "openseg"
    assert _teacher_of_head("final.kernel", torch.empty(96, 100)) == "final"
