"""From the latents of two views to the action that takes the first view to the second."""

from collections.abc import Callable
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


def actions_between_all_views(quat_xyzw: Tensor, latents: Tensor, kind: ActionKind) -> Tensor:
    """Actions between any two views of each object: [N, V, V, A], where entry (i, j) takes view i to view j.

    Args:
        quat_xyzw: [N, V, 4], each view's absolute rotation, w > 0.
        latents: [N, V, L]; only the hues are used, for "rotation_color".

    Raises ValueError for an unknown kind.
    """
    if kind not in ACTION_SIZES:
        raise ValueError(f"action kind '{kind}' is unknown: choose one of {', '.join(ACTION_SIZES)}")
    rotation = _of_all_pairs(relative_rotation, quat_xyzw)
    if kind == "rotation":
        return rotation
    return torch.cat([rotation, _of_all_pairs(relative_hues, latents)], dim=-1)


def _of_all_pairs(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """A function of pairs [n, 2, K], for all pairs of the views of [N, V, K]: [N, V, V, A]."""
    num_objects, num_views, size = values.shape
    shape = (num_objects, num_views, num_views, size)
    pairs = torch.stack([values.unsqueeze(2).expand(shape), values.unsqueeze(1).expand(shape)], dim=3)
    return function(pairs.flatten(0, 2)).unflatten(0, shape[:3])
