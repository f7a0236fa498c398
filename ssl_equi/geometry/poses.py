"""SE(3): where an object is and how it is turned, in two frames, and the rigid motion from one view to another.

A view's latents give a rotation R and a translation t that is applied before it, in the object's own frame: the point x
of the object stands at R (x + t) in the world. Two 4 x 4 matrices hold these two, R and T = [I, t; 0, 1]:

- base frame: M = R T = [R, R t; 0, 1], which takes points of the object into the world;
- object frame: M = T R = [R, t; 0, 1], whose last column is the translation as the latents have it.

The action from view 1 to view 2 is M1^-1 M2 in either, so M1 M12 = M2 and (A M1) M12 = A M2 for any A. Both have the
rotation R12 = R1^-1 R2; the translation is R12 t2 - t1 in the base frame and R1^-1 (t2 - t1) in the object frame
(EquiCaps, Konstantinou et al., 2025, arXiv 2506.09895). Tensors have any batch shape and keep dtype and device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ssl_equi.geometry.latents import (
    LATENT_SIZE,
    LATENT_SIZE_WITH_TRANSLATION,
    TRANSLATION_COLUMNS,
    quat_xyzw_from_latents,
)
from ssl_equi.geometry.rotations import (
    quat_conjugate,
    quat_exp,
    quat_from_matrix,
    quat_log,
    quat_multiply,
    quat_to_matrix,
    relative_quat,
    require_shape,
    rotate_vectors,
)
from ssl_equi.runtime.device_copies import constant

ROTATION_ACTION_SIZE = 4  # quaternion
POSE_ACTION_SIZE = 7  # quaternion, translation
TWIST_SIZE = 6  # rotation vector, translational part


@dataclass(frozen=True, eq=False)
class Pose:
    """Rigid motions x -> R x + translation.

    Poses of two frames are two types, `BasePose` and `ObjectPose`, that can't be composed with each other.

    Attributes:
        quat_xyzw: [..., 4], unit quaternions of R; their sign is kept as it comes.
        translation: [..., 3], the last column of the 4 x 4 matrix.
    """

    quat_xyzw: Tensor
    translation: Tensor

    def __post_init__(self) -> None:
        if self.quat_xyzw.shape[-1:] != (4,) or self.translation.shape[-1:] != (3,):
            raise ValueError(
                f"quat_xyzw has shape {tuple(self.quat_xyzw.shape)} and translation {tuple(self.translation.shape)}: "
                "the last dimensions must be 4 and 3"
            )

    def compose(self, other: Self) -> Self:
        """The motion that applies `other` first, then this one: the product of the matrices M_self M_other."""
        self._require_same_frame(other)
        translation = rotate_vectors(self.quat_xyzw, other.translation) + self.translation
        return type(self)(quat_multiply(self.quat_xyzw, other.quat_xyzw), translation)

    def inverse(self) -> Self:
        """The motion back, M^-1."""
        back_xyzw = quat_conjugate(self.quat_xyzw)
        return type(self)(back_xyzw, -rotate_vectors(back_xyzw, self.translation))

    def action_to(self, second: Self) -> Self:
        """M1^-1 M2, which takes this pose to `second` from the right: M1 (M1^-1 M2) = M2.

        Its quaternion is that of `rotations.relative_quat`, sign included.
        """
        self._require_same_frame(second)
        back_xyzw = quat_conjugate(self.quat_xyzw)
        translation = rotate_vectors(back_xyzw, second.translation - self.translation)
        return type(self)(relative_quat(self.quat_xyzw, second.quat_xyzw), translation)

    def matrix(self) -> Tensor:
        """Homogeneous matrices [..., 4, 4]: [R, translation; 0, 1]."""
        batch = self._batch_shape()
        rotation = quat_to_matrix(self.quat_xyzw).expand(*batch, 3, 3)
        upper = torch.cat([rotation, self.translation.expand(*batch, 3).unsqueeze(-1)], dim=-1)
        last_row = constant((0.0, 0.0, 0.0, 1.0), upper.device, upper.dtype)
        return torch.cat([upper, last_row.expand(*batch, 1, 4)], dim=-2)

    @classmethod
    def from_matrix(cls, matrices: Tensor) -> Self:
        """Poses of homogeneous matrices [..., 4, 4] of rigid motions, with w >= 0."""
        require_shape(matrices, "matrices", 4, 4)
        return cls(quat_from_matrix(matrices[..., :3, :3]), matrices[..., :3, 3])

    def vector(self) -> Tensor:
        """[..., 7]: quaternion x, y, z, w, then the translation."""
        batch = self._batch_shape()
        return torch.cat([self.quat_xyzw.expand(*batch, 4), self.translation.expand(*batch, 3)], dim=-1)

    @classmethod
    def from_vector(cls, vectors: Tensor) -> Self:
        """Poses of vectors [..., 7] as `vector` gives them."""
        require_shape(vectors, "vectors", POSE_ACTION_SIZE)
        return cls(vectors[..., :4], vectors[..., 4:])

    def log(self) -> Tensor:
        """Twists [..., 6]: the rotation vector w in radians, |w| in [0, pi], then v = V(w)^-1 translation.

        The screw motion from the identity to this pose: `exp` of it is this pose, up to the sign of the quaternion.
        At half turns w and -w are the same rotation, and either comes out, as rounding has it; next to one, the
        logarithm jumps from one to the other. Gradients are finite everywhere, at the identity too.
        """
        rotation_vector_rad = quat_log(self.quat_xyzw)
        angle_squared = (rotation_vector_rad * rotation_vector_rad).sum(-1, keepdim=True)
        once, twice = _crosses(rotation_vector_rad, self.translation)
        # V^-1 = I - [w]x / 2 + (1 - a/2 cot(a/2)) / a^2 [w]x^2
        coefficient = _smooth(
            angle_squared, _INVERSE_SERIES, lambda a: (1 - a / 2 * (a / 2).cos() / (a / 2).sin()) / a.square()
        )
        part = self.translation - once / 2 + coefficient * twice
        return torch.cat([rotation_vector_rad.expand(*part.shape[:-1], 3), part], dim=-1)

    @classmethod
    def exp(cls, twists: Tensor) -> Self:
        """Poses of twists [..., 6]: the rotation exp([w]x) and the translation V(w) v.

        V(w) = I + (1 - cos a) / a^2 [w]x + (a - sin a) / a^3 [w]x^2 for the angle a = |w|.
        """
        require_shape(twists, "twists", TWIST_SIZE)
        rotation_vector_rad, part = twists[..., :3], twists[..., 3:]
        angle_squared = (rotation_vector_rad * rotation_vector_rad).sum(-1, keepdim=True)
        once, twice = _crosses(rotation_vector_rad, part)
        first = _smooth(angle_squared, _FIRST_SERIES, lambda a: (1 - a.cos()) / a.square())
        second = _smooth(angle_squared, _SECOND_SERIES, lambda a: (a - a.sin()) / a**3)
        return cls(quat_exp(rotation_vector_rad), part + first * once + second * twice)

    def _batch_shape(self) -> torch.Size:
        return torch.broadcast_shapes(self.quat_xyzw.shape[:-1], self.translation.shape[:-1])

    def _require_same_frame(self, other: "Pose") -> None:
        if type(other) is not type(self):
            raise TypeError(
                f"{type(self).__name__} and {type(other).__name__} don't go together: bring both poses into one frame "
                "first, by in_base_frame() or in_object_frame()"
            )


class BasePose(Pose):
    """Poses in the base frame: the translation is R t, where the object's centre stands in the world. M = R T."""

    @classmethod
    def from_latents(cls, latents: Tensor) -> Self:
        """Poses of latents [..., 10], which have a translation."""
        _require_translations(latents)
        quat_xyzw = quat_xyzw_from_latents(latents)
        return cls(quat_xyzw, rotate_vectors(quat_xyzw, latents[..., TRANSLATION_COLUMNS]))

    def in_object_frame(self) -> "ObjectPose":
        """The same views' poses in the object frame; not for actions, which follow from the poses in each frame."""
        return ObjectPose(self.quat_xyzw, rotate_vectors(quat_conjugate(self.quat_xyzw), self.translation))


