"""CapsIE: capsules with a learnt predictor, the predecessor of EquiCaps (Everett, Durrant, Zhong and Leontidis 2024).

A capsule network on the encoder's feature map makes activations, which must agree between the two views of an object,
and poses; a hypernetwork conditioned on the rotation predicts the poses of view 2 from those of view 1, as in SIE. The
run also leaves `capsule_network/`, whose activations and poses `evaluation/probe.py` probes.

    accelerate launch recipes/capsie.py                                                 minutes on two CPU cores
    accelerate launch --multi_gpu recipes/capsie.py paper --data-dir SHARDS             3DIEBench, as the paper
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace
from functools import partial

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import DataSource
from ssl_equi.encoders.capsules.layers import Votes, VotesInit
from ssl_equi.objectives.capsie import CapsIE, CapsIEConfig
from ssl_equi.options import NonNegative, Width
from ssl_equi.training.config import ActionsConfig
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import BF16_FOR_FP16, OWN_COVARIANCE, SIE_RELEASED, reproduces
from ssl_equi.views.makers import views
from ssl_equi.views.options import ViewOptions, action_size


@dataclass(frozen=True)
class Config(ActionsConfig):
    """Options of CapsIE. "Paper" is Everett et al. with the released training script; its actions are rotation."""

    encoder: str = "strided_cnn_pooled"
    """Any name of timm.list_models() whose features are pooled from its feature map without further weights; the paper
    has resnet18."""
    views: ViewOptions = field(default_factory=ViewOptions)
    """Where the views of an object come from, and how the change between them is encoded."""
    objective: CapsIEConfig = field(default_factory=CapsIEConfig)
    """Weights and temperatures of the loss."""
    num_capsules: Width = 16
    """Capsules of each of the two layers; 16 in the paper."""
    pose_side: Width = 4
    """Poses are square matrices of this side; 4 in the paper."""
    votes: Votes = "free"
    """free: any linear map of a pose, as in the paper. matrix: multiplication from the left."""
    routing_std: NonNegative = 0.3
    """Standard deviation of the routing's weights at the start; at 0, as in the paper, activations are all equal, and
    on the embedded set still were after 200 steps."""
    votes_init: VotesInit = "scale_preserving"
    """How the votes' weights start. scale_preserving: a vote is as long as the pose it is made from. released: as in
    the released code of EquiCaps, 12 times shorter for 32 capsules of 3 x 3."""


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU."""
    return Config()


@reproduces("paper", "CapsIE", BF16_FOR_FP16, OWN_COVARIANCE)
def paper() -> Config:
    """3DIEBench as in the paper, with the ResNet-18 of SIE's authors."""
    return Config(
        **SIE_RELEASED, routing_std=0.0, votes_init="released",
        objective=CapsIEConfig(separate_batch_norm=True, hypernetwork_init="released"),
    )  # fmt: skip


CONFIGS = {"embedded": embedded, "paper": paper}


def build(config: Config, data: DataSource | None = None) -> CapsIE:
    """The capsule network and its objective, initialised from the seed; no side effects."""
    from ssl_equi.encoders.capsules.network import CapsuleNetwork

    backbone = initial_encoder(config)
    network = CapsuleNetwork(
        backbone,
        config.image_size,
        config.num_capsules,
        config.pose_side,
        config.votes,
        config.routing_std,
        config.votes_init,
    )
    return CapsIE(network, replace(config.objective, action_dim=action_size(config, data)))


def main(config: Config) -> None:
    run = Pretraining(config, "capsie", partial(build, config), partial(views, config, actions=config.told))
    for step, batch in run:
        run.objective.soften_targets(step / run.total_steps)
        pair = run.views(batch, step)
        output = run.train_step(pair.images, pair.action)
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
