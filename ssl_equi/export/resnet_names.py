"""ResNets of torchvision's layout: which one the names and shapes are of, and timm's names for its tensors."""

import re
from collections.abc import Mapping

from torch import Tensor

from ssl_equi.errors import LayoutError

STEM = "conv1.weight"
# (stem's kernel, convolutions of a block, blocks of each stage) -> timm's name, ours included
ARCHITECTURES = {
    (7, 2, (2, 2, 2, 2)): "resnet18",
    (7, 2, (3, 4, 6, 3)): "resnet34",
    (7, 3, (3, 4, 6, 3)): "resnet50",
    (7, 3, (3, 4, 23, 3)): "resnet101",
    (7, 3, (3, 8, 36, 3)): "resnet152",
    (3, 2, (2, 2, 2, 2)): "resnet18_small_images",
    (3, 3, (3, 4, 6, 3)): "resnet50_small_images",
}


def timm_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names in the file -> names in timm's ResNet.

    Numbers in place of names, as an nn.Sequential of a ResNet's children gives them, are counted: convolution and batch
    norm of the stem, then the stages, behind a max-pooling if the stem's windows are of 7 x 7 pixels. What ResNets for
    CIFAR call `shortcut` is timm's `downsample`.

    Raises:
        LayoutError: the numbers are those of no ResNet.
    """
    numbers = _named_numbers(tensors)
    renamed = {}
    for name in tensors:
        first, dot, rest = name.partition(".")
        renamed[name] = f"{numbers.get(first, first)}{dot}{rest}".replace(".shortcut.", ".downsample.")
    return renamed


def _named_numbers(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Positions in an nn.Sequential -> names of the children; empty if the children have names."""
    positions = {name.split(".")[0] for name in tensors}
    if "0" not in positions:
        return {}
    stem = tensors.get("0.weight")
    pooled = stem is not None and stem.shape[2:] == (7, 7)
    expected = ["0", "1", *(str(number + pooled) for number in (3, 4, 5, 6))]
    if positions != set(expected):
        raise LayoutError(
            f"the encoder's layers are numbered {', '.join(sorted(positions))}, not {', '.join(expected)} as those of "
            "a ResNet",
            "give a checkpoint of a ResNet",
        )
    return dict(zip(expected, ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"), strict=True))


def resnet_architecture(tensors: Mapping[str, Tensor]) -> str | None:
    """timm's name of the ResNet that has tensors of these names; None if none of the usual ones does."""
    stem = tensors.get(STEM)
    if stem is None or stem.ndim != 4:
        return None
    blocks: dict[int, set[int]] = {stage: set() for stage in (1, 2, 3, 4)}
    for name in tensors:
        if found := re.match(r"layer([1-4])\.(\d+)\.", name):
            blocks[int(found[1])].add(int(found[2]))
    convolutions = 3 if "layer1.0.conv3.weight" in tensors else 2
    depths = (len(blocks[1]), len(blocks[2]), len(blocks[3]), len(blocks[4]))
    return ARCHITECTURES.get((stem.shape[-1], convolutions, depths))
