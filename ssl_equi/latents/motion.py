"""Rigid motions, the kind of action that is made of two latents: a rotation and a translation."""

from dataclasses import dataclass
from typing import Literal

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

    def relative(self, first: Tensor, second: Tensor) -> Tensor:
        """R1^-1 R2, then R12 t2 - t1 in the base frame or R1^-1 (t2 - t1) in the object's."""
        turning = self.rotation.sizes.columns
        return self.between(
            *(
                ObjectPose(self.rotation.quats(values[..., :turning]).float(), values[..., turning:].float())
                for values in (first, second)
            )
        )

    def between(self, first: ObjectPose, second: ObjectPose) -> Tensor:
        """The same of poses."""
        if self.frame == "base":
            return first.in_base_frame().action_to(second.in_base_frame()).vector()
        return first.action_to(second).vector()

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """The product of the 4 x 4 matrices, first x second."""
        return Pose.from_vector(first).compose(Pose.from_vector(second)).vector()

    def invert(self, action: Tensor) -> Tensor:
        return Pose.from_vector(action).inverse().vector()
