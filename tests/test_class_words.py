"""Class probabilities become words: by hand, and on toy networks."""

import csv
import math

import pytest
import torch

from conftest import data_folder
from cuao3d.teachers.classes import (
    NAMES,
    ClassNames,
    LogitNetwork,
    WordTeacher,
    at_centres,
    class_words,
    mix,
    read_class_names,
)

LISTS = {"imagenet1000.csv": 1000, "ade150.csv": 151}
AXES = {"chair": 0, "seat": 1, "lamp": 2}


def encode(texts):
    """A text encoder whose vectors are axes."""
    return torch.eye(3)[[AXES[text] for text in texts]]


def test_words_are_mixed_by_the_probabilities_of_their_classes():
    probabilities = torch.tensor([0.5, 0.3, 0.2])[None, :, None, None]
    words = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])  # the third class is left out
    assert mix(probabilities, words).flatten().tolist() == pytest.approx([0.5, 0.3])


def test_a_class_is_the_unit_mean_of_its_names_and_zero_where_it_is_left_out():
    classes = ClassNames((("chair", "seat"), ("shark",), ("lamp",)), ("", "animal", ""))
    half = math.sqrt(0.5)
    torch.testing.assert_close(class_words(encode, classes), torch.tensor([[half, half, 0], [0, 0, 0], [0, 0, 1.0]]))


def test_a_map_is_read_at_the_centres_of_the_cells_of_the_image():
    # A map whose value is its pixel: place i is at pixel 4 i, of an image 9 pixels high and 17 wide.
    rows, columns = torch.arange(3.0) * 4, torch.arange(5.0) * 4
    maps = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]
    found = at_centres(maps, 4, (9, 17), (3, 6))[0]
    assert found[0, :, 0].tolist() == pytest.approx([1, 4, 7])
    assert found[1, 0].tolist() == pytest.approx([(i + 0.5) * 17 / 6 - 0.5 for i in range(6)], abs=1e-5)
    assert at_centres(maps[:, :, :1, :1], 4, (1, 1), (2, 2)).shape == (1, 2, 2, 2)


class Brightness(torch.nn.Module):
    """Toy network: of each fourth pixel, whether it is bright or dark."""

    def forward(self, images):
        bright = images.mean(dim=1, keepdim=True)[:, :, ::4, ::4]
        return torch.cat([bright, -bright], dim=1) * 4


def toy_teacher(*, mean_of=1):
    networks = [LogitNetwork(Brightness(), torch.eye(2), stride=4, multiple=8) for _ in range(mean_of)]
    return WordTeacher(networks, name="toy", text="minilm", long_side=64)


def test_a_teacher_says_what_its_network_sees_where_it_sees_it():
    image = torch.zeros(3, 48, 64)
    image[:, :, 32:] = 1
    (said,) = toy_teacher()(image)
    assert said.shape == (2, 12, 16)
    sure = 1 / (1 + math.exp(-8))
    assert said[0, 0, [2, 13]].tolist() == pytest.approx([1 - sure, sure], abs=1e-4)
    assert (said[0, :, 8:] > said[0, :, :8].flip(1)).all()
    torch.testing.assert_close(said.sum(dim=0), torch.ones(12, 16))


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_a_turned_image_has_the_turned_map(turn):
    image = torch.rand(3, 50, 70)
    (upright,), (turned,) = toy_teacher()(image), toy_teacher()(image.rot90(turn, (1, 2)))
    torch.testing.assert_close(turned, upright.rot90(turn, (1, 2)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(48, 64), (97, 131), (1, 1), (5, 300)])
def test_images_of_any_size_are_described_alike_alone_and_in_batches(size):
    teacher, images = toy_teacher(), torch.rand(3, 3, *size)
    (batch,) = teacher.batch(images)
    for image, said in zip(images, batch, strict=True):
        assert torch.equal(teacher(image)[0], said)
    assert batch.shape[2:] == tuple(max(1, round(side * 16 / max(size))) for side in size)


