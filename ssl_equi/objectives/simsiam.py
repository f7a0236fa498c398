"""SimSiam (Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, arXiv:2011.10566)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_equi.objectives.lightly_parts import LastBatchNorm, negative_cosine_similarity, projection_head
from ssl_equi.objectives.monitors import normalised_std
from ssl_equi.objectives.output import ObjectiveOutput, detached
from ssl_equi.objectives.two_views import check_views, feature_dim, on_both_views
from ssl_equi.objectives.vicreg_terms import full_precision
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
    """One call a view, as in the paper, instead of one call for both; see `two_views.on_both_views`."""


class SimSiam(nn.Module):
    """Each view's prediction must point the same way as the other view's embedding, which takes no gradient.

    With z = projector(encoder(x)) and p = predictor(z): loss = [-cos(p1, stopgrad z2) - cos(p2, stopgrad z1)] / 2,
    mean over the batch (equations 1 to 4). It lies between -1 and 1.

    Args:
        encoder: maps [N, 3, H, W] to [N, D] and has the attribute `num_features` = D.
        config: sizes.

    Raises:
        ValueError: if the encoder does not state its feature width, or a head has no width or one below 1.
    """

    def __init__(self, encoder: nn.Module, config: SimSiamConfig = SimSiamConfig()) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.num_features = feature_dim(encoder)
        self.projector = projection_head(self.num_features, config.projector, config.last_batch_norm)
        embedding_width = config.projector[-1]
        self.predictor = projection_head(embedding_width, (config.predictor_hidden_width, embedding_width))
        self.negative_cosine = negative_cosine_similarity()

    @property
    def parts(self) -> dict[str, slice]:
        """Named column ranges of the encoder features: SimSiam has no split."""
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
            terms `cosine`, the mean cosine of prediction and embedding (loss = -cosine), and the monitor `std_all` of
            the embeddings z, see `monitors.normalised_std` (0 means collapse).

        Raises:
            ValueError: if the views do not have the shape or type above.
        """
        check_views(views)
        separate = self.config.separate_batch_norm
        features = on_both_views(self.encoder, views, separate)
        embeddings = on_both_views(self.projector, features, separate)
        predictions = on_both_views(self.predictor, embeddings, separate)

        with torch.autocast(views.device.type, enabled=False):
            of_other_view = full_precision(embeddings.detach()).flip(dims=(1,))
            loss = self.negative_cosine(full_precision(predictions).flatten(0, 1), of_other_view.flatten(0, 1))
            terms = {"cosine": -loss, "std_all": normalised_std(embeddings)}
        return ObjectiveOutput(
            loss=loss,
            terms=detached(terms),
            features=full_precision(features.detach()),
            encoder_features=features,
        )
