"""A batched z-buffer rasteriser in plain PyTorch: the same code on a CPU and on a GPU.

The triangles of all pictures are drawn together. A triangle is cut into its pixel rows, a row into the pixels whose
centres it covers (its fragments), and the nearest fragment of each pixel is kept. Each of these steps is a handful of
operations on flat tensors, one entry a triangle, a row or a fragment; no bounding box is searched in vain and no
Python loop runs over pictures or triangles.

Lists of values are kept as separate 1-D tensors, or as planes [values, entries], and never as [entries, values]:
`index_select` of such planes is about ten times as fast on a CPU as indexing with brackets.

Coordinates: x to the right, y down, in pixels, the centre of the upper left pixel at (0, 0). Depth grows away from
the camera. Buffers hold 1 / depth, which is linear over a triangle's picture; 0 is infinitely far.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# a triangle seen edge-on, with a picture smaller than this, practically never covers a pixel centre, and rounding
# would make a poor depth of it
MIN_AREA_PX = 1e-3
# how far outside a triangle, in barycentric coordinates, a pixel centre still counts as covered: rounding must not
# open cracks along shared edges
EDGE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class TriangleSetup:
    """K triangles that may cover a pixel centre, and what is linear over their pictures. All fields are [K].

    At dx pixels to the right of and dy below (x_first, y_first), the bounding box's first pixel, the barycentric
    coordinate (before the correction for perspective) of corner 1 is b1 + b1_dx * dx + b1_dy * dy, likewise for
    corner 2, and corner 0 has the rest to 1.
    """

    triangle: Tensor  # int64, index among the triangles given to `rasterise`
    image: Tensor  # int64
    x_first: Tensor
    y_first: Tensor
    width: Tensor
    height: Tensor
    b1: Tensor
    b1_dx: Tensor
    b1_dy: Tensor
    b2: Tensor
    b2_dx: Tensor
    b2_dy: Tensor
    inverse_depth_0: Tensor
    inverse_depth_1: Tensor
    inverse_depth_2: Tensor
    area_px: Tensor  # twice the signed area; negative for a face seen from outside (y runs down)


@dataclass(frozen=True)
class Fragments:
    """Pixels covered by triangles: K fragments, from R pixel rows of the triangles in `setup`.

    pixel: [K] int64, index into a flat [images * resolution * resolution] buffer
    inverse_depth: [K]
    row: [K] int64, the fragment's row; setup_of_row: [R] int64, the row's entry in `setup`
    """

    pixel: Tensor
    inverse_depth: Tensor
    row: Tensor
    setup_of_row: Tensor
    setup: TriangleSetup
    resolution: int


@dataclass(frozen=True)
class VisibleSurface:
    """The nearest triangle of every covered pixel, S entries ordered by pixel.

    pixel: [S] int64, index into a flat [images * resolution * resolution] buffer
    image, triangle: [S] int64
    inverse_depth: [S]
    weights: [3, S], perspective-correct barycentric coordinates of the triangle's corners
    area_px: [S], twice the signed area of the triangle's picture
    """

    pixel: Tensor
    image: Tensor
    triangle: Tensor
    inverse_depth: Tensor
    weights: Tensor
    area_px: Tensor

    @property
    def seen_from_inside(self) -> Tensor:
        """[S] bool, the corners run clockwise in the picture."""
        return self.area_px > 0


def expand_counts(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For counts [n] int64: the owner (0 .. n-1) of each of sum(counts) entries, and its rank within the owner."""
    # The size is read once; without it a GPU is waited for twice, the second time to check that no count is negative.
    owner = torch.repeat_interleave(counts, output_size=int(counts.sum()))
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(owner), device=counts.device) - first.index_select(0, owner)
    return owner, rank


