"""Facts about imported features: points give theirs to samples, files of a scene add up, no scene costs another."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cuao3d.cli import main
from cuao3d.download import CARDS
from cuao3d.imported import import_features
from cuao3d.readers import Dataset, open_dataset
from cuao3d.readers.openscene import OpenScene
from cuao3d.scene import Scene
from cuao3d.store import Store, TeacherCard
from make_fixture_openscene import write_processed
from test_pickles import Evil
from written import damage

NAME = "scene0000_00"

POINTS = np.array([[0.001, 0, 0], [0.011, 0, 0], [0.019, 0, 0], [0.05, 0, 0], [0.09, 0, 0]])
"""In cells of 2 cm the first three points share one, the fourth has one of its own, and so the fifth."""


def write_cloud(folder: Path, name: str = NAME, points: np.ndarray = POINTS) -> Dataset:
    path = folder / "scannet_3d" / "train" / f"{name}_vh_clean_2.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save((points, np.zeros_like(points), np.zeros(len(points))), path)
    return OpenScene(folder / "scannet_3d")


def write_features(folder: Path, file: str, rows: dict[int, Sequence[float]], num_points: int = 5) -> Path:
    """Write a file that has a feature for each of some points."""
    folder.mkdir(exist_ok=True)
    mask = torch.zeros(num_points, dtype=torch.bool)
    mask[list(rows)] = True
    features = torch.tensor([rows[point] for point in sorted(rows)]).half()
    torch.save({"feat": features, "mask_full": mask}, folder / file)
    return folder


def described(store: Store, name: str = NAME, teacher: str = "lseg") -> dict[int, list[float]]:
    """The feature of each sample that has one."""
    scene = store[name]
    return dict(zip(scene.seen_samples.tolist(), scene.features(teacher).tolist(), strict=True))


def test_a_sample_takes_the_mean_over_its_points_that_have_a_feature(tmp_path: Path):
    dataset = write_cloud(tmp_path)
    folder = write_features(tmp_path / "lseg", f"{NAME}_0.pt", {0: (1, 2), 2: (3, 6), 4: (-1, 0.5)})
    store = import_features({"lseg": folder}, dataset, tmp_path / "store")
    assert described(store) == {0: [2, 4], 2: [-1, 0.5]}  # (1 + 3) / 2, (2 + 6) / 2; nothing for the middle cell
    assert store[NAME].num_views.tolist() == [1, 0, 1]
    assert (store.cell, store[NAME].split, store[NAME].label_set) == (0.02, "train", "scannet20")
    assert store[NAME].labels.tolist() == [0] * 5
    card = store.teachers["lseg"]
    assert card == TeacherCard(2, "lseg", "cosine", licence=CARDS["lseg"].licence)


def test_a_teacher_goes_by_one_name_however_it_is_spelled(tmp_path: Path):
    dataset = write_cloud(tmp_path)
    folder = write_features(tmp_path / "sd", f"{NAME}_0.pt", {0: (1, 2)})
    store = import_features({"stable-diffusion": folder}, dataset, tmp_path / "store", text={"sd": "minilm"})
    assert list(store.teachers) == ["stable_diffusion"]
    assert (store.teachers["stable_diffusion"].loss, store.teachers["stable_diffusion"].text) == (
        "demeaned-cosine",
        "minilm",
    )


def test_several_files_of_a_scene_add_up(tmp_path: Path):
    # Point 0 is in two files: (1 + 5) / 2 = 3. Its sample has also point 1: (3 + 9) / 2 = 6.
    dataset = write_cloud(tmp_path)
    write_features(tmp_path / "lseg", f"{NAME}_0.pt", {0: (1,), 3: (4,)})
    write_features(tmp_path / "lseg", f"{NAME}_1.pt", {0: (5,), 1: (9,)})
    write_features(tmp_path / "lseg", f"{NAME}_10.pt", {4: (7,)})
    store = import_features({"lseg": tmp_path / "lseg"}, dataset, tmp_path / "store")
    assert described(store) == {0: [6], 1: [4], 2: [7]}


def test_many_features_are_the_same_as_a_slow_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cuao3d.imported.CHUNK", 7)
    points = torch.rand(200, 3).numpy() * 0.1
    dataset = write_cloud(tmp_path, points=points)
    bank = torch.randn(200, 4)
    of_point: list[list[Tensor]] = [[] for _ in points]
    for file in range(3):
        chosen = torch.randperm(200)[:60].tolist()
        rows = {point: (bank[point] + file).half().tolist() for point in chosen}
        write_features(tmp_path / "lseg", f"{NAME}_{file}.pt", rows, 200)
        for point in chosen:
            of_point[point].append(torch.tensor(rows[point]))
    scene = import_features({"lseg": tmp_path / "lseg"}, dataset, tmp_path / "store")[NAME]
    for sample, feature in zip(scene.seen_samples.tolist(), scene.features("lseg").float(), strict=True):
        members = torch.nonzero(scene.sample_of_point == sample).flatten().tolist()
        means = [torch.stack(of_point[point]).mean(dim=0) for point in members if of_point[point]]
        torch.testing.assert_close(feature, torch.stack(means).mean(dim=0), rtol=1e-3, atol=1e-3)


def test_features_that_a_store_gives_away_come_back(synthetic_scene: Scene, synthetic_store: Store, tmp_path: Path):
    write_processed([replace(synthetic_scene, name=NAME)], tmp_path)
    scene = synthetic_store["synthetic"]
    seen = scene.num_views[scene.sample_of_point] > 0
    features = torch.zeros(len(scene.num_views), 3).half()
    features[scene.seen_samples] = scene.features("color")
    (tmp_path / "color").mkdir()
    content = {"feat": features[scene.sample_of_point[seen]], "mask_full": seen}
    torch.save(content, tmp_path / "color" / f"{NAME}_0.pt")
    dataset = open_dataset(tmp_path)
    back = import_features({"color": tmp_path / "color"}, dataset, tmp_path / "imported", cell=0.05)[NAME]
    assert back.seen_samples.equal(scene.seen_samples)
    torch.testing.assert_close(back.features("color"), scene.features("color"), rtol=1e-3, atol=0)
    assert len(back.cameras) == 2


def test_files_of_another_scene_whose_name_begins_alike_do_not_count(tmp_path: Path):
    write_cloud(tmp_path, "a_region1")
    dataset = write_cloud(tmp_path, "a_region10")
    write_features(tmp_path / "lseg", "a_region1_0.pt", {3: (1,)})
    write_features(tmp_path / "lseg", "a_region10.pt", {3: (2,)})
    store = import_features({"lseg": tmp_path / "lseg"}, dataset, tmp_path / "store")
    assert (described(store, "a_region1"), described(store, "a_region10")) == ({1: [1]}, {1: [2]})


@pytest.mark.parametrize("visible", [torch.tensor([True, False, True]), torch.tensor([0, 2]), np.array([0, 2])])
def test_rows_that_an_old_file_does_not_call_visible_are_no_features(visible: Tensor | np.ndarray, tmp_path: Path):
    # The three rows are for points 1, 3 and 4; the one for point 3 was seen by no view.
    dataset = write_cloud(tmp_path)
    mask = np.array([False, True, False, True, True])
    features = torch.tensor([[1.0, 2], [8, 8], [3, 4]]).half()[..., None]
    (tmp_path / "lseg").mkdir()
    torch.save({"feat": features, "mask": visible, "mask_full": mask}, tmp_path / "lseg" / f"{NAME}_0.pt")
    store = import_features({"lseg": tmp_path / "lseg"}, dataset, tmp_path / "store")
    assert described(store) == {0: [1, 2], 2: [3, 4]}


def test_features_of_zeros_or_no_numbers_are_none_and_said(tmp_path: Path):
    dataset = write_cloud(tmp_path)
    write_features(tmp_path / "lseg", f"{NAME}_0.pt", {0: (1, 1), 1: (0, 0), 3: (float("nan"), 1)})
    store = import_features({"lseg": tmp_path / "lseg"}, dataset, tmp_path / "store")
    assert described(store) == {0: [1, 1]}
    assert tuple(map(str, store[NAME].problems)) == (
        f"2 features of {NAME}_0.pt left out: they are zero or not finite.",
    )


def test_samples_count_that_all_teachers_describe(tmp_path: Path):
    dataset = write_cloud(tmp_path)
    folders = {
        "lseg": write_features(tmp_path / "one", f"{NAME}_0.pt", {0: (1,), 3: (2,)}),
        "dinov2": write_features(tmp_path / "two", f"{NAME}_0.pt", {1: (3, 4), 4: (5, 6)}),
    }
    store = import_features(folders, dataset, tmp_path / "store", text={"dinov2": "table:words.pt"})
    assert (described(store), described(store, teacher="dinov2")) == ({0: [1]}, {0: [3, 4]})
    assert (store.teachers["dinov2"].loss, store.teachers["dinov2"].text) == ("l1", "table:words.pt")
    write_features(tmp_path / "two", f"{NAME}_0.pt", {4: (5, 6)})
    with pytest.raises(ValueError, match="no sample has a feature of every teacher"):
        import_features(folders, dataset, tmp_path / "other")


def test_a_bad_scene_is_said_and_costs_no_other(tmp_path: Path):
    names = ["a", "b", "c", "d", "e", "f"]
    for name in names:
        dataset = write_cloud(tmp_path, name)
        if name != "b":
            write_features(tmp_path / "lseg", f"{name}_0.pt", {0: (1, 2)}, 7 if name == "c" else 5)
    cut = tmp_path / "lseg" / "d_0.pt"
    cut.write_bytes(cut.read_bytes()[:700])
    torch.save({"feat": Evil(tmp_path / "made"), "mask_full": 0}, tmp_path / "lseg" / "e_0.pt")
    write_features(tmp_path / "lseg", "f_0.pt", {0: (1, 2, 3)})
    said: list[tuple[int, int, str]] = []
    store = import_features(
        {"lseg": tmp_path / "lseg"}, dataset, tmp_path / "store", on_scene=lambda *words: said.append(words)
    )
    assert store.names() == ("a",)
    assert [words[:2] for words in said] == [(index, 6) for index in range(1, 7)]
    lines = [words[2] for words in said]
    assert lines[0] == "a"
    assert lines[1] == f"b left out: it has no features in {tmp_path / 'lseg'}"
    cloud = tmp_path / "scannet_3d" / "train" / "c_vh_clean_2.pth"
    assert lines[2].startswith(f"c left out: {tmp_path / 'lseg' / 'c_0.pt'} is for 7 points, but {cloud} has 5")
    assert lines[3].startswith(f"d left out: {cut}: not a PyTorch checkpoint, or only a part of one")
    assert lines[4].startswith(f"e left out: {tmp_path / 'lseg' / 'e_0.pt'}: refused")
    assert "f_0.pt has features of 3 channels, the first file of its folder 2" in lines[5]
    assert not (tmp_path / "made").exists()
    made = (store.path / "scenes" / "a" / "manifest.json").stat().st_mtime_ns
    write_features(tmp_path / "lseg", "d_0.pt", {0: (1, 2)})
    again = import_features({"lseg": tmp_path / "lseg"}, dataset, tmp_path / "store")
    assert again.names() == ("a", "d")
    assert (store.path / "scenes" / "a" / "manifest.json").stat().st_mtime_ns == made


def test_what_holds_no_features_is_named(tmp_path: Path):
    dataset = write_cloud(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder .*lseg"):
        import_features({"lseg": tmp_path / "lseg"}, dataset, tmp_path / "store")
    (tmp_path / "lseg").mkdir()
    with pytest.raises(FileNotFoundError, match=r"Expected NAME_0\.pt"):
        import_features({"lseg": tmp_path / "lseg"}, dataset, tmp_path / "store")
    for content in ([1], {"feat": 1}, {"feat": torch.ones(2, 2), "mask_full": torch.ones(5)}, {"mask_full": "all"}):
        torch.save(content, tmp_path / "lseg" / f"{NAME}_0.pt")
        with pytest.raises(ValueError, match=r"scene0000_00_0\.pt holds no fused features"):
            import_features({"lseg": tmp_path / "lseg"}, dataset, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("kind", ["zip", "before PyTorch 1.6"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_features_are_refused_cleanly(kind: str, tmp_path: Path):
    dataset = write_cloud(tmp_path)
    folder = write_features(tmp_path / "lseg", f"{NAME}_0.pt", {0: (1, 2), 3: (3, 4)})
    path = folder / f"{NAME}_0.pt"
    content = torch.load(path, weights_only=True)
    torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    runs = iter(range(1000))
    damage(path, lambda: import_features({"lseg": folder}, dataset, tmp_path / f"store{next(runs)}"), times=120)


def test_the_command_line_takes_features_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_cloud(tmp_path)
    write_cloud(tmp_path, "scene0000_01")
    folder = write_features(tmp_path / "lseg", f"{NAME}_0.pt", {0: (1, 2)})
    command = ["import", str(folder), "--out", str(tmp_path / "store")]
    assert main([*command, "--data", str(tmp_path / "scannet_3d"), "--teacher", "lseg", "--cell", "0.05"]) == 3
    said = capsys.readouterr().err
    assert "scene0000_01 left out: it has no features" in said
    assert "importing: 1 of 2 scenes; scene0000_01 left out, teachers lseg" in said
    store = Store.open(tmp_path / "store")
    assert (store.cell, store.names(), store.settings["data"]) == (0.05, (NAME,), "scannet_3d")
    for missing in (["--teacher", "lseg"], ["--data", str(tmp_path)], ["--data", str(tmp_path), "--teacher", "a,b"]):
        assert main([*command, *missing]) == 2
        assert "--data scannet_3d --teacher lseg" in capsys.readouterr().err
