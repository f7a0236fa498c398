"""AugSelf (Lee et al., "Improving Transferability of Representations via Augmentation-Aware Self-Supervision", NeurIPS
2021, arXiv:2111.09613): a term that makes the encoder's features tell the action, added to any objective.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from ssl_equi.objectives.base import Extension, Objective, ObjectiveOutput
from ssl_equi.objectives.parts.checks import check_actions, check_number
from ssl_equi.objectives.parts.heads import ActionHead, action_regression
from ssl_equi.options import ActsWhen, Derived, NonNegative, Width


@dataclass(frozen=True)
class AugSelfConfig:
    """Defaults are those of the SIE paper's comparison on 3DIEBench (released code), whose base is SimCLR."""

    weight: NonNegative = 1.0
    """Weight of the regression; 1 in the SIE code. 0 makes no head and leaves the base as it is."""
    action_dim: Derived = 4
    """Width of the action: 4 for a relative rotation (quaternion xyzw), 6 with the two relative hues."""
    hidden: Annotated[tuple[Width, ...], ActsWhen(lambda options: options.weight > 0, "give a weight above 0")] = (
        1024,
        1024,
    )
    """Widths of the hidden layers of the regression head; 1024-1024 in the SIE code, on the 1024 features of two
    views."""


class AugSelf(Extension):
    """loss = base loss + weight * MSE(head([y; y']), action), with y, y' the encoder features of the two views.

    The regression reads the features in front of the projector and trains the encoder. The paper has one head for each
    kind of augmentation; here one head regresses the whole action, as in the SIE code. The base's output must have
    `encoder_features`.
    """

    def __init__(self, base: Objective, config: AugSelfConfig = AugSelfConfig()) -> None:
        super().__init__(base)
        check_number("weight", config.weight, minimum=0)
        self.config = config
        self.action_dim = config.action_dim
        self.head = ActionHead(self.num_features, config.action_dim, config.hidden) if config.weight > 0 else None

    def forward(self, views: Tensor, actions: Tensor | None = None) -> ObjectiveOutput:
        """The loss of two views and the actions [B, action_dim] from view 1 to view 2; None if the weight is 0.

        Returns:
            the base's terms and `action_regression`, the mean squared error over the batch and the action's columns.
        """
        if self.head is None:
            return replace(self.base(views, actions), embeddings=None, encoder_features=None)
        actions = check_actions(actions, len(views), self.config.action_dim)
        output = self.base(views, actions)
        if output.encoder_features is None:
            raise ValueError(
                f"the base objective {type(self.base).__name__} returned no encoder_features: pass one that trains "
                "its encoder on both views and wraps no other, such as SimCLR(encoder)"
            )
        prediction = self.head(output.encoder_features)
        with torch.autocast(views.device.type, enabled=False):
            regression = action_regression(prediction, actions)
            loss = output.loss + self.config.weight * regression
        return self.output(loss, output.terms | {"action_regression": regression}, output.features)
