"""The student against MinkowskiEngine's numbers, its files, and checkpoints of others."""

import inspect
import io
import json
import os
import zlib
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cuao3d.student import ARCHITECTURES, ConvNorm, Norm, Student, convert_official, read_checkpoint
from golden.deterministic_state import tensor

GOLDEN = Path(__file__).parent / "golden"
HEADS = {"lseg": 512, "dinov2": 1024, "stable_diffusion": 3200}


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    """A CUA-O3D checkpoint's tensors, with values that follow from their names."""
    shapes = json.loads((GOLDEN / "minkunet18a_state_shapes.json").read_text())
    return {name: torch.from_numpy(np.asarray(tensor(name, tuple(shape)))) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def minkunet18a() -> Mapping[str, np.ndarray]:
    with np.load(GOLDEN / "minkunet18a.npz") as file:
        return dict(file)


@pytest.fixture
def small_official() -> dict[str, Tensor]:
    """Tensors of a small official-looking network with one head of 768 channels, as OpenScene names them."""
    student = Student({"openseg": 768}, "MinkUNet14Mini")
    return as_official(student)


def test_weights_of_the_goldens_are_what_they_were(official):
    for name, crc in json.loads((GOLDEN / "deterministic_state_crc32.json").read_text()).items():
        assert zlib.crc32(official[name].numpy().tobytes()) == crc


def test_heads_equal_minkowski_engine(official, minkunet18a):
    student = convert_official(official).student.eval()
    coords, feats, rows = (torch.from_numpy(minkunet18a[name]) for name in ("coords", "feats", "rows"))
    with torch.no_grad():
        outputs = student(coords, feats)
    assert {name: out.shape[1] for name, out in outputs.items()} == HEADS
    for name, out in outputs.items():
        first, norm = minkunet18a[f"eval_{name}_first8"], minkunet18a[f"eval_{name}_norm"]
        assert np.abs(out[rows, :8].numpy() - first).max() < 1e-5 * np.abs(first).max()
        assert np.abs(out[rows].norm(dim=1).numpy() - norm).max() < 1e-5 * norm.max()


def test_training_loss_and_gradients_equal_minkowski_engine(official, minkunet18a):
    # Batch statistics in float32 leave the golden loss 2.6e-7 from the one in float64, which ours meets within 1e-7.
    student = convert_official(official).student
    coords, feats = (torch.from_numpy(minkunet18a[name]) for name in ("coords", "feats"))
    outputs = student(coords, feats)
    probes = [torch.from_numpy(tensor(f"probe.{i}.kernel", (width, 1)))[:, 0] for i, width in enumerate(HEADS.values())]
    losses = [torch.tanh(outputs[name] @ probe).double().mean() for name, probe in zip(HEADS, probes, strict=True)]
    total = torch.stack(losses).sum()
    total.backward()
    assert total.item() == pytest.approx(minkunet18a["train_loss"].item(), abs=4e-7)
    assert total.item() == pytest.approx(0.52491774382545, abs=1e-7)
    gradient_of = {
        "net3d.conv0p1s1.kernel": student.stem.kernel.grad,
        "net3d.block1.0.conv1.kernel": student.stages[0][0].conv1.kernel.grad,
        "net3d.conv3p4s2.kernel": student.downs[2].kernel.grad,
        "net3d.convtr5p8s2.kernel": student.ups[1].kernel.grad,
        "net3d.block8.0.downsample.0.kernel": student.stages[7][0].shortcut.kernel.grad,
        "net3d.final_sd.kernel": student.heads["stable_diffusion"].weight.grad,
        "net3d.bn0.bn.weight": student.stem.norm.weight.grad,
    }
    for name, gradient in gradient_of.items():
        first = minkunet18a[f"grad_flat16/{name}"]
        assert gradient.norm().item() == pytest.approx(minkunet18a[f"grad_norm/{name}"].item(), rel=5e-4)
        assert np.abs(gradient.flatten()[:16].numpy() - first).max() < 5e-3 * np.abs(first).max()


def test_rows_come_in_input_order():
    student, (coords, feats) = Student({"a": 4}, "MinkUNet14Mini").eval(), small_room()
    shuffled = torch.randperm(len(coords), generator=torch.Generator().manual_seed(1))
    assert torch.equal(student(coords, feats)["a"][shuffled], student(coords[shuffled], feats[shuffled])["a"])


def test_a_move_by_sixteen_cells_changes_nothing():
    # 16 cells are one cell of the coarsest resolution.
    student, (coords, feats) = Student({"a": 4}, "MinkUNet14Mini").eval(), small_room()
    moved = coords + torch.tensor([0, 16, -32, 48])
    assert torch.allclose(student(coords, feats)["a"], student(moved, feats)["a"], atol=1e-6)


def test_only_heads_asked_for_are_computed():
    student, (coords, feats) = Student({"a": 4, "b": 6}, "MinkUNet14Mini").eval(), small_room()
    both, one = student(coords, feats), student(coords, feats, heads=["b"])
    assert list(one) == ["b"]
    assert torch.equal(one["b"], both["b"])
    assert torch.allclose(student.hidden(coords, feats) @ student.heads["a"].weight, both["a"])
    with pytest.raises(ValueError, match="no head c; it has a, b"):
        student(coords, feats, heads=["c"])


NAMES = ("resnet-1.5", "resnet-1%2E5", "half", "keys", "add", "weight", "training", "_modules", "a b", "v1.2.3")
"""Names that a `nn.ModuleDict` refuses, or that could be mistaken for one another once they are tensors' names."""


def test_a_head_may_have_any_name(tmp_path):
    student, (coords, feats) = Student(dict.fromkeys(NAMES, 4), "MinkUNet14Mini").eval(), small_room()
    assert tuple(student(coords, feats)) == NAMES
    assert sum(name.startswith("heads.") for name, _ in student.named_parameters()) == len(NAMES)
    with torch.no_grad():
        for index, name in enumerate(NAMES):
            student.heads[name].weight.fill_(index)
    copy = deepcopy(student).half().float()
    student.save(tmp_path / "student.safetensors")
    for other in (copy, Student.load(tmp_path / "student.safetensors")):
        assert tuple(other.heads) == NAMES
        assert [head.weight.mean().item() for head in other.heads.values()] == list(range(len(NAMES)))


def test_tensors_of_heads_are_named_after_their_teachers():
    names = {
        name for name in Student({"lseg": 2, "mini-dino": 3, "stable_diffusion": 4}).state_dict() if "head" in name
    }
    assert names == {"heads.lseg.weight", "heads.mini-dino.weight", "heads.stable_diffusion.weight"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_runs(architecture):
    coords = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, -9, 3, 5]])
    student = Student({"a": 4}, architecture).eval()
    with torch.no_grad():
        assert student(coords, torch.ones(3, 3))["a"].shape == (3, 4)
        assert student.hidden(coords, torch.ones(3, 3)).shape == (3, student.num_hidden)


