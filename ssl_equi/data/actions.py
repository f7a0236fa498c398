"""From the latents of two views to the action that takes the first view to the second."""

import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.collection import ViewCollection
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


def beyond_euler_box(views: ViewCollection) -> str | None:
    """A sentence if poses of a split leave the box of Euler angles in which quaternions with w > 0 never jump.

    Within 90 degrees about each axis, as in 3DIEBench, w is at least .018. Beyond, it reaches 0, where q turns into -q:
    equal relative rotations then come with both signs.
    """
    if views.quats_xyzw is None or views.latents.shape[-1] < LATENT_SIZE:
        return None
    furthest_rad = float(np.abs(views.latents[..., :3]).max())
    if furthest_rad <= EULER_BOX_RAD + EULER_TOLERANCE_RAD:
        return None
    return (
        f"views of split {views.split!r} turn by up to {math.degrees(furthest_rad):.0f} degrees about an axis: beyond "
        "90, quaternions of equal relative rotations come with both signs, so prefer actions rotation_6d or "
        "rotation_matrix, and the tasks relative_rotation_6d or relative_rotation_matrix"
    )


def relative_hues(latents: Tensor) -> Tensor:
    """Differences [B, 2] of floor and light hue, second view minus first, of latents [B, 2, L].

    Plain differences in [-1, 1] as in SIE (Garrido et al., ICML 2023), not wrapped around the colour circle.
    """
    differences = latents[:, 1] - latents[:, 0]
    return torch.stack([differences[:, column] for column in HUE_COLUMNS], dim=1)


def relative_pose(quat_xyzw: Tensor, latents: Tensor, kind: PoseActionKind) -> Tensor:
    """Relative rigid motion [B, 7] of view pairs, M1^-1 M2: quaternion as in `relative_rotation`, then translation.

    The translation is R12 t2 - t1 in the base frame and R1^-1 (t2 - t1) in the object's, as in EquiCaps (Konstantinou
    et al., 2025); see `ssl_equi.geometry.poses`.

    Args:
        quat_xyzw: [B, 2, 4], each view's absolute rotation, w > 0.
        latents: [B, 2, 10].

    Raises:
        ValueError: the latents have no translations.
    """
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


def action_from_batch(batch: ViewBatch, kind: ActionKind) -> Tensor:
    """Actions of a batch of pairs: [B, 4] "rotation", [B, 6] "rotation_color" or [B, 7] "pose_base", "pose_object".

    The first four columns are the rotation; hues or a translation follow. "rotation_6d" [B, 6] and "rotation_matrix"
    [B, 9] write the same rotation without a sign: the first two columns of its matrix (Zhou et al., CVPR 2019), or its
    rows.

    Raises ValueError unless the batch has poses (and translations, for the last two kinds), exactly two views an
    object, and `kind` is known.
    """
    if batch.quat_xyzw is not None and batch.quat_xyzw.shape[1] != 2:
        raise ValueError(f"the batch has {batch.quat_xyzw.shape[1]} views an object: an action needs exactly 2")
    return action_between_views(batch, kind, 0, 1)


def action_between_views(batch: ViewBatch, kind: ActionKind, first: int, second: int) -> Tensor:
    """Actions [B, A], as `action_from_batch`, that take view `first` of each object to view `second`.

    Raises ValueError unless the batch has poses (and translations, where asked for) and `kind` is known.
    """
    if batch.quat_xyzw is None:
        raise ValueError("the batch has no poses: actions of this kind need a rendered data set")
    quat_xyzw, latents = (
        torch.stack([values[:, first], values[:, second]], dim=1) for values in (batch.quat_xyzw, batch.latents)
    )
    return _action_of_pairs(quat_xyzw, latents, kind)


def actions_between_all_views(quat_xyzw: Tensor, latents: Tensor, kind: ActionKind) -> Tensor:
    """Actions between any two views of each object: [N, V, V, A], where entry (i, j) takes view i to view j.

    Args:
        quat_xyzw: [N, V, 4], each view's absolute rotation, w > 0.
        latents: [N, V, L]; only the hues are used, for "rotation_color", or the translations, for poses.

    Raises ValueError for an unknown kind, or poses without translations.
    """
    num_objects, num_views = quat_xyzw.shape[:2]
    actions = _action_of_pairs(_all_pairs(quat_xyzw), _all_pairs(latents), kind)
    return actions.unflatten(0, (num_objects, num_views, num_views))


def _action_of_pairs(quat_xyzw: Tensor, latents: Tensor, kind: ActionKind) -> Tensor:
    """Actions [n, A] of pairs of views, from quaternions [n, 2, 4] and latents [n, 2, L]."""
    if kind == "rotation":
        return relative_rotation(quat_xyzw)
    if kind in ("rotation_6d", "rotation_matrix"):
        matrices = quat_to_matrix(relative_rotation(quat_xyzw))
        return rotation_6d_from_matrix(matrices) if kind == "rotation_6d" else matrices.flatten(-2)
    if kind == "rotation_color":
        return torch.cat([relative_rotation(quat_xyzw), relative_hues(latents)], dim=-1)
    if kind in POSE_ACTION_KINDS:
        return relative_pose(quat_xyzw, latents, kind)
    raise ValueError(f"action kind '{kind}' is unknown: choose one of {', '.join(ACTION_SIZES)}")


def _all_pairs(values: Tensor) -> Tensor:
    """All pairs [N * V * V, 2, K] of the views of [N, V, K]; pair (i, j) of an object is its number i * V + j."""
    num_objects, num_views, size = values.shape
    shape = (num_objects, num_views, num_views, size)
    pairs = torch.stack([values.unsqueeze(2).expand(shape), values.unsqueeze(1).expand(shape)], dim=3)
    return pairs.flatten(0, 2)
