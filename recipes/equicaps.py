"""EquiCaps: capsules whose poses turn with the object (Konstantinou, Leontidis, Thota and Durrant 2025).

A capsule network on the encoder's feature map makes activations, which must not tell the two views of an object apart,
and pose matrices: those of view 1, multiplied by the true transformation between the views, must be those of view 2.
There is no predictor to learn. Afterwards, probes read class, rotation, translation and colour from the encoder's
features; the run also leaves `capsule_network/`, whose activations and poses `evaluation/probe.py` probes.

    accelerate launch recipes/equicaps.py                          the embedded set; minutes on two CPU cores
    accelerate launch recipes/equicaps.py translated               objects that move, 4 x 4 poses in the world's frame
    accelerate launch recipes/equicaps.py --votes matrix           votes that keep equivariance, a ninth of the weights
    accelerate launch --multi_gpu recipes/equicaps.py paper --data-dir SHARDS                  3DIEBench, as the paper
    accelerate launch --multi_gpu recipes/equicaps.py paper_translated --data-dir SHARDS       3DIEBench-T
"""

import ssl_equi.runtime.before_torch  # isort: skip  # noqa: F401  (before torch)

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

from ssl_equi.cli import run_recipe
from ssl_equi.data.sources import DataSource
from ssl_equi.encoders.capsules.layers import Votes, VotesInit
from ssl_equi.errors import UserError
from ssl_equi.geometry.poses import POSE_ACTION_SIZE, ROTATION_ACTION_SIZE
from ssl_equi.objectives.equicaps import EquiCaps, EquiCapsConfig
from ssl_equi.options import ActsWhen, NonNegative, Width
from ssl_equi.training.config import ActionsConfig
from ssl_equi.training.pretraining import Pretraining, initial_encoder
from ssl_equi.training.provenance import BF16_FOR_FP16, OWN_COVARIANCE, reproduces
from ssl_equi.views.makers import views
from ssl_equi.views.options import ActionNames, told_actions

POSE_SIDES = {ROTATION_ACTION_SIZE: 3, POSE_ACTION_SIZE: 4}


@dataclass(frozen=True)
class Config(ActionsConfig):
    """Options of EquiCaps. "Paper" is Konstantinou et al. with the README of the released code."""

    encoder: str = "strided_cnn_pooled"
    """Any name of timm.list_models() whose features are pooled from its feature map without further weights; the paper
    has resnet18."""
    objective: Annotated[
        EquiCapsConfig,
        ActsWhen(
            lambda options: options.actions != ("rotation",),
            "choose --actions pose_base or pose_object",
            only=("pose_norm",),
        ),
    ] = field(default_factory=EquiCapsConfig)
    """Weights of the loss."""
    actions: ActionNames = ("rotation",)
    """What poses are multiplied with. Of 3DIEBench: rotation (3 x 3); pose_base or pose_object (4 x 4) where objects
    also move, in the world's or in the object's own frame (paper: all three, in separate runs). Of other data: any
    rotation, or rigid motion of its schema."""
    num_capsules: Width = 32
    """Capsules of each of the two layers; 32 in the paper."""
    votes: Votes = "free"
    """free: any linear map of a pose, as in the paper. matrix: multiplication from the left, which multiplication from
    the right passes through unchanged."""
    routing_std: NonNegative = 0.3
    """Standard deviation of the routing's weights at the start; at 0, as in the paper, activations are all equal, and
    on the embedded set still were after 200 steps."""
    votes_init: VotesInit = "scale_preserving"
    """How the votes' weights start. scale_preserving: a vote is as long as the pose it is made from. released: as in
    the released code of EquiCaps, 12 times shorter for 32 capsules of 3 x 3. After 40 epochs of the embedded set (val,
    3 seeds) classes and rotations are read from the features equally well, within one standard error."""


def embedded() -> Config:
    """The embedded set on two CPU cores or any GPU."""
    return Config(learning_rate=2e-3)


def translated() -> Config:
    """The embedded set's translated version, with 4 x 4 poses in the world's frame."""
    return replace(embedded(), dataset="3diebench-pt", actions=("pose_base",))


@reproduces("release", "EquiCaps", BF16_FOR_FP16, OWN_COVARIANCE)
def paper() -> Config:
    """3DIEBench as in the paper and its code, with the authors' own ResNet-18."""
    return Config(
        dataset="3diebench", image_size=256, evaluation_split="val", encoder="sie_resnet18", batch_size=256,
        epochs=2000, keep_incomplete_batch=True, final_learning_rate=1e-3, warmup_steps=0, weight_decay=1e-6,
        mixed_precision="bf16", log_every=20, save_every=1000,
        routing_std=0.0, votes_init="released", probe_protocol="equicaps",
        objective=EquiCapsConfig(
            variance_target="published", pose_norm="published", separate_batch_norm=True
        ),
    )  # fmt: skip


@reproduces("release", "EquiCaps", BF16_FOR_FP16, OWN_COVARIANCE)
def paper_translated() -> Config:
    """3DIEBench-T with poses in the world's frame; --actions pose_object or rotation for the paper's other two runs."""
    return replace(paper(), dataset="3diebench-t", actions=("pose_base",))


CONFIGS = {"embedded": embedded, "translated": translated, "paper": paper, "paper_translated": paper_translated}


def pose_side_of(config: Config, data: DataSource | None) -> int:
    """Of the matrix that an action is: 3 of a rotation, 4 of a rigid motion."""
    actions = told_actions(config, data)
    if actions is None or len(actions.parts) != 1 or not actions.parts[0].has_sign:
        raise UserError(
            f"--actions is {' '.join(config.actions)} and poses are multiplied with one matrix: choose a rotation of "
            "the data, or a rigid motion such as pose_base"
        )
    return POSE_SIDES[actions.width]


def build(config: Config, data: DataSource | None = None) -> EquiCaps:
    """The capsule network and its objective, initialised from the seed; no side effects."""
    from ssl_equi.encoders.capsules.network import CapsuleNetwork

    pose_side = pose_side_of(config, data)
    backbone = initial_encoder(config)
    network = CapsuleNetwork(
        backbone,
        config.image_size,
        config.num_capsules,
        pose_side,
        config.votes,
        config.routing_std,
        config.votes_init,
    )
    return EquiCaps(network, config.objective)


def main(config: Config) -> None:
    run = Pretraining(config, "equicaps", partial(build, config), partial(views, config, actions=config.told))
    for step, batch in run:
        pair = run.views(batch, step)
        output = run.train_step(pair.images, pair.action)
        run.log(output)
    run.finish()


if __name__ == "__main__":
    run_recipe(main, CONFIGS, __doc__)
