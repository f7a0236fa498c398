"""What the two-view objectives share: input checks and calling a module on both views."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssl_equi.objectives.distributed import world_size

ACTION_KINDS_BY_DIM = {
    4: ("rotation",), 6: ("rotation_color", "rotation_6d"), 7: ("pose_base", "pose_object"), 9: ("rotation_matrix",),
}  # fmt: skip


def feature_dim(encoder: nn.Module) -> int:
    """Width D of the encoder's features, from its `num_features` (timm's convention).

    Raises:
        ValueError: if the encoder does not have the attribute.
    """
    dim = getattr(encoder, "num_features", None)
    if not isinstance(dim, int):
        raise ValueError(
            f"encoder {type(encoder).__name__} has num_features={dim!r}: "
            "give it an integer attribute num_features, the width D of its output [N, D]"
        )
    return dim


def check_views(views: Tensor) -> None:
    """Raises ValueError unless `views` is a float [B, 2, C, H, W] with 2 or more objects in the global batch."""
    if views.ndim != 5 or views.shape[1] != 2:
        raise ValueError(f"views have shape {tuple(views.shape)}: pass [B, 2, C, H, W], two views of each object")
    if not views.is_floating_point():
        raise ValueError(f"views have dtype {views.dtype}: convert them to float and normalise them first")
    if views.shape[0] * world_size() < 2:
        raise ValueError(
            f"views hold {views.shape[0]} object: statistics and negatives need a global batch of at least 2"
        )


def check_action_dim(action_dim: int) -> None:
    """Raises ValueError unless an action has at least one column."""
    if action_dim < 1:
        raise ValueError(f"action_dim is {action_dim}: an action needs at least 1 column")


def check_actions(actions: Tensor | None, batch_size: int, action_dim: int) -> Tensor:
    """The actions; raises ValueError unless they are [batch_size, action_dim] and, on the CPU, finite."""
    if actions is None:
        raise ValueError(
            f"actions are None: pass [{batch_size}, {action_dim}], the transformation from view 1 to view 2"
        )
    if actions.ndim != 2 or actions.shape[0] != batch_size:
        raise ValueError(
            f"actions have shape {tuple(actions.shape)}: pass [{batch_size}, {action_dim}], one row for each object"
        )
    given = actions.shape[1]
    if given != action_dim:
        raise ValueError(
            f"actions have {given} columns but action_dim is {action_dim}: set action_dim={given} for "
            f"{_describe_action(given)}, or make the actions with {_describe_action(action_dim)}"
        )
    # On a GPU the answer would have to come back to the CPU, which would stall every step.
    if not actions.is_cuda and not torch.isfinite(actions).all():
        row = int((~torch.isfinite(actions)).any(dim=1).nonzero()[0])
        raise ValueError(f"the action in row {row} is {actions[row].tolist()}: check the latents that it was made from")
    return actions


def _describe_action(action_dim: int) -> str:
    kinds = ACTION_KINDS_BY_DIM.get(action_dim)
    return f"actions={' or '.join(map(repr, kinds))}" if kinds else f"{action_dim}-column actions of your own"


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless the temperature, which divides similarities, is positive."""
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}: give a positive one, such as 0.5")


def on_both_views(module: Callable[[Tensor], Tensor], inputs: Tensor, separate_batch_norm: bool) -> Tensor:
    """Applies `module` ([N, ...] -> [N, D]) to the views of `inputs` [B, V, ...]; returns [B, V, D].

    Args:
        separate_batch_norm: False: one call on all samples, faster, and batch norm sees all views together.
            True: one call a view, so each view has its own batch statistics.
    """
    if separate_batch_norm:
        return torch.stack([module(view) for view in inputs.unbind(dim=1)], dim=1)
    return module(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
