"""EquiMod (Devillers and Lefort, "EquiMod: An Equivariance Module to Improve Visual Instance Discrimination", ICLR
2023), in the form in which the papers on SIE and seq-JEPA compare it.

An invariant method keeps its projector, and a second projector is added, on the same features: there, a predictor must
find the embedding of view 2 from that of view 1 and the action. The original predicts each of two augmented views from
the image without augmentation; between two views, as here, the action is the relative one and one direction is
predicted, because an action need not come with its inverse.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ssl_equi.objectives.base import Objective, ObjectiveOutput, weighted_sum
from ssl_equi.objectives.parts.batch import full_precision, normalised_std
from ssl_equi.objectives.parts.checks import check_actions, check_choice, check_number, check_views
from ssl_equi.objectives.parts.contrastive import ContrastiveLoss
from ssl_equi.objectives.parts.heads import LastBatchNorm, projection_head
from ssl_equi.objectives.parts.predictors import (
    ConditionedPredictor,
    Hypernetwork,
    HypernetworkInit,
    ProjectedPredictor,
)
from ssl_equi.objectives.parts.vicreg_terms import invariance_term, spread_terms, vicreg_terms
from ssl_equi.options import ActsWhen, Derived, NonNegative, Positive, Width

Form = Literal["simclr", "vicreg"]
Predictor = Literal["linear", "hypernetwork"]


_SIMCLR_FORM = ActsWhen(lambda options: options.form == "simclr", "choose the form simclr")
_VICREG_FORM = ActsWhen(lambda options: options.form == "vicreg", "choose the form vicreg")


@dataclass(frozen=True)
class EquiModConfig:
    """EquiMod as the seq-JEPA paper runs it on 3DIEBench; the weights of the VICReg form are the SIE code's."""

    form: Form = "simclr"
    """Which loss is used for both parts; SimCLR in both papers, and VICReg as well in the SIE code."""
    equi_weight: NonNegative = 1.0
    """Weight of the equivariant part against the invariant one; 1 in seq-JEPA."""
    projector: tuple[Width, ...] = (1024, 1024, 128)
    """Widths of either projector's linear layers; 1024-1024-128 in seq-JEPA, 2048-2048-2048 in the SIE code."""
    predictor: Predictor = "linear"
    """linear: one linear layer on the embedding and the embedded action, then a batch norm in the SimCLR form.
    hypernetwork: SIE's linear one, with which the SIE code compares."""
    hypernetwork_init: Annotated[
        HypernetworkInit, ActsWhen(lambda options: options.predictor == "hypernetwork", "choose the hypernetwork")
    ] = "scale_preserving"
    """How the hypernetwork starts; released in the SIE code, see `Hypernetwork`."""
    action_dim: Derived = 4
    """Width of the action: 4 for a relative rotation (quaternion xyzw), 6 with the two relative hues."""
    action_width: Annotated[
        Width, ActsWhen(lambda options: options.predictor == "linear", "choose the linear predictor")
    ] = 128
    """Width of the embedded action; 128 in seq-JEPA. Unused by the hypernetwork."""
    temperature: Annotated[Positive, _SIMCLR_FORM] = 0.1
    """Divides the cosines; 0.1 in seq-JEPA and by default in the SIE code. Unused by the VICReg form."""
    last_batch_norm: Annotated[LastBatchNorm, _SIMCLR_FORM] = "not_affine"
    """Batch norm after each projector's last linear layer; not_affine in the paper. Unused by the VICReg form, whose
    variance term would have nothing left to do."""
    inv_weight: Annotated[NonNegative, _VICREG_FORM] = 10.0
    """VICReg form only: weight of the mean squared difference in either part."""
    variance_weight: Annotated[NonNegative, _VICREG_FORM] = 10.0
    """VICReg form only: weight of the variance term in either part."""
    covariance_weight: Annotated[NonNegative, _VICREG_FORM] = 1.0
    """VICReg form only: weight of the covariance term in either part."""
    separate_batch_norm: bool = False
    """One call per view instead of one call for both; see `on_both_views`."""
    last_bias: Annotated[
        bool,
        ActsWhen(
            lambda options: options.form == "vicreg" or options.last_batch_norm == "none",
            "leave the last batch norm out",
        ),
    ] = True
    """Whether each projector's last linear layer has a bias; it has none in the released SIE code."""


