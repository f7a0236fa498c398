"""Every encoder by its name: timm's, and ours, which are registered with timm here."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ssl_equi.encoders.backbones import build, size_argument


def create_encoder(name: str, image_size: int, **arguments: Any) -> nn.Module:
    """Makes a freshly initialised encoder that maps images [N, 3, S, S] to features [N, D].

    Args:
        name: any name of `timm.list_models()`, ours included; never with pretrained weights.
        image_size: side of the square images in pixels, passed on to models of fixed input size (most ViTs).
        arguments: passed on to `timm.create_model`; those that are not part of an architecture are refused.

    Returns:
        The module; its `num_features` is D, also for models whose head widens the features.

    Raises:
        EncoderError: timm doesn't know the name, the model can't take images of this size, or needs a library that is
            missing.
        UserError: an argument is reserved, see `backbones.RESERVED`.
    """
    timm_with_our_encoders()
    return build(name, image_size, **arguments)


def timm_with_our_encoders() -> ModuleType:
    """The timm module, with this project's encoders registered."""
    with torch.device("cpu"):  # whatever the default: modules make tables when they are imported
        import timm

        import ssl_equi.encoders.capsules.network
        import ssl_equi.encoders.octic.vit
        import ssl_equi.encoders.resnets
        import ssl_equi.encoders.shifts.vit
        import ssl_equi.encoders.square.resnet
        import ssl_equi.encoders.steerable.resnet
        import ssl_equi.encoders.strided_cnn
        import ssl_equi.encoders.wrappers  # noqa: F401  (they register themselves with timm)

    return timm


def model_arguments(name: str, image_size: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What `timm.create_model` needs besides the name for images of this size: `img_size` where it must be told."""
    timm_with_our_encoders()
    return size_argument(name, image_size) | dict(arguments)


def has_fixed_input_size(name: str) -> bool:
    """Whether a model must be told the size of its images when it is made (most ViTs)."""
    return bool(model_arguments(name, 1, {}))
