"""Checks of what timm passes on to our encoders."""

from collections.abc import Sequence


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


def square_side(img_size: int | tuple[int, int]) -> int:
    """The side of images of `img_size`; raises ValueError unless they are square."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if height != width:
        raise ValueError(f"img_size is {img_size}: this encoder takes square images, use {max(height, width)}")
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
