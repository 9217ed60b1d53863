import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuao3d.augment import Augmentation
from cuao3d.batches import Batches, TrainingScene
from cuao3d.fusion import Samples, Visibility
from cuao3d.labels import label_set
from cuao3d.scene import Scene
from cuao3d.store import Store
from cuao3d.student import Norm, Student
from cuao3d.supervise import HEAD, SuperviseConfig, class_weights, majority_class, score, supervise
from cuao3d.training import make_student

CONFIG = SuperviseConfig(
    voxel_size=0.1,
    architecture="MinkUNet14Mini",
    num_steps=10,
    batch_size=1,
    optimizer="adamw",
    learning_rate=5e-3,
    schedule="cosine",
    augmentation=Augmentation(flip=False, shift=False),
)


@given(seed=st.integers(0, 999), num_classes=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_majority_equals_a_loop_over_the_voxels(seed, num_classes):
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(num_classes, (40,), generator=generator)
    rows = torch.randperm(40, generator=generator)[:30]
    offsets = torch.cat([torch.tensor([0]), torch.randperm(29, generator=generator)[:8].sort().values + 1])
    ends = [*offsets[1:].tolist(), 30]
    expected = [
        classes[rows[start:end]].bincount(minlength=num_classes).argmax().item()
        for start, end in zip(offsets.tolist(), ends, strict=True)
    ]
    assert majority_class(classes, rows, offsets).tolist() == expected


def test_class_weights_by_hand():
    # Four samples of class 0, one of class 2: 1 / sqrt(4), nothing, 1 / sqrt(1), scaled so that a sample weighs 1.
    scene = TrainingScene("a", torch.zeros(5, 3), torch.arange(5), (torch.tensor([0, 0, 2, 0, 0]),))
    weights = class_weights([scene], 3, CONFIG)
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.0, 1.0]) * 5 / 3)
    equal = class_weights([scene], 3, replace(CONFIG, class_weights="equal"))
    assert equal.tolist() == [1, 0, 1]


def test_the_bound_learns_the_labels_and_keeps_their_set(synthetic_store, tmp_path):
    run = supervise(synthetic_store, CONFIG, tmp_path / "run")
    losses = [json.loads(line)["losses"][HEAD] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.7 * losses[0]
    assert json.loads((run / "run.json").read_text())["label_set"] == "scannet20"
    assert Student.load(run / "student.safetensors").heads[HEAD].weight.shape[1] == len(label_set("scannet20"))
    assert supervise(synthetic_store, CONFIG, tmp_path / "run") == run
    row = score(synthetic_store, run, split="train")
    assert row.readout == "supervised"
    assert row.fmiou > row.foreground_miou == row.iou["picture"]  # after so few steps most of it is a wall first
    assert row.coverage == 100


def test_the_bound_learns_the_label_of_each_samples_own_point_weighed_by_its_class(tmp_path, monkeypatch):
    # Ten samples of a class in one scene, forty of another in the next; each sample's second point has a third label.
    store, shown = Store.create(tmp_path / "store", cell=0.05), {}
    for label, (name, num_samples) in enumerate((("few", 10), ("many", 40))):
        own = torch.arange(num_samples)[:, None] * torch.tensor([0.2, 0.4, 0.0])
        points = torch.cat([own + 0.01, own]).float()
        samples = Samples(num_samples + torch.arange(num_samples), torch.arange(num_samples).repeat(2))
        labels = torch.tensor([7, label]).repeat_interleave(num_samples)
        scene = Scene(name, points, (), labels=labels, label_set="scannet20")
        store.add_scene(scene, samples, Visibility((), torch.zeros(num_samples, dtype=torch.int64)), {})

    class Spy(Batches):
        def __init__(self, scenes, *rest):
            shown.update({scene.name: scene for scene in scenes})
            super().__init__(scenes, *rest)

    def blindfolded(*args) -> Student:
        student = make_student(*args)
        for module in student.modules():
            if isinstance(module, Norm):
                module.weight.data.zero_()
        student.heads[HEAD].weight.data.zero_()
        return student

    monkeypatch.setattr("cuao3d.supervise.Batches", Spy)
    monkeypatch.setattr("cuao3d.supervise.make_student", blindfolded)
    run = supervise(store, replace(CONFIG, num_steps=2, learning_rate=1e-12), tmp_path / "run")
    assert shown["few"].targets[0].tolist() == [0] * 10
    assert shown["many"].targets[0].tolist() == [1] * 40
    assert torch.equal(shown["few"].points[shown["few"].rows], store["few"].points[10:])
    # All classes are as likely: log 20. Weights go as 1 / sqrt(10) and 1 / sqrt(40), and are 1 over both scenes.
    of_few = 50 / (10**0.5 + 40**0.5) / 10**0.5
    losses = sorted(json.loads(line)["losses"][HEAD] for line in (run / "metrics.jsonl").read_text().splitlines())
    assert losses == pytest.approx([of_few / 2 * math.log(20), of_few * math.log(20)], rel=1e-4)


def test_supervision_needs_labels(tmp_path):
    with pytest.raises(ValueError, match=r"labels of no set; supervision needs one label set"):
        supervise(Store.create(tmp_path / "empty", cell=0.05), CONFIG, tmp_path / "run")
