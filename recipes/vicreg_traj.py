"""VICReg-Traj: VICReg whose embeddings of three views lie on a straight path (seq-JEPA's comparison).

VICReg on the first two of three views of an object; besides, the path through the embeddings of all three, on the unit
sphere, should not bend in the second one (Wang, Chen and Yu, ECCV 2024; Ghaemi et al., NeurIPS 2025). No action is
needed. The three views are drawn at random, as in the comparison; the method was made for neighbouring views on a path.

    accelerate launch recipes/vicreg_traj.py                         the embedded set; minutes on two CPU cores
    accelerate launch recipes/vicreg_traj.py --objective.weight 0    VICReg
    accelerate launch --multi_gpu recipes/vicreg_traj.py threediebench --data-dir SHARDS      as seq-JEPA's authors
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field

import torch

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import open_data
from ssl_equi.encoders import create_encoder
from ssl_equi.objectives.vicreg import VICReg, VICRegConfig
from ssl_equi.objectives.vicreg_traj import VICRegTraj, VICRegTrajConfig
from ssl_equi.training.pretraining import DataIdentity, FollowingProbes, check_ending, finish, open_loader
from ssl_equi.training.pretraining_config import SEQ_JEPA_RELEASED, PretrainingConfig, follow_schedule, optimizer_of
from ssl_equi.training.provenance import FRESH_DRAWS, reproduces
from ssl_equi.training.run import Run
from ssl_equi.views.makers import views


@dataclass(frozen=True)
class Config(PretrainingConfig):
    """Options of VICReg-Traj. "Paper" is Ghaemi et al. (seq-JEPA), whose baseline it is."""

    objective: VICRegTrajConfig = field(default_factory=VICRegTrajConfig)
    """Weight of the trajectory."""
    vicreg: VICRegConfig = field(default_factory=VICRegConfig)
    """Weights and sizes of VICReg."""


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU, with the budget of the other methods."""
    return Config(vicreg=VICRegConfig(projector=(1024, 1024, 1024)))


@reproduces("paper", "seq-JEPA")
def threediebench() -> Config:
    """3DIEBench as in the comparison of seq-JEPA (Ghaemi et al., NeurIPS 2025, appendix A.3): 128 pixels, batch 512."""
    return Config(
        dataset="3diebench", image_size=128, evaluation_split="val", encoder="resnet18", batch_size=512, epochs=1000,
        final_learning_rate=1e-3, warmup_steps=0, log_every=20, save_every=1000,
        probe_protocol="sie", vicreg=VICRegConfig(
            inv_weight=10.0, variance_weight=10.0, covariance_weight=1.0, projector=(2048, 2048, 2048)
        ),
    )  # fmt: skip


@reproduces("release", "seq-JEPA", FRESH_DRAWS)
def threediebench_released() -> Config:
    """The same with the training and the sizes of the released code: Adam at 4e-4 after a warm-up by epochs."""
    return Config(
        **SEQ_JEPA_RELEASED,
        objective=VICRegTrajConfig(weight=1.0, on_sphere=False), vicreg=VICRegConfig(
            inv_weight=25.0, variance_weight=25.0, covariance_weight=1.0, projector=(2048, 2048, 2048)
        ),
    )  # fmt: skip


CONFIGS = {"embedded": embedded, "threediebench": threediebench, "threediebench_released": threediebench_released}


def build(config: Config) -> VICRegTraj:
    """The encoder and its objective, initialised from the seed; no side effects."""
    torch.manual_seed(config.seed)
    vicreg = VICReg(create_encoder(config.encoder, config.image_size, **config.encoder_arguments), config.vicreg)
    return VICRegTraj(vicreg, config.objective)


def main(config: Config) -> None:
    objective = build(config)
    run = Run(config, "vicreg_traj")
    data = open_data(config.dataset, config.data_dir, config.evaluation_split, config.image_size, config.reading)
    make_views = views(config, data, run, length=objective.num_views)
    model = run.prepare(objective, lambda module: optimizer_of(module, config))
    check_ending(run, config, objective, data)
    run.register("data", DataIdentity(data.train))
    probes = FollowingProbes(run, objective, data)
    with open_loader(config, data, run, make_views.stored_views) as loader:
        start = run.resume()
        total_steps = config.epochs * loader.steps_per_epoch
        for step, batch in run.batches(loader, start, total_steps):
            learning_rate = follow_schedule(run.optimizer, config, step, total_steps)
            sequence = make_views(batch, step)
            output = model(sequence.images)
            run.backward(output)
            run.optimizer.step()
            run.optimizer.zero_grad()
            probes.update(output, batch)
            run.log(step, output, probes=probes.metrics, learning_rate=learning_rate)
    finish(run, config, objective, data)


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