def test_naive_backend_gives_the_same():
    student, (coords, feats) = Student({"a": 4}, "MinkUNet14Mini").eval(), small_room()
    fast = student(coords, feats)["a"]
    assert torch.allclose(student.use_backend("naive")(coords, feats)["a"], fast, atol=1e-4 * fast.abs().max().item())


def test_bfloat16_heads_are_within_one_percent():
    student, (coords, feats) = Student({"a": 16}, "MinkUNet14Mini"), small_room()
    student(coords, feats)  # running statistics that are not the initial ones
    student.eval()
    with torch.no_grad():
        exact = student(coords, feats)["a"]
        with torch.autocast("cpu", torch.bfloat16):
            half = student(coords, feats)["a"]
    assert (half.float() - exact).norm() < 0.01 * exact.norm()


def test_weights_begin_as_the_method_says():
    # docs/method.md, S6: variance 2 / fan-out, the fan-out of a 1x1x1 being its inputs; transposed +-1 / sqrt(8 C_out).
    torch.manual_seed(0)
    for size, variance in ((3, 2 / (27 * 24)), (2, 2 / (8 * 24)), (1, 2 / 96)):
        kernel = ConvNorm(96, 24, size).kernel
        assert kernel.var().item() == pytest.approx(variance, rel=0.1)
        assert kernel.abs().max().item() > 3 * variance**0.5  # normal, not uniform
    kernel, bound = ConvNorm(96, 24, 2, transposed=True).kernel, (8 * 24) ** -0.5
    assert 0.99 * bound < kernel.abs().max().item() <= bound
    assert kernel.var().item() == pytest.approx(bound**2 / 3, rel=0.1)
    head = Student({"a": 400}, "MinkUNet14Mini").heads["a"]
    assert head.weight.var().item() == pytest.approx(2 / 48, rel=0.1)
    assert head.bias is None


