"""Facts about the label sets that ship with the package."""

import pytest
import torch

from cuao3d.labels import LABEL_SETS, convert, label_set

SCANNET20 = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "desk", "curtain", "refrigerator", "shower curtain", "toilet", "sink", "bathtub", "otherfurniture",
)  # fmt: skip
SCANNET20_IN_NYU40 = (*range(1, 13), 14, 16, 24, 28, 33, 34, 36, 39)


@pytest.mark.parametrize(
    ("name", "num_classes"),
    list(zip(LABEL_SETS, (20, 200, 21, 40, 80, 160, 40), strict=True)),
)
def test_every_set_is_complete(name, num_classes):
    classes = label_set(name)
    assert (classes.name, len(classes), len(classes.names), len(classes.prompts)) == (name, *[num_classes] * 3)
    assert len(set(classes.ids)) == len(set(classes.names)) == num_classes
    assert classes.colors.shape == (num_classes, 3)
    assert 0 <= classes.colors.min() <= classes.colors.max() <= 1
    assert set(classes.nyu40) <= set(range(1, 41))


def test_scannet20_in_the_official_order():
    classes = label_set("scannet20")
    assert classes.names == SCANNET20
    assert classes.nyu40 == SCANNET20_IN_NYU40
    assert label_set("matterport21").nyu40 == (*SCANNET20_IN_NYU40, 22)
    assert classes.prompts[0] == "a wall in a scene"
    assert classes.prompts[19] == label_set("matterport21").prompts[19] == "other"


def test_scannet200_has_its_groups():
    groups = label_set("scannet200").groups
    assert [groups.count(group) for group in ("head", "common", "tail")] == [66, 68, 66]


def test_ids_become_rows_and_unknown_ids_become_unlabelled():
    classes = label_set("nyu40").classes(torch.tensor([1, 40, 0, 255, -1, 300]))
    assert classes.tolist() == [0, 39, 255, 255, 255, 255]


def test_labels_are_said_in_another_set():
    nyu40, scannet20 = label_set("nyu40"), label_set("scannet20")
    # wall, desk, refrigerator ("refridgerator" there), blinds, other furniture, unlabelled
    assert convert(torch.tensor([1, 14, 24, 13, 39, 255]), nyu40, scannet20).tolist() == [0, 12, 14, 255, 19, 255]
    back = convert(torch.arange(20), scannet20, nyu40)
    assert tuple(back.tolist()) == SCANNET20_IN_NYU40
    same = torch.tensor([3, 255])
    assert torch.equal(convert(same, scannet20, scannet20), same)


def test_a_finer_set_is_no_target():
    with pytest.raises(ValueError, match="scannet20 cannot be said in scannet200"):
        convert(torch.arange(20), label_set("scannet20"), label_set("scannet200"))


def test_a_set_of_ones_own(tmp_path):
    path = tmp_path / "garden.csv"
    path.write_text("id,name,r,g,b\n3,tree,0,255,0\n7,fence,51,51,51\n")
    classes = label_set(path)
    assert (classes.name, classes.ids, classes.names) == ("garden", (3, 7), ("tree", "fence"))
    assert classes.prompts == ("a tree in a scene", "a fence in a scene")
    torch.testing.assert_close(classes.colors, torch.tensor([[0, 1, 0], [0.2, 0.2, 0.2]]))
    assert classes.groups is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id,name\n1,tree\n", "no column 'r'"),
        ("", "no column 'id'"),
        ("id,name,r,g,b\n1,tree,0,0,red\n", "line 2: expected"),
        ("id,name,r,g,b\n1,tree,0,0,0\n1,fence,0,0,0\n", "line 3: id 1 is taken"),
        ("id,name,r,g,b\n255,tree,0,0,0\n", "255 means unlabelled"),
    ],
)
def test_a_wrong_csv_is_named_with_its_line(tmp_path, content, words):
    path = tmp_path / "wrong.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"wrong.csv.*{words}"):
        label_set(path)


def test_an_unknown_set_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown label set 'coco'; choose from \['scannet20'"):
        label_set("coco")
