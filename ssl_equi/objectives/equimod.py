"""EquiMod (Devillers and Lefort, "EquiMod: An Equivariance Module to Improve Visual Instance Discrimination", ICLR
2023), in the form in which the papers on SIE and seq-JEPA compare it.

An invariant method keeps its projector, and a second projector is added, on the same features: there, a predictor must
find the embedding of view 2 from that of view 1 and the action. The original predicts each of two augmented views from
the image without augmentation; between two views, as here, the action is the relative one and one direction is
predicted, because an action need not come with its inverse.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ssl_equi.objectives.contrastive import ContrastiveLoss
from ssl_equi.objectives.distributed import gather_batch
from ssl_equi.objectives.latent_predictor import ProjectedPredictor
from ssl_equi.objectives.lightly_parts import LastBatchNorm, projection_head
from ssl_equi.objectives.monitors import normalised_std
from ssl_equi.objectives.output import ObjectiveOutput, detached
from ssl_equi.objectives.predictors import ConditionedPredictor, Hypernetwork, HypernetworkInit
from ssl_equi.objectives.two_views import check_action_dim, check_actions, check_views, feature_dim, on_both_views
from ssl_equi.objectives.vicreg_terms import full_precision, invariance_term, spread_terms, vicreg_terms
from ssl_equi.options import ActsWhen, Derived, NonNegative, Positive, Width

_SIMCLR_FORM = ActsWhen(lambda options: options.form == "simclr", "choose the form simclr")
_VICREG_FORM = ActsWhen(lambda options: options.form == "vicreg", "choose the form vicreg")


@dataclass(frozen=True)
class EquiModConfig:
    """EquiMod as the seq-JEPA paper runs it on 3DIEBench; the weights of the VICReg form are the SIE code's."""

    form: Literal["simclr", "vicreg"] = "simclr"
    """Which loss is used for both parts; SimCLR in both papers, and VICReg as well in the SIE code."""
    equi_weight: NonNegative = 1.0
    """Weight of the equivariant part against the invariant one; 1 in seq-JEPA."""
    projector: tuple[Width, ...] = (1024, 1024, 128)
    """Widths of either projector's linear layers; 1024-1024-128 in seq-JEPA, 2048-2048-2048 in the SIE code."""
    predictor: Literal["linear", "hypernetwork"] = "linear"
    """linear: one linear layer on the embedding and the embedded action, then a batch norm in the SimCLR form.
    hypernetwork: SIE's linear one, with which the SIE code compares."""
    hypernetwork_init: Annotated[
        HypernetworkInit, ActsWhen(lambda options: options.predictor == "hypernetwork", "choose the hypernetwork")
    ] = "scale_preserving"
    """How the hypernetwork starts; released in the SIE code, see `ssl_equi.objectives.predictors`."""
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
    """One call a view instead of one call for both; see `two_views.on_both_views`."""
    last_bias: Annotated[
        bool,
        ActsWhen(
            lambda options: options.form == "vicreg" or options.last_batch_norm == "none",
            "leave the last batch norm out",
        ),
    ] = True
    """Whether each projector's last linear layer has a bias; it has none in the released SIE code."""


