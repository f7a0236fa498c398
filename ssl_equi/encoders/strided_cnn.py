"""Small convolutional encoders that keep where things are; the first is the default of the embedded data set.

A few strided convolutions, and one linear layer over what is left of the grid. Global average pooling would be
the habit, but at this size it throws away most of the pose; flattening a 4 x 4 grid keeps it and costs nothing. On two
CPU cores it trains at well over 1,000 images of 64 x 64 pixels a second, five times as fast as a ResNet-10.

Pooled ones have no weights behind their feature map, as ResNets: for methods that learn from the map, such as capsules.
The nano ones are for images of 32 x 32 pixels: for many runs, or many steps, in little time.

    name                     parameters  features
    strided_cnn_tiny         2.6 M       512
    strided_cnn_pooled       0.4 M       512: 128 channels in 2 x 2 cells of a feature map of 4 x 4
    strided_cnn_nano         0.3 M       256
    strided_cnn_nano_pooled  0.1 M       256: 64 channels in 2 x 2 cells of a feature map of 4 x 4
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ssl_equi.encoders.timm_interface import TimmEncoder, register_encoders, untrained_cfg

__all__ = ["PooledStridedCNN", "StridedCNN"]

GRID = 4  # side of the grid of cells that the linear layer reads
_LAYERS = 3  # a convolution, its batch norm and its activation


class _StridedConvolutions(TimmEncoder):
    """What both encoders share: the convolutions."""

    forward_head: Callable[[Tensor], Tensor]
    """Features [N, num_features] of a feature map."""

    def __init__(self, in_chans: int, widths: tuple[int, ...], strides: tuple[int, ...], num_classes: int) -> None:
        super().__init__(num_classes)
        blocks: list[nn.Module] = []
        for width, stride in zip(widths, strides, strict=True):
            blocks += [
                nn.Conv2d(in_chans, width, kernel_size=3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            in_chans = width
        self.blocks = nn.Sequential(*blocks)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last feature map, [N, C, h, w]."""
        if not self.grad_checkpointing:
            return self.blocks(images)
        maps = images
        for first in range(0, len(self.blocks), _LAYERS):
            maps = self.run_block(self.blocks[first : first + _LAYERS], maps)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups of layers: each convolution with its norm, and the linear layer."""
        firsts = range(0, len(self.blocks), _LAYERS)
        convolutions = {f"block {first}": rf"^blocks\.(?:{first}|{first + 1})\." for first in firsts}
        return convolutions | {"embed": r"^embed|^norm"}


class StridedCNN(_StridedConvolutions):
    """Images [N, 3, H, W] (H and W from 32 pixels) to features [N, num_features].

    Args:
        widths: channels of each convolution.
        strides: stride of each convolution.
        num_features: width of the features.
        num_classes: 0; the encoder has no classifier.
        in_chans: colour channels.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (32, 64, 128, 128, 256),
        strides: tuple[int, ...] = (2, 2, 2, 1, 2),
        num_features: int = 512,
        num_classes: int = 0,
        in_chans: int = 3,
    ) -> None:
        super().__init__(in_chans, widths, strides, num_classes)
        self.num_features = num_features
        self.grid = GridOfMeans(GRID)
        self.embed = nn.Linear(widths[-1] * GRID * GRID, num_features, bias=False)
        self.norm = nn.BatchNorm1d(num_features)
        self.activation = nn.ReLU()

    def forward_head(self, feature_map: Tensor) -> Tensor:
        return self.activation(self.norm(self.embed(self.grid(feature_map).flatten(1))))


class PooledStridedCNN(_StridedConvolutions):
    """Images [N, 3, H, W] (H and W from 32 pixels) to features [N, widths[-1] * grid^2], the pooled feature map.

    Args:
        widths, strides, num_classes, in_chans: as of `StridedCNN`.
        grid: side of the grid of cells that the feature map is averaged over.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (32, 64, 128, 128, 128),
        strides: tuple[int, ...] = (2, 2, 2, 1, 2),
        grid: int = 2,
        num_classes: int = 0,
        in_chans: int = 3,
    ) -> None:
        super().__init__(in_chans, widths, strides, num_classes)
        self.num_features = widths[-1] * grid * grid
        self.grid = GridOfMeans(grid)

    def forward_head(self, feature_map: Tensor) -> Tensor:
        return self.grid(feature_map).flatten(1)


class GridOfMeans(nn.AdaptiveAvgPool2d):
    """Means over the cells of a square grid."""

    def forward(self, feature_map: Tensor) -> Tensor:
        # A map of that size already is its own result, and the pooling would copy it.
        if feature_map.shape[-2:] == (self.output_size, self.output_size):
            return feature_map
        return super().forward(feature_map)


_CFG = untrained_cfg(64, first_conv="blocks.0")
_NANO_CFG = untrained_cfg(32, first_conv="blocks.0")
_NANO: dict[str, Any] = {"widths": (16, 32, 64, 64), "strides": (2, 2, 2, 1)}
register_encoders(__name__, StridedCNN, {"strided_cnn_tiny": {}}, _CFG)
register_encoders(__name__, PooledStridedCNN, {"strided_cnn_pooled": {}}, _CFG)
register_encoders(__name__, StridedCNN, {"strided_cnn_nano": {**_NANO, "num_features": 256}}, _NANO_CFG)
register_encoders(__name__, PooledStridedCNN, {"strided_cnn_nano_pooled": _NANO}, _NANO_CFG)
