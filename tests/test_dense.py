"""Facts about dense clouds: training and evaluation see the same voxels, made of all points, not of samples alone."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cuao3d.augment import Augmentation, augment
from cuao3d.batches import LATTICE, STILL, BatchConfig, Batches, TrainingScene, voxelize_scene
from cuao3d.fusion import Visibility, sample_cells
from cuao3d.objective import RowMeans
from cuao3d.predictor import student_features
from cuao3d.scene import Scene
from cuao3d.store import Store, StoredScene, TeacherCard
from cuao3d.student import Student

CELL = 0.05


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A ball, alike from all sides, with 20 points a cell; two samples in three are seen, and features number them."""
    directions = torch.randn(30_000, 3, generator=torch.Generator().manual_seed(0))
    points = torch.tensor([3.013, -2.021, 1.017]) + 0.5 * functional.normalize(directions, dim=1)
    store = Store.create(tmp_path_factory.mktemp("dense") / "store", cell=CELL, teachers={"number": TeacherCard(1)})
    samples = sample_cells(points, CELL)
    num_views = torch.arange(len(samples.index_of_sample)) % 3
    number = torch.nonzero(num_views).float()
    store.add_scene(Scene("ball", points, ()), samples, Visibility((), num_views), {"number": number})
    return store


def taken(scene: StoredScene) -> TrainingScene:
    return TrainingScene.of(scene, scene.seen_samples, (scene.features("number"),))


class Watched(Student):
    """A student that notes the voxels that it is shown."""

    def __init__(self) -> None:
        super().__init__({"number": 1}, "MinkUNet14Mini")
        self.shown: list[Tensor] = []

    def forward(self, coords, feats, heads=None):
        self.shown.append(coords)
        return {"number": torch.zeros(len(coords), 1)}


def evaluated(store: Store, voxel_size: float) -> Tensor:
    """The voxels that evaluation shows to a student."""
    student = Watched()
    student_features(student, store, head="number", voxel_size=voxel_size)(store["ball"])
    return student.shown[0]


@pytest.mark.parametrize("voxel_size", [CELL, 0.12])
def test_without_augmentation_training_sees_the_voxels_of_evaluation(store, voxel_size):
    batches = Batches([], BatchConfig(voxel_size=voxel_size), RowMeans, [taken(store["ball"])])
    (batch,) = batches.still()
    assert torch.equal(batch.coordinates, evaluated(store, voxel_size))


@pytest.mark.parametrize("voxel_size", [CELL, 0.12])
def test_turned_and_moved_it_sees_as_many(store, voxel_size):
    # Of the samples alone it would see 28 % fewer, where voxels are as large as cells.
    turned = Augmentation(flip=True, rotation=180.0, shift=True)
    config = BatchConfig(voxel_size=voxel_size, augmentation=turned)
    scene = taken(store["ball"])
    seeds = [torch.Generator().manual_seed(seed) for seed in range(12)]
    counts = [len(voxelize_scene(scene, config, RowMeans, seed).coordinates) for seed in seeds]
    assert sum(counts) / len(counts) == pytest.approx(len(evaluated(store, voxel_size)), rel=0.04)


def test_a_voxel_learns_from_its_samples_or_else_from_one_whose_cell_it_shares(store):
    stored, turned = store["ball"], Augmentation(flip=True, rotation=180.0, shift=True)
    config = BatchConfig(voxel_size=CELL, augmentation=turned, points_per_scene=None)
    batch = voxelize_scene(taken(stored), config, RowMeans, torch.Generator().manual_seed(1))
    moved = augment(stored.points, turned, LATTICE * CELL, torch.Generator().manual_seed(1))
    voxel_of_point = [tuple(row) for row in torch.floor(moved / CELL).long().tolist()]
    own, shared = {}, {}
    for sample, point in enumerate(stored.index_of_sample.tolist()):
        own.setdefault(voxel_of_point[point], set()).add(sample)
    for voxel, sample in zip(voxel_of_point, stored.sample_of_point.tolist(), strict=True):
        shared.setdefault(voxel, set()).add(sample)
    seen, feature = set(stored.seen_samples.tolist()), stored.spread(stored.features("number"))
    expected = {voxel: seen & (own.get(voxel, set()) & seen or samples) for voxel, samples in shared.items()}
    supervised = [tuple(row) for row in batch.coordinates[batch.supervised, 1:].tolist()]
    assert set(supervised) == {voxel for voxel, samples in expected.items() if samples}
    num_shared = 0
    for voxel, target in zip(supervised, batch.targets[0][0][:].squeeze(1).tolist(), strict=True):
        values = feature[sorted(expected[voxel]), 0].float()
        if own.get(voxel, set()) & seen:
            assert target == pytest.approx(values.mean().item(), rel=2e-3)
        else:
            num_shared += 1
            assert target in values.tolist()
    assert num_shared > 0.1 * len(supervised)


def test_a_budget_and_chances_are_of_the_voxels_that_share_a_sample_too(store):
    scene = taken(store["ball"])
    chances = torch.full((len(scene.rows),), 1e-12)
    chances[:40] = 1.0
    scene = replace(scene, chances=chances, targets=(chances[:, None].round(),))
    config = BatchConfig(voxel_size=CELL, augmentation=replace(STILL, shift=True), points_per_scene=20)
    batch = voxelize_scene(scene, config, RowMeans, torch.Generator().manual_seed(0))
    assert batch.num_targets == [20]
    assert batch.targets[0][0][:].amin() > 0  # each holds a likely sample, or shares its cell
