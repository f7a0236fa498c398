"""Light on the floor and on the object, in linear RGB, and its conversion to sRGB.

A model with closed formulas in place of path tracing, calibrated on Blender Cycles renderings of the same scene: the
spot light is exact for matt surfaces (cone, distance, shadow map); the wide sun, the sky and the light that the floor
throws back are smooth functions of the surface's direction and place. Pictures agree with Cycles to about 1 % on
average (8 x 8 blocks of the sRGB picture).

Planes: vectors are kept as [3, ...] or [n, 3, ...] tensors, so that every operation runs over long contiguous rows.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.runtime.device_copies import copy_together
from ssl_equi.scenes.rasteriser import VisibleSurface
from ssl_equi.scenes.scene import (
    FLOOR_Z,
    NEAR_DEPTH,
    SKY_IRRADIANCE,
    SPOT_BLEND,
    SPOT_DISTANCE,
    SPOT_HALF_ANGLE_RAD,
    SPOT_IRRADIANCE,
    SUN_IRRADIANCE,
    Cameras,
    SceneParameters,
    SceneSettings,
)

# Cycles' cone edge, as a smooth step over this multiple of the blended share of 1 - cos(half angle)
CONE_EDGE_WIDTH = 2.2
# the sun is half a hemisphere wide: surfaces turned away from the zenith still see part of it
SUN_WRAP = 0.6
SUN_FALLOFF_EXPONENT = 1.5
# what an object of unit size, one unit above the floor, takes from the sun on the floor below it
SUN_SHADOW_STRENGTH = 0.168
SUN_SHADOW_SPREAD = 1.5
# shares of the sun's and the spot's irradiance that come back from the floor, and are coloured by it
FLOOR_BOUNCE_SUN = 0.6
FLOOR_BOUNCE_SPOT = 0.12
SPECULAR_STRENGTH = 0.25
SPECULAR_EXPONENT = 30
# a surface is looked up in the light map a little off itself and a little nearer, or it would shadow itself
SHADOW_NORMAL_OFFSET = 0.012
SHADOW_DEPTH_BIAS = 0.014


@dataclass(frozen=True)
class LightMaps:
    """What the spot lights see: n pictures of the objects from the lights.

    inverse_depth: [n * resolution^2], the nearer of object and floor
    floor_shadow: [n, 1, resolution, resolution], share of the spot's light that the object takes, with soft edges
    pixel_from_world: [n, 3, 4]
    """

    inverse_depth: Tensor
    floor_shadow: Tensor
    pixel_from_world: Tensor
    resolution: int


def make_light_maps(inverse_depth: Tensor, background: Tensor, cameras: Cameras) -> LightMaps:
    """Light maps of a depth buffer [n * resolution^2] and the floor's inverse depth that it started from."""
    resolution = cameras.resolution
    blocked = (inverse_depth > background).float().view(-1, 1, resolution, resolution)
    return LightMaps(inverse_depth, soften(blocked), cameras.pixel_from_world(), resolution)


