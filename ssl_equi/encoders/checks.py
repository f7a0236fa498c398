"""Checks of what encoders and their layers are given: sizes, and images. Each raises a ValueError."""

from collections.abc import Callable

from torch import Tensor


def refuse_classifier(num_classes: int) -> None:
    """Raises ValueError if a classifier is asked for, of an encoder that has none."""
    if num_classes != 0:
        raise ValueError(f"num_classes is {num_classes}: this encoder has no classifier, pass num_classes=0")


def check_at_least(least: int, **values: float) -> None:
    """Raises ValueError naming the first argument that is smaller than `least`."""
    for name, value in values.items():
        if not value >= least:  # NaN is not, either
            raise ValueError(f"{name} is {value}: it must be at least {least}")


def check_heads(width: int, num_heads: int, step: int = 1) -> None:
    """Raises ValueError with the nearest legal number unless heads share a width in multiples of `step`."""
    if num_heads < 1 or width % (step * num_heads):
        legal = [heads for heads in range(1, width // step + 1) if width % (step * heads) == 0]
        nearest = min(legal, key=lambda heads: abs(heads - num_heads))
        need = "it must divide the width" if step == 1 else f"a head's width must be a multiple of {step}"
        raise ValueError(f"num_heads is {num_heads} for a width of {width}: {need}, use {nearest}")


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


def check_square_images(images: Tensor, channels: int | None, nearest_side: Callable[[int], int] = int) -> None:
    """Raises ValueError unless images are [N, channels, S, S], of any side and with None any channels."""
    if images.ndim == 4 and images.shape[1] == (channels or images.shape[1]) and images.shape[2] == images.shape[3]:
        return
    legal = nearest_side(max(images.shape[-2:], default=1))
    raise ValueError(
        f"images have shape {tuple(images.shape)}: this encoder takes square images [N, {channels or 'C'}, S, S], crop "
        f"or pad them to {legal} x {legal} pixels"
    )