def test_unsureness_is_a_standard_deviation():
    student, (coords, feats) = Student({"a": 4, "b": 2}, "MinkUNet14Mini", noise=True), small_room()
    student.noise.bias.data = torch.tensor([0.5, 3.0]).square().log()
    with torch.no_grad():
        unsure = student.eval().unsureness(coords, feats)
    torch.testing.assert_close(unsure["a"], torch.full((len(coords),), 0.5))
    torch.testing.assert_close(unsure["b"], torch.full((len(coords),), 3.0))


def test_batch_norm_folds_into_the_convolution():
    voxels_free = ConvNorm(5, 7, size=1)
    voxels_free(torch.randn(50, 5), None)
    x = torch.randn(20, 5)
    expected = torch.nn.functional.batch_norm(
        x @ voxels_free.kernel,
        voxels_free.norm.running_mean,
        voxels_free.norm.running_var,
        voxels_free.norm.weight,
        voxels_free.norm.bias,
    )
    assert torch.allclose(voxels_free.eval()(x, None, relu=False), expected, atol=1e-5)


def test_norm_is_batch_norm():
    ours, theirs = Norm(4).double(), torch.nn.BatchNorm1d(4).double()
    x = torch.randn(30, 4, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        for norm in (ours, theirs):
            norm.weight.copy_(torch.linspace(0.5, 2, 4))
    assert torch.allclose(ours(x), theirs(x))
    assert torch.allclose(ours.running_mean, theirs.running_mean)
    assert torch.allclose(ours.running_var, theirs.running_var)
    assert ours.num_batches_tracked == 1
    weights = torch.randn(30, 4, dtype=torch.float64)
    found, wanted = (
        torch.autograd.grad((norm(x) * weights).sum(), (x, norm.weight, norm.bias)) for norm in (ours, theirs)
    )
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))


def test_norm_statistics_are_exact():
    x = torch.randn(60_000, 2, generator=torch.Generator().manual_seed(0)) * 2 + 3
    norm = Norm(2, momentum=1.0)
    norm(x)
    assert torch.allclose(norm.running_mean.double(), x.double().mean(dim=0), rtol=1e-6)
    assert torch.allclose(norm.running_var.double(), x.double().var(dim=0), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        ),
    ],
)
def test_ten_steps_leave_a_fifth_of_the_loss(device):
    torch.manual_seed(0)
    coords, feats = (t.to(device) for t in small_room())
    target = torch.nn.functional.one_hot(coords[:, 3] // 3).float()
    student = Student({"height": target.shape[1]}, "MinkUNet18A").to(device)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3, fused=True)
    losses = []
    for _ in range(10):
        loss = (student(coords, feats)["height"] - target).square().mean()
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5


def test_file_brings_back_weights_architecture_and_heads(tmp_path):
    student = Student({"a": 4, "b": 6}, "MinkUNet14Mini")
    student.save(tmp_path / "student.safetensors")
    loaded = Student.load(tmp_path / "student.safetensors")
    assert (loaded.architecture, loaded.num_channels) == ("MinkUNet14Mini", {"a": 4, "b": 6})
    assert loaded.state_dict().keys() == student.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in student.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == ["student.safetensors"]


def test_file_is_the_same_bytes_every_time(tmp_path):
    student = Student({"b": 4, "a": 6}, "MinkUNet14Mini")
    for name in ("one", "two"):
        student.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("prefix", ["", "module.", "net3d.", "module.net3d."])
