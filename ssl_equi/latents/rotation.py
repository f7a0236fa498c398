"""Rotations: R1^-1 R2 as a quaternion, six numbers or a matrix; errors are angles of the rotation between."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ssl_equi.errors import DataError
from ssl_equi.geometry.rotations import (
    euler_xyz_from_matrix,
    geodesic_distance,
    matrix_from_rotation_6d,
    mean_quaternion,
    nearest_rotation_matrix,
    quat_from_euler_xyz,
    quat_from_matrix,
    quat_multiply,
    quat_normalize,
    quat_positive,
    quat_to_matrix,
    relative_quat,
    rotation_6d_from_matrix,
)
from ssl_equi.latents.kind import FULL_TURN, AngleUnit, Bounds, LatentKind, Sizes, check_choice, checked_ranges, spread

RotationStorage = Literal["euler_xyz", "quat_xyzw", "matrix"]
RotationCode = Literal["quaternion", "6d", "matrix"]
_STORED: dict[RotationStorage, int] = {"euler_xyz": 3, "quat_xyzw": 4, "matrix": 9}
_CODED: dict[RotationCode, int] = {"quaternion": 4, "6d": 6, "matrix": 9}
# The angle a of a rotation uniform on SO(3) has the distribution function (a - sin a) / pi. That is 1/2 at pi/2 + d,
# where cos d = d.
MEDIAN_ANGLE_DEG = 90 + math.degrees(0.7390851332151607)
EULER_BOX_DEG, EULER_TOLERANCE_DEG = 90, math.degrees(1e-3)
SMALLEST_W = 0.018  # of a pose of 3DIEBench; less is within 2 degrees of a half turn


@dataclass(frozen=True)
class Rotation(LatentKind):
    """A rotation R, whose action is R1^-1 R2, the body-frame one.

    Quaternions of values have w >= 0. The action is made of two of them and keeps the sign that comes out, so it is
    continuous in both values as long as these stay away from half turns; targets have w >= 0.

    Attributes:
        storage: Euler angles as R = Rz Ry Rx, a unit quaternion, or the rows of the matrix.
        unit: of Euler angles.
        ranges: of each Euler angle, drawn uniformly; empty for rotations uniform on SO(3) (Haar).
    """

    storage: RotationStorage = "euler_xyz"
    unit: AngleUnit = "rad"
    ranges: tuple[Bounds, ...] = ()

    # How actions and targets are written; no field, because it says nothing of what is stored.
    code: ClassVar[RotationCode] = "quaternion"
    kind = "rotation"
    metric = "angle_deg_median"

    def __post_init__(self) -> None:
        check_choice("the storage of a rotation", self.storage, RotationStorage)
        check_choice("the unit of a rotation", self.unit, AngleUnit)
        object.__setattr__(self, "ranges", checked_ranges("ranges of Euler angles", self.ranges, (0, 3)))
        if self.ranges and self.storage != "euler_xyz":
            raise DataError(f"a rotation stored as {self.storage} has ranges: leave them out, or store euler_xyz")

    @property
    def sizes(self) -> Sizes:
        return Sizes(_STORED[self.storage], _CODED[self.code], _CODED[self.code])

    @property
    def column_suffixes(self) -> tuple[str, ...]:
        if self.storage == "matrix":
            return tuple(f"_{row}{column}" for row in "123" for column in "123")
        return ("_x", "_y", "_z", "_w")[: self.sizes.columns]

    def quats(self, values: Tensor) -> Tensor:
        """Unit quaternions [..., 4] float64 with w >= 0 of values [..., C]."""
        values = values.double()
        if self.storage == "euler_xyz":
            return quat_positive(quat_from_euler_xyz(values * (FULL_TURN["rad"] / FULL_TURN[self.unit])))
        if self.storage == "matrix":
            return quat_from_matrix(values.unflatten(-1, (3, 3)))
        # Not normalised, so that float32 quaternions pass as they are, to the bit.
        return quat_positive(values)

    def from_quats(self, quat_xyzw: Tensor) -> Tensor:
        """Values [..., C] of unit quaternions with w >= 0."""
        if self.storage == "quat_xyzw":
            return quat_xyzw
        matrices = quat_to_matrix(quat_xyzw)
        if self.storage == "matrix":
            return matrices.flatten(-2)
        return euler_xyz_from_matrix(matrices) * (FULL_TURN[self.unit] / FULL_TURN["rad"])

    def relative(self, first: Tensor, second: Tensor) -> Tensor:
        # Quaternions are rounded to float32 before, as splits store them: actions are equal to those to the bit.
        return self.between(self.quats(first).float(), self.quats(second).float())

    def between(self, first_xyzw: Tensor, second_xyzw: Tensor) -> Tensor:
        """The same of unit quaternions [..., 4] float32 with w >= 0."""
        return self._coded(relative_quat(first_xyzw, second_xyzw))

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """The product first x second: body-frame rotations multiply from the right."""
        if self.code == "quaternion":
            return quat_multiply(first, second)
        return self._coded_matrices(self._matrices(first) @ self._matrices(second))

    def invert(self, action: Tensor) -> Tensor:
        """The conjugate, or the transposed matrix."""
        if self.code == "quaternion":
            return torch.cat([-action[..., :3], action[..., 3:]], dim=-1)
        return self._coded_matrices(self._matrices(action).mT)

    def encode(self, values: Tensor) -> Tensor:
        return self._coded(self.quats(values)).float()

    def decode(self, predictions: Tensor) -> Tensor:
        """The rotation that a prediction is next to: normalised, by Gram-Schmidt, or by an SVD."""
        predictions = predictions.double()
        if self.code == "quaternion":
            return self.from_quats(quat_positive(quat_normalize(predictions)))
        if self.code == "6d":
            return self.from_quats(quat_from_matrix(matrix_from_rotation_6d(predictions)))
        return self.from_quats(quat_from_matrix(nearest_rotation_matrix(predictions.unflatten(-1, (3, 3)))))

    def constant_prediction(self, targets: Tensor) -> Tensor:
        # The mean of quaternions depends on their signs; that of matrices is projected by `decode`.
        return mean_quaternion(targets) if self.code == "quaternion" else super().constant_prediction(targets)

    def errors(self, answers: Tensor, values: Tensor) -> Tensor:
        """Geodesic angles in degrees, in [0, 180]."""
        return torch.rad2deg(geodesic_distance(self.quats(answers), self.quats(values)))

    def constant_score(self) -> float | None:
        """132.35 degrees for rotations uniform on SO(3), where a - sin a = pi/2."""
        return None if self.ranges else MEDIAN_ANGLE_DEG

    def reach(self, values: Tensor) -> tuple[str, str] | None:
        """How far values [..., C] turn and from where on, if a quaternion with w >= 0 jumps from q to -q on the way.

        Within 90 degrees about each axis, as in 3DIEBench, w stays above 0; beyond it reaches 0, where the sign turns.
        """
        if self.storage == "euler_xyz":
            furthest_deg = float(values.abs().max()) * (360 / FULL_TURN[self.unit])
            if furthest_deg <= EULER_BOX_DEG + EULER_TOLERANCE_DEG:
                return None
            return f"{furthest_deg:.0f} degrees about an axis", f"beyond {EULER_BOX_DEG}"
        # Other storages don't say by which way a pose was reached, so what counts is how near to half turns they come.
        smallest = float(self.quats(values)[..., 3].min())
        if smallest >= SMALLEST_W:
            return None
        return f"{2 * math.degrees(math.acos(smallest)):.0f} degrees", "at half turns"

    def stays_in_box(self, values: Tensor) -> bool:
        """Whether all values [..., 3], Euler angles, are poses within 90 degrees about each axis, however written."""
        angles_rad = values * (FULL_TURN["rad"] / FULL_TURN[self.unit])
        # (x, y, z) and (x + 180, 180 - y, z + 180) are one rotation. Of these two ways to write it, the one with
        # cos(y) > 0 is in the box if cos(x) and cos(z) are positive, too.
        cos_x, cos_y, cos_z = angles_rad.cos().unbind(-1)
        return bool((torch.minimum(cos_x * cos_y, cos_z * cos_y) >= -math.radians(EULER_TOLERANCE_DEG)).all())

    def from_uniform(self, uniform: Tensor) -> Tensor:
        """Euler angles in their ranges, or a uniform unit quaternion of the first three numbers (Shoemake, 1992)."""
        if self.ranges:
            return spread(uniform, self.ranges)
        share, first_rad, second_rad = uniform[..., 0], 2 * math.pi * uniform[..., 1], 2 * math.pi * uniform[..., 2]
        inner, outer = (1 - share).sqrt(), share.sqrt()
        parts = (inner * first_rad.sin(), inner * first_rad.cos(), outer * second_rad.sin(), outer * second_rad.cos())
        return self.from_quats(quat_positive(torch.stack(parts, dim=-1)))

    def _coded(self, quat_xyzw: Tensor) -> Tensor:
        return quat_xyzw if self.code == "quaternion" else self._coded_matrices(quat_to_matrix(quat_xyzw))

    def _coded_matrices(self, matrices: Tensor) -> Tensor:
        return rotation_6d_from_matrix(matrices) if self.code == "6d" else matrices.flatten(-2)

    def _matrices(self, actions: Tensor) -> Tensor:
        return matrix_from_rotation_6d(actions) if self.code == "6d" else actions.unflatten(-1, (3, 3))


class Rotation6d(Rotation):
    """The same, with the first two columns of the matrix as actions and targets (Zhou et al., CVPR 2019): no sign."""

    code = "6d"


class RotationMatrix(Rotation):
    """The same, with the rows of the matrix (Levinson et al., NeurIPS 2020): no sign."""

    code = "matrix"
