"""Facts where rooms meet, through the command line: stores and captures whose answers are known point by point."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import ColorTeacher, camera_at
from cuao3d.cli import main
from cuao3d.formats.ply import read_ply
from cuao3d.fusion import Samples, Visibility, lift_measured, sample_cells, see
from cuao3d.labels import label_set
from cuao3d.predictor import Predictor
from cuao3d.readers import open_dataset
from cuao3d.scene import Scene
from cuao3d.store import Store, TeacherCard
from cuao3d.student import Student
from written import write_sevenscenes

GAP = 0.06
"""Distance of neighbouring samples, metres; more than a cell."""


def table_of(name: str, folder: Path) -> str:
    """A text encoder that gives each class of a label set an axis of its own."""
    torch.save(torch.eye(len(label_set(name))), folder / f"{name}.pt")
    return f"table:{folder / f'{name}.pt'}@{name}"


def class_of(name: str, classes: str) -> int:
    return label_set(classes).names.index(name)


def store_of(folder: Path, classes: str) -> Store:
    """A store without scenes, whose teacher's features are compared with a table of classes."""
    card = TeacherCard(len(label_set(classes)), text=table_of(classes, folder))
    return Store.create(folder / "store", cell=0.05, teachers={"words": card})


def add_scene(
    store: Store,
    name: str,
    samples: Tensor,
    features: Sequence[Tensor | None],
    *,
    labels: Tensor | None = None,
    classes: str = "nyu40",
    split: str = "val",
) -> None:
    """Add a scene of the given samples, each of which stands for two points.

    Neither the points nor those samples that are seen come in the order of the samples. A feature of None: not seen.
    `labels` has one for each of the two points, in the classes.
    """
    order = torch.randperm(2 * len(samples), generator=torch.Generator().manual_seed(0))
    points = (samples[:, None] + torch.tensor([0.0, 0.01])[:, None]).flatten(0, 1)[order]
    sample_of_point = torch.arange(len(samples)).repeat_interleave(2)[order]
    index_of_sample = torch.stack([torch.nonzero(sample_of_point == sample)[-1, 0] for sample in range(len(samples))])
    ids = None if labels is None else torch.tensor(label_set(classes).ids)[labels].flatten()[order]
    scene = Scene(name, points, (), labels=ids, label_set=None if ids is None else classes, split=split)
    num_views = torch.tensor([0 if feature is None else 3 for feature in features])
    rows = torch.stack([feature for feature in features if feature is not None])
    store.add_scene(scene, Samples(index_of_sample, sample_of_point), Visibility((), num_views), {"words": rows})


def one_hot(name: str, classes: str) -> Tensor:
    return torch.eye(len(label_set(classes)))[class_of(name, classes)]


@pytest.fixture
def heaps(tmp_path: Path) -> tuple[Store, dict[str, Tensor]]:
    """Three heaps of samples: chair at x = 0, sofa at x = 2, faint chair at x = 4; of seven samples one is unseen.

    Also says which points of the scene each is. Another scene, before it in the alphabet, has but faint chairs.
    """
    chair, sofa, toilet = (one_hot(name, "nyu40") for name in ("chair", "sofa", "toilet"))
    faint = 0.998 * chair + 0.063 * toilet  # its relevance is 0.935: the cosine with chair less that with toilet
    small, large = (torch.cartesian_prod(torch.arange(n), torch.arange(6), torch.tensor([0])) * GAP for n in (8, 12))
    samples = torch.cat([small, small + torch.tensor([2.0, 0, 0]), large + torch.tensor([4.0, 0, 0])])
    said = [chair] * len(small) + [sofa] * len(small) + [faint] * len(large)
    seen = torch.arange(len(samples)) % 7 != 3
    features = [feature if one else None for feature, one in zip(said, seen, strict=True)]
    store = store_of(tmp_path, "nyu40")
    add_scene(store, "cellar", large, [faint] * len(large))
    add_scene(store, "known", samples, features)
    scene = store["known"]
    heap = (scene.points[:, 0] / 2).round().where(seen[scene.sample_of_point], -1)
    return store, {name: heap == number for number, name in enumerate(("chair", "sofa", "faint"))}