def rasterise(corners: Tensor, image: Tensor, resolution: int, near_depth: float) -> Fragments:
    """Fragments of T triangles in square pictures.

    corners: [3 (x * depth, y * depth, depth), 3 (corners), T] float32, see `Cameras.pixel_from_world`
    image: [T] int64, the picture that each triangle belongs to
    near_depth: triangles that come nearer than this to the camera are left out whole
    """
    setup = _set_up_triangles(corners, image, resolution, near_depth)
    owner, row_offset = expand_counts(setup.height.long())
    dy = row_offset.float()

    def per_row(values: Tensor) -> Tensor:
        return values.index_select(0, owner)

    # barycentric coordinates at the row's left end in the bounding box
    b1_dx, b2_dx = per_row(setup.b1_dx), per_row(setup.b2_dx)
    b1 = torch.addcmul(per_row(setup.b1), per_row(setup.b1_dy), dy)
    b2 = torch.addcmul(per_row(setup.b2), per_row(setup.b2_dy), dy)
    first, last = _covered_span((b1, b2, 1 - b1 - b2), (b1_dx, b2_dx, -b1_dx - b2_dx), per_row(setup.width) - 1)

    inverse_depth_0 = per_row(setup.inverse_depth_0)
    delta_1 = per_row(setup.inverse_depth_1) - inverse_depth_0
    delta_2 = per_row(setup.inverse_depth_2) - inverse_depth_0
    inverse_depth_dx = b1_dx * delta_1 + b2_dx * delta_2
    inverse_depth_left = inverse_depth_0 + b1 * delta_1 + b2 * delta_2 + first * inverse_depth_dx
    left_pixel = (per_row(setup.image) * resolution + (per_row(setup.y_first) + dy).long()) * resolution
    left_pixel += (per_row(setup.x_first) + first).long()

    row, dx = expand_counts((last - first + 1).clamp(min=0).long())
    return Fragments(
        pixel=left_pixel.index_select(0, row) + dx,
        inverse_depth=torch.addcmul(
            inverse_depth_left.index_select(0, row), inverse_depth_dx.index_select(0, row), dx.float()
        ),
        row=row,
        setup_of_row=owner,
        setup=setup,
        resolution=resolution,
    )


def depth_buffer(fragments: Fragments, background: Tensor) -> Tensor:
    """Greatest inverse depth of each pixel: the nearest of the background [pixels] and the fragments."""
    return background.scatter_reduce(0, fragments.pixel, fragments.inverse_depth, "amax")


