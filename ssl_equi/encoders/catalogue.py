"""An encoder by its timm name."""

import difflib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ssl_equi.encoders.timm_interface import refuse_reserved_arguments
from ssl_equi.errors import EncoderError, ImageSizeError


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
        UserError: an argument is reserved, see `arguments.RESERVED`.
    """
    refuse_reserved_arguments(arguments, image_size)
    timm = timm_with_our_encoders()
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}" if close else "timm.list_models() lists the names"
        raise EncoderError(f"timm has no model named {name!r}: {hint}")
    try:
        encoder = timm.create_model(
            name, pretrained=False, num_classes=0, **model_arguments(name, image_size, arguments)
        )
        num_features = _feature_size(encoder, image_size)
    except EncoderError:  # a library is missing: neither the name nor the size is wrong
        raise
    except TypeError as error:  # an argument that the model doesn't take
        raise EncoderError(
            f"encoder {name!r} can't be made with these arguments ({error}): give others with --encoder-arguments, or "
            "none by --encoder-arguments without pairs"
        ) from error
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ImageSizeError(
            f"encoder {name!r} can't be made for images of {image_size} x {image_size} pixels ({error}): "
            "choose another encoder or image size"
        ) from error
    encoder.num_features = num_features
    return encoder


def timm_with_our_encoders() -> ModuleType:
    """The timm module, with this project's encoders registered.

    timm takes seconds to import, so that is left until an encoder is made: `--help` needs none.
    """
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
    return ({"img_size": image_size} if has_fixed_input_size(name) else {}) | dict(arguments)


def has_fixed_input_size(name: str) -> bool:
    """Whether a model must be told the size of its images when it is made (most ViTs)."""
    pretrained_cfg = timm_with_our_encoders().get_pretrained_cfg(name)
    return pretrained_cfg is not None and pretrained_cfg.fixed_input_size


def _feature_size(encoder: nn.Module, image_size: int) -> int:
    """D, from one forward pass: timm's `num_features` leaves out what some heads add (MobileNet-V3)."""
    was_training = encoder.training
    encoder.eval()
    with torch.inference_mode():
        features = encoder(torch.zeros(1, 3, image_size, image_size))
    encoder.train(was_training)
    if features.ndim != 2:
        raise ValueError(f"its features have shape {tuple(features.shape)}, not [N, D]")
    return features.shape[1]
