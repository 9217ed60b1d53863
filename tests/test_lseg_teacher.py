"""LSeg as a teacher: how its checkpoint is read, what it is shown of an image, and where its cells lie."""

import os
import pickle
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from cuao3d.files import sha256_of
from cuao3d.teachers import Teacher, load_teacher
from cuao3d.teachers.lseg import LSeg, LSegTeacher, load_lseg
from tiny_lseg import LONG_SIDE, image_side, save_published, text_side


@pytest.fixture(scope="module")
def tensors():
    torch.manual_seed(0)
    tensors = image_side() | text_side(width=64, depth=1, num_tokens=10)
    return tensors | {"pretrained.model.norm.weight": torch.ones(32), "pretrained.model.head.weight": torch.ones(5, 32)}


@pytest.fixture(scope="module")
def checkpoint(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("lseg") / "demo_e200.ckpt"
    save_published(path, tensors)
    return path


@pytest.fixture(scope="module")
def teacher(checkpoint):
    return partial(LSegTeacher, checkpoint, long_side=LONG_SIDE)


class Squares(nn.Module):
    """Toy network: the mean red of every 2 x 2 pixels, which cannot be misplaced. Keeps what it was shown."""

    def forward(self, image):
        self.shown = image
        return F.avg_pool2d(image[:, :1], 2).expand(-1, 512, -1, -1)


@pytest.fixture(scope="module")
def toy(teacher):
    def make(long_side):
        made = teacher(mirror="none")
        made.network, made.long_side = Squares(), long_side
        return made

    return make


def test_the_published_format_is_read_and_means_what_its_tensors_do(teacher, tensors):
    image = torch.rand(3, LONG_SIDE, LONG_SIDE)
    (features,) = teacher(mirror="none")(image)
    expected = LSeg.from_official(tensors)(image[None] * 2 - 1)[0]
    assert features.shape == (512, 32, 32)
    assert torch.equal(features, expected)
    torch.testing.assert_close(features.norm(dim=0), torch.ones(32, 32))
    assert features.std(dim=(1, 2)).mean() > 1e-3


@pytest.mark.parametrize("name", ["plain.ckpt", "old.ckpt", "half.pt", "lseg.safetensors"])
def test_tensors_alone_are_read_too(tensors, checkpoint, tmp_path, name):
    expected = load_lseg(checkpoint).state_dict()
    if name == "lseg.safetensors":
        save_file({f"net.{key}": value.contiguous() for key, value in tensors.items()}, tmp_path / name)
    elif name == "half.pt":
        half = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
        torch.save(half, tmp_path / name)
        expected = {k: v.half().float() if v.is_floating_point() else v for k, v in expected.items()}
    else:
        torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=name != "old.ckpt")
    found = load_lseg(tmp_path / name).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_what_the_training_left_in_it_is_neither_needed_nor_imported(checkpoint):
    for name in (b"pytorch_lightning", b"argparse", b"numpy"):
        assert name in checkpoint.read_bytes()
    load_lseg(checkpoint)
    assert not [name for name in sys.modules if name.startswith("pytorch_lightning")]


def test_the_same_image_gives_the_same_features_alone_or_among_others(teacher):
    made, images = teacher(), torch.rand(3, 3, 48, 64)
    (together,) = made.batch(images)
    (alone,) = made(images[1])
    assert torch.equal(alone, made(images[1])[0])
    torch.testing.assert_close(together[1], alone, atol=1e-5, rtol=0)


def test_half_precision_changes_little(teacher):
    made, image = teacher(), torch.rand(3, 48, 64)
    (exact,) = made(image)
    (rough,) = made.to("cpu", "bf16")(image)
    assert rough.dtype == torch.float32
    assert F.cosine_similarity(exact, rough, dim=0).mean() > 0.98


def test_the_mean_is_half_the_sum_and_the_sum_is_both(teacher):
    image = torch.rand(3, 48, 64)
    mean, both, one = (teacher(mirror=mirror)(image)[0] for mirror in ("mean", "sum", "none"))
    (other,) = teacher(mirror="none")(image.flip(2))
    assert torch.equal(mean, both / 2)
    assert torch.equal(both, one + other.flip(2))
    assert both.norm(dim=0).max() > 1.2


@pytest.mark.parametrize(("height", "width"), [(33, 64), (48, 64), (64, 45), (120, 50)])
def test_a_mirrored_image_has_mirrored_features(teacher, height, width):
    made, image = teacher(), torch.rand(3, height, width)
    torch.testing.assert_close(made(image.flip(2))[0], made(image)[0].flip(2), atol=1e-4, rtol=0)


def test_the_sum_is_that_of_the_official_evaluator(teacher):
    # Resized to the long side, padded right and bottom with -1, and then the whole square mirrored.
    image = torch.rand(1, 3, 24, 32)
    made = teacher(mirror="sum")
    resized = F.interpolate((image - 0.5) / 0.5, (48, 64), mode="bilinear", align_corners=True)
    square = torch.full((1, 3, 64, 64), -1.0)
    square[:, :, :48] = resized
    expected = made.network(square) + made.network(square.flip(3)).flip(3)
    torch.testing.assert_close(made(image[0])[0], expected[0, :, :24, :32], atol=1e-5, rtol=0)


