"""Facts about predictors: who answers, on which points, and what an answer rests on."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from conftest import camera_at
from cuao3d.cli import main
from cuao3d.errors import UnseenError
from cuao3d.formats.ply import cloud_columns, read_ply, write_ply
from cuao3d.fusion import Samples, View, Visibility
from cuao3d.predictor import Predictor
from cuao3d.run import load_student
from cuao3d.scene import Frame, Scene
from cuao3d.store import Store, TeacherCard
from cuao3d.student import Student
from cuao3d.teachers import DEFAULT, calibration_of
from cuao3d.teachers.photo import SHA256
from test_student import as_official

WORDS = ("chair", "lamp", "elephant", "rug", "sky", "tree", "road", "car")
"""The vocabulary of the tests: one axis of an 8-dimensional space each."""

NUM = 30
"""Samples of each thing; each sample stands for two points of the cloud."""


def write_table(folder: Path, words=WORDS) -> str:
    """Write a table of words and return its spec."""
    torch.save(torch.eye(len(words)), folder / "words.pt")
    (folder / "words_names.txt").write_text("\n".join(words), encoding="utf-8")
    return f"table:{folder / 'words.pt'}"


def vectors(words) -> torch.Tensor:
    return torch.stack([torch.eye(len(WORDS))[WORDS.index(word)] for word in words])


@pytest.fixture
def known(tmp_path) -> tuple[Store, dict[str, torch.Tensor]]:
    """A store whose answer is known point by point.

    Three heaps of 30 samples stand at x = 0 (chair), x = 2 (rug) and x = 4, which no view sees. The points of the cloud
    are in a shuffled order, two to a sample. A second teacher, `liar`, says lamp where the first says chair.
    """
    generator = torch.Generator().manual_seed(0)
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(6.0), torch.zeros(1)) * 0.06
    samples = torch.cat([grid + torch.tensor([x, 0.0, 0.0]) for x in (0.0, 2.0, 4.0)])
    order = torch.randperm(2 * len(samples), generator=generator)
    sample_of_point = torch.arange(len(samples)).repeat(2)[order]
    points = samples.repeat(2, 1)[order] + torch.rand(2 * len(samples), 1, generator=generator) * 0.001
    index_of_sample = torch.stack([torch.nonzero(sample_of_point == s)[0, 0] for s in range(len(samples))])
    seen = torch.arange(2 * NUM)
    views = torch.zeros(len(samples), dtype=torch.int64)
    views[seen] = 1
    frame = Frame("0", camera_at(0.0), lambda: torch.zeros(3, 48, 64), lambda: torch.zeros(48, 64))
    scene = Scene("known", points, (frame,), split="val")
    spec = write_table(tmp_path)
    cards = {"blind": TeacherCard(3), "honest": TeacherCard(8, text=spec), "liar": TeacherCard(8, text=spec)}
    features = {
        "blind": torch.ones(len(seen), 3),
        "honest": vectors(["chair"] * NUM + ["rug"] * NUM),
        "liar": vectors(["lamp"] * NUM + ["rug"] * NUM),
    }
    store = Store.create(tmp_path / "store", cell=0.05, teachers=cards)
    visibility = Visibility((View.of(0, frame.camera, points[index_of_sample], seen),), views)
    store.add_scene(scene, Samples(index_of_sample, sample_of_point), visibility, features)
    truth = {word: (points[:, 0] - x).abs() < 1 for word, x in (("chair", 0.0), ("rug", 2.0), ("unseen", 4.0))}
    return store, truth


def test_the_points_that_answer_are_those_of_the_thing(known):
    store, truth = known
    chair, rug, elephant = Predictor.open(store).ask(store["known"], ["chair", "rug", "elephant"])
    assert torch.equal(chair.answers, truth["chair"])
    assert torch.equal(rug.answers, truth["rug"])
    assert (chair.verdict, rug.verdict, elephant.verdict) == ("here", "here", "absent")
    assert torch.equal(chair.scores, truth["chair"].float())
    assert torch.equal(chair.relevance > 0, truth["chair"])


def test_what_no_view_saw_is_neither_here_nor_absent(known):
    store, truth = known
    (elephant,) = Predictor.open(store).ask(store["known"], ["elephant"])
    assert torch.equal(elephant.seen, ~truth["unseen"])
    assert elephant.coverage == pytest.approx(2 / 3)


def test_a_scene_that_no_view_saw_is_not_answered(known, tmp_path, capsys):
    store, _ = known
    scene = store["known"]
    unseen = replace(scene, num_views=torch.zeros_like(scene.num_views))
    with pytest.raises(UnseenError, match=r"No view saw anything of known.*--run RUN"):
        Predictor.open(store).ask(unseen, ["chair"])


def test_a_teacher_of_classes_brings_its_calibration_and_its_classes(known, tmp_path):
    store, _ = known
    honest = store.teachers["honest"]
    assert Predictor.open(store).classes == ()
    assert Predictor.open(store).calibration == DEFAULT
    features = torch.ones(2, 8)
    samples = Samples(torch.arange(2), torch.arange(2))
    photo = Store.create(tmp_path / "photo", cell=0.05, teachers={"ade20k": replace(honest, weights_sha256=SHA256)})
    frame = Frame("0", camera_at(0.0), lambda: torch.zeros(3, 48, 64), lambda: torch.zeros(48, 64))
    view = View.of(0, frame.camera, torch.zeros(2, 3), torch.arange(2))
    visibility = Visibility((view,), torch.ones(2, dtype=torch.int64))
    photo.add_scene(Scene("a", torch.rand(2, 3), (frame,)), samples, visibility, {"ade20k": features})
    predictor = Predictor.open(photo)
    assert {"wall", "sofa", "couch"} < set(predictor.classes)
    assert "sky" not in predictor.classes
    assert predictor.calibration == calibration_of("ade20k") != DEFAULT
    assert predictor.calibration.measured_on in predictor.about
    # Two points are too few for a peak, so it is 0: absent by the default, unsure by this calibration.
    (chair,) = predictor.ask(photo["a"], ["chair"])
    assert (chair.peak, chair.verdict, chair.nearest_class) == (0, "unsure", None)  # a table need not know the classes
    (chair,) = replace(predictor, calibration=DEFAULT).ask(photo["a"], ["chair"])
    assert chair.verdict == "absent"


def test_classes_limit_what_a_predictor_says(known):
    store, _ = known

    class Words:
        num_channels = 8

        def __call__(self, texts):
            return vectors([text if text in WORDS else "car" for text in texts])  # contrast words too

    predictor = replace(Predictor.open(store), encoder=Words(), classes=("lamp", "rug"))
    chair, rug = predictor.ask(store["known"], ["chair", "rug"])
    assert (chair.verdict, chair.nearest_class) == ("unsure", "lamp")
    assert (rug.verdict, rug.nearest_class) == ("here", None)


def test_the_command_says_where_and_on_what_it_rests(known, tmp_path, capsys):
    store, _ = known
    arguments = ["query", str(store.path), "chair", "elephant", "--out"]
    assert main([*arguments, str(tmp_path / "out.json")]) == 0
    printed, notes = capsys.readouterr()
    assert "How far views disagree is left out" in " ".join(notes.split())  # this store does not hold it
    assert "'elephant': not in the 67 % that was seen" in printed
    assert "lifted features of honest" in printed
    written = json.loads((tmp_path / "out.json").read_text())["answers"]
    chair, elephant = written["chair"], written["elephant"]
    assert (chair["verdict"], chair["peak"], chair["coverage"], chair["teacher"]) == ("here", 1.0, 0.6667, "honest")
    assert chair["thresholds"] == asdict(DEFAULT)
    assert (DEFAULT.here, DEFAULT.absent) == (0.3, 0.05)
    assert chair["text_encoder"].startswith("table:")
    assert [place["num_points"] for place in chair["places"]] == [2 * NUM]
    assert chair["places"][0]["center"] == pytest.approx([0.12, 0.15, 0.0], abs=2e-3)
    assert (elephant["verdict"], elephant["places"]) == ("absent", [])
    assert main([*arguments, str(tmp_path / "out.ply")]) == 0
    columns = read_ply(tmp_path / "out.ply")
    rgb = torch.tensor([columns[name].tolist() for name in ("red", "green", "blue")]).T
    x = torch.tensor(columns["x"].tolist())
    looks = {word: rgb[(x - at).abs() < 1].unique(dim=0) for word, at in (("chair", 0), ("rug", 2), ("unseen", 4))}
    assert all(len(colors) == 1 for colors in looks.values())
    assert looks["chair"][0, 0] > looks["chair"][0, 1]  # hot
    assert looks["rug"][0, 0] == looks["rug"][0, 2]  # grey
    assert looks["unseen"][0, 2] > looks["unseen"][0, 0]  # blue
    assert main([*arguments, str(tmp_path / "out.html")]) == 0
    page = (tmp_path / "out.html").read_text()
    assert "No view saw 33 % of them" in page
    assert "seen by no view" in page


def test_the_teacher_that_answers_can_be_named(known, tmp_path, capsys):
    store, truth = known
    (lamp,) = Predictor.open(store, teacher="liar").ask(store["known"], ["lamp"])
    assert torch.equal(lamp.answers, truth["chair"])
    with pytest.raises(ValueError, match=r"has no teacher 'nobody'; it has blind, honest, liar"):
        Predictor.open(store, teacher="nobody")
    with pytest.raises(ValueError, match="blind has no text encoder"):
        Predictor.open(store, teacher="blind")
    out = tmp_path / "out.json"
    assert main(["query", str(store.path), "lamp", "--teacher", "liar", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["answers"]["lamp"]["verdict"] == "here"


def test_a_store_without_words_says_so(tmp_path):
    store = Store.create(tmp_path / "b", teachers={"dino": TeacherCard(3)})
    with pytest.raises(ValueError, match=r"cannot be asked with words: none of its teachers \(dino\)"):
        Predictor.open(store)


def test_a_word_that_the_table_lacks_is_named(known):
    store, _ = known
    with pytest.raises(ValueError, match="no 'sofa'"):
        Predictor.open(store).ask(store["known"], ["sofa"])


class Says(Student):
    """A student whose `words` head says one word left of x = 1 and another right of it."""

    def forward(self, coords, feats, heads=None):
        left = coords[:, 1] * 0.1 < 1
        return {"words": torch.where(left[:, None], vectors(["car"]), vectors(["sky"]))}


def test_an_imported_student_or_a_lone_file_answers_on_any_points(tmp_path, capsys):
    spec = write_table(tmp_path)
    torch.manual_seed(0)
    student = Student({"words": 8}, "MinkUNet14Mini")
    file = tmp_path / "student.safetensors"
    student.voxel_size, student.teachers = 0.1, {"words": asdict(TeacherCard(8, text=spec))}
    student.save(file)
    points = torch.rand(400, 3) * 2
    write_ply(tmp_path / "cloud.ply", cloud_columns(points, None))
    store = tmp_path / "store"
    fused = ["fuse", str(tmp_path / "cloud.ply"), "--teachers", "none", "--cell", "0.05", "--out", str(store)]
    assert main(fused) == 0
    out = tmp_path / "out.json"
    assert main(["query", str(store), "car", "--run", str(file), "--out", str(out)]) == 0
    answer = json.loads(out.read_text())["answers"]["car"]
    assert (answer["student"], answer["teacher"], answer["coverage"]) == (True, "words", 1.0)
    assert "a student of words" in capsys.readouterr().out
    predictor = Predictor.open(run=file)
    fake = Says({"words": 8}, "MinkUNet14Mini")
    scene = Store.open(store)["cloud"]
    (car,) = Predictor(predictor.teacher, predictor.text, predictor.encoder, fake, 0.1).ask(scene, ["car"])
    cell = (scene.points[scene.index_of_sample][scene.sample_of_point][:, 0] / 0.1).floor()
    assert torch.equal(car.answers, cell * 0.1 < 1)


def save_student(folder: Path, store: Store, *, voxel_size: float) -> Path:
    """Write a student of the teacher `honest`."""
    student = Student({"honest": 8}, "MinkUNet14Mini")
    student.voxel_size, student.teachers = voxel_size, {"honest": asdict(store.teachers["honest"])}
    student.save(folder / "s.safetensors")
    return folder / "s.safetensors"


def test_a_student_without_its_voxel_size_is_refused_and_an_official_one_has_it(tmp_path):
    student = Student({"lseg": 512}, "MinkUNet14Mini")
    student.save(tmp_path / "old.safetensors")
    with pytest.raises(ValueError, match="does not state its voxel size"):
        load_student(tmp_path / "old.safetensors")
    torch.save({"state_dict": as_official(student)}, tmp_path / "best.pth.tar")
    assert main(["import", str(tmp_path / "best.pth.tar"), "--out", str(tmp_path / "best.safetensors")]) == 0
    read = load_student(tmp_path / "best.safetensors")
    assert (read.voxel_size, read.teachers["lseg"].text) == (0.02, "lseg")


def test_finer_voxels_than_cells_are_refused(known, tmp_path):
    store, _ = known
    file = save_student(tmp_path, store, voxel_size=0.02)
    with pytest.raises(ValueError, match=r"0.02 m are finer than the cells .* 0.05 m"):
        Predictor.open(store, run=file)


def test_a_student_of_another_teacher_than_the_stores_is_told_or_refused(known, tmp_path):
    store, _ = known
    file = save_student(tmp_path, store, voxel_size=0.05)
    store.teachers["honest"] = replace(store.teachers["honest"], weights_sha256="other")
    with pytest.warns(UserWarning, match="another 'honest' than the one in .*differ in weights_sha256"):
        Predictor.open(store, run=file, teacher="honest")
    store.teachers["honest"] = replace(store.teachers["honest"], num_channels=9)
    with pytest.raises(ValueError, match=r"differ in num_channels, weights_sha256\. Lift that teacher under another"):
        Predictor.open(store, run=file, teacher="honest")


def test_five_scenes_are_asked_with_one_reading_of_the_student(known, tmp_path, monkeypatch):
    store, _ = known
    scene = store["known"]
    for index in range(4):
        again = Scene(f"copy{index}", scene.points, (), split="val")
        view = View.of(0, camera_at(0.0), scene.sample_points, scene.seen_samples)
        visibility = Visibility((view,), scene.num_views)
        features = {name: scene.features(name) for name in store.teachers}
        store.add_scene(again, Samples(scene.index_of_sample, scene.sample_of_point), visibility, features)
    file = save_student(tmp_path, store, voxel_size=0.1)
    reads = []
    from cuao3d import run

    read = run.read_checkpoint
    monkeypatch.setattr(run, "read_checkpoint", lambda path: (reads.append(path), read(path))[1])
    arguments = ["query", str(store.path), "chair", "--run", str(file), "--out", str(tmp_path / "out.json")]
    assert main(arguments) == 0
    assert reads == [file]
