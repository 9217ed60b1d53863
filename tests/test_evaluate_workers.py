"""Scores that several processes count together."""

from dataclasses import replace

import pytest

from conftest import ColorTeacher, in_turn
from cuao3d import evaluate, pipeline
from cuao3d.errors import InputError
from cuao3d.fusion import lift, sample_cells, see
from cuao3d.store import Store
from test_evaluate import SCANNET20, wavy_predictor


def test_several_processes_count_what_one_does(synthetic_scene, synthetic_store, monkeypatch):
    for number, name in enumerate("abc", start=1):
        points = synthetic_scene.points * (1 + 0.1 * number)
        labels = None if name == "b" else synthetic_scene.labels
        scene = replace(synthetic_scene, name=name, labels=labels, points=points)
        samples = sample_cells(scene.points, synthetic_store.cell)
        visibility = see(scene, samples)
        synthetic_store.add_scene(scene, samples, visibility, {"color": lift(scene, visibility, ColorTeacher())})
    synonyms = tuple({"wall": ("a screen",), "sofa": ("a couch",)}.get(name, ()) for name in SCANNET20.names)
    monkeypatch.setattr(Store, "label_set", lambda store, name: replace(SCANNET20, synonyms=synonyms))
    calls = []

    def rows(num_workers):
        how = {"split": None, "num_passes": 2, "ensemble": ("surer", "unit-average"), "num_workers": num_workers}
        progress = lambda *call: calls.append(call)  # noqa: E731
        return pipeline.evaluate(synthetic_store, wavy_predictor(), progress=progress, **how)

    alone = rows(1)
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    monkeypatch.setattr(evaluate, "side_by_side", in_turn)
    together = rows(2)
    assert calls[4:] == calls[:4]
    assert len({row.miou for row in alone}) == 3
    for one, other in zip(alone, together, strict=True):
        assert replace(other, trust=None) == replace(one, trust=None)
        assert (one.trust is None) == (one.ensemble == "surer")
        if one.trust is not None:
            assert (other.trust.auroc, other.trust.aurc) == pytest.approx((one.trust.auroc, one.trust.aurc))
            assert other.trust.calibration_error == pytest.approx(one.trust.calibration_error)
        counts = other.retrieval["synonyms"].num_present, other.retrieval["synonyms"].num_absent
        assert counts == (3, 3)  # a wall and no sofa in each of the three labelled scenes


@pytest.mark.parametrize("split", ["train", "val"])
def test_more_processes_than_scenes_count_no_scene_twice(synthetic_store, monkeypatch, split):
    synonyms = tuple(("a screen",) if name == "wall" else () for name in SCANNET20.names)
    monkeypatch.setattr(Store, "label_set", lambda store, name: replace(SCANNET20, synonyms=synonyms))
    if split == "val":  # there is no scene
        with pytest.raises(InputError, match="has no val scene with labels"):
            pipeline.evaluate(synthetic_store, wavy_predictor(), split=split, num_workers=3)
        return
    alone, together = (
        pipeline.evaluate(synthetic_store, wavy_predictor(), split=split, num_workers=number) for number in (1, 3)
    )
    assert together == alone
    assert together[0].retrieval["synonyms"].num_present == 1
