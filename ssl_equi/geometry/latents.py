"""The known parameters of a rendered view, in the order of the 3DIEBench and 3DIEBench-T files.

A 3DIEBench latent holds the first seven values, a 3DIEBench-T latent all ten. Angles are in radians. The translation
is in the object's own frame and applied before the rotation, so the object's centre stands at R t in the world.
"""

import math

import torch
from torch import Tensor

from ssl_equi.geometry.rotations import quat_from_euler_xyz, quat_positive

LATENT_NAMES: tuple[str, ...] = (
    "rotation_x",
    "rotation_y",
    "rotation_z",
    "floor_hue",
    "light_theta",
    "light_phi",
    "light_hue",
    "translation_x",
    "translation_y",
    "translation_z",
)

FURTHEST_TRANSLATION = 0.5  # of 3DIEBench-T, along each of an object's own axes, in world units

LATENT_RANGES: dict[str, tuple[float, float]] = {
    "rotation_x": (-math.pi / 2, math.pi / 2),
    "rotation_y": (-math.pi / 2, math.pi / 2),
    "rotation_z": (-math.pi / 2, math.pi / 2),
    "floor_hue": (0.0, 1.0),
    "light_theta": (0.0, math.pi / 4),
    "light_phi": (0.0, 2 * math.pi),
    "light_hue": (0.0, 1.0),
    "translation_x": (-FURTHEST_TRANSLATION, FURTHEST_TRANSLATION),
    "translation_y": (-FURTHEST_TRANSLATION, FURTHEST_TRANSLATION),
    "translation_z": (-FURTHEST_TRANSLATION, FURTHEST_TRANSLATION),
}

LATENT_SIZE = 7  # 3DIEBench
LATENT_SIZE_WITH_TRANSLATION = 10  # 3DIEBench-T

ROTATION_COLUMNS = (0, 1, 2)
LIGHT_DIRECTION_COLUMNS = (4, 5)
TRANSLATION_COLUMNS = slice(7, 10)


def quat_xyzw_from_latents(latents: Tensor) -> Tensor:
    """Pose quaternions [..., 4] of latents [..., 7 or 10], with w >= 0.

    Within the Euler box of 3DIEBench w is positive as it comes; for poses outside it (other splits, uniform rotations)
    the sign is changed where need be, so that relative rotations follow one rule everywhere.
    """
    if latents.shape[-1] not in (LATENT_SIZE, LATENT_SIZE_WITH_TRANSLATION):
        raise ValueError(
            f"latents have shape {tuple(latents.shape)}: the last dimension must be {LATENT_SIZE} (3DIEBench) "
            f"or {LATENT_SIZE_WITH_TRANSLATION} (3DIEBench-T)"
        )
    return quat_positive(quat_from_euler_xyz(latents[..., :3]))


def light_direction(theta_rad: Tensor, phi_rad: Tensor) -> Tensor:
    """Unit vectors [..., 3] from the world's origin to the light: theta from the zenith, phi the azimuth from +x."""
    sine = theta_rad.sin()
    return torch.stack([sine * phi_rad.cos(), sine * phi_rad.sin(), theta_rad.cos()], dim=-1)
