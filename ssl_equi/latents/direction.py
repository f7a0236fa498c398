"""Directions in space: the difference of two unit vectors; errors are the angles between them."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.errors import DataError
from ssl_equi.geometry.latents import light_direction
from ssl_equi.latents.kind import (
    FULL_TURN,
    AngleUnit,
    Bounds,
    Displacements,
    Sizes,
    check_choice,
    checked_ranges,
    spread,
)

DirectionStorage = Literal["polar_azimuth", "xyz"]


@dataclass(frozen=True)
class Direction(Displacements):
    """A unit vector: where the light, the camera or the wind comes from.

    The action is the difference d2 - d1 of the vectors in space. Directions are no group, and the smallest rotations
    between them don't compose: going round a triangle, they leave a turn. The chord does, without telling where d2 is.

    Attributes:
        storage: the polar angle from +z and the azimuth from +x, or x, y, z of any length above 0.
        unit: of polar angle and azimuth.
        ranges: of polar angle and azimuth, drawn uniformly in these angles; empty for directions uniform on the sphere.
    """

    storage: DirectionStorage = "polar_azimuth"
    unit: AngleUnit = "rad"
    ranges: tuple[Bounds, ...] = ()

    kind = "direction"
    metric = "angle_deg_median"

    def __post_init__(self) -> None:
        check_choice("the storage of a direction", self.storage, DirectionStorage)
        check_choice("the unit of a direction", self.unit, AngleUnit)
        object.__setattr__(self, "ranges", checked_ranges("ranges of polar angle and azimuth", self.ranges, (0, 2)))
        if self.ranges and self.storage == "xyz":
            raise DataError("a direction stored as xyz has ranges: leave them out, or store polar_azimuth")

    @property
    def sizes(self) -> Sizes:
        return Sizes(2 if self.storage == "polar_azimuth" else 3, 3, 3)

    @property
    def column_suffixes(self) -> tuple[str, ...]:
        return ("_theta", "_phi") if self.storage == "polar_azimuth" else ("_x", "_y", "_z")

    def vectors(self, values: Tensor) -> Tensor:
        """Unit vectors [..., 3] of values [..., C], in their dtype."""
        if self.storage == "xyz":
            return F.normalize(values, dim=-1)
        polar_rad, azimuth_rad = (values * (FULL_TURN["rad"] / FULL_TURN[self.unit])).unbind(-1)
        return light_direction(polar_rad, azimuth_rad)

    def from_vectors(self, vectors: Tensor) -> Tensor:
        """Values [..., C] float64 of vectors of any length; azimuths begin where their range does."""
        if self.storage == "xyz":
            return F.normalize(vectors.double(), dim=-1)
        x, y, z = vectors.double().unbind(-1)
        turn = FULL_TURN[self.unit]
        polar, azimuth = (angle * (turn / FULL_TURN["rad"]) for angle in (torch.hypot(x, y).atan2(z), y.atan2(x)))
        first = self.ranges[1][0] if self.ranges else 0.0
        return torch.stack([polar, first + torch.remainder(azimuth - first, turn)], dim=-1)

    def errors(self, answers: Tensor, values: Tensor) -> Tensor:
        """Degrees, in [0, 180]."""
        first, second = self.vectors(answers.double()), self.vectors(values.double())
        # Unlike the arc cosine, exact for vectors that are nearly the same or opposite.
        return 2 * torch.rad2deg(torch.atan2((first - second).norm(dim=-1), (first + second).norm(dim=-1)))

    def constant_score(self) -> float | None:
        """90 degrees on the whole sphere, where the cosine is uniform; half the polar range of a cap around +z.

        A cap has polar angles from 0 to at most 90 degrees and all azimuths.
        """
        if not self.ranges:
            return 90.0
        (lowest, highest), (first, last) = self.ranges
        turn = FULL_TURN[self.unit]
        is_cap = lowest == 0 and highest <= turn / 4 and math.isclose(last - first, turn)
        return highest / 2 * (360 / turn) if is_cap else None

    def from_uniform(self, uniform: Tensor) -> Tensor:
        """Polar angle and azimuth in their ranges, or a point of the sphere of the first two numbers."""
        if self.ranges:
            return spread(uniform, self.ranges)
        # Archimedes: heights on the sphere are uniform.
        height, azimuth_rad = 1 - 2 * uniform[..., 0], 2 * math.pi * uniform[..., 1]
        radius = (1 - height.square()).sqrt()
        return self.from_vectors(torch.stack([radius * azimuth_rad.cos(), radius * azimuth_rad.sin(), height], dim=-1))