def test_places_are_made_of_just_the_points_that_answer_and_the_best_comes_first(heaps, tmp_path):
    store, points_of = heaps
    assert main(["query", str(store.path), "sofa", "chair", "--out", str(tmp_path / "out.json")]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["scene"] == "known"
    for thing, expected in (("sofa", ["sofa"]), ("chair", ["chair", "faint"])):
        places = written["answers"][thing]["places"]
        assert len(places) == len(expected)
        for place, name in zip(places, expected, strict=True):
            own = store["known"].points[points_of[name]]
            assert place["num_points"] == len(own)
            assert place["center"] == pytest.approx(own.mean(dim=0).tolist(), abs=1e-3)
            extent = (own.amax(dim=0) - own.amin(dim=0))[:2].sort(descending=True).values.tolist()
            assert place["box"]["size"] == pytest.approx([*extent, 0.01], abs=1e-3)
            assert place["relevance"] == pytest.approx(0.935 if name == "faint" else 1, abs=2e-3)


def test_the_cloud_glows_at_just_the_points_that_answer(heaps, tmp_path):
    store, points_of = heaps
    out = tmp_path / "out.ply"
    assert main(["query", str(store.path), "sofa", "--scene", "known", "--out", str(out)]) == 0
    columns = {name: torch.from_numpy(column.copy()) for name, column in read_ply(out).items()}
    assert torch.equal(torch.stack([columns[axis] for axis in "xyz"], dim=1), store["known"].points)
    colors = torch.stack([columns[name].long() for name in ("red", "green", "blue")], dim=1)
    (hot,) = colors[points_of["sofa"]].unique(dim=0)
    assert torch.equal((colors == hot).all(dim=1), points_of["sofa"])


def test_a_predictor_that_is_asked_again_answers_anew_point_by_point(heaps):
    store, points_of = heaps
    scene, predictor = store["known"], Predictor.open(store)
    unseen = ~(points_of["chair"] | points_of["sofa"] | points_of["faint"])
    relevance = {
        "chair": points_of["chair"] + 0.935 * points_of["faint"],
        "sofa": points_of["sofa"].float(),
    }
    for word in ("sofa", "chair", "sofa"):
        (answer,) = predictor.ask(scene, [word])
        torch.testing.assert_close(answer.relevance.clamp(min=0), relevance[word], atol=2e-3, rtol=0)
        assert torch.equal(answer.answers, relevance[word] > 0.5)
        assert torch.equal(answer.seen, ~unseen)
    chair, sofa = (class_of(name, "nyu40") for name in ("chair", "sofa"))
    expected = torch.full((len(scene.points),), 255).where(unseen, chair).where(~points_of["sofa"], sofa)
    assert torch.equal(predictor.segment(scene, label_set("nyu40")), expected)


@pytest.mark.parametrize(
    ("classes", "background"),
    [
        ("nyu40", ("wall", "floor", "ceiling", "otherfurniture", "otherstructure", "otherprop")),
        ("matterport21", ("wall", "floor", "ceiling", "other")),
        ("scannet20", ("wall", "floor", "otherfurniture")),
    ],
)
def test_scores_of_the_command_by_hand(tmp_path, classes, background):
    # The labels of a sample's two points, and what its feature says.
    planned = [(name, name, "bed") for name in background] * 2 + [
        *[("door", "door", "door")] * 3,
        ("door", "door", None),
        *[("chair", "door", "chair")] * 2,
        ("chair", "chair", "wall, chair"),
    ]
    planned = [
        planned[row] for row in torch.randperm(len(planned), generator=torch.Generator().manual_seed(1)).tolist()
    ]
    labels = torch.tensor([[class_of(first, classes), class_of(second, classes)] for first, second, _ in planned])
    features = [
        None if said is None else sum(0.5**rank * one_hot(name, classes) for rank, name in enumerate(said.split(", ")))
        for *_, said in planned
    ]
    samples = torch.arange(len(planned))[:, None] * torch.tensor([GAP, 0, 0])
    store = store_of(tmp_path, classes)
    add_scene(store, "known", samples, features, labels=labels, classes=classes)
    add_scene(store, "learned", samples, features, labels=labels.flip(0), classes=classes, split="train")
    assert main(["evaluate", str(store.path), "--labels", classes, "--json", str(tmp_path / "rows.json")]) == 0
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    num_classes, num_points = len(background) + 2, 4 * len(background) + 14
    door, chair = 6 / 10, 2 / (4 + 4 - 2)  # right / (labelled + called - right)
    assert row["iou"] == pytest.approx({"door": 100 * door, "chair": 100 * chair} | dict.fromkeys(background, 0.0))
    assert row["foreground_miou"] == pytest.approx(100 * (door + chair) / 2)
    # Where no wall can be called, one more sample of two points is a chair.
    assert row["fmiou"] == pytest.approx(100 * (door + 4 / 6) / 2)
    assert row["miou"] == pytest.approx(100 * (door + chair) / num_classes)
    assert row["macc"] == pytest.approx(100 * (6 / 10 + 2 / 4) / num_classes)
    assert row["miou_official"] == pytest.approx(100 * (6 / 8 + chair) / len(label_set(classes)))
    assert row["num_points"] == num_points
    assert row["coverage"] == pytest.approx(100 * (1 - 2 / num_points))


def test_2d3d_joins_unit_features_unless_told(tmp_path, capsys):
    """The student says (wall 0, picture 0.6, sofa 0.1) everywhere: as a unit, picture 0.986 and sofa 0.164."""
    wall, picture, sofa = (one_hot(name, "scannet20") for name in ("wall", "picture", "sofa"))
    planned = [
        (8 * wall + 6 * sofa, "picture"),  # 0.4 wall, 0.493 picture; the mean of both as they are would say wall
        (0.1 * wall, "wall"),  # 0.5 wall, 0.493 picture; the mean of both as they are would say picture
        (0.99 * wall + 0.14 * picture, "picture"),  # 0.495 wall, 0.563 picture; the surer of the two would say wall
        (None, "picture"),  # the student alone
    ] * 3
    labels = torch.tensor([[class_of(name, "scannet20")] * 2 for _, name in planned])
    samples = torch.arange(len(planned))[:, None] * torch.tensor([GAP, 0, 0])
    store = store_of(tmp_path, "scannet20")
    add_scene(store, "known", samples, [feature for feature, _ in planned], labels=labels, classes="scannet20")
    student = Student({"words": 20}, "MinkUNet14Mini")
    student.heads["words"].weight.data.zero_()
    student.heads["words"].bias = 0.6 * picture + 0.1 * sofa
    student.voxel_size, student.teachers = 0.05, {"words": asdict(store.teachers["words"])}
    file = tmp_path / "constant.safetensors"
    student.save(file)
    command = ["evaluate", str(store.path), "--run", str(file), "--json", str(tmp_path / "rows.json")]
    assert main(command) == 0
    distilled, joined = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (distilled["readout"], joined["readout"]) == ("distilled", "2d3d")
    assert distilled["iou"] == pytest.approx({"wall": 0, "picture": 75})
    assert joined["iou"] == pytest.approx({"wall": 100, "picture": 100})
    told = capsys.readouterr()
    assert "2d3d, unit-average, 1x" in told.out
    assert "does not tell which scenes its student was trained on" in told.err

    assert main([*command, "--ensemble", "surer", "average", "--passes", "2"]) == 0
    _, surer, average = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["ensemble"], row["passes"]) for row in (surer, average)] == [("surer", 2), ("average", 2)]
    # Picture, wall, wall, picture; then wall, picture, wall, picture: right / (labelled + called - right).
    assert surer["iou"] == pytest.approx({"wall": 100 / 2, "picture": 100 * 2 / 3})
    assert average["iou"] == pytest.approx({"wall": 0, "picture": 100 / 4})
    assert "2d3d, average, 2x" in capsys.readouterr().out
    for option in (["--passes", "5"], ["--ensemble", "surer"], ["--train-mode"]):
        assert main(["evaluate", str(store.path), *option]) == 2
        assert f"{option[0]} is about a student; name one: --run RUN." in capsys.readouterr().err


