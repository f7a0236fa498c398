"""Encoders by the names that timm knows: what may be chosen of them, and how they are made.

timm takes seconds to import, so that is left until an encoder is made: `--help` needs none.
"""

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ssl_equi.errors import EncoderError, ImageSizeError, UserError

_WEIGHTS = "an encoder is made with random weights; tools/import_checkpoint.py imports trained ones"
_FEATURES = "the encoder maps images of 3 channels to features [N, D], without a classifier"
_EXECUTION = "how the encoder is run is not its architecture"
RESERVED = {
    "checkpoint_path": _WEIGHTS,
    "pretrained": _WEIGHTS,
    "pretrained_cfg": _WEIGHTS,
    "pretrained_cfg_overlay": _WEIGHTS,
    "pretrained_filter_fn": _WEIGHTS,
    "pretrained_model_args": _WEIGHTS,
    "pretrained_strict": _WEIGHTS,
    "cache_dir": _WEIGHTS,
    "num_classes": _FEATURES,
    "features_only": _FEATURES,
    "feature_cfg": _FEATURES,
    "feature_cls": _FEATURES,
    "out_indices": _FEATURES,
    "in_chans": _FEATURES,
    "scriptable": _EXECUTION,
    "exportable": _EXECUTION,
    "no_jit": _EXECUTION,
    "kwargs_filter": _EXECUTION,
}
"""Arguments of `timm.create_model` that are not part of an architecture -> what decides about them instead."""


def build(name: str, image_size: int, **arguments: Any) -> nn.Module:
    """Makes the encoder of a registered name, as `ssl_equi.encoders.catalogue.create_encoder` describes it."""
    import timm

    refuse_reserved_arguments(arguments, image_size)
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}" if close else "timm.list_models() lists the names"
        raise EncoderError(f"timm has no model named {name!r}: {hint}")
    arguments = size_argument(name, image_size) | arguments
    try:
        encoder: Any = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
        encoder.num_features = _feature_size(encoder, image_size)
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
    return encoder


def refuse_reserved_arguments(arguments: Mapping[str, Any], image_size: int | None = None) -> None:
    """Raises UserError if an argument of `timm.create_model` is not a user's to choose, see `RESERVED`.

    An `img_size` among them must be `image_size`, if that is given.
    """
    for name, value in arguments.items():
        if name in RESERVED:
            raise UserError(f"the encoder's arguments hold {name!r} ({RESERVED[name]}): leave it out")
        if name == "img_size" and image_size is not None and value != image_size:
            raise UserError(
                f"the encoder's arguments hold 'img_size' {value!r} and the images have {image_size} pixels: leave it "
                "out, and give --image-size instead"
            )


def size_argument(name: str, image_size: int) -> dict[str, Any]:
    """The argument `img_size`, of models that must be told the size of their images when made (most ViTs)."""
    import timm

    cfg = timm.get_pretrained_cfg(name)
    return {"img_size": image_size} if cfg is not None and cfg.fixed_input_size else {}


def _feature_size(encoder: nn.Module, image_size: int) -> int:
    """D, from one forward pass."""
    # timm's `num_features` leaves out what some heads add (MobileNet-V3).
    was_training = encoder.training
    encoder.eval()
    with torch.inference_mode():
        features = encoder(torch.zeros(1, 3, image_size, image_size))
    encoder.train(was_training)
    if features.ndim != 2:
        raise ValueError(f"its features have shape {tuple(features.shape)}, not [N, D]")
    return features.shape[1]
