"""Facts about features in few bytes: bases, 8 bits, maps that are projected before they are lifted."""

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from cuao3d import pipeline
from cuao3d.cli import main
from cuao3d.codecs import Basis, Codec, Coded, Projection, Quantised
from cuao3d.errors import InputError
from cuao3d.files import write_tensors
from cuao3d.fusion import lift, lift_measured, sample_cells, see
from cuao3d.objective import Compressed, RowMeans, row_means, table_of, teacher_loss
from cuao3d.pipeline import fusing
from cuao3d.readers.sevenscenes import write_capture
from cuao3d.store import Store, TeacherCard
from cuao3d.worlds.rooms import make_room

WIDTH = 8


class Mixed:
    """Toy teacher of two maps of unlike size, 5 and 3 channels, that hold four mixtures of colours, shifted."""

    name = "mixed"
    num_channels = WIDTH
    text = None

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(1)
        self._mixing = torch.randn(WIDTH, 3, generator=random)

    def __call__(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fine, coarse = functional.avg_pool2d(image, 4), functional.avg_pool2d(image, 8)
        mixed = [torch.einsum("cd,dhw->chw", self._mixing, one) for one in (fine, coarse)]
        noise = torch.sin(40 * mixed[1])
        return mixed[0][:5] + 1, mixed[1][5:] + 0.3 * noise[:3] + 2


@pytest.fixture
def seen(synthetic_scene):
    samples = sample_cells(synthetic_scene.points, 0.05)
    return synthetic_scene, samples, see(synthetic_scene, samples)


class Scenes:
    """Some scenes as a dataset."""

    def __init__(self, *scenes) -> None:
        self.scenes, self.names = scenes, tuple(scene.name for scene in scenes)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int):
        return self.scenes[index]


@pytest.mark.parametrize("text", ["fp16", "int8", "pca:1", "pca:256", "pca:256+int8"])
def test_a_codec_is_written_as_it_is_typed(text):
    assert str(Codec.parse(text)) == text


@pytest.mark.parametrize("text", ["", "fp32", "pca", "pca:", "pca:-3", "pca:2.5", "int8+pca:3", "PCA:3", "pca:3+fp16"])
def test_what_is_no_codec_is_refused_with_those_that_are(text):
    with pytest.raises(InputError, match=r"is no codec: there is none of this name; choose from fp16, int8, pca:K"):
        Codec.parse(text)


@pytest.mark.parametrize("text", ["pca:0", "pca:0+int8", "pca:000"])
def test_a_basis_has_a_direction(text):
    with pytest.raises(InputError, match="a basis needs one direction at least"):
        Codec.parse(text)


def test_a_teacher_of_no_more_channels_than_directions_has_no_basis():
    assert [Codec(8).rank_of(width) for width in (7, 8, 9)] == [None, None, 8]
    assert Codec(None, True).rank_of(100) is None


def test_features_on_a_line_need_one_direction():
    along = torch.tensor([-3.0, -1, 2, 5])[:, None] * torch.tensor([[0.6, 0.0, 0.8]]) + torch.tensor([1.0, 7.0, 2.0])
    basis = Basis.fit([along[:2], along[2:]], rank=1)
    torch.testing.assert_close(basis.vectors, torch.tensor([[0.6, 0.0, 0.8]]))
    torch.testing.assert_close(Coded.of(along, Codec(1), basis)[:].float(), along, atol=5e-3, rtol=0)


def test_the_basis_weighs_features_by_direction_not_by_length():
    # Two long features differ along x, many short ones along y: cosines are lost by dropping y, lengths by dropping x.
    long = 100 * torch.tensor([[1.0, 0.0, 10.0], [-1.0, 0.0, 10.0]])
    short = torch.tensor([[0.0, 1.0, 1.0], [0.0, -1.0, 1.0]]).repeat(20, 1)
    basis = Basis.fit([torch.cat([long, short])], rank=1)
    assert basis.vectors[0].abs().argmax() == 1


def test_features_of_zeros_alone_give_no_basis():
    with pytest.raises(InputError, match="no features to fit"):
        Basis.fit([torch.zeros(5, 3)], rank=1)
    with pytest.raises(InputError, match="no features to fit"):
        Basis.fit([], rank=1)


