"""The supervised ceiling: the same encoder trained on what is otherwise only probed, the class and the action.

It tells how far the encoder and the data could go, as in the comparisons of Garrido et al. (SIE, ICML 2023); it is
not a self-supervised method.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_equi.objectives.base import Objective, ObjectiveOutput
from ssl_equi.objectives.parts.batch import full_precision, normalised_std
from ssl_equi.objectives.parts.checks import check_actions, check_views
from ssl_equi.objectives.parts.heads import ActionHead, action_regression
from ssl_equi.options import ActsWhen, Derived, NonNegative, Width


@dataclass(frozen=True)
class SupervisedConfig:
    """Both tasks at once by default; set one weight to 0 for the ceiling of the other."""

    class_weight: NonNegative = 1.0
    """Weight of the cross-entropy of the classes. 0 makes no class head, and labels may be left out."""
    action_weight: NonNegative = 1.0
    """Weight of the mean squared error of the action. 0 makes no regression head, and actions may be left out."""
    num_classes: Derived = 55
    """Number of classes; 55 in 3DIEBench."""
    action_dim: Derived = 4
    """Width of the action: 4 for a relative rotation (quaternion xyzw), 6 with the two relative hues."""
    hidden: Annotated[
        tuple[Width, ...], ActsWhen(lambda options: options.action_weight > 0, "give an action_weight above 0")
    ] = (1024, 1024)
    """Widths of the regression head's hidden layers; 1024-1024 as in the SIE paper's probe of the rotation."""
    separate_batch_norm: bool = False
    """One call per view instead of one call for both; see `on_both_views`."""


class Supervised(Objective):
    """loss = class_weight * CE(linear(y), label) + action_weight * MSE(head([y; y']), action).

    y, y' are the encoder features of the two views; the cross-entropy is the mean over both views.
    """

    def __init__(self, encoder: nn.Module, config: SupervisedConfig = SupervisedConfig()) -> None:
        super().__init__(encoder, config.separate_batch_norm)
        if not (config.class_weight >= 0 and config.action_weight >= 0 and config.class_weight + config.action_weight):
            raise ValueError(
                f"class_weight is {config.class_weight} and action_weight is {config.action_weight}: give 0 or more, "
                "and at least one above 0"
            )
        if config.class_weight > 0 and config.num_classes < 2:
            raise ValueError(f"num_classes is {config.num_classes}: give 2 or more, or class_weight=0")
        self.config = config
        self.action_dim = config.action_dim
        self.class_head = nn.Linear(self.num_features, config.num_classes) if config.class_weight > 0 else None
        self.action_head = (
            ActionHead(self.num_features, config.action_dim, config.hidden) if config.action_weight > 0 else None
        )

    def forward(self, views: Tensor, actions: Tensor | None = None, labels: Tensor | None = None) -> ObjectiveOutput:
        """The loss of two views.

        Args:
            views: [B, 2, 3, H, W].
            actions: [B, action_dim], the transformation from view 1 to view 2; may be None if action_weight is 0.
            labels: int64 [B], from 0 to num_classes - 1, one for each object; may be None if class_weight is 0.

        Returns:
            terms `classification`, the cross-entropy, and `top1`, the fraction of this process's views whose class is
            right; `action_regression`, the mean squared error over the batch and the action's columns; the monitor
            `std_all` of the features, see `normalised_std` (0 means collapse). Terms of a task of weight 0 are absent.
        """
        check_views(views)
        config = self.config
        if self.class_head is not None:
            labels = self._check_labels(labels, len(views))
        if self.action_head is not None:
            actions = check_actions(actions, len(views), config.action_dim)

        features = self.on_views(self.encoder, views)
        terms, weighted = {}, []
        if self.class_head is not None and labels is not None:
            logits, labels_of_views = self.class_head(features.flatten(0, 1)), labels.repeat_interleave(2)
            with torch.autocast(views.device.type, enabled=False):
                terms["classification"] = F.cross_entropy(full_precision(logits), labels_of_views)
                terms |= self.monitors(lambda: {"top1": (logits.argmax(dim=1) == labels_of_views).float().mean()})
                weighted.append(config.class_weight * terms["classification"])
        if self.action_head is not None and actions is not None:
            prediction = self.action_head(features)
            with torch.autocast(views.device.type, enabled=False):
                terms["action_regression"] = action_regression(prediction, actions)
                weighted.append(config.action_weight * terms["action_regression"])
        terms |= self.monitors(lambda: {"std_all": normalised_std(features)})
        return self.output(torch.stack(weighted).sum(), terms, features, encoder_features=features)

    def _check_labels(self, labels: Tensor | None, batch_size: int) -> Tensor:
        """The labels as int64, which must be integers [B] and, on the CPU, within the classes."""
        if labels is None:
            raise ValueError(f"labels are None: pass int64 [{batch_size}], one for each object, or set class_weight=0")
        if labels.shape != (batch_size,) or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}: pass int64 [{batch_size}], one for "
                "each object"
            )
        # On a GPU the answer would have to come back to the CPU, which would stall every step.
        if labels.device.type == "cpu":
            outside = (labels < 0) | (labels >= self.config.num_classes)
            if outside.any():
                row = int(outside.nonzero()[0])
                raise ValueError(
                    f"the label in row {row} is {int(labels[row])} but num_classes is {self.config.num_classes}: set "
                    "num_classes to the number of classes in the data, and number them from 0"
                )
        return labels.long()
