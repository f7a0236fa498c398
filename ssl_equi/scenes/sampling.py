"""Random latents of rendered views."""

import math
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_equi.geometry.latents import (
    LATENT_NAMES,
    LATENT_RANGES,
    LATENT_SIZE,
    LATENT_SIZE_WITH_TRANSLATION,
    ROTATION_COLUMNS,
    TRANSLATION_COLUMNS,
)
from ssl_equi.geometry.rotations import euler_xyz_from_matrix, quat_normalize, quat_to_matrix

RotationSampling = Literal["euler_box", "uniform", "outside_box"]


def sample_latents(
    count: int,
    generator: np.random.Generator,
    rotation: RotationSampling = "euler_box",
    translation: float = 0.0,
) -> NDArray[np.float64]:
    """Latents [count, 7], or [count, 10] of objects that move, in the order of ssl_equi.geometry.latents.

    Hues and light are uniform in LATENT_RANGES, and so is the translation in [-translation, translation] along each
    axis: .5 in 3DIEBench-T, 0 for objects that don't move. The rotation is one of

    - "euler_box": each Euler angle uniform in [-pi/2, pi/2], as in 3DIEBench. Not uniform on SO(3).
    - "uniform": uniform on SO(3) (Haar), written as Euler angles.
    - "outside_box": a pose that "euler_box" never draws, for tests of generalisation; see `_angles_outside_box`.

    Raises ValueError for a negative count or translation and another rotation.
    """
    if count < 0:
        raise ValueError(f"count is {count}: draw 0 latents or more")
    if rotation not in get_args(RotationSampling):
        raise ValueError(f"rotation is {rotation!r}: choose one of {', '.join(get_args(RotationSampling))}")
    if translation < 0:
        raise ValueError(f"translation is {translation}: give how far objects move, 0 or more")
    names = LATENT_NAMES[: LATENT_SIZE_WITH_TRANSLATION if translation else LATENT_SIZE]
    low, high = np.array([LATENT_RANGES[name] for name in names]).T
    low[TRANSLATION_COLUMNS], high[TRANSLATION_COLUMNS] = -translation, translation
    latents = generator.uniform(low, high, size=(count, len(names)))
    if rotation == "uniform":
        latents[:, ROTATION_COLUMNS] = _uniform_angles(count, generator)
    elif rotation == "outside_box":
        latents[:, ROTATION_COLUMNS] = _angles_outside_box(count, generator)
    return latents


def _uniform_angles(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Euler angles [count, 3] of rotations uniform on SO(3): quaternions from a normal distribution (Muller 1959)."""
    quat_xyzw = quat_normalize(torch.from_numpy(generator.normal(size=(count, 4))))
    return euler_xyz_from_matrix(quat_to_matrix(quat_xyzw)).numpy()


def _angles_outside_box(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Euler angles [count, 3] of poses outside the box: x or z, or both, beyond +-pi/2, and y within it.

    Angles beyond pi/2 alone do not make a new pose: (x, y, z) and (x + pi, pi - y, z + pi) are the same rotation, so
    a latent with all three magnitudes in [pi/2, pi] shows a pose of the box under another name. With |y| < pi/2 the
    angles are unique, and one of |x|, |z| beyond pi/2 is a pose that the box does not hold. The draw is uniform in
    the angles over all such poses.
    """
    angles = generator.uniform(-math.pi / 2, math.pi / 2, size=(count, 3))
    # turning an angle of the box by half a turn puts it beyond +-pi/2; three equally large regions: x, z, both
    region = generator.integers(3, size=count)
    for column, turned in ((0, region != 1), (2, region != 0)):
        angle = angles[:, column]
        angles[:, column] = np.where(turned, angle - np.copysign(math.pi, angle), angle)
    return angles
