"""Categories: a one-hot pair, from which class to which; errors are wrong classes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_equi.errors import DataError
from ssl_equi.latents.kind import LatentKind, Sizes


@dataclass(frozen=True)
class Category(LatentKind):
    """One of several names, stored as its number from 0: a shape, a material, which of several lamps is on.

    Categories have no differences, so the action is the pair of both; it composes with one that starts where it ends.

    Attributes:
        names: at least two, all different.
    """

    names: tuple[str, ...]

    kind = "category"
    metric = "top1"
    targets_are_classes = True

    def __post_init__(self) -> None:
        names = self.names
        if (
            not isinstance(names, list | tuple)
            or len(names) < 2
            or not all(isinstance(name, str) and name for name in names)
            or len(set(names)) != len(names)
        ):
            raise DataError(f"the names of a category are {names!r}: give two or more different words")
        object.__setattr__(self, "names", tuple(names))

    @property
    def sizes(self) -> Sizes:
        return Sizes(1, 2 * len(self.names), len(self.names))

    def relative(self, first: Tensor, second: Tensor) -> Tensor:
        """The first class as a one-hot vector, then the second."""
        numbers = torch.arange(len(self.names), device=first.device)
        return torch.cat([first.round() == numbers, second.round() == numbers], dim=-1).float()

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """From where the first starts to where the second ends."""
        return torch.cat([first[..., : len(self.names)], second[..., len(self.names) :]], dim=-1)

    def invert(self, action: Tensor) -> Tensor:
        """The pair the other way round."""
        return action.roll(len(self.names), dims=-1)

    def encode(self, values: Tensor) -> Tensor:
        """Classes [...] int64, for a cross-entropy of logits [..., K]."""
        return values.squeeze(-1).round().long()

    def decode(self, predictions: Tensor) -> Tensor:
        return predictions.argmax(dim=-1, keepdim=True).double()

    def constant_prediction(self, targets: Tensor) -> Tensor:
        """How often each class comes [K], so that the largest one is the answer."""
        return torch.bincount(targets, minlength=len(self.names)).double()

    def errors(self, answers: Tensor, values: Tensor) -> Tensor:
        """1 where the class is another, else 0."""
        return (self.encode(answers) != self.encode(values)).double()

    def score(self, answers: Tensor, values: Tensor) -> float:
        """The share of right classes."""
        return float(1 - self.errors(answers, values).mean())

    def constant_score(self) -> float | None:
        """The share of the largest class, which is 1 / K for K classes that are drawn equally often."""
        return 1 / len(self.names)

    def from_uniform(self, uniform: Tensor) -> Tensor:
        return (uniform * len(self.names)).floor()
