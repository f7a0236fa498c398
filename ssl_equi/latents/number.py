"""Numbers: differences as a share of their range; errors are distances in their own unit."""

from dataclasses import dataclass

from torch import Tensor

from ssl_equi.latents.kind import AngleUnit, Bounds, Displacements, Sizes, check_choice, checked_ranges, spread


@dataclass(frozen=True)
class Number(Displacements):
    """A number with two ends: a size, a brightness, an elevation. Actions and targets are shares of the range.

    Attributes:
        range: drawn uniformly. It is the data set's, the same for all splits, because actions are scaled by it.
        unit: of an angle, for whoever reads results; no conversion follows from it.
    """

    range: Bounds
    unit: AngleUnit | None = None

    kind = "number"
    sizes = Sizes(1, 1, 1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "range", checked_ranges("the range of a number", [self.range], (1,))[0])
        if self.unit is not None:
            check_choice("the unit of a number", self.unit, AngleUnit)

    def vectors(self, values: Tensor) -> Tensor:
        """Where in the range, from 0 to 1."""
        low, high = self.range
        # A range of 0 to 1 changes no bit, so differences of hues are those of SIE.
        return (values.float() - low) / (high - low)

    def relative(self, first: Tensor, second: Tensor) -> Tensor:
        # Not the difference of the shares, which takes twice as many operations in every step of a training.
        low, high = self.range
        difference = second.float() - first.float()
        return difference if high - low == 1 else difference / (high - low)

    def from_vectors(self, vectors: Tensor) -> Tensor:
        low, high = self.range
        return low + (high - low) * vectors.double()

    def constant_score(self) -> float | None:
        """A quarter of the range's width, for the middle as the answer."""
        low, high = self.range
        return (high - low) / 4

    def from_uniform(self, uniform: Tensor) -> Tensor:
        return spread(uniform, [self.range])
