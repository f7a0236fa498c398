"""Training steps of SIE in three forms that learn the same, in a process each; bench_step.py starts them.

    echo round | python tools/sie_forms.py --form published --sizes.encoder sie_resnet18 --sizes.batch-size 8

as_runs: what a run does, online probes included.
plain: the same with PyTorch's defaults for the layout of convolutions, the optimiser and the reuse of memory; variances
and covariances from their formulas, and the pooling of a map that has the pooled size already.
published: a plain reading of the paper and its code. Each view has its own encoder call, the hypernetwork predicts
all weights of each sample's predictor, and an evaluator of linear and two-layer heads (45 M weights at the published
sizes) learns in every step, with the same optimiser.

The first line of output holds the peak of memory from the first weight to the end of the second step; after that, each
line of input asks for a round of steps, and is answered with its seconds per step.
"""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is loaded; keeps its profiler quiet

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Literal

import torch
import torch.nn.functional as F
from benchmarks import TrainingStep, peak_bytes, random_views
from torch import Tensor, nn

from ssl_equi.cli import parse_command_line
from ssl_equi.encoders import create_encoder
from ssl_equi.encoders.strided_cnn import StridedCNN
from ssl_equi.evaluation.online import OnlineProbes
from ssl_equi.objectives.base import ObjectiveOutput
from ssl_equi.objectives.sie import SIE, SIEConfig
from ssl_equi.training.devices import prepare_for_device
from ssl_equi.training.optimisation import make_optimizer

Form = Literal["as_runs", "plain", "published"]
RATE = 1e-3
EPSILON = 1e-4
WEIGHTS = SIEConfig()


@dataclass(frozen=True)
class Sizes:
    """What all forms of a step share."""

    encoder: str = "strided_cnn_tiny"
    """Any timm name."""
    image_size: int = 64
    """Side of the views in pixels."""
    batch_size: int = 64
    """Objects in a step, two views each."""
    projector: tuple[int, ...] = (1024, 1024, 1024)
    """Widths of SIE's two projectors together; 2048-2048-2048 in the paper."""
    num_classes: int = 55
    """Of the online heads; 55 in 3DIEBench."""


@dataclass(frozen=True)
class Config:
    """What a process times."""

    form: Form = "as_runs"
    """as_runs, plain or published."""
    sizes: Sizes = field(default_factory=Sizes)
    """What all forms share."""
    steps_per_round: int = 2
    """Steps in a round."""


class Followed(nn.Module):
    """SIE with the online probes that follow it in a run."""

    def __init__(self, objective: SIE, sizes: Sizes) -> None:
        super().__init__()
        self.objective = objective
        self.probes = OnlineProbes(objective.num_features, objective.parts, sizes.num_classes)

    def forward(self, views: Tensor, actions: Tensor, labels: Tensor, poses: Tensor) -> ObjectiveOutput:
        output = self.objective(views, actions)
        self.probes.update(output.features, labels, poses)
        return output


# ---------------------------------------------------------------- formulas as they are written


def plain_std(embedding: Tensor) -> Tensor:
    return torch.sqrt(embedding.var(dim=0) + EPSILON)


def plain_variance(embedding: Tensor) -> Tensor:
    return F.relu(1 - plain_std(embedding)).mean()


def plain_covariance(embedding: Tensor) -> Tensor:
    centred = embedding - embedding.mean(dim=0)
    covariance = centred.T @ centred / (len(embedding) - 1)
    return (covariance - torch.diag(covariance.diagonal())).square().sum() / embedding.shape[1]


