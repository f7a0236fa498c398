"""EquiCaps: capsule poses that turn with the object (Konstantinou, Leontidis, Thota, Durrant 2025, arXiv:2506.09895).

A capsule network makes K activations, which sum to 1 and must agree between two views of an object, and K pose
matrices. There is no predictor: the poses of view 1, multiplied from the right by the true transformation between the
views, must be the poses of view 2.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor

from ssl_equi.geometry.poses import matrix_of_action
from ssl_equi.objectives.base import CapsuleObjective, ObjectiveOutput, weighted_sum
from ssl_equi.objectives.parts.batch import full_precision
from ssl_equi.objectives.parts.capsule_terms import (
    TURNED_COLUMNS,
    capsule_monitors,
    capsules_of_both_views,
    cross_entropy,
    largest_pose_std,
    missing_entropy,
    reachable_stds,
    unit_poses,
)
from ssl_equi.objectives.parts.checks import check_actions, check_choice, check_views
from ssl_equi.objectives.parts.predictors import PoseProduct
from ssl_equi.objectives.parts.vicreg_terms import invariance_term, spread_terms
from ssl_equi.options import ActsWhen, NonNegative

if TYPE_CHECKING:  # it imports timm, which takes seconds
    from ssl_equi.encoders.capsules.network import CapsuleNetwork


# Poses that truly follow rotations with a mean (3DIEBench's Euler box) have .91 of the largest standard deviation: a
# target of 1 would work against them.
TARGET_SHARE = 0.5
VarianceTarget = Literal["reachable", "published"]
PoseNorm = Literal["turned_columns", "published"]


@dataclass(frozen=True)
class EquiCapsConfig:
    """Defaults are the paper's weights for 3DIEBench (README of the released code, AberdeenML/EquiCaps)."""

    inv_weight: NonNegative = 0.1
    """Weight of the cross-entropy between the activations of the two views; 0.1 in the paper."""
    equi_weight: NonNegative = 5.0
    """Weight of the squared difference between transformed and true poses; 5 in the paper."""
    entropy_weight: NonNegative = 1.0
    """Weight of the mean-entropy maximisation, which keeps all capsules in use; 1 in the paper."""
    variance_weight: NonNegative = 10.0
    """Weight of the variance term, the mean over the two views; 10 in the paper."""
    covariance_weight: NonNegative = 1.0
    """Weight of the covariance term, the sum over the two views; 1 in the paper."""
    variance_target: Annotated[
        VarianceTarget, ActsWhen(lambda options: options.variance_weight > 0, "give a variance_weight above 0")
    ] = "reachable"
    """reachable: half of the largest standard deviation that a probability or an entry of a matrix of norm 1 can have.
    published: 1, which neither can reach, so the term always pushes and adds at least 6.8 (3 x 3) or 7.5 (4 x 4) to the
    loss."""
    pose_norm: PoseNorm = "turned_columns"
    """What has norm 1 when poses are compared. turned_columns: the three columns that the action turns. published: the
    whole matrix, which is the same for 3 x 3; 4 x 4 poses may then put their weight on the last column and follow the
    action without knowing the rotation."""
    separate_batch_norm: bool = False
    """One call of the network per view, as in the released code (each view has its own batch statistics), instead of
    one call for both, which is faster."""


