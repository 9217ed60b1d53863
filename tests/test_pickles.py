"""Facts about what PyTorch saved: tensors and arrays come back from every format, and nothing in a file is ever run."""

import argparse
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cuao3d.errors import InputError, NotFoundError
from cuao3d.pickles import check_weights, load_into, read_torch
from written import damage

ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "big-endian": np.arange(6, dtype=">f8").reshape(2, 3),
    "by column": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
    "booleans": np.array([True, False]),
    "empty": np.zeros((0, 3), np.uint8),
}


class Evil:
    """Unpickling it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def save(content: Any, path: Path, *, kind: str = "zip") -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    return path


def renamed(path: Path, old: bytes, new: bytes) -> None:
    """Rename modules in the pickle of a zip file."""
    with zipfile.ZipFile(path) as archive:
        parts = {part: archive.read(part) for part in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, content.replace(old, new) if part.endswith("data.pkl") else content)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", ["zip", "before PyTorch 1.6"])
def test_tensors_and_arrays_come_back_from_both_formats(kind: str, mapped: bool, tmp_path: Path):
    tensor = torch.arange(6.0).half()
    content = {**ARRAYS, "tensor": tensor, "best": np.float64(0.25), "epoch": 3}
    back = read_torch(save(content, tmp_path / "a.pt", kind=kind), mapped=mapped)
    assert list(back) == list(content)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype.newbyteorder("=")
    assert back["tensor"].equal(tensor)
    assert (back["best"], back["epoch"]) == (0.25, 3)


def test_a_tuple_stays_a_tuple_and_an_array_an_array(tmp_path: Path):
    back = read_torch(save((*ARRAYS.values(), 0), tmp_path / "a.pth"))
    assert isinstance(back, tuple)
    assert [type(entry) for entry in back] == [np.ndarray] * len(ARRAYS) + [int]
    np.testing.assert_array_equal(read_torch(save(ARRAYS["float32"], tmp_path / "a.pth")), ARRAYS["float32"])


def test_the_module_names_of_numpy_1_and_2_are_both_known(tmp_path: Path):
    path = save((ARRAYS["float32"], np.float32(1.5)), tmp_path / "a.pth")
    one, two = b"numpy.core.multiarray", b"numpy._core.multiarray"
    contents = []
    for old, new in ((two, one), (one, two)):
        renamed(path, old, new)
        assert any(new in part for part in parts_of(path))
        assert not any(old in part for part in parts_of(path))
        contents.append(read_torch(path))
    for array, number in contents:
        np.testing.assert_array_equal(array, ARRAYS["float32"])
        assert number == 1.5


def parts_of(path: Path) -> list[bytes]:
    with zipfile.ZipFile(path) as archive:
        return [archive.read(part) for part in archive.namelist()]


@pytest.mark.parametrize("kind", ["zip", "before PyTorch 1.6"])
@pytest.mark.parametrize("where", ["alone", "beside arrays", "in an array"])
def test_code_is_refused_and_never_run(where: str, kind: str, tmp_path: Path):
    evil = Evil(tmp_path / "made")
    content = {
        "alone": evil,
        "beside arrays": (ARRAYS["float32"], evil, 0),
        "in an array": np.array([evil], dtype=object),
    }[where]
    path = save(content, tmp_path / "evil.pth", kind=kind)
    reason = r"\(.*(mkdir|not a numeric type).*\)"
    with pytest.raises(ValueError, match=rf"evil\.pth: refused, because .* may run code {reason}\. Get the original"):
        read_torch(path)
    assert not (tmp_path / "made").exists()


def test_a_lying_shape_or_type_of_an_array_is_refused(tmp_path: Path):
    class Forged:
        def __init__(self, *state: Any) -> None:
            self.state = state

        def __reduce__(self):
            make, arguments, _ = np.zeros(2).__reduce__()
            return make, arguments, self.state

    real = np.dtype(np.float64)
    for state in ((1, (10**15,), real, False, b"\0" * 16), (1, (2,), real, False, b"\0" * 15), (1, (2,), real, False)):
        path = save(Forged(*state), tmp_path / "forged.pth")
        with pytest.raises(ValueError, match=r"forged\.pth: not a PyTorch checkpoint, or only a part of one"):
            read_torch(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", pickle.dumps((1, 2), protocol=2)])
def test_what_pytorch_did_not_save_is_named(content: bytes, tmp_path: Path):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pth: not a PyTorch checkpoint, or only a part of one"):
        read_torch(tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError, match=r"no file .*b\.pth"):
        read_torch(tmp_path / "b.pth")


@pytest.mark.parametrize("kind", ["zip", "before PyTorch 1.6"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused(kind: str, tmp_path: Path):
    content = {"array": ARRAYS["float32"], "tensor": torch.zeros(3), "numbers": [1, 2.5, "three"]}
    path = save(content, tmp_path / "a.pt", kind=kind)
    assert damage(path, lambda: read_torch(path), times=400) > 0.2


@pytest.mark.parametrize("kind", ["zip", "before PyTorch 1.6"])
def test_weights_are_checked_without_being_read(kind: str, tmp_path: Path):
    check_weights(save({"weight": torch.zeros(3)}, tmp_path / "a.bin", kind=kind))
    evil = save({"weight": torch.zeros(3), "extra": Evil(tmp_path / "made")}, tmp_path / "evil.bin", kind=kind)
    with pytest.raises(InputError, match=r"evil\.bin: refused, because .* may run code"):
        check_weights(evil)
    assert not (tmp_path / "made").exists()
    (tmp_path / "cut.bin").write_bytes((tmp_path / "a.bin").read_bytes()[:100])
    with pytest.raises(InputError, match=r"cut\.bin: not a PyTorch checkpoint"):
        check_weights(tmp_path / "cut.bin")


def test_safetensors_are_checked_too(tmp_path: Path):
    save_file({"weight": torch.zeros(30)}, tmp_path / "a.safetensors")
    check_weights(tmp_path / "a.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"cut\.safetensors: not a safetensors file, or only a part of one"):
        check_weights(tmp_path / "cut.safetensors")
    for name in ("none.safetensors", "none.bin"):
        with pytest.raises(NotFoundError, match=name):
            check_weights(tmp_path / name)


def test_what_nobody_needs_is_replaced_and_all_else_refused(tmp_path: Path):
    settings = argparse.Namespace(rate=0.1, model=argparse.Namespace(depth=3))
    path = save({"state_dict": {"weight": torch.ones(2)}, "settings": settings}, tmp_path / "a.ckpt")
    content = read_torch(path, unneeded=("argparse.", "numpy."))
    assert content["state_dict"]["weight"].tolist() == [1, 1]
    assert not isinstance(content["settings"], argparse.Namespace)
    for unneeded in ((), ("os.",)):
        with pytest.raises(InputError, match=r"it names argparse\.Namespace"):
            read_torch(path, unneeded=unneeded)
    evil = save({"settings": settings, "extra": Evil(tmp_path / "made")}, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match=r"it names \w+\.mkdir"):
        read_torch(evil, unneeded=("argparse.",))


def test_a_module_takes_all_its_tensors_or_says_which_do_not_fit():
    module = torch.nn.Linear(2, 3)
    tensors = {"weight": torch.ones(3, 2), "bias": torch.arange(3.0)}
    load_into(module, tensors, what="a layer")
    assert module.bias.tolist() == [0, 1, 2]
    load_into(module, tensors, what="a layer", assign=True)
    assert module.weight.data_ptr() == tensors["weight"].data_ptr()
    with pytest.raises(InputError) as raised:
        load_into(module, {"bias": torch.ones(4), "more": torch.ones(1)}, what="a layer", names={"bias": "b"})
    assert str(raised.value) == (
        "The tensors do not fit a layer: missing weight (3, 2); extra more (1,); b is (4,), not (3,)."
    )
    with pytest.raises(InputError, match=r"extra t7 \(1,\); and 4 more\.$"):
        load_into(torch.nn.Identity(), {f"t{index}": torch.ones(1) for index in range(12)}, what="nothing")
