"""Vectors made elsewhere, looked up by name; and that CLIP's space is one, whoever made the vectors."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cuao3d.labels import label_set
from cuao3d.text import TEMPLATES, Table, class_vectors, load_text_encoder

SCANNET = "clip_scannet_labels_512.pt"
LVIS = "lvis1203_clip_vitb32.npy"
ROWS = torch.tensor([[3.0, 4.0], [0.0, -2.0], [5.0, 12.0]])


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "words_by_hand.npy", ROWS.numpy())
    (tmp_path / "words_names.txt").write_text("arm_chair\nBed\nlamp\n")
    return tmp_path


@pytest.mark.data
def test_scannets_names_find_themselves_among_those_of_lvis(clip_text):
    scannet = load_text_encoder(f"table:{clip_text / SCANNET}@scannet20")
    lvis = load_text_encoder(f"table:{clip_text / LVIS}")
    classes, words = label_set("scannet20"), (clip_text / "lvis1203_names.txt").read_text().splitlines()
    vectors = class_vectors(scannet, classes)
    nearest = [words[index].replace("_", " ") for index in (vectors @ lvis(words).T).argmax(dim=1).tolist()]
    shared = [name for name in classes.names if name.replace(" ", "_") in words]
    assert len(shared) == 12
    assert [nearest[classes.names.index(name)] for name in shared] == shared
    assert nearest[classes.names.index("bookshelf")] == "bookcase"
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(20))


@pytest.mark.data
def test_vectors_that_were_saved_on_a_gpu_with_gradients_are_read(clip_text):
    raw = torch.load(clip_text / SCANNET, map_location="cpu", weights_only=True)
    assert raw.requires_grad
    vectors = load_text_encoder(f"table:{clip_text / SCANNET}@scannet20")(label_set("scannet20").names)
    assert not vectors.requires_grad
    torch.testing.assert_close(vectors, torch.nn.functional.normalize(raw.detach().float(), dim=1))


def test_rows_become_unit_vectors_of_the_names_beside_them(folder):
    table = load_text_encoder(f"table:{folder / 'words_by_hand.npy'}")
    assert table.num_channels == 2
    expected = torch.tensor([[0.0, -1.0], [0.6, 0.8], [5 / 13, 12 / 13], [0.6, 0.8]])
    torch.testing.assert_close(table(["bed", " Arm Chair ", "lamp", "arm_chair"]), expected)
    assert table([]).shape == (0, 2)


def test_a_name_is_found_in_a_prompt(folder):
    table = Table.read(str(folder / "words_by_hand.npy"))
    for template in TEMPLATES:
        assert torch.equal(table([template.replace("{name}", "bed")]), table(["bed"]))
    assert torch.equal(table(["A lamp in a scene"]), table(["lamp"]))


def test_an_unknown_word_says_which_are_near(folder):
    table = Table.read(str(folder / "words_by_hand.npy"))
    with pytest.raises(ValueError, match=r"The table of words has no 'lamb'; it has lamp\."):
        table(["bed", "lamb"])
    with pytest.raises(ValueError, match=r"has no 'chair'; it has arm chair\."):
        table(["a photo of a chair"])
    with pytest.raises(ValueError, match=r"has no 'qqq'; nor anything like it\."):
        table(["qqq"])


@pytest.mark.parametrize("ending", [".npy", ".pt", ".safetensors"])
def test_names_may_be_a_label_set_or_a_file(tmp_path, ending):
    path, vectors = tmp_path / f"mine{ending}", torch.randn(20, 8)
    if ending == ".npy":
        np.save(path, vectors.numpy())
    elif ending == ".pt":
        torch.save(torch.nn.Parameter(vectors.half()), path)
    else:
        save_file({"anything": vectors}, path)
    table = Table.read(f"{path}@scannet20")
    classes = label_set("scannet20")
    assert torch.equal(class_vectors(table, classes), table(classes.names))
    assert torch.equal(table(["other"]), table(["otherfurniture"]))
    torch.testing.assert_close(table(["wall"]), torch.nn.functional.normalize(vectors[:1], dim=1), atol=1e-3, rtol=0)
    (tmp_path / "own.txt").write_text("\n".join(classes.names))
    assert torch.equal(Table.read(f"{path}@{tmp_path / 'own.txt'}")(classes.names), table(classes.names))


def test_the_nearest_file_of_names_is_taken(folder):
    (folder / "words_by_hand_names.txt").write_text("one\ntwo\nthree\n")
    assert torch.equal(Table.read(str(folder / "words_by_hand.npy"))(["two"]), torch.tensor([[0.0, -1.0]]))


def test_what_is_wrong_with_a_table_is_said(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no table ''; give table:FILE"):
        load_text_encoder("table")
    with pytest.raises(FileNotFoundError, match=r"There is no table '.*none\.npy'"):
        load_text_encoder(f"table:{folder / 'none.npy'}@scannet20")
    with pytest.raises(ValueError, match=r"words_by_hand\.npy has 3 rows, but scannet20 has 20 names"):
        Table.read(f"{folder / 'words_by_hand.npy'}@scannet20")
    with pytest.raises(ValueError, match=r"Unknown label set 'scannet21'"):
        Table.read(f"{folder / 'words_by_hand.npy'}@scannet21")
    with pytest.raises(FileNotFoundError, match=r"There is no file of names .*other\.txt"):
        Table.read(f"{folder / 'words_by_hand.npy'}@{folder / 'other.txt'}")
    (folder / "words_names.txt").unlink()
    with pytest.raises(ValueError, match=r"have no names\. Write them into words_by_hand_names\.txt .*npy@scannet20"):
        Table.read(str(folder / "words_by_hand.npy"))
    np.save(tmp_path / "zero.npy", torch.cat([ROWS, torch.zeros(1, 2)]).numpy())
    with pytest.raises(ValueError, match=r"zero\.npy is no table of vectors: row 3 is zero or not finite"):
        Table.read(str(tmp_path / "zero.npy"))
    np.save(tmp_path / "flat.npy", np.zeros(4))
    with pytest.raises(ValueError, match=r"flat\.npy is no table of vectors: it has the shape \(4,\), not"):
        Table.read(str(tmp_path / "flat.npy"))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    torch.save(torch.randn(20, 512), tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:5000])
    save_file({"a": torch.ones(1, 1), "b": torch.ones(1, 1)}, tmp_path / "two.safetensors")
    (tmp_path / "words.csv").write_text("1,2")
    for name in ("objects.npy", "cut.pt", "two.safetensors", "words.csv"):
        with pytest.raises(ValueError, match=rf"{name} is no table of vectors"):
            Table.read(f"{tmp_path / name}@scannet20")
