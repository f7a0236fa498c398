"""Probe heads on cached features: linear and MLP heads trained by gradients, and ridge regression in closed form.

A sample is one or more rows of the feature matrix (one view, or the two views of a pair) whose features are
concatenated. Heads take raw features: standardisation is folded into their first layer.
"""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.evaluation.protocol import ProbeProtocol

SMALLEST_STD = 0.01  # of a column that is standardised, as a share of the columns' average


@dataclass(frozen=True)
class Samples:
    """`rows [n, k]` int64 into a feature matrix `[N, D]`, and `targets [n]` (classes) or `[n, K]` (regression)."""

    rows: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class HeadPlan:
    """An MLP and its training.

    Attributes:
        hidden: widths of the hidden layers; none: a linear head.
        epochs: of training.
        samples_per_object: in each epoch; None: as many as an object has views.
        classes: number of classes, told apart by cross-entropy; None: a regression by mean squared error.
        scaled: targets of a regression are shifted and scaled to a variance of 1 for the head to learn, because
            latents may be millimetres or kilometres; one factor for all components.
    """

    hidden: tuple[int, ...]
    epochs: int
    samples_per_object: int | None
    classes: int | None = None
    scaled: bool = False


@dataclass(frozen=True)
class HeadRequest:
    features: Tensor
    samples_of_epoch: Callable[[int], Samples]
    plan: HeadPlan
    seed: int
    learning_rate: float | None = None
    weight_decay: float | None = None
    after_epoch: Callable[[nn.Sequential], None] | None = None


def train_heads(requests: Sequence[HeadRequest], protocol: ProbeProtocol) -> list[nn.Sequential]:
    from dataclasses import replace as changed

    heads = []
    for request in requests:
        plan, seed = request.plan, request.seed
        own = changed(
            protocol,
            learning_rate=protocol.learning_rate if request.learning_rate is None else request.learning_rate,
            weight_decay=protocol.weight_decay if request.weight_decay is None else request.weight_decay,
        )
        first = request.samples_of_epoch(0)
        targets = first.targets
        inputs = first.rows.shape[1] * request.features.shape[1]
        head = build_head(inputs, plan.hidden, plan.classes or targets.shape[1], torch.Generator().manual_seed(seed))
        loss = F.mse_loss if plan.classes is None else F.cross_entropy
        mean, scale = (0.0, 1.0)
        samples_of_epoch = request.samples_of_epoch
        if plan.scaled:
            mean = targets.mean(dim=0)
            size = (targets - mean).square().mean().sqrt()
            scale = torch.where(size > 0, size, 1.0)

            def scaled(epoch: int, drawn=request.samples_of_epoch, mean=mean, scale=scale) -> Samples:
                samples = drawn(epoch)
                return changed(samples, targets=(samples.targets - mean) / scale)

            samples_of_epoch = scaled
        train_head(
            head,
            request.features,
            samples_of_epoch,
            loss,
            own,
            epochs=plan.epochs,
            seed=seed,
            after_epoch=request.after_epoch,
        )
        if plan.scaled:
            with torch.no_grad():
                head[-1].weight.mul_(scale)
                head[-1].bias.mul_(scale).add_(mean)
        heads.append(head)
    return heads


