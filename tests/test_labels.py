"""Facts about the label sets that ship with the package."""

import pytest
import torch

from cuao3d.errors import InputError
from cuao3d.labels import LABEL_SETS, convert, label_set
from cuao3d.readers.splits import categories

SCANNET20 = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "desk", "curtain", "refrigerator", "shower curtain", "toilet", "sink", "bathtub", "otherfurniture",
)  # fmt: skip
SCANNET20_IN_NYU40 = (*range(1, 13), 14, 16, 24, 28, 33, 34, 36, 39)


@pytest.mark.parametrize(
    ("name", "num_classes"),
    list(zip(LABEL_SETS, (20, 200, 21, 40, 80, 160, 40, 100), strict=True)),
)
def test_every_set_is_complete(name, num_classes):
    classes = label_set(name)
    assert (classes.name, len(classes), len(classes.names), len(classes.prompts)) == (name, *[num_classes] * 3)
    assert len(set(classes.ids)) == len(set(classes.names)) == num_classes
    assert classes.colors.shape == (num_classes, 3)
    assert 0 <= classes.colors.min() <= classes.colors.max() <= 1
    assert {len(covered) for covered in classes.nyu40} == {1}
    assert {nyu40 for (nyu40,) in classes.nyu40} <= set(range(1, 41))


def test_scannet20_in_the_official_order():
    classes = label_set("scannet20")
    assert classes.names == SCANNET20
    assert classes.nyu40 == tuple((nyu40,) for nyu40 in SCANNET20_IN_NYU40)
    assert label_set("matterport21").nyu40 == (*classes.nyu40, (22,))
    assert classes.prompts[0] == "a wall in a scene"
    assert classes.prompts[19] == label_set("matterport21").prompts[19] == "other"


def test_scannet200_has_its_groups():
    groups = label_set("scannet200").groups
    assert [groups.count(group) for group in ("head", "common", "tail")] == [66, 68, 66]


def test_the_last_name_of_scannet200_is_asked_for_as_it_is():
    assert label_set("scannet200").prompts[-1] == "a mattress in a scene"
    assert label_set("scannet20").prompts[-1] == "other"


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
    with pytest.raises(InputError, match=r"scannet20 cannot be converted to scannet200: \d+ of its classes"):
        convert(torch.arange(20), label_set("scannet20"), label_set("scannet200"))


@pytest.mark.parametrize("name", ["matterport40", "matterport80"])
def test_matterports_sets_nest_by_their_ids(name):
    fine, coarse = label_set("matterport160"), label_set(name)
    assert (coarse.ids, coarse.names) == (fine.ids[: len(coarse)], fine.names[: len(coarse)])
    labels = torch.tensor([*fine.ids, 255, -1])
    assert convert(labels, fine, coarse).tolist() == [
        *coarse.ids, *[255] * (160 - len(coarse)), 255, 255
    ]  # fmt: skip
    with pytest.raises(InputError, match=f"{name} cannot be converted to matterport160: \\d+ of its classes"):
        convert(labels, coarse, fine)


def test_what_matterport21_loses_by_way_of_160():
    # Of the 1,659 categories 14 are "other" in 21 classes and none of the 160; no other class of the 21 loses any.
    fine, coarse = label_set("matterport160"), label_set("matterport21")
    covered = {nyu40: id_ for id_, (nyu40,) in zip(coarse.ids, coarse.nyu40, strict=True)}
    in_fine = dict(zip(fine.names, convert(torch.tensor(fine.ids), fine, coarse).tolist(), strict=True))
    lost = []
    for row in categories("matterport"):
        direct = covered.get(int(row["nyu40id"] or 0), 255)
        if (by_way := in_fine.get(row["nyuClass"], 255)) != direct:
            assert by_way == 255
            lost.append(coarse.names[coarse.ids.index(direct)])
    assert lost == ["other"] * 14


def own_set(tmp_path, *lines, name="own.csv"):
    path = tmp_path / name
    path.write_text("\n".join(("id,name,r,g,b,nyu40id", *lines)))
    return label_set(path)


