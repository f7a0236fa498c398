"""Conditional BYOL: the predictor is told the action that leads to the other view (seq-JEPA's comparison).

BYOL, one way only: from view 1 and the action to the target network's view 2 (Ghaemi et al., NeurIPS 2025).

    accelerate launch recipes/conditional_byol.py                         the embedded set; minutes on two CPU cores
    accelerate launch --multi_gpu recipes/conditional_byol.py threediebench --data-dir SHARDS      as seq-JEPA's authors
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace

import torch

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import open_data
from ssl_equi.encoders import create_encoder
from ssl_equi.objectives.byol import ConditionalBYOL, ConditionalBYOLConfig
from ssl_equi.options import Momentum
from ssl_equi.training.pretraining import DataIdentity, FollowingProbes, check_ending, finish, open_loader
from ssl_equi.training.pretraining_config import (
    SEQ_JEPA_RELEASED,
    PretrainingConfig,
    follow_schedule,
    optimizer_of,
    target_momentum,
)
from ssl_equi.training.provenance import FRESH_DRAWS, reproduces
from ssl_equi.training.run import Run
from ssl_equi.views.makers import PairAction, TrainingViews, ViewOptions, action_size


@dataclass(frozen=True)
class Config(PretrainingConfig):
    """Options of Conditional BYOL."""

    views: ViewOptions = field(default_factory=ViewOptions)
    """Where the views of an object come from, and how the change between them is told."""
    objective: ConditionalBYOLConfig = field(default_factory=ConditionalBYOLConfig)
    """Sizes of the heads."""
    actions: PairAction = "rotation"
    """What the objective is told of the change: rotation or rotation_color; for objects that also move (3diebench-pt,
    3diebench-t) pose_base or pose_object, rotation and translation in that frame; augmentation for augmented views."""
    target_momentum: Momentum = 0.996
    """Of the target network at the first step; it rises to 1 by a cosine. Paper: .996."""


def embedded() -> Config:
    """The embedded set; the target follows faster than in long runs."""
    objective = ConditionalBYOLConfig(projector=(1024, 1024, 256), predictor_hidden_width=1024)
    return Config(objective=objective, target_momentum=0.99)


@reproduces("paper", "seq-JEPA")
def threediebench() -> Config:
    """3DIEBench as in the comparison of seq-JEPA (Ghaemi et al., NeurIPS 2025, appendix A.3): 128 pixels, batch 512."""
    return Config(
        dataset="3diebench", image_size=128, evaluation_split="val", encoder="resnet18", batch_size=512, epochs=1000,
        final_learning_rate=1e-3, warmup_steps=0, log_every=20, save_every=1000,
        probe_protocol="sie", objective=ConditionalBYOLConfig(
            projector=(2048, 2048, 2048), predictor_hidden_width=512
        ),
    )  # fmt: skip


@reproduces("release", "seq-JEPA", FRESH_DRAWS)
def threediebench_released() -> Config:
    """The same with the training and the sizes of the released code: Adam at 4e-4 after a warm-up by epochs."""
    return Config(
        **SEQ_JEPA_RELEASED,
        objective=ConditionalBYOLConfig(
            projector=(2048, 128), predictor_hidden_width=2048, last_batch_norm="not_affine"
        ),
    )  # fmt: skip


CONFIGS = {"embedded": embedded, "threediebench": threediebench, "threediebench_released": threediebench_released}


def build(config: Config) -> ConditionalBYOL:
    """The encoder and its objective, initialised from the seed; no side effects."""
    torch.manual_seed(config.seed)
    objective = replace(config.objective, action_dim=action_size(config.actions, config))
    return ConditionalBYOL(create_encoder(config.encoder, config.image_size, **config.encoder_arguments), objective)


def main(config: Config) -> None:
    objective = build(config)
    run = Run(config, "conditional_byol")
    data = open_data(config.dataset, config.data_dir, config.evaluation_split, config.image_size, config.reading)
    make_views = TrainingViews(config, data, run, actions=config.actions)
    model = run.prepare(objective, lambda module: optimizer_of(module, config))
    check_ending(run, config, objective, data)
    run.register("data", DataIdentity(data.train))
    probes = FollowingProbes(run, objective, data)
    with open_loader(config, data, run) as loader:
        start = run.resume()
        total_steps = config.epochs * loader.steps_per_epoch
        for step, batch in run.batches(loader, start, total_steps):
            learning_rate = follow_schedule(run.optimizer, config, step, total_steps)
            views = make_views(batch, step)
            output = model(views.images, views.actions)
            run.backward(output)
            run.optimizer.step()
            run.optimizer.zero_grad()
            objective.update_target(target_momentum(config, step, total_steps))
            probes.update(output, batch)
            run.log(step, output, probes=probes.metrics, learning_rate=learning_rate)
    finish(run, config, objective, data)


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
