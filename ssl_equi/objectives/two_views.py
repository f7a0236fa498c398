"""What the two-view objectives share: input checks and calling a module on both views."""

import torch
from torch import Tensor, nn

from ssl_equi.objectives.distributed import world_size


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


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless the temperature, which divides similarities, is positive."""
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}: give a positive one, such as 0.5")


def on_both_views(module: nn.Module, inputs: Tensor, separate_batch_norm: bool) -> Tensor:
    """Applies `module` ([N, ...] -> [N, D]) to both views of `inputs` [B, 2, ...]; returns [B, 2, D].

    Args:
        separate_batch_norm: False: one call on the 2B samples, faster, and batch norm sees both views together.
            True: one call a view, so each view has its own batch statistics.
    """
    if separate_batch_norm:
        return torch.stack([module(inputs[:, 0]), module(inputs[:, 1])], dim=1)
    return module(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
