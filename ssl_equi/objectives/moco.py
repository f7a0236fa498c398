"""MoCo v2 (He et al., "Momentum Contrast", CVPR 2020, arXiv:1911.05722; Chen et al. 2020, arXiv:2003.04297)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.objectives.base import ObjectiveOutput, ProjectedObjective
from ssl_equi.objectives.parts.batch import full_precision, gather_batch, normalised_std, world_size
from ssl_equi.objectives.parts.checks import check_number, check_views
from ssl_equi.objectives.parts.heads import projection_head, target_of
from ssl_equi.options import Count, Positive, Width


@dataclass(frozen=True)
class MoCoConfig:
    """Defaults are MoCo v2's. The momentum is a matter of the training loop: paper 0.999, constant."""

    temperature: Positive = 0.2
    """Divides the cosines. Paper: 0.2; 0.07 in MoCo v1."""
    queue_size: Count = 65536
    """Keys of earlier batches that serve as negatives; a multiple of the keys that a step adds. Paper: 65536."""
    projector: tuple[Width, ...] = (2048, 128)
    """Widths of the projector's linear layers, without batch norm. Paper: 2048-128."""
    symmetric: bool = False
    """Both views are queries and keys, so a step adds two keys an object. Paper: off; queries are view 1, keys are
    view 2."""
    separate_batch_norm: bool = False
    """With symmetric: one call a view instead of one call for both; see `on_both_views`. Without it, queries
    and keys are of one view each anyway, and it is about the further views of CARE alone."""


class MoCo(ProjectedObjective):
    """A query must pick its object's key among the keys of earlier batches, held in a queue.

    With q the online projection of one view and k+ the target's of the other, both of length 1:
    loss = cross-entropy of the logits [q.k+, q.queue] / T with k+ as the answer, mean over the queries (equation 1).

    The target encoder and projector start as copies of the online ones and follow them through `update_target`. While
    training, their batch norms use the statistics of the batch.

    `queue` [queue_size, E] and `queue_position` are buffers, so they are saved with a checkpoint. The queue starts with
    random directions of torch's generator: seed all processes alike before construction. A forward pass in
    training mode with gradients ends by writing the keys of the global batch, in rank order, over the oldest ones, so a
    step's own keys are never among its negatives and all processes hold the same queue. Otherwise it stays.
    """

    queue: Tensor
    queue_position: Tensor

    def __init__(self, encoder: nn.Module, config: MoCoConfig = MoCoConfig()) -> None:
        super().__init__(encoder, config.separate_batch_norm)
        check_number("the temperature", config.temperature, above=0)
        if config.queue_size < 1:
            raise ValueError(f"queue_size is {config.queue_size}: choose a multiple of the global batch, such as 65536")
        self.config = config
        self.embeds_both_views = config.symmetric  # otherwise only view 1 is a query
        self.projector = projection_head(self.num_features, config.projector, batch_norm=False)
        self.target_encoder = target_of(self.encoder)
        self.target_projector = target_of(self.projector)
        self.register_buffer("queue", F.normalize(torch.randn(config.queue_size, config.projector[-1])))
        self.register_buffer("queue_position", torch.tensor(0))

    def forward(self, views: Tensor, actions: Tensor | None = None) -> ObjectiveOutput:
        """The loss of two views; takes the keys into the queue, whose size must be a multiple of their number.

        Returns:
            terms `contrastive` (the loss), `positive_similarity`, the mean of q.k+, and the monitor `std_all` of
            the online projections, see `normalised_std` (0 means collapse). Features are the online encoder's,
            [B, 2, D] if the loss is symmetric; otherwise those of view 1, [B, 1, D], since the encoder does not see
            view 2, and there are neither embeddings nor encoder features of both views to reuse.
        """
        check_views(views)
        updates_queue = self.training and torch.is_grad_enabled()
        if updates_queue:
            self._check_queue_size(batch_size=views.shape[0])
        symmetric = self.config.symmetric
        features = self.on_views(self.encoder, views if symmetric else views[:, :1])
        embeddings = self.on_views(self.projector, features)
        # Batches are not shuffled between processes for the target's batch norms, as the paper does: with statistics of
        # the global batch (`convert_sync_batchnorm`) there is only one group. A query and its key are then normalised
        # by statistics of the same objects, the negatives by those of others. What a query can learn of its key from
        # that is weak with large batches, but not nothing; encoders without batch norm do not have the problem.
        with torch.no_grad():
            target_features = self.on_views(self.target_encoder, views if symmetric else views[:, 1:])
            keys = self.on_views(self.target_projector, target_features)

        with torch.autocast(views.device.type, enabled=False):
            embeddings = full_precision(embeddings)
            keys = F.normalize(full_precision(keys), dim=-1)
            queries, positive_keys = F.normalize(embeddings, dim=-1), keys.flip(dims=(1,))
            positive = (queries * positive_keys).sum(dim=-1, keepdim=True)
            # Backward needs the queue as it is now, but the keys of this step will be written into it before.
            negative = queries @ full_precision(self.queue.clone()).T
            logits = torch.cat([positive, negative], dim=-1).flatten(0, 1) / self.config.temperature
            loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
            monitors = self.monitors(
                lambda: {"positive_similarity": positive.mean(), "std_all": normalised_std(embeddings)}
            )
            terms = {"contrastive": loss, **monitors}
            if updates_queue:
                self._enqueue(keys)
        reusable = {"embeddings": embeddings, "encoder_features": features} if symmetric else {}
        return self.output(loss, terms, features, **reusable)

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        """Writes the keys [B, V, E] of all processes over the oldest ones."""
        new = gather_batch(keys).flatten(0, 1).to(self.queue.dtype)
        rows = (self.queue_position + torch.arange(len(new), device=new.device)) % self.config.queue_size
        self.queue.index_copy_(0, rows, new)
        self.queue_position.add_(len(new)).remainder_(self.config.queue_size)

    def _check_queue_size(self, batch_size: int) -> None:
        queue_size = self.config.queue_size
        added = batch_size * world_size() * (2 if self.config.symmetric else 1)
        if queue_size % added:
            nearest = max(1, round(queue_size / added)) * added
            raise ValueError(
                f"queue_size is {queue_size} but each step adds {added} keys: choose a multiple of {added}, such as "
                f"{nearest}"
            )
