import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from cuao3d.errors import InputError
from cuao3d.teachers import TEACHERS, card_of, load_teacher
from cuao3d.teachers.mini import WEIGHTS, Denoiser, MiniLSeg, Segmenter
from cuao3d.worlds.rooms import TEACHER_SEEDS


@pytest.fixture(scope="module", params=[name for name in sorted(TEACHERS) if name.startswith("mini-")])
def teacher(request):
    return load_teacher(request.param)


def image(height=240, width=320):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


def maps(teacher, picture):
    described = teacher(picture)
    return (described,) if isinstance(described, torch.Tensor) else described


def test_maps_are_small_finite_and_as_wide_as_promised(teacher):
    described = maps(teacher, image())
    assert sum(len(one) for one in described) == teacher.num_channels
    for one in described:
        assert one.shape[1:] in {(15, 20), (30, 40), (60, 80)}
        assert torch.isfinite(one).all()


def test_the_same_image_gives_the_same_features_however_many_came_before(teacher):
    first = maps(teacher, image())
    maps(teacher, image().flip(2))
    assert all(torch.equal(a, b) for a, b in zip(first, maps(teacher, image()), strict=True))


def test_any_image_size_is_taken(teacher):
    assert maps(teacher, image(480, 640))[0].shape == maps(teacher, image())[0].shape


PINNED = {
    "mini-lseg": [
        {119: -0.1538, 248: 0.1510, 359: 0.1399},
    ],
    "mini-vit": [
        {99: 3.4232, 143: 2.9852, 106: -2.4597},
    ],
    "mini-dino": [
        {137: 3.3272, 8: 3.2351, 86: -2.5010},
    ],
    "mini-diffusion": [
        {37: 16.2637, 38: 16.0271, 41: 14.0682},
        {42: 2.1388, 3: 1.7416, 32: 0.3727},
        {36: 1.2683, 5: 1.2387, 20: 1.2156},
    ],
}
"""Some channels of each map a third from the top and a quarter from the left, as the weights were trained."""


def test_an_image_is_seen_as_it_was_in_training(teacher):
    # Of every 4 x 4 pixels the mean counts, and is exact in single precision: the diffusion's noise follows from it.
    row, column = torch.meshgrid(torch.arange(120), torch.arange(160), indexing="ij")
    blocks = torch.stack([column % 33, row % 29, (column + row) % 31]) / 64
    stripes = torch.tensor([0.0, 0.5, 0.0, 0.0]).repeat(160)
    described = maps(teacher, blocks.repeat_interleave(4, 1).repeat_interleave(4, 2) + stripes)
    for one, pinned in zip(described, PINNED[teacher.name], strict=True):
        found = one[list(pinned), one.shape[1] // 3, one.shape[2] // 4]
        torch.testing.assert_close(found, torch.tensor(list(pinned.values())), rtol=0.01, atol=0)


def test_features_look_at_the_image(teacher):
    one, other = maps(teacher, image())[0], maps(teacher, 1 - image())[0]
    assert (one - other).abs().mean() > 1e-3 * one.abs().mean()


def test_the_card_belongs_to_the_weights(teacher):
    path = WEIGHTS / f"{teacher.name.replace('-', '_')}.safetensors"
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["teacher"] == teacher.name
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() == teacher.weights_sha256
    assert str(TEACHER_SEEDS) in card["data"]
    assert {"objective", "seed", "commands", "seconds", "metrics_on_unseen_rooms"} <= set(card)


def test_the_weights_fit_in_the_wheel():
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors")) <= 25e6


def test_only_the_segmenter_understands_words_and_its_vectors_are_units():
    assert [name for name in TEACHERS if name.startswith("mini-") and load_teacher(name).text] == ["mini-lseg"]
    norms = load_teacher("mini-lseg")(image()).norm(dim=0)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)


def test_adding_no_noise_leaves_an_image_alone_and_the_last_step_drowns_it():
    network, clean = Denoiser(), torch.rand(2, 3, 8, 8)
    noise = torch.randn(2, 3, 8, 8).clamp(-3, 3)
    start, end = torch.tensor([0, 0]), torch.tensor([999, 999])
    assert torch.allclose(network.add_noise(clean, noise, start), clean, atol=0.05)
    assert torch.allclose(network.add_noise(clean, noise, end), noise, atol=0.05)
    signal = network.signal(torch.arange(0, 1000, 50))[:, 0, 0, 0]
    assert (signal.diff() < 0).all()


def test_a_batch_gives_what_each_image_gives_alone(teacher):
    pictures = torch.stack([image(), 1 - image(), image().flip(2)])
    together = teacher.batch(pictures)
    assert [tuple(one.shape[1:]) for one in together] == [tuple(one.shape) for one in maps(teacher, image())]
    for index, picture in enumerate(pictures):
        assert all(torch.equal(one[index], alone) for one, alone in zip(together, maps(teacher, picture), strict=True))
    assert [level.channels for level in teacher.levels] == [one.shape[1] for one in together]
    assert [160 / level.stride for level in teacher.levels] == [one.shape[3] for one in together]


@pytest.mark.parametrize("name", [name for name in TEACHERS if name.startswith("mini-")])
def test_half_the_bits_are_computed_in_recorded_and_close(name):
    full, half = load_teacher(name), load_teacher(name, precision="bf16")
    assert card_of(full).options == {}
    assert card_of(half).options == {"precision": "bf16"}
    for one, other in zip(maps(full, image()), maps(half, image()), strict=True):
        assert other.dtype == torch.float32
        assert 0 < (one - other).norm() < 0.05 * one.norm()


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(InputError, match="--precision fp16 is for a GPU"):
        load_teacher("mini-lseg", precision="fp16")


def test_a_device_is_where_a_teacher_runs(teacher):
    moved = load_teacher(teacher.name, device="meta")
    assert {parameter.device.type for parameter in moved.network.parameters()} == {"meta"}


def test_wrong_names_and_files_are_told():
    with pytest.raises(ValueError, match="mini-dino"):
        load_teacher("mini-dinno")


def test_missing_weights_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        MiniLSeg(tmp_path / "none.safetensors")


def test_weights_from_elsewhere_are_read(tmp_path):
    save_file({**Segmenter().state_dict(), "text_mean": torch.zeros(384)}, tmp_path / "own.safetensors")
    assert MiniLSeg(tmp_path / "own.safetensors")(image()).shape == (384, 60, 80)
