"""Facts about the ablation: its grid of rates, its branches, its controls, and what its page may claim."""

import pytest
import torch

import ablation_page
from ablate import Arm, Job
from ablation_page import World, write_page
from conftest import ColorTeacher
from cuao3d.files import write_json
from cuao3d.pipeline import fuse
from cuao3d.readers import open_dataset
from cuao3d.reproduce.arms import ARMS
from cuao3d.reproduce.controls import add_controls
from cuao3d.store import Store

LENGTHS = (500, 1000)


def scored(**miou_of_arm):
    """Scores of three seeds for each arm, whose mIoU is given and rises by 1 per doubling."""
    return {
        (arm.replace("_", " "), steps, seed): {"distilled": {"miou": miou + seed + gain}, "2d3d": {"miou": 50.0}}
        for arm, miou in miou_of_arm.items()
        for gain, steps in enumerate(LENGTHS)
        for seed in range(3)
    }


def page_of(tmp_path, scores, headroom=9.0):
    rates = {arm: (0.016, arm != "conditioned") for arm, _, _ in scores}
    (tmp_path / "images").mkdir(exist_ok=True)
    write_page(tmp_path / "ablation.md", [World("houses", LENGTHS, rates, headroom, scores)])
    return (tmp_path / "ablation.md").read_text()


def verdict(page, claim):
    (line,) = (line for line in page.splitlines() if line.startswith(f"- {claim}:"))
    return line.rpartition("**")[0].rpartition("**")[2]


CLAIM = "Three teachers beat LSeg alone, conditioned"


def test_a_claim_stands_only_beside_a_perfect_teacher_that_gains(tmp_path):
    arms = {"LSeg only": 20.0, "conditioned": 25.0, "conditioned, oracle": 30.0, "conditioned, shuffled": 20.0}
    page = page_of(tmp_path, scored(**arms))
    assert verdict(page, CLAIM) == "held"
    assert "+5.0 ± 0.0" in page
    assert "oracle +10.0 ± 0.0; shuffled +0.0 ± 0.0" in page
    assert "| 0.016, at the edge |" in page
    assert verdict(page_of(tmp_path, scored(**arms | {"conditioned": 18.0})), CLAIM) == "not held"
    blind = scored(**arms | {"conditioned": 18.0, "conditioned, oracle": 20.0})
    assert verdict(page_of(tmp_path, blind), CLAIM).startswith("not decidable here: a perfect teacher")
    low = page_of(tmp_path, scored(**arms | {"conditioned": 18.0}), headroom=4.9)
    assert verdict(low, CLAIM).startswith("not decidable here: the teachers know only 4.9")
    assert "Sigma beats equal weights: not run" in page


def test_intervals_are_those_of_student(tmp_path):
    low, high = ablation_page.bounds([1.0, 2.0, 3.0])  # 2 +- 4.303 / sqrt(3)
    assert (low, high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert ablation_page.interval([1.0, 2.0, 3.0], sign=True) == "+2.0 ± 2.5"
    assert ablation_page.interval([1.5]) == "1.5"


@pytest.fixture
def arm(tmp_path, monkeypatch):
    arm = Arm("LSeg only", tmp_path / "store", tmp_path / "runs", (500, 1000), [0.008, 0.016])
    monkeypatch.setattr(
        Arm, "_job", lambda self, name, rate, steps, seed, split: Job(self.out / name, self.store, rate, split)
    )
    return arm


def test_the_grid_of_rates_grows_until_its_best_is_inside(arm):
    of_rate = {0.008: 10.0, 0.016: 12.0, 0.032: 13.0, 0.064: 11.0}
    rounds = 0
    while missing := list(arm.tuning()):
        rounds += 1
        for job in missing:
            write_json(job.out / "score.json", {"distilled": {"miou": of_rate[job.config]}})
    assert (arm.rate, arm.rates, rounds) == (0.032, [0.008, 0.016, 0.032, 0.064], 3)


def test_a_collapsed_rate_is_never_the_best(arm):
    for rate, score in {
        0.008: {"collapsed": "why"},
        0.016: {"distilled": {"miou": 1.0}},
        0.032: {"collapsed": ""},
    }.items():
        write_json(arm.out / f"tune-{rate:g}" / "score.json", score)
    assert list(arm.tuning()) == []
    assert arm.rate == 0.016


def test_controls_know_nothing_or_everything(tmp_path, room_folder):
    lifted = fuse(open_dataset(room_folder), [ColorTeacher()], tmp_path / "lifted", cell=0.05)
    add_controls(lifted, tmp_path / "store")
    copy = Store.open(tmp_path / "store")
    assert set(copy.teachers) == {"color", "shuffled-color", "oracle"}
    for name in copy.names():
        scene = copy[name]
        real, dealt = (scene.features(teacher).float() for teacher in ("color", "shuffled-color"))
        assert torch.equal(real.sort(dim=0).values, dealt.sort(dim=0).values)
        assert not torch.equal(real, dealt)
        labels = scene.labels[scene.index_of_sample][scene.seen_samples]
        oracle = scene.features("oracle").float()
        for label in labels.unique():
            assert len(oracle[labels == label].unique(dim=0)) == 1
    assert all(set(arm.teachers) & set(ARMS["LSeg only"].teachers) for arm in ARMS.values())
