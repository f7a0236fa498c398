"""Probe heads on cached features: linear and MLP heads trained by gradients, and ridge regression in closed form.

A sample is one or more rows of the feature matrix (one view, or the two views of a pair) whose features are
concatenated. Finished heads take raw features: standardisation is folded into their first layer.
"""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
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


SamplesOfEpoch = Callable[[int], Samples]


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
    samples_per_object: int | None = 1
    classes: int | None = None
    scaled: bool = False


@dataclass(frozen=True)
class HeadRequest:
    """A head to train on rows of `features [N, D]`.

    Attributes:
        samples_of_epoch: the samples of an epoch, always as many; requests with the same function share its draws.
        seed: of the initialisation and, with the epoch's number, of the order of samples.
        learning_rate, weight_decay: None: those of the protocol.
        after_epoch: is given the head of every epoch's end, which takes raw features.
    """

    features: Tensor
    samples_of_epoch: SamplesOfEpoch
    plan: HeadPlan
    seed: int
    learning_rate: float | None = None
    weight_decay: float | None = None
    after_epoch: Callable[[nn.Sequential], None] | None = None


def train_heads(
    requests: Sequence[HeadRequest], protocol: ProbeProtocol, *, stacked: bool | None = None
) -> list[nn.Sequential]:
    """One finished head for each request; those of one shape and one plan are trained in the same steps.

    On a CPU each head is to the bit what it would be alone. On a GPU, where many small kernels cost more than their
    arithmetic, equal layers of several heads are multiplied at once, which rounds differently.

    Args:
        stacked: multiply equal layers at once; None: on a GPU.
    """
    first: dict[SamplesOfEpoch, Samples] = {}
    trainings: list[_Training] = []
    together: dict[tuple[Any, ...], list[_Training]] = {}
    features_by_id = {id(request.features): request.features for request in requests}
    statistics = {key: _standardisation(features, protocol) for key, features in features_by_id.items()}
    for request in requests:
        draw = request.samples_of_epoch
        if draw not in first:
            first[draw] = draw(0)
        training = _start(request, first[draw], *statistics[id(request.features)])
        trainings.append(training)
        shapes = tuple(parameter.shape for parameter in training.head.parameters())
        key = (request.features.device, request.plan, shapes, first[draw].rows.shape)
        together.setdefault(key, []).append(training)
    for equal in together.values():
        on_gpu = equal[0].request.features.is_cuda
        _train_together(equal, first, protocol, stacked=on_gpu if stacked is None else stacked)
    return [training.finish(training.head) for training in trainings]


_Source = tuple[int, SamplesOfEpoch, int]  # of batches: features by id, samples and seed; one gather serves its heads


@dataclass(frozen=True)
class _Training:
    """A head in training, which takes standardised features and answers with scaled targets.

    Attributes:
        mean, std: of the features' columns `[D]`.
        shift, scale: of the targets `[K]`; None: they are learnt as they are.
    """

    request: HeadRequest
    head: nn.Sequential
    mean: Tensor
    std: Tensor
    shift: Tensor | None
    scale: Tensor | None

    @property
    def source(self) -> _Source:
        return id(self.request.features), self.request.samples_of_epoch, self.request.seed

    def standardised(self, rows: Tensor) -> Tensor:
        """What the head is given for samples `rows [n, k]`: `[n, k * D]`."""
        return ((self.request.features[rows] - self.mean) / self.std).flatten(1)

    @torch.no_grad()
    def finish(self, head: nn.Sequential) -> nn.Sequential:
        """Change `head` in place into one of raw features and of targets as they are."""
        _fold_standardisation(head[0], self.mean, self.std)
        last = head[-1]
        if self.scale is not None and self.shift is not None:
            assert isinstance(last, nn.Linear)
            last.weight.mul_(self.scale)
            last.bias.mul_(self.scale).add_(self.shift)
        return head


def _start(request: HeadRequest, samples: Samples, mean: Tensor, std: Tensor) -> _Training:
    """A head at its initialisation; the scale of targets is that of the first epoch's `samples`."""
    plan, targets = request.plan, samples.targets
    inputs, outputs = samples.rows.shape[1] * request.features.shape[1], plan.classes or targets.shape[1]
    generator = torch.Generator().manual_seed(request.seed)
    head = build_head(inputs, plan.hidden, outputs, generator).to(request.features.device)
    if not plan.scaled:
        return _Training(request, head, mean, std, None, None)
    shift = targets.mean(dim=0)
    size = (targets - shift).square().mean().sqrt()
    return _Training(request, head, mean, std, shift, torch.where(size > 0, size, 1.0))


