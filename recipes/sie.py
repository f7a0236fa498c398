"""SIE: a representation split into an invariant and an equivariant half (Garrido, Najman and LeCun, ICML 2023).

Two views of an object go through one encoder. One half of the features must not tell the views apart; from the other
half of view 1 and the rotation between the views, a hypernetwork predicts the other half of view 2. Afterwards, probes
read class, rotation and colour from either half, on objects that were never seen.

    accelerate launch recipes/sie.py                            the embedded set; minutes on two CPU cores
    accelerate launch recipes/sie.py --actions rotation_color   the predictor is told how the colours change, too
    accelerate launch --multi_gpu recipes/sie.py paper --data-dir SHARDS      3DIEBench with the paper's settings
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace

import torch

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import open_data
from ssl_equi.encoders import create_encoder
from ssl_equi.objectives.sie import SIE, SIEConfig
from ssl_equi.training.pretraining import DataIdentity, FollowingProbes, check_ending, finish, open_loader
from ssl_equi.training.pretraining_config import SEQ_JEPA_RELEASED, PretrainingConfig, follow_schedule, optimizer_of
from ssl_equi.training.provenance import BF16_FOR_FP16, FRESH_DRAWS, OWN_COVARIANCE, reproduces
from ssl_equi.training.run import Run
from ssl_equi.views.makers import PairAction, ViewOptions, action_size, views


@dataclass(frozen=True)
class Config(PretrainingConfig):
    """Options of SIE. "Paper" is Garrido et al. with the README of the released code."""

    views: ViewOptions = field(default_factory=ViewOptions)
    """Where the views of an object come from, and how the change between them is told."""
    objective: SIEConfig = field(default_factory=SIEConfig)
    """Weights, sizes and ablations of the loss."""
    actions: PairAction = "rotation"
    """What the predictor is told: rotation, or rotation_color (paper: both, in separate runs); for objects that also
    move (3diebench-pt, 3diebench-t) pose_base or pose_object, rotation and translation in that frame; augmentation for
    augmented views."""


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU."""
    return Config(objective=SIEConfig(projector=(1024, 1024, 1024)))


@reproduces("release", "SIE", BF16_FOR_FP16, OWN_COVARIANCE)
def paper() -> Config:
    """3DIEBench as in the paper and its code, with the authors' own ResNet-18."""
    return Config(
        dataset="3diebench", image_size=256, evaluation_split="val", encoder="sie_resnet18", batch_size=1024,
        epochs=2000, keep_incomplete_batch=True, final_learning_rate=1e-3, warmup_steps=0, weight_decay=1e-6,
        mixed_precision="bf16", log_every=20, save_every=1000, probe_protocol="sie",
        objective=SIEConfig(separate_batch_norm=True, hypernetwork_init="released"),
    )  # fmt: skip


@reproduces("release", "seq-JEPA", FRESH_DRAWS)
def threediebench_released() -> Config:
    """3DIEBench as the baseline in the released code of seq-JEPA: 128 pixels, weights 25, 25, 25 and 1."""
    return Config(
        **SEQ_JEPA_RELEASED,
        objective=SIEConfig(
            inv_weight=25.0, equi_weight=25.0, variance_weight=25.0, covariance_weight=1.0,
            separate_batch_norm=True, hypernetwork_init="released",
        ),
    )  # fmt: skip


CONFIGS = {"embedded": embedded, "paper": paper, "threediebench_released": threediebench_released}


def build(config: Config) -> SIE:
    """The encoder and its objective, initialised from the seed; no side effects."""
    torch.manual_seed(config.seed)
    encoder = create_encoder(config.encoder, config.image_size, **config.encoder_arguments)
    return SIE(encoder, replace(config.objective, action_dim=action_size(config.actions, config)))


def main(config: Config) -> None:
    objective = build(config)
    run = Run(config, "sie")
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
