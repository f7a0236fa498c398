"""Sets of symmetries of square images, as `ssl_equi.evaluation.symmetry.errors` asks for them: of images, and of maps.

    c4                 quarter turns
    d4                 quarter turns and mirrorings
    circular_shifts    what leaves the image on one side comes in on the other
    rotations          turns by any angles, of what lies within the circle that touches the sides

The first three only move pixels, so they are exact. Rotations interpolate (bilinearly), which blurs: no encoder has
error 0 there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.encoders import symmetric
from ssl_equi.encoders.square.symmetries import ELEMENTS, TURNS, act_on_image

SymmetryName = Literal["c4", "d4", "circular_shifts", "rotations"]
DEFAULT_ANGLES_DEG = tuple(float(angle) for angle in range(15, 360, 15))


@dataclass(frozen=True)
class Element:
    """One symmetry other than the identity.

    Attributes:
        value: what encoders call it: number of the element of c4 or d4, (down, right) in pixels, or degrees
            counter-clockwise.
        name: what it does, in words.
        curve: the closed path of elements that it lies on, which is drawn as one curve.
        place_deg: where on that path, 0..360; for rotations the angle itself.
    """

    value: symmetric.Element
    name: str
    curve: str
    place_deg: float


@dataclass(frozen=True)
class ImageSymmetries:
    """A set of symmetries, and how they act."""

    name: SymmetryName
    image_side: int  # S, in pixels
    elements: tuple[Element, ...]  # all but the identity

    @property
    def exact(self) -> bool:
        """Whether elements only move pixels."""
        return self.name != "rotations"

    def prepare(self, images: Tensor) -> Tensor:
        """The images [..., S, S] that are compared: for rotations what lies within the circle, others as they are."""
        return images * _circle(images) if self.name == "rotations" else images

    def act(self, element: Element, maps: Tensor) -> Tensor:
        """The element acting on prepared images, or on maps of images, [N, C, h, h]; a new tensor of the same shape.

        Raises ValueError if it can't act on these maps; the message is a reason without the beginning of a sentence.
        """
        side = maps.shape[-1]
        if maps.shape[-2] != side:
            raise ValueError(f"maps of {maps.shape[-2]} x {side} cells are not square")
        value = element.value
        if isinstance(value, tuple):
            if any(step * side % self.image_side for step in value):
                raise ValueError(f"no shift moves its {side} x {side} cells by whole cells")
            return maps.roll([step * side // self.image_side for step in value], dims=(-2, -1))
        if isinstance(value, int):
            return act_on_image(value, maps)
        return _rotate(math.radians(value), maps) * _circle(maps)


def image_symmetries(
    name: SymmetryName,
    image_side: int,
    distances_px: Sequence[int] | None = None,
    all_shifts: bool = False,
    angles_deg: Sequence[float] = DEFAULT_ANGLES_DEG,
) -> ImageSymmetries:
    """The set of this name, for images of side S; ValueError if a distance or an angle is out of range.

    Args:
        distances_px: of circular_shifts, each down, to the right, and both at once; the multiples of S / 8 and what is
            one pixel more than them when not given, so that a stride's whole steps and others are among them.
        all_shifts: every circular shift, S^2 - 1 of them.
        angles_deg: of rotations, counter-clockwise.
    """
    if name not in get_args(SymmetryName):
        raise ValueError(f"there are no symmetries {name!r}: choose from {', '.join(get_args(SymmetryName))}")
    if image_side < 2:
        raise ValueError(f"the images' side is {image_side} pixels: symmetries need 2 or more")
    if name == "circular_shifts":
        return ImageSymmetries(name, image_side, _shifts(image_side, distances_px, all_shifts))
    if name == "rotations":
        wrong = [angle for angle in angles_deg if not 0 < angle < 360]
        if wrong or not angles_deg:
            raise ValueError(f"angles are {wrong or 'none'}: give degrees between 0 and 360, both left out")
        turns = (Element(float(angle), f"turned by {angle:g}°", "turned", float(angle)) for angle in sorted(angles_deg))
        return ImageSymmetries(name, image_side, tuple(turns))
    return ImageSymmetries(name, image_side, _square_symmetries(TURNS if name == "c4" else ELEMENTS))


def _square_symmetries(count: int) -> tuple[Element, ...]:
    elements = []
    for g in range(1, count):
        mirrored, turn_deg = g >= TURNS, 90 * (g % TURNS)
        turned = f"turned by {turn_deg}°"
        name = f"mirrored, {turned}" if mirrored and turn_deg else "mirrored" if mirrored else turned
        elements.append(Element(g, name, "mirrored and turned" if mirrored else "turned", float(turn_deg)))
    return tuple(elements)


def _shifts(side: int, distances_px: Sequence[int] | None, all_shifts: bool) -> tuple[Element, ...]:
    if distances_px is None:
        corners = {round(side * eighth / 8) for eighth in range(8)}
        distances_px = sorted({distance + extra for distance in corners for extra in (0, 1)} & set(range(1, side)))
    if not distances_px or min(distances_px) < 1 or max(distances_px) >= side:
        raise ValueError(f"shifts are {list(distances_px)}: give distances from 1 to {side - 1} pixels")
    if all_shifts:
        places = [(down, right) for down in range(side) for right in range(side) if (down, right) != (0, 0)]
    else:
        paths = ((0, 1), (1, 0), (1, 1))
        places = [(down * step, right * step) for down, right in paths for step in dict.fromkeys(distances_px)]
    elements = []
    for down, right in places:
        curve = "to the right" if down == 0 else "down" if right == 0 else "both" if down == right else "other shifts"
        name = f"moved down {down}, right {right}"
        elements.append(Element((down, right), name, curve, 360 * max(down, right) / side))
    return tuple(elements)


def _rotate(angle_rad: float, maps: Tensor) -> Tensor:
    """Turns maps [N, C, h, h] of any channels and precision counter-clockwise; bilinear, 0 outside."""
    cosine, sine = math.cos(angle_rad), math.sin(angle_rad)
    # Where each cell comes from: the opposite turn, in coordinates that run right and down.
    source = torch.tensor([[cosine, -sine, 0], [sine, cosine, 0]], dtype=maps.dtype, device=maps.device)
    grid = F.affine_grid(source.expand(len(maps), 2, 3), list(maps.shape), align_corners=False)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _circle(maps: Tensor) -> Tensor:
    """1 where a cell's centre lies in the circle that touches the sides, else 0; [h, w]."""
    rows, columns = (
        (2 * torch.arange(side, dtype=maps.dtype, device=maps.device) + 1) / side - 1 for side in maps.shape[-2:]
    )
    return (rows.square()[:, None] + columns.square() <= 1).to(maps.dtype)
