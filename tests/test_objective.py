import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from cuao3d.objective import (
    Compressed,
    LossKind,
    NormalizerKind,
    RowMeans,
    fit_normalizer,
    make_weighting,
    settled_sigmas,
    teacher_loss,
    voxel_losses,
    word_loss,
)
from cuao3d.objective import targets as targets_module
from cuao3d.objective.weightings import UncertaintyWeighting

KINDS = get_args(LossKind)
NORMALIZERS = get_args(NormalizerKind)


def own_l2(predicted: Tensor, target: Tensor) -> Tensor:
    """A loss as a user writes it."""
    return (predicted - target).square().mean(dim=1)


def materialised_losses(hidden: Tensor, weight: Tensor, targets: Tensor, kind: str) -> Tensor:
    """The losses as the official code forms them: all N x C outputs at once; one value per voxel."""
    outputs, targets = hidden @ weight, targets.to(hidden.dtype)
    match kind:
        case "l1":
            return (outputs - targets).abs().mean(dim=1)
        case "l2":
            return (outputs - targets).square().mean(dim=1)
        case "smooth-l1":
            return functional.smooth_l1_loss(outputs, targets, reduction="none").mean(dim=1)
        case "cosine+smooth-l1":
            both = [materialised_losses(hidden, weight, targets, part) for part in kind.split("+")]
            return both[0] + both[1]
        case "demeaned-cosine":
            targets = targets - targets.mean(dim=1, keepdim=True)
    return 1 - functional.cosine_similarity(outputs, targets, dim=1)


def materialised_loss(hidden: Tensor, weight: Tensor, targets: Tensor, kind: str) -> Tensor:
    return materialised_losses(hidden, weight, targets, kind).mean()


def gradients(loss_function, hidden: Tensor, weight: Tensor, targets: Tensor, kind: str) -> tuple[Tensor, ...]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = loss_function(hidden, weight, targets, kind)
    (3 * loss).backward()
    return loss.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("kind", KINDS)
