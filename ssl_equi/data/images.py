"""From stored pixels to what an encoder takes."""

from collections.abc import Sequence

from torch import Tensor

from ssl_equi.runtime.device_copies import constant


def normalise_images(images: Tensor, mean_rgb: Sequence[float], std_rgb: Sequence[float]) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in channels-last memory: (x / 255 - mean) / std."""
    mean, std = (constant(tuple(values), images.device).view(1, 3, 1, 1) for values in (mean_rgb, std_rgb))
    # The permuted NHWC tensor already has the channels-last strides, and the conversion keeps them.
    return images.permute(0, 3, 1, 2).float().sub_(mean * 255).div_(std * 255)


def normalise_views(images: Tensor, mean_rgb: Sequence[float], std_rgb: Sequence[float]) -> Tensor:
    """uint8 [B, V, H, W, 3] -> float32 [B, V, 3, H, W], each image in channels-last memory."""
    return normalise_images(images.flatten(0, 1), mean_rgb, std_rgb).unflatten(0, images.shape[:2])
