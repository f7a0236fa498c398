"""CapsIE: capsules with a learnt predictor (Everett, Durrant, Zhong and Leontidis, arXiv:2405.14386v4).

The predecessor of EquiCaps: activations of a capsule network must agree between two views of an object, sharpened by
temperatures, and a hypernetwork predicts the poses of view 2 from those of view 1 and the action, as in SIE.

The released code lacks its loss. Its options and the paper's abstract fix the weights, the temperatures and the kinds
of terms; which logits the temperatures divide, the stop-gradient and what is regularised are our reading, see `CapsIE`.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_equi.objectives.base import CapsuleObjective, ObjectiveOutput, weighted_sum
from ssl_equi.objectives.parts.batch import full_precision
from ssl_equi.objectives.parts.capsule_terms import (
    capsule_monitors,
    capsules_of_both_views,
    cross_entropy,
    missing_entropy,
)
from ssl_equi.objectives.parts.checks import check_actions, check_number, check_views
from ssl_equi.objectives.parts.predictors import Hypernetwork, HypernetworkInit, ProjectedPredictor
from ssl_equi.objectives.parts.vicreg_terms import invariance_term, spread_terms, variance_term
from ssl_equi.options import Derived, NonNegative, Positive

if TYPE_CHECKING:  # it imports timm, which takes seconds
    from ssl_equi.encoders.capsules.network import CapsuleNetwork


TEMPERATURE_SCHEDULE_LENGTH = 1.25  # of the training, so that the last target temperature is not reached


@dataclass(frozen=True)
class CapsIEConfig:
    """Defaults are those of the released training script (AberdeenML/CapsIE)."""

    inv_weight: NonNegative = 10.0
    """Weight of the cross-entropy between sharpened activations; 10 in the released script."""
    equi_weight: NonNegative = 4.5
    """Weight of the squared difference between predicted and true poses; 10 times the factor .45 in the script."""
    entropy_weight: NonNegative = 10.0
    """Weight of the mean-entropy maximisation, which keeps all capsules in use; not stated, ours: with a tenth of the
    invariance term's weight one capsule soon answers for all images."""
    variance_weight: NonNegative = 10.0
    """Weight of the variance term of the poses, and half of it for the prediction's; 10 in the script."""
    covariance_weight: NonNegative = 1.0
    """Weight of the covariance term of the poses; 1 in the script."""
    prediction_temperature: Positive = 0.1
    """Divides the activations that predict; .1 in the script."""
    target_temperature: Positive = 0.025
    """Divides the activations that are the target, at the start; .025 in the script."""
    last_target_temperature: Positive = 0.1
    """Where the target's temperature would be after 1.25 trainings, on a straight line; .1 in the script."""
    action_dim: Derived = 4
    """Width of the action: 4 for a relative rotation (quaternion xyzw), 7 for a relative pose."""
    hypernetwork_init: HypernetworkInit = "scale_preserving"
    """Of the linear hypernetwork that predicts poses; see `Hypernetwork`."""
    separate_batch_norm: bool = False
    """One call of the network per view instead of one call for both; see `on_both_views`."""


class CapsIE(CapsuleObjective):
    """CapsIE's loss. With a, a' the activations of the views, Q, Q' their poses as one vector each:

    loss = inv * [CE(s(a'), p(a)) + CE(s(a), p(a'))] / 2 + equi * MSE(W(action) Q, Q') + entropy * [E(p(a)) + E(p(a'))]
    + variance * ([V(Q) + V(Q')] / 2 + V(W(action) Q) / 2) + covariance * [C(Q) + C(Q')],

    where p(a) = softmax(a / prediction temperature), s(a) = softmax(a / target temperature) without gradient, E is
    log K minus the entropy of the batch's mean, V and C are VICReg's. E, V and C are taken over the global batch.
    The paper has 16 capsules of 4 x 4 poses.
    """

    target_temperature: Tensor

    def __init__(self, network: "CapsuleNetwork", config: CapsIEConfig = CapsIEConfig()) -> None:
        super().__init__(network, config.separate_batch_norm)
        for temperature in (config.prediction_temperature, config.target_temperature, config.last_target_temperature):
            check_number("the temperature", temperature, above=0)
        check_number("action_dim", config.action_dim, minimum=1)
        self.config = config
        self.action_dim = config.action_dim
        pose_width = network.num_capsules * network.pose_side**2
        self.predictor = Hypernetwork(pose_width, config.action_dim, init=config.hypernetwork_init)
        at_first = torch.tensor(config.target_temperature, dtype=torch.float64)
        self.register_buffer("target_temperature", at_first, persistent=False)

    def latent_predictor(self) -> ProjectedPredictor:
        """See `Objective`: on the poses of the capsule network."""
        poses = self.network.parts["equi"]
        return ProjectedPredictor(self.network.num_features, poses, None, self.predictor, "capsule_network")

    def soften_targets(self, progress: float) -> None:
        """Sets the target's temperature for a share of the training that is done, from 0 to 1."""
        first, last = self.config.target_temperature, self.config.last_target_temperature
        # In its place, where a captured step finds it.
        self.target_temperature.fill_(first + (last - first) * progress / TEMPERATURE_SCHEDULE_LENGTH)

    def forward(self, views: Tensor, actions: Tensor) -> ObjectiveOutput:
        """The loss of two views and the actions [B, action_dim] from view 1 to view 2.

        Returns:
            terms `invariance`, the mean of both cross-entropies; `equivariance` = MSE(W(action) Q, Q');
            `missing_entropy` = E(p(a)) + E(p(a')); `variance` = [V(Q) + V(Q')] / 2; `variance_prediction` =
            V(W(action) Q); `covariance` = C(Q) + C(Q'); and the monitors `std_inv`, `std_equi` and `entropy`, see
            `capsule_terms.capsule_monitors`.
        """
        config = self.config
        check_views(views)
        actions = check_actions(actions, len(views), config.action_dim)
        features, capsules = capsules_of_both_views(self.network, views, self.separate_batch_norm)
        observed, target = capsules.poses.flatten(2).unbind(dim=1)
        prediction = self.predictor(observed, actions)
        error = partial(invariance_term, full_precision(target))
        gain = self.action_gain(partial(self.predictor, observed), error, actions, prediction, self.predictor)

        # The terms see at least float32: squares and logarithms of half-precision values overflow or vanish.
        with torch.autocast(views.device.type, enabled=False):
            activations, prediction = full_precision(capsules.activations), full_precision(prediction)
            poses = full_precision(capsules.poses).flatten(2)
            predicted = (activations / config.prediction_temperature).softmax(dim=-1)
            targets = (activations.detach() / self.target_temperature).softmax(dim=-1)
            terms = {
                "invariance": cross_entropy(targets.flip(1), predicted),
                "missing_entropy": missing_entropy(predicted[:, 0]) + missing_entropy(predicted[:, 1]),
                "equivariance": invariance_term(prediction, poses[:, 1]),
                "variance_prediction": variance_term(prediction),
                **spread_terms(poses),
            }
            weights = {
                "invariance": config.inv_weight,
                "equivariance": config.equi_weight,
                "missing_entropy": config.entropy_weight,
                "variance": config.variance_weight,
                "variance_prediction": config.variance_weight / 2,
                "covariance": config.covariance_weight,
            }
            loss = weighted_sum(terms, weights)
            terms |= self.monitors(lambda: capsule_monitors(activations, poses, pose_std=1.0))
        return self.output(loss, terms, features, action_gain=gain)
