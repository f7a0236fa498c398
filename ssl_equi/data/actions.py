"""From the latents of two views to the action that takes the first view to the second."""

from typing import Literal

import torch
from torch import Tensor

from ssl_equi.data.batch import ViewBatch
from ssl_equi.geometry.latents import HUE_COLUMNS
from ssl_equi.geometry.rotations import relative_quat

ActionKind = Literal["rotation", "rotation_color"]
ACTION_SIZES: dict[ActionKind, int] = {"rotation": 4, "rotation_color": 6}


def relative_rotation(quat_xyzw: Tensor) -> Tensor:
    """Relative rotation [B, 4] of view pairs [B, 2, 4]: R1^-1 R2 in the object's frame, xyzw, sign as it comes.

    Made from two quaternions with w > 0 and not canonicalised, it is continuous in both poses, which w >= 0 is not.
    """
    return relative_quat(quat_xyzw[:, 0], quat_xyzw[:, 1])


def relative_hues(latents: Tensor) -> Tensor:
    """Differences [B, 2] of floor and light hue, second view minus first, of latents [B, 2, L].

    Plain differences in [-1, 1] as in SIE (Garrido et al., ICML 2023), not wrapped around the colour circle.
    """
    return latents[:, 1, list(HUE_COLUMNS)] - latents[:, 0, list(HUE_COLUMNS)]


def action_from_batch(batch: ViewBatch, kind: ActionKind) -> Tensor:
    """Actions [B, 4] ("rotation") or [B, 6] ("rotation_color": rotation, then hues) of a batch of pairs.

    Raises ValueError unless the batch has poses, exactly two views an object, and `kind` is known.
    """
    if batch.quat_xyzw is not None and batch.quat_xyzw.shape[1] != 2:
        raise ValueError(f"the batch has {batch.quat_xyzw.shape[1]} views an object: an action needs exactly 2")
    return action_between_views(batch, kind, 0, 1)


def action_between_views(batch: ViewBatch, kind: ActionKind, first: int, second: int) -> Tensor:
    """Actions [B, 4] or [B, 6], as `action_from_batch`, that take view `first` of each object to view `second`.

    Raises ValueError unless the batch has poses and `kind` is known.
    """
    if batch.quat_xyzw is None:
        raise ValueError("the batch has no poses: actions of this kind need a rendered data set")
    if kind not in ACTION_SIZES:
        raise ValueError(f"action kind '{kind}' is unknown: choose one of {', '.join(ACTION_SIZES)}")
    pair = [first, second]
    rotation = relative_rotation(batch.quat_xyzw[:, pair])
    if kind == "rotation":
        return rotation
    return torch.cat([rotation, relative_hues(batch.latents[:, pair])], dim=-1)
