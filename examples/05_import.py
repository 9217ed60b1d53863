"""Take over what OpenScene or CUA-O3D left on disk: a checkpoint becomes a student, fused features become a store.

Nothing that the files may hold is run, and neither MinkowskiEngine nor the original code is needed. Without a path both
are made here, in the published formats: a checkpoint with random weights, and the features of one room. The imported
features must answer as the ones that were written do.

    python examples/05_import.py
    python examples/05_import.py CHECKPOINT.pth.tar

The same on the command line:

    cuao3d import CHECKPOINT.pth.tar --out student.safetensors
    cuao3d import scannet_multiview_lseg --data scannet_3d --teacher lseg --out STORE
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import cuao3d

PLANES, STEM = (32, 64, 128, 256, 128, 128, 96, 96), 32
"""Channels of MinkUNet14A, the smallest network of OpenScene's; it has one block a stage."""


def official_checkpoint(path: Path) -> None:
    """Write a checkpoint as OpenScene does: names of MinkowskiEngine's layers, under `net3d.`."""
    tensors: dict[str, Tensor] = {}

    def layer(conv: str, norm: str, size: int, num_in: int, num_out: int) -> None:
        shape = (num_in, num_out) if size == 1 else (size**3, num_in, num_out)
        tensors[f"net3d.{conv}.kernel"] = torch.randn(shape) / (size**3 * num_in) ** 0.5
        for name, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}.items():
            tensors[f"net3d.{norm}.bn.{name}"] = torch.full((num_out,), value)
        tensors[f"net3d.{norm}.bn.num_batches_tracked"] = torch.tensor(100)

    def block(stage: int, num_in: int, num_out: int) -> None:
        name = f"block{stage}.0"
        layer(f"{name}.conv1", f"{name}.norm1", 3, num_in, num_out)
        layer(f"{name}.conv2", f"{name}.norm2", 3, num_out, num_out)
        if num_in != num_out:
            layer(f"{name}.downsample.0", f"{name}.downsample.1", 1, num_in, num_out)

    layer("conv0p1s1", "bn0", 5, 3, STEM)
    skips = (STEM, *PLANES[:3])
    for i in range(4):
        layer(f"conv{i + 1}p{2**i}s2", f"bn{i + 1}", 2, skips[i], skips[i])
        block(i + 1, skips[i], PLANES[i])
    for i in range(4, 8):
        layer(f"convtr{i}p{2 ** (8 - i)}s2", f"bntr{i}", 2, PLANES[i - 1], PLANES[i])
        block(i + 1, PLANES[i] + skips[7 - i], PLANES[i])
    tensors["net3d.final.kernel"] = torch.randn(PLANES[-1], 512) / PLANES[-1] ** 0.5  # as wide as LSeg's features
    torch.save({"epoch": 100, "state_dict": tensors}, path)


def official_features(store: cuao3d.Store, teacher: str, folder: Path) -> None:
    """Write the points and features of a store as OpenScene does: a cloud a scene, and a row for each point seen."""
    (folder / "scannet_3d" / "train").mkdir(parents=True)
    (folder / "features").mkdir()
    for name in store.names():
        scene = store[name]
        assert scene.colors is not None
        assert scene.labels is not None
        cloud = (scene.points.numpy(), 2 * scene.colors.numpy() - 1, scene.labels.numpy())
        torch.save(cloud, folder / "scannet_3d" / "train" / f"{name}_vh_clean_2.pth")
        seen = scene.seen[scene.sample_of_point]
        of_point = scene.spread(scene.features(teacher))[scene.sample_of_point]
        torch.save({"feat": of_point[seen], "mask_full": seen}, folder / "features" / f"{name}_0.pt")


def main(checkpoint: str | None = None) -> None:
    """Take over a checkpoint and, without a path, fused features."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if checkpoint is None:
            official_checkpoint(out / "best.pth.tar")
        read = cuao3d.import_student(checkpoint or out / "best.pth.tar", out / "student.safetensors")
        print(f"{read.describe()}\n{(out / 'student.safetensors').stat().st_size / 1e6:.0f} MB of safetensors")
        if checkpoint is not None:
            return

        teacher = cuao3d.load_teacher("mini-lseg")
        store = cuao3d.fuse(cuao3d.Rooms([0], num_views=4), [teacher], out / "store", cell=0.05)
        official_features(store, teacher.name, out)
        dataset = cuao3d.open_dataset(out / "scannet_3d")
        imported = cuao3d.import_features({teacher.name: out / "features"}, dataset, out / "imported", cell=0.05)
        for where in (store, imported):
            (answer,) = cuao3d.Predictor.open(where).ask(where[where.names()[0]], ["a bed"])
            print(f"{where.path.name}: {answer.words!r} {answer.verdict}, {int(answer.answers.sum())} points answer")


if __name__ == "__main__":
    main(*sys.argv[1:2])
