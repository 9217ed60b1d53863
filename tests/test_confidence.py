"""How sure labels are: who judges them, what is fitted, and what is withheld."""

import json
import math
from dataclasses import replace

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch.nn.functional import cross_entropy

from cuao3d.answers import _layers, how_sure
from cuao3d.cli import main
from cuao3d.confidence import (
    SHARES,
    UNFITTED,
    Fit,
    Ledger,
    Scored,
    divergence,
    fit_confidence,
    judge,
    keep_confidence,
    named_odds,
    read_confidence,
    signals,
)
from cuao3d.formats.ply import read_ply
from cuao3d.fusion import Samples, Visibility
from cuao3d.labels import label_set
from cuao3d.predictor import Predictor
from cuao3d.reliability import Levels
from cuao3d.scene import Scene
from cuao3d.store import Store, TeacherCard
from measure_trust import fit_noise

OF = {"teacher": "color", "weights_sha256": None}


def made(num_samples=300, num_classes=5, seed=0, noise=0.3):
    """A scene whose cosines are 0.5 for the true class, and noise; a third of the samples no view sees."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (num_samples,), generator=generator)
    truth = torch.nn.functional.one_hot(labels, num_classes) * 0.5
    in_2d, in_3d = (truth + noise * torch.randn(num_samples, num_classes, generator=generator) for _ in range(2))
    seen = torch.arange(num_samples) % 3 > 0
    in_2d = in_2d * seen[:, None]
    sample_of_point = torch.cat([torch.arange(num_samples), torch.arange(0, num_samples, 2)])
    return Scored(in_2d, in_3d, seen, sample_of_point), labels[sample_of_point]


def test_the_odds_of_a_class_are_those_of_its_share_in_the_softmax():
    cosines = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) / 3
    classes = cosines.argmax(dim=1)
    share = torch.exp(-cross_entropy(cosines.double() / 0.2, classes, reduction="none"))
    torch.testing.assert_close(named_odds(cosines, classes, 0.2), share.logit())
    certain = named_odds(torch.tensor([[1.0, -1.0]]), torch.tensor([0]), 0.001)
    assert certain.isfinite().all()


def test_the_divergence_is_that_of_scipy():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 15, 6, generator=generator)
    p, q = ((cosines.double() / 0.5).softmax(dim=1).numpy() for cosines in (one, other))
    expected = torch.from_numpy(jensenshannon(p, q, base=2, axis=1) ** 2)
    torch.testing.assert_close(divergence(one, other, 0.5), expected)
    assert float(divergence(one, one, 0.5).max()) == pytest.approx(0, abs=1e-12)
    apart = divergence(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 1e-3)
    assert float(apart) == pytest.approx(1)


def test_both_judge_what_a_view_sees_and_the_student_alone_the_rest():
    # Two classes: the log-odds are the difference of the cosines over the temperature.
    in_2d = torch.tensor([[0.6, 0.0], [0.0, 0.0], [0.2, 0.8]])
    in_3d = torch.tensor([[0.2, 0.4], [0.5, 0.1], [0.9, 0.1]])
    scored = Scored(in_2d, in_3d, torch.tensor([True, False, True]), torch.arange(3))
    fits = {"distilled": Fit(temperature=0.5, slope=2.0, offset=0.1), "3d": Fit(temperature=0.2)}
    found = judge("distilled", in_3d, scored, fits)
    assert found.classes.tolist() == [1, 0, 0]
    odds = [2 * (0.2 - 0.4) / 0.5 + 0.1, 0.4 / 0.2, 2 * (0.55 - 0.45) / 0.5 + 0.1]
    torch.testing.assert_close(found.confidence, torch.tensor(odds).sigmoid())
    lifted = judge("fused", in_2d, scored, fits)
    assert lifted.classes.tolist() == [0, 255, 1]
    assert float(lifted.confidence[1]) == 0  # no view, no label
    torch.testing.assert_close(lifted.confidence[0], torch.tensor(0.2 / UNFITTED.temperature).sigmoid())
    alone = judge("fused", in_2d, replace(scored, in_3d=None), {"2d": Fit(temperature=0.3)})
    torch.testing.assert_close(alone.confidence[0], torch.tensor(0.6 / 0.3).sigmoid())


def test_read_outs_are_those_that_there_are_and_2d3d_is_the_mean_where_a_view_sees():
    scored, _ = made()
    found = scored.readouts()
    assert set(found) == {"fused", "distilled", "2d3d"}
    both = torch.where(scored.seen[:, None], (scored.in_2d + scored.in_3d) / 2, scored.in_3d)
    assert torch.equal(found["2d3d"], both)
    assert set(replace(scored, in_2d=None).readouts()) == {"distilled"}
    assert set(replace(scored, in_3d=None).readouts()) == {"fused"}


def test_what_was_fitted_is_calibrated_in_fresh_scenes_and_keeps_its_promise():
    scenes = [made(seed=seed) for seed in range(24)]
    fits = fit_confidence(scenes, "a test")
    assert set(fits) == {"fused", "distilled", "2d3d", "3d"}
    ledger = Ledger(fits)
    for seed in range(100, 120):
        scored, labels = made(seed=seed)
        ledger.add(scored.readouts(), scored, labels)
    for readout in scored.readouts():
        trust = ledger.trust(readout)
        assert trust.measured_on == "a test"
        assert trust.calibration_error < 3
        assert trust.auroc > 0.6
    threshold = fits["2d3d"].threshold(0.05)
    assert threshold == fits["2d3d"].thresholds[SHARES.index(0.05)] == fits["2d3d"].threshold(0.07)
    assert 0.5 < threshold < 1


def test_counts_of_a_ledger_are_those_of_each_point():
    scored, labels = made(noise=0.6)
    labels[::7] = 255
    fits = dict.fromkeys(("fused", "distilled", "2d3d", "3d"), Fit(temperature=0.4))
    ledger = Ledger(fits)
    ledger.add(scored.readouts(), scored, labels)
    judged = judge("distilled", scored.in_3d, scored, fits)
    held = labels != 255
    of_point = scored.sample_of_point[held]
    exact = Levels.of(judged.confidence[of_point], judged.classes[of_point] != labels[held])
    trust = ledger.trust("distilled")
    assert trust.error == pytest.approx(100 * exact.error_at(1))
    assert trust.aurc == pytest.approx(100 * exact.aurc(), abs=0.1)
    assert trust.auroc == pytest.approx(exact.auroc(), abs=1e-3)
    assert ledger.levels("distilled").calibration_error() == pytest.approx(exact.calibration_error(), abs=2e-3)


def test_a_promise_needs_a_fit_and_a_share_that_was_fitted():
    with pytest.raises(ValueError, match="cuao3d store calibrate"):
        UNFITTED.threshold(0.05)
    fitted = Fit(thresholds=(None, 0.9, 0.8, 0.7, 0.6), measured_on="a test")
    assert [fitted.threshold(share) for share in (0.01, 0.05, 0.19, 0.5)] == [None, 0.8, 0.7, 0.6]
    for share in (0.001, 0.0, -1, 1.0, math.nan):
        with pytest.raises(ValueError, match="choose a share"):
            fitted.threshold(share)


def test_no_label_is_no_fit():
    scored, labels = made()
    with pytest.raises(ValueError, match="no point"):
        fit_confidence([(scored, torch.full_like(labels, 255))], "a test")


def test_what_is_kept_is_read_for_the_same_teacher_only(tmp_path):
    fits = {"2d": Fit(0.1, 2.0, -0.5, (None, 0.9, 0.8, 0.7, 0.6), "a test")}
    keep_confidence(tmp_path, "made100", fits, OF)
    keep_confidence(tmp_path, "scannet20", {"2d": UNFITTED}, OF)
    read = read_confidence(tmp_path, OF)
    assert list(read) == ["scannet20", "made100"]  # the last one first
    assert read["made100"] == fits
    assert read_confidence(tmp_path, OF | {"weights_sha256": "other"}) == {}
    path = tmp_path / "confidence.json"
    path.write_text(path.read_text().replace("0.9", "0.1"))
    with pytest.raises(ValueError, match="damaged"):
        read_confidence(tmp_path, OF)


def test_signals_are_high_where_labels_seem_right():
    scored, labels = made(noise=0.3)
    found = signals("distilled", scored, 0.2)
    wrong = scored.in_3d.argmax(dim=1) != labels[:300]
    for name, values in found.items():
        assert Levels.of(values, wrong).auroc() > 0.55, name
    shares = (scored.in_3d.double() / 0.2).softmax(dim=1).sort(dim=1, descending=True).values
    torch.testing.assert_close(found["margin"], shares[:, 0] - shares[:, 1])
    torch.testing.assert_close(found["entropy"], (shares * shares.log()).sum(dim=1))
    assert "2D-3D divergence" not in signals("fused", replace(scored, in_3d=None), 0.2)


# What a person gets: columns, the promise, tables and pictures.


@pytest.fixture
def labelled(tmp_path):
    """A store of 20 scenes of two words, and the toy words in which it is asked; the last scene is of the split val."""
    torch.save(torch.eye(2), tmp_path / "words.pt")
    (tmp_path / "words_names.txt").write_text("chair\nrug")
    (tmp_path / "two.csv").write_text("id,name,r,g,b,prompt\n3,chair,1,2,3,chair\n5,rug,4,5,6,rug\n")
    text = f"table:{tmp_path / 'words.pt'}"
    store = Store.create(tmp_path / "store", cell=0.02, teachers={"words": TeacherCard(2, text)})
    for index in range(20):
        generator = torch.Generator().manual_seed(index)
        truth = torch.randint(0, 2, (60,), generator=generator)
        unsure = 0.75 * torch.rand(60, generator=generator)
        flipped = torch.rand(60, generator=generator) < unsure - 0.2
        angle = torch.where((truth == 1) ^ flipped, math.pi / 2 - unsure, unsure)
        features = torch.stack([angle.cos(), angle.sin()], dim=1)[1:]
        points = torch.cartesian_prod(torch.arange(6), torch.arange(10), torch.tensor([0])) * 0.05
        scene = Scene(f"s{index:02}", points, (), labels=3 + 2 * truth, label_set=str(tmp_path / "two.csv"))
        scene = replace(scene, split="val" if index == 19 else "train")
        own = torch.arange(60)
        seen = Visibility((), torch.tensor([0] + [2] * 58 + [1]))
        apart = {"words": torch.cat([unsure[1:-1], torch.tensor([math.nan])])}
        store.add_scene(scene, Samples(own, own), seen, {"words": features}, disagreement=apart)
    return store, str(tmp_path / "two.csv")


def test_columns_and_promise_reach_a_person(labelled, tmp_path, capsys):
    store, labels = labelled
    out, shown = tmp_path / "out.ply", tmp_path / "out.json"
    ask = ["query", str(store.path), "chair", "--scene", "s19"]
    with pytest.raises(ValueError, match="cuao3d store calibrate"):
        Predictor.open(store).segment(store["s19"], label_set(labels), abstain=0.1)
    assert main([*ask, "--out", str(out)]) == 0
    assert "How far views disagree" not in capsys.readouterr().err
    assert "confidence" not in read_ply(out)  # nothing was fitted yet
    assert read_ply(out)["disagreement"][1:59] == pytest.approx(store["s19"].disagreement("words")[:58].numpy())
    assert math.isnan(read_ply(out)["disagreement"][0])
    assert math.isnan(read_ply(out)["disagreement"][59])
    assert main([*ask, "--out", str(out), "--abstain", "0.1"]) == 2
    assert main(["store", "calibrate", str(store.path), "--labels", labels, "--split", "train"]) == 0
    assert main([*ask, "--out", str(out), "--abstain", "0.1"]) == 0
    assert "in 19 of 20 such scenes" in capsys.readouterr().out
    judged = Predictor.open(store).judge(store["s19"], label_set(labels), abstain=0.1)
    columns = read_ply(out)
    assert columns["confidence"] == pytest.approx(judged.confidence.numpy())
    assert columns["confidence"][0] == 0
    kept = columns["label"] != 255
    assert set(columns["label"][kept]) == {3, 5}
    assert 10 < kept.sum() < 59
    assert (columns["label"][kept] != store["s19"].labels.numpy()[kept]).mean() <= 0.1
    assert columns["confidence"][kept].min() >= columns["confidence"][1:][~kept[1:]].max()
    layers = _layers(store["s19"], how_sure(store, Predictor.open(store), store["s19"], 0.1), None)
    layer = layers["Where the label is withheld"]
    assert layer.values.tolist() == (~kept).astype(float).tolist()
    assert "in 19 of 20 such scenes" in layer.answer
    assert main([*ask, "--out", str(shown), "--abstain", "0.1"]) == 0
    written = json.loads(shown.read_text())
    assert written["confidence"]["labelled"] == pytest.approx(kept.mean(), abs=1e-4)
    assert written["confidence"]["abstain"] == 0.1
    for place in written["answers"]["chair"]["places"]:
        assert 0.5 < place["confidence"] <= 1
        assert 0 <= place["disagreement"] <= 0.75


def test_evaluate_prints_and_draws_how_far_labels_can_be_trusted(labelled, tmp_path, capsys):
    store, labels = labelled
    evaluate = ["evaluate", str(store.path), "--labels", labels, "--json", str(tmp_path / "rows.json")]
    assert main([*evaluate]) == 0
    assert "not fitted" in capsys.readouterr().out
    assert main(["store", "calibrate", str(store.path), "--labels", labels, "--split", "train"]) == 0
    assert main([*evaluate, "--curves", str(tmp_path / "curves.png")]) == 0
    printed = capsys.readouterr().out
    assert "AUROC" in printed
    assert "lifted features of words in 19 scenes" in printed
    trust = json.loads((tmp_path / "rows.json").read_text())["rows"][0]["trust"]
    scene, predictor = store["s19"], Predictor.open(store)
    judged = predictor.judge(scene, label_set(labels))
    held = judged.classes != 255
    wrong = judged.classes[held] != label_set(labels).classes(scene.labels)[held]
    exact = Levels.of(judged.confidence[held], wrong)
    assert trust["auroc"] == pytest.approx(exact.auroc())
    assert trust["error_at"]["50"] == pytest.approx(100 * exact.error_at(0.5))
    assert trust["calibration_error"] == pytest.approx(100 * exact.calibration_error(), abs=0.1)
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert main([*evaluate, "--curves", str(tmp_path / "curves.txt")]) == 2
    assert ".png" in capsys.readouterr().err


def test_the_heteroscedastic_head_finds_the_noise_of_each_group():
    # Of a group with a constant input, L exp(-s) / 2 + s / 2 is least where exp(s) is the mean loss.
    hidden = torch.eye(2)[[0, 0, 1, 1]]
    noise = fit_noise(hidden, torch.tensor([0.1, 0.3, 0.4, 0.8]))
    assert noise(torch.eye(2)).exp().tolist() == pytest.approx([0.2, 0.6], rel=1e-5)