def test_an_image_lies_in_the_upper_left_of_a_black_square(toy):
    made = toy(LONG_SIDE)
    made(torch.ones(3, 16, 32))
    assert made.network.shown.shape == (1, 3, 64, 64)
    torch.testing.assert_close(made.network.shown[:, :, :32], torch.ones(1, 3, 32, 64))
    assert (made.network.shown[:, :, 32:] == -1).all()
    made(torch.ones(3, 32, 16))
    torch.testing.assert_close(made.network.shown[..., :32], torch.ones(1, 3, 64, 32))
    assert (made.network.shown[:, :, :, 32:] == -1).all()


@pytest.mark.parametrize(
    ("height", "width", "long_side", "rows", "columns"),
    [(240, 320, 640, 240, 320), (512, 640, 1280, 512, 640), (480, 640, 640, 240, 320), (1, 200, 640, 2, 320)],
)
def test_a_cell_covers_two_by_two_pixels(toy, height, width, long_side, rows, columns):
    (features,) = toy(long_side)(torch.ones(3, height, width))
    assert features.shape == (512, rows, columns)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (217, 333), (333, 217), (97, 101), (480, 640)])
def test_a_landmark_is_found_where_fusion_looks_for_it(toy, height, width):
    # A map covers the whole image: pixel x is at (x + 0.5) w / W - 0.5 of it. A landmark is a bump of 5 pixels' width.
    made = toy(320)
    for x, y in [(12.0, 15.0), (width - 14.0, 13.0), (14.0, height - 13.0), (width - 13.0, height - 15.0)]:
        column, row = torch.meshgrid(torch.arange(float(width)), torch.arange(float(height)), indexing="xy")
        bump = torch.exp(-((column - x) ** 2 + (row - y) ** 2) / (2 * 2.5**2))
        (features,) = made(bump.repeat(3, 1, 1))
        mass = (features[0] + 1).double()
        rows, columns = mass.shape
        found_x = (mass.sum(dim=0) * torch.arange(columns)).sum() / mass.sum()
        found_y = (mass.sum(dim=1) * torch.arange(rows)).sum() / mass.sum()
        assert abs(found_x - ((x + 0.5) * columns / width - 0.5)) < 0.5
        assert abs(found_y - ((y + 0.5) * rows / height - 0.5)) < 0.5


def test_the_command_line_knows_it_by_name_and_where_it_lies(checkpoint, monkeypatch, tmp_path):
    given = load_teacher(f"lseg={checkpoint}")
    assert isinstance(given, Teacher)
    assert (given.name, given.num_channels, given.text) == ("lseg", 512, f"lseg:{checkpoint}")
    assert given.weights_sha256 == sha256_of(checkpoint)
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="weights fetch lseg"):
        load_teacher("lseg")
    (tmp_path / "weights" / "lseg").mkdir(parents=True)
    (tmp_path / "weights" / "lseg" / "demo_e200.ckpt").write_bytes(checkpoint.read_bytes())
    assert load_teacher("lseg").text == "lseg"


def test_an_impossible_size_says_what_is_possible(teacher):
    with pytest.raises(ValueError, match=r"multiple of 32 pixels; got 600"):
        teacher(long_side=600)


def test_a_cut_off_checkpoint_is_named(checkpoint, tmp_path):
    whole = checkpoint.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 10):
        (tmp_path / "cut.ckpt").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.ckpt: not a PyTorch checkpoint, or only a part of one"):
            load_lseg(tmp_path / "cut.ckpt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(ValueError, match=r"cut\.safetensors: not a safetensors file, or only a part of one"):
        load_lseg(tmp_path / "cut.safetensors")


def test_something_else_is_named(tensors, tmp_path):
    (tmp_path / "notes.ckpt").write_text("This is not a checkpoint.")
    with pytest.raises(ValueError, match=r"notes\.ckpt: not a PyTorch checkpoint"):
        load_lseg(tmp_path / "notes.ckpt")
    with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt is not there"):
        load_lseg(tmp_path / "nothing.ckpt")
    with pytest.raises(FileNotFoundError, match="is a folder; LSeg needs the file"):
        load_lseg(tmp_path)
    for content in ([1, 2], {"state_dict": 3}, {"net.conv.weight": torch.ones(1)}):
        torch.save(content, tmp_path / "other.ckpt")
        with pytest.raises(ValueError, match=r"other\.ckpt holds another model.*pos_embed.*are missing"):
            load_lseg(tmp_path / "other.ckpt")
    save_published(
        tmp_path / "less.ckpt", {k: v for k, v in tensors.items() if k != "scratch.refinenet2.out_conv.bias"}
    )
    with pytest.raises(
        ValueError, match=r"less\.ckpt holds another model.*missing scratch\.refinenet2\.out_conv\.bias"
    ):
        load_lseg(tmp_path / "less.ckpt")


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_code_in_a_checkpoint_is_refused_and_never_run(tensors, tmp_path):
    evil = {"state_dict": tensors, "callbacks": Evil(tmp_path / "made")}
    torch.save(evil, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil\.ckpt: refused, because .* may run code \(it names \w+\.mkdir\)"):
        load_lseg(tmp_path / "evil.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(evil["callbacks"], protocol=2))
    torch.save(evil, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    for name in ("plain.ckpt", "old.ckpt"):
        with pytest.raises(ValueError, match=rf"{name}: (refused, because .* may run code|not a PyTorch checkpoint)"):
            load_lseg(tmp_path / name)
    assert not (tmp_path / "made").exists()