class EquiMod(nn.Module):
    """loss = base(Zi, Zi') + equi_weight * base(P, Ze'), with Zi, Ze the two projections and P = predictor(Ze, action).

    base is NT-Xent (SimCLR form), or VICReg's sum of mean squared difference, variance and covariance terms with its
    weights (VICReg form; its second sum compares P and Ze' but regularises Ze and Ze', as the released SIE code does).
    There is no stop-gradient.

    Args:
        encoder: maps [N, 3, H, W] to [N, D] and has the attribute `num_features` = D.
        config: form, weights and sizes.

    Raises:
        ValueError: if the encoder does not state its feature width, or a choice, a size or the temperature is
            impossible.
    """

    def __init__(self, encoder: nn.Module, config: EquiModConfig = EquiModConfig()) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.num_features = feature_dim(encoder)
        self.projectors = nn.ModuleDict({part: _projector(self.num_features, config) for part in ("inv", "equi")})
        self.predictor = _predictor(config)
        self._contrastive_loss = ContrastiveLoss(config.temperature)

    @property
    def parts(self) -> dict[str, slice]:
        """Named column ranges of the encoder features: EquiMod has no split, both projectors read all of them."""
        return {"all": slice(0, self.num_features)}

    def latent_predictor(self) -> ProjectedPredictor:
        """The trained predictor by itself, with its projector; the weights are shared."""
        return ProjectedPredictor(self.num_features, self.parts["all"], self.projectors["equi"], self.predictor)

    def forward(self, views: Tensor, actions: Tensor) -> ObjectiveOutput:
        """Computes the loss of a batch.

        Args:
            views: [B, 2, 3, H, W], float, normalised.
            actions: [B, action_dim], the transformation from view 1 to view 2.

        Returns:
            SimCLR form: terms `contrastive` = NT-Xent(Zi, Zi') and `equivariance` = NT-Xent(P, Ze').
            VICReg form: terms `invariance`, `variance`, `covariance` of (Zi, Zi'); `equivariance`, the mean squared
            difference of (P, Ze'), and `variance_equi`, `covariance_equi` of (Ze, Ze').
            Both: the monitors `std_inv` and `std_equi` of Zi and Ze, see `monitors.normalised_std` (0 means collapse).

        Raises:
            ValueError: if views or actions do not have the shapes and types above.
        """
        check_views(views)
        check_actions(actions, len(views), self.config.action_dim)
        separate = self.config.separate_batch_norm
        features = on_both_views(self.encoder, views, separate)
        invariant = on_both_views(self.projectors["inv"], features, separate)
        equivariant = on_both_views(self.projectors["equi"], features, separate)
        prediction = self.predictor(equivariant[:, 0], actions)
        with torch.autocast(views.device.type, enabled=False):
            invariant, equivariant = full_precision(invariant), full_precision(equivariant)
            terms = self._terms(invariant, equivariant, full_precision(prediction))
            weights = self._term_weights()
            loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
            terms |= {"std_inv": normalised_std(invariant), "std_equi": normalised_std(equivariant)}
        return ObjectiveOutput(
            loss=loss,
            terms=detached(terms),
            features=full_precision(features.detach()),
            encoder_features=features,
        )

    def _terms(self, invariant: Tensor, equivariant: Tensor, prediction: Tensor) -> dict[str, Tensor]:
        """The terms of both projections of the two views [B, 2, E] and of the prediction of view 2 [B, E]."""
        if self.config.form == "simclr":
            return {
                "contrastive": self._contrastive_loss(invariant[:, 0], invariant[:, 1]),
                "equivariance": self._contrastive_loss(prediction, equivariant[:, 1]),
            }
        spread = spread_terms(gather_batch(equivariant))
        return vicreg_terms(invariant, gather_batch(invariant)) | {
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


def _projector(num_features: int, config: EquiModConfig) -> nn.Module:
    if config.form not in ("simclr", "vicreg"):
        raise ValueError(f"form is {config.form!r}: choose 'simclr' or 'vicreg'")
    last_batch_norm = config.last_batch_norm if config.form == "simclr" else "none"
    return projection_head(num_features, config.projector, last_batch_norm, last_bias=config.last_bias)


def _predictor(config: EquiModConfig) -> nn.Module:
    check_action_dim(config.action_dim)
    width = config.projector[-1]
    if config.predictor == "hypernetwork":
        return Hypernetwork(width, config.action_dim, init=config.hypernetwork_init)
    if config.predictor == "linear":
        batch_norm: LastBatchNorm = "not_affine" if config.form == "simclr" else "none"
        return ConditionedPredictor(width, config.action_dim, [width], config.action_width, batch_norm)
    raise ValueError(f"predictor is {config.predictor!r}: choose 'linear' or 'hypernetwork'")