def test_a_network_says_the_mean_of_what_it_sees_at_several_sizes():
    several = LogitNetwork(Brightness(), torch.eye(2), stride=4, multiple=8, scales=(0.5, 1.0))
    alone, image = toy_teacher().network[0], torch.rand(1, 3, 48, 64)
    expected = (alone(image, 32, (12, 16)) + alone(image, 64, (12, 16))) / 2
    torch.testing.assert_close(several(image, 64, (12, 16)), expected)


def test_networks_together_say_the_plain_mean():
    other = LogitNetwork(Brightness(), torch.eye(2).flip(0), stride=4, multiple=8)
    alone = toy_teacher()
    both = WordTeacher([*alone.network, other], name="both", text="minilm", long_side=64)
    image = torch.rand(3, 48, 64)
    torch.testing.assert_close(both(image)[0], torch.full((2, 12, 16), 0.5))  # they contradict each other
    torch.testing.assert_close(toy_teacher(mean_of=3)(image)[0], alone(image)[0])


@pytest.mark.parametrize(("file", "count"), LISTS.items())
def test_every_class_has_a_name_of_its_own_and_a_reason_where_it_is_left_out(file, count):
    with (NAMES / file).open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["index"] for row in rows] == [str(index) for index in range(count)]
    assert len({row["name"] for row in rows}) == count
    assert all(row[key] == row[key].strip() for row in rows for key in row)
    spoken = [row for row in rows if not row["left_out"]]
    assert all(len(row["left_out"]) > 4 for row in rows if row["left_out"])
    assert all(not row["synonyms"] for row in rows if row["left_out"])
    assert 100 < len(spoken) < count
    assert all(row["name"] not in row["synonyms"].split("; ") for row in spoken)


def test_known_classes_are_at_their_places():
    imagenet, ade = (read_class_names(NAMES / file) for file in LISTS)
    places = {
        0: "tench",
        281: "tabby cat",
        398: "abacus",
        526: "desk",
        742: "printer",
        831: "couch",
        999: "toilet paper",
    }
    assert {index: imagenet.names[index][0] for index in places} == places
    assert imagenet.left_out[281] == "animal"
    assert ade.left_out[0] == "says nothing"
    places = {1: "wall", 4: "floor", 19: "curtain", 24: "sofa", 66: "toilet", 150: "flag"}
    assert {index: ade.names[index][0] for index in places} == places


@pytest.mark.data
def test_the_classes_of_ade20k_are_in_the_official_order():
    official = (data_folder("ade20k") / "ade150_names.txt").read_text().split("\n")
    ours = read_class_names(NAMES / "ade150.csv").names[1:]
    plainer = {  # where the official name is not the plainest
        "staircase": "stairway", "hut": "hovel", "street lamp": "streetlight", "banister": "bannister",
        "theatre stage": "stage", "conveyor belt": "conveyer belt", "motorbike": "minibike", "storage tank": "tank",
        "brand name": "trade name", "flowerpot": "pot", "wall lamp": "sconce", "waste bin": "trash can",
        "computer screen": "crt screen", "notice board": "bulletin board",
    }  # fmt: skip
    for names, name in zip(ours, official, strict=False):
        assert plainer.get(names[0], names[0]) in name
    assert len(ours) == 150


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("index,name\n0,chair\n", "should have the columns index,name,synonyms,left_out; it has"),
        ("index,name,synonyms,left_out\n1,chair,,\n", "expected class 0 and its name; got '1', 'chair'"),
        ("index,name,synonyms,left_out\n0,chair,,\n0,table,,\n", "expected class 1 and its name; got '0', 'table'"),
        ("index,name,synonyms,left_out\n0,,,\n", "expected class 0 and its name; got '0', ''"),
    ],
)
def test_a_list_of_names_that_is_wrong_is_told(tmp_path, text, complaint):
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        read_class_names(tmp_path / "names.csv")
