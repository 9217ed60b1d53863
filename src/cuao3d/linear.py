"""Linear maps from features to classes or to numbers, fitted to convergence, or as the paper trains its probes."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

Optimiser = Literal["converged", "paper"]
"""`converged`: `fit_classes`; `paper`: `fit_as_paper`."""

DECAY = 1e-2
"""Penalty of the squared weights on standardised features; of 0.1 to 0.0001 the best on training rooms and houses
that were held out."""

TOLERANCE = 1e-3
"""How far the loss of a converged fit may be above the least one at most, nats a sample."""

MOST_STEPS, CHUNK = 1000, 10
"""Steps of L-BFGS at most, and between looks at how far the loss can still fall."""

EPOCHS, SCENES_PER_STEP, RATE, WEIGHT_DECAY = 20, 4, 1e-4, 1e-4
"""The paper's probe: Adam, decayed as (1 - t)^0.9."""


@dataclass(frozen=True, eq=False)
class LinearMap:
    """A fitted linear map."""

    weight: Float[Tensor, "C K"]
    """Weight of each channel for each output."""
    bias: Float[Tensor, "K"]
    """What is added to each output; minus infinity for a class that no sample was of."""
    steps: int
    """Steps of the optimiser; 0 for a closed form."""
    gap: float | None
    """Bound on how far the training loss is above the least one, nats; None where it is not known."""

    def __call__(self, features: Float[Tensor, "N C"]) -> Float[Tensor, "N K"]:
        """Map features; in fp32."""
        return features.to(self.weight) @ self.weight + self.bias

    @property
    def has_converged(self) -> bool:
        """Whether the training loss is within `TOLERANCE` of the least one."""
        return self.gap is not None and self.gap <= TOLERANCE


