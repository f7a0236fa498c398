"""Glimpses of an image: where a gaze rests, and the pixels around there.

A fixation is a pixel (row, column), row 0 at the top; it is drawn from a saliency map, and the surroundings of earlier
fixations are not looked at again (inhibition of return). A glimpse is the square of pixels around a fixation, copied as
they are.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.runtime.device_copies import constant

InhibitionShape = Literal["circle", "square", "none"]


@dataclass(frozen=True)
class Inhibition:
    """Where the gaze does not return to.

    Raises:
        ValueError: an unknown shape, or a negative radius.
    """

    shape: InhibitionShape = "circle"
    """circle (seq-JEPA's paper): pixels within the radius; square (its released code): pixels within the radius both
    up or down and left or right; none."""
    radius_px: int = 16
    """Pixels; 0 inhibits the fixated pixel only."""

    def __post_init__(self) -> None:
        if self.shape not in ("circle", "square", "none"):
            raise ValueError(f"the inhibition's shape is {self.shape!r}: choose circle, square or none")
        if self.radius_px < 0:
            raise ValueError(f"the inhibition's radius is {self.radius_px} pixels: give 0 or more, such as 16")


def take_glimpses(
    images: Tensor,
    saliency: Tensor,
    uniforms: Tensor,
    *,
    size: int,
    inhibition: Inhibition = Inhibition(),
    transposed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Draws fixations and cuts out the glimpses there: see `draw_fixations` and `extract_glimpses`.

    Args:
        images: [N, C, H, W].
        saliency: [N, H, W].
        uniforms: [N, K].

    Returns:
        glimpses [N, K, C, size, size] and fixations int64 [N, K, 2].

    Raises:
        ValueError: as these two, or saliency of another size or number than the images.
    """
    if images.ndim != 4 or saliency.shape != (len(images), *images.shape[2:]):
        raise ValueError(
            f"saliency has shape {tuple(saliency.shape)} for images {tuple(images.shape)}: pass [N, H, W] for "
            "[N, C, H, W], one value a pixel"
        )
    fixations = draw_fixations(saliency, uniforms, inhibition).to(images.device)
    return extract_glimpses(images, fixations, size, transposed=transposed), fixations


def draw_fixations(saliency: Tensor, uniforms: Tensor, inhibition: Inhibition = Inhibition()) -> Tensor:
    """Draws fixations one after another, each from the saliency that earlier ones left.

    Each takes its own uniform number through the inverse of the cumulative distribution over the pixels in reading
    order, so the same numbers give the same fixations in any batch and on any device: the weights are rounded to whole
    numbers, whose sums are exact in float64.

    A pixel without saliency keeps one unit of that rounding, less than a billionth of the largest value. So where no
    saliency is left, the fixation is drawn uniformly from the pixels that are not inhibited, and a map of zeros is a
    uniform one. Where no pixel is left at all, inhibition is lifted for this fixation. For a gaze that ignores
    saliency, pass a map of ones: inhibition acts on it all the same.

    Args:
        saliency: [N, H, W], finite and not negative; sums do not matter.
        uniforms: [N, K], numbers in [0, 1), best float64.
        inhibition: which pixels an earlier fixation takes out.

    Returns:
        int64 [N, K, 2], (row, column), on the device of the saliency.

    Raises:
        ValueError: shapes that do not go together, or a radius at which a fixation in the middle inhibits the whole
            image. Values are looked at when they are on the CPU.
    """
    _check_draw(saliency, uniforms, inhibition)
    height, width = saliency.shape[1:]
    everywhere = _whole_weights(saliency)
    left = everywhere.clone()
    rows = torch.arange(height, device=saliency.device).view(1, height, 1)
    columns = torch.arange(width, device=saliency.device).view(1, 1, width)
    fixations = []
    for uniform in uniforms.to(device=saliency.device, dtype=torch.float64).split(1, dim=1):
        fixation = _draw_pixel(left, everywhere, uniform)
        fixations.append(fixation)
        row, column = fixation.view(-1, 2, 1, 1).unbind(dim=1)
        if inhibition.shape != "none":
            left.masked_fill_(_near(rows - row, columns - column, inhibition), 0)
    return torch.stack(fixations, dim=1)


def extract_glimpses(images: Tensor, fixations: Tensor, size: int, *, transposed: bool = False) -> Tensor:
    """The squares of `size` pixels around the fixations: pixels copied, zeros outside of the image.

    An odd square has its fixation in the middle; of an even one, whose middle lies between four pixels, the fixation is
    the lower right of the four. Gradients flow back to the images.

    Args:
        images: [N, C, H, W].
        fixations: integers [N, K, 2], (row, column).
        size: side in pixels, 1 or more.
        transposed: takes (row, column) for (column, row), as seq-JEPA's released code does: a glimpse then shows
            another place than the one that was drawn, zeros where that place lies off the image.

    Returns:
        [N, K, C, size, size] of the images' type.

    Raises:
        ValueError: wrong shapes or types, a size below 1, or fixations off the image. The last is looked at when they
            are on the CPU; elsewhere they must lie on the image.
    """
    if images.ndim != 4:
        raise ValueError(f"images have shape {tuple(images.shape)}: pass [N, C, H, W]")
    if size < 1:
        raise ValueError(f"the size of a glimpse is {size}: give a side of at least 1 pixel")
    _check_fixations(fixations, images)
    rows, columns = fixations.to(images.device).unbind(dim=2)
    height, width = images.shape[2:]
    beyond = 0
    if transposed:
        rows, columns = columns, rows
        beyond = abs(height - width)
    before, after = size // 2, size - 1 - size // 2
    padded = F.pad(images, (before, after + beyond, before, after + beyond))
    steps = torch.arange(size, device=images.device)
    # The glimpse begins `before` pixels ahead of the fixation, which is the fixation itself in padded coordinates.
    image_numbers = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
    glimpse_rows = (rows.unsqueeze(2) + steps).unsqueeze(3)
    glimpse_columns = (columns.unsqueeze(2) + steps).unsqueeze(2)
    return padded.permute(0, 2, 3, 1)[image_numbers, glimpse_rows, glimpse_columns].permute(0, 1, 4, 2, 3)


def fixation_positions(fixations: Tensor, height: int, width: int) -> Tensor:
    """Where the fixations [..., 2] lie, in units of the image's sides: float32 (row / height, column / width).

    The action from one glimpse to another is the difference of their positions.
    """
    return fixations / constant((height, width), fixations.device)


def _check_draw(saliency: Tensor, uniforms: Tensor, inhibition: Inhibition) -> None:
    if saliency.ndim != 3 or not saliency.is_floating_point():
        raise ValueError(f"saliency has shape {tuple(saliency.shape)} and type {saliency.dtype}: pass floats [N, H, W]")
    if uniforms.ndim != 2 or len(uniforms) != len(saliency) or not uniforms.is_floating_point():
        raise ValueError(
            f"uniforms have shape {tuple(uniforms.shape)} and type {uniforms.dtype}: pass floats [{len(saliency)}, K], "
            "one number a fixation"
        )
    if uniforms.shape[1] < 1:
        raise ValueError("uniforms hold no number for any fixation: pass [N, K] with K of at least 1")
    if not uniforms.is_cuda and uniforms.numel() and not bool(((uniforms >= 0) & (uniforms < 1)).all()):
        raise ValueError(f"uniforms have values {uniforms.min():g}..{uniforms.max():g}: pass numbers from 0 to below 1")
    if not saliency.is_cuda and not bool((saliency.isfinite() & (saliency >= 0)).all()):
        raise ValueError("saliency has negative or non-finite values: pass densities, see normalise_saliency")
    height, width = saliency.shape[1:]
    # From a corner, the farthest pixel is the opposite corner; from the centre only half as far.
    farthest = math.hypot(height // 2, width // 2) if inhibition.shape == "circle" else max(height // 2, width // 2)
    if inhibition.shape != "none" and inhibition.radius_px >= farthest:
        raise ValueError(
            f"an inhibition radius of {inhibition.radius_px} pixels leaves nothing of an image of {height} x {width} "
            f"pixels after a look at its middle: give less than {math.ceil(farthest)}"
        )


def _check_fixations(fixations: Tensor, images: Tensor) -> None:
    if fixations.ndim != 3 or fixations.shape[::2] != (len(images), 2) or fixations.is_floating_point():
        raise ValueError(
            f"fixations have shape {tuple(fixations.shape)} and type {fixations.dtype}: pass integers "
            f"[{len(images)}, K, 2], row and column"
        )
    if fixations.is_cuda:
        return
    height, width = images.shape[2:]
    off = (fixations < 0).any(dim=2) | (fixations[..., 0] >= height) | (fixations[..., 1] >= width)
    if bool(off.any()):
        image, number = off.nonzero()[0].tolist()
        row, column = fixations[image, number].tolist()
        raise ValueError(
            f"fixation {number} of image {image} is row {row}, column {column}, off the image of {height} x {width} "
            f"pixels: give rows of 0..{height - 1} and columns of 0..{width - 1}"
        )


def _whole_weights(saliency: Tensor) -> Tensor:
    """[N, H, W] as float64 whole numbers from 1, in proportion to the saliency, that sum to less than 2^53."""
    largest = saliency.amax(dim=(1, 2), keepdim=True).double()
    share = torch.where(largest > 0, saliency / largest, 0)
    pixels = saliency.shape[1] * saliency.shape[2]
    return torch.round(share * 2.0 ** (51 - math.ceil(math.log2(pixels)))) + 1


def _draw_pixel(left: Tensor, everywhere: Tensor, uniform: Tensor) -> Tensor:
    """(row, column) int64 [N, 2] of the pixels in which the shares `uniform` [N, 1] of the weights' sums fall.

    Args:
        left: weights [N, H, W] of whole numbers; a pixel of weight 0 is never drawn.
        everywhere: weights that stand in where nothing is left.
    """
    rows_left = left.sum(dim=2)
    nothing_left = rows_left.sum(dim=1, keepdim=True) == 0
    by_row = torch.where(nothing_left, everywhere.sum(dim=2), rows_left).cumsum(dim=1)
    total = by_row[:, -1:]
    # A whole number below the sum: each pixel takes those from the sum of the weights before it to below that with it.
    share = torch.minimum(torch.floor(uniform * total), total - 1)
    row = torch.searchsorted(by_row, share, right=True)
    share = share - torch.where(row > 0, by_row.gather(1, (row - 1).clamp(min=0)), 0)
    images = torch.arange(len(left), device=left.device)
    by_column = torch.where(nothing_left, everywhere[images, row[:, 0]], left[images, row[:, 0]]).cumsum(dim=1)
    return torch.cat([row, torch.searchsorted(by_column, share, right=True)], dim=1)


def _near(rows_away: Tensor, columns_away: Tensor, inhibition: Inhibition) -> Tensor:
    """bool [N, H, W]: pixels that a fixation inhibits, from distances [N, H, 1] and [N, 1, W]."""
    radius_squared = inhibition.radius_px**2
    if inhibition.shape == "circle":
        reach_squared = radius_squared - rows_away.square()
    else:
        reach_squared = torch.where(rows_away.abs() <= inhibition.radius_px, radius_squared, -1)
    return columns_away.square() <= reach_squared
