"""The 3DIEBench scene: camera, floor, sun and coloured spot light, and what a latent vector sets in it.

The world's z axis points up. The camera looks down at the origin from 45 degrees of elevation; the object hovers
around the origin over a floor at z = -1; a spot light on a sphere of radius 4 points at the origin; a wide sun stands
overhead. The constants are those of the released Blender scene of SIE (Garrido et al., ICML 2023, 3DIEBench).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_equi.geometry.latents import (
    LATENT_SIZE_WITH_TRANSLATION,
    TRANSLATION_COLUMNS,
    light_direction,
    quat_xyzw_from_latents,
)
from ssl_equi.geometry.rotations import quat_to_matrix
from ssl_equi.runtime.device_copies import constant

CAMERA_POSITION: tuple[float, float, float] = (0.0, 2.5 * math.sin(math.pi / 4), 2.5 * math.cos(math.pi / 4))
CAMERA_FIELD_OF_VIEW_RAD = 0.691111  # 39.6 degrees, horizontal and vertical
FLOOR_Z = -1.0
FLOOR_SATURATION, FLOOR_VALUE = 0.6, 0.6

SPOT_DISTANCE = 4.0
SPOT_HALF_ANGLE_RAD = math.pi / 16
SPOT_BLEND = 0.15  # share of the cone over which its edge fades
SPOT_SATURATION, SPOT_VALUE = 1.0, 0.8

# irradiance on a surface that faces the light; the spot's is that of 500 W at its distance from the origin
SPOT_IRRADIANCE = 500 / (4 * math.pi * SPOT_DISTANCE**2)
SUN_IRRADIANCE = 1.5
SKY_IRRADIANCE = 0.05 * math.pi

# nothing nearer to the camera or to the light than this is drawn
NEAR_DEPTH = 0.05


@dataclass(frozen=True)
class SceneSettings:
    """What is the same in every picture.

    resolution: height and width in pixels, at least 8
    supersampling: samples a pixel along each axis, on the object's outline and surface
    object_scale: diagonal of the object's bounding box in world units. 3DIEBench has 1.0, which fills 55 % of the
        frame; 1.3 gives small pictures 1.7 times the object pixels and still keeps an object at the origin within
        the frame. The translation is in world units and not multiplied by it: the centre stands at R t, as in
        3DIEBench-T, whatever the scale.
    """

    resolution: int = 64
    supersampling: int = 2
    object_scale: float = 1.3

    def __post_init__(self) -> None:
        if self.resolution < 8:
            raise ValueError(f"resolution is {self.resolution}: use at least 8 pixels")
        if self.supersampling < 1:
            raise ValueError(f"supersampling is {self.supersampling}: use at least 1 sample a pixel and axis")
        if not (math.isfinite(self.object_scale) and self.object_scale > 0):
            raise ValueError(f"object_scale is {self.object_scale}: use a positive number, 1.0 for 3DIEBench's size")

    @property
    def sample_resolution(self) -> int:
        """Height and width of the picture in samples."""
        return self.resolution * self.supersampling

    @property
    def light_map_resolution(self) -> int:
        """Height and width of the picture that the spot light takes of the object, for the shadows."""
        return max(64, self.resolution)

    @property
    def object_radius(self) -> float:
        """Radius (world units) of a sphere that holds the object, with 4 % to spare."""
        return 0.52 * self.object_scale


@dataclass(frozen=True)
class SceneParameters:
    """What the latents of n pictures set in their scenes; float32, in world units.

    rotation: [n, 3, 3], R of the object
    centre: [n, 3], where the object's centre stands, R t
    light_position: [n, 3]
    floor_color, light_color: [n, 3], linear RGB
    """

    rotation: Tensor
    centre: Tensor
    light_position: Tensor
    floor_color: Tensor
    light_color: Tensor


def scene_parameters(latents: Tensor) -> SceneParameters:
    """Parameters of latents [n, 7 or 10] (see ssl_equi.geometry.latents); a latent of 7 has no translation."""
    rotation = quat_to_matrix(quat_xyzw_from_latents(latents))
    floor_hue, light_theta_rad, light_phi_rad, light_hue = latents[:, 3:7].unbind(-1)
    if latents.shape[-1] == LATENT_SIZE_WITH_TRANSLATION:
        centre = (rotation @ latents[:, TRANSLATION_COLUMNS, None]).squeeze(-1)
    else:
        centre = torch.zeros_like(latents[:, :3])
    return SceneParameters(
        rotation=rotation.float(),
        centre=centre.float(),
        light_position=spot_position(light_theta_rad, light_phi_rad).float(),
        floor_color=rgb_from_hsv(floor_hue, FLOOR_SATURATION, FLOOR_VALUE).float(),
        light_color=rgb_from_hsv(light_hue, SPOT_SATURATION, SPOT_VALUE).float(),
    )


def spot_position(theta_rad: Tensor, phi_rad: Tensor) -> Tensor:
    """World position [..., 3] of the spot light: theta is the angle from the zenith, phi the azimuth from +x."""
    return SPOT_DISTANCE * light_direction(theta_rad, phi_rad)


def rgb_from_hsv(hue: Tensor, saturation: float, value: float) -> Tensor:
    """RGB [..., 3] of hues [...] (a full circle is 1), used as linear light, as Blender uses it."""
    shift = constant((5.0, 3.0, 1.0), hue.device, hue.dtype)
    k = (shift + 6 * hue[..., None]) % 6
    return value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1)


@dataclass(frozen=True)
class Cameras:
    """n pinhole cameras with square pictures.

    position: [n, 3], world units
    world_to_camera: [n, 3, 3]; its rows are the camera's right, up and forward directions in the world
    focal_px: [n], focal length in pixels
    resolution: height and width in pixels
    """

    position: Tensor
    world_to_camera: Tensor
    focal_px: Tensor
    resolution: int

    def pixel_from_world(self) -> Tensor:
        """Projections P [n, 3, 4] with P (X, 1) = depth * (x, y, 1).

        x runs to the right and y down, in pixels from the centre of the upper left pixel.
        """
        translation = -(self.world_to_camera * self.position[:, None, :]).sum(-1, keepdim=True)
        right, up, forward = torch.cat([self.world_to_camera, translation], dim=-1).unbind(1)
        focal_px = self.focal_px[:, None]
        principal_px = self.resolution / 2 - 0.5
        return torch.stack(
            [focal_px * right + principal_px * forward, -focal_px * up + principal_px * forward, forward], dim=1
        )

    def rays(self) -> Tensor:
        """World directions [n, 3, resolution, resolution] from the cameras to the pixel centres, of unit depth."""
        right_slope, up_slope = self._slopes()
        right, up, forward = self.world_to_camera[..., None, None].unbind(1)
        return right_slope[:, None] * right + up_slope[:, None] * up + forward

    def floor_inverse_depth(self) -> Tensor:
        """1 / depth of the floor [n, resolution, resolution] for cameras above it; 0 where they see none of it."""
        right_slope, up_slope = self._slopes()
        right_z, up_z, forward_z = self.world_to_camera[:, :, 2, None, None].unbind(1)
        height = (self.position[:, 2] - FLOOR_Z)[:, None, None]
        return (-(right_slope * (right_z / height) + (up_slope * up_z + forward_z) / height)).clamp(min=0)

    def _slopes(self) -> tuple[Tensor, Tensor]:
        """How far right [n, 1, resolution] and up [n, resolution, 1] a ray goes for a unit of depth."""
        offset_px = torch.arange(self.resolution, device=self.position.device) + 0.5 - self.resolution / 2
        slope = offset_px / self.focal_px[:, None]
        return slope[:, None, :], -slope[:, :, None]


def look_at(position: Tensor, target: Tensor) -> Tensor:
    """world_to_camera matrices [n, 3, 3] of upright cameras at `position` [n, 3] that look at `target` [n, 3].

    A camera that looks straight down or up has no upright direction: its picture has +y on top.
    """
    forward = torch.nn.functional.normalize(target - position, dim=-1)
    y_axis, z_axis = (constant(axis, position.device, position.dtype) for axis in ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    upright = torch.where(forward[:, 2:].abs() > 0.999, y_axis, z_axis)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, upright), dim=-1)
    return torch.stack([right, torch.linalg.cross(right, forward), forward], dim=1)


def main_camera(resolution: int, device: torch.device) -> Cameras:
    """The one camera (n = 1) that takes the pictures."""
    position = torch.tensor([CAMERA_POSITION], dtype=torch.float64)
    focal_px = torch.tensor([resolution / 2 / math.tan(CAMERA_FIELD_OF_VIEW_RAD / 2)])
    world_to_camera = look_at(position, torch.zeros_like(position))
    return Cameras(position.float().to(device), world_to_camera.float().to(device), focal_px.to(device), resolution)


def light_cameras(parameters: SceneParameters, settings: SceneSettings) -> Cameras:
    """One camera a scene, at the spot light, whose picture the object fills."""
    offset = parameters.centre - parameters.light_position
    # the limit matters only for objects that reach the light
    sine = (settings.object_radius / offset.norm(dim=-1)).clamp(max=0.99)
    focal_px = settings.light_map_resolution / 2 / sine.asin().tan()
    world_to_camera = look_at(parameters.light_position, parameters.centre)
    return Cameras(parameters.light_position, world_to_camera, focal_px, settings.light_map_resolution)
