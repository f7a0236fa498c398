"""BYOL: predict what a slowly following copy of the network says of the other view (Grill et al., NeurIPS 2020).

No negatives: collapse is avoided by the predictor and by the target network's slowness. An invariant baseline.

    accelerate launch recipes/byol.py                                     the embedded set; minutes on two CPU cores
    accelerate launch --multi_gpu recipes/byol.py imagenet --data-dir SHARDS      ImageNet with the paper's settings
    accelerate launch --multi_gpu recipes/byol.py threediebench --data-dir SHARDS      3DIEBench as seq-JEPA's authors
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field

import torch

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import open_data
from ssl_equi.encoders import create_encoder
from ssl_equi.objectives.byol import BYOL, BYOLConfig
from ssl_equi.options import Momentum
from ssl_equi.training.pretraining import DataIdentity, FollowingProbes, check_ending, finish, open_loader
from ssl_equi.training.pretraining_config import (
    SEQ_JEPA_RELEASED,
    PretrainingConfig,
    follow_schedule,
    optimizer_of,
    target_momentum,
)
from ssl_equi.training.provenance import BF16_FOR_FLOAT32, FRESH_DRAWS, reproduces
from ssl_equi.training.run import Run
from ssl_equi.views.makers import PairOptions, views


@dataclass(frozen=True)
class Config(PretrainingConfig):
    """Options of BYOL."""

    objective: BYOLConfig = field(default_factory=BYOLConfig)
    """Sizes of the heads."""
    target_momentum: Momentum = 0.996
    """Of the target network at the first step; it rises to 1 by a cosine. Paper: .996."""


def embedded() -> Config:
    """The embedded set; the target follows faster than in long runs."""
    objective = BYOLConfig(projector=(1024, 1024, 256), predictor_hidden_width=1024)
    return Config(objective=objective, target_momentum=0.99)


@reproduces("paper", "BYOL", BF16_FOR_FLOAT32)
def imagenet() -> Config:
    """ImageNet with the paper's settings: batch 4,096, LARS, 1,000 epochs."""
    return Config(
        dataset="imagenet", image_size=224, evaluation_split="val", encoder="resnet50",
        views=PairOptions(source="augmented", preset="byol_imagenet"), batch_size=4096, epochs=1000, optimizer="lars",
        learning_rate=3.2, final_learning_rate=0.0, warmup_steps=3120, weight_decay=1.5e-6, decay_bias_and_norm=False,
        mixed_precision="bf16", log_every=50, save_every=1000,
        objective=BYOLConfig(separate_batch_norm=True, reduction="sum"),
    )  # fmt: skip


@reproduces("paper", "seq-JEPA")
def threediebench() -> Config:
    """3DIEBench as in the comparison of seq-JEPA (Ghaemi et al., NeurIPS 2025, appendix A.3): 128 pixels, batch 512."""
    return Config(
        dataset="3diebench", image_size=128, evaluation_split="val", encoder="resnet18", batch_size=512, epochs=1000,
        final_learning_rate=1e-3, warmup_steps=0, log_every=20, save_every=1000,
        probe_protocol="sie", objective=BYOLConfig(
            projector=(2048, 2048, 2048), predictor_hidden_width=512, separate_batch_norm=True, reduction="sum"
        ),
    )  # fmt: skip


@reproduces("release", "seq-JEPA", FRESH_DRAWS)
def threediebench_released() -> Config:
    """The same with the training and the sizes of the released code: Adam at 4e-4 after a warm-up by epochs."""
    return Config(
        **SEQ_JEPA_RELEASED,
        objective=BYOLConfig(
            projector=(2048, 128), predictor_hidden_width=2048, last_batch_norm="not_affine", separate_batch_norm=True,
            reduction="sum",
        ),
    )  # fmt: skip


CONFIGS = {
    "embedded": embedded,
    "imagenet": imagenet,
    "threediebench": threediebench,
    "threediebench_released": threediebench_released,
}


def build(config: Config) -> BYOL:
    """The encoder and its objective, initialised from the seed; no side effects."""
    torch.manual_seed(config.seed)
    return BYOL(create_encoder(config.encoder, config.image_size, **config.encoder_arguments), config.objective)


def main(config: Config) -> None:
    objective = build(config)
    run = Run(config, "byol")
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
            objective.update_target(target_momentum(config, step, total_steps))
            probes.update(output, batch)
            run.log(step, output, probes=probes.metrics, learning_rate=learning_rate)
    finish(run, config, objective, data)


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
