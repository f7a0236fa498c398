"""Even grids over SO(3), and how much of SO(3) lies within an angle."""

import math

import torch
from torch import Tensor

# Of all pairs of constants that Alexa searched, the pair whose spirals leave the smallest gaps.
_FIRST_CONSTANT = math.sqrt(2)
_SECOND_CONSTANT = 1.533751168755204288118041  # the positive root of x^4 = x + 4


def even_rotations(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """`count` unit quaternions `[count, 4]` that divide SO(3) evenly, the same ones in every call.

    Super-Fibonacci spirals (Alexa, "Super-Fibonacci Spirals: Fast, Low-Discrepancy Sampling of SO(3)", CVPR 2022): in
    quaternions (r sin a, r cos a, R sin b, R cos b), r^2 is even in [0, 1] and R^2 = 1 - r^2, which is uniform on the
    sphere of quaternions, while a and b turn at rates without a common measure. A rotation is at most 15.3 degrees from
    the nearest of 2,304 and 9.4 from that of 10,000.
    """
    place = torch.arange(count, dtype=torch.float64) + 0.5
    squared_radius = place / count
    radius, other_radius = squared_radius.sqrt(), (1 - squared_radius).sqrt()
    first_angle = 2 * math.pi / _FIRST_CONSTANT * place
    second_angle = 2 * math.pi / _SECOND_CONSTANT * place
    columns = [
        radius * first_angle.sin(),
        radius * first_angle.cos(),
        other_radius * second_angle.sin(),
        other_radius * second_angle.cos(),
    ]
    return torch.stack(columns, dim=-1).to(dtype)


def volume_share_within(angle_rad: float) -> float:
    """Share of all rotations that are at most this angle, in [0, pi], from a given one: (t - sin t) / pi."""
    return (angle_rad - math.sin(angle_rad)) / math.pi
