"""Checks of what is passed on to `timm.create_model`, and of what timm passes on to our encoders."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ssl_equi.errors import UserError

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


def refuse_reserved_arguments(arguments: Mapping[str, Any], image_size: int | None = None) -> None:
    """Raises UserError if one of the arguments of an encoder is not a user's to choose, see `RESERVED`.

    Args:
        arguments: of `timm.create_model`, besides the name.
        image_size: side in pixels that `img_size` must agree with, if both are given.
    """
    for name, value in arguments.items():
        if name in RESERVED:
            raise UserError(f"the encoder's arguments hold {name!r} ({RESERVED[name]}): leave it out")
        if name == "img_size" and image_size is not None and value != image_size:
            raise UserError(
                f"the encoder's arguments hold 'img_size' {value!r} and the images have {image_size} pixels: leave it "
                "out, and give --image-size instead"
            )


def refuse_classifier(num_classes: int) -> None:
    """Raises ValueError if a classifier is asked for, of an encoder that has none."""
    if num_classes != 0:
        raise ValueError(f"num_classes is {num_classes}: this encoder has no classifier, pass num_classes=0")


def chosen_layers(layers: str, count: int, indices: int | Sequence[int] | None) -> list[int]:
    """The numbers of layers that timm's `indices` mean: all for None, the last n for an int, negative from the end.

    Args:
        layers: what they are called in the message, such as "blocks".
        count: how many there are.
        indices: which are chosen.

    Raises:
        ValueError: none is chosen, or one that there isn't.
    """
    if indices is None or isinstance(indices, int):
        indices = range(-(count if indices is None else indices), 0)
    if not indices or not all(-count <= number < count for number in indices):
        raise ValueError(f"indices are {list(indices)}: the encoder has {count} {layers}, use some of 0..{count - 1}")
    return [number % count for number in indices]


def check_output_format(output_fmt: str, legal: Sequence[str]) -> None:
    """Raises ValueError unless the layout of intermediate features is among the legal ones."""
    if output_fmt not in legal:
        raise ValueError(f"output_fmt is {output_fmt!r}: choose {' or '.join(repr(layout) for layout in legal)}")


def check_at_least(name: str, value: int, least: int) -> None:
    """Raises ValueError if the argument of this name is smaller than that."""
    if value < least:
        raise ValueError(f"{name} is {value}: it must be at least {least}")


def check_heads(width: int, num_heads: int) -> None:
    """Raises ValueError with the nearest legal number unless attention heads divide the width."""
    if num_heads < 1 or width % num_heads:
        divisors = [number for number in range(1, width + 1) if width % number == 0]
        nearest = min(divisors, key=lambda divisor: abs(divisor - num_heads))
        raise ValueError(f"num_heads is {num_heads} for a width of {width}: it must divide the width, use {nearest}")


def square_side(img_size: int | tuple[int, int], nearest_side: Callable[[int], int] = int) -> int:
    """The side of images of `img_size`; raises ValueError unless they are square.

    Args:
        img_size: side, or (height, width).
        nearest_side: the legal side nearest to one, for the message.
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if height != width:
        raise ValueError(
            f"img_size is {img_size}: this encoder takes square images, use {nearest_side(max(height, width))}"
        )
    return height


def side_for_backbone(img_size: int | tuple[int, int], num_classes: int, in_chans: int) -> int:
    """The side of the images of an encoder that is made around a backbone by name.

    Raises:
        ValueError: a classifier is asked for, or images that are not square or have not 3 channels.
    """
    refuse_classifier(num_classes)
    if in_chans != 3:
        raise ValueError(f"in_chans is {in_chans}: this encoder takes images of 3 channels")
    return square_side(img_size)


def check_square_images(images: Tensor, channels: int | None, nearest_side: Callable[[int], int]) -> None:
    """Raises ValueError unless images are [N, channels, S, S]; any side S will do.

    Args:
        images: what was given.
        channels: colour channels; None for any.
        nearest_side: the legal side nearest to one, for the message.
    """
    if images.ndim == 4 and images.shape[1] == (channels or images.shape[1]) and images.shape[2] == images.shape[3]:
        return
    legal = nearest_side(max(images.shape[-2:], default=1))
    raise ValueError(
        f"images have shape {tuple(images.shape)}: this encoder takes square images [N, {channels or 'C'}, S, S], crop "
        f"or pad them to {legal} x {legal} pixels"
    )