class ObjectPose(Pose):
    """Poses in the object frame: the translation is t, in the axes of the object itself. M = T R."""

    @classmethod
    def from_latents(cls, latents: Tensor) -> Self:
        """Poses of latents [..., 10], which have a translation."""
        _require_translations(latents)
        return cls(quat_xyzw_from_latents(latents), latents[..., TRANSLATION_COLUMNS])

    def in_base_frame(self) -> BasePose:
        """The same views' poses in the base frame; not for actions, which follow from the poses in each frame."""
        return BasePose(self.quat_xyzw, rotate_vectors(self.quat_xyzw, self.translation))


def matrix_of_action(actions: Tensor) -> Tensor:
    """Matrices by which actions multiply from the right: [..., 4] -> [..., 3, 3] and [..., 7] -> [..., 4, 4].

    Actions are unit quaternions xyzw, of rotations alone, or followed by a translation, of rigid motions.
    """
    if actions.shape[-1:] == (ROTATION_ACTION_SIZE,):
        return quat_to_matrix(actions)
    if actions.shape[-1:] == (POSE_ACTION_SIZE,):
        return Pose.from_vector(actions).matrix()
    raise ValueError(
        f"actions have shape {tuple(actions.shape)}: a matrix is made of {ROTATION_ACTION_SIZE} columns (quaternion) "
        f"or {POSE_ACTION_SIZE} (quaternion and translation)"
    )


