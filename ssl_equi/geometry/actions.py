"""Actions: what takes one view of an object to another, from the poses and latents of both."""

import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ssl_equi.geometry.latents import HUE_COLUMNS, LATENT_SIZE, LATENT_SIZE_WITH_TRANSLATION, TRANSLATION_COLUMNS
from ssl_equi.geometry.poses import ObjectPose
from ssl_equi.geometry.rotations import quat_to_matrix, relative_quat, rotation_6d_from_matrix

ActionKind = Literal["rotation", "rotation_color", "rotation_6d", "rotation_matrix", "pose_base", "pose_object"]
ACTION_SIZES: dict[ActionKind, int] = {
    "rotation": 4, "rotation_color": 6, "rotation_6d": 6, "rotation_matrix": 9, "pose_base": 7, "pose_object": 7,
}  # fmt: skip
PoseActionKind = Literal["pose_base", "pose_object"]
POSE_ACTION_KINDS: tuple[PoseActionKind, ...] = get_args(PoseActionKind)
# Their first four columns are a quaternion, which comes with either sign.
QUATERNION_ACTION_KINDS: tuple[ActionKind, ...] = ("rotation", "rotation_color", *POSE_ACTION_KINDS)
EULER_BOX_RAD = math.pi / 2
EULER_TOLERANCE_RAD = 1e-3


def relative_rotation(quat_xyzw: Tensor) -> Tensor:
    """Relative rotation [B, 4] of view pairs [B, 2, 4]: R1^-1 R2 in the object's frame, xyzw, sign as it comes.

    Made from two quaternions with w > 0 and not canonicalised, it is continuous in both poses, which w >= 0 is not, as
    long as w stays above 0 (`beyond_euler_box`).
    """
    return relative_quat(quat_xyzw[:, 0], quat_xyzw[:, 1])


def relative_hues(latents: Tensor) -> Tensor:
    """Differences [B, 2] of floor and light hue, second view minus first, of latents [B, 2, L].

    Plain differences in [-1, 1] as in SIE (Garrido et al., ICML 2023), not wrapped around the colour circle.
    """
    differences = latents[:, 1] - latents[:, 0]
    return torch.stack([differences[:, column] for column in HUE_COLUMNS], dim=1)


def action_of_pairs(quat_xyzw: Tensor, latents: Tensor, kind: ActionKind) -> Tensor:
    """Actions [B, A] that take the first view of each pair to the second; A is the kind's of `ACTION_SIZES`.

    - rotation, rotation_color: the quaternion of `relative_rotation`, followed by the hues of `relative_hues`;
    - rotation_6d, rotation_matrix: the same rotation without a sign, as the first two columns of its matrix (Zhou et
      al., CVPR 2019) or as its rows;
    - pose_base, pose_object: the quaternion, followed by the translation of the rigid motion M1^-1 M2, R12 t2 - t1 in
      the base frame and R1^-1 (t2 - t1) in the object's (EquiCaps, Konstantinou et al., 2025; see `geometry.poses`).

    Args:
        quat_xyzw: [B, 2, 4], each view's absolute rotation, w > 0.
        latents: [B, 2, L]; hues or translations are taken from them if the kind has some.

    Raises:
        ValueError: an unknown kind, or a rigid motion of latents without translations.
    """
    if kind not in ACTION_SIZES:
        raise ValueError(f"action kind '{kind}' is unknown: choose one of {', '.join(ACTION_SIZES)}")
    rotation = relative_rotation(quat_xyzw)
    if kind == "rotation":
        return rotation
    if kind == "rotation_color":
        return torch.cat([rotation, relative_hues(latents)], dim=-1)
    if kind == "rotation_6d":
        return rotation_6d_from_matrix(quat_to_matrix(rotation))
    if kind == "rotation_matrix":
        return quat_to_matrix(rotation).flatten(-2)
    if latents.shape[-1] != LATENT_SIZE_WITH_TRANSLATION:
        raise ValueError(
            f"the views have {latents.shape[-1]} latents and actions '{kind}' need {LATENT_SIZE_WITH_TRANSLATION}: "
            "choose a set with translations (--dataset 3diebench-pt or 3diebench-t)"
        )
    translations = latents[..., TRANSLATION_COLUMNS]
    first, second = (ObjectPose(quat_xyzw[:, view], translations[:, view]) for view in (0, 1))
    if kind == "pose_base":
        return first.in_base_frame().action_to(second.in_base_frame()).vector()
    return first.action_to(second).vector()


def actions_between_all_views(quat_xyzw: Tensor, latents: Tensor, kind: ActionKind) -> Tensor:
    """Actions between any two views of each object: [N, V, V, A], where entry (i, j) takes view i to view j.

    Args:
        quat_xyzw: [N, V, 4], each view's absolute rotation, w > 0.
        latents: [N, V, L]; see `action_of_pairs`, also for errors.
    """
    num_objects, num_views = quat_xyzw.shape[:2]

    def pairs(values: Tensor) -> Tensor:
        """[N * V * V, 2, K]; pair (i, j) of an object is its number i * V + j."""
        shape = (num_objects, num_views, num_views, values.shape[-1])
        # Along dimension 1 the first view of the pair changes, along dimension 2 the second.
        both = [values.unsqueeze(2).expand(shape), values.unsqueeze(1).expand(shape)]
        return torch.stack(both, dim=3).flatten(0, 2)

    actions = action_of_pairs(pairs(quat_xyzw), pairs(latents), kind)
    return actions.unflatten(0, (num_objects, num_views, num_views))


def beyond_euler_box(split: str, latents: np.ndarray) -> str | None:
    """A sentence if angles of a split leave the box of Euler angles in which quaternions with w > 0 never jump.

    Within 90 degrees about each axis, as in 3DIEBench, w is at least .018. Beyond, it reaches 0, where q turns into -q:
    equal relative rotations then come with both signs. Angles beyond 90 degrees may still be poses of the box, since
    (x, y, z) and (x + 180, 180 - y, z + 180) are one rotation: those of 3DIEBench-OOD all are.

    Args:
        latents: [N, V, L]; fewer than 7 hold no rotation.
    """
    if latents.shape[-1] < LATENT_SIZE:
        return None
    furthest_rad = float(np.abs(latents[..., :3]).max())
    if furthest_rad <= EULER_BOX_RAD + EULER_TOLERANCE_RAD:
        return None
    turned = f"views of split {split!r} turn by up to {math.degrees(furthest_rad):.0f} degrees about an axis"
    # Of the two ways to write a rotation, the one with cos(y) > 0 is in the box if cos(x) and cos(z) are positive too.
    cos_x, cos_y, cos_z = np.moveaxis(np.cos(latents[..., :3]), -1, 0)
    if (np.minimum(cos_x * cos_y, cos_z * cos_y) >= -EULER_TOLERANCE_RAD).all():
        return (
            f"{turned}, yet all show poses within 90 degrees under other angles, (x, y, z) and (x + 180, 180 - y, "
            "z + 180) being one rotation: no pose is new, so a drop must have another cause"
        )
    return (
        f"{turned}: beyond "
        "90, quaternions of equal relative rotations come with both signs, so prefer actions rotation_6d or "
        "rotation_matrix, and the tasks relative_rotation_6d or relative_rotation_matrix"
    )
