"""E-SSL (Dangovski et al., "Equivariant Contrastive Learning", ICLR 2022, arXiv:2111.00899).

Any of the two-view objectives, and besides it the prediction of a transformation from one more, small view: the base
makes the features insensitive to augmentation, the prediction keeps them sensitive to the transformation.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.encoders.batch_norm import running_statistics_kept
from ssl_equi.objectives.base import Extension, Objective, ObjectiveOutput
from ssl_equi.objectives.parts.batch import full_precision, on_both_views
from ssl_equi.objectives.parts.checks import check_number
from ssl_equi.options import ActsWhen, Derived, NonNegative, Width

_PREDICTS = ActsWhen(lambda options: options.weight > 0, "give a weight above 0")


@dataclass(frozen=True)
class ESSLConfig:
    """E-SSL as released for CIFAR-10, but for `separate_statistics`."""

    weight: NonNegative = 0.4
    """Weight (lambda) of the prediction; 0.4 with SimCLR, 0.4 (CIFAR-10) or 0.08 (ImageNet) with SimSiam, 8 with Barlow
    Twins. 0 leaves the base alone and makes no head."""
    num_elements: Derived = 4
    """Size of the set of transformations; 4 rotations in the paper, 24 for jigsaw."""
    hidden_widths: Annotated[tuple[Width, ...], _PREDICTS] = (2048, 2048)
    """Widths of the head's hidden layers; 2048-2048 on CIFAR-10, 2048-2048-128 on ImageNet with SimCLR, 2048-2048-256
    with SimSiam and Barlow Twins."""
    relu_after_last_hidden: Annotated[bool, _PREDICTS] = True
    """Whether a ReLU follows the last hidden layer's LayerNorm; True on CIFAR-10, False on ImageNet."""
    relative: Annotated[bool, _PREDICTS] = False
    """Predict g2 g1^-1 from two small views that were transformed by g1 and g2 (appendix H). For data that contain both
    an image and its transformed version: there the element alone can't be known, only the relative one."""
    separate_statistics: Annotated[bool, _PREDICTS] = True
    """Keep the small views out of the running statistics of the encoder's batch norms. False in the released code,
    where they have more weight in these (37 %) than either base view."""


