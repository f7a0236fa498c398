"""SimSiam (Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, arXiv:2011.10566)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_equi.objectives.base import ObjectiveOutput, ProjectedObjective
from ssl_equi.objectives.parts.batch import full_precision, normalised_std
from ssl_equi.objectives.parts.checks import check_views
from ssl_equi.objectives.parts.heads import LastBatchNorm, negative_cosine_similarity, projection_head
from ssl_equi.options import Width


@dataclass(frozen=True)
class SimSiamConfig:
    """Defaults are the paper's for ImageNet."""

    projector: tuple[Width, ...] = (2048, 2048, 2048)
    """Widths of the projector's linear layers. Paper: 2048-2048-2048 on ImageNet, 2048-2048 on CIFAR-10."""
    last_batch_norm: LastBatchNorm = "not_affine"
    """Batch norm after the projector's last linear layer. Paper: yes; without scale and shift in the released code."""
    predictor_hidden_width: Width = 512
    """Hidden width of the predictor, whose output is as wide as the projector's. Paper: 512, a quarter of it."""
    separate_batch_norm: bool = False
    """One call per view, as in the paper, instead of one call for both; see `on_both_views`."""


class SimSiam(ProjectedObjective):
    """Each view's prediction must point the same way as the other view's embedding, which takes no gradient.

    With z = projector(encoder(x)) and p = predictor(z): loss = [-cos(p1, stopgrad z2) - cos(p2, stopgrad z1)] / 2,
    mean over the batch (equations 1 to 4). It lies between -1 and 1.
    """

    def __init__(self, encoder: nn.Module, config: SimSiamConfig = SimSiamConfig()) -> None:
        super().__init__(encoder, config.separate_batch_norm)
        self.config = config
        self.projector = projection_head(self.num_features, config.projector, config.last_batch_norm)
        width = config.projector[-1]
        self.predictor = projection_head(width, (config.predictor_hidden_width, width))
        self.negative_cosine = negative_cosine_similarity()

    def forward(self, views: Tensor, actions: Tensor | None = None) -> ObjectiveOutput:
        """The loss of two views.

        Returns:
            terms `cosine`, the mean cosine of prediction and embedding (loss = -cosine), and the monitor `std_all` of
            the embeddings z, see `normalised_std` (0 means collapse).
        """
        check_views(views)
        features = self.on_views(self.encoder, views)
        embeddings = self.on_views(self.projector, features)
        predictions = self.on_views(self.predictor, embeddings)
        with torch.autocast(views.device.type, enabled=False):
            of_other_view = full_precision(embeddings.detach()).flip(dims=(1,))
            loss = self.negative_cosine(full_precision(predictions).flatten(0, 1), of_other_view.flatten(0, 1))
            terms = {"cosine": -loss, **self.monitors(lambda: {"std_all": normalised_std(embeddings)})}
        return self.output(loss, terms, features, encoder_features=features)
