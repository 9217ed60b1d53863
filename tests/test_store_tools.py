"""Facts about stores that are made of stores, and about dropping a teacher."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from cuao3d.cli import main
from cuao3d.codecs import Codec
from cuao3d.errors import InputError, NotFoundError
from cuao3d.fusion import sample_cells, see
from cuao3d.store import Store, TeacherCard
from cuao3d.store.convert import convert, merge
from cuao3d.store.drop import drop_teacher
from cuao3d.store.inventory import inventory
from cuao3d.store.plan import end
from cuao3d.store.revise import expect
from cuao3d.store.roll import Entry

CARDS = {"wide": TeacherCard(12), "thin": TeacherCard(3)}


@pytest.fixture
def make(synthetic_scene, tmp_path):
    samples = sample_cells(synthetic_scene.points, 0.05)
    visibility = see(synthetic_scene, samples)
    count = len(visibility.seen_samples)

    def make_store(name: str, scenes: tuple[str, ...], settings: dict | None = None, cards=CARDS) -> Store:
        store = Store.create(tmp_path / name, cell=0.05, teachers=cards, settings=settings)
        expect(store, {scene: Entry() for scene in scenes})
        for index, scene in enumerate(scenes):
            random = torch.Generator().manual_seed(index)
            mixing = torch.randn(4, 12, generator=torch.Generator().manual_seed(9))
            wide = (
                torch.randn(count, 4, generator=random) @ mixing + 0.05 * torch.randn(count, 12, generator=random) + 1
            )
            features = {"wide": wide, "thin": torch.rand(count, 3, generator=random)}
            apart = {"wide": torch.rand(count, generator=random)}
            own = {teacher: features[teacher] for teacher in cards}
            store.add_scene(replace(synthetic_scene, name=scene), samples, visibility, own, disagreement=apart)
        end(store, {})
        return store

    return make_store


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Stop(Exception):
    """Raised where a test interrupts."""


def stop_after(count: int):
    def progress(done: int, total: int) -> None:
        if done == count:
            raise Stop

    return progress


@pytest.mark.parametrize("text", ["int8", "pca:4", "pca:4+int8"])
def test_a_converted_store_is_the_other_up_to_its_error_and_an_interrupted_one_goes_on(make, tmp_path, text):
    store, codec = make("a", ("one", "two", "three")), Codec.parse(text)
    whole = convert(store, codec, tmp_path / "whole")
    with pytest.raises(Stop):
        convert(store, codec, tmp_path / "part", progress=stop_after(2))
    assert Store.open(tmp_path / "part").missing() == {"two": "unfinished"}
    convert(store, codec, tmp_path / "part")
    assert contents(tmp_path / "part") == contents(whole.path)
    for name in store.names():
        before, after = store[name], Store.open(whole.path)[name]
        assert torch.equal(before.points, after.points)
        assert torch.equal(before.disagreement("wide"), after.disagreement("wide"))
        cosines = torch.cosine_similarity(before.features("wide").double(), after.features("wide").double())
        told = json.loads((after.folder / "manifest.json").read_text())["codecs"]["wide"]["cosine_error"]
        assert float(1 - cosines.mean()) == pytest.approx(told, rel=0.05, abs=1e-6)
        assert told < 0.01
        assert after.disagreement("thin") is None
    first = contents(whole.path)
    convert(store, codec, whole.path)
    assert contents(whole.path) == first


def test_a_converted_scene_that_has_changed_is_converted_again(make, tmp_path):
    made = convert(make("a", ("one",)), Codec(4), tmp_path / "b")
    before = made["one"].sha256
    other = make("a", ("one",))
    manifest = other.path / "scenes" / "one" / "manifest.json"
    content = json.loads(manifest.read_text())
    content.pop("sha256")
    content["split"] = "val"
    manifest.write_text(json.dumps(content))
    (other.path / "scenes.json").unlink()
    again = convert(Store.open(other.path), Codec(4), tmp_path / "b")
    assert again["one"].split == "val"
    assert again["one"].sha256 != before


def test_what_cannot_be_converted_is_said(make, tmp_path):
    store = make("a", ("one",))
    small = convert(store, Codec(4), tmp_path / "b")
    with pytest.raises(InputError, match="what that lost does not come back"):
        convert(small, Codec(None, True), tmp_path / "c")
    with pytest.raises(InputError, match="is kept as fp16 already"):
        convert(store, Codec(), tmp_path / "c")
    with pytest.raises(InputError, match="is the store that is read"):
        convert(store, Codec(4), store.path)
    with pytest.raises(InputError, match='its codec is "pca:4", not "pca:5"'):
        convert(store, Codec(5), tmp_path / "b")
    path = store["one"].folder / "wide.features.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match="SHA-256 is not the manifest's"):
        convert(Store.open(store.path), Codec(None, True), tmp_path / "c")
    assert Store.open(tmp_path / "c").names() == ()


def test_a_result_that_got_further_teachers_meanwhile_is_left_alone(make, tmp_path):
    thin, other = (make(*one, cards={"thin": CARDS["thin"]}) for one in (("a", ("one",)), ("c", ("two",))))
    small, whole = convert(make("both", ("one",)), Codec(4), tmp_path / "small"), make("whole", ("one",))
    for copy in (lambda: convert(thin, Codec(4), small.path), lambda: merge([thin, other], whole.path)):
        before = contents(small.path), contents(whole.path)
        with pytest.raises(InputError, match=r"holds features of wide, which are not those of .*a and would be lost"):
            copy()
        assert (contents(small.path), contents(whole.path)) == before


def test_merged_scenes_are_those_of_both_and_an_interrupted_merge_goes_on(make, tmp_path):
    a, b = make("a", ("one", "two"), {"data": "left"}), make("b", ("three",), {"data": "right"})
    whole = merge([a, b], tmp_path / "whole")
    assert whole.names() == ("one", "three", "two")
    assert whole.settings == {"data": "left+right"}
    for store in (a, b):
        for name in store.names():
            for file in store[name].files:
                assert (whole[name].folder / file).read_bytes() == (store[name].folder / file).read_bytes()
            assert torch.equal(whole[name].features("wide"), store[name].features("wide"))
    with pytest.raises(Stop):
        merge([a, b], tmp_path / "part", progress=stop_after(1))
    merge([a, b], tmp_path / "part")
    assert contents(tmp_path / "part") == contents(whole.path)


def test_stores_that_differ_are_not_merged(make, tmp_path):
    a, out = make("a", ("one", "two"), {"every": 2}), tmp_path / "out"
    for other, message in (
        (make("b", ("two",), {"every": 2}), r"Scene 'two' is in .*a and in .*b; a store holds one of a name"),
        (make("c", ("three",), {"every": 3}), "cannot be merged: of the one the settings.every is 3, not 2"),
        (make("d", ("three",), {"every": 2}, {"wide": CARDS["wide"]}), "the teachers are wide, not wide, thin"),
        (convert(make("e", ("three",), {"every": 2}), Codec(4), tmp_path / "f"), 'the codec is "pca:4", not "fp16"'),
    ):
        with pytest.raises(InputError, match=message):
            merge([a, other], out)
    g, h = (convert(make(name, (name,)), Codec(4), tmp_path / f"{name}{name}") for name in ("g", "h"))
    assert merge([g, h], tmp_path / "gh")["h"].features("wide").shape == h["h"].features("wide").shape
    i = convert(make("i", ("g", "x")), Codec(4), tmp_path / "ii")
    with pytest.raises(InputError, match="they keep wide in other bases"):
        merge([h, i], out)
    with pytest.raises(InputError, match="two stores at least"):
        merge([a], out)
    assert not out.exists()


@pytest.mark.parametrize("codec", [Codec(), Codec(4, True)])
def test_a_dropped_teacher_is_gone_and_an_interrupted_drop_goes_on(make, tmp_path, codec):
    def made(name: str) -> Store:
        store = make(name, ("one", "two"))
        return store if codec == Codec() else convert(store, codec, tmp_path / f"{name}-small")

    store, part = made("a"), made("b")
    thin = store["one"].features("thin")
    drop_teacher(store, "wide")
    whole = Store.open(store.path)
    assert set(whole.teachers) == {"thin"}
    assert torch.equal(whole["one"].features("thin"), thin)
    assert not list(store.path.rglob("*wide*"))
    with pytest.raises(NotFoundError, match="no features of teacher 'wide'"):
        whole["one"].features("wide")
    with pytest.raises(Stop):
        drop_teacher(part, "wide", progress=stop_after(1))
    between = Store.open(part.path)
    assert between.names() == ("one", "two")
    assert torch.equal(between["two"].features("thin"), part["two"].features("thin"))
    drop_teacher(between, "wide")
    assert contents(part.path) == contents(store.path)
    with pytest.raises(NotFoundError, match=r"holds no features of 'wide', only of thin"):
        drop_teacher(Store.open(part.path), "wide")


def test_a_file_that_a_killed_drop_left_goes_at_the_next(make):
    store = make("a", ("one",))
    path = store["one"].folder / "wide.features.safetensors"
    content = path.read_bytes()
    drop_teacher(store, "wide")
    path.write_bytes(content)  # as if it had been killed after the manifest was written
    drop_teacher(Store.open(store.path), "wide")
    assert not path.exists()


def test_an_inventory_adds_up(make, tmp_path):
    store = make("a", ("one", "two"))
    small = inventory(convert(store, Codec(4, True), tmp_path / "b"))
    (wide, thin), seen = small.teachers, 2 * len(store["one"].seen_samples)
    assert (small.num_scenes, small.num_seen, small.codec) == (2, seen, "pca:4+int8")
    assert (wide.codec, thin.codec) == ("pca:4+int8", "int8")
    # four codes, a scale of four bytes and two of disagreement; three numbers and a scale; and headers
    assert 10 <= wide.bytes_a_sample < 11.5
    assert 7 <= thin.bytes_a_sample < 8.5
    assert 0 < wide.cosine_error < 0.01
    assert small.num_bytes == sum(len(content) for content in contents(tmp_path / "b").values())
    assert inventory(store).teachers[0].cosine_error is None


def test_nothing_is_dropped_where_a_name_is_wrong(make, capsys):
    store = make("a", ("one",))
    before = contents(store.path)
    assert main(["store", "drop", str(store.path), "thin", "other"]) == 2
    assert "holds no features of 'other', only of wide, thin" in capsys.readouterr().err
    assert contents(store.path) == before


def added(store: Store, monkeypatch, capsys, *more: str, loads: bool = True) -> tuple[dict, str]:
    """What `store add` gives to `fuse`, and what it says; `loads`: whether the teachers can be loaded as they were."""
    given: dict = {}
    monkeypatch.setattr(import_module("cuao3d.cli.fuse"), "fuse", lambda data, **how: given.update(how) or 0)
    monkeypatch.setattr("cuao3d.voting.lifting_teacher", Mock(side_effect=None if loads else InputError("No wide.")))
    main(["store", "add", str(store.path), "mini-dino", *more])
    return given, " ".join(capsys.readouterr().err.split())


def test_further_teachers_are_lifted_as_those_that_are_there(make, monkeypatch, capsys):
    half = {name: replace(card, options={"precision": "bf16"}) for name, card in CARDS.items()}
    store = make("a", ("one",), {"upright": False, "view_weights": "robust", "every": 1}, half)
    given, _ = added(store, monkeypatch, capsys, "--data", "DATA")
    assert given == {
        "out": store.path,
        "teachers": "wide,thin,mini-dino",
        "cell": 0.05,
        "precision": "bf16",
        "device": "cpu",
        "upright": False,
        "view_weights": "robust",
        "every": 1,
    }
    given, told = added(store, monkeypatch, capsys)
    assert not given
    assert "--cell 0.05 --view-weights robust --every 1 --no-upright --precision bf16." in told


def test_teachers_that_would_be_lifted_again_are_not_added_to(make, monkeypatch, capsys):
    given, told = added(make("a", ("one",)), monkeypatch, capsys, "--data", "DATA", loads=False)
    assert "No wide. Name it as it was lifted, as NAME=FOLDER or FILE.py:CLASS" in told
    assert "or run: cuao3d fuse DATA --out" in told
    mixed = {"wide": replace(CARDS["wide"], options={"precision": "fp16"}), "thin": CARDS["thin"]}
    for store, message in (
        (make("b", ("one",), cards=mixed), "compute in fp16 and fp32"),
        (make("c", ("one",), {"annotations": "my.csv"}), "does not say where my.csv lies"),
    ):
        more, told = added(store, monkeypatch, capsys, "--data", "DATA")
        assert message in told
        assert not given | more


def test_the_commands(make, tmp_path, capsys):
    a, b = make("a", ("one",), {"upright": True}), make("b", ("two",), {"upright": True})
    out = {name: str(tmp_path / name) for name in ("merged", "small", "info.json")}
    assert main(["store", "merge", str(a.path), str(b.path), "--out", out["merged"]]) == 0
    assert main(["store", "convert", out["merged"], "--codec", "pca:4+int8", "--out", out["small"]]) == 0
    assert main(["store", "verify", out["small"]]) == 0
    assert main(["store", "drop", out["small"], "thin"]) == 0
    assert main(["store", "info", out["small"], "--json", out["info.json"]]) == 0
    assert [one["teacher"] for one in json.loads((tmp_path / "info.json").read_text())["teachers"]] == ["wide"]
    assert "2 scenes" in capsys.readouterr().out
    for words, message in (
        (["add", out["small"], "mini-dino"], "--teachers wide,mini-dino --cell 0.05 --upright"),
        (["convert", out["merged"], "--out", out["small"]], "needs --codec"),
        (["convert", out["merged"], "--codec", "zip", "--out", out["small"]], "'zip' is no codec"),
        (["convert", out["merged"], "--codec", "pca:0", "--out", out["small"]], "a basis needs one direction at least"),
        (["merge", out["merged"], "--out", out["small"]], "needs other stores"),
        (["info", out["merged"], "more"], "takes one store, and nothing after it"),
        (["verify", out["merged"], "--codec", "int8"], "takes no --codec"),
        (["drop", out["merged"], "other"], "holds no features of 'other', only of wide, thin"),
    ):
        assert main(["store", *words]) == 2
        told = capsys.readouterr().err
        assert message in " ".join(told.split()), told
    (path,) = (tmp_path / "small" / "bases").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert main(["store", "verify", out["small"]]) == 2
