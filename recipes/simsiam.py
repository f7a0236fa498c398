"""SimSiam: predict the other view's embedding, which is held still (Chen and He, CVPR 2021).

BYOL without the target network; the stop-gradient alone keeps it from collapsing. An invariant baseline, and a base of
E-SSL.

    accelerate launch recipes/simsiam.py                                  the embedded set; minutes on two CPU cores
    accelerate launch recipes/simsiam.py cifar10 --data-dir CIFAR         CIFAR-10 with the settings of the E-SSL paper
    accelerate launch --multi_gpu recipes/simsiam.py imagenet --data-dir SHARDS        ImageNet, the paper's settings
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ssl_equi.cli import run_recipe
from ssl_equi.objectives.simsiam import SimSiam, SimSiamConfig
from ssl_equi.training.config import PretrainingConfig
from ssl_equi.training.optimisation import make_optimizer, optimizer_of, parameter_groups_of
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import BF16_FOR_FLOAT32, ESSL_CIFAR10, IMAGENET, reproduces
from ssl_equi.views.makers import views
from ssl_equi.views.options import PairOptions


@dataclass(frozen=True)
class Config(PretrainingConfig):
    """Options of SimSiam."""

    objective: SimSiamConfig = field(default_factory=SimSiamConfig)
    """Sizes of the heads."""
    constant_predictor_rate: bool = True
    """The predictor's learning rate stays what it was at the start. Paper: yes, on ImageNet and CIFAR-10."""


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU, with the budget of the other methods."""
    return Config(objective=SimSiamConfig(projector=(1024, 1024, 1024), predictor_hidden_width=256))


@reproduces("release", "E-SSL")
def cifar10() -> Config:
    """CIFAR-10 as the baseline of E-SSL (Dangovski et al., ICLR 2022, released code)."""
    return Config(
        **ESSL_CIFAR10, views=PairOptions(source="augmented", preset="simclr_cifar"),
        objective=SimSiamConfig(
            projector=(2048, 2048), last_batch_norm="not_affine", predictor_hidden_width=512, separate_batch_norm=True
        ),
    )  # fmt: skip


@reproduces("paper", "SimSiam", BF16_FOR_FLOAT32)
def imagenet() -> Config:
    """ImageNet with the paper's settings: batch 512, SGD, 100 epochs."""
    return Config(
        **(IMAGENET | {"save_every": 2500}), views=PairOptions(source="augmented", preset="mocov2"),
        batch_size=512, epochs=100, optimizer="sgd",
        learning_rate=0.1, final_learning_rate=0.0, warmup_steps=0, weight_decay=1e-4,
        objective=SimSiamConfig(separate_batch_norm=True),
    )  # fmt: skip


CONFIGS = {"embedded": embedded, "cifar10": cifar10, "imagenet": imagenet}


def build(config: Config) -> SimSiam:
    """The encoder and its objective, initialised from the seed; no side effects."""
    return SimSiam(initial_encoder(config), config.objective)


def simsiam_optimizer(objective: SimSiam, config: Config) -> torch.optim.Optimizer:
    """The usual optimiser, with a group of its own for the predictor if its rate is to stay constant."""
    if not config.constant_predictor_rate:
        return optimizer_of(objective, config)
    predictor = set(objective.predictor.parameters())
    others: list[dict[str, Any]] = []
    constant: list[dict[str, Any]] = []
    for group in parameter_groups_of(objective, config):
        rate = config.learning_rate * group["rate_factor"]
        others.append({**group, "params": [p for p in group["params"] if p not in predictor]})
        constant.append({**group, "params": [p for p in group["params"] if p in predictor], "constant_rate": rate})
    groups = [group for group in others + constant if group["params"]]
    return make_optimizer(config.optimizer, groups, config.learning_rate, config.sgd_momentum)


def main(config: Config) -> None:
    run = Pretraining(config, "simsiam", build(config), partial(views, config), simsiam_optimizer)
    for step, batch in run:
        pair = run.views(batch, step)
        output = run.train_step(pair.images)
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
