"""The last feature map of any timm encoder, [N, C, h, w], whatever layout its `forward_features` returns.

Convolutional networks return [N, C, h, w]; Swin and its relatives [N, h, w, C], which timm says in `output_fmt`; vision
transformers tokens [N, T, C], of which the first `num_prefix_tokens` (class token, registers) belong to no place.
"""

import math

import torch
from torch import Tensor, nn


def as_feature_map(encoder: nn.Module, output: Tensor) -> Tensor:
    """The map in what `encoder.forward_features(images)` returned, as [N, C, h, w]; a view where that is possible.

    The output is [N, C, h, w], [N, h, w, C] or [N, T, C]; ValueError says why there is no map in any other.
    """
    if not isinstance(output, Tensor):
        raise ValueError(_no_map(encoder, f"its forward_features returns a {type(output).__name__}"))
    if output.ndim == 4:
        return output.permute(0, 3, 1, 2) if getattr(encoder, "output_fmt", "NCHW") == "NHWC" else output
    if output.ndim != 3:
        raise ValueError(_no_map(encoder, f"its forward_features returns shape {tuple(output.shape)}"))
    prefix_tokens = getattr(encoder, "num_prefix_tokens", 0)
    tokens = output[:, prefix_tokens:]
    # They fill the patch embedding's grid row by row, or else a square.
    grid = getattr(getattr(encoder, "patch_embed", None), "grid_size", None)
    count = tokens.shape[1]
    if grid is None or math.prod(grid) != count:
        side = math.isqrt(count)
        if side < 2 or side * side != count:
            raise ValueError(
                _no_map(encoder, f"its {count} tokens fill neither its patch grid nor a square of 2 x 2 up")
            )
        grid = (side, side)
    return tokens.transpose(1, 2).unflatten(2, tuple(grid))


def feature_map_size(encoder: nn.Module, image_size: int) -> tuple[int, int, int]:
    """(channels, height, width) of the map of an image of image_size x image_size pixels, from one forward pass."""
    if not callable(getattr(encoder, "forward_features", None)):
        raise ValueError(_no_map(encoder, "it has no forward_features"))
    was_training = encoder.training
    parameter = next(encoder.parameters())
    encoder.eval()
    with torch.no_grad():
        images = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
        feature_map = as_feature_map(encoder, encoder.forward_features(images))  # type: ignore[operator]
    encoder.train(was_training)
    _, channels, height, width = feature_map.shape
    return channels, height, width


def _no_map(encoder: nn.Module, reason: str) -> str:
    return (
        f"{type(encoder).__name__} gives no feature map ({reason}): choose an encoder that keeps one, such as resnet18"
    )
