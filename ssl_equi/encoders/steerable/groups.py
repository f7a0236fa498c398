"""Groups of turns of the plane, and the fields on which steerable networks carry them.

A field holds, at each place of a map, a function f on the circle of orientations; a turn by an angle a moves it,
(a f)(phi) = f(phi - a), while it turns the map.

    c2, c3, ...   C_N, turns by multiples of 360/N degrees. f is given at N orientations (the regular representation),
                  which change places.
    so2           all turns. f has frequencies up to 3 and is given by its 7 Fourier coefficients: the mean, then for
                  each frequency those of sqrt(2) cos and sqrt(2) sin, which a turn by a mixes as a turn by (frequency
                  times a). The first block does not change, and pointwise functions are applied at 16 orientations.

Fields are stored as blocks [N, channels_per_field * C, ...]: all C fields' first numbers come before their second ones.
Angles are counter-clockwise. Weiler and Cesa, "General E(2)-Equivariant Steerable CNNs", NeurIPS 2019.
"""

import math
import re
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ssl_equi.encoders.square.features import Features, OrientationFeatures
from ssl_equi.encoders.square.symmetries import TURNS
from ssl_equi.encoders.symmetric import Element

MAX_FREQUENCY = 3
"""Of so2's fields."""
FOURIER_SAMPLES = 16
"""Orientations at which functions of so2's fields are applied: a multiple of 4, so that quarter turns permute them."""
MAX_ORDER = 32
"""Largest N of C_N: kernels of a few pixels can't tell more orientations apart."""


@dataclass(frozen=True)
class SteerableGroup:
    """C_N or SO(2), see `steerable_group`."""

    name: str
    """c2, c3, ... or so2."""
    order: int | None
    """N, or None for so2."""
    channels_per_field: int
    """Numbers of a field at each place: N, or 7 for so2."""
    orientations: int
    """At how many orientations pointwise functions are applied: N, or 16 for so2."""
    quarter_turns: tuple[int, ...]
    """Those that the group has, numbered as the symmetries of the square."""

    def act_on_stack(self, angle_deg: float, stack: Tensor) -> Tensor:
        """Fields [N, channels_per_field * C, ...] after a turn, without turning the map that they lie on."""
        self.check_turn(angle_deg)
        size = self.channels_per_field
        if stack.ndim < 2 or stack.shape[1] % size:
            raise ValueError(f"stack has shape {tuple(stack.shape)}: {self.name} acts on [N, {size} * C, ...]")
        blocks = stack.unflatten(1, (size, -1))
        if self.order is not None:
            return blocks.roll(round(angle_deg * self.order / 360), dims=1).flatten(1, 2)
        matrix = fourier_turn(math.radians(angle_deg)).to(stack)
        return torch.einsum("jk,nk...->nj...", matrix, blocks).flatten(1, 2)

    def angle_deg(self, element: Element) -> float:
        """Of a turn by degrees, or of a quarter turn by its number; raises ValueError if the group has it not."""
        if isinstance(element, float):
            self.check_turn(element)
            return element
        if element not in self.quarter_turns:
            known = ", ".join(map(str, self.quarter_turns))
            raise ValueError(
                f"element is {element}: of the symmetries of the square, {self.name} has {known} (turns by 90 degrees "
                "times these)"
            )
        return 90.0 * element

    def check_turn(self, angle_deg: float) -> None:
        """Raises ValueError unless the group has this turn."""
        if self.order is None:
            return
        steps = angle_deg * self.order / 360
        if abs(steps - round(steps)) > 1e-6:
            nearest = round(steps) * 360 / self.order
            raise ValueError(
                f"angle_deg is {angle_deg:g}: {self.name} has the multiples of {360 / self.order:g} degrees, "
                f"such as {nearest:g}"
            )


class SteerableFeatures(OrientationFeatures):
    """Pooled fields [N, channels_per_field * C] to features [N, num_features], see `OrientationFeatures`.

    C is the width; so2 has no features "both".
    """

    def __init__(self, group: SteerableGroup, width: int, features: Features) -> None:
        super().__init__(group.channels_per_field, width, features)
        self.group = group
        if group.order is None:
            if features == "both":
                raise ValueError("features is 'both': so2's regular features begin with the means, use 'regular'")
            # Fourier coefficients begin with the means, so that "regular" has an invariant part as well.
            self.parts["inv"] = slice(0, width)
            if features == "regular":
                self.parts["equi"] = slice(width, self.num_features)

    def forward(self, stack: Tensor) -> Tensor:
        """[N, channels_per_field * C] to [N, num_features]."""
        return stack[:, self.parts["all"]] if self.group.order is None else super().forward(stack)

    def turn(self, angle_deg: float, features: Tensor) -> Tensor:
        """The features of an image turned counter-clockwise, from those of the image."""
        return self.move(partial(self.group.act_on_stack, angle_deg), features)


def steerable_group(name: str) -> SteerableGroup:
    """The group of this name."""
    if name == "so2":
        return SteerableGroup(name, None, 2 * MAX_FREQUENCY + 1, FOURIER_SAMPLES, tuple(range(TURNS)))
    found = re.fullmatch(r"c([1-9]\d*)", name)
    if found is None or not 2 <= int(found.group(1)) <= MAX_ORDER:
        raise ValueError(f"group is {name!r}: choose 'so2', or one of 'c2' to 'c{MAX_ORDER}', such as 'c8'")
    order = int(found.group(1))
    return SteerableGroup(name, order, order, order, tuple(turn for turn in range(TURNS) if turn * order % TURNS == 0))


def fourier_turn(angle_rad: float) -> Tensor:
    """How a turn acts on the 7 Fourier coefficients of a field, an orthogonal matrix float64 [7, 7]."""
    matrix = torch.eye(2 * MAX_FREQUENCY + 1, dtype=torch.float64)
    for frequency in range(1, MAX_FREQUENCY + 1):
        cosine, sine = math.cos(frequency * angle_rad), math.sin(frequency * angle_rad)
        pair = slice(2 * frequency - 1, 2 * frequency + 1)
        matrix[pair, pair] = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
    return matrix


def fourier_values() -> Tensor:
    """Values at 16 orientations of the functions with one Fourier coefficient 1, float64 [16, 7].

    Its columns are orthogonal and have squared length 16: its transpose, divided by 16, leads back.
    """
    angles = torch.arange(FOURIER_SAMPLES, dtype=torch.float64) * (2 * math.pi / FOURIER_SAMPLES)
    columns = [torch.ones_like(angles)]
    for frequency in range(1, MAX_FREQUENCY + 1):
        columns += [math.sqrt(2) * (frequency * angles).cos(), math.sqrt(2) * (frequency * angles).sin()]
    # Rounded, so that what quarter turns exchange is equal to the bit in every precision.
    return torch.stack(columns, dim=1).round(decimals=12)