def _train_together(
    trainings: Sequence[_Training], first: dict[SamplesOfEpoch, Samples], protocol: ProbeProtocol, *, stacked: bool
) -> None:
    """Train heads of equal shape and plan in place, over shuffled batches of each epoch."""
    plan = trainings[0].request.plan
    sources = {training.source: training for training in trainings}
    draws = {draw for _, draw, _ in sources}
    bundles = [trainings] if stacked else [[training] for training in trainings]
    optimizer = _optimizer(trainings, protocol)
    peak_rates = [group["lr"] for group in optimizer.param_groups]
    for epoch in range(plan.epochs):
        drawn = {draw: first[draw] if epoch == 0 else draw(epoch) for draw in draws}
        shuffled = {source: _shuffled(training, drawn[source[1]], epoch) for source, training in sources.items()}
        starts = range(0, len(shuffled[trainings[0].source]), protocol.batch_size)
        for batch_index, start in enumerate(starts):
            share = _share_of_peak_rate(protocol, epoch, batch_index / len(starts), plan.epochs)
            for group, peak_rate in zip(optimizer.param_groups, peak_rates, strict=True):
                group["lr"] = peak_rate * share
            batch = slice(start, start + protocol.batch_size)
            inputs = {
                source: training.standardised(shuffled[source].rows[batch]) for source, training in sources.items()
            }
            targets = {source: samples.targets[batch] for source, samples in shuffled.items()}
            optimizer.zero_grad()
            for bundle in bundles:
                _loss_of_bundle(bundle, inputs, targets).backward()
            optimizer.step()
        for training in trainings:
            if training.request.after_epoch is not None:
                training.request.after_epoch(training.finish(copy.deepcopy(training.head)))


def _optimizer(trainings: Sequence[_Training], protocol: ProbeProtocol) -> torch.optim.Optimizer:
    """The protocol's optimiser of all heads, with a group of parameters per learning rate and weight decay."""
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for training in trainings:
        request = training.request
        rate = protocol.learning_rate if request.learning_rate is None else request.learning_rate
        decay = protocol.weight_decay if request.weight_decay is None else request.weight_decay
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"] += training.head.parameters()
    if protocol.optimizer == "sgd":
        return torch.optim.SGD([*groups.values()], momentum=protocol.momentum, fused=True)
    return torch.optim.Adam([*groups.values()], fused=True)


def _share_of_peak_rate(protocol: ProbeProtocol, epoch: int, done_of_epoch: float, epochs: int) -> float:
    """The learning rate of a step, as a share of the highest one."""
    if protocol.learning_rate_schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * ((epoch + done_of_epoch) / epochs)))
    return 0.1 ** sum(epoch >= step for step in protocol.learning_rate_steps)


def _shuffled(training: _Training, samples: Samples, epoch: int) -> Samples:
    """The samples of an epoch in the order of `training`, with targets on its scale."""
    order = torch.from_numpy(np.random.default_rng([training.request.seed, epoch]).permutation(len(samples)))
    order = order.to(training.request.features.device)
    targets = samples.targets[order]
    if training.shift is not None and training.scale is not None:
        targets = (targets - training.shift) / training.scale
    return Samples(samples.rows[order], targets)


def _loss_of_bundle(
    bundle: Sequence[_Training], inputs: dict[_Source, Tensor], targets: dict[_Source, Tensor]
) -> Tensor:
    """Sum over the heads of a bundle of each one's mean loss."""
    of_classes = bundle[0].request.plan.classes is not None
    if len(bundle) == 1:
        outputs, goals = bundle[0].head(inputs[bundle[0].source]), targets[bundle[0].source]
        return F.cross_entropy(outputs, goals) if of_classes else F.mse_loss(outputs, goals)
    # [heads, columns, batch]: the other way round, gradients of weights would have to be transposed by a copy of each.
    outputs = torch.stack([inputs[training.source] for training in bundle]).mT
    goals = torch.stack([targets[training.source] for training in bundle])
    for layers in zip(*(training.head for training in bundle), strict=True):
        if isinstance(layers[0], nn.Linear):
            weights, biases = (torch.stack([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
            outputs = torch.baddbmm(biases[:, :, None], weights, outputs)
        else:
            outputs = outputs.relu()
    if of_classes:
        return F.cross_entropy(outputs, goals, reduction="sum") / goals.shape[1]
    return F.mse_loss(outputs.mT, goals, reduction="sum") / goals[0].numel()


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


def fit_ridge(
    features: Tensor, samples: Samples, held_out: Tensor, protocol: ProbeProtocol
) -> tuple[nn.Sequential, float]:
    """Linear head of raw features by ridge regression, and its strength, which held-out samples choose.

    Minimises `sum ||y - X w - b||^2 + strength * n * ||w||^2` over standardised features and all samples, in float64.

    Args:
        held_out: bool `[n]`, the samples that choose the strength (whole objects, so that no object is on both sides).
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
        return _Moments(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

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
