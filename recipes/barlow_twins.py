"""Barlow Twins: the views' cross-correlation must be the identity (Zbontar et al., ICML 2021).

Each embedding dimension must agree between the views and not correlate with the others. An invariant baseline, and a
base of E-SSL and CARE.

    accelerate launch recipes/barlow_twins.py                             the embedded set; minutes on two CPU cores
    accelerate launch --multi_gpu recipes/barlow_twins.py imagenet --data-dir SHARDS     ImageNet, the paper's settings
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field

import torch

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import open_data
from ssl_equi.encoders import create_encoder
from ssl_equi.objectives.barlow_twins import BarlowTwins, BarlowTwinsConfig
from ssl_equi.training.pretraining import DataIdentity, FollowingProbes, check_ending, finish, open_loader
from ssl_equi.training.pretraining_config import PretrainingConfig, follow_schedule, optimizer_of
from ssl_equi.training.provenance import BF16_FOR_FP16, reproduces
from ssl_equi.training.run import Run
from ssl_equi.views.makers import PairOptions, views


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
        dataset="imagenet", image_size=224, evaluation_split="val", encoder="resnet50",
        views=PairOptions(source="augmented", preset="byol_imagenet"), batch_size=4096, epochs=100, optimizer="lars",
        learning_rate=3.2, final_learning_rate=0.0032, warmup_steps=3120, weight_decay=1e-6, decay_bias_and_norm=False,
        bias_and_norm_rate_factor=0.024, mixed_precision="bf16", log_every=50, save_every=1000,
        objective=BarlowTwinsConfig(separate_batch_norm=True),
    )  # fmt: skip


CONFIGS = {"embedded": embedded, "imagenet": imagenet}


def build(config: Config) -> BarlowTwins:
    """The encoder and its objective, initialised from the seed; no side effects."""
    torch.manual_seed(config.seed)
    return BarlowTwins(create_encoder(config.encoder, config.image_size, **config.encoder_arguments), config.objective)


def main(config: Config) -> None:
    objective = build(config)
    run = Run(config, "barlow_twins")
    data = open_data(config.dataset, config.data_dir, config.evaluation_split, config.image_size, config.reading)
    make_views = views(config, data, run)
    model = run.prepare(objective, lambda module: optimizer_of(module, config))
    check_ending(run, config, objective, data)
    run.register("data", DataIdentity(data.train))
    probes = FollowingProbes(run, objective, data)
    with open_loader(config, data, run, make_views.stored_views) as loader:
        start = run.resume()
        total_steps = config.epochs * loader.steps_per_epoch
        for step, batch in run.batches(loader, start, total_steps):
            learning_rate = follow_schedule(run.optimizer, config, step, total_steps)
            pair = make_views(batch, step)
            output = model(pair.images)
            run.backward(output)
            run.optimizer.step()
            run.optimizer.zero_grad()
            probes.update(output, batch)
            run.log(step, output, probes=probes.metrics, learning_rate=learning_rate)
    finish(run, config, objective, data)


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
