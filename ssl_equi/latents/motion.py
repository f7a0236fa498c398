"""Rigid motions, the kind of action that is made of two latents: a rotation and a translation."""

from dataclasses import dataclass, replace
from typing import Literal, Self

from torch import Tensor

from ssl_equi.geometry.poses import POSE_ACTION_SIZE, ObjectPose, Pose
from ssl_equi.latents.kind import ActionSpace, Sizes
from ssl_equi.latents.rotation import Rotation

Frame = Literal["base", "object"]


@dataclass(frozen=True)
class RigidMotion(ActionSpace):
    """M1^-1 M2, quaternion then translation, in one of the two frames of `geometry.poses`.

    Values are the columns of the rotation, then the three of a translation in the object's own frame, applied before
    the rotation. Heads are asked for both latents by themselves.
    """

    rotation: Rotation
    frame: Frame

    kind = "rigid_motion"

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.rotation.sizes.columns + 3, POSE_ACTION_SIZE, POSE_ACTION_SIZE)

    def given_as_quats(self) -> Self:
        """The same actions of values that begin with a unit quaternion xyzw."""
        return replace(self, rotation=self.rotation.given_as_quats())

    def relative(self, first: Tensor, second: Tensor) -> Tensor:
        """R1^-1 R2, then R12 t2 - t1 in the base frame or R1^-1 (t2 - t1) in the object's."""
        turning = self.rotation.sizes.columns
        first_pose, second_pose = (
            ObjectPose(self.rotation.quats(values[..., :turning]).float(), values[..., turning:].float())
            for values in (first, second)
        )
        if self.frame == "base":
            return first_pose.in_base_frame().action_to(second_pose.in_base_frame()).vector()
        return first_pose.action_to(second_pose).vector()

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """The product of the 4 x 4 matrices, first x second."""
        return Pose.from_vector(first).compose(Pose.from_vector(second)).vector()

    def invert(self, action: Tensor) -> Tensor:
        return Pose.from_vector(action).inverse().vector()
