"""Barlow Twins: the views' cross-correlation must be the identity (Zbontar et al., ICML 2021).

Each embedding dimension must agree between the views and not correlate with the others. An invariant baseline, and a
base of E-SSL and CARE.

    accelerate launch recipes/barlow_twins.py                             the embedded set; minutes on two CPU cores
    accelerate launch --multi_gpu recipes/barlow_twins.py imagenet --data-dir SHARDS     ImageNet, the paper's settings
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field
from functools import partial

from ssl_equi.cli import run_recipe
from ssl_equi.objectives.barlow_twins import BarlowTwins, BarlowTwinsConfig
from ssl_equi.training.config import PretrainingConfig
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import BF16_FOR_FP16, IMAGENET, reproduces
from ssl_equi.views.makers import views
from ssl_equi.views.options import PairOptions


@dataclass(frozen=True)
class Config(PretrainingConfig):
    """Options of Barlow Twins."""

    objective: BarlowTwinsConfig = field(default_factory=BarlowTwinsConfig)
    """Weight and sizes of the loss."""


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU, with the budget of the other methods."""
    return Config(objective=BarlowTwinsConfig(projector=(1024, 1024, 1024)))


@reproduces("release", "E-SSL", BF16_FOR_FP16)
def imagenet() -> Config:
    """ImageNet as the baseline of E-SSL (the paper's settings, but for batch 4,096 and 100 epochs)."""
    return Config(
        **IMAGENET, views=PairOptions(source="augmented", preset="byol_imagenet"),
        batch_size=4096, epochs=100, optimizer="lars",
        learning_rate=3.2, final_learning_rate=0.0032, warmup_steps=3120, weight_decay=1e-6, decay_bias_and_norm=False,
        bias_and_norm_rate_factor=0.024,
        objective=BarlowTwinsConfig(separate_batch_norm=True),
    )  # fmt: skip


CONFIGS = {"embedded": embedded, "imagenet": imagenet}


def build(config: Config) -> BarlowTwins:
    """The encoder and its objective, initialised from the seed; no side effects."""
    return BarlowTwins(initial_encoder(config), config.objective)


def main(config: Config) -> None:
    run = Pretraining(config, "barlow_twins", build(config), partial(views, config))
    for step, batch in run:
        pair = run.views(batch, step)
        output = run.train_step(pair.images)
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