def test_openscene_checkpoint_has_one_head(prefix, small_official, tmp_path):
    state = {prefix + name: value for name, value in small_official.items()}
    torch.save({"epoch": 3, "state_dict": state, "best_iou": np.float64(0.5)}, tmp_path / "model_best.pth.tar")
    checkpoint = read_checkpoint(tmp_path / "model_best.pth.tar")
    assert checkpoint.student.num_channels == {"openseg": 768}
    assert checkpoint.student.architecture == "MinkUNet14Mini"
    assert set(checkpoint.used) == set(state)
    assert torch.equal(checkpoint.student.stem.kernel, small_official["conv0p1s1.kernel"])


def test_probe_heads_are_left_over_with_a_note(small_official):
    small_official["final_seg_lseg.kernel"] = torch.zeros(512, 20)
    checkpoint = convert_official(small_official)
    assert checkpoint.left_over == ("final_seg_lseg.kernel",)
    assert "final_seg_lseg.kernel" not in checkpoint.used
    assert checkpoint.describe().splitlines() == [
        "architecture: MinkUNet14Mini",
        "heads: openseg (768)",
        f"tensors used: {len(small_official) - 1}",
        "tensors left over: 1",
        "  final_seg_lseg.kernel (a probe's head)",
    ]


def test_missing_extra_and_misshapen_tensors_are_named(small_official):
    del small_official["bn0.bn.bias"]
    small_official["block9.0.conv1.kernel"] = torch.zeros(27, 2, 2)
    small_official["conv0p1s1.kernel"] = torch.zeros(27, 3, 16)
    with pytest.raises(ValueError, match="The tensors do not fit MinkUNet14Mini") as error:
        convert_official(small_official)
    assert "missing bn0.bn.bias (16,)" in str(error.value)
    assert "extra block9.0.conv1.kernel (27, 2, 2)" in str(error.value)
    assert "conv0p1s1.kernel is (27, 3, 16), not (125, 3, 16)" in str(error.value)


class Malicious:
    """Unpickling it would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_pickle_that_wants_to_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Malicious()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth: refused, because it is not only tensors"):
        Student.load(tmp_path / "evil.pth")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"short", "not a safetensors file, or only a part of one"),
        ("a.pth.tar", b"PK\x03\x04 broken", "not a PyTorch checkpoint, or only a part of one"),
        ("a.pth.tar", b"", "not a PyTorch checkpoint, or only a part of one"),
        ("a.pth", None, "holds no state dict of tensors"),
    ],
)
def test_broken_files_are_named(name, content, message, tmp_path):
    if content is None:
        buffer = io.BytesIO()
        torch.save([1, 2], buffer)
        content = buffer.getvalue()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        Student.load(tmp_path / name)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*none\.safetensors"):
        Student.load(tmp_path / "none.safetensors")


def test_bad_input_is_refused():
    student, (coords, feats) = Student({"a": 4}, "MinkUNet14Mini"), small_room()
    with pytest.raises(ValueError, match="2 voxels have features that are not finite"):
        student(coords, feats.index_fill(0, torch.tensor([3, 5]), torch.nan))
    with pytest.raises(ValueError, match="1 of 369 voxels are duplicates"):
        student(torch.cat([coords, coords[:1]]), torch.cat([feats, feats[:1]]))
    with pytest.raises(ValueError, match="need features of shape"):
        inspect.unwrap(Student.hidden)(student, coords, feats[:-1])  # without this suite's shape checks
    with pytest.raises(ValueError, match="Unknown architecture 'MinkUNet99'; choose from MinkUNet14A"):
        Student({"a": 4}, "MinkUNet99")


def small_room() -> tuple[Int[Tensor, "V 4"], Float[Tensor, "V 3"]]:
    """Floor and two walls of a room of 14 x 12 x 9 cells, 14 * 12 + 8 * (14 + 11) = 368 voxels."""
    cells = torch.cartesian_prod(torch.arange(14), torch.arange(12), torch.arange(9))
    x, y, z = cells.unbind(dim=1)
    surface = cells[(z == 0) | (y == 0) | (x == 0)]
    return torch.nn.functional.pad(surface, (1, 0)), torch.ones(len(surface), 3)


def as_official(student: Student) -> dict[str, Tensor]:
    """A student's tensors under OpenScene's names; every name is used once in the golden checkpoint, too."""
    from cuao3d.student import _official_name

    state = student.state_dict()
    return {
        "final.kernel" if name.startswith("heads.") else _official_name(name): value for name, value in state.items()
    }
