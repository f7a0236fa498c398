"""SIE: Split Invariant-Equivariant representations (Garrido, Najman and LeCun, ICML 2023, arXiv:2302.10283).

The encoder's features are split in two. The first part must agree between two views of an object (invariance). From
the second part of view 1 and the action that leads to view 2, a predictor must find the second part of view 2
(equivariance). Variance and covariance regularisation in the manner of VICReg prevents collapse.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ssl_equi.objectives.base import Objective, ObjectiveOutput, weighted_sum
from ssl_equi.objectives.parts.batch import full_precision
from ssl_equi.objectives.parts.checks import check_actions, check_choice, check_number, check_views
from ssl_equi.objectives.parts.heads import projector, split_widths
from ssl_equi.objectives.parts.predictors import Hypernetwork, HypernetworkInit, MLPPredictor, ProjectedPredictor
from ssl_equi.objectives.parts.vicreg_terms import invariance_term, spread_terms, std_per_dim, variance_term
from ssl_equi.options import ActsWhen, Derived, NonNegative, Width

Parts = Literal["split", "inv_only", "equi_only"]
Predictor = Literal["hypernetwork_linear", "hypernetwork_deep", "mlp"]


_WITH_PREDICTOR = ActsWhen(lambda options: options.parts != "inv_only", "choose parts with a predictor")
_WITH_HYPERNETWORK = ActsWhen(
    lambda options: options.parts != "inv_only" and options.predictor != "mlp", "choose a hypernetwork as predictor"
)


@dataclass(frozen=True)
class SIEConfig:
    """Defaults are the paper's recipe for 3DIEBench (README of the released code, facebookresearch/SIE)."""

    inv_weight: Annotated[
        NonNegative, ActsWhen(lambda options: options.parts != "equi_only", "choose parts with an invariant one")
    ] = 10.0
    """Weight of the invariance term, lambda_inv; 10 in the paper."""
    equi_weight: Annotated[NonNegative, _WITH_PREDICTOR] = 4.5
    """Weight of the equivariance term, lambda_equi; 4.5 in the paper. The released code multiplies 10 by a factor whose
    README value is 0.45 but whose command-line default is 4.5: forgetting that flag trains with 45."""
    variance_weight: NonNegative = 10.0
    """Weight of the variance term, lambda_V, on the mean over the two views; 10 in the paper."""
    covariance_weight: NonNegative = 1.0
    """Weight of the covariance term, lambda_C, on the sum over the two views; 1 in the paper."""
    equi_dim: Width | None = None
    """Feature columns of the equivariant part, the last ones. None: half of them, as in the paper (256 of 512)."""
    projector: tuple[Width, ...] = (2048, 2048, 2048)
    """Widths of both projectors together, shared out in proportion to the parts; 2048-2048-2048 in the paper's recipe,
    so two MLPs 256-1024-1024-1024."""
    action_dim: Derived = 4
    """Width of the action: 4 for a relative rotation (quaternion xyzw), 6 with the two relative hues."""
    predictor: Annotated[Predictor, _WITH_PREDICTOR] = "hypernetwork_linear"
    """Linear hypernetwork in the paper; see `parts/predictors.py` for the others."""
    hypernetwork_bias: Annotated[bool, _WITH_HYPERNETWORK] = False
    """Biases inside the hypernetwork; off in the paper. Unused by the MLP predictor."""
    predicted_bias: Annotated[bool, _WITH_HYPERNETWORK] = False
    """The hypernetwork also emits a bias vector; off in the paper. Unused by the MLP predictor."""
    hypernetwork_init: Annotated[HypernetworkInit, _WITH_HYPERNETWORK] = "scale_preserving"
    """released is what the paper's code does: far too large a start for short runs, see `Hypernetwork`."""
    mlp_layers: Annotated[
        Width,
        ActsWhen(
            lambda options: options.predictor == "mlp" and options.parts != "inv_only", "choose the predictor mlp"
        ),
    ] = 1
    """Linear layers of the MLP predictor; 1 in the released code. Unused by the hypernetworks."""
    variance_on_prediction: Annotated[bool, _WITH_PREDICTOR] = True
    """Also keeps the variance of the prediction up, with weight variance_weight / 2. On in the paper; off is the
    released code's SIENoVar."""
    parts: Parts = "split"
    """split: the paper's SIE. inv_only: the same split, without predictor and equivariance term, so the second part is
    only regularised; the released VICRegPartInv has the same terms, but one projector, and draws the border between
    its output dimensions. equi_only: one projector and one predictor on all features, without invariance term; the
    released SIEOnlyEqui, which weights equivariance by 10: set equi_weight=10 to reproduce it."""
    separate_batch_norm: bool = False
    """One call of encoder and projectors per view, as in the released code (each view has its own batch statistics),
    instead of one call for both, which is faster."""