def test_classes_cover_no_nyu40_id_or_several(tmp_path):
    own = own_set(
        tmp_path, "0,seat,0,0,0,5;6", "1,robot,0,0,0,", "2,wall,0,0,0,1", "3,forklift,0,0,0,0", "9,lift,0,0,0,"
    )
    assert own.nyu40 == ((5, 6), (), (1,), (), ())
    scannet20 = label_set("scannet20")
    names = ["wall", "chair", "sofa", "table"]
    labels = torch.tensor([scannet20.ids[scannet20.names.index(name)] for name in names] + [255])
    assert convert(labels, scannet20, own).tolist() == [2, 0, 0, 255, 255]
    # scannet20 tells chairs from sofas, so a seat is neither; a robot is none of its classes.
    assert convert(torch.tensor([0, 1, 2, 3, 9, 255]), own, scannet20).tolist() == [255, 255, 0, 255, 255, 255]


def test_a_class_that_covers_more_than_the_other_set_knows_is_left_out(tmp_path):
    # Blinds (13) are in nyu40 and not in scannet20: what is a curtain or a blind there may be neither here.
    source = own_set(tmp_path, "0,hanging,0,0,0,16;13", "1,seat,0,0,0,5;6")
    target = own_set(tmp_path, "4,furniture,0,0,0,7;6;5", name="coarse.csv")
    assert convert(torch.tensor([0, 1]), source, label_set("scannet20")).tolist() == [255, 255]
    assert convert(torch.tensor([0, 1]), source, target).tolist() == [255, 4]


def test_sets_of_one_name_are_told_apart(tmp_path):
    own = own_set(tmp_path, "7,wall,0,0,0,1", name="scannet20.csv")
    assert convert(torch.tensor([0, 7]), label_set("scannet20"), own).tolist() == [7, 255]


def test_a_set_without_nyu40_ids_is_converted_to_itself_alone(tmp_path):
    own = own_set(tmp_path, "3,tree,0,255,0,", "4,hedge,0,255,0,")
    labels = torch.tensor([3, 4, 255])
    assert torch.equal(convert(labels, own, own_set(tmp_path, "3,tree,9,9,9,", "4,hedge,9,9,9,")), labels)
    for source, target in ((own, label_set("nyu40")), (label_set("nyu40"), own)):
        with pytest.raises(InputError, match="own has no NYU40 ids; add a column nyu40id"):
            convert(labels, source, target)


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
        ("id,name,r,g,b\n1,tree,0,0,0\n1,fence,0,0,0\n", "line 3: the id 1 is taken"),
        ("id,name,r,g,b\n255,tree,0,0,0\n", "255 means unlabelled"),
        ("id,name,r,g,b\n1191,tree,0,0,0\n", "line 2: the id is 1191. Ids go from 0 to 254"),
        ("id,name,r,g,b\n1,tree,0,0,256\n", "line 2: expected r,g,b from 0 to 255"),
        ("id,name,r,g,b\n1,tree\n", "line 2: expected id,name,r,g,b"),
        ("id,name,r,g,b,nyu40id\n1,tree,0,0,0,5;x\n", "line 2: nyu40id is '5;x'; expected a number from 1 to 40"),
        ("id,name,r,g,b,nyu40id\n1,tree,0,0,0,41\n", "line 2: nyu40id is '41'"),
    ],
)
def test_a_wrong_csv_is_named_with_its_line(tmp_path, content, words):
    path = tmp_path / "wrong.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"wrong.csv.*{words}"):
        label_set(path)


def test_a_csv_of_a_spreadsheet_or_of_another_encoding(tmp_path):
    path = tmp_path / "set.csv"
    path.write_text("id,name,r,g,b\n1,café,0,0,0\n", encoding="utf-8-sig")
    assert (label_set(path).ids, label_set(path).names) == ((1,), ("café",))
    path.write_text("id,name,r,g,b\n1,café,0,0,0\n", encoding="latin-1")
    with pytest.raises(InputError, match=r"set\.csv is no CSV in UTF-8"):
        label_set(path)


def test_an_unknown_set_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown label set 'coco'; choose from \['scannet20'"):
        label_set("coco")


def test_synonyms_and_questions_are_lists(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        "id,name,r,g,b,synonyms,questions\n"
        "1,sofa,1,2,3,couch | settee|couch,somewhere to sit|\n"
        "2,chair,1,2,4,,somewhere to sit|a seat  for one\n"
        "3,lamp,1,2,5\n"
    )
    classes = label_set(path)
    assert classes.synonyms == (("couch", "settee"), (), ())
    assert classes.questions == (("somewhere to sit",), ("somewhere to sit", "a seat for one"), ())


def test_a_set_without_synonyms_has_an_empty_list_for_each_class():
    classes = label_set("nyu40")
    assert classes.synonyms == classes.questions == ((),) * 40
