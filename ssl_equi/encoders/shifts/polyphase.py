"""Circular shifts of images, and where to put a grid on an image so that the grid moves along.

A grid of patches or windows of p x p places can lie on a map in p x p ways, its phases. Phase (a, b) is the set of
places whose row is a and whose column is b modulo p. Adaptive polyphase anchoring (Ding et al. 2023, arXiv:2306.07470)
takes the phase of largest energy and shifts the map circularly until that phase comes first. Two maps that are circular
shifts of each other are then equal up to a shift by whole patches, and whatever treats all patches alike commutes with
circular shifts.

The choice is not differentiated: gradients pass through the shift. It moves along unless two phases have the largest
energy. Such a tie goes to the first phase, row by row, and after a shift that phase may hold other content: then the
features of the two images differ. Photographs hardly ever tie; drawings of few grey values can, as can periodic
textures. Constant images tie, but no shift changes them. Values that differ from shift to shift by rounding can turn
near ties around too, so energies are added up in double precision where the device has it: near ties of images, which
no rounding has touched yet, then don't matter.
"""

import torch
from torch import Tensor

from ssl_equi.encoders.checks import check_at_least


def act_on_image(shift: tuple[int, int], images: Tensor) -> Tensor:
    """Moves images [..., H, W] down by shift[0] and to the right by shift[1] pixels; what leaves comes in opposite."""
    return images.roll(shift, dims=(-2, -1))


def phase_energies(maps: Tensor, period: int) -> Tensor:
    """Sums of squares over all channels and all places of a phase: [N, C, H, W] -> [N, period, period]."""
    if maps.ndim != 4:
        raise ValueError(f"maps have shape {tuple(maps.shape)}: anchoring takes [N, C, H, W]")
    if not maps.is_floating_point():
        raise ValueError(f"maps are of type {maps.dtype}: anchoring takes floating types, use maps.float()")
    check_at_least(1, period=period)
    count, _, height, width = maps.shape
    if height < 1 or width < 1 or height % period or width % period:
        legal = f"{nearest_multiple(height, period)} x {nearest_multiple(width, period)}"
        raise ValueError(
            f"maps of {height} x {width} have no phases of period {period}: the nearest legal size is {legal}"
        )
    # Half precision would overflow, and its sums tie.
    at_places = maps.detach().to(torch.promote_types(maps.dtype, torch.float32)).square().sum(dim=1)
    if maps.device.type != "mps":
        at_places = at_places.double()
    return at_places.reshape(count, height // period, period, width // period, period).sum(dim=(1, 3))


def phase_offsets(maps: Tensor, period: int) -> Tensor:
    """Row and column of the first place of the phase of largest energy: [N, C, H, W] -> [N, 2], in 0..period - 1."""
    phase = phase_energies(maps, period).flatten(1).argmax(dim=1)
    return torch.stack([phase // period, phase % period], dim=1)


def anchor(maps: Tensor, period: int) -> tuple[Tensor, Tensor]:
    """Shifts each map circularly so that its phase of largest energy comes first.

    If t is the shift of the maps and o the offsets before it, the offsets after it are (o + t) mod period, and the
    anchored maps move by floor((o + t) / period) whole periods.

    Args:
        maps: [N, C, H, W], of any floating type.
        period: side of a patch, or stride; it divides H and W.

    Returns:
        The anchored maps [N, C, H, W], whose place i is place i + offsets of the given ones; the offsets [N, 2].
    """
    offsets = phase_offsets(maps, period)
    return _shift(maps, offsets), offsets


def shift_back(maps: Tensor, offsets: Tensor) -> Tensor:
    """Undoes `anchor`: place i + offsets of the result is place i of the maps [N, C, H, W]."""
    return _shift(maps, -offsets)


def nearest_multiple(side: int, step: int) -> int:
    """The positive multiple of the step that is nearest to the side; of two, the larger."""
    return max(1, (2 * side + step) // (2 * step)) * step


def _shift(maps: Tensor, offsets: Tensor) -> Tensor:
    """Place i of the result is place i + offsets of the maps."""
    height, width = maps.shape[2:]
    rows = (torch.arange(height, device=maps.device) + offsets[:, :1]) % height
    columns = (torch.arange(width, device=maps.device) + offsets[:, 1:]) % width
    places = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    moved = maps.flatten(2).gather(2, places[:, None].expand(-1, maps.shape[1], -1))
    return moved.unflatten(2, (height, width))
