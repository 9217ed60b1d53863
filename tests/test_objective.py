import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from cuao3d import objective
from cuao3d.objective import WEIGHTINGS, EqualWeighting, RowMeans, UncertaintyWeighting, teacher_loss, word_loss

KINDS = ["cosine", "l1", "demeaned-cosine"]


def materialised_loss(hidden: Tensor, weight: Tensor, targets: Tensor, kind: str) -> Tensor:
    """The losses as the official code forms them: all N x C outputs at once."""
    outputs, targets = hidden @ weight, targets.to(hidden.dtype)
    if kind == "l1":
        return (outputs - targets).abs().mean()
    if kind == "demeaned-cosine":
        targets = targets - targets.mean(dim=1, keepdim=True)
    return (1 - functional.cosine_similarity(outputs, targets, dim=1)).mean()


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
    monkeypatch.setattr(objective, "CHUNK_VALUES", {"cpu": 1})
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
    monkeypatch.setattr(objective, "CHUNK_VALUES", {"cpu": 1})
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
        for kind in KINDS:
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
    losses = torch.stack([teacher_loss(hidden, weights[i], values[f"loss_t{i}"], kind) for i, kind in enumerate(KINDS)])
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
    ("regularizer", "stationary"),
    [
        ("log1p", lambda sigma, loss: sigma**3 - loss * (1 + sigma)),
        ("log1p-squared", lambda sigma, loss: 2 * sigma**4 - loss * (1 + sigma**2)),
    ],
)
def test_sigma_settles_at_its_closed_form(regularizer, stationary):
    weighting = UncertaintyWeighting(2, regularizer)
    losses = torch.tensor([0.3, 1.2])
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.02)
    for _ in range(500):
        optimizer.zero_grad()
        weighting(losses).backward()
        optimizer.step()
    torch.testing.assert_close(stationary(weighting.sigma.detach(), losses), torch.zeros(2), atol=1e-3, rtol=0)
    assert weighting.sigma[0] < weighting.sigma[1]


def test_weightings_have_names():
    losses = torch.tensor([1.0, 2.0])
    assert WEIGHTINGS["equal"](2)(losses).item() == 3
    assert isinstance(WEIGHTINGS["equal"](2), EqualWeighting)
    assert WEIGHTINGS["uncertainty"](2).regularizer == "log1p"
    assert WEIGHTINGS["uncertainty-squared"](2).regularizer == "log1p-squared"


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
