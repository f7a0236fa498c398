"""Features in the regular representation of a group of square symmetries, and what is read from them.

A regular stack [N, |G| * D] holds D numbers for each element, all those of the first element first. An element g moves
the blocks, (g F)[h] = F[g^-1 h], so their mean is invariant.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ssl_equi.encoders.square.convolutions import (
    GroupName,
    act_on_regular_stack,
    check_element,
    group_size,
)

Features = Literal["regular", "invariant", "both"]


class OrientationFeatures(nn.Module):
    """From a stack [N, size * D] of blocks that a group moves to features [N, num_features]; it has no weights.

    Args:
        size: number of blocks.
        width: D, numbers in each block.
        features: "regular": the stack as it is. "invariant": the mean over the blocks, [N, D]. "both": first the mean,
            then the stack.

    Attributes:
        num_features: size * D, D, or (1 + size) * D.
        parts: columns of the features by name: all; inv (do not change with the group) and equi (change places), where
            there are such.
    """

    def __init__(self, size: int, width: int, features: Features = "regular") -> None:
        super().__init__()
        if features not in get_args(Features):
            raise ValueError(f"features is {features!r}: choose 'regular', 'invariant' or 'both'")
        self.size, self.width, self.features = size, width, features
        invariant = slice(0, 0 if features == "regular" else width)
        self.stack_start = invariant.stop
        self.num_features = invariant.stop + (0 if features == "invariant" else size * width)
        self.parts = {"all": slice(0, self.num_features)}
        if features != "regular":
            self.parts["inv"] = invariant
        if features != "invariant":
            self.parts["equi"] = slice(invariant.stop, self.num_features)

    def forward(self, stack: Tensor) -> Tensor:
        """[N, size * D] to [N, num_features]."""
        if self.features == "regular":
            return stack
        invariant = stack.unflatten(1, (self.size, -1)).mean(1)
        return invariant if self.features == "invariant" else torch.cat([invariant, stack], dim=1)

    def move(self, act_on_stack: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
        """The features of g x from those of x, given how g acts on the stack."""
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(f"features have shape {tuple(features.shape)}: these are [N, {self.num_features}]")
        if self.features == "invariant":
            return features
        invariant, stack = features.tensor_split([self.stack_start], dim=1)
        return torch.cat([invariant, act_on_stack(stack)], dim=1)


class RegularFeatures(OrientationFeatures):
    """`OrientationFeatures` of the |G| blocks of a regular stack, of the group "c4" or "d4"."""

    def __init__(self, group: GroupName, width: int, features: Features = "regular") -> None:
        super().__init__(group_size(group), width, features)
        self.group = group

    def act(self, g: int, features: Tensor) -> Tensor:
        """The features of g x, from those of x: [N, num_features] to the same shape."""
        check_element(self.group, g)
        return self.move(partial(act_on_regular_stack, self.group, g), features)
