"""Angles: sine and cosine of a difference; errors are degrees, the short way round."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_equi.errors import DataError
from ssl_equi.latents.kind import FULL_TURN, AngleUnit, Bounds, LatentKind, Sizes, check_choice, checked_ranges, spread


@dataclass(frozen=True)
class Angle(LatentKind):
    """An angle that comes round: an azimuth, a joint that turns freely, a hue on the colour circle.

    Its action and its targets are a sine and a cosine, for which a period is a full circle. An angle with two ends,
    such as an elevation, is a `Number` with the unit of an angle.

    Attributes:
        unit: of the stored column.
        period: in that unit, after which all looks the same again; a full turn if None. Half a turn is for what looks
            the same from behind.
        range: drawn uniformly, at most a period wide; the whole period from 0 if None. `decode` starts where it does.
    """

    unit: AngleUnit = "deg"
    period: float | None = None
    range: Bounds | None = None

    kind = "angle"
    metric = "angle_deg_median"
    sizes = Sizes(1, 2, 2)

    def __post_init__(self) -> None:
        check_choice("the unit of an angle", self.unit, AngleUnit)
        if self.period is not None and (type(self.period) not in (int, float) or not 0 < self.period < math.inf):
            raise DataError(f"the period of an angle is {self.period!r}: give a number above 0")
        if self.range is not None:
            object.__setattr__(self, "range", checked_ranges("the range of an angle", [self.range], (1,))[0])
        low, high = self.bounds
        if high - low > self.full_period * (1 + 1e-9):
            raise DataError(
                f"the range of an angle goes from {low} to {high} with a period of {self.full_period}: leave it out "
                "for the whole period"
            )

    @property
    def full_period(self) -> float:
        """The period, or a full turn, in the angle's unit."""
        return FULL_TURN[self.unit] if self.period is None else float(self.period)

    @property
    def bounds(self) -> Bounds:
        """The range, or the whole period."""
        return (0.0, self.full_period) if self.range is None else self.range

    def relative(self, first: Tensor, second: Tensor) -> Tensor:
        """Sine and cosine of the difference, second minus first."""
        # In float32, differences of angles near 360 degrees are off by 1e-5 degrees.
        return self.encode(second.double() - first.double())

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """Sine and cosine of the sum, by the addition theorems."""
        (first_sine, first_cosine), (second_sine, second_cosine) = first.unbind(-1), second.unbind(-1)
        sine = first_sine * second_cosine + first_cosine * second_sine
        cosine = first_cosine * second_cosine - first_sine * second_sine
        return torch.stack([sine, cosine], dim=-1)

    def invert(self, action: Tensor) -> Tensor:
        return torch.cat([-action[..., :1], action[..., 1:]], dim=-1)

    def encode(self, values: Tensor) -> Tensor:
        phases_rad = values.double() * (2 * math.pi / self.full_period)
        return torch.cat([phases_rad.sin(), phases_rad.cos()], dim=-1).float()

    def decode(self, predictions: Tensor) -> Tensor:
        """The angle of a prediction of any length, within a period from where the range starts."""
        phases_rad = torch.atan2(predictions[..., :1].double(), predictions[..., 1:].double())
        low, _ = self.bounds
        return low + torch.remainder(phases_rad * (self.full_period / (2 * math.pi)) - low, self.full_period)

    def errors(self, answers: Tensor, values: Tensor) -> Tensor:
        """Degrees of the angle itself: at most 180, or half a period if that is shorter."""
        half = self.full_period / 2
        differences = torch.remainder(answers.double() - values.double() + half, self.full_period) - half
        return differences.abs().squeeze(-1) * (360 / FULL_TURN[self.unit])

    def constant_score(self) -> float | None:
        """A quarter of the range's width: 90 degrees for a uniform angle whose period is a full turn."""
        low, high = self.bounds
        return (high - low) / 4 * (360 / FULL_TURN[self.unit])

    def from_uniform(self, uniform: Tensor) -> Tensor:
        return spread(uniform, [self.bounds])
