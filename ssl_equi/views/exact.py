"""Exact views: transformations that move whole pixels, or negate them, and interpolate nothing.

All take images [N, 3, H, W], uint8 or float, and return the same shape and type on the same device. Row 0 is the top,
column 0 the left. What happens to each image is given, never drawn, and no value is read back from the device.
"""

import itertools

import torch
from torch import Tensor

from ssl_equi.runtime.device_copies import constant, copy_together

JIGSAW_PERMUTATIONS: tuple[tuple[int, ...], ...] = tuple(itertools.permutations(range(4)))
"""The 24 arrangements of a 2 x 2 grid, in lexicographic order: entry [p][i] is the piece that comes to place i.

Places and pieces are numbered 0 top left, 1 top right, 2 bottom left, 3 bottom right; [0] leaves all where they are.
"""


def quarter_turns(images: Tensor, turns: Tensor | int) -> Tensor:
    """Turns each image counter-clockwise by `turns` times 90 degrees, exactly as `torch.rot90` does.

    Args:
        images: [N, 3, S, S].
        turns: int64 [N], or one number for all; any integers, 4 is a whole turn.

    Raises:
        ValueError: the images are not square, or `turns` does not fit them.
    """
    check_images(images)
    if images.shape[2] != images.shape[3]:
        raise ValueError(
            f"quarter turns got images of {images.shape[2]} x {images.shape[3]} pixels: crop them to squares first"
        )
    if isinstance(turns, int):
        return torch.rot90(images, turns, dims=(2, 3))
    turns = _one_per_image(turns, images, torch.int64, "turns").remainder(4)
    images = torch.where(_per_image(turns % 2 == 1), torch.rot90(images, 1, dims=(2, 3)), images)
    return torch.where(_per_image(turns >= 2), images.flip(2, 3), images)


def flip_horizontally(images: Tensor, mask: Tensor | None = None) -> Tensor:
    """Swaps left and right: of all images, or of those where `mask`, bool [N], is true.

    Raises:
        ValueError: wrong images, or a mask of another shape or type.
    """
    return _flip(images, 3, mask)


def flip_vertically(images: Tensor, mask: Tensor | None = None) -> Tensor:
    """Swaps top and bottom: of all images, or of those where `mask`, bool [N], is true.

    Raises:
        ValueError: wrong images, or a mask of another shape or type.
    """
    return _flip(images, 2, mask)


def jigsaw(images: Tensor, permutation: Tensor) -> Tensor:
    """Cuts each image into 2 x 2 pieces and puts them together by an entry of `JIGSAW_PERMUTATIONS`.

    Args:
        images: [N, 3, H, W] with even H and W.
        permutation: int64 [N] of 0..23.

    Raises:
        ValueError: a side is odd, or `permutation` does not fit the images; values outside 0..23 are looked for when
            it is on the CPU.
    """
    check_images(images)
    check_even_sides(images, "a jigsaw of 2 x 2 pieces")
    if not permutation.is_cuda and permutation.numel() and not 0 <= permutation.min() <= permutation.max() < 24:
        raise ValueError(f"permutation has values {permutation.min()}..{permutation.max()}: use 0..23")
    permutation = _one_per_image(permutation, images, torch.int64, "permutation")
    count, channels, height, width = images.shape
    pieces = images.reshape(count, channels, 2, height // 2, 2, width // 2)
    pieces = pieces.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    piece_at_place = constant(JIGSAW_PERMUTATIONS, images.device, torch.int64)[permutation]
    moved = pieces[torch.arange(count, device=images.device).unsqueeze(1), piece_at_place]
    return moved.unflatten(1, (2, 2)).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def roll(images: Tensor, fraction_down: Tensor | float, fraction_right: Tensor | float) -> Tensor:
    """Moves each image periodically: what leaves at one side comes back at the other.

    Args:
        images: [N, 3, H, W].
        fraction_down: shift downwards as a fraction of H, rounded to whole pixels; [N], or one number for all.
        fraction_right: shift to the right as a fraction of W, likewise.

    Raises:
        ValueError: wrong images, or fractions of another shape.
    """
    check_images(images)
    for dim, fraction, name in ((2, fraction_down, "fraction_down"), (3, fraction_right, "fraction_right")):
        side = images.shape[dim]
        if not isinstance(fraction, Tensor):
            images = torch.roll(images, round(fraction * side), dim)
            continue
        fraction = _one_per_image(fraction, images, fraction.dtype, name)
        shift = (fraction * side).round().long()
        source = (torch.arange(side, device=images.device) - shift.unsqueeze(1)).remainder(side)
        images = torch.take_along_dim(images, source[:, None, :, None] if dim == 2 else source[:, None, None, :], dim)
    return images


def invert(images: Tensor) -> Tensor:
    """The negative: 1 - x for float images in [0, 1], 255 - x for uint8.

    Applied twice, uint8 images come back exactly, and so do floats that are multiples of 2^-24; others to 1e-7.

    Raises:
        ValueError: wrong images.
    """
    check_images(images)
    return 255 - images if images.dtype == torch.uint8 else 1 - images


def check_images(images: Tensor) -> None:
    """Raises ValueError unless `images` are uint8 or float of shape [N, 3, H, W]."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}: pass [N, 3, H, W]")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images have dtype {images.dtype}: pass uint8 or float images")


def check_even_sides(images: Tensor, what: str) -> None:
    """Raises ValueError unless height and width of [N, 3, H, W] are even; `what` names the transformation."""
    height, width = images.shape[2:]
    if height % 2 or width % 2:
        raise ValueError(f"{what} got images of {height} x {width} pixels: use even sides")


def _flip(images: Tensor, dim: int, mask: Tensor | None) -> Tensor:
    check_images(images)
    if mask is None:
        return images.flip(dim)
    mask = _one_per_image(mask, images, torch.bool, "mask")
    return torch.where(_per_image(mask), images.flip(dim), images)


def _one_per_image(values: Tensor, images: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """`values` on the device of the images, checked to be [N] of the type."""
    if values.shape != images.shape[:1] or values.dtype != dtype:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)} and dtype {values.dtype}: "
            f"pass {dtype} [{images.shape[0]}], one value an image"
        )
    return copy_together([values], images.device)[0]


def _per_image(values: Tensor) -> Tensor:
    """[N] as [N, 1, 1, 1]."""
    return values.view(-1, 1, 1, 1)