@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), min_size=1, max_size=5))
def test_8_bits_are_off_by_half_a_step_at_most(rows):
    exact = torch.tensor(rows)
    kept = Quantised.of(exact)
    half_a_step = exact.abs().amax(dim=1, keepdim=True) / 127 / 2
    assert bool(((kept[:] - exact).abs() <= half_a_step * 1.001 + 1e-37).all())
    assert kept.shape == (len(rows), 3)
    assert torch.equal(kept[torch.tensor([len(rows) - 1])], kept[:][-1:])


def test_a_cosine_error_by_hand():
    # The second feature turns by 60 degrees: 1 - cos is a half; that of zeros is left out.
    exact = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    kept = Coded(torch.tensor([[2.0, 0.0], [0.5, 0.75**0.5], [1.0, 1.0]]))
    assert kept.cosine_error(exact) == 0.25
    assert kept.cosine_error(exact[1:2], torch.tensor([1])) == 0.5
    assert kept.cosine_error(exact[2:], torch.tensor([2])) is None


def test_projected_maps_lift_to_the_codes_of_lifted_features(seen):
    scene, _, visibility = seen
    exact = lift(scene, visibility, Mixed())
    basis = Basis.fit([exact], rank=3)
    through = Projection(basis)
    lifted = lift_measured(scene, visibility, Mixed(), through=through, num_exact=5)
    assert lifted.features.shape == (len(exact), through.width)
    torch.testing.assert_close(through.codes(lifted.features), basis.codes(exact), atol=2e-5, rtol=1e-4)
    rows, some = lifted.exact
    assert rows[0] == 0
    assert rows[-1] == len(exact) - 1
    torch.testing.assert_close(some, exact[rows], atol=1e-5, rtol=0)


def test_disagreement_through_a_basis_is_that_of_the_decoded_features(seen):
    scene, _, visibility = seen
    teacher = Mixed()
    basis = Basis.fit([lift(scene, visibility, teacher)], rank=3)

    class Decoded:
        """What the basis leaves of the teacher, as one map as fine as the finest."""

        name, num_channels = "decoded", WIDTH

        def __call__(self, image):
            fine, coarse = teacher(image)
            maps = torch.cat([fine, coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)])
            rows = maps.flatten(1).T
            return (basis.codes(rows) @ basis.vectors + basis.mean).T.reshape(maps.shape)

    class Blocks:
        """The teacher with its coarse map as fine as the fine one."""

        name, num_channels = "blocks", WIDTH

        def __call__(self, image):
            fine, coarse = teacher(image)
            return fine, coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)

    want = lift_measured(scene, visibility, Decoded())
    got = lift_measured(scene, visibility, Blocks(), through=Projection(basis))
    torch.testing.assert_close(got.disagreement, want.disagreement, atol=1e-5, rtol=1e-4, equal_nan=True)
    assert got.agreement == pytest.approx(want.agreement, abs=1e-4)
    assert float(want.disagreement.nan_to_num().max()) > 1e-3


def test_lengths_of_maps_of_unlike_size_are_those_of_their_sum(seen):
    scene, _, visibility = seen
    basis = Basis.fit([lift(scene, visibility, Mixed())], rank=WIDTH - 1)
    got = lift_measured(scene, visibility, Mixed(), through=Projection(basis)).disagreement
    want = lift_measured(scene, visibility, Mixed()).disagreement  # nearly nothing is left out
    torch.testing.assert_close(got, want, atol=2e-3, rtol=0.02, equal_nan=True)