@given(num_voxels=st.integers(1, 50), num_channels=st.integers(2, 40), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_loss_and_gradients_equal_autograd_through_the_materialised_form(kind, num_voxels, num_channels, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_voxels, 7, dtype=torch.float64, generator=generator)
    weight = torch.randn(7, num_channels, dtype=torch.float64, generator=generator)
    targets = torch.randn(num_voxels, num_channels, dtype=torch.float64, generator=generator) + 2
    ours = gradients(teacher_loss, hidden, weight, targets, kind)
    theirs = gradients(materialised_loss, hidden, weight, targets, kind)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_many_chunks_give_what_one_gives(kind, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(100, 8, dtype=torch.float64, generator=generator)
    weight = torch.randn(8, 5, dtype=torch.float64, generator=generator)
    targets = torch.randn(100, 5, generator=generator).half()
    whole = gradients(teacher_loss, hidden, weight, targets, kind)
    monkeypatch.setattr(targets_module, "CHUNK_VALUES", {"cpu": 1})
    for mine, reference in zip(gradients(teacher_loss, hidden, weight, targets, kind), whole, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_means_of_rows_give_what_the_averaged_targets_give(kind, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(30, 5, dtype=torch.float64, generator=generator)
    rows = torch.randint(30, (100,), generator=generator)
    offsets = torch.cat([torch.tensor([0]), torch.randperm(99, generator=generator)[:59].sort().values + 1])
    means = torch.stack([table[part].mean(dim=0) for part in rows.tensor_split(offsets[1:])])
    hidden = torch.randn(60, 8, dtype=torch.float64, generator=generator)
    weight = torch.randn(8, 5, dtype=torch.float64, generator=generator)
    monkeypatch.setattr(targets_module, "CHUNK_VALUES", {"cpu": 1})
    ours = gradients(teacher_loss, hidden, weight, RowMeans(table, rows, offsets), kind)
    for mine, reference in zip(ours, gradients(teacher_loss, hidden, weight, means, kind), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_with_half_targets_keeps_five_digits(kind):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 96, generator=generator)
    weight = torch.randn(96, 512, generator=generator) / 10
    targets = torch.randn(300, 512, generator=generator).half() + 3
    ours = gradients(teacher_loss, hidden, weight, targets, kind)
    exact = gradients(materialised_loss, hidden.double(), weight.double(), targets, kind)
    for mine, reference in zip(ours, exact, strict=True):
        scale = reference.abs().max().item()
        torch.testing.assert_close(mine.double(), reference, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", ["cosine", "demeaned-cosine"])
def test_zero_features_have_loss_one_and_finite_gradients(kind):
    hidden = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    targets = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]])
    loss, grad_hidden, grad_weight = gradients(teacher_loss, hidden, torch.ones(2, 3), targets, kind)
    assert loss.item() == 1
    assert grad_hidden.isfinite().all()
    assert grad_weight.isfinite().all()


def test_losses_by_hand():
    # F = (3, 4); T = (4, 3): cos = 24 / 25; |F - T| = (1, 1); T minus its mean is (0.5, -0.5): cos = -1 / (5 sqrt 2).
    hidden, weight, targets = torch.tensor([[1.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    assert teacher_loss(hidden, weight, targets, "cosine").item() == pytest.approx(1 / 25)
    assert teacher_loss(hidden, weight, targets, "l1").item() == pytest.approx(1)
    assert teacher_loss(hidden, weight, targets, "l2").item() == pytest.approx(1)
    assert teacher_loss(hidden, weight, targets, "smooth-l1").item() == pytest.approx(0.5)
    assert teacher_loss(hidden, weight, targets, "cosine+smooth-l1").item() == pytest.approx(0.5 + 1 / 25)
    assert teacher_loss(hidden, weight, targets, "demeaned-cosine").item() == pytest.approx(1 + 1 / (5 * 2**0.5))


@given(scale=st.floats(0.1, 100), shift=st.floats(-50, 50))
@settings(max_examples=20, deadline=None)
def test_demeaned_cosine_ignores_scale_and_shift_of_the_targets(scale, shift):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    weight = torch.randn(4, 9, dtype=torch.float64, generator=generator)
    targets = torch.randn(6, 9, dtype=torch.float64, generator=generator)
    expected = teacher_loss(hidden, weight, targets, "demeaned-cosine").item()
    assert teacher_loss(hidden, weight, scale * targets + shift, "demeaned-cosine").item() == pytest.approx(expected)


def test_no_tensor_as_large_as_the_targets_is_made():
    hidden, weight = torch.randn(2000, 8).requires_grad_(), torch.randn(8, 3000).requires_grad_()
    targets = torch.zeros(2000, 3000, dtype=torch.float16)
    with torch.profiler.profile(profile_memory=True) as profile:
        for kind in (*KINDS, own_l2):
            teacher_loss(hidden, weight, targets, kind).backward()
    largest = max(abs(event.cpu_memory_usage) for event in profile.events())
    assert largest < targets.numel()  # bytes: an eighth of an fp32 copy would already fail


@pytest.mark.parametrize(
    ("regularizer", "total"),
    [("log1p", "loss_total_paper_log1p_sigma"), ("log1p-squared", "loss_total_code_log1p_sigma_squared")],
)
def test_losses_totals_and_gradients_equal_the_official_code(regularizer, total, golden):
    values = {name: torch.from_numpy(np.asarray(golden[name])) for name in golden if name.startswith("loss_")}
    hidden = values["loss_hidden"].requires_grad_()
    weights = [values[f"loss_w{i}"].float().requires_grad_() for i in range(3)]
    kinds = ("cosine", "l1", "demeaned-cosine")
    losses = torch.stack([teacher_loss(hidden, weights[i], values[f"loss_t{i}"], kind) for i, kind in enumerate(kinds)])
    weighting = UncertaintyWeighting(3, regularizer)
    weighting.sigma.data.copy_(values["loss_sigma"])
    combined = weighting(losses)
    torch.testing.assert_close(losses.detach().double(), values["loss_each"], rtol=1e-5, atol=0)
    assert combined.item() == pytest.approx(values[total].item(), rel=1e-5)
    if regularizer == "log1p":
        combined.backward()
        scale = values["loss_grad_hidden"].abs().max().item()
        torch.testing.assert_close(hidden.grad, values["loss_grad_hidden"], rtol=1e-5, atol=1e-5 * scale)
        torch.testing.assert_close(weighting.sigma.grad, values["loss_grad_sigma"], rtol=1e-5, atol=1e-6)
        norms = torch.stack([weight.grad.norm() for weight in weights]).double()
        torch.testing.assert_close(norms, values["loss_grad_w_norm"], rtol=1e-5, atol=0)


def test_uncertainty_weighting_starts_as_half_the_sum_plus_log_two_each():
    # sigma = 1: sum(0.5 * L_i) + 3 * log(1 + 1), as in models/adaptiveWeightLoss.py of the official code.
    total = UncertaintyWeighting(num_losses=3)(torch.tensor([0.2, 0.4, 0.6]))
    assert total.item() == pytest.approx(0.6 + 3 * math.log(2))


@pytest.mark.parametrize(
    ("kind", "stationary"),
    [
        ("uncertainty", lambda sigma, loss: sigma**3 - loss * (1 + sigma)),
        ("uncertainty-squared", lambda sigma, loss: 2 * sigma**4 - loss * (1 + sigma**2)),
        ("kendall", lambda sigma, loss: sigma**2 - loss),
    ],
)
def test_sigma_settles_at_its_closed_form(kind, stationary):
    weighting = make_weighting(kind, 2)
    losses = torch.tensor([0.3, 1.2])
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.02)
    for _ in range(500):
        optimizer.zero_grad()
        weighting(losses).backward()
        optimizer.step()
    torch.testing.assert_close(stationary(weighting.sigma.detach(), losses), torch.zeros(2), atol=1e-3, rtol=0)
    expected = settled_sigmas(losses, kind)
    assert stationary(expected, losses).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert weighting.sigma.tolist() == pytest.approx(expected.tolist(), abs=1e-3)
    assert weighting.sigma[0] < weighting.sigma[1]


def test_noise_levels_settle_where_their_gradient_vanishes():
    # d/ds [L / (2 s^2) + log(1 + s)] = 0 is s^3 = L (1 + s): s = 1 for L = 1/2; with log(1 + s^2), s = 1 for L = 1.
    assert settled_sigmas(torch.tensor([0.5, 8 / 3]), "uncertainty").tolist() == pytest.approx((1.0, 2.0))
    assert settled_sigmas(torch.tensor([1.0]), "uncertainty-squared").tolist() == pytest.approx((1.0,))
    assert settled_sigmas(torch.tensor([4.0]), "kendall").tolist() == pytest.approx((2.0,))


def test_sigmas_rank_noisy_teachers_and_settle_where_the_closed_form_says():
    noise = (0.25, 0.5, 1.0)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.randn(100, 4, generator=generator)
        heads = [torch.zeros(4, 6).requires_grad_() for _ in noise]
        order = torch.randperm(3, generator=generator).tolist()
        targets = [
            hidden @ torch.randn(4, 6, generator=generator) + noise[i] * torch.randn(100, 6, generator=generator)
            for i in order
        ]
        weighting = UncertaintyWeighting(3)
        optimizer = torch.optim.Adam([*heads, *weighting.parameters()], lr=0.1)
        for step in range(100):
            optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 100)
            losses = torch.stack([teacher_loss(hidden, *pair, "l2") for pair in zip(heads, targets, strict=True)])
            optimizer.zero_grad()
            weighting(losses).backward()
            optimizer.step()
        sigma = weighting.sigma.detach()
        assert sigma.argsort().tolist() == torch.tensor(order).argsort().tolist()
        torch.testing.assert_close(sigma, settled_sigmas(losses.detach(), "uncertainty").float(), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("kind", "total"),
    [
        ("uncertainty", 1.5 + 2 * math.log(2)),
        ("uncertainty-squared", 1.5 + 2 * math.log(2)),
        ("kendall", 1.5),
        ("equal", 3),
        ("fixed", 0.5 * 1 + 4 * 2),
        ("free", 3),
        ("heteroscedastic", 3),
    ],
)
def test_weightings_begin_as_they_should(kind, total):
    weighting = make_weighting(kind, 2, weights=(0.5, 4.0))
    assert weighting(torch.tensor([1.0, 2.0])).item() == pytest.approx(total)


def test_fixed_weighting_wants_a_weight_for_each_loss():
    with pytest.raises(ValueError, match="needs 3 weights"):
        make_weighting("fixed", 3, weights=(1.0, 2.0))


def test_random_weights_differ_from_step_to_step_sum_to_the_number_of_losses_and_go_on_where_they_were():
    weighting = make_weighting("random", 3, seed=5)
    drawn = []
    for _ in range(4):
        weighting(torch.ones(3))
        drawn.append(weighting.weights.clone())
        assert weighting.weights.sum().item() == pytest.approx(3)
    assert len({tuple(weights.tolist()) for weights in drawn}) == 4
    resumed = make_weighting("random", 3, seed=5)
    resumed.load_state_dict({"num_calls": torch.tensor(3)})
    resumed(torch.ones(3))
    assert torch.equal(resumed.weights, drawn[3])


def test_random_weights_of_one_seed_are_not_those_of_the_next_a_step_later():
    drawn = set()
    for seed in range(3):
        weighting = make_weighting("random", 3, seed=seed)
        for _ in range(3):
            weighting(torch.ones(3))
            drawn.add(tuple(weighting.weights.tolist()))
    assert len(drawn) == 9


def test_free_weights_fall_until_they_collapse_and_say_so():
    weighting = make_weighting("free", 2)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.1)
    losses = torch.tensor([0.5, 1.0])
    for _ in range(9):
        optimizer.zero_grad()
        weighting(losses).backward()
        optimizer.step()
    for _ in range(2):
        optimizer.step()
    with pytest.raises(ValueError, match="have collapsed to"):
        weighting(losses)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_compressed_targets_give_what_decompressed_ones_give(kind, normalizer, seed):
    generator = torch.Generator().manual_seed(seed)
    codes, basis, mean, hidden, weight = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((20, 3), (3, 6), (6,), (20, 4), (4, 6))
    )
    targets = codes @ basis + mean
    fitted = fit_normalizer(normalizer, [targets])

    def loss(hidden, weight, targets, kind):
        return teacher_loss(hidden, weight, targets, kind, fitted)

    ours = gradients(loss, hidden, weight, Compressed(codes, basis, mean), kind)
    normalised = targets if fitted is None else fitted(targets)
    for mine, reference in zip(ours, gradients(materialised_loss, hidden, weight, normalised, kind), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_normalised_targets_give_what_normalising_them_first_gives(kind, normalizer):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(40, 8, dtype=torch.float64, generator=generator) @ torch.randn(8, 8).double() + 5
    hidden, weight = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((40, 4), (4, 8)))
    fitted = fit_normalizer(normalizer, targets.split(7))
    ours = gradients(lambda *a: teacher_loss(*a, fitted), hidden, weight, targets, kind)
    normalised = targets if fitted is None else fitted(targets)
    for mine, reference in zip(ours, gradients(materialised_loss, hidden, weight, normalised, kind), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_voxels_count_by_their_weights_and_these_have_a_gradient(kind):
    generator = torch.Generator().manual_seed(0)
    targets, hidden, weight, counts = (
        torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((30, 8), (30, 4), (4, 8), (30,))
    )
    tensors = [tensor.requires_grad_() for tensor in (hidden, weight, counts)]
    total, of_voxels = voxel_losses(hidden, weight, targets, counts, kind)
    expected = materialised_losses(hidden, weight, targets, kind)
    torch.testing.assert_close(of_voxels, expected.detach(), rtol=1e-9, atol=1e-12)
    assert not of_voxels.requires_grad
    for mine, reference in zip(
        torch.autograd.grad(total, tensors), torch.autograd.grad((counts * expected).sum(), tensors), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_channels", [8, 6, 12])
def test_phi_s_gives_every_channel_the_same_variance_and_keeps_angles_of_centred_features(num_channels):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(num_channels, num_channels, dtype=torch.float64, generator=generator)
    features = torch.randn(200, num_channels, dtype=torch.float64, generator=generator) @ mixing + 3
    normalised = fit_normalizer("phi-s", features.split(64))(features)
    torch.testing.assert_close(normalised.var(dim=0, correction=0), torch.ones(num_channels).double())
    torch.testing.assert_close(normalised.mean(dim=0), torch.zeros(num_channels).double())
    centred = features - features.mean(dim=0)
    cosine, kept = (functional.cosine_similarity(rows[:-1], rows[1:]) for rows in (centred, normalised))
    torch.testing.assert_close(kept, cosine)


@pytest.mark.parametrize("kind", NORMALIZERS[1:])
def test_normalisers_can_be_undone(kind):
    features = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 2
    features[:, 2] = 7.0  # a channel that never varies
    normalizer = fit_normalizer(kind, [features])
    torch.testing.assert_close(normalizer.undo_linear(normalizer(features)) + normalizer.shift, features)


def test_standardised_channels_have_mean_zero_and_deviation_one():
    normalizer = fit_normalizer("standardize", [torch.tensor([[1.0, 5.0], [3.0, 5.0]])])
    assert normalizer.shift.tolist() == [2, 5]
    assert normalizer.scale.tolist() == [1, 1]
    assert normalizer(torch.tensor([[3.0, 5.0]])).tolist() == [[1, 0]]


@pytest.mark.parametrize("kind", ["standardize", "phi-s"])
@pytest.mark.parametrize("others", [0.0, 1.0])
def test_the_rounding_of_a_nearly_constant_channel_is_not_blown_up(kind, others):
    # At 1000 half precision steps by 1/2: one such step in 10,000 rows is a hundred deviations from the mean.
    features = others * torch.randn(10_000, 3, generator=torch.Generator().manual_seed(0))
    features[:, 0] = 1000.0
    features[7, 0] = 1000.5
    normalizer = fit_normalizer(kind, features.half().split(999)).to(torch.float32)
    normalised = normalizer(features.half().float())
    assert normalised.abs().max() < 6
    restored = normalizer.undo_linear(normalised) + normalizer.shift
    torch.testing.assert_close(restored, features.half().float(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_within_one_percent(kind):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 32, generator=generator).bfloat16()
    weight = (torch.randn(32, 64, generator=generator) / 10).bfloat16().float()
    targets = torch.randn(300, 64, generator=generator).half()
    ours = gradients(teacher_loss, hidden, weight, targets, kind)
    exact = gradients(materialised_loss, hidden.double(), weight.double(), targets, kind)
    for mine, reference in zip(ours, exact, strict=True):
        assert (mine.double() - reference).norm() <= 0.01 * reference.norm()


@pytest.mark.parametrize("kind", ["cosine", "l1"])
def test_gradients_of_many_voxels_are_summed_in_single_precision(kind, monkeypatch):
    # Chunks of 32 voxels; a sum of their products in bfloat16 would stop growing after 256 of them.
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(targets_module, "CHUNK_VALUES", {"cpu": 1})
    hidden = torch.tensor([[1.0, 0.5]]).bfloat16().expand(20_000, 2).contiguous()
    weight = torch.tensor([[1.0, 0.5, 0.0, 0.25], [0.5, -1.0, 0.25, 0.0]])
    targets = torch.tensor([[0.25, 1.0, 0.5, -1.0]]).expand(20_000, 4)
    _, _, many = gradients(teacher_loss, hidden, weight, targets, kind)
    _, _, one = gradients(teacher_loss, hidden[:1], weight, targets[:1], kind)
    torch.testing.assert_close(many, one, rtol=1e-2, atol=1e-3)


def test_word_loss_and_its_gradients_equal_the_materialised_form():
    generator = torch.Generator().manual_seed(0)
    targets, words = torch.randn(9, 12, dtype=torch.float64, generator=generator), torch.eye(12).double()[:5]

    def materialised(hidden, weight):
        wanted = (functional.normalize(targets, dim=1) @ words.T / 0.05).softmax(dim=1)
        logits = functional.normalize(hidden @ weight, dim=1) @ words.T / 0.05
        return -(wanted * logits.log_softmax(dim=1)).sum(dim=1).mean()

    results = []
    for loss in (materialised, lambda hidden, weight: word_loss(hidden, weight, targets, words)):
        generator.manual_seed(1)
        hidden = torch.randn(9, 7, dtype=torch.float64, generator=generator).requires_grad_()
        weight = torch.randn(7, 12, dtype=torch.float64, generator=generator).requires_grad_()
        value = loss(hidden, weight)
        value.backward()
        results.append((value.detach(), hidden.grad, weight.grad))
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_word_loss_is_least_where_student_and_teacher_are_near_the_same_words():
    words, targets = torch.eye(3), torch.eye(3)
    right, wrong = torch.eye(3), torch.eye(3).roll(1, dims=0)
    blurred = torch.ones(3, 3)
    right, blurred, wrong = (
        word_loss(F, torch.eye(3), targets, words, temperature=0.1) for F in (right, blurred, wrong)
    )
    assert right < blurred < wrong
    # cosine 1 against 0 at temperature 0.1: the other two words are e^-10 as likely each
    assert right.item() == pytest.approx(math.log(1 + 2 * math.exp(-10)) + 2 * 10 / (math.exp(10) + 2), rel=1e-3)
