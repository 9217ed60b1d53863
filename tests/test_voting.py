"""Facts about votes of views."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from conftest import PICTURE, PICTURE_COLOR, WALL, WALL_COLOR, Alone, ColorTeacher
from cuao3d.cli import main
from cuao3d.errors import InputError
from cuao3d.fusion import sample_cells
from cuao3d.geometry import visible_points
from cuao3d.labels import label_set
from cuao3d.pipeline import fuse
from cuao3d.readers import open_dataset
from cuao3d.readers.sevenscenes import write_capture
from cuao3d.teachers import TEACHERS
from cuao3d.voting import score_voting, vote

SCANNET20 = label_set("scannet20")


@pytest.fixture
def color_vectors():
    """Wall and picture by their colours; the mixture of both is called a curtain."""
    vectors = torch.full((20, 3), -1.0)
    vectors[WALL], vectors[PICTURE] = torch.tensor(WALL_COLOR), torch.tensor(PICTURE_COLOR)
    vectors[SCANNET20.names.index("curtain")] = torch.tensor([0.5, 0.5, 0.3])
    return functional.normalize(vectors, dim=1)


def test_votes_are_those_of_a_slow_loop(synthetic_scene, color_vectors):
    samples = sample_cells(synthetic_scene.points, 0.05)
    points = synthetic_scene.points[samples.index_of_sample]
    expected = [Counter() for _ in points]
    for frame in synthetic_scene.frames:
        large = functional.interpolate(ColorTeacher()(frame.read_image())[None], size=(48, 64), mode="bicubic")[0]
        seen = visible_points(points, frame.camera, frame.read_depth(), occlusion_tolerance=0.25, border=10)
        for sample, pixel in zip(seen.index.tolist(), seen.pixels.round().long().tolist(), strict=True):
            feature = large[:, pixel[1], pixel[0]]
            expected[sample][int(functional.cosine_similarity(feature[None], color_vectors).argmax())] += 1
    votes = vote(synthetic_scene, samples, ColorTeacher(), color_vectors)
    assert [Counter({k: n for k, n in enumerate(row) if n}) for row in votes.of_class.tolist()] == expected
    assert votes.num_views.tolist() == [counter.total() for counter in expected]
    assert {max(counter, key=counter.get) for counter in expected if counter} > {WALL, PICTURE}


class Blind(ColorTeacher):
    """Sees nothing: features of zeros."""

    def __call__(self, image):
        return 0 * super().__call__(image)


def test_a_pixel_without_a_feature_is_no_vote_and_an_image_that_is_gone_no_view(synthetic_scene, color_vectors):
    samples = sample_cells(synthetic_scene.points, 0.05)
    whole = vote(synthetic_scene, samples, ColorTeacher(), color_vectors)
    assert not vote(synthetic_scene, samples, Blind(), color_vectors).of_class.any()

    def gone():
        raise InputError("gone")

    first, second = synthetic_scene.frames
    half = vote(
        replace(synthetic_scene, frames=(replace(first, read_image=gone), second)),
        samples,
        ColorTeacher(),
        color_vectors,
    )
    alone = vote(replace(synthetic_scene, frames=(second,)), samples, ColorTeacher(), color_vectors)
    assert torch.equal(half.of_class, alone.of_class)
    assert torch.equal(half.num_views, alone.num_views)
    assert half.num_views.sum() < whole.num_views.sum()


def test_the_majority_is_scored_on_the_points(synthetic_scene, synthetic_store, color_vectors):
    row = score_voting(
        synthetic_store, Alone(synthetic_scene), ColorTeacher(), SCANNET20, color_vectors, split="train", name="toy"
    )
    scene = synthetic_store["synthetic"]
    votes = vote(synthetic_scene, sample_cells(scene.points, 0.05), ColorTeacher(), color_vectors).of_class
    named = [row.index(max(row)) if any(row) else None for row in votes.tolist()]
    labels = scene.labels.tolist()
    called = [named[sample] for sample in scene.sample_of_point.tolist()]
    for name, label in (("wall", WALL), ("picture", PICTURE)):
        both = sum(is_ == says == label for is_, says in zip(labels, called, strict=True))
        either = sum(label in pair for pair in zip(labels, called, strict=True))
        assert row.iou[name] == pytest.approx(100 * both / either)
    assert (row.model, row.readout, row.dataset, row.passes) == ("none", "voting", "toy", 1)


def test_other_data_than_the_store_was_lifted_from_are_refused(synthetic_scene, synthetic_store, color_vectors):
    def score(scene):
        score_voting(synthetic_store, Alone(scene), ColorTeacher(), SCANNET20, color_vectors, split=None)

    with pytest.raises(InputError, match="The data have no scene synthetic"):
        score(replace(synthetic_scene, name="another"))
    with pytest.raises(InputError, match=r"other points in synthetic than .*store; lift it again"):
        score(replace(synthetic_scene, points=synthetic_scene.points + 1))
    with pytest.raises(InputError, match=r"other views of synthetic than .*store; lift it again"):
        score(replace(synthetic_scene, frames=synthetic_scene.frames[:1]))


class Registered(ColorTeacher):
    """As those that come with the package."""

    text, loss, licence, about, weights_sha256 = None, "cosine", None, "of colours", None

    def __init__(self, weights=None):
        assert weights is None


def test_the_command_lets_the_teacher_of_the_store_vote(synthetic_scene, color_vectors, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TEACHERS, "color", Registered)
    write_capture(replace(synthetic_scene, split="train"), tmp_path / "capture")
    data = open_dataset(tmp_path / "capture")
    store = fuse(data, [Registered()], tmp_path / "store", cell=0.05)
    torch.save(color_vectors, tmp_path / "words.pt")
    command = ["evaluate", str(store.path), "--text", f"table:{tmp_path / 'words.pt'}@scannet20", "--split", "all"]
    command += ["--voting", str(tmp_path / "capture"), "--json", str(tmp_path / "rows.json")]
    assert main(command) == 0
    fused, voting = json.loads((tmp_path / "rows.json").read_text())["rows"]
    expected = score_voting(store, data, ColorTeacher(), SCANNET20, color_vectors, split=None)
    assert (fused["readout"], voting["readout"], voting["iou"]) == ("fused", "voting", expected.iou)
    assert "voting" in capsys.readouterr().out
    monkeypatch.setattr(Registered, "weights_sha256", "0" * 64)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "color is not the teacher that" in error
    assert "its weights_sha256 is" in error
    monkeypatch.delitem(TEACHERS, "color")
    assert main(command) == 2
    assert "color is not known by its name" in capsys.readouterr().err