class PlainSIE(SIE):
    """SIE that forms the matrix of all covariances, and all statistics once for each of their uses."""

    def _regularisation_terms(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        first, second = torch.cat(list(embeddings.values()), dim=-1).unbind(dim=1)
        std = (plain_std(first.detach()) + plain_std(second.detach())) / 2
        of_parts = std.split([embedding.shape[-1] for embedding in embeddings.values()])
        return {
            "variance": (plain_variance(first) + plain_variance(second)) / 2,
            "covariance": plain_covariance(first) + plain_covariance(second),
            **{f"std_{part}": values.mean() for part, values in zip(embeddings, of_parts, strict=True)},
        }


# ---------------------------------------------------------------- the published algorithm


class NaiveHypernetwork(nn.Linear):
    """A linear layer from the action to all weights [D, D] of a sample's predictor."""

    def __init__(self, dim: int, action_dim: int = 4) -> None:
        super().__init__(action_dim, dim * dim, bias=False)
        self.dim = dim

    def forward(self, embedding: Tensor, actions: Tensor) -> Tensor:
        matrices = super().forward(actions).unflatten(1, (self.dim, self.dim))
        return torch.bmm(matrices, embedding.unsqueeze(-1)).squeeze(-1)


class OnlineEvaluator(nn.Module):
    """Linear classifiers of single views and two-layer regressors of pairs, of several representations.

    Args:
        class_widths: of the representations that are classified.
        pose_widths: of those from which the relative rotation is regressed.
    """

    def __init__(self, class_widths: Sequence[int], pose_widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(nn.Linear(width, num_classes) for width in class_widths)
        self.regressors = nn.ModuleList(two_hidden_layers(2 * width, 4) for width in pose_widths)

    def forward(
        self, classified: Sequence[Tensor], posed: Sequence[tuple[Tensor, Tensor]], labels: Tensor, actions: Tensor
    ) -> Tensor:
        """The sum of all heads' losses, of detached representations [B, D] and of pairs of them."""
        loss = torch.zeros(())
        for head, features in zip(self.classifiers, classified, strict=True):
            loss = loss + F.cross_entropy(head(features.detach()), labels)
        for head, pair in zip(self.regressors, posed, strict=True):
            loss = loss + F.mse_loss(head(torch.cat(pair, dim=1).detach()), actions)
        return loss


def two_hidden_layers(width: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, hidden in pairwise((width, width, width)):
        layers += [nn.Linear(inputs, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class PublishedSIE(nn.Module):
    """The loss of `SIE` and its online evaluator, step by step as in the paper; for one process.

    Args:
        objective: the SIE whose encoder and projectors are used.
        num_classes: of the evaluator.
    """

    def __init__(self, objective: SIE, num_classes: int) -> None:
        super().__init__()
        self.encoder, self.projectors = objective.encoder, objective.projectors
        self.columns = objective.parts
        features, of_inv = objective.num_features, objective.parts["inv"].stop
        invariant, equivariant = (self.projectors[part][-1].out_features for part in ("inv", "equi"))
        self.hypernetwork = NaiveHypernetwork(equivariant)
        self.evaluator = OnlineEvaluator(
            (features, of_inv, invariant + equivariant),
            (features, features - of_inv, equivariant, invariant + equivariant),
            num_classes,
        )

    def forward(self, views: Tensor, actions: Tensor, labels: Tensor, poses: Tensor) -> SimpleNamespace:
        first, second = (self.encoder(view) for view in views.unbind(dim=1))
        inv1, equi1 = (self.projectors[part](first[:, self.columns[part]]) for part in ("inv", "equi"))
        inv2, equi2 = (self.projectors[part](second[:, self.columns[part]]) for part in ("inv", "equi"))
        prediction = self.hypernetwork(equi1, actions)
        z1, z2 = torch.cat([inv1, equi1], dim=1), torch.cat([inv2, equi2], dim=1)
        loss = (
            WEIGHTS.inv_weight * F.mse_loss(inv1, inv2)
            + WEIGHTS.equi_weight * F.mse_loss(prediction, equi2)
            + WEIGHTS.variance_weight * (plain_variance(z1) + plain_variance(z2)) / 2
            + WEIGHTS.variance_weight * plain_variance(prediction) / 2
            + WEIGHTS.covariance_weight * (plain_covariance(z1) + plain_covariance(z2))
        )
        of_equi = self.columns["equi"]
        evaluated = self.evaluator(
            (first, first[:, self.columns["inv"]], z1),
            ((first, second), (first[:, of_equi], second[:, of_equi]), (equi1, equi2), (z1, z2)),
            labels,
            actions,
        )
        return SimpleNamespace(loss=loss + evaluated, loss_of_sie=loss.detach())


# ---------------------------------------------------------------- steps


def random_inputs(sizes: Sizes) -> tuple[Tensor, ...]:
    """Views, relative rotations, labels and absolute rotations of a batch."""
    views = random_views(sizes.batch_size, 2, sizes.image_size, "cpu")
    actions = F.normalize(torch.randn(sizes.batch_size, 4), dim=-1)
    poses = F.normalize(torch.randn(sizes.batch_size, 2, 4), dim=-1)
    return views, actions, torch.randint(sizes.num_classes, (sizes.batch_size,)), poses


def make_step(form: Form, sizes: Sizes) -> TrainingStep:
    """A form's step on the CPU, on random inputs that lie there; all forms begin with the same encoder."""
    torch.manual_seed(0)
    encoder = create_encoder(sizes.encoder, sizes.image_size)
    objective = (SIE if form == "as_runs" else PlainSIE)(encoder, SIEConfig(projector=sizes.projector))
    if form == "as_runs":
        prepare_for_device(objective, torch.device("cpu"))
    elif isinstance(encoder, StridedCNN):
        encoder.grid = nn.AdaptiveAvgPool2d(encoder.grid.output_size)
    module = PublishedSIE(objective, sizes.num_classes) if form == "published" else Followed(objective, sizes)
    return TrainingStep(module, random_inputs(sizes), fused_adam if form == "as_runs" else plain_adam, device="cpu")


def fused_adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return make_optimizer("adam", [{"params": list(parameters)}], RATE)


def plain_adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=RATE)


def main(config: Config) -> None:
    made: list[TrainingStep] = []

    def make_and_run_twice() -> None:
        made.append(make_step(config.form, config.sizes))
        for _ in range(2):
            made[0].run()

    print(peak_bytes(make_and_run_twice, "cpu"), flush=True)
    for _ in sys.stdin:
        print(made[0].seconds(config.steps_per_round), flush=True)


if __name__ == "__main__":
    main(parse_command_line(Config, __doc__))