@pytest.mark.parametrize("text", ["int8", "pca:3", "pca:3+int8"])
def test_a_store_gives_back_what_its_codec_keeps(synthetic_scene, tmp_path, text):
    store = pipeline.fuse(Scenes(synthetic_scene), [Mixed()], tmp_path / "store", cell=0.05, codec=text)
    plain = pipeline.fuse(Scenes(synthetic_scene), [Mixed()], tmp_path / "plain", cell=0.05)
    scene, exact = Store.open(store.path)["synthetic"], plain["synthetic"].features("mixed").float()
    kept = scene.features("mixed")
    assert (kept.shape, kept.dtype) == (exact.shape, torch.float16)
    manifest = json.loads((scene.folder / "manifest.json").read_text())
    told = manifest["codecs"]["mixed"]["cosine_error"]
    error = float(1 - functional.cosine_similarity(kept.float(), exact).mean())
    assert told == pytest.approx(error, rel=0.3, abs=3e-6)
    assert error < (1e-4 if text == "int8" else 0.02)
    rows = torch.tensor([3, 0, 7])
    torch.testing.assert_close(scene.rows("mixed", rows), kept[rows].float(), atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(
        scene.disagreement("mixed"), plain["synthetic"].disagreement("mixed"), atol=0.01, rtol=0, equal_nan=True
    )
    sizes = [one["synthetic"].files["mixed.features.safetensors"]["bytes"] for one in (plain, store)]
    assert sizes[1] < sizes[0]


def test_rows_are_read_without_the_rest(synthetic_scene, tmp_path):
    store = pipeline.fuse(Scenes(synthetic_scene), [Mixed()], tmp_path, cell=0.05, codec="int8")
    before = store["synthetic"].rows("mixed", torch.tensor([0]))
    path = store["synthetic"].folder / "mixed.features.safetensors"
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    begin = 8 + length + json.loads(content[8 : 8 + length])["features"]["data_offsets"][0]
    content[begin + WIDTH] ^= 1  # in the second row
    path.write_bytes(content)
    assert torch.equal(store["synthetic"].rows("mixed", torch.tensor([0])), before)
    with pytest.raises(InputError, match="is damaged: its SHA-256"):
        store["synthetic"].features("mixed")
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match="is damaged: it has"):
        store["synthetic"]


def contents(folder: Path) -> dict[str, bytes]:
    named = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes() for name, path in named.items() if path.name not in ("lifting.json", "sources.json")
    }


def test_a_fuse_that_stopped_goes_on_to_the_same_bytes(synthetic_scene, tmp_path):
    data = Scenes(
        synthetic_scene,
        replace(
            synthetic_scene,
            name="other",
            points=synthetic_scene.points[40:],
            colors=synthetic_scene.colors[40:],
            labels=synthetic_scene.labels[40:],
        ),
    )
    how = {"cell": 0.05, "codec": "pca:3+int8"}
    whole = pipeline.fuse(data, [Mixed()], tmp_path / "whole", **how)

    class Stops(Mixed):
        calls = 0

        def __call__(self, image):
            Stops.calls += 1
            if Stops.calls > at:
                raise KeyboardInterrupt
            return super().__call__(image)

    for at in (1, 5):  # while the basis is fitted, and after it
        Stops.calls = 0
        Stops.__name__ = "Mixed"
        with pytest.raises(KeyboardInterrupt):
            pipeline.fuse(data, [Stops()], tmp_path / f"part{at}", **how)
        pipeline.fuse(data, [Mixed()], tmp_path / f"part{at}", **how)
        assert contents(tmp_path / f"part{at}") == contents(whole.path)


@pytest.mark.slow
def test_the_number_of_workers_makes_no_difference(tmp_path):
    for seed in (0, 1):
        write_capture(make_room(seed, num_views=2), tmp_path / "data" / f"room-{seed}")
    how = ["--teachers", "mini-diffusion", "--cell", "0.1", "--codec", "pca:16+int8"]
    for workers in ("1", "2"):
        words = ["fuse", str(tmp_path / "data"), "--out", str(tmp_path / workers), *how, "--workers", workers]
        assert main(words) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_codec_is_settled_when_the_store_is_made(synthetic_scene, tmp_path):
    data, out = Scenes(synthetic_scene), tmp_path / "store"
    pipeline.fuse(data, [Mixed()], out, cell=0.05, codec="int8")
    assert pipeline.fuse(data, [Mixed()], out, cell=0.05).codec == Codec(None, True)
    for other in ("fp16", "pca:3"):
        with pytest.raises(InputError, match=f'its codec is "int8", not "{other}"'):
            pipeline.fuse(data, [Mixed()], out, cell=0.05, codec=other)
    header = json.loads((out / "store.json").read_text())
    assert (header["format_version"], header["codec"]) == (2, "int8")
    pipeline.fuse(data, [Mixed()], tmp_path / "plain", cell=0.05)
    assert json.loads((tmp_path / "plain" / "store.json").read_text())["format_version"] == 1