def build_head(
    in_features: int, hidden: tuple[int, ...], out_features: int, generator: torch.Generator
) -> nn.Sequential:
    """`in - hidden - ... - out` with ReLU between (no hidden layers: linear), initialised from `generator` alone."""
    sizes = (in_features, *hidden, out_features)
    layers: list[nn.Module] = []
    for size_in, size_out in itertools.pairwise(sizes):
        linear = nn.utils.skip_init(nn.Linear, size_in, size_out)
        bound = 1 / math.sqrt(size_in)  # PyTorch's default initialisation of a linear layer
        nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
        nn.init.uniform_(linear.bias, -bound, bound, generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def column_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each column of `[N, D]`, and its standard deviation or SMALLEST_STD of the average one if it is less.

    A column that hardly moves over the training views (a unit that almost never fires) may move on unseen objects;
    divided by its own tiny deviation it would swamp all others there.
    """
    std, mean = torch.std_mean(features, dim=0)
    average = std.mean()
    floor = SMALLEST_STD * average if average > 0 else torch.ones_like(average)
    return mean, std.clamp(min=floor)


def train_head(
    head: nn.Sequential,
    features: Tensor,
    samples_of_epoch: Callable[[int], Samples],
    loss_function: Callable[[Tensor, Tensor], Tensor],
    protocol: ProbeProtocol,
    *,
    epochs: int,
    seed: int,
    after_epoch: Callable[[nn.Sequential], None] | None = None,
) -> nn.Sequential:
    """Train `head` in place on rows of `features [N, D]`; the result takes raw (not standardised) features.

    Args:
        samples_of_epoch: the samples of an epoch; the trainer shuffles them with `seed` and the epoch's number.
        loss_function: `(outputs, targets) -> scalar`.
        after_epoch: is given the head of every epoch's end, which takes raw features.
    """
    head.to(features.device)
    mean, std = _standardisation(features, protocol)
    groups = [{"params": list(head.parameters()), "lr": protocol.learning_rate, "weight_decay": protocol.weight_decay}]

    def end_epoch() -> None:
        if after_epoch is not None:
            finished = copy.deepcopy(head)
            _fold_standardisation(finished[0], mean, std)
            after_epoch(finished)

    _optimise(
        groups, head, features, mean, std, samples_of_epoch, loss_function, protocol,
        epochs=epochs, seed=seed, end_epoch=end_epoch,
    )  # fmt: skip
    _fold_standardisation(head[0], mean, std)
    return head


def train_linear_heads(
    strengths: Sequence[tuple[float, float]],
    num_classes: int,
    features: Tensor,
    samples_of_epoch: Callable[[int], Samples],
    protocol: ProbeProtocol,
    *,
    epochs: int,
    seed: int,
) -> nn.Linear:
    """Linear classifiers of several learning rates and weight decays, trained side by side in one pass.

    Each of them becomes what `train_head` would make of it alone, from the initialisation and the batches of `seed`.

    Args:
        strengths: learning rate and weight decay of each of the C heads; those of the protocol are not used.
        samples_of_epoch: as in `train_head`, with classes as targets.

    Returns:
        All heads as one layer that takes raw features: outputs `[n, C * num_classes]`, those of the first head first.
    """
    head = build_head(features.shape[1], (), num_classes, torch.Generator().manual_seed(seed)).to(features.device)
    weights, biases = ([value.detach().clone().requires_grad_() for _ in strengths] for value in head.parameters())

    def side_by_side(inputs: Tensor) -> Tensor:
        return F.linear(inputs, torch.cat(weights), torch.cat(biases))

    def sum_of_losses(outputs: Tensor, labels: Tensor) -> Tensor:
        logits = outputs.unflatten(1, (len(strengths), num_classes)).permute(0, 2, 1)
        return F.cross_entropy(logits, labels[:, None].expand(-1, len(strengths)), reduction="sum") / len(labels)

    mean, std = _standardisation(features, protocol)
    groups = [
        {"params": [weight, bias], "lr": learning_rate, "weight_decay": weight_decay}
        for weight, bias, (learning_rate, weight_decay) in zip(weights, biases, strengths, strict=True)
    ]
    _optimise(
        groups, side_by_side, features, mean, std, samples_of_epoch, sum_of_losses, protocol, epochs=epochs, seed=seed
    )
    together = nn.utils.skip_init(nn.Linear, features.shape[1], len(strengths) * num_classes).to(features.device)
    with torch.no_grad():
        together.weight.copy_(torch.cat(weights))
        together.bias.copy_(torch.cat(biases))
    _fold_standardisation(together, mean, std)
    return together


def fit_ridge(
    features: Tensor, samples: Samples, held_out: Tensor, protocol: ProbeProtocol
) -> tuple[nn.Sequential, float]:
    """Linear head by ridge regression; the strength is chosen on held-out samples, then all samples are used.

    Minimises `sum ||y - X w - b||^2 + strength * n * ||w||^2` over standardised features, in float64.

    Args:
        held_out: bool `[n]`, the samples that choose the strength (whole objects, so that no object is on both sides).

    Returns:
        The head, which takes raw features, and the chosen strength.
    """
    mean, std = _standardisation(features, protocol)
    fitting = _moments(features, samples, ~held_out, mean, std)
    choosing = _moments(features, samples, held_out, mean, std)
    errors = [choosing.squared_error(*fitting.solve(strength)) for strength in protocol.ridge_strengths]
    strength = protocol.ridge_strengths[int(np.argmin(errors))]
    weight, bias = fitting.merged(choosing).solve(strength)

    linear = nn.utils.skip_init(nn.Linear, weight.shape[0], weight.shape[1]).to(features.device)
    with torch.no_grad():
        linear.weight.copy_(weight.T)
        linear.bias.copy_(bias)
    _fold_standardisation(linear, mean, std)
    return nn.Sequential(linear), strength


def predict(head: nn.Module, features: Tensor, rows: Tensor, batch_size: int = 4096) -> Tensor:
    """Outputs of `head` for samples `rows [n, k]` of `features [N, D]`: `[n, K]` on the features' device."""
    with torch.inference_mode():
        outputs = [head(features[batch].flatten(1)) for batch in rows.split(batch_size)]
    return torch.cat(outputs)


def _optimise(
    groups: list[dict[str, Any]],
    forward: Callable[[Tensor], Tensor],
    features: Tensor,
    mean: Tensor,
    std: Tensor,
    samples_of_epoch: Callable[[int], Samples],
    loss_function: Callable[[Tensor, Tensor], Tensor],
    protocol: ProbeProtocol,
    *,
    epochs: int,
    seed: int,
    end_epoch: Callable[[], None] = lambda: None,
) -> None:
    """The protocol's optimiser on groups of parameters with rates of their own, over shuffled batches of each epoch."""
    optimizer: torch.optim.Optimizer = torch.optim.Adam(groups, fused=True)
    if protocol.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=protocol.momentum, fused=True)
    peak_rates = [group["lr"] for group in optimizer.param_groups]
    for epoch in range(epochs):
        samples = samples_of_epoch(epoch)
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(samples))).to(features.device)
        batches = order.split(protocol.batch_size)
        for batch_index, batch in enumerate(batches):
            share = _share_of_peak_rate(protocol, epoch, batch_index / len(batches), epochs)
            for group, peak_rate in zip(optimizer.param_groups, peak_rates, strict=True):
                group["lr"] = peak_rate * share
            inputs = (features[samples.rows[batch]] - mean) / std
            loss = loss_function(forward(inputs.flatten(1)), samples.targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        end_epoch()


def _share_of_peak_rate(protocol: ProbeProtocol, epoch: int, done_of_epoch: float, epochs: int) -> float:
    """The learning rate of a step, as a share of the highest one."""
    if protocol.learning_rate_schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * ((epoch + done_of_epoch) / epochs)))
    return 0.1 ** sum(epoch >= step for step in protocol.learning_rate_steps)


