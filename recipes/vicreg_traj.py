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
from functools import partial

from ssl_equi.cli import run_recipe
from ssl_equi.objectives.vicreg import VICReg, VICRegConfig
from ssl_equi.objectives.vicreg_traj import VICRegTraj, VICRegTrajConfig
from ssl_equi.training.config import PretrainingConfig
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import FRESH_DRAWS, SEQ_JEPA_COMPARISON, SEQ_JEPA_RELEASED, reproduces
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
        **SEQ_JEPA_COMPARISON, vicreg=VICRegConfig(
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
    vicreg = VICReg(initial_encoder(config), config.vicreg)
    return VICRegTraj(vicreg, config.objective)


def main(config: Config) -> None:
    objective = build(config)
    run = Pretraining(config, "vicreg_traj", objective, partial(views, config, length=objective.num_views))
    for step, batch in run:
        trajectory = run.views(batch, step)
        output = run.train_step(trajectory.images)
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
