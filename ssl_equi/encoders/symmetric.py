"""What an encoder offers whose features move in a known way when its images do."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Element = int | tuple[int, int] | float
"""A symmetry of the square by its number, a circular shift (down, right) in pixels, or a turn by degrees.

The type tells them apart: 90.0 is a turn by 90 degrees counter-clockwise, 1 is element 1 of the square, the same turn.
"""


@dataclass(frozen=True)
class Symmetries:
    """The symmetries of images under which an encoder is exact."""

    name: str
    """c4, d4, circular_shifts, or c8, so2 and others of steerable networks, of which the quarter turns are meant."""
    elements: Sequence[Element]
    """All of them; of circular shifts the two that generate them."""
    act: Callable[[Any, Tensor], Tensor]
    """(element, maps [..., h, w]) to moved maps of the same shape."""


class Symmetric(ABC):
    """f(g x) = act_on_features(g, f(x)), for images x, the encoder f and every element g of its symmetries.

    Methods raise ValueError for elements that the encoder has not, and for features or maps of other shapes.
    """

    symmetries: Symmetries

    @abstractmethod
    def act_on_features(self, element: Any, features: Tensor) -> Tensor:
        """The features of g x, from those of x: [N, num_features] to the same shape."""

    def act_on_layer(self, layer: str, element: Any, maps: Tensor) -> Tensor | None:
        """A layer's maps [N, C, h, h] of g x from those of x; None where nothing is known of them.

        Layers are named as in `feature_info`.
        """
        return None
