"""SimCLR (Chen et al., "A Simple Framework for Contrastive Learning", ICML 2020, arXiv:2002.05709)."""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.objectives.base import ObjectiveOutput, ProjectedObjective
from ssl_equi.objectives.parts.batch import full_precision, normalised_std
from ssl_equi.objectives.parts.checks import check_views
from ssl_equi.objectives.parts.contrastive import Candidates, ContrastiveLoss
from ssl_equi.objectives.parts.heads import LastBatchNorm, projection_head
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
    """One call per view instead of one call for both; see `on_both_views`."""
    last_bias: Annotated[
        bool, ActsWhen(lambda options: options.last_batch_norm == "none", "leave the last batch norm out")
    ] = True
    """Whether the projector's last linear layer has a bias; it has none in the released SIE code."""
    hidden_batch_norm: bool = True
    """Batch norms between the projector's linear layers; none in CARE's code for ImageNet-100."""
    candidates: Candidates = "both_views"
    """Among how many embeddings of N objects the other view must be found: both_views, the 2N - 1 others, as in the
    paper; other_view, the N of the other view, as in E-SSL's released code. See `ContrastiveLoss`."""


class SimCLR(ProjectedObjective):
    """loss = NT-Xent: each embedding must pick its other view among the 2N - 1 other embeddings of the global batch.

    For an embedding z with other view z', -log(exp(cos(z, z') / T) / sum over the others y of exp(cos(z, y) / T)),
    mean over all 2N embeddings (equation 1). The option `candidates` chooses another form.
    """

    embeds_both_views = True

    def __init__(self, encoder: nn.Module, config: SimCLRConfig = SimCLRConfig()) -> None:
        super().__init__(encoder, config.separate_batch_norm)
        self.config = config
        self.projector = projection_head(
            self.num_features,
            config.projector,
            config.last_batch_norm,
            last_bias=config.last_bias,
            batch_norm=config.hidden_batch_norm,
        )
        self._contrastive_loss = ContrastiveLoss(config.temperature, config.candidates)

    def forward(self, views: Tensor, actions: Tensor | None = None) -> ObjectiveOutput:
        """The loss of two views.

        Returns:
            terms `contrastive` (the loss), `alignment`, the mean cosine of the two views of an object, and the monitor
            `std_all`, see `normalised_std` (0 means collapse).
        """
        check_views(views)
        features = self.on_views(self.encoder, views)
        embeddings = self.on_views(self.projector, features)
        with torch.autocast(views.device.type, enabled=False):
            embeddings = full_precision(embeddings)
            first, second = embeddings.unbind(dim=1)
            loss = self._contrastive_loss(first, second)
            monitors = self.monitors(
                lambda: {
                    "alignment": F.cosine_similarity(first, second, dim=1).mean(),
                    "std_all": normalised_std(embeddings),
                }
            )
            terms = {"contrastive": loss, **monitors}
        return self.output(loss, terms, features, embeddings=embeddings, encoder_features=features)
