"""The shading model against independent formulas."""

import colorsys
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_equi.scenes.scene import (
    Cameras,
    SceneParameters,
    SceneSettings,
    light_cameras,
    look_at,
    main_camera,
    rgb_from_hsv,
    scene_parameters,
    spot_position,
)
from ssl_equi.scenes.shading import (
    LightMaps,
    cast_shadows,
    floor_radiance,
    make_light_maps,
    soften,
    spot_cone,
    srgb_from_linear,
    sun_shadow,
)

SETTINGS = SceneSettings()


def parameters_of(floor_hue: float, theta: float, phi: float, light_hue: float) -> SceneParameters:
    return scene_parameters(torch.tensor([[0, 0, 0, floor_hue, theta, phi, light_hue]], dtype=torch.float64))


def empty_light_maps(parameters: SceneParameters) -> LightMaps:
    cameras = light_cameras(parameters, SETTINGS)
    background = cameras.floor_inverse_depth().reshape(-1)
    return make_light_maps(background.clone(), background, cameras)


def expected_floor(point: np.ndarray, floor_hue: float, theta: float, phi: float, light_hue: float) -> np.ndarray:
    """Radiance of a matt floor below a unit-height object: sun with its soft shadow, sky, and an unblocked spot."""
    floor = np.array(colorsys.hsv_to_rgb(floor_hue, 0.6, 0.6))
    color = np.array(colorsys.hsv_to_rgb(light_hue, 1, 0.8))
    light = 4 * np.array([math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta)])
    to_light = light - point
    distance = np.linalg.norm(to_light)
    off_axis = math.acos(np.clip(to_light @ light / (4 * distance), -1, 1))
    edge = np.clip((math.cos(off_axis) - math.cos(math.pi / 16)) / ((1 - math.cos(math.pi / 16)) * 0.33), 0, 1)
    cone = 3 * edge**2 - 2 * edge**3
    spot = 500 / (4 * math.pi * distance**2) * to_light[2] / distance * cone
    shade = 0.168 * 1.3**2 / (1 + 1.5 * (point[0] ** 2 + point[1] ** 2)) ** 2
    return floor / math.pi * (1.5 * (1 - shade) + 0.05 * math.pi + spot * color)


@pytest.mark.parametrize("hues", [(0.0, 0.5), (0.3, 0.9), (0.71, 0.05), (1.0, 0.33)])
@pytest.mark.parametrize("angles", [(0.0, 0.0), (0.4, 1.0), (math.pi / 4, 4.0)])
def test_floor_is_lit_by_sun_sky_and_a_coloured_spot(hues: tuple[float, float], angles: tuple[float, float]) -> None:
    latent = (hues[0], *angles, hues[1])
    parameters = parameters_of(*latent)
    points = np.random.default_rng(0).uniform(-2.5, 2.5, size=(200, 3))
    points[:, 2] = -1
    found = floor_radiance(
        torch.tensor(points.T, dtype=torch.float32), parameters, empty_light_maps(parameters), SETTINGS
    )
    expected = np.array([expected_floor(point, *latent) for point in points])
    np.testing.assert_allclose(found[0].T.numpy(), expected, rtol=1e-3, atol=1e-4)
    assert expected.max() > 1.5 * expected.min()


def test_hsv_is_the_textbook_conversion() -> None:
    hues = torch.linspace(0, 1, 37, dtype=torch.float64)
    expected = [colorsys.hsv_to_rgb(hue, 0.6, 0.7) for hue in hues.tolist()]
    np.testing.assert_allclose(rgb_from_hsv(hues, 0.6, 0.7).numpy(), expected, atol=1e-12)


def test_srgb_golden_values() -> None:
    linear = torch.tensor([0.0, 0.002, 0.0031308, 0.18, 0.5, 1.0])
    expected = torch.tensor([0.0, 0.02584, 0.04045, 0.461356, 0.735357, 1.0])
    torch.testing.assert_close(srgb_from_linear(linear), expected, atol=2e-5, rtol=0)


