"""What the objectives on sequences of views share: input checks."""

import torch
from torch import Tensor

from ssl_equi.objectives.distributed import world_size


def check_sequence(views: Tensor, least: int = 2) -> None:
    """Raises ValueError unless `views` is a float [B, V, C, H, W] with V >= `least` and 2 or more objects in all."""
    if views.ndim != 5 or views.shape[1] < least:
        raise ValueError(
            f"views have shape {tuple(views.shape)}: pass [B, V, C, H, W] with {least} or more views of each object"
        )
    if not views.is_floating_point():
        raise ValueError(f"views have dtype {views.dtype}: convert them to float and normalise them first")
    if views.shape[0] * world_size() < 2:
        raise ValueError(f"views hold {views.shape[0]} object: batch statistics need a global batch of at least 2")


def check_steps(actions: Tensor | None, batch_size: int, steps: int, action_dim: int) -> Tensor:
    """The actions; raises ValueError unless they are [batch_size, steps, action_dim] and, on the CPU, finite."""
    wanted = f"[{batch_size}, {steps}, {action_dim}]"
    if actions is None:
        raise ValueError(f"actions are None: pass {wanted}, the transformation from each view to the next")
    if tuple(actions.shape) != (batch_size, steps, action_dim):
        raise ValueError(
            f"actions have shape {tuple(actions.shape)}: pass {wanted}, or set action_dim to the width of your actions"
        )
    # On a GPU the answer would have to come back to the CPU, which would stall every step.
    if not actions.is_cuda and not torch.isfinite(actions).all():
        row = int((~torch.isfinite(actions)).flatten(1).any(dim=1).nonzero()[0])
        raise ValueError(f"the actions in row {row} are {actions[row].tolist()}: check the latents they were made from")
    return actions