def rewrite(path: Path, **changes) -> None:
    content = json.loads(path.read_text())
    content.pop("sha256")
    path.write_text(json.dumps(content | changes))


def test_a_basis_that_does_not_fit_is_refused_and_fuse_makes_it_again(synthetic_scene, tmp_path):
    data, out = Scenes(synthetic_scene), tmp_path / "store"
    store = pipeline.fuse(data, [Mixed()], out, cell=0.05, codec="pca:3")
    (path,), whole = (out / "bases").iterdir(), contents(out)
    vectors, mean = store.basis("mixed").vectors, store.basis("mixed").mean
    for tensors, message in (
        ({"vectors": vectors.flip(0), "mean": mean}, "does not fit: its SHA-256 is not the one"),
        ({"vectors": vectors[:2], "mean": mean}, r"does not fit: it is \(2, 8\) .* expected \(3, 8\)"),
        ({"vectors": vectors, "mean": mean[:5]}, r"does not fit: it is \(3, 8\) with a mean of \(5,\)"),
        ({"vectors": vectors}, "is damaged"),
    ):
        write_tensors(path, tensors)
        with pytest.raises(InputError, match=message) as told:
            Store.open(out)["synthetic"].features("mixed")
        assert str(path) in str(told.value)
        assert "\n" not in str(told.value)
    path.unlink()
    with pytest.raises(InputError, match=r"the basis of the features of mixed, is missing; run the same `cuao3d fuse`"):
        Store.open(out)["synthetic"].features("mixed")
    pipeline.fuse(data, [Mixed()], out, cell=0.05)
    assert contents(out) == whole


def test_scenes_of_another_basis_are_lifted_again(synthetic_scene, tmp_path):
    pipeline.fuse(Scenes(synthetic_scene), [Mixed()], tmp_path, cell=0.05, codec="pca:3")
    rewrite(tmp_path / "store.json", bases={})
    next((tmp_path / "bases").iterdir()).unlink()
    other = replace(synthetic_scene, name="other", points=synthetic_scene.points[200:], colors=None, labels=None)
    store = pipeline.fuse(Scenes(synthetic_scene, other), [Mixed()], tmp_path, cell=0.05)
    assert store.names() == ("other", "synthetic")
    told = json.loads((store["synthetic"].folder / "manifest.json").read_text())["codecs"]["mixed"]
    assert told["basis_sha256"] == store.basis("mixed").sha256


