"""The contrastive loss of two views: NT-Xent, and InfoNCE among the other view's embeddings alone."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.objectives.parts.batch import gather_batch, rank
from ssl_equi.objectives.parts.checks import check_choice, check_number
from ssl_equi.runtime.device_copies import constant

Candidates = Literal["both_views", "other_view"]


@dataclass(frozen=True)
class ContrastiveLoss:
    """Cross-entropy of picking an embedding's other view among candidates, by cosines over a temperature.

    For an embedding z with other view z', -log(exp(cos(z, z') / T) / sum over candidates y of exp(cos(z, y) / T)), mean
    over the embeddings of both views. Candidates come from the global batch of N objects.

    Args:
        temperature: T.
        candidates: both_views: the 2N - 1 other embeddings of both views (NT-Xent; Chen et al., SimCLR, ICML 2020,
            equation 1). other_view: the N embeddings of the other view (InfoNCE, as E-SSL's released code).
    """

    temperature: float
    candidates: Candidates = "both_views"

    def __post_init__(self) -> None:
        check_number("the temperature", self.temperature, above=0)
        check_choice("candidates", self.candidates, Candidates)

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of this process's embeddings [B, E] of view 1 and [B, E] of view 2, of any length."""
        if first.device.type != "cpu":
            return self._at_once(torch.stack((first, second)))
        views = F.normalize(first, dim=1), F.normalize(second, dim=1)
        gathered = [gather_batch(view) for view in views]
        own = rank() * len(first) + torch.arange(len(first), device=first.device)
        logits = torch.cat([self._logits(views[view], gathered, view, own) for view in (0, 1)])
        return F.cross_entropy(logits, own.repeat(2))

    def _at_once(self, embeddings: Tensor) -> Tensor:
        """The same of embeddings [2, B, E] by one product of all of them, with a third of the launches."""
        views = F.normalize(embeddings, dim=2)
        gathered = gather_batch(views.transpose(0, 1)).transpose(0, 1)
        count, global_count, device = views.shape[1], gathered.shape[1], views.device
        own = tuple(range(rank() * count, (rank() + 1) * count))
        if self.candidates == "other_view":
            logits = (views @ gathered.flip(0).mT).flatten(0, 1)
            return F.cross_entropy(logits / self.temperature, constant(own * 2, device, torch.int64))
        # Columns of the logits: the embeddings of view 1 of the global batch, then those of view 2.
        of_second = tuple(column + global_count for column in own)
        itself, other = (constant(columns, device, torch.int64) for columns in (own + of_second, of_second + own))
        columns = constant(tuple(range(2 * global_count)), device, torch.int64)
        logits = views.flatten(0, 1) @ gathered.flatten(0, 1).mT / self.temperature
        return F.cross_entropy(logits.masked_fill(itself.unsqueeze(1) == columns, -math.inf), other)

    def _logits(self, embeddings: Tensor, gathered: list[Tensor], view: int, own: Tensor) -> Tensor:
        """Logits [B, candidates] of embeddings of one view, first those of the other view.

        `own` [B] are the rows of these embeddings among those of the global batch.
        """
        views = (0, 1) if self.candidates == "both_views" else (1 - view,)
        logits = {other: torch.einsum("nc,mc->nm", embeddings, gathered[other]) / self.temperature for other in views}
        if self.candidates == "other_view":
            return logits[1 - view]
        # All columns but an embedding's own, by their numbers: selecting them by a mask would wait for a GPU.
        columns = torch.arange(len(gathered[view]) - 1, device=own.device).expand(len(own), -1)
        others = columns + (columns >= own.unsqueeze(1)).long()
        return torch.cat([logits[1 - view], logits[view].gather(1, others)], dim=1)