class SIE(Objective):
    """SIE's loss, with Zi, Ze the projected parts of a view, Z = [Zi; Ze] and P = predictor(Ze, action):

    loss = inv * MSE(Zi, Zi') + equi * MSE(P, Ze') + variance * ([V(Z) + V(Z')] / 2 + V(P) / 2)
    + covariance * [C(Z) + C(Z')].

    There is no stop-gradient and no momentum encoder. V and C are taken over the global batch. `parts` are all, inv and
    equi; only all when nothing is split.
    """

    def __init__(self, encoder: nn.Module, config: SIEConfig = SIEConfig()) -> None:
        super().__init__(encoder, config.separate_batch_norm)
        check_choice("parts", config.parts, Parts)
        check_choice("predictor", config.predictor, Predictor)
        self.config = config
        self.action_dim = config.action_dim
        self._columns = _columns_by_part(config, self.num_features)
        if config.parts != "equi_only":
            self.parts |= self._columns
        if config.parts == "equi_only":
            widths = {"equi": list(config.projector)}
        else:
            inv_dim = self._columns["inv"].stop
            inv_widths, equi_widths = split_widths(config.projector, inv_dim, self.num_features - inv_dim)
            widths = {"inv": inv_widths, "equi": equi_widths}
        if min(min(part_widths, default=0) for part_widths in widths.values()) < 1:
            raise ValueError(
                f"projector is {config.projector}: every width must leave at least 1 column to each of {list(widths)}"
            )
        self.projectors = nn.ModuleDict(
            {part: projector(columns.stop - columns.start, widths[part]) for part, columns in self._columns.items()}
        )
        self.predictor = None if config.parts == "inv_only" else _predictor(config, widths["equi"][-1])

    def latent_predictor(self) -> ProjectedPredictor | None:
        """See `Objective`; None for parts="inv_only"."""
        if self.predictor is None:
            return None
        return ProjectedPredictor(self.num_features, self._columns["equi"], self.projectors["equi"], self.predictor)

    def forward(self, views: Tensor, actions: Tensor) -> ObjectiveOutput:
        """The loss of two views and the actions [B, action_dim] from view 1 to view 2.

        Returns:
            terms `invariance` = MSE(Zi, Zi'), `equivariance` = MSE(P, Ze'), `variance` = [V(Z) + V(Z')] / 2,
            `variance_prediction` = V(P), `covariance` = C(Z) + C(Z'), and the monitors `std_inv`, `std_equi`, the mean
            standard deviation of the projected parts' dimensions (0 means collapse). Terms that a variant does
            not have are absent.
        """
        check_views(views)
        check_actions(actions, len(views), self.config.action_dim)
        features = self.on_views(self.encoder, views)
        embeddings = {
            part: self.on_views(self.projectors[part], features[..., columns])
            for part, columns in self._columns.items()
        }
        predictor, prediction, gain = self.predictor, None, None
        if predictor is not None:
            observed, target = embeddings["equi"].unbind(dim=1)
            prediction = predictor(observed, actions)
            error = partial(invariance_term, full_precision(target))
            gain = self.action_gain(partial(predictor, observed), error, actions, prediction, predictor)

        # The terms see at least float32: squares of half-precision values overflow or vanish.
        with torch.autocast(views.device.type, enabled=False):
            embeddings = {part: full_precision(embedding) for part, embedding in embeddings.items()}
            terms = {}
            if "inv" in embeddings:
                terms["invariance"] = invariance_term(*embeddings["inv"].unbind(dim=1))
            if prediction is not None:
                prediction = full_precision(prediction)
                terms["equivariance"] = invariance_term(prediction, embeddings["equi"][:, 1])
                terms["variance_prediction"] = variance_term(prediction)
            # Of the concatenation, so that covariances between the two parts are penalised, too.
            together = torch.cat(list(embeddings.values()), dim=-1)
            terms |= spread_terms(together)
            loss = weighted_sum(terms, self._term_weights())
            widths = {part: embedding.shape[-1] for part, embedding in embeddings.items()}
            terms |= self.monitors(lambda: _monitors(together, widths))
        return self.output(loss, terms, features, action_gain=gain)

    def _term_weights(self) -> dict[str, float]:
        config = self.config
        return {
            "invariance": config.inv_weight,
            "equivariance": config.equi_weight,
            "variance": config.variance_weight,
            "variance_prediction": config.variance_weight / 2 if config.variance_on_prediction else 0.0,
            "covariance": config.covariance_weight,
        }


def _monitors(embeddings: Tensor, widths: dict[str, int]) -> dict[str, Tensor]:
    """The mean standard deviation of each part's dimensions, of embeddings [B, 2, D] of all parts side by side."""
    std_by_part = std_per_dim(embeddings).mean(dim=0).split([*widths.values()])
    return {f"std_{part}": part_std.mean() for part, part_std in zip(widths, std_by_part, strict=True)}


def _columns_by_part(config: SIEConfig, num_features: int) -> dict[str, slice]:
    """Feature columns that each projector reads."""
    if config.parts == "equi_only":
        if config.equi_dim is not None:
            raise ValueError(f"equi_dim is {config.equi_dim} but parts='equi_only' has no split: leave equi_dim unset")
        return {"equi": slice(0, num_features)}
    equi_dim = num_features // 2 if config.equi_dim is None else config.equi_dim
    if not 0 < equi_dim < num_features:
        raise ValueError(
            f"equi_dim is {equi_dim} but the encoder has {num_features} features: choose 1 to {num_features - 1}, or "
            "parts='equi_only' for no invariant part"
        )
    return {"inv": slice(0, num_features - equi_dim), "equi": slice(num_features - equi_dim, num_features)}


def _predictor(config: SIEConfig, dim: int) -> nn.Module:
    """The predictor on equivariant embeddings of width `dim`."""
    check_number("action_dim", config.action_dim, minimum=1)
    if config.predictor == "mlp":
        return MLPPredictor(dim, config.action_dim, config.mlp_layers)
    hidden_layers = 2 if config.predictor == "hypernetwork_deep" else 0
    biases = config.hypernetwork_bias, config.predicted_bias
    return Hypernetwork(dim, config.action_dim, hidden_layers, *biases, config.hypernetwork_init)