def test_spot_cone_is_full_inside_fades_at_the_edge_and_ends_at_the_half_angle() -> None:
    angles = torch.linspace(0, 0.3, 301)
    share = spot_cone(angles.cos())
    assert share[0] == 1 and (share[angles > math.pi / 16 + 1e-3] == 0).all()
    assert (share.diff() <= 0).all()
    assert 0.05 < ((share > 0.01) & (share < 0.99)).float().mean() < 0.15


def test_spot_position_is_on_the_sphere_around_the_origin() -> None:
    theta, phi = torch.tensor([0.0, 0.5, 0.7]), torch.tensor([1.0, 0.0, math.pi / 2])
    expected = [[0, 0, 4], [4 * math.sin(0.5), 0, 4 * math.cos(0.5)], [0, 4 * math.sin(0.7), 4 * math.cos(0.7)]]
    torch.testing.assert_close(spot_position(theta, phi), torch.tensor(expected))


def test_main_camera_projects_like_a_pinhole() -> None:
    resolution = 64
    points = np.random.default_rng(1).uniform(-0.8, 0.8, size=(50, 3))
    x, y, z = points.T
    # at (0, 1.768, 1.768), looking at the origin: right is -x, up is (z - y) / sqrt 2
    depth = 2.5 - (y + z) / math.sqrt(2)
    focal_px = resolution / 2 / math.tan(0.691111 / 2)
    expected = np.stack(
        [
            31.5 - focal_px * x / depth,
            31.5 - focal_px * (z - y) / math.sqrt(2) / depth,
            depth,
        ]
    )
    projection = main_camera(resolution, torch.device("cpu")).pixel_from_world()[0].numpy()
    found = projection @ np.concatenate([points, np.ones((50, 1))], axis=1).T
    np.testing.assert_allclose(np.concatenate([found[:2] / found[2], found[2:]]), expected, rtol=1e-4)


def random_cameras(count: int) -> Cameras:
    generator = torch.Generator().manual_seed(0)
    position = torch.rand(count, 3, generator=generator) + torch.tensor([0.0, 0.0, 1.0])
    target = torch.rand(count, 3, generator=generator) - 1
    return Cameras(position, look_at(position, target), torch.full((count,), 20.0), 16)


def test_rays_meet_their_pixel_and_the_floor() -> None:
    cameras = random_cameras(5)
    rays = cameras.rays().reshape(5, 3, -1)
    inverse_depth = cameras.floor_inverse_depth().reshape(5, 1, -1)
    sees_floor = (inverse_depth > 0.05).expand(-1, 3, -1)
    floor = cameras.position[:, :, None] + rays / inverse_depth
    torch.testing.assert_close(floor[:, 2][sees_floor[:, 2]], torch.full((int(sees_floor[:, 2].sum()),), -1.0))

    homogeneous = torch.cat([floor, torch.ones_like(floor[:, :1])], dim=1)
    projected = cameras.pixel_from_world() @ homogeneous
    pixel = projected[:, :2] / projected[:, 2:]
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    expected = torch.stack([column, row]).reshape(1, 2, -1).expand(5, -1, -1)
    torch.testing.assert_close(pixel[sees_floor[:, :2]], expected[sees_floor[:, :2]], atol=1e-3, rtol=0)
    assert sees_floor.float().mean() > 0.5


