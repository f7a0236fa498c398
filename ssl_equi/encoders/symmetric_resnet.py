"""What ResNets with a symmetry share: the forward pass, timm's interface, and checks of their arguments."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from timm.models import adapt_input_conv
from torch import Tensor, nn

from ssl_equi.encoders.recomputing import recomputed
from ssl_equi.encoders.square.features import OrientationFeatures
from ssl_equi.encoders.square.sampling import Window, check_image_side, nearest_legal_side
from ssl_equi.encoders.timm_interface import check_output_format, check_square_images, chosen_layers, square_side


@dataclass(frozen=True)
class ResNetLayers:
    """The layers of a network, in order; all of them keep the symmetry."""

    conv1: nn.Module
    """From images; its weight is [fields, in_chans, ...]."""
    norm1: nn.Module
    activation: nn.Module
    pool: nn.Module
    stages: nn.Sequential
    """Each an nn.Sequential of blocks."""


class SymmetricResNet(nn.Module):
    """Square images [N, in_chans, S, S] to features [N, num_features].

    Args:
        layers: of which the last maps come.
        head: makes features of the means of the last maps.
        windows: every one that moves in steps larger than 1, in order; images of other sizes than suit all are refused.
        feature_info: what timm is told of the maps after the first activation, and after every stage.
        num_classes: outputs of a classifier on top, or 0.
        in_chans: colour channels.

    Attributes:
        num_features: width of the features.
        parts: columns of the features by name.
    """

    head: OrientationFeatures

    def __init__(
        self,
        layers: ResNetLayers,
        head: OrientationFeatures,
        windows: Sequence[Window],
        feature_info: list[dict[str, Any]],
        num_classes: int,
        in_chans: int,
    ) -> None:
        super().__init__()
        self.windows, self.feature_info, self.in_chans = windows, feature_info, in_chans
        self.num_classes, self.grad_checkpointing = num_classes, False
        self.conv1, self.norm1, self.activation = layers.conv1, layers.norm1, layers.activation
        self.pool, self.stages = layers.pool, layers.stages
        self.head = head
        self.parts = head.parts
        self.num_features = self.head_hidden_size = head.num_features
        self.fc: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def forward_features(self, images: Tensor) -> Tensor:
        """The last maps [N, channels[-1], s, s], on which `act_on_maps` acts.

        Raises:
            ValueError: the images are not square, or their size breaks the symmetry.
        """
        maps = self.pool(self._stem(images))
        for stage in self.stages:
            maps = self._run(stage, maps)
        return maps

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Features [N, num_features] of the last maps, or what the classifier makes of them, [N, num_classes]."""
        features = self.head(maps.mean((2, 3)))
        return features if pre_logits else self.fc(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """timm's interface to the maps after chosen layers, those in `feature_info`; `act_on_maps` acts on all.

        Args:
            x: images [N, in_chans, S, S].
            indices: numbers of layers; an int for the last so many, None for all.
            norm: there is no last norm, so it changes nothing.
            stop_early: leaves out the stages after the last chosen one.
            output_fmt: "NCHW".
            intermediates_only: leaves out the last maps.

        Returns:
            a list with one tensor for each index, or (the last maps that were made, list).

        Raises:
            ValueError: another output format, no such layer, or images that `forward_features` refuses.
        """
        check_output_format(output_fmt, ("NCHW",))
        taken = chosen_layers("layers", len(self.feature_info), indices)
        last = max(taken) if stop_early else len(self.stages)
        maps = self._stem(x)
        intermediates = [maps] if 0 in taken else []
        maps = self.pool(maps) if last > 0 else maps
        for number, stage in enumerate(self.stages[:last], start=1):
            maps = self._run(stage, maps)
            if number in taken:
                intermediates.append(maps)
        return intermediates if intermediates_only else (maps, intermediates)

    def reset_classifier(self, num_classes: int, global_pool: Literal["avg"] | None = None) -> None:
        """A new classifier of so many outputs (0: none).

        Raises:
            ValueError: another pooling than the mean is named.
        """
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool is {global_pool!r}: this encoder has 'avg' only")
        weight = next(self.parameters())
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.fc.to(weight.device, weight.dtype)

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or nn.Identity."""
        return self.fc

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Computes each block's activations again in the backward pass rather than keep them."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should spare, beside all vectors: none."""
        return set()

    def _stem(self, images: Tensor) -> Tensor:
        check_square_images(images, self.in_chans, self._nearest_side)
        check_image_side(self.windows, images.shape[2])
        return self.activation(self.norm1(self.conv1(images)))

    def _nearest_side(self, side: int) -> int:
        return nearest_legal_side(self.windows, side)

    def _run(self, stage: nn.Module, maps: Tensor) -> Tensor:
        if not self.grad_checkpointing:
            return stage(maps)
        for block in stage.children():
            maps = recomputed(block, maps)
        return maps


def check_blocks(blocks: Sequence[int], channels: Sequence[int]) -> None:
    """Raises ValueError unless every stage has blocks."""
    if len(blocks) != len(channels) or min(blocks) < 1:
        raise ValueError(f"blocks are {blocks}: give a positive number for each of the {len(channels)} stages")


def check_image_size(windows: Sequence[Window], img_size: int | tuple[int, int]) -> None:
    """Raises ValueError unless images are square and suit all windows; the message names the nearest legal size."""
    check_image_side(windows, square_side(img_size, functools.partial(nearest_legal_side, windows)))


def fields_of_channels(group: str, size: int, channels: Sequence[int]) -> list[int]:
    """How many fields each stage has.

    Args:
        group: what errors call the group.
        size: channels of a field.
        channels: of each stage.

    Raises:
        ValueError: there is no stage, or one has other channels than multiples of the size.
    """
    if not channels:
        raise ValueError("channels are (): a network needs at least one stage")
    for width in channels:
        if width < size or width % size:
            nearest = max(1, round(width / size)) * size
            raise ValueError(f"channels has {width}: with {group} they come in multiples of {size}, such as {nearest}")
    return [width // size for width in channels]


def resnet_feature_info(channels: Sequence[int], first_map: int, first_stage: int) -> list[dict[str, Any]]:
    """What timm is told of the maps after the first activation, and after every stage.

    Args:
        channels: of each stage.
        first_map, first_stage: pixels of the image to a cell of the first map, and of the first stage's.
    """
    stages = [
        {"module": f"stages.{stage}", "num_chs": width, "reduction": first_stage * 2**stage}
        for stage, width in enumerate(channels)
    ]
    return [{"module": "activation", "num_chs": channels[0], "reduction": first_map}, *stages]


def timm_cfg(image_size: int) -> dict[str, Any]:
    """What timm is told of a network without trained weights for images of this size."""
    return {
        "input_size": (3, image_size, image_size),
        "fixed_input_size": True,
        "num_classes": 0,
        "first_conv": None,  # its kernel has a shape of its own; fit_colours adapts it
        "classifier": "fc",
        "license": "apache-2.0",
    }


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