def visible_surface(fragments: Fragments, background: Tensor, num_images: int) -> VisibleSurface:
    """What is nearest at the pixels at which a fragment lies before the background.

    background: [resolution^2], inverse depths, the same for all pictures

    Depth and fragment number go through one integer z-buffer: the bits of a positive float, read as an integer, keep
    its order, so depth fills the upper half of a 64-bit key and the number (from 1; 0 is the background) the lower
    half. Equally near fragments are thereby decided in favour of the later triangle, on every device.
    """
    number = torch.arange(1, len(fragments.pixel) + 1, device=background.device)
    keys = (_ordered_bits(fragments.inverse_depth) << 32) + number
    background_keys = (_ordered_bits(background) << 32).repeat(num_images)
    nearest_keys = background_keys.scatter_reduce(0, fragments.pixel, keys, "amax")
    pixel = (nearest_keys > background_keys).nonzero().squeeze(1)
    winner = (nearest_keys.index_select(0, pixel) & 0xFFFFFFFF) - 1

    setup = fragments.setup
    entry = fragments.setup_of_row.index_select(0, fragments.row.index_select(0, winner))

    def per_pixel(values: Tensor) -> Tensor:
        return values.index_select(0, entry)

    inverse_depth = fragments.inverse_depth.index_select(0, winner)
    image = per_pixel(setup.image)
    in_image = pixel - image * fragments.resolution**2
    dx = (in_image % fragments.resolution).float() - per_pixel(setup.x_first)
    dy = (in_image // fragments.resolution).float() - per_pixel(setup.y_first)
    b1 = per_pixel(setup.b1) + per_pixel(setup.b1_dx) * dx + per_pixel(setup.b1_dy) * dy
    b2 = per_pixel(setup.b2) + per_pixel(setup.b2_dx) * dx + per_pixel(setup.b2_dy) * dy
    weight_1 = b1 * per_pixel(setup.inverse_depth_1) / inverse_depth
    weight_2 = b2 * per_pixel(setup.inverse_depth_2) / inverse_depth
    return VisibleSurface(
        pixel=pixel,
        image=image,
        triangle=per_pixel(setup.triangle),
        inverse_depth=inverse_depth,
        weights=torch.stack([1 - weight_1 - weight_2, weight_1, weight_2]),
        area_px=per_pixel(setup.area_px),
    )


def _set_up_triangles(corners: Tensor, image: Tensor, resolution: int, near_depth: float) -> TriangleSetup:
    depth = corners[2]
    inverse_depth = 1 / depth.clamp(min=near_depth)
    x, y = corners[0] * inverse_depth, corners[1] * inverse_depth
    x_first, x_last = _pixels_between(x, resolution)
    y_first, y_last = _pixels_between(y, resolution)
    area_px = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
    in_front = depth.amin(0) >= near_depth
    covers = in_front & (x_last >= x_first) & (y_last >= y_first) & (area_px.abs() > MIN_AREA_PX)

    kept = covers.nonzero().squeeze(1)
    x, y, inverse_depth = (plane.index_select(1, kept) for plane in (x, y, inverse_depth))
    x_first, x_last, y_first, y_last, area_px = (
        plane.index_select(0, kept) for plane in (x_first, x_last, y_first, y_last, area_px)
    )
    b1_dx, b1_dy = (y[2] - y[0]) / area_px, (x[0] - x[2]) / area_px
    b2_dx, b2_dy = (y[0] - y[1]) / area_px, (x[1] - x[0]) / area_px
    from_corner_x, from_corner_y = x_first - x[0], y_first - y[0]
    return TriangleSetup(
        triangle=kept,
        image=image.index_select(0, kept),
        x_first=x_first,
        y_first=y_first,
        width=x_last - x_first + 1,
        height=y_last - y_first + 1,
        b1=b1_dx * from_corner_x + b1_dy * from_corner_y,
        b1_dx=b1_dx,
        b1_dy=b1_dy,
        b2=b2_dx * from_corner_x + b2_dy * from_corner_y,
        b2_dx=b2_dx,
        b2_dy=b2_dy,
        inverse_depth_0=inverse_depth[0],
        inverse_depth_1=inverse_depth[1],
        inverse_depth_2=inverse_depth[2],
        area_px=area_px,
    )


def _pixels_between(positions: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """First and last pixel of the picture between the least and the greatest of positions [3, T]; each [T]."""
    first = positions.amin(0).ceil().clamp(0, resolution)
    last = positions.amax(0).floor().clamp(-1, resolution - 1)
    return first, last


def _covered_span(
    starts: tuple[Tensor, Tensor, Tensor], slopes: tuple[Tensor, Tensor, Tensor], last_in_box: Tensor
) -> tuple[Tensor, Tensor]:
    """First and last step k in 0 .. last_in_box at which all three start + slope * k >= 0; first > last if none is."""
    first = torch.zeros_like(last_in_box)
    last = last_in_box
    for start, slope in zip(starts, slopes):
        # a flat edge is given a tiny slope: it then cuts off the whole row, or nothing
        rising = slope > -1e-12
        crossing = -(start + EDGE_TOLERANCE) / torch.where(slope.abs() < 1e-12, 1e-12, slope)
        first = torch.where(rising, torch.maximum(first, crossing), first)
        last = torch.where(rising, last, torch.minimum(last, crossing))
    return first.ceil(), last.floor()


def _ordered_bits(values: Tensor) -> Tensor:
    """int64 whose order is that of the float32 values, which must not be negative."""
    return values.contiguous().view(torch.int32).long()
