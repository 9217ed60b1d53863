"""LSeg's image side against the official network, and what it says of tensors that are not its own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cuao3d.teachers.lseg import LSeg
from golden.deterministic_state import tensor

GOLDEN = Path(__file__).parent / "golden"
SMALL = {"num_heads": 4, "hooks": (0, 1, 2, 3)}


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    shapes = json.loads((GOLDEN / "lseg_small_state_shapes.json").read_text())
    return {name: torch.from_numpy(tensor(name, tuple(shape))) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "lseg_small.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def test_features_equal_the_official_network(official, golden):
    network = LSeg.from_official(official, **SMALL)
    features = network(golden["image"])
    assert features.shape == (1, 512, 48, 64)
    assert torch.allclose(features.norm(dim=1), torch.ones(1, 48, 64))
    assert (features[:, ::8] - golden["features_every_8th_channel"]).abs().max() < 1e-5


def test_the_last_block_equals_the_official_one(official, golden):
    transformer = LSeg.from_official(official, **SMALL).pretrained["model"]
    (read,) = transformer(golden["image"], hooks=(3,))
    patches, of_class = read.chunk(2, dim=2)
    tokens = torch.cat([of_class[:, :1], patches], dim=1)
    assert (tokens - golden["block_4"]).abs().max() < 1e-5


@pytest.mark.parametrize(("height", "width"), [(32, 64), (96, 32), (160, 96)])
def test_any_size_that_fits_is_described_at_half_of_it(official, height, width):
    features = LSeg.from_official(official, **SMALL)(torch.rand(2, 3, height, width) * 2 - 1)
    assert features.shape == (2, 512, height // 2, width // 2)


def test_other_sizes_say_what_to_do(official):
    with pytest.raises(ValueError, match=r"multiples of 32 pixels; got 100 x 64\. Pad"):
        LSeg.from_official(official, **SMALL)(torch.zeros(1, 3, 64, 100))


def test_full_size_takes_every_official_tensor(official):
    # ViT-L/16 at 384 x 384, as in demo_e200.ckpt: 24 blocks of width 1024, readings of 256, 512, 1024, 1024 channels.
    sizes = {64: 1024, 128: 2048, 192: 3072, 17: 577, 10: 1000}
    with torch.device("meta"):
        tensors = {}
        for name, like in official.items():
            shape = list(like.shape)
            if ".pretrained.model." in name and ".patch_embed." not in name:
                shape = [{256: 4096}.get(size, sizes.get(size, size)) for size in shape]
            elif ".patch_embed." in name:
                shape[0] = 1024
            elif "act_postprocess" in name:
                channels = {1: 256, 2: 512, 3: 1024, 4: 1024}[int(name.split("act_postprocess")[1][0])]
                shape = _of_reading(name, channels, shape)
            elif "_rn." in name:
                shape = [256, {1: 256, 2: 512, 3: 1024, 4: 1024}[int(name.split("layer")[1][0])], 3, 3]
            else:
                shape = [{32: 256}.get(size, size) for size in shape]
            tensors[name] = torch.empty(shape)
        blocks = {name: like for name, like in tensors.items() if ".blocks.0." in name}
        for index in range(4, 24):
            tensors |= {name.replace(".blocks.0.", f".blocks.{index}."): like for name, like in blocks.items()}
        network = LSeg.from_official(tensors)
        features = network(torch.empty(1, 3, 480, 640))
    assert features.shape == (1, 512, 240, 320)
    assert sum(p.numel() for p in network.pretrained["model"].parameters()) == pytest.approx(304e6, rel=0.01)


def _of_reading(name: str, channels: int, shape: list[int]) -> list[int]:
    match name.split(".")[-2]:
        case "0":
            return [1024, 2048] if len(shape) == 2 else [1024]
        case "3":
            return [channels, 1024, 1, 1] if len(shape) == 4 else [channels]
        case _:
            return [channels, channels, *shape[2:]] if len(shape) == 4 else [channels]


def test_tensors_of_something_else_are_named(official):
    with pytest.raises(ValueError, match=r"not the tensors of LSeg: .*pos_embed.* are missing"):
        LSeg.from_official({"net3d.conv0p1s1.kernel": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"cannot be read after block 23"):
        LSeg.from_official(official, num_heads=4)
    broken = {name: value for name, value in official.items() if name != "net.scratch.head1.bias"}
    broken["net.scratch.refinenet1.out_conv.bias"] = torch.zeros(5)
    broken["net.scratch.extra"] = torch.zeros(2)
    with pytest.raises(
        ValueError, match=r"missing scratch.head1.bias \(512,\).*extra scratch.extra \(2,\).*is \(5,\), not"
    ):
        LSeg.from_official(broken, **SMALL)
