"""The z-buffer rasteriser against a pixel-by-pixel reference."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_equi.scenes.rasteriser import (
    VisibleSurface,
    depth_buffer,
    expand_counts,
    rasterise,
    visible_surface,
)

NEAR = 0.05


def corners_from(points: np.ndarray) -> Tensor:
    """Rasteriser input [3, 3, T] of triangles [T, 3 (corners), 3 (x px, y px, depth)]."""
    x, y, depth = np.moveaxis(points, -1, 0)
    return torch.tensor(np.stack([x * depth, y * depth, depth]).swapaxes(1, 2), dtype=torch.float32)


def draw(
    points: np.ndarray, images: list[int], resolution: int, background: float = 0.0
) -> tuple[VisibleSurface, Tensor]:
    """Visible surface and depth buffer [images, resolution, resolution]."""
    count = max(images, default=0) + 1
    fragments = rasterise(corners_from(points), torch.tensor(images, dtype=torch.int64), resolution, NEAR)
    flat_background = torch.full((resolution**2,), background)
    depths = depth_buffer(fragments, flat_background.repeat(count))
    return visible_surface(fragments, flat_background, count), depths.view(count, resolution, resolution)


def winners(surface: VisibleSurface, images: int, resolution: int) -> np.ndarray:
    """Index of the visible triangle [images, resolution, resolution], -1 for the background."""
    flat = np.full(images * resolution**2, -1)
    flat[surface.pixel.numpy()] = surface.triangle.numpy()
    return flat.reshape(images, resolution, resolution)


def reference_pixel(triangle: np.ndarray, x: int, y: int) -> tuple[float, np.ndarray] | None:
    """1 / depth and perspective-correct weights at a pixel centre; None where the triangle does not cover it.

    The ray through the pixel is intersected with the triangle in space (pixel coordinates times depth).
    """
    in_space = np.stack([triangle[:, 0] * triangle[:, 2], triangle[:, 1] * triangle[:, 2], triangle[:, 2]])
    # sum of weight * corner = depth * (x, y, 1)
    weights_over_depth = np.linalg.solve(in_space, np.array([x, y, 1.0]))
    if weights_over_depth.min() < 0:
        return None
    inverse_depth = weights_over_depth.sum()
    return inverse_depth, weights_over_depth / inverse_depth


def random_triangles(count: int, resolution: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    middle = generator.uniform(-2, resolution + 2, size=(count, 1, 2))
    size = generator.choice([1.0, 4.0, 12.0], size=(count, 1, 1))
    xy = middle + size * generator.normal(size=(count, 3, 2))
    return np.concatenate([xy, generator.uniform(1, 5, size=(count, 3, 1))], axis=-1)


def test_nearest_triangle_depth_and_weights_match_a_pixel_by_pixel_reference() -> None:
    resolution, count = 12, 45
    triangles = random_triangles(count, resolution, seed=3)
    images = [index % 3 for index in range(count)]
    surface, depths = draw(triangles, images, resolution)

    weights = np.zeros((3, 3 * resolution**2))
    weights[:, surface.pixel.numpy()] = surface.weights.numpy()
    weights = weights.reshape(3, 3, resolution, resolution)
    found = winners(surface, 3, resolution)
    covered = 0
    for image, y, x in np.ndindex(3, resolution, resolution):
        hits = {t: reference_pixel(triangles[t], x, y) for t in range(count) if images[t] == image}
        hits = {t: hit for t, hit in hits.items() if hit is not None}
        if not hits:
            assert found[image, y, x] == -1 and depths[image, y, x] == 0
            continue
        covered += 1
        nearest = max(hits, key=lambda t: hits[t][0])
        assert found[image, y, x] == nearest
        assert depths[image, y, x].item() == pytest.approx(hits[nearest][0], rel=1e-4)
        np.testing.assert_allclose(weights[:, image, y, x], hits[nearest][1], atol=1e-3)
    assert 100 < covered < 3 * resolution**2


def test_visible_surface_and_depth_buffer_agree() -> None:
    surface, depths = draw(random_triangles(200, 16, seed=4), [0] * 200, 16)
    assert torch.equal(depths.flatten()[surface.pixel], surface.inverse_depth)
    assert torch.equal((depths.flatten() > 0).nonzero().squeeze(1), surface.pixel)
    assert surface.pixel.diff().min() > 0


@pytest.mark.parametrize("nearer", [0, 1])
def test_the_nearer_of_two_overlapping_triangles_wins_whatever_their_order(nearer: int) -> None:
    triangles = np.array([[[1, 1, 2.0], [9, 1, 2.0], [1, 9, 2.0]]] * 2)
    triangles[nearer, :, 2] = 1.5
    surface, _ = draw(triangles, [0, 0], 10)
    assert len(surface.pixel) > 20
    assert (surface.triangle == nearer).all()


def test_crossing_triangles_split_where_they_cross() -> None:
    # both cover the whole picture; one recedes to the right, the other, its mirror image, to the left
    x, y = np.array([-20.0, 40.0, 10.0]), np.array([-20.0, -20.0, 60.0])
    receding_right = np.column_stack([x, y, 1 / (0.5 - 0.005 * x)])
    receding_left = np.column_stack([x, y, 1 / (0.5 - 0.005 * (9 - x))])
    triangles = np.stack([receding_right, receding_left])
    surface, _ = draw(triangles, [0, 0], 10)
    found = winners(surface, 1, 10)[0]
    assert (found[:, :5] == 0).all() and (found[:, 5:] == 1).all()


def test_equally_near_triangles_are_decided_for_the_later_one() -> None:
    triangles = np.array([[[1, 1, 2.0], [9, 1, 2.0], [1, 9, 2.0]]] * 3)
    surface, _ = draw(triangles, [0, 0, 0], 10)
    assert (surface.triangle == 2).all()


def test_triangles_that_share_edges_leave_no_crack() -> None:
    # a fan around a pixel centre, whose spokes run through many other centres
    centre, resolution = np.array([16.0, 16.0]), 33
    angles = np.linspace(0, 2 * np.pi, 17)
    rim = centre + 60 * np.column_stack([np.cos(angles), np.sin(angles)])
    triangles = np.array([[[*centre, 2.0], [*rim[i], 2.0], [*rim[i + 1], 2.0]] for i in range(16)])
    surface, depths = draw(triangles, [0] * 16, resolution)
    assert len(surface.pixel) == resolution**2
    torch.testing.assert_close(depths, torch.full_like(depths, 0.5))


def test_the_background_hides_what_lies_behind_it() -> None:
    triangles = np.array([[[0, 0, 1.0], [19, 0, 1.0], [0, 19, 4.0]]])
    surface, depths = draw(triangles, [0], 10, background=0.8)
    assert depths.min() == torch.tensor(0.8)
    assert 0 < len(surface.pixel) < len(draw(triangles, [0], 10)[0].pixel)
    assert (surface.inverse_depth > 0.8).all()


def test_facing_is_told_from_the_corners_order() -> None:
    # counter-clockwise on the screen, where y runs down
    outside = np.array([[[1, 9, 2.0], [9, 9, 2.0], [1, 1, 2.0]]])
    assert not draw(outside, [0], 10)[0].seen_from_inside.any()
    assert draw(outside[:, ::-1], [0], 10)[0].seen_from_inside.all()


@pytest.mark.parametrize(
    "triangle",
    [
        [[1, 1, -2.0], [9, 1, 2.0], [1, 9, 2.0]],  # reaches behind the camera
        [[1, 1, 0.01], [9, 1, 0.01], [1, 9, 0.01]],  # nearer than the near plane
        [[1, 1, 0.0], [9, 1, 0.0], [1, 9, 0.0]],  # in the camera's plane
        [[-9, 1, 2.0], [-3, 1, 2.0], [-4, 9, 2.0]],  # left of the picture
        [[1, 31, 2.0], [9, 31, 2.0], [1, 39, 2.0]],  # below it
        [[1, 1, 2.0], [5, 5, 2.0], [9, 9, 2.0]],  # edge-on
        [[3, 3, 2.0], [3, 3, 2.0], [3, 3, 2.0]],  # a point
        [[np.nan, 1, 2.0], [9, 1, 2.0], [1, 9, 2.0]],
    ],
)
def test_triangles_that_cannot_be_seen_are_left_out(triangle: list[list[float]]) -> None:
    visible = [[1, 1, 2.0], [9, 1, 2.0], [1, 9, 2.0]]
    surface, _ = draw(np.array([triangle, visible]), [0, 0], 10)
    assert len(surface.pixel) > 20 and (surface.triangle == 1).all()
    assert len(draw(np.array([triangle]), [0], 10)[0].pixel) == 0


def test_no_triangles_leave_the_background() -> None:
    surface, depths = draw(np.zeros((0, 3, 3)), [], 8, background=0.25)
    assert len(surface.pixel) == 0 and (depths == 0.25).all()


def test_expand_counts_numbers_the_entries_of_each_owner() -> None:
    owner, rank = expand_counts(torch.tensor([2, 0, 3]))
    assert owner.tolist() == [0, 0, 2, 2, 2]
    assert rank.tolist() == [0, 1, 0, 1, 2]