class EquiMod(Objective):
    """loss = base(Zi, Zi') + equi_weight * base(P, Ze'), with Zi, Ze the two projections and P = predictor(Ze, action).

    base is NT-Xent (SimCLR form), or VICReg's sum of mean squared difference, variance and covariance terms with its
    weights (VICReg form; its second sum compares P and Ze' but regularises Ze and Ze', as the released SIE code does).
    There is no stop-gradient.
    """

    def __init__(self, encoder: nn.Module, config: EquiModConfig = EquiModConfig()) -> None:
        super().__init__(encoder, config.separate_batch_norm)
        check_choice("form", config.form, Form)
        check_choice("predictor", config.predictor, Predictor)
        check_number("action_dim", config.action_dim, minimum=1)
        self.config = config
        self.action_dim = config.action_dim
        last_batch_norm = config.last_batch_norm if config.form == "simclr" else "none"
        self.projectors = nn.ModuleDict(
            {
                part: projection_head(self.num_features, config.projector, last_batch_norm, last_bias=config.last_bias)
                for part in ("inv", "equi")
            }
        )
        width = config.projector[-1]
        self.predictor: nn.Module
        if config.predictor == "hypernetwork":
            self.predictor = Hypernetwork(width, config.action_dim, init=config.hypernetwork_init)
        else:
            batch_norm: LastBatchNorm = "not_affine" if config.form == "simclr" else "none"
            self.predictor = ConditionedPredictor(width, config.action_dim, [width], config.action_width, batch_norm)
        self._contrastive_loss = ContrastiveLoss(config.temperature)

    def latent_predictor(self) -> ProjectedPredictor:
        return ProjectedPredictor(self.num_features, self.parts["all"], self.projectors["equi"], self.predictor)

    def forward(self, views: Tensor, actions: Tensor) -> ObjectiveOutput:
        """The loss of two views and the actions [B, action_dim] from view 1 to view 2.

        Returns:
            SimCLR form: terms `contrastive` = NT-Xent(Zi, Zi') and `equivariance` = NT-Xent(P, Ze').
            VICReg form: terms `invariance`, `variance`, `covariance` of (Zi, Zi'); `equivariance`, the mean squared
            difference of (P, Ze'), and `variance_equi`, `covariance_equi` of (Ze, Ze').
            Both: the monitors `std_inv` and `std_equi` of Zi and Ze, see `normalised_std` (0 means collapse).
        """
        check_views(views)
        check_actions(actions, len(views), self.config.action_dim)
        features = self.on_views(self.encoder, views)
        invariant = self.on_views(self.projectors["inv"], features)
        equivariant = self.on_views(self.projectors["equi"], features)
        prediction = self.predictor(equivariant[:, 0], actions)
        distance = self._contrastive_loss if self.config.form == "simclr" else invariance_term
        error = partial(distance, full_precision(equivariant[:, 1]))
        gain = self.action_gain(partial(self.predictor, equivariant[:, 0]), error, actions, prediction, self.predictor)
        with torch.autocast(views.device.type, enabled=False):
            invariant, equivariant = full_precision(invariant), full_precision(equivariant)
            terms = self._terms(invariant, equivariant, full_precision(prediction))
            loss = weighted_sum(terms, self._term_weights())
            terms |= self.monitors(
                lambda: {"std_inv": normalised_std(invariant), "std_equi": normalised_std(equivariant)}
            )
        return self.output(loss, terms, features, encoder_features=features, action_gain=gain)

    def _terms(self, invariant: Tensor, equivariant: Tensor, prediction: Tensor) -> dict[str, Tensor]:
        """The terms of both projections of the two views [B, 2, E] and of the prediction of view 2 [B, E]."""
        if self.config.form == "simclr":
            return {
                "contrastive": self._contrastive_loss(invariant[:, 0], invariant[:, 1]),
                "equivariance": self._contrastive_loss(prediction, equivariant[:, 1]),
            }
        spread = spread_terms(equivariant)
        return vicreg_terms(invariant) | {
            "equivariance": invariance_term(prediction, equivariant[:, 1]),
            "variance_equi": spread["variance"],
            "covariance_equi": spread["covariance"],
        }

    def _term_weights(self) -> dict[str, float]:
        config = self.config
        if config.form == "simclr":
            return {"contrastive": 1.0, "equivariance": config.equi_weight}
        return {
            "invariance": config.inv_weight,
            "variance": config.variance_weight,
            "covariance": config.covariance_weight,
            "equivariance": config.equi_weight * config.inv_weight,
            "variance_equi": config.equi_weight * config.variance_weight,
            "covariance_equi": config.equi_weight * config.covariance_weight,
        }