def test_look_at_gives_right_handed_upright_views_and_survives_the_zenith() -> None:
    position = torch.tensor([[0.0, -3.0, 1.0], [0.0, 0.0, 4.0], [2.0, 2.0, 2.0]])
    matrices = look_at(position, torch.zeros(3, 3))
    torch.testing.assert_close(matrices @ matrices.transpose(1, 2), torch.eye(3).expand(3, 3, 3))
    right, up, forward = matrices.unbind(1)
    torch.testing.assert_close(torch.linalg.cross(right, up), -forward)
    torch.testing.assert_close(forward, -position / position.norm(dim=1, keepdim=True))
    torch.testing.assert_close(right[0], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(up[1], torch.tensor([0.0, 1.0, 0.0]))


def light_map_extent(translation: list[float]) -> Tensor:
    """Distance of 500 points of the object's sphere from the light map's middle, in half widths."""
    latent = torch.tensor([[0.3, 0.2, 0.1, 0, 0.5, 2.0, 0, *translation]], dtype=torch.float64)
    parameters = scene_parameters(latent)
    cameras = light_cameras(parameters, SETTINGS)
    direction = torch.nn.functional.normalize(torch.randn(3, 500, generator=torch.Generator().manual_seed(0)), dim=0)
    points = parameters.centre.t() + 0.5 * SETTINGS.object_scale * direction
    projected = cameras.pixel_from_world()[0] @ torch.cat([points, torch.ones(1, 500)])
    half = cameras.resolution / 2
    return ((projected[:2] / projected[2] - (half - 0.5)) / half).norm(dim=0)


@pytest.mark.parametrize("translation", [[0.0, 0.0, 0.0], [0.5, -0.5, 0.5], [-0.5, 0.5, 0.2]])
def test_the_light_map_holds_the_object_and_not_much_more(translation: list[float]) -> None:
    assert 0.85 < light_map_extent(translation).max() < 1


def test_sun_shadow_weakens_with_height_and_vanishes_under_the_floor() -> None:
    points = torch.tensor([[0.0, 3.0], [0.0, 0.0], [-1.0, -1.0]])
    heights = torch.tensor([-3.0, -1.0, -0.35, 0.0, 1.0, 5.0])
    centre = torch.stack([torch.zeros(6), torch.zeros(6), heights], dim=1)
    below = sun_shadow(points, centre, 1.3)[:, 0].tolist()
    assert below[3] == pytest.approx(0.168 * 1.3**2, rel=1e-5)
    assert below[0] == 0 and 0 < below[1] < below[2] < 1
    assert below[2] > below[3] > below[4] > below[5] > 0
    assert (sun_shadow(points, centre, 1.3)[1:, 1] < sun_shadow(points, centre, 1.3)[1:, 0]).all()


@pytest.mark.parametrize("resolution", [64, 128, 256])
def test_soften_keeps_the_sum_and_widens_with_the_resolution(resolution: int) -> None:
    point = torch.zeros(1, 1, resolution, resolution)
    point[0, 0, 20, 30] = 1
    blurred = soften(point)
    # 3 + (2 * resolution / 64 + 1) - 1 pixels along each axis
    width = 3 + 2 * resolution // 64
    assert int((blurred > 1e-6).sum()) == width**2
    assert blurred.sum().item() == pytest.approx(1, abs=1e-5) and blurred.min() >= 0
    torch.testing.assert_close(blurred[0, 0, 20 - 2 : 23, 30], blurred[0, 0, 20, 30 - 2 : 33])
    assert soften(torch.ones(1, 1, resolution, resolution)).max() <= 1 + 1e-5


def test_surfaces_behind_the_light_maps_depth_lie_in_shadow() -> None:
    parameters = parameters_of(0.0, 0.0, 0.0, 0.0)  # light at (0, 0, 4), looking down
    cameras = light_cameras(parameters, SETTINGS)
    # a blocker at a depth of 3.5 everywhere
    light_maps = LightMaps(torch.full((64 * 64,), 1 / 3.5), torch.zeros(1), cameras.pixel_from_world(), 64)
    heights = torch.tensor([0.9, 0.52, 0.45, 0.0])
    position = torch.stack([torch.full((4,), 0.1), torch.full((4,), 0.2), heights])
    image = torch.zeros(4, dtype=torch.int64)
    found = cast_shadows(torch.full((4,), 2.0), position, image, light_maps)
    torch.testing.assert_close(found, torch.tensor([2.0, 2.0, 0.0, 0.0]))
    assert (cast_shadows(torch.zeros(4), position, image, light_maps) == 0).all()
