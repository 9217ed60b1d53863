"""Facts about what a distillation reads of a store, and about stores that keep codes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cuao3d import balance, guards
from cuao3d.batches import STILL
from cuao3d.codecs import Codec, Quantised
from cuao3d.distill import distill
from cuao3d.errors import InputError
from cuao3d.store import Store, stored
from cuao3d.store.convert import convert
from cuao3d.student import ARCHITECTURES, Architecture
from test_distill import CARDS, CONFIG, add_room, metrics

ONE = replace(CONFIG, teachers=("place",), architecture="tiny", num_steps=None, num_epochs=2)
NAMES = ("a", "bb", "ccc", "dddd", "eeeee")


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    """A network that takes no time, of one level, whose coarsest grid the rooms fill."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", Architecture((4,) * 8, (1,) * 8, num_stem=4))


def make(path: Path, codec: Codec | None = None) -> Store:
    store = Store.create(path, cell=0.05, teachers={"place": CARDS["place"]}, codec=codec)
    for name in NAMES:
        add_room(store, name)
    return store


@pytest.fixture
def read(monkeypatch) -> dict[str, list]:
    """Feature files that were read whole, and how many rows were decoded, so far."""
    seen: dict[str, list] = {"whole": [], "rows": []}
    check, decode = stored.check_file, Quantised.__getitem__

    def checked(path, entry):
        if "features" in path.name:
            seen["whole"].append(path.parent.name)
        check(path, entry)

    def decoded(self, index):
        rows = decode(self, index)
        seen["rows"].append(len(rows))
        return rows

    monkeypatch.setattr(stored, "check_file", checked)
    monkeypatch.setattr(Quantised, "__getitem__", decoded)
    monkeypatch.setattr(guards, "SAMPLE_VALUES", 60)
    monkeypatch.setattr(guards, "MIN_VOXELS", 4)
    monkeypatch.setattr(balance, "WHOLE_VALUES", 300)
    return seen


@pytest.mark.parametrize("normalizer", ["none", pytest.param("standardize", marks=pytest.mark.slow)])
def test_a_store_is_read_scene_by_scene_once_an_epoch(tmp_path, read, toy_words, normalizer):
    toy_words(6)
    words, looks = ("nyu40", 2) if normalizer == "none" else (None, 1)  # the loss over words looks at targets too
    store = make(tmp_path / "store", Codec(None, True))
    read["rows"].clear()  # of measuring what 8 bits cost
    seen = {name: len(store[name].seen_samples) for name in NAMES}
    at_step: list[tuple[set[str], int]] = []

    def on_step(done: int, total: int, line: str) -> None:
        at_step.append((set(read["whole"]), sum(read["rows"])))

    config = replace(ONE, words=words, normalizers=(normalizer,), augmentation=STILL, points_per_scene=None)
    distill(store, config, tmp_path / "run", on_step=on_step)
    first, rows = at_step[0]
    assert len(first) <= 4  # those of the step, and of the next one, which is prepared meanwhile
    assert rows < 0.15 * sum(seen.values()) + looks * 2 * max(seen.values())
    assert at_step[2][0] == set(NAMES)
    of_second_epoch = at_step[-1][1] - at_step[2][1]
    assert of_second_epoch <= 1.01 * looks * sum(seen.values())


def test_a_damaged_scene_stops_a_run_when_its_turn_comes_or_at_the_end(tmp_path):
    store = make(tmp_path / "store")
    path = store["bb"].folder / "place.features.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    for steps in (1, 5):
        with pytest.raises(InputError, match=r"bb/place.features.safetensors is damaged: its SHA-256"):
            distill(store, replace(ONE, num_steps=steps), tmp_path / f"run{steps}")
        assert not (tmp_path / f"run{steps}" / "run.json").exists()


def test_chances_of_a_sample_are_those_of_all_where_the_sample_is_like_them(tmp_path, monkeypatch):
    torch.manual_seed(0)
    scenes = [scene_of(torch.tensor([[1.0, 0.0]] * 30 + [[0.0, 1.0]] * 10).repeat(5, 1)) for _ in range(2)]
    words = balance.Words(0, torch.eye(2), ("one", "other"))
    whole, told = balance.balanced(scenes, words, 1.0)
    monkeypatch.setattr(balance, "WHOLE_VALUES", 400)  # every second row
    some, told_of_some = balance.balanced(scenes, words, 1.0)
    assert told.unused == told_of_some.unused == ()
    assert torch.equal(whole[0].chances, some[0].chances())
    assert some[0].chances() is some[0].chances()
    assert float(whole[0].chances[-1] / whole[0].chances[0]) == pytest.approx(3)


def scene_of(features: torch.Tensor):
    from cuao3d.batches import TrainingScene

    return TrainingScene("x", torch.zeros(len(features), 3), torch.arange(len(features)), (features,))


@pytest.mark.parametrize(
    "codec", [pytest.param("int8", marks=pytest.mark.slow), pytest.param("pca:5", marks=pytest.mark.slow), "pca:5+int8"]
)
def test_a_student_of_codes_learns_as_one_of_the_features(tmp_path, codec):
    # Six channels that hold one of two directions: five directions of a basis lose nothing of them.
    store = make(tmp_path / "store")
    small = convert(store, Codec.parse(codec), tmp_path / "small")
    runs = [distill(one, replace(ONE, num_steps=3), tmp_path / f"run-{one.path.name}") for one in (store, small)]
    plain, coded = ([row["losses"]["place"] for row in metrics(run)] for run in runs)
    assert coded == pytest.approx(plain, abs=2e-3)
    assert plain[0] != pytest.approx(plain[-1], abs=2e-3)
