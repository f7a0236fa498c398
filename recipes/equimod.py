"""EquiMod: one projection is invariant, another follows the action (Devillers and Lefort, ICLR 2023).

Two projectors read the same features. One learns with SimCLR or VICReg; from the other and the action, a predictor
must find the other view's projection.

    accelerate launch recipes/equimod.py                                  the embedded set; minutes on two CPU cores
    accelerate launch recipes/equimod.py vicreg                           the same in its VICReg form
    accelerate launch recipes/equimod.py --actions rotation_color         also told how the colours change
    accelerate launch --multi_gpu recipes/equimod.py threediebench --data-dir SHARDS     3DIEBench as SIE's authors
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace

import torch

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import open_data
from ssl_equi.encoders import create_encoder
from ssl_equi.objectives.equimod import EquiMod, EquiModConfig
from ssl_equi.training.pretraining import DataIdentity, FollowingProbes, check_ending, finish, open_loader
from ssl_equi.training.pretraining_config import SEQ_JEPA_RELEASED, PretrainingConfig, follow_schedule, optimizer_of
from ssl_equi.training.provenance import BF16_FOR_FP16, FRESH_DRAWS, reproduces
from ssl_equi.training.run import Run
from ssl_equi.views.makers import PairAction, ViewOptions, action_size, views


@dataclass(frozen=True)
class Config(PretrainingConfig):
    """Options of EquiMod."""

    views: ViewOptions = field(default_factory=ViewOptions)
    """Where the views of an object come from, and how the change between them is told."""
    objective: EquiModConfig = field(default_factory=EquiModConfig)
    """Form, weights and sizes."""
    actions: PairAction = "rotation"
    """What the objective is told of the change: rotation or rotation_color; for objects that also move (3diebench-pt,
    3diebench-t) pose_base or pose_object, rotation and translation in that frame; augmentation for augmented views."""


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU, SimCLR form, with the budget of the other methods."""
    return Config(objective=EquiModConfig(projector=(1024, 1024, 1024)))


def vicreg() -> Config:
    """The embedded set, VICReg form."""
    return Config(objective=EquiModConfig(form="vicreg", projector=(1024, 1024, 1024)))


@reproduces("paper", "seq-JEPA")
def threediebench() -> Config:
    """3DIEBench as in the comparison of seq-JEPA (Ghaemi et al., NeurIPS 2025, appendix A.3): 128 pixels, batch 512."""
    return Config(
        dataset="3diebench", image_size=128, evaluation_split="val", encoder="resnet18", batch_size=512, epochs=1000,
        final_learning_rate=1e-3, warmup_steps=0, log_every=20, save_every=1000,
        probe_protocol="sie", objective=EquiModConfig(
            temperature=0.1, projector=(1024, 1024, 128), separate_batch_norm=True
        ),
    )  # fmt: skip


@reproduces("release", "seq-JEPA", FRESH_DRAWS)
def threediebench_released() -> Config:
    """The same with the training and the sizes of the released code: Adam at 4e-4 after a warm-up by epochs."""
    return Config(
        **SEQ_JEPA_RELEASED,
        objective=EquiModConfig(temperature=0.5, projector=(1024, 1024, 128), separate_batch_norm=True),
    )  # fmt: skip


@reproduces(
    "release", "SIE", BF16_FOR_FP16, "the equivariant part has weight 1, where the default of the released code is 4.5"
)
def threediebench_sie() -> Config:
    """3DIEBench as in the comparison of SIE: 256 pixels, batch 1,024, the authors' ResNet-18, hypernetwork."""
    return Config(
        dataset="3diebench", image_size=256, evaluation_split="val", encoder="sie_resnet18", batch_size=1024,
        epochs=2000, keep_incomplete_batch=True, final_learning_rate=1e-3, warmup_steps=0, weight_decay=1e-6,
        mixed_precision="bf16", log_every=20, save_every=1000, probe_protocol="sie",
        objective=EquiModConfig(
            temperature=0.1, projector=(2048, 2048, 2048), predictor="hypernetwork", hypernetwork_init="released",
            last_batch_norm="none", last_bias=False, separate_batch_norm=True,
        ),
    )  # fmt: skip


CONFIGS = {
    "embedded": embedded,
    "vicreg": vicreg,
    "threediebench": threediebench,
    "threediebench_released": threediebench_released,
    "threediebench_sie": threediebench_sie,
}


def build(config: Config) -> EquiMod:
    """The encoder and its objective, initialised from the seed; no side effects."""
    torch.manual_seed(config.seed)
    objective = replace(config.objective, action_dim=action_size(config.actions, config))
    return EquiMod(create_encoder(config.encoder, config.image_size, **config.encoder_arguments), objective)


def main(config: Config) -> None:
    objective = build(config)
    run = Run(config, "equimod")
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