def soften(pictures: Tensor) -> Tensor:
    """Blur [n, 1, h, w]: a box of 3 pixels and one of 2 * (w // 64) + 1, which keeps its width in the world."""
    narrow, wide = 3, 2 * (pictures.shape[-1] // 64) + 1
    # the two boxes one after the other are one trapezoid
    trapezoid = F.conv1d(torch.ones(1, 1, wide), torch.ones(1, 1, narrow), padding=narrow - 1)
    (kernel,) = copy_together([trapezoid[None] / trapezoid.sum()], pictures.device)
    margin = kernel.shape[-1] // 2
    rows_blurred = F.conv2d(pictures, kernel, padding=(0, margin))
    return F.conv2d(rows_blurred, kernel.transpose(2, 3), padding=(margin, 0))


def spot_cone(cosine: Tensor) -> Tensor:
    """Share of the spot's light that leaves it at an angle (given by its cosine) from the axis: 1 inside, 0 outside."""
    edge_cosine = math.cos(SPOT_HALF_ANGLE_RAD)
    edge_width = (1 - edge_cosine) * SPOT_BLEND * CONE_EDGE_WIDTH
    step = ((cosine - edge_cosine) / edge_width).clamp(0, 1)
    return step * step * (3 - 2 * step)


def floor_radiance(
    points: Tensor, parameters: SceneParameters, light_maps: LightMaps, settings: SceneSettings
) -> Tensor:
    """Light [n, 3, p] that p floor points send to the camera in each of n scenes.

    points: [3, p], world positions with z = FLOOR_Z
    """
    light = parameters.light_position
    # light-map coordinates of each point and light . point, [n, 1] * [p] + ... for each
    rows = [*light_maps.pixel_from_world.unbind(1), F.pad(light, (0, 1))]
    x_depth, y_depth, depth, light_dot_point = (
        torch.addcmul(row[:, 2:3] * FLOOR_Z + row[:, 3:4], row[:, 0:1], points[0]).addcmul_(row[:, 1:2], points[1])
        for row in rows
    )
    inverse_distance = (SPOT_DISTANCE**2 - 2 * light_dot_point + points.square().sum(0)).rsqrt()
    axis_cosine = (SPOT_DISTANCE**2 - light_dot_point) * (inverse_distance / SPOT_DISTANCE)
    light_height = light[:, 2:] - FLOOR_Z
    spot = spot_cone(axis_cosine) * inverse_distance**3 * (light_height * SPOT_DISTANCE**2 * SPOT_IRRADIANCE)

    # from pixels to the -1 .. 1 of grid_sample
    to_grid = 2 / light_maps.resolution / depth.clamp(min=NEAR_DEPTH)
    offset = 1 / light_maps.resolution - 1
    grid = torch.stack([x_depth * to_grid + offset, y_depth * to_grid + offset], dim=-1)
    shadow = F.grid_sample(light_maps.floor_shadow, grid[:, None], align_corners=False)[:, 0, 0]
    spot = spot * (1 - shadow)

    daylight = SUN_IRRADIANCE * (1 - sun_shadow(points, parameters.centre, settings.object_scale)) + SKY_IRRADIANCE
    albedo = parameters.floor_color / math.pi
    return albedo[:, :, None] * daylight[:, None] + (albedo * parameters.light_color)[:, :, None] * spot[:, None]


def sun_shadow(floor_points: Tensor, centre: Tensor, object_scale: float) -> Tensor:
    """Share [n, p] of the sun's light that objects at `centre` [n, 3] take from floor points [3, p].

    The shadow of a ball under a wide light: it widens with the height and weakens with its square. It does not grow
    any more once the object sits on the floor, and vanishes while the object sinks below it.
    """
    radius = object_scale / 2
    height = centre[:, 2:] - FLOOR_Z
    share_above_floor = ((height + radius) / (2 * radius)).clamp(0, 1)
    height = height.clamp(min=radius)
    distance_squared = (floor_points[0] - centre[:, :1]).square() + (floor_points[1] - centre[:, 1:2]).square()
    strength = SUN_SHADOW_STRENGTH * share_above_floor * (object_scale / height).square()
    return strength / (1 + SUN_SHADOW_SPREAD / height.square() * distance_squared).square()


def object_radiance(
    surface: VisibleSurface,
    rays: Tensor,
    camera_position: Tensor,
    normals: Tensor,
    albedo: Tensor,
    parameters: SceneParameters,
    light_maps: LightMaps,
    settings: SceneSettings,
) -> Tensor:
    """Light [3, S] that the visible samples of the objects send to the camera.

    rays: [3, S], directions of unit depth from the camera; camera_position: [3]
    normals: [3, S], in the world, of any length and on the outer side of the surface
    albedo: [3, S], linear
    """

    def per_sample(values: Tensor) -> Tensor:
        """Planes [k, S] of what [n, k] says of each picture."""
        return values.t().contiguous().index_select(1, surface.image)

    position = torch.addcmul(camera_position[:, None], rays, 1 / surface.inverse_depth)
    to_camera = -_unit(rays)
    # the inner side of an open surface is lit like an outer one
    normal = torch.where(surface.seen_from_inside, -1.0, 1.0) * _unit(normals)

    light = per_sample(parameters.light_position)
    to_light = light - position
    inverse_distance = to_light.square().sum(0).rsqrt()
    to_light = to_light * inverse_distance
    axis_cosine = (to_light * light).sum(0) / SPOT_DISTANCE
    facing = (to_light * normal).sum(0).clamp(min=0)
    spot = spot_cone(axis_cosine) * facing * (SPOT_DISTANCE * inverse_distance).square()
    spot = cast_shadows(spot, position + SHADOW_NORMAL_OFFSET * normal, surface.image, light_maps)

    upward = normal[2]
    sun = ((upward + SUN_WRAP) / (1 + SUN_WRAP)).clamp(min=0) ** SUN_FALLOFF_EXPONENT
    height = position[2] - per_sample(parameters.centre[:, 2:])[0]
    # the object's lower parts see less of the sun, for its upper parts are in the way
    unoccluded = 0.75 + 0.25 * (2 / settings.object_scale * height + 0.3).clamp(-1, 1)
    from_above = SUN_IRRADIANCE * sun * unoccluded + SKY_IRRADIANCE / 2 * (1 + upward)
    bounced_daylight = FLOOR_BOUNCE_SUN * SUN_IRRADIANCE + SKY_IRRADIANCE
    bounced_spot = FLOOR_BOUNCE_SPOT * SPOT_IRRADIANCE * parameters.light_color
    floor_bounce = parameters.floor_color * (bounced_daylight + bounced_spot)
    light_color = per_sample(parameters.light_color)
    irradiance = from_above + per_sample(floor_bounce / 2) * (1 - upward) + (SPOT_IRRADIANCE * spot) * light_color

    halfway = _unit(to_light + to_camera)
    glance = (halfway * normal).sum(0).clamp(min=0)
    specular = SPECULAR_STRENGTH * glance**SPECULAR_EXPONENT * spot
    return albedo / math.pi * irradiance + specular * light_color


def _unit(vectors: Tensor) -> Tensor:
    """Vectors [3, S] scaled to length 1 (several times as fast as `F.normalize` along the first dimension)."""
    return vectors * (vectors.square().sum(0) + 1e-12).rsqrt()


def cast_shadows(spot: Tensor, position: Tensor, image: Tensor, light_maps: LightMaps) -> Tensor:
    """Spot light [S] at positions [3, S] of pictures [S], less what lies in shadow.

    Percentage-closer filtering (Reeves et al., SIGGRAPH 1987): the four nearest light-map pixels are each compared
    with the depth, and the answers interpolated. Only samples that the spot reaches are looked up.
    """
    lit = (spot > 1e-4).nonzero().squeeze(1)
    position, image = position.index_select(1, lit), image.index_select(0, lit)
    resolution = light_maps.resolution
    projection = light_maps.pixel_from_world.permute(1, 2, 0).reshape(12, -1).index_select(1, image).view(3, 4, -1)
    x_depth, y_depth, depth = (
        row[0] * position[0] + row[1] * position[1] + row[2] * position[2] + row[3] for row in projection
    )
    inverse_depth = 1 / depth.clamp(min=NEAR_DEPTH)
    x, y = x_depth * inverse_depth, y_depth * inverse_depth
    x_left, y_top = x.floor(), y.floor()
    x_share, y_share = x - x_left, y - y_top
    limit = 1 / (depth - SHADOW_DEPTH_BIAS).clamp(min=NEAR_DEPTH)

    visible = torch.zeros_like(limit)
    for y_step, y_weight in ((0, 1 - y_share), (1, y_share)):
        row_start = (image * resolution + (y_top + y_step).clamp(0, resolution - 1).long()) * resolution
        for x_step, x_weight in ((0, 1 - x_share), (1, x_share)):
            pixel = row_start + (x_left + x_step).clamp(0, resolution - 1).long()
            unblocked = light_maps.inverse_depth.index_select(0, pixel) <= limit
            visible += unblocked * (x_weight * y_weight)
    return spot.index_copy(0, lit, spot.index_select(0, lit) * visible)


def srgb_from_linear(linear: Tensor) -> Tensor:
    """The sRGB transfer curve (IEC 61966-2-1) of linear light in [0, 1]."""
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055)
