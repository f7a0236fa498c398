"""SimCLR (Chen et al., "A Simple Framework for Contrastive Learning", ICML 2020, arXiv:2002.05709)."""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.objectives.contrastive import Candidates, ContrastiveLoss
from ssl_equi.objectives.lightly_parts import LastBatchNorm, projection_head
from ssl_equi.objectives.monitors import normalised_std
from ssl_equi.objectives.output import ObjectiveOutput, detached
from ssl_equi.objectives.two_views import check_views, feature_dim, on_both_views
from ssl_equi.objectives.vicreg_terms import full_precision
from ssl_equi.options import ActsWhen, Positive, Width


@dataclass(frozen=True)
class SimCLRConfig:
    """SimCLR as the equivariant papers run it on 3DIEBench; "paper" is SimCLR's own."""

    temperature: Positive = 0.5
    """Divides the cosines. Paper: 0.1 on ImageNet with batches of 4096, 0.5 on CIFAR-10; 0.5 in seq-JEPA, and 0.1 by
    default in the released SIE code, both on 3DIEBench."""
    projector: tuple[Width, ...] = (2048, 2048, 2048)
    """Widths of the projector's linear layers. Paper: 2048-128; 2048-2048-2048 in SIE and seq-JEPA on 3DIEBench."""
    last_batch_norm: LastBatchNorm = "none"
    """Batch norm after the projector's last linear layer; seq-JEPA uses not_affine, E-SSL affine on ImageNet."""
    separate_batch_norm: bool = False
    """One call a view instead of one call for both; see `two_views.on_both_views`."""
    last_bias: Annotated[
        bool, ActsWhen(lambda options: options.last_batch_norm == "none", "leave the last batch norm out")
    ] = True
    """Whether the projector's last linear layer has a bias; it has none in the released SIE code."""
    hidden_batch_norm: bool = True
    """Batch norms between the projector's linear layers; none in CARE's code for ImageNet-100."""
    candidates: Candidates = "both_views"
    """Among how many embeddings of N objects the other view must be found: both_views, the 2N - 1 others, as in the
    paper; other_view, the N of the other view, as in E-SSL's released code. See `ContrastiveLoss`."""


class SimCLR(nn.Module):
    """loss = NT-Xent: each embedding must pick its other view among the 2N - 1 other embeddings of the global batch.

    For an embedding z with other view z', -log(exp(cos(z, z') / T) / sum over the others y of exp(cos(z, y) / T)),
    mean over all 2N embeddings (equation 1). The option `candidates` chooses another form.

    Args:
        encoder: maps [N, 3, H, W] to [N, D] and has the attribute `num_features` = D.
        config: temperature and sizes.

    Raises:
        ValueError: if the encoder does not state its feature width, the temperature is not positive, or the
            projector has no width or one below 1.
    """

    embeds_both_views = True  # its output has `embeddings`

    def __init__(self, encoder: nn.Module, config: SimCLRConfig = SimCLRConfig()) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.num_features = feature_dim(encoder)
        self.projector = projection_head(
            self.num_features,
            config.projector,
            config.last_batch_norm,
            last_bias=config.last_bias,
            batch_norm=config.hidden_batch_norm,
        )
        self._contrastive_loss = ContrastiveLoss(config.temperature, config.candidates)

    @property
    def parts(self) -> dict[str, slice]:
        """Named column ranges of the encoder features: SimCLR has no split."""
        return {"all": slice(0, self.num_features)}

    def embed(self, images: Tensor) -> Tensor:
        """Encoder and projector, in float32 or better, not normalised: [N, 3, H, W] -> [N, E]."""
        return full_precision(self.projector(self.encoder(images)))

    def forward(self, views: Tensor, actions: Tensor | None = None) -> ObjectiveOutput:
        """Computes the loss of a batch.

        Args:
            views: [B, 2, 3, H, W], float, normalised.
            actions: ignored; accepted so that all objectives are called alike.

        Returns:
            terms `contrastive` (the loss), `alignment`, the mean cosine of the two views of an object, and the monitor
            `std_all`, see `monitors.normalised_std` (0 means collapse); embeddings as `embed` gives them.

        Raises:
            ValueError: if the views do not have the shape or type above.
        """
        check_views(views)
        separate = self.config.separate_batch_norm
        features = on_both_views(self.encoder, views, separate)
        embeddings = on_both_views(self.projector, features, separate)
        with torch.autocast(views.device.type, enabled=False):
            embeddings = full_precision(embeddings)
            first, second = embeddings.unbind(dim=1)
            loss = self._contrastive_loss(first, second)
            alignment = F.cosine_similarity(first.detach(), second.detach(), dim=1).mean()
            terms = {"contrastive": loss, "alignment": alignment, "std_all": normalised_std(embeddings)}
        return ObjectiveOutput(
            loss=loss,
            terms=detached(terms),
            features=full_precision(features.detach()),
            embeddings=embeddings,
            encoder_features=features,
        )
