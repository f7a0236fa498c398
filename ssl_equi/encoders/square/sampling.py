"""Where a strided convolution or pooling commutes with quarter turns and mirrorings, and which sizes of map it takes.

A window of k pixels that moves in steps of s over a map of n pixels with p pixels of padding on either side leaves
(n + 2 p - k) mod s pixels at the far end unused. Only if there are none do the sampled places form a grid that a
mirroring maps to itself; otherwise all equivariance is lost, not just some of it. So 3 x 3 windows of stride 2 with
padding 1 need an odd side, and 2 x 2, 4 x 4 (padding 1) and 6 x 6 (padding 2) windows of stride 2 an even one. With
stride 1, every side will do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ssl_equi.encoders.checks import check_at_least


@dataclass(frozen=True)
class Window:
    """The square window of a convolution or pooling; the padding is the same on all four sides."""

    name: str
    """What errors call the layer."""
    kernel_size: int
    stride: int = 1
    padding: int = 0

    def __post_init__(self) -> None:
        positive = {f"kernel_size of {self.name}": self.kernel_size, f"stride of {self.name}": self.stride}
        check_at_least(1, **positive)
        check_at_least(0, **{f"padding of {self.name}": self.padding})

    def keeps_symmetry(self, side: int) -> bool:
        """Whether the window fits on a map of this side and its last place touches the far border."""
        unused = side + 2 * self.padding - self.kernel_size
        return side > 0 and unused >= 0 and unused % self.stride == 0

    def side_after(self, side: int) -> int:
        """Side of the map that a map of this side becomes."""
        return (side + 2 * self.padding - self.kernel_size) // self.stride + 1

    def __str__(self) -> str:
        return f"{self.name} (kernel {self.kernel_size}, stride {self.stride}, padding {self.padding})"


def check_image_side(windows: Sequence[Window], side: int) -> None:
    """Raises ValueError unless the side of square images suits every window of a network.

    Args:
        windows: in the order in which the network applies them.
        side: of the images in pixels.
    """
    broken = _first_broken(windows, side)
    if broken is None:
        return
    window, map_side = broken
    legal = nearest_legal_side(windows, side)
    raise ValueError(
        f"images of {side} x {side} pixels break the symmetry in {window}, which gets a map of "
        f"{map_side} x {map_side}: the nearest legal size is {legal} x {legal}"
    )


def check_map(window: Window, height: int, width: int) -> None:
    """Raises ValueError, with the nearest legal side, unless both sides of a map suit one window."""
    for side in (height, width):
        if not window.keeps_symmetry(side):
            raise ValueError(
                f"a map of {height} x {width} breaks the symmetry in {window}: "
                f"the nearest legal side to {side} is {nearest_legal_side([window], side)}"
            )


def nearest_legal_side(windows: Sequence[Window], side: int) -> int:
    """The side nearest to this one that suits every window; of two that are equally near, the larger."""
    # The legal sides are all those from a smallest one on in steps of the product of the strides.
    smallest = 1
    for window in reversed(windows):
        smallest = (smallest - 1) * window.stride + window.kernel_size - 2 * window.padding
    step = math.prod(window.stride for window in windows)
    while _first_broken(windows, smallest) is not None:
        smallest += step
    return smallest + step * max(0, math.floor((side - smallest) / step + 0.5))


def _first_broken(windows: Sequence[Window], side: int) -> tuple[Window, int] | None:
    """The first window that breaks the symmetry and the side of the map that it gets."""
    for window in windows:
        if not window.keeps_symmetry(side):
            return window, side
        side = window.side_after(side)
    return None
