"""SEN: from one view's embedding and the action, find the other view's (Park et al., ICML 2022).

Contrastive like SimCLR, but between the predicted and the true embedding, so nothing asks for invariance. In the form
in which the papers on 3DIEBench compare it.

    accelerate launch recipes/sen.py                                      the embedded set; minutes on two CPU cores
    accelerate launch recipes/sen.py --actions rotation_color             also told how the colours change
    accelerate launch --multi_gpu recipes/sen.py threediebench --data-dir SHARDS       3DIEBench as seq-JEPA's authors
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace

import torch

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import open_data
from ssl_equi.encoders import create_encoder
from ssl_equi.objectives.sen import SEN, SENConfig
from ssl_equi.training.pretraining import DataIdentity, FollowingProbes, check_ending, finish, open_loader
from ssl_equi.training.pretraining_config import SEQ_JEPA_RELEASED, PretrainingConfig, follow_schedule, optimizer_of
from ssl_equi.training.provenance import FRESH_DRAWS, reproduces
from ssl_equi.training.run import Run
from ssl_equi.views.makers import PairAction, ViewOptions, action_size, views


@dataclass(frozen=True)
class Config(PretrainingConfig):
    """Options of SEN."""

    views: ViewOptions = field(default_factory=ViewOptions)
    """Where the views of an object come from, and how the change between them is told."""
    objective: SENConfig = field(default_factory=SENConfig)
    """Temperature and sizes."""
    actions: PairAction = "rotation"
    """What the objective is told of the change: rotation or rotation_color; for objects that also move (3diebench-pt,
    3diebench-t) pose_base or pose_object, rotation and translation in that frame; augmentation for augmented views."""


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU, with the budget of the other methods."""
    return Config(objective=SENConfig(temperature=0.1, projector=(1024, 1024, 1024)))


@reproduces("paper", "seq-JEPA")
def threediebench() -> Config:
    """3DIEBench as in the comparison of seq-JEPA (Ghaemi et al., NeurIPS 2025, appendix A.3): 128 pixels, batch 512."""
    return Config(
        dataset="3diebench", image_size=128, evaluation_split="val", encoder="resnet18", batch_size=512, epochs=1000,
        final_learning_rate=1e-3, warmup_steps=0, log_every=20, save_every=1000,
        probe_protocol="sie", objective=SENConfig(
            temperature=0.5, projector=(2048, 2048, 2048), separate_batch_norm=True
        ),
    )  # fmt: skip


@reproduces("release", "seq-JEPA", FRESH_DRAWS)
def threediebench_released() -> Config:
    """The same with the training and the sizes of the released code: Adam at 4e-4 after a warm-up by epochs."""
    return Config(
        **SEQ_JEPA_RELEASED,
        objective=SENConfig(temperature=0.5, projector=(2048, 2048, 2048), separate_batch_norm=True),
    )  # fmt: skip


CONFIGS = {"embedded": embedded, "threediebench": threediebench, "threediebench_released": threediebench_released}


def build(config: Config) -> SEN:
    """The encoder and its objective, initialised from the seed; no side effects."""
    torch.manual_seed(config.seed)
    objective = replace(config.objective, action_dim=action_size(config.actions, config))
    return SEN(create_encoder(config.encoder, config.image_size, **config.encoder_arguments), objective)


def main(config: Config) -> None:
    objective = build(config)
    run = Run(config, "sen")
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
