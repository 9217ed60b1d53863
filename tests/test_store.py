"""Facts about what survives on disk."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import ColorTeacher
from cuao3d import seals
from cuao3d.durable import LOCK, PREFIX, SUFFIX
from cuao3d.errors import InputError
from cuao3d.files import sha256_of, write_tensors
from cuao3d.fusion import Visibility, lift, sample_cells, see
from cuao3d.scene import Problem
from cuao3d.store import Store, TeacherCard, roll
from cuao3d.store.roll import Entry, read_roll, write_roll

CARD = {"color": TeacherCard(num_channels=3)}
LOST = Problem("pose", "a frame is lost")


def add(store, scene):
    samples = sample_cells(scene.points, store.cell)
    visibility = see(scene, samples)
    features = {"color": lift(scene, visibility, ColorTeacher())} if store.teachers else {}
    store.add_scene(scene, samples, visibility, features)
    return samples, visibility, features


def test_what_is_written_is_read(synthetic_scene, tmp_path):
    scene = replace(synthetic_scene, split="val", problems=(LOST,), normals=synthetic_scene.points / 4)
    store = Store.create(tmp_path, cell=0.05, teachers=CARD)
    samples, visibility, features = add(store, scene)
    read = Store.open(tmp_path)["synthetic"]
    assert (read.split, read.label_set, read.problems) == ("val", "scannet20", (LOST,))
    for name in ("points", "labels"):
        assert torch.equal(getattr(read, name), getattr(scene, name))
    torch.testing.assert_close(read.colors, scene.colors, atol=0.5 / 255, rtol=0)
    torch.testing.assert_close(read.normals, scene.normals, atol=1e-3, rtol=1e-3)
    assert torch.equal(read.index_of_sample, samples.index_of_sample)
    assert torch.equal(read.sample_of_point, samples.sample_of_point)
    assert torch.equal(read.num_views, visibility.num_views)
    assert torch.equal(read.seen_samples, visibility.seen_samples)
    assert torch.equal(read.sample_points, scene.points[samples.index_of_sample])
    assert torch.equal(read.features("color"), features["color"].half())
    assert read.features("color") is read.features("color")


def test_disagreement_is_kept_in_two_bytes_beside_the_features_and_older_stores_have_none(synthetic_scene, tmp_path):
    scene = synthetic_scene
    samples = sample_cells(scene.points, 0.05)
    visibility = see(scene, samples)
    features = {"color": lift(scene, visibility, ColorTeacher())}
    apart = torch.linspace(0, 1, len(visibility.seen_samples))
    apart[0] = torch.nan
    old, new = (Store.create(tmp_path / name, cell=0.05, teachers=CARD) for name in ("old", "new"))
    old.add_scene(scene, samples, visibility, features)
    new.add_scene(scene, samples, visibility, features, disagreement={"color": apart})
    assert old["synthetic"].disagreement("color") is None
    found = new["synthetic"].disagreement("color")
    torch.testing.assert_close(found, apart, atol=5e-4, rtol=0, equal_nan=True)
    assert torch.equal(new["synthetic"].features("color"), old["synthetic"].features("color"))
    sizes = [store["synthetic"].files["color.features.safetensors"]["bytes"] for store in (old, new)]
    assert 2 * len(apart) <= sizes[1] - sizes[0] <= 2 * len(apart) + 100
    with pytest.raises(FileNotFoundError, match="no features of teacher 'other'"):
        new["synthetic"].disagreement("other")


def test_problems_of_a_store_that_knows_no_kinds_are_read(synthetic_scene, tmp_path):
    store = Store.create(tmp_path, cell=0.05, teachers=CARD)
    add(store, replace(synthetic_scene, problems=(LOST,)))
    path = tmp_path / "scenes" / "synthetic" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["problems"] == [{"kind": "pose", "text": "a frame is lost"}]
    del manifest["sha256"]  # nor did they have seals
    path.write_text(json.dumps(manifest | {"problems": ["a frame is lost"]}))
    assert store["synthetic"].problems == (Problem("other", "a frame is lost"),)


def test_values_of_seen_samples_are_spread_to_where_these_are(synthetic_scene, tmp_path):
    store = Store.create(tmp_path, cell=0.05, teachers={"color": TeacherCard(3), "place": TeacherCard(1)})
    samples = sample_cells(synthetic_scene.points, store.cell)
    num_views = torch.arange(len(samples.index_of_sample)) % 3  # of three samples the first is unseen
    rows = torch.nonzero(num_views).squeeze(1)
    colors = torch.tensor([[0.25, 0.5, 0.75]]).expand(len(rows), 3)
    features = {"color": colors, "place": rows[:, None].float()}
    store.add_scene(synthetic_scene, samples, Visibility((), num_views), features)
    scene = store["synthetic"]
    assert torch.equal(scene.features("color"), colors.half())
    assert torch.equal(scene.features("place"), rows[:, None].half())
    expected = torch.arange(len(num_views)).where(num_views > 0, -1)
    assert torch.equal(scene.spread(scene.features("place"), -1)[:, 0], expected.half())
    assert torch.equal(scene.spread(rows, -1), expected)
    assert not scene.spread(scene.features("color"))[num_views == 0].any()
    assert torch.equal(scene.seen, num_views > 0)


def test_the_same_scene_gives_the_same_bytes(synthetic_scene, tmp_path):
    for name in ("a", "b"):
        add(Store.create(tmp_path / name, cell=0.05, teachers=CARD), synthetic_scene)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 4
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_a_scene_counts_once_its_manifest_is_there(synthetic_scene, tmp_path):
    store = Store.create(tmp_path, cell=0.05, teachers=CARD)
    assert not store.has("synthetic")
    add(store, synthetic_scene)
    assert store.has("synthetic")
    (tmp_path / "scenes" / "synthetic" / "manifest.json").unlink()
    assert store.names() == ()
    with pytest.raises(FileNotFoundError, match=r"is half-written.*fuse"):
        store["synthetic"]
    add(store, synthetic_scene)
    assert store.names() == ("synthetic",)


def test_names_are_sorted_and_chosen_by_split(synthetic_scene, tmp_path):
    store = Store.create(tmp_path, cell=0.05, teachers=CARD)
    for name, split in (("b", "train"), ("c", "val"), ("a", "train")):
        add(store, replace(synthetic_scene, name=name, split=split))
    assert store.names() == ("a", "b", "c")
    assert store.names("train") == ("a", "b")


def test_a_store_without_teachers_holds_points(synthetic_scene, tmp_path):
    store = Store.create(tmp_path, cell=0.05)
    add(store, synthetic_scene)
    read = Store.open(tmp_path)["synthetic"]
    assert len(read.seen_samples) > 0
    with pytest.raises(FileNotFoundError, match="no features of teacher 'color'"):
        read.features("color")


def test_going_on_needs_the_same_settings(tmp_path):
    Store.create(tmp_path, cell=0.05, teachers=CARD, settings={"mode": "bicubic"})
    again = Store.create(tmp_path, cell=0.05, teachers=CARD, settings={"mode": "bicubic"})
    assert again.teachers == CARD
    assert again.cell == 0.05
    with pytest.raises(ValueError, match=r"its cell is 0.05, not 0.02. Choose another folder"):
        Store.create(tmp_path, teachers=CARD, settings={"mode": "bicubic"})
    with pytest.raises(ValueError, match=r"its settings\.mode is \"bicubic\", not \"bilinear\""):
        Store.create(tmp_path, cell=0.05, teachers=CARD, settings={"mode": "bilinear"})
    with pytest.raises(ValueError, match=r"its teachers are color, not none\."):
        Store.create(tmp_path, cell=0.05, settings={"mode": "bicubic"})


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no store.*cuao3d fuse"):
        Store.open(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="is no store"):
        Store.create(tmp_path)
    (tmp_path / "store.json").write_text(json.dumps({"format": "cuao3d-store", "format_version": 99}))
    with pytest.raises(ValueError, match=r"not a cuao3d-store of version 1"):
        Store.open(tmp_path)
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(ValueError, match=r"store.json is not valid JSON"):
        Store.open(tmp_path)


@pytest.mark.parametrize(
    "left", [[], ["scenes/"], [f"{PREFIX}0{SUFFIX}", LOCK], ["scenes/", "store.json"], ["store.json", LOCK]]
)
def test_a_beginning_that_was_interrupted_goes_on(tmp_path, left):
    for name in left:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    Store.create(tmp_path, cell=0.05)
    assert Store.open(tmp_path).cell == 0.05


def test_a_store_whose_header_was_lost_is_begun_anew_only_without_scenes(tmp_path, synthetic_store):
    (synthetic_store.path / "store.json").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match=r"store.json is not valid JSON"):
        Store.create(synthetic_store.path, cell=0.05)
    (tmp_path / "other" / "scenes").mkdir(parents=True)
    (tmp_path / "other" / "store.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="not a cuao3d-store"):
        Store.create(tmp_path / "other")


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b'{"name": "synth'])
def test_a_scene_whose_manifest_was_cut_off_is_not_finished(synthetic_scene, tmp_path, content):
    store = Store.create(tmp_path, cell=0.05, teachers=CARD)
    add(store, synthetic_scene)
    manifest = tmp_path / "scenes" / "synthetic" / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(content)
    assert not store.has("synthetic")
    assert store.names() == store.names("val") == ()
    with pytest.raises(FileNotFoundError, match="is half-written"):
        store["synthetic"]
    add(store, synthetic_scene)
    assert manifest.read_bytes() == whole


def test_a_damaged_file_is_named(synthetic_store):
    synthetic_store.verify("synthetic")
    path = synthetic_store.path / "scenes" / "synthetic" / "color.features.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"color.features.safetensors is damaged: its SHA-256"):
        synthetic_store.verify("synthetic")
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"color.features.safetensors is damaged: it has \d+ bytes"):
        synthetic_store["synthetic"]


def test_misaligned_features_cannot_be_written(synthetic_scene, synthetic_store):
    samples = sample_cells(synthetic_scene.points, 0.05)
    visibility = see(synthetic_scene, samples)
    num_seen = len(visibility.seen_samples)
    for features, words in (
        ({}, r"holds \['color'\]"),
        ({"color": torch.zeros(num_seen + 1, 3)}, "expected"),
        ({"color": torch.full((num_seen, 3), 1e6)}, "not finite in 16 bits"),
    ):
        with pytest.raises(ValueError, match=words):
            synthetic_store.add_scene(synthetic_scene, samples, visibility, features)
    assert synthetic_store.has("synthetic")


@pytest.mark.parametrize("name", ["../up", "", ".hidden", "a/b"])
def test_a_scene_cannot_leave_its_folder(synthetic_scene, synthetic_store, name):
    with pytest.raises(ValueError, match="cannot be the name"):
        add(synthetic_store, replace(synthetic_scene, name=name))


def test_labels_that_16_bits_do_not_hold_are_refused(synthetic_scene, tmp_path):
    store = Store.create(tmp_path / "store", cell=0.05)
    samples = sample_cells(synthetic_scene.points, 0.05)
    visibility = see(synthetic_scene, samples)
    for label in (65536 + 3, 300, -(2**40)):
        scene = replace(synthetic_scene, labels=synthetic_scene.labels + label)
        with pytest.raises(ValueError, match=rf"Labels go from 0 to 254, and 255 is unlabelled; {label} is neither"):
            store.add_scene(scene, samples, visibility, {})
    store.add_scene(replace(synthetic_scene, labels=synthetic_scene.labels - 1), samples, visibility, {})
    assert store["synthetic"].labels.min() == -1  # unlabelled to every label set


def unsealed(store: Store, change: Callable[[dict], object]) -> Path:
    """Change a manifest as somebody would who knows the format: without a seal, as in earlier versions."""
    path = store.path / "scenes" / "synthetic" / "manifest.json"
    content = json.loads(path.read_text())
    content.pop("sha256", None)
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("label_set"), "lacks label_set"),
        (lambda content: content.update(files=[]), r"files is \[\]; expected an object"),
        (lambda content: content["files"]["points.safetensors"].pop("bytes"), r"points\.safetensors lacks bytes"),
        (lambda content: content["files"].pop("points.safetensors"), r"it lacks points\.safetensors"),
        (
            lambda content: content["files"].update({"../../a": {"bytes": 1, "sha256": ""}}),
            "cannot be the name of a file",
        ),
        (lambda content: content.update(split="tain"), "split is 'tain'; expected 'train' or"),
        (lambda content: content.update(problems=[3]), r"problems\[0\] is 3"),
    ],
)
def test_a_manifest_that_somebody_wrote_is_held_against_its_schema(synthetic_store: Store, change, message: str):
    path = unsealed(synthetic_store, change)
    with pytest.raises(InputError, match=message) as told:
        Store.open(synthetic_store.path)["synthetic"]
    assert str(path) in str(told.value)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("points", None, "lacks points"),
        ("points", torch.zeros(9, 2), r"points is \(9, 2\) of torch.float32; expected \(N, 3\)"),
        ("num_views", torch.zeros(3).int(), r"num_views is \(3,\) of torch.int32; expected \(S\)"),
        ("sample_of_point", torch.full((585,), 10**6).int(), "sample_of_point goes from 1000000 to 1000000"),
        ("index_of_sample", "negative", "index_of_sample goes from -1"),
    ],
)
def test_tensors_that_somebody_wrote_are_held_against_their_shapes(synthetic_store: Store, name, tensor, message):
    path = synthetic_store.path / "scenes" / "synthetic" / "points.safetensors"
    tensors = load_file(path)
    tensor = -torch.ones_like(tensors[name]) if isinstance(tensor, str) else tensor
    tensors.pop(name)
    write_tensors(path, tensors if tensor is None else tensors | {name: tensor})
    entry = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    unsealed(synthetic_store, lambda content: content["files"].update({path.name: entry}))
    with pytest.raises(InputError, match=message):
        Store.open(synthetic_store.path)["synthetic"]


def test_a_manifest_nested_nearly_too_deeply_is_refused(synthetic_store: Store):
    path = synthetic_store.path / "scenes" / "synthetic" / "manifest.json"
    path.write_text(path.read_text().replace('"problems": []', '"problems": ' + "[" * 900 + "]" * 900))
    with pytest.raises(InputError, match="manifest"):
        Store.open(synthetic_store.path)["synthetic"]


def test_the_roll_of_a_store_is_read_again_only_if_it_has_changed(tmp_path, monkeypatch):
    write_roll(tmp_path, {"a": Entry(), "b": Entry()})
    long_ago = (1_000_000_000, 1_000_000_000)
    monkeypatch.setattr(seals.time, "time_ns", lambda: 2**62)  # when the file has long been as it is
    assert list(read_roll(tmp_path)) == ["a", "b"]
    read_roll(tmp_path).clear()
    with monkeypatch.context() as now:
        now.setattr(roll, "read_sealed", None)
        assert list(read_roll(tmp_path)) == ["a", "b"]
    write_roll(tmp_path, {"c": Entry()})
    os.utime(tmp_path / roll.ROLL, long_ago)
    assert list(read_roll(tmp_path)) == ["c"]