TEACHER = """
from torch.nn import functional

class Color:
    name, num_channels = "color", 3

    def __call__(self, image):
        return functional.avg_pool2d(image, 4)
"""


@pytest.fixture
def lifted(synthetic_scene: Scene, tmp_path: Path) -> tuple[Scene, Store]:
    """The synthetic capture with a third view, of nothing, as it is read; and what `fuse` made of it."""
    away = replace(synthetic_scene.frames[0], camera=replace(camera_at(0.0), world_from_camera=_turned_round()))
    folder = write_sevenscenes(replace(synthetic_scene, frames=(*synthetic_scene.frames, away)), tmp_path / "capture")
    (tmp_path / "my_teacher.py").write_text(TEACHER)
    arguments = [
        "--teachers",
        f"{tmp_path / 'my_teacher.py'}:Color",
        "--cell",
        "0.05",
        "--out",
        str(tmp_path / "store"),
    ]
    assert main(["fuse", str(folder), *arguments]) == 0
    return open_dataset(folder)[0], Store.open(tmp_path / "store")


def _turned_round() -> Tensor:
    return camera_at(0.0).world_from_camera @ torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64))


def test_fuse_records_what_was_lifted_and_how_well_the_views_agree(lifted):
    scene, store = lifted
    stored = store["capture"]
    samples = sample_cells(scene.points, 0.05)
    visibility = see(scene, samples)
    by_hand = lift_measured(scene, visibility, ColorTeacher())
    assert torch.equal(stored.index_of_sample, samples.index_of_sample)
    assert torch.equal(stored.num_views, visibility.num_views)
    torch.testing.assert_close(stored.features("color"), by_hand.features.half())
    about = store.lifting("capture")["color"]
    assert len(scene.frames) == 3
    assert about.num_views == 2  # the third sees nothing, so it is shown to no teacher
    assert about.agreement == pytest.approx(by_hand.agreement, abs=1e-4)
    assert about.seconds > 0


def test_fuse_sees_by_the_tolerance_of_the_capture(synthetic_scene, tmp_path):
    # A tenth behind the wall: within a quarter of its depth, not within a twentieth.
    behind = synthetic_scene.points[synthetic_scene.labels == 0] + torch.tensor([0, 0.2, 0])
    for tolerance, is_seen in ((0.25, True), (0.05, False)):
        scene = replace(synthetic_scene, points=behind, colors=None, labels=None, occlusion_tolerance=tolerance)
        folder = write_sevenscenes(scene, tmp_path / f"capture{tolerance}")
        out = tmp_path / f"store{tolerance}"
        assert main(["fuse", str(folder), "--teachers", "none", "--cell", "0.05", "--out", str(out)]) == 0
        assert bool(Store.open(out)[folder.name].num_views.any()) == is_seen
