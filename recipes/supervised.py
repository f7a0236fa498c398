"""Supervised: the class of each view and the rotation between two of them, from labels. A ceiling, not a method.

What the same encoder reaches at the same budget if it is told the answers: the row that others are compared with from
above, as random features are from below.

    accelerate launch recipes/supervised.py                               the embedded set; minutes on two CPU cores
    accelerate launch recipes/supervised.py --objective.action-weight 0   class only
    accelerate launch --multi_gpu recipes/supervised.py threediebench --data-dir SHARDS       3DIEBench
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace
from typing import Annotated

import torch

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import open_data
from ssl_equi.encoders import create_encoder
from ssl_equi.objectives.supervised import Supervised, SupervisedConfig
from ssl_equi.options import ActsWhen
from ssl_equi.training.pretraining import DataIdentity, FollowingProbes, check_ending, finish, open_loader
from ssl_equi.training.pretraining_config import PretrainingConfig, follow_schedule, optimizer_of
from ssl_equi.training.run import Run
from ssl_equi.views.makers import PairAction, ViewOptions, action_size, views


@dataclass(frozen=True)
class Config(PretrainingConfig):
    """Options of the supervised ceiling."""

    views: ViewOptions = field(default_factory=ViewOptions)
    """Where the views of an object come from, and how the change between them is told."""
    objective: SupervisedConfig = field(default_factory=SupervisedConfig)
    """Weights and head; the number of classes is that of the data."""
    actions: Annotated[
        PairAction,
        ActsWhen(lambda options: options.objective.action_weight > 0, "give an objective.action_weight above 0"),
    ] = "rotation"
    """What the objective is told of the change: rotation or rotation_color; for objects that also move (3diebench-pt,
    3diebench-t) pose_base or pose_object, rotation and translation in that frame; augmentation for augmented views."""


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU, with the budget of the other methods."""
    return Config()


def threediebench() -> Config:
    """3DIEBench with the budget of the methods of seq-JEPA's comparison: 128 pixels, batch 512."""
    return Config(
        dataset="3diebench", image_size=128, evaluation_split="val", encoder="resnet18", batch_size=512, epochs=1000,
        final_learning_rate=1e-3, warmup_steps=0, log_every=20, save_every=1000,
        probe_protocol="sie",
    )  # fmt: skip


CONFIGS = {"embedded": embedded, "threediebench": threediebench}


def build(config: Config, num_classes: int = 24) -> Supervised:
    """The encoder and its heads, initialised from the seed; no side effects."""
    torch.manual_seed(config.seed)
    sizes = {"num_classes": num_classes, "action_dim": action_size(config.actions, config)}
    return Supervised(
        create_encoder(config.encoder, config.image_size, **config.encoder_arguments),
        replace(config.objective, **sizes),
    )


def main(config: Config) -> None:
    run = Run(config, "supervised")
    data = open_data(config.dataset, config.data_dir, config.evaluation_split, config.image_size, config.reading)
    objective = build(config, len(data.train.class_names))
    make_views = views(config, data, run, actions=config.actions)
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
            output = model(pair.images, pair.action, batch.labels)
            run.backward(output)
            run.optimizer.step()
            run.optimizer.zero_grad()
            probes.update(output, batch)
            run.log(step, output, probes=probes.metrics, learning_rate=learning_rate)
    finish(run, config, objective, data)


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