class EquiCaps(CapsuleObjective):
    """EquiCaps' loss. With a, a' the activations of the views, P, P' their poses and M the action as a matrix:

    loss = inv * CE(a', a) + equi * MSE(u(P M), u(P')) + entropy * [E(a) + E(a')]
    + variance * [V(Z) + V(Z')] / 2 + covariance * [C(Z) + C(Z')],

    where u scales each capsule's matrix so that the columns that the action turns have Frobenius norm 1,
    Z = [a; u(P M)] and Z' = [a'; u(P')] side by side, E is log K minus the entropy of the batch's mean activation, V
    the hinge on standard deviations as shares of their targets, C the squared covariances. E, V and C are taken over
    the global batch. There is no stop-gradient.

    Args:
        network: its poses are 3 x 3 for rotations or 4 x 4 for poses.
    """

    action_dim: int

    def __init__(self, network: "CapsuleNetwork", config: EquiCapsConfig = EquiCapsConfig()) -> None:
        super().__init__(network, config.separate_batch_norm)
        check_choice("variance_target", config.variance_target, VarianceTarget)
        check_choice("pose_norm", config.pose_norm, PoseNorm)
        self.config = config
        self.num_capsules, self.pose_side = network.num_capsules, network.pose_side
        self.unit_columns = TURNED_COLUMNS if config.pose_norm == "turned_columns" else None
        self.action_dim = self.latent_predictor().action_dim

    def latent_predictor(self) -> PoseProduct:
        """What predicts here: the product of the capsule network's poses and the action."""
        return PoseProduct(self.num_capsules, self.pose_side, self.unit_columns)

    def forward(self, views: Tensor, actions: Tensor) -> ObjectiveOutput:
        """The loss of two views.

        Args:
            views: [B, 2, 3, H, W].
            actions: [B, 4], the relative rotation as a quaternion xyzw, for 3 x 3 poses; [B, 7], the relative pose in
                one frame (see `ssl_equi.geometry.poses`), for 4 x 4 ones.

        Returns:
            terms `invariance` = CE(a', a), `equivariance` = the mean squared difference of entries of u(P M) and u(P'),
            `missing_entropy` = E(a) + E(a'), `variance` = [V(Z) + V(Z')] / 2, `covariance` = C(Z) + C(Z'), and the
            monitors `std_inv`, `std_equi` and `entropy`, see `capsule_terms.capsule_monitors`.
        """
        config = self.config
        check_views(views)
        actions = check_actions(actions, len(views), self.action_dim)
        features, capsules = capsules_of_both_views(self.network, views, self.separate_batch_norm)

        # The terms see at least float32: squares and logarithms of half-precision values overflow or vanish.
        with torch.autocast(views.device.type, enabled=False):
            activations, poses = full_precision(capsules.activations), full_precision(capsules.poses)
            moved = self._moved(poses[:, 0], actions)
            target = unit_poses(poses[:, 1], self.unit_columns)
            gain = self.action_gain(partial(self._moved, poses[:, 0]), partial(invariance_term, target), actions, moved)
            embeddings = torch.cat([activations, torch.stack([moved, target], dim=1).flatten(2)], dim=-1)
            std_targets = TARGET_SHARE * reachable_stds(activations, poses, self.unit_columns)
            if config.variance_target == "published":
                std_targets = torch.ones_like(std_targets)
            terms = {
                "invariance": cross_entropy(activations[:, 1], activations[:, 0]),
                "equivariance": invariance_term(moved, target),
                "missing_entropy": missing_entropy(activations[:, 0]) + missing_entropy(activations[:, 1]),
                **spread_terms(embeddings, std_targets),
            }
            weights = {
                "invariance": config.inv_weight,
                "equivariance": config.equi_weight,
                "missing_entropy": config.entropy_weight,
                "variance": config.variance_weight,
                "covariance": config.covariance_weight,
            }
            loss = weighted_sum(terms, weights)
            pose_std = largest_pose_std(self.pose_side, self.unit_columns)
            pose_columns = embeddings[..., self.num_capsules :]
            terms |= self.monitors(lambda: capsule_monitors(activations, pose_columns, pose_std))
        return self.output(loss, terms, features, action_gain=gain)

    def _moved(self, poses: Tensor, actions: Tensor) -> Tensor:
        """Poses [B, K, d, d] multiplied from the right by the actions [B, A], at unit length."""
        matrices = matrix_of_action(actions.to(poses.dtype))
        return unit_poses(poses @ matrices.unsqueeze(1), self.unit_columns)
