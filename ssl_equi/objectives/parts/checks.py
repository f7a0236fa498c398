"""Checks of what objectives are given: views, actions, encoders and options. Each raises a ValueError."""

from typing import Any, get_args

import torch
from torch import Tensor, nn

from ssl_equi.objectives.parts.batch import world_size
from ssl_equi.options import Range

ACTION_KINDS_BY_DIM = {
    4: ("rotation",), 6: ("rotation_color", "rotation_6d"), 7: ("pose_base", "pose_object"), 9: ("rotation_matrix",),
}  # fmt: skip


def feature_dim(encoder: nn.Module) -> int:
    """Width D of the encoder's features, from its `num_features` (timm's convention)."""
    dim = getattr(encoder, "num_features", None)
    if not isinstance(dim, int):
        raise ValueError(
            f"encoder {type(encoder).__name__} has num_features={dim!r}: "
            "give it an integer attribute num_features, the width D of its output [N, D]"
        )
    return dim


def check_views(views: Tensor, num_views: int | None = 2) -> None:
    """Views must be a float [B, num_views, C, H, W] with 2 or more objects in the global batch.

    Args:
        num_views: None: 2 or more.
    """
    if views.ndim != 5 or (views.shape[1] < 2 if num_views is None else views.shape[1] != num_views):
        wanted = "V, C, H, W], 2 or more" if num_views is None else f"{num_views}, C, H, W], {num_views}"
        raise ValueError(f"views have shape {tuple(views.shape)}: pass [B, {wanted} views of each object")
    if not views.is_floating_point():
        raise ValueError(f"views have dtype {views.dtype}: convert them to float and normalise them first")
    if views.shape[0] * world_size() < 2:
        raise ValueError(
            f"views hold {views.shape[0]} object: statistics and negatives need a global batch of at least 2"
        )


def check_actions(actions: Tensor | None, *shape: int) -> Tensor:
    """The actions, which must have the shape [B, A], or [B, M, A] of sequences, and be finite on the CPU."""
    if actions is None:
        raise ValueError(f"actions are None: pass {list(shape)}, the transformation from one view to the next")
    if actions.ndim != len(shape) or actions.shape[:-1] != shape[:-1]:
        raise ValueError(f"actions have shape {tuple(actions.shape)}: pass {list(shape)}, one row for each object")
    given, action_dim = actions.shape[-1], shape[-1]
    if given != action_dim:
        as_given, as_told = (
            f"actions={' or '.join(map(repr, ACTION_KINDS_BY_DIM[dim]))}"
            if dim in ACTION_KINDS_BY_DIM
            else f"{dim}-column actions of your own"
            for dim in (given, action_dim)
        )
        raise ValueError(
            f"actions have {given} columns but action_dim is {action_dim}: set action_dim={given} for {as_given}, or "
            f"make the actions with {as_told}"
        )
    # On a GPU the answer would have to come back to the CPU, which would stall every step.
    if actions.device.type == "cpu" and not torch.isfinite(actions).all():
        row = int((~torch.isfinite(actions)).flatten(1).any(dim=1).nonzero()[0])
        raise ValueError(f"the action in row {row} is {actions[row].tolist()}: check the latents that it was made from")
    return actions


def check_number(name: str, value: float, **bounds: float) -> None:
    """An option must lie within the bounds of a `Range`, and must not be NaN: a weight, a temperature, a width."""
    bounded = Range(**bounds)
    if not bounded.holds(value):
        raise ValueError(f"{name} is {value}: give a number {bounded}")


def check_choice(name: str, value: str, choices: Any) -> None:
    """An option must be one of the values of its type, a `Literal`."""
    if value not in get_args(choices):
        *others, last = map(repr, get_args(choices))
        raise ValueError(f"{name} is {value!r}: choose {', '.join(others)} or {last}")
