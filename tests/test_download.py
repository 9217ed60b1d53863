from dataclasses import replace
from fnmatch import fnmatch

import pytest

from cuao3d import download
from cuao3d.download import CARDS, fetch, find, verify
from cuao3d.files import sha256_of
from cuao3d.teachers import TEACHERS


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


def put(cache, name, file="model.safetensors", content=b"weights"):
    path = cache / "weights" / name / file
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_weights_that_are_not_here_say_how_to_get_them_their_size_and_licence():
    with pytest.raises(
        FileNotFoundError, match=r"2.6 GB, licence: none for the checkpoint.*cuao3d weights fetch lseg.*lseg=FOLDER"
    ):
        find("lseg")


def test_unknown_weights_name_the_known_ones():
    with pytest.raises(ValueError, match="stable-diffusion"):
        find("dinno")


def test_a_folder_of_ones_own_is_found(own_cache):
    path = put(own_cache, "dinov2")
    assert find("dinov2") == path.parent
    assert fetch("dinov2") == path.parent
    assert verify("dinov2") == {"model.safetensors": sha256_of(path)}


def test_a_file_from_a_page_is_found_and_its_page_named_until_then(own_cache):
    with pytest.raises(FileNotFoundError, match=r"drive\.google\.com.*demo_e200\.ckpt"):
        fetch("lseg")
    path = put(own_cache, "lseg", "demo_e200.ckpt")
    assert find("lseg") == path
    assert verify("lseg") == {"demo_e200.ckpt": sha256_of(path)}


def test_a_file_that_is_not_the_published_one_is_named(own_cache, monkeypatch):
    path = put(own_cache, "toy")
    monkeypatch.setitem(CARDS, "toy", replace(CARDS["vit"], repository="a/b", sha256={"model.safetensors": "0" * 64}))
    with pytest.raises(ValueError, match=f"{path} is not the published file"):
        verify("toy")
    with pytest.raises(ValueError, match="is not the published file"):
        fetch("toy")


def test_a_mirror_is_tried_where_the_first_repository_is_gone(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub import constants

    asked = []

    def snapshot_download(repository, *, allow_patterns=None, local_files_only=False):
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        asked.append((repository, "unet/*model.safetensors" in allow_patterns))
        if len(asked) < 2:
            raise OSError("404: Repository Not Found")
        put(tmp_path / "cache", "stable-diffusion")
        return str(tmp_path / "cache" / "weights" / "stable-diffusion")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)
    assert fetch("stable-diffusion").name == "stable-diffusion"
    assert asked == [(CARDS["stable-diffusion"].repository, True), (CARDS["stable-diffusion"].mirrors[0], True)]


def test_offline_is_respected(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE forbids"):
        fetch("dinov2")


def test_every_teacher_that_has_published_weights_is_in_the_table():
    assert {name for name in TEACHERS if not name.startswith("mini-")} <= set(CARDS)
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


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    monkeypatch.delenv("CUAO3D_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / "cuao3d"
