"""Translations: displacements in their own unit; errors are Euclidean distances."""

import math
from dataclasses import dataclass

from torch import Tensor

from ssl_equi.latents.kind import Bounds, Displacements, Sizes, checked_ranges, spread


@dataclass(frozen=True)
class Translation(Displacements):
    """A position on a line, in a plane or in space; all columns have one unit, which actions and targets keep.

    Attributes:
        ranges: of each column, drawn uniformly; one to three.
    """

    ranges: tuple[Bounds, ...]

    kind = "translation"

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranges", checked_ranges("ranges of a translation", self.ranges, (1, 2, 3)))

    @property
    def sizes(self) -> Sizes:
        return Sizes(len(self.ranges), len(self.ranges), len(self.ranges))

    def constant_score(self) -> float | None:
        """The radius of the ball that holds half of the box, where that ball fits in: .492 of a cube's side.

        V r^k = W / 2 in k dimensions, with the volumes V of the unit ball and W of the box.
        """
        widths = [high - low for low, high in self.ranges]
        unit_ball = (2.0, math.pi, 4 * math.pi / 3)[len(widths) - 1]
        radius = (math.prod(widths) / (2 * unit_ball)) ** (1 / len(widths))
        return radius if radius <= min(widths) / 2 else None

    def from_uniform(self, uniform: Tensor) -> Tensor:
        return spread(uniform, self.ranges)
