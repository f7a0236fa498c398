"""AugSelf: the features of two views must tell how one became the other (Lee et al., NeurIPS 2021).

SimCLR learns as usual; besides, an MLP on the encoder's features of both views regresses the action between them.

    accelerate launch recipes/augself.py                                  the embedded set; minutes on two CPU cores
    accelerate launch recipes/augself.py --actions rotation_color         also asked how the colours change
    accelerate launch --multi_gpu recipes/augself.py threediebench --data-dir SHARDS       3DIEBench as SIE's authors
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace
from typing import Annotated

import torch

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import open_data
from ssl_equi.encoders import create_encoder
from ssl_equi.objectives.augself import AugSelf, AugSelfConfig
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from ssl_equi.options import ActsWhen
from ssl_equi.training.pretraining import DataIdentity, FollowingProbes, check_ending, finish, open_loader
from ssl_equi.training.pretraining_config import PretrainingConfig, follow_schedule, optimizer_of
from ssl_equi.training.provenance import BF16_FOR_FP16, reproduces
from ssl_equi.training.run import Run
from ssl_equi.views.makers import PairAction, ViewOptions, action_size, views


@dataclass(frozen=True)
class Config(PretrainingConfig):
    """Options of AugSelf."""

    views: ViewOptions = field(default_factory=ViewOptions)
    """Where the views of an object come from, and how the change between them is told."""
    objective: AugSelfConfig = field(default_factory=AugSelfConfig)
    """Weight and head of the regression."""
    simclr: SimCLRConfig = field(default_factory=SimCLRConfig)
    """Options of the base."""
    actions: Annotated[
        PairAction, ActsWhen(lambda options: options.objective.weight > 0, "give an objective.weight above 0")
    ] = "rotation"
    """What the objective is told of the change: rotation or rotation_color; for objects that also move (3diebench-pt,
    3diebench-t) pose_base or pose_object, rotation and translation in that frame; augmentation for augmented views."""


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU, with the budget of the other methods."""
    return Config(simclr=SimCLRConfig(temperature=0.1, projector=(1024, 1024, 1024)))


@reproduces("release", "SIE", BF16_FOR_FP16)
def threediebench() -> Config:
    """3DIEBench as in the comparison of SIE: 256 pixels, batch 1,024, the authors' ResNet-18, temperature .1."""
    return Config(
        dataset="3diebench", image_size=256, evaluation_split="val", encoder="sie_resnet18", batch_size=1024,
        epochs=2000, keep_incomplete_batch=True, final_learning_rate=1e-3, warmup_steps=0, weight_decay=1e-6,
        mixed_precision="bf16", log_every=20, save_every=1000, probe_protocol="sie",
        simclr=SimCLRConfig(
            temperature=0.1, projector=(2048, 2048, 2048), last_bias=False, separate_batch_norm=True
        ),
    )  # fmt: skip


CONFIGS = {"embedded": embedded, "threediebench": threediebench}


def build(config: Config) -> AugSelf:
    """The encoder and its objective, initialised from the seed; no side effects."""
    torch.manual_seed(config.seed)
    objective = replace(config.objective, action_dim=action_size(config.actions, config))
    return AugSelf(
        SimCLR(create_encoder(config.encoder, config.image_size, **config.encoder_arguments), config.simclr), objective
    )


def main(config: Config) -> None:
    objective = build(config)
    run = Run(config, "augself")
    data = open_data(config.dataset, config.data_dir, config.evaluation_split, config.image_size, config.reading)
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
            output = model(pair.images, pair.action)
            run.backward(output)
            run.optimizer.step()
            run.optimizer.zero_grad()
            probes.update(output, batch)
            run.log(step, output, probes=probes.metrics, learning_rate=learning_rate)
    finish(run, config, objective, data)


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