@dataclass(frozen=True)
class _Moments:
    """Sufficient statistics of a linear regression, float64: sums over samples of x, y, x x^T, x y^T and y^2."""

    count: int
    sum_x: Tensor
    sum_y: Tensor
    sum_xx: Tensor
    sum_xy: Tensor
    sum_yy: Tensor

    def merged(self, other: "_Moments") -> "_Moments":
        return _Moments(
            self.count + other.count,
            self.sum_x + other.sum_x,
            self.sum_y + other.sum_y,
            self.sum_xx + other.sum_xx,
            self.sum_xy + other.sum_xy,
            self.sum_yy + other.sum_yy,
        )

    def solve(self, strength: float) -> tuple[Tensor, Tensor]:
        """Weight `[D, K]` and bias `[K]`; the bias is not penalised."""
        mean_x, mean_y = self.sum_x / self.count, self.sum_y / self.count
        covariance_xx = self.sum_xx / self.count - torch.outer(mean_x, mean_x)
        covariance_xy = self.sum_xy / self.count - torch.outer(mean_x, mean_y)
        penalty = strength * torch.eye(len(mean_x), dtype=torch.float64, device=mean_x.device)
        weight = torch.cholesky_solve(covariance_xy, torch.linalg.cholesky(covariance_xx + penalty))
        return weight, mean_y - mean_x @ weight

    def squared_error(self, weight: Tensor, bias: Tensor) -> float:
        """Sum over samples and outputs of the squared residual of `x @ weight + bias`, expanded into the sums."""
        quadratic = (weight * (self.sum_xx @ weight)).sum(dim=0) + self.count * bias.square()
        cross = (weight * self.sum_xy).sum(dim=0) + bias * self.sum_y
        return float((self.sum_yy + quadratic - 2 * cross + 2 * bias * (self.sum_x @ weight)).sum())


def _moments(features: Tensor, samples: Samples, chosen: Tensor, mean: Tensor, std: Tensor) -> _Moments:
    rows, targets = samples.rows[chosen], samples.targets[chosen].double()
    width = rows.shape[1] * features.shape[1]
    sum_x = torch.zeros(width, dtype=torch.float64, device=features.device)
    sum_xx = torch.zeros(width, width, dtype=torch.float64, device=features.device)
    sum_xy = torch.zeros(width, targets.shape[1], dtype=torch.float64, device=features.device)
    for batch_rows, batch_targets in zip(rows.split(4096), targets.split(4096), strict=True):
        inputs = ((features[batch_rows] - mean) / std).flatten(1).double()
        sum_x += inputs.sum(dim=0)
        sum_xx += inputs.T @ inputs
        sum_xy += inputs.T @ batch_targets
    return _Moments(len(rows), sum_x, targets.sum(dim=0), sum_xx, sum_xy, targets.square().sum(dim=0))


def _standardisation(features: Tensor, protocol: ProbeProtocol) -> tuple[Tensor, Tensor]:
    if protocol.standardise:
        return column_statistics(features)
    return torch.zeros_like(features[0]), torch.ones_like(features[0])


@torch.no_grad()
def _fold_standardisation(linear: nn.Module, mean: Tensor, std: Tensor) -> None:
    """Change `linear`, which takes `(x - mean) / std` of each view side by side, into the same function of `x`."""
    assert isinstance(linear, nn.Linear)
    views_per_sample = linear.in_features // len(mean)
    linear.weight.div_(std.repeat(views_per_sample))
    linear.bias.sub_(linear.weight @ mean.repeat(views_per_sample))
