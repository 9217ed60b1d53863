import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cuao3d.linear import DECAY, TOLERANCE, fit_as_paper, fit_classes, fit_values


def blobs(seed, *, num_rows=120, num_channels=4, num_classes=3):
    """Rows around a centre for each class, of channels of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(num_classes, (num_rows,), generator=generator)
    centers = torch.randn(num_classes, num_channels, generator=generator)
    rows = centers[classes] + torch.randn(num_rows, num_channels, generator=generator)
    return 5 + rows * torch.logspace(-2, 2, num_channels), classes


def standard(features):
    rows = features.double().numpy()
    return np.c_[(rows - rows.mean(0)) / rows.std(0), np.ones(len(rows))]


def root_weights(classes):
    weights = classes.bincount()[classes].double().rsqrt()
    return (weights / weights.sum()).numpy()


@given(seed=st.integers(0, 999))
@settings(max_examples=4, deadline=None)
def test_a_converged_fit_is_within_its_bound_of_scikit_learns(seed):
    from sklearn.linear_model import LogisticRegression

    features, classes = blobs(seed)
    inputs, weights = standard(features), root_weights(classes)
    # scikit-learn minimises C sum_i w_i loss_i + |W|^2 / 2; the channel of ones is penalised here.
    exact = LogisticRegression(C=1 / DECAY, fit_intercept=False, tol=1e-10, max_iter=10_000)
    exact.fit(inputs, classes.numpy(), weights)
    linear = fit_classes(features, classes, 3)

    def loss(logits, size):
        picked = np.take_along_axis(logits, classes.numpy()[:, None], 1)[:, 0]
        return weights @ (np.log(np.exp(logits).sum(1)) - picked) + DECAY / 2 * size

    ours = linear(features).double().numpy()
    scaled = (linear.weight * features.std(0, correction=0)[:, None]).square().sum()
    bias = (linear.bias + features.mean(0) @ linear.weight).square().sum()
    above = loss(ours, float(scaled + bias)) - loss(inputs @ exact.coef_.T, np.square(exact.coef_).sum())
    assert -1e-5 < above < linear.gap + 1e-5
    assert linear.has_converged
    assert (ours.argmax(1) == exact.predict(inputs)).mean() > 0.97


def test_a_fit_that_may_not_take_the_steps_it_needs_says_so(monkeypatch):
    monkeypatch.setattr("cuao3d.linear.CHUNK", 1)
    monkeypatch.setattr("cuao3d.linear.MOST_STEPS", 1)
    linear = fit_classes(*blobs(0), 3)
    assert linear.steps == 1
    assert linear.gap > 100 * TOLERANCE  # a bound that is loose this far off, and must not be tight
    assert not linear.has_converged


@pytest.mark.parametrize("fit", [fit_classes, lambda *data: fit_as_paper(*data, scene_of_row=data[1] * 0, seed=0)])
def test_a_class_without_a_sample_is_never_predicted(fit):
    features, classes = blobs(0)
    linear = fit(features, classes * 2, 6)
    assert linear.bias.isinf().tolist() == [False, True, False, True, False, True]
    assert linear(1000 * torch.randn(200, 4)).argmax(1).unique().tolist() == [0, 2, 4]


def test_the_papers_fit_is_a_linear_layer_after_its_epochs():
    features, classes = blobs(1, num_rows=60)
    scene_of_row = torch.arange(60) % 6
    found = fit_as_paper(features, classes, 3, scene_of_row=scene_of_row, seed=3)
    generator, layer = torch.Generator().manual_seed(3), nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.copy_((torch.rand(4, 3, generator=generator) - 0.5).T)  # a bound of 1 / sqrt(4)
        layer.bias.copy_(torch.rand(3, generator=generator) - 0.5)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-4, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=40, power=0.9)
    for _ in range(20):
        order = torch.randperm(6, generator=generator)
        for scenes in (order[:4], order[4:]):
            rows = torch.isin(scene_of_row, scenes)
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(features[rows]), classes[rows]).backward()
            optimizer.step()
            schedule.step()
    assert (found.steps, found.gap, found.has_converged) == (40, None, False)
    torch.testing.assert_close(found.weight, layer.weight.T.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.bias, layer.bias.detach(), rtol=0, atol=1e-6)


@given(seed=st.integers(0, 999))
@settings(max_examples=4, deadline=None)
def test_least_squares_equal_scikit_learns(seed):
    from sklearn.linear_model import Ridge

    features, classes = blobs(seed)
    values = torch.stack([classes.float(), features.sum(1)], dim=1)
    inputs = standard(features)[:, :-1]
    exact = Ridge(alpha=DECAY * len(inputs)).fit(inputs, values.numpy()).predict(inputs)
    torch.testing.assert_close(
        fit_values(features, values)(features).double(), torch.tensor(exact), rtol=1e-4, atol=1e-3
    )


def test_a_constant_channel_does_no_harm():
    features, classes = blobs(0)
    with_constant = torch.cat([features, torch.full((len(features), 1), 7.0)], dim=1)
    found = fit_values(with_constant, classes[:, None].float())
    assert found.weight[-1].item() == 0
    torch.testing.assert_close(found(with_constant), fit_values(features, classes[:, None].float())(features))
    assert fit_classes(with_constant, classes, 3).has_converged