def _require_translations(latents: Tensor) -> None:
    if latents.shape[-1:] != (LATENT_SIZE_WITH_TRANSLATION,):
        raise ValueError(
            f"latents have shape {tuple(latents.shape)}: a position takes the {LATENT_SIZE_WITH_TRANSLATION} columns "
            f"of 3DIEBench-T, and the {LATENT_SIZE} of 3DIEBench have no translation"
        )


def _crosses(rotation_vector_rad: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """w x v and w x (w x v), both [..., 3]."""
    axis, vectors = torch.broadcast_tensors(rotation_vector_rad, vectors)
    once = torch.linalg.cross(axis, vectors, dim=-1)
    return once, torch.linalg.cross(axis, once, dim=-1)


# Coefficients of the powers of the squared angle; below _SERIES_BELOW the first left out is under 1e-15 of the sum.
_SERIES_BELOW = 0.25
_FIRST_SERIES = tuple((-1) ** k / math.factorial(2 * k + 2) for k in range(8))
_SECOND_SERIES = tuple((-1) ** k / math.factorial(2 * k + 3) for k in range(8))
_BERNOULLI_NUMBERS = (1 / 6, 1 / 30, 1 / 42, 1 / 30, 5 / 66, 691 / 2730, 7 / 6, 3617 / 510)  # |B_2|, |B_4|, ...
_INVERSE_SERIES = tuple(number / math.factorial(2 * k + 2) for k, number in enumerate(_BERNOULLI_NUMBERS))


def _smooth(angle_squared: Tensor, series: tuple[float, ...], closed_form: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of the angle that is smooth at 0: by its power series there, where the closed form is 0 / 0."""
    near_zero = angle_squared < _SERIES_BELOW
    small = torch.where(near_zero, angle_squared, torch.zeros_like(angle_squared))
    large = torch.where(near_zero, torch.ones_like(angle_squared), angle_squared)
    power_sum = torch.full_like(small, series[-1])
    for coefficient in reversed(series[:-1]):
        power_sum = power_sum * small + coefficient
    return torch.where(near_zero, power_sum, closed_form(large.sqrt()))
