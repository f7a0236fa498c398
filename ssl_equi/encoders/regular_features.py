"""Features in the regular representation of a group of square symmetries, and what is read from them.

A regular stack [N, |G| * D] holds D numbers for each element, all those of the first element first. An element g moves
the blocks, (g F)[h] = F[g^-1 h], so their mean is invariant.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ssl_equi.encoders.group_convolutions import (
    GroupName,
    GroupPooling,
    act_on_regular_stack,
    check_element,
    group_size,
)

Features = Literal["regular", "invariant", "both"]


class RegularFeatures(nn.Module):
    """From a regular stack [N, |G| * D] to features [N, num_features]; it has no weights.

    Args:
        group: "c4" or "d4".
        width: D, numbers for each element.
        features: "regular": the stack as it is. "invariant": the mean over the elements, [N, D]. "both": first the
            mean, then the stack.

    Attributes:
        num_features: |G| * D, D, or (1 + |G|) * D.
        parts: columns of the features by name: all; inv (do not change with the group) and equi (change places), where
            there are such.

    Raises:
        ValueError: there is no such group, or there are no such features.
    """

    def __init__(self, group: GroupName, width: int, features: Features = "regular") -> None:
        super().__init__()
        if features not in get_args(Features):
            raise ValueError(f"features is {features!r}: choose 'regular', 'invariant' or 'both'")
        self.group, self.width, self.features = group, width, features
        self.mean_over_elements = GroupPooling(group)
        invariant = slice(0, 0 if features == "regular" else width)
        self.num_features = invariant.stop + (0 if features == "invariant" else group_size(group) * width)
        self.parts = {"all": slice(0, self.num_features)}
        if features != "regular":
            self.parts["inv"] = invariant
        if features != "invariant":
            self.parts["equi"] = slice(invariant.stop, self.num_features)

    def forward(self, stack: Tensor) -> Tensor:
        """[N, |G| * D] to [N, num_features]."""
        if self.features == "regular":
            return stack
        invariant = self.mean_over_elements(stack)
        return invariant if self.features == "invariant" else torch.cat([invariant, stack], dim=1)

    def act(self, g: int, features: Tensor) -> Tensor:
        """The features of g x, from those of x: [N, num_features] to the same shape.

        Raises:
            ValueError: the group has no such element, or the features have another width.
        """
        check_element(self.group, g)
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(f"features have shape {tuple(features.shape)}: these are [N, {self.num_features}]")
        if self.features == "invariant":
            return features
        invariant, stack = features.tensor_split([self.parts["equi"].start], dim=1)
        return torch.cat([invariant, act_on_regular_stack(self.group, g, stack)], dim=1)
