from dataclasses import replace
from fnmatch import fnmatch

import pytest

from cuao3d.cli import main
from cuao3d.download import CARDS, CheckedFile, fetch, find, verify
from cuao3d.files import sha256_of
from cuao3d.names import match_name
from cuao3d.teachers import TEACHERS
from cuao3d.teachers.lseg import LSegTeacher


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


def put(cache, name, file="model.safetensors", content=b"weights"):
    path = cache / "weights" / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_weights_that_are_not_here_say_how_to_get_them_their_size_and_licence():
    with pytest.raises(
        FileNotFoundError, match=r"2.6 GB, licence: none for the checkpoint.*cuao3d weights fetch lseg.*lseg=FOLDER"
    ):
        find("lseg")


def test_lsegs_card_does_not_lend_its_codes_licence_to_the_checkpoint(capsys):
    assert main(["weights", "list", "lseg"]) == 0
    assert "lseg: 2.6 GB. Licence: none for the checkpoint" in capsys.readouterr().out
    assert LSegTeacher.licence == CARDS["lseg"].licence


def test_unknown_weights_name_the_known_ones():
    with pytest.raises(ValueError, match="stable-diffusion"):
        find("dinno")


def test_a_folder_of_ones_own_is_found_and_recorded_when_it_is_first_fetched(own_cache):
    path = put(own_cache, "dinov2")
    assert find("dinov2") == path.parent
    assert verify("dinov2") == (CheckedFile("model.safetensors", sha256_of(path), "not recorded"),)
    assert fetch("dinov2") == path.parent
    assert verify("dinov2") == (CheckedFile("model.safetensors", sha256_of(path), "recorded at first use"),)
    path.write_bytes(b"other weights")
    with pytest.raises(ValueError, match=f"{path} is not the file that was recorded at first use"):
        verify("dinov2")


def test_a_folder_without_weights_is_not_here(own_cache):
    put(own_cache, "dinov2", "config.json")
    with pytest.raises(FileNotFoundError, match="'dinov2' are not on this machine"):
        find("dinov2")
    path = put(own_cache, "dinov2-small", "pytorch_model.bin")  # the old format, which is not what would be fetched
    assert find("dinov2-small") == path.parent
    assert [checked.file for checked in verify("dinov2-small")] == [path.name]


def test_a_file_that_is_lost_from_a_folder_of_ones_own_is_named(own_cache):
    tokenizer = put(own_cache, "clip", "vocab.json")
    put(own_cache, "clip")
    fetch("clip")
    tokenizer.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{tokenizer.parent} lacks vocab\.json.*delete .*/clip\.json"):
        verify("clip")


def test_a_file_from_a_page_is_found_and_its_page_named_until_then(own_cache):
    with pytest.raises(FileNotFoundError, match=r"drive\.google\.com.*demo_e200\.ckpt"):
        fetch("lseg")
    path = put(own_cache, "lseg", "demo_e200.ckpt")
    assert find("lseg") == fetch("lseg") == path
    assert verify("lseg") == (CheckedFile("demo_e200.ckpt", sha256_of(path), "recorded at first use"),)


def test_a_file_that_is_not_the_published_one_is_named(own_cache, monkeypatch):
    path = put(own_cache, "toy")
    monkeypatch.setitem(CARDS, "toy", replace(CARDS["vit"], repository="a/b", sha256={"model.safetensors": "0" * 64}))
    for check in (verify, fetch):
        with pytest.raises(ValueError, match=f"{path} is not the file that was published"):
            check("toy")
    monkeypatch.setitem(CARDS, "toy", replace(CARDS["toy"], sha256={"model.safetensors": sha256_of(path)}))
    assert verify("toy") == (CheckedFile("model.safetensors", sha256_of(path), "published"),)


def test_every_teacher_that_has_published_weights_has_a_card():
    # The weights of others come with packages, or are any that the user names.
    without = {"mini-lseg", "mini-vit", "mini-dino", "mini-diffusion", "efficientnet", "photo", "segmenter"}
    assert without < set(TEACHERS)
    assert {match_name(name, CARDS) for name in set(TEACHERS) - without} == set(CARDS)
    for name, weights in CARDS.items():
        assert weights.licence, name
        assert weights.distilled, name
        assert weights.megabytes > 0, name
        assert weights.num_channels > 0, name
        assert weights.files, name


def test_code_is_never_asked_for():
    for name, weights in CARDS.items():
        for file in ("modeling.py", "unet/modeling.py", "tokenizer/tokenization.py", "weights.pkl"):
            assert not any(fnmatch(file, pattern) for pattern in weights.files), name