class ESSL(Extension):
    """loss = base loss + weight * cross-entropy(head(encoder(T_k x')), k), with x' a small view of its own.

    The head reads the encoder's features, before any projector, and its gradient reaches the encoder (equation 2).

    Args:
        base: an objective of two views that takes no actions; SimCLR, SimSiam or Barlow Twins in the paper.
        relative_table: for `relative` only: int64 [G, G], the label of g2 g1^-1 at [g1, g2];
            `ssl_equi.views.groups.TransformationSet.relative_table()` gives it.
    """

    relative_table: Tensor | None

    def __init__(
        self, base: Objective, config: ESSLConfig = ESSLConfig(), relative_table: Tensor | None = None
    ) -> None:
        super().__init__(base)
        _check(base, config)
        _check_relative_table(config, relative_table)
        self.config = config
        if config.weight > 0:
            in_features = self.num_features * (2 if config.relative else 1)
            self.head = transformation_head(
                in_features, config.hidden_widths, config.num_elements, config.relu_after_last_hidden
            )
        # Follows from the configuration, so checkpoints need not hold it.
        self.register_buffer("relative_table", relative_table, persistent=False)

    def forward(
        self,
        views: Tensor,
        actions: Tensor | None = None,
        transformed_views: Tensor | None = None,
        elements: Tensor | None = None,
    ) -> ObjectiveOutput:
        """The loss of two views and further, small ones.

        Args:
            views: [B, 2, 3, H, W]: the base's views.
            actions: handed to the base, which ignores them.
            transformed_views: [B, K, 3, s, s], normalised like the views: K transformed versions of one small view of
                each object, all of the set's or some; for `relative` K = 2, two different small views. None if the
                weight is 0.
            elements: int64 [B, K], by which element of the set each was transformed. None if the weight is 0.

        Returns:
            the base's output with the terms `transformation` (cross-entropy, mean over B * K; over B for `relative`)
            and `transformation_top1`, both of this process's batch; with weight 0 the base's terms. No embeddings.
        """
        if self.config.weight == 0:
            if transformed_views is not None or elements is not None:
                raise ValueError("E-SSL got transformed views although its weight is 0: leave them out, they cost time")
            return replace(self.base(views, actions), embeddings=None, encoder_features=None)
        transformed_views, elements = self._checked(views, transformed_views, elements)
        output = self.base(views, actions)
        logits, labels = self._logits_and_labels(transformed_views, elements)
        with torch.autocast(views.device.type, enabled=False):
            prediction = F.cross_entropy(full_precision(logits), labels)
            loss = output.loss + self.config.weight * prediction
        monitors = self.monitors(lambda: {"transformation_top1": (logits.argmax(dim=1) == labels).float().mean()})
        terms = {**output.terms, "transformation": prediction, **monitors}
        return self.output(loss, terms, output.features)

    def _logits_and_labels(self, transformed_views: Tensor, elements: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [M, G] and labels [M]: M = B * K, or B for relative prediction."""
        statistics = running_statistics_kept(self.encoder) if self.config.separate_statistics else nullcontext()
        # Transformed versions of one small view share a call: batch norms must see them side by side.
        separate = self.separate_batch_norm and self.config.relative
        with statistics:
            features = on_both_views(self.encoder, transformed_views, separate)
        if self.relative_table is None:
            return self.head(features.flatten(0, 1)), elements.flatten()
        return self.head(features.flatten(1)), self.relative_table[elements[:, 0], elements[:, 1]]

    def _checked(
        self, views: Tensor, transformed_views: Tensor | None, elements: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if transformed_views is None or elements is None:
            raise ValueError("E-SSL got no transformed views or no elements: pass both, or set the weight to 0")
        shape = tuple(transformed_views.shape)
        if transformed_views.ndim != 5 or shape[0] != views.shape[0] or not transformed_views.is_floating_point():
            raise ValueError(
                f"transformed_views have shape {shape} and dtype {transformed_views.dtype}: "
                f"pass float [{views.shape[0]}, K, 3, s, s], as many objects as in views"
            )
        if self.config.relative and shape[1] != 2:
            raise ValueError(f"transformed_views hold {shape[1]} small views of each object: relative E-SSL takes 2")
        if elements.shape != shape[:2] or elements.dtype != torch.int64:
            raise ValueError(
                f"elements have shape {tuple(elements.shape)} and dtype {elements.dtype}: pass int64 {list(shape[:2])}"
            )
        # On an accelerator this would wait for the device, and indexing refuses the values there as well.
        if elements.device.type == "cpu" and not ((elements >= 0) & (elements < self.config.num_elements)).all():
            raise ValueError(
                f"elements have values {elements.min()}..{elements.max()}: "
                f"num_elements is {self.config.num_elements}, so use 0..{self.config.num_elements - 1}"
            )
        return transformed_views, elements


def transformation_head(
    in_features: int, hidden_widths: Sequence[int], num_elements: int, relu_after_last_hidden: bool
) -> nn.Sequential:
    """Linear-LayerNorm-ReLU for every hidden width, then a Linear: [N, in_features] -> logits [N, num_elements]."""
    layers: list[nn.Module] = []
    for width in hidden_widths:
        layers += [nn.Linear(in_features, width), nn.LayerNorm(width), nn.ReLU(inplace=True)]
        in_features = width
    if hidden_widths and not relu_after_last_hidden:
        layers.pop()
    layers.append(nn.Linear(in_features, num_elements))
    return nn.Sequential(*layers)


def _check(base: Objective, config: ESSLConfig) -> None:
    check_number("the weight of the prediction", config.weight, minimum=0)
    if config.num_elements < 2:
        raise ValueError(f"num_elements is {config.num_elements}: there is nothing to predict with fewer than 2")
    if any(width < 1 for width in config.hidden_widths):
        raise ValueError(f"the head's hidden widths are {config.hidden_widths}: all must be 1 or more")
    name = type(base).__name__
    if isinstance(base, Extension):
        raise ValueError(f"base {name} already extends another objective: give E-SSL the plain one, {name}.base")
    if base.action_dim is not None:
        raise ValueError(f"base {name} needs actions: give E-SSL one without, such as SimCLR(encoder)")


def _check_relative_table(config: ESSLConfig, table: Tensor | None) -> None:
    if config.weight == 0:
        return
    if not config.relative:
        if table is not None:
            raise ValueError("E-SSL got a relative_table although relative is False: leave it out or set relative")
        return
    if table is None:
        raise ValueError("relative E-SSL needs relative_table: pass TransformationSet.relative_table() of a group")
    size = config.num_elements
    if tuple(table.shape) != (size, size) or table.dtype != torch.int64:
        raise ValueError(
            f"relative_table has shape {tuple(table.shape)} and dtype {table.dtype}: "
            f"num_elements is {size}, so pass int64 [{size}, {size}]"
        )
    if not 0 <= int(table.min()) <= int(table.max()) < size:
        raise ValueError(f"relative_table has values {table.min()}..{table.max()}: use 0..{size - 1}")