def test_a_fuse_that_stops_before_it_states_a_new_basis_leaves_the_old_one(synthetic_scene, tmp_path, monkeypatch):
    class Louder(Mixed):
        def __call__(self, image):
            return tuple(one * one + 1 for one in super().__call__(image))

    data, how = Scenes(synthetic_scene), {"cell": 0.05, "codec": "pca:3"}
    before = pipeline.fuse(data, [Mixed()], tmp_path, **how)["synthetic"].features("mixed").clone()
    with monkeypatch.context() as patched:
        patched.setattr(fusing, "_plan", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pipeline.fuse(data, [Louder()], tmp_path, **how)
    assert len(list((tmp_path / "bases").iterdir())) == 2
    assert torch.equal(Store.open(tmp_path)["synthetic"].features("mixed"), before)
    pipeline.fuse(data, [Louder()], tmp_path, **how)
    assert len(list((tmp_path / "bases").iterdir())) == 1


@pytest.mark.parametrize("text", ["int8", "pca:3"])
def test_a_store_whose_header_is_damaged_stays_in_its_codec(synthetic_scene, tmp_path, text, capsys):
    data = Scenes(synthetic_scene)
    store = pipeline.fuse(data, [Mixed()], tmp_path, cell=0.05, codec=text)
    whole = contents(tmp_path)
    (tmp_path / "store.json").write_text("{")
    pipeline.fuse(data, [Mixed()], tmp_path, cell=0.05)
    assert contents(tmp_path) == whole
    assert "1 scene was there already" in capsys.readouterr().err
    (tmp_path / "store.json").write_text("{")
    pipeline.fuse(data, [Mixed()], tmp_path, cell=0.05, codec="fp16")
    assert "synthetic (features of mixed were kept by another codec or basis)" in capsys.readouterr().err
    assert store.codec == Codec.parse(text)


def test_a_store_of_bases_alone_whose_header_is_damaged_asks_for_its_codec(synthetic_scene, tmp_path):
    data = Scenes(synthetic_scene)
    store = pipeline.fuse(data, [Mixed()], tmp_path, cell=0.05, codec="pca:3")
    (store["synthetic"].folder / "manifest.json").unlink()
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(InputError, match=r"store\.json is damaged, and no scene says .* Say it: --codec"):
        pipeline.fuse(data, [Mixed()], tmp_path, cell=0.05)
    pipeline.fuse(data, [Mixed()], tmp_path, cell=0.05, codec="pca:3")
    assert Store.open(tmp_path).names() == ("synthetic",)


def test_fuse_removes_the_basis_of_a_teacher_that_is_dropped(synthetic_scene, tmp_path):
    class Other(Mixed):
        name = "other"

    data = Scenes(synthetic_scene)
    pipeline.fuse(data, [Mixed(), Other()], tmp_path / "a", cell=0.05, codec="pca:3")
    pipeline.fuse(data, [Mixed()], tmp_path / "a", cell=0.05)
    pipeline.fuse(data, [Mixed()], tmp_path / "b", cell=0.05, codec="pca:3")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_scene_of_another_basis_or_codec_is_refused(synthetic_scene, tmp_path):
    store = pipeline.fuse(Scenes(synthetic_scene), [Mixed()], tmp_path, cell=0.05, codec="pca:3")
    (tmp_path / "scenes.json").unlink()
    folder = store["synthetic"].folder
    rewrite(folder / "manifest.json", codecs={"mixed": {"codec": "pca:3", "basis_sha256": "0", "cosine_error": 0.0}})
    with pytest.raises(InputError, match="kept by another codec or basis"):
        Store.open(tmp_path)["synthetic"]
    rewrite(tmp_path / "store.json", codec="zip")
    with pytest.raises(InputError, match=r"store.json: 'zip' is no codec"):
        Store.open(tmp_path)


@pytest.mark.parametrize("kind", ["cosine", "demeaned-cosine", "l2", "l1"])
@pytest.mark.parametrize("text", ["int8", "pca:3", "pca:3+int8"])
def test_losses_of_coded_targets_are_those_of_decoded_ones(kind, text):
    codec, features = Codec.parse(text), torch.randn(30, WIDTH) + 1
    basis = Basis.fit([features], 3) if codec.rank else None
    coded = Coded.of(features, codec, basis)
    rows, offsets = torch.randint(30, (12,)), torch.tensor([0, 2, 3, 7])
    targets = row_means(table_of(coded), rows, offsets)
    assert isinstance(targets, Compressed if codec.rank else RowMeans)
    plain = RowMeans(coded[:].float(), rows, offsets)
    hidden, weight = torch.randn(4, 5), torch.randn(5, WIDTH)
    near = {"atol": 1e-5, "rtol": 1e-5} if codec.quantised else {"atol": 1e-3, "rtol": 1e-3}  # means in 16 bits
    torch.testing.assert_close(targets[:].float(), plain[:], **near)
    got, want = (teacher_loss(hidden, weight, one, kind) for one in (targets, plain))
    torch.testing.assert_close(got, want, **near)


def test_features_and_codes_are_told_apart_by_their_width(synthetic_scene, tmp_path):
    store = Store.create(tmp_path, cell=0.05, teachers={"color": TeacherCard(3)}, codec=Codec(2))
    samples = sample_cells(synthetic_scene.points, 0.05)
    visibility = see(synthetic_scene, samples)
    rows = torch.rand(len(visibility.seen_samples), 3)
    store.keep_basis("color", Basis.fit([rows], 2))
    store.add_scene(synthetic_scene, samples, visibility, {"color": rows})
    first = store["synthetic"].features("color")
    codes = store.basis("color").codes(rows)
    store.add_scene(synthetic_scene, samples, visibility, {"color": codes}, errors={"color": 0.5})
    torch.testing.assert_close(store["synthetic"].features("color"), first, atol=1e-3, rtol=1e-3)
    with pytest.raises(InputError, match=r"expected \(\d+, 3\) features, got \(\d+, 1\)"):
        store.add_scene(synthetic_scene, samples, visibility, {"color": rows[:, :1]})
