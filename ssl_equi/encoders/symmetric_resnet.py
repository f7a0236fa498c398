"""What ResNets with a symmetry share: the forward pass, timm's interface, and checks of their arguments."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from timm.models import adapt_input_conv
from torch import Tensor, nn

from ssl_equi.encoders.checks import check_square_images, square_side
from ssl_equi.encoders.square.features import OrientationFeatures
from ssl_equi.encoders.square.sampling import Window, check_image_side, nearest_legal_side
from ssl_equi.encoders.symmetric import Symmetric
from ssl_equi.encoders.timm_interface import LayeredEncoder, register_encoders, untrained_cfg

Stem = Literal["large_images", "small_images"]


class SymmetricBasicBlock(nn.Module):
    """Two convolutions and a shortcut. Subclasses make the layers, which keep the symmetry."""

    conv1: nn.Module
    norm1: nn.Module
    conv2: nn.Module
    norm2: nn.Module
    activation: nn.Module
    shortcut: nn.Module

    def forward(self, maps: Tensor) -> Tensor:
        residual = self.activation(self.norm1(self.conv1(maps)))
        residual = self.norm2(self.conv2(residual))
        return self.activation(residual + self.shortcut(maps))


class SymmetricResNet(LayeredEncoder, Symmetric):
    """Square images [N, in_chans, S, S] to features [N, num_features].

    Subclasses make the layers, which keep the symmetry: conv1, norm1, activation, pool, stages, each an nn.Sequential
    of blocks, and head, which makes features of the means of the last maps; then they call `add_classifier`.

    Args:
        windows: every one that moves in steps larger than 1, in order; images of other sizes than suit all are refused.
        img_size: side, or (height, width), of images, to be checked.
        blocks, channels: of each stage.
        reductions: pixels of the image to a cell of the first map, and of the first stage's.
        num_classes: outputs of a classifier on top, or 0.
        in_chans: colour channels.

    Attributes:
        num_features: width of the features.
        parts: columns of the features by name: all; inv (do not change with the group) and equi (do), where there are
            such.
        feature_info: of the maps after the first activation, and after every stage; the group acts on all.
    """

    classifier_name = "fc"
    poolings = ("avg",)
    conv1: nn.Module
    norm1: nn.Module
    activation: nn.Module
    pool: nn.Module
    stages: nn.Sequential
    head: OrientationFeatures

    def __init__(
        self,
        windows: Sequence[Window],
        img_size: int | tuple[int, int],
        blocks: Sequence[int],
        channels: Sequence[int],
        reductions: tuple[int, int],
        num_classes: int,
        in_chans: int,
    ) -> None:
        super().__init__(num_classes)
        if len(blocks) != len(channels) or min(blocks) < 1:
            raise ValueError(f"blocks are {blocks}: give a positive number for each of the {len(channels)} stages")
        check_image_side(windows, square_side(img_size, functools.partial(nearest_legal_side, windows)))
        self.windows, self.in_chans = windows, in_chans
        self.feature_info = [{"module": "activation", "num_chs": channels[0], "reduction": reductions[0]}]
        self.feature_info += [
            {"module": f"stages.{stage}", "num_chs": width, "reduction": reductions[1] * 2**stage}
            for stage, width in enumerate(channels)
        ]

    def add_classifier(self) -> None:
        """Puts it on top of the head."""
        self.parts, self.num_features = self.head.parts, self.head.num_features
        self.fc = self.new_classifier()

    def run_layers(
        self, images: Tensor, count: int | None = None, kept: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        check_square_images(images, self.in_chans, functools.partial(nearest_legal_side, self.windows))
        check_image_side(self.windows, images.shape[2])
        maps = self.activation(self.norm1(self.conv1(images)))
        kept_maps = {0: maps} if 0 in kept else {}
        for number, stage in enumerate(self.stages, start=1):
            if count is not None and number >= count:
                break
            maps = self.pool(maps) if number == 1 else maps
            if self.grad_checkpointing:
                for block in stage.children():
                    maps = self.run_block(block, maps)
            else:
                maps = stage(maps)
            if number in kept:
                kept_maps[number] = maps
        return maps, kept_maps

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Features [N, num_features] of the last maps, or what the classifier makes of them, [N, num_classes]."""
        features = self.head(maps.mean((2, 3)))
        return features if pre_logits else self.fc(features)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups of layers: the stem, then blocks, or stages."""
        return {"stem": r"^conv1|^norm1", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}


def fields_of_channels(group: str, size: int, channels: Sequence[int]) -> list[int]:
    """How many fields of `size` channels each stage has; raises ValueError for other channels than multiples."""
    if not channels:
        raise ValueError("channels are (): a network needs at least one stage")
    for width in channels:
        if width < size or width % size:
            nearest = max(1, round(width / size)) * size
            raise ValueError(f"channels has {width}: with {group} they come in multiples of {size}, such as {nearest}")
    return [width // size for width in channels]


def fit_colours(state: dict[str, Tensor], encoder: SymmetricResNet) -> dict[str, Tensor]:
    """The weights with their first kernel made for the encoder's colour channels, as timm makes those of others.

    timm itself would expect a kernel [C, in_chans, k, k]; this one is [C, in_chans, ...].
    """
    kernel = state.get("conv1.weight")
    in_chans = encoder.in_chans
    if kernel is None or kernel.shape[1] == in_chans:
        return state
    adapted = adapt_input_conv(in_chans, kernel.flatten(2).unsqueeze(3))
    return state | {"conv1.weight": adapted.view(len(kernel), in_chans, *kernel.shape[2:])}


def register_resnets(
    module: str, make: Callable[..., nn.Module], names: Mapping[str, Mapping[str, Any]], image_size: int
) -> None:
    """Registers networks for images of this size with timm, see `register_encoders`."""
    register_encoders(
        module,
        make,
        names,
        # The first kernel has a shape of its own, so timm isn't told of it: fit_colours adapts it.
        untrained_cfg(image_size, classifier="fc", fixed_input_size=True),
        pretrained_filter_fn=fit_colours,
        feature_cfg={"feature_cls": "getter", "out_indices": (0, 1, 2, 3, 4)},
    )