def fit_classes(
    features: Float[Tensor, "R C"], classes: Int64[Tensor, "R"], num_classes: int, *, decay: float = DECAY
) -> LinearMap:
    """Fit a linear map to classes by cross-entropy on standardised features, where a class counts as its square root.

    The loss is `sum_i w_i H(x_i W, y_i) + decay / 2 |W|^2`, the bias being the row of W for a channel of ones, `w_i` as
    one over the root of the frequency of the class `y_i`, with sum 1: the weighting of the upper bound. L-BFGS (torch)
    minimises it. As it is `decay`-strongly convex, it is at most `|gradient|^2 / (2 decay)` above its least value
    (Nesterov, Lectures on Convex Optimization, theorem 2.1.10); the fit stops where that is below `TOLERANCE`.

    Args:
        features: Features of samples.
        classes: Class of each.
        num_classes: Number K of classes; those that no sample is of are never predicted.
        decay: Penalty of the squared weights.
    """
    present, target = torch.unique(classes, return_inverse=True)
    mean, deviation = _moments(features)
    inputs = _standard(features, mean, deviation)
    counts = torch.bincount(target)
    weights = counts[target].float().rsqrt()
    weights /= weights.sum()
    solution = torch.zeros(inputs.shape[1], len(present), device=features.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [solution], max_iter=CHUNK, history_size=10, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        entropy = functional.cross_entropy(inputs @ solution, target, reduction="none")
        value = (entropy * weights).sum() + decay / 2 * solution.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    steps, gap = 0, torch.inf
    with torch.enable_grad():
        while gap > TOLERANCE and steps < MOST_STEPS:
            optimizer.step(loss)  # type: ignore[no-untyped-call]
            steps += CHUNK
            loss()
            assert solution.grad is not None
            gap = solution.grad.double().square().sum().item() / (2 * decay)
    return _unstandardised(solution.detach(), mean, deviation, steps, gap, present, num_classes)


def fit_as_paper(
    features: Float[Tensor, "R C"],
    classes: Int64[Tensor, "R"],
    num_classes: int,
    *,
    scene_of_row: Int64[Tensor, "R"],
    seed: int,
) -> LinearMap:
    """Fit a linear layer to classes as the paper trains its probes: plain cross-entropy, whatever the loss at the end.

    Adam at 1e-4 with a weight decay of 1e-4, 20 epochs, four scenes a step, the rate falling as (1 - t)^0.9; features
    as they are.

    Args:
        features: Features of samples.
        classes: Class of each.
        num_classes: Number K of classes; those that no sample is of are never predicted.
        scene_of_row: Scene of each sample.
        seed: Seed of the initial weights and of the order of scenes.
    """
    generator = torch.Generator().manual_seed(seed)
    bound = features.shape[1] ** -0.5  # of a fresh `nn.Linear`
    weight, bias = (
        ((2 * torch.rand(*shape, num_classes, generator=generator) - 1) * bound).to(features.device).requires_grad_()
        for shape in ((features.shape[1],), ())
    )
    optimizer = torch.optim.Adam([weight, bias], lr=RATE, weight_decay=WEIGHT_DECAY)
    order = torch.argsort(scene_of_row, stable=True)
    rows_of_scene = torch.split(order, torch.unique(scene_of_row, return_counts=True)[1].tolist())
    steps = EPOCHS * -(-len(rows_of_scene) // SCENES_PER_STEP)
    plan = (
        torch.cat([rows_of_scene[int(one)] for one in chosen])
        for _ in range(EPOCHS)
        for chosen in torch.split(torch.randperm(len(rows_of_scene), generator=generator), SCENES_PER_STEP)
    )
    with torch.enable_grad():
        for step, rows in enumerate(plan):
            optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps) ** 0.9
            optimizer.zero_grad()
            rows = rows.to(features.device)
            loss = functional.cross_entropy(features[rows] @ weight + bias, classes[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    absent = torch.bincount(classes, minlength=num_classes) == 0
    return LinearMap(weight.detach(), bias.detach().masked_fill(absent, -torch.inf), steps, None)


def fit_values(features: Float[Tensor, "R C"], values: Float[Tensor, "R D"], *, decay: float = DECAY) -> LinearMap:
    """Fit a linear map to numbers by least squares on standardised features (ridge regression), in closed form.

    It minimises the mean of `|x_i W - v_i|^2` plus `decay |W|^2`, the mean of the values being left free.

    Args:
        features: Features of samples.
        values: What to predict of each.
        decay: Penalty of the squared weights.
    """
    mean, deviation = _moments(features)
    inputs = _standard(features, mean, deviation)[:, :-1].double()
    middle = values.double().mean(dim=0)
    scatter = inputs.T @ inputs / len(inputs)
    scatter.diagonal().add_(decay)
    slopes = torch.linalg.solve(scatter, inputs.T @ (values.double() - middle) / len(inputs))
    solution = torch.cat([slopes, middle[None]]).float()
    return _unstandardised(solution, mean, deviation, 0, 0.0, torch.arange(values.shape[1]), values.shape[1])


def _moments(features: Float[Tensor, "R C"]) -> tuple[Float[Tensor, "C"], Float[Tensor, "C"]]:
    """Return mean and standard deviation of each channel; the latter 1 where the channel is constant."""
    deviation, mean = torch.std_mean(features, dim=0, correction=0)
    return mean, torch.where(deviation > 1e-6, deviation, 1.0)


def _standard(features: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Standardise features, and append a channel of ones."""
    return functional.pad((features - mean) / deviation, (0, 1), value=1.0)


def _unstandardised(
    solution: Tensor, mean: Tensor, deviation: Tensor, steps: int, gap: float, outputs: Tensor, num_outputs: int
) -> LinearMap:
    """Return the map from features as they are; outputs that were not fitted become minus infinity."""
    weight = torch.zeros(len(mean), num_outputs, device=solution.device)
    bias = torch.full((num_outputs,), -torch.inf, device=solution.device)
    weight[:, outputs] = solution[:-1] / deviation[:, None]
    bias[outputs] = solution[-1] - mean @ weight[:, outputs]
    return LinearMap(weight, bias, steps, gap)
