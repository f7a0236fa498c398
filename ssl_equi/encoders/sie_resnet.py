"""The ResNets of SIE (Garrido, Najman and LeCun, ICML 2023), whose weights fit no other ResNet.

They differ from those of He et al. (CVPR 2016) as torchvision and timm build them:

- Windows that move in steps of 2 start at the first pixel: an even side gets zeros behind its last row and column, none
  before the first. The 7 x 7 convolution of the stem pads 2 before and 3 behind, the others of 3 x 3 none and 1; the
  max-pooling pads none and 1, with -10,000. Elsewhere one zero stands on every side.
- A basic block takes its step of 2 in the second convolution.
- Each stage has a 1 x 1 convolution and a batch norm on the shortcut of its first block; the first stage, too.

EquiCaps starts from the ResNet-18, too. Written from this description; the 11,180,736 parameters of the ResNet-18 are
those of the released one. The description is of basic blocks. The ResNet-50 follows the same rule, which is inferred:
the 3 x 3 convolution of a bottleneck takes the step of 2, and pads behind.
"""

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

__all__ = ["SIEResNet"]

STRIDE = 32
"""Pixels of the image to a cell of the last map: a power of two, so sides that it divides stay even up to there."""
POOLING_PAD = -1e4


class ConvolutionPaddedBehind(nn.Conv2d):
    """A convolution of stride 2 without bias that pads more behind than before: even sides are halved exactly.

    Args:
        in_channels, out_channels: of the maps.
        kernel_size: odd.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=2, padding=0, bias=False)
        before, behind = (kernel_size - 2) // 2, (kernel_size - 1) // 2
        self.padding_per_side = (before, behind, before, behind)

    def forward(self, maps: Tensor) -> Tensor:
        """[N, in_channels, H, W] to [N, out_channels, H / 2, W / 2]."""
        return super().forward(F.pad(maps, self.padding_per_side))


class StrideInSecondConvolutionBlock(BasicBlock):
    """timm's basic block, but that its second convolution moves in steps of `stride`, 1 or 2; arguments as there."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, *args: Any, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, 1, *args, **kwargs)
        self.stride = stride
        if stride == 2:
            second = self.conv2
            self.add_module("conv2", ConvolutionPaddedBehind(second.in_channels, second.out_channels, 3))


class BottleneckPaddedBehind(Bottleneck):
    """timm's bottleneck whose 3 x 3 convolution pads behind where it moves in steps of 2; arguments as there."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, *args: Any, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, stride, *args, **kwargs)
        if stride == 2:
            second = self.conv2
            self.add_module("conv2", ConvolutionPaddedBehind(second.in_channels, second.out_channels, 3))


class SIEResNet(ResNet):
    """timm's ResNet with the stem, blocks and shortcuts of SIE: images [N, 3, H, W], multiples of 32, to [N, D].

    Raises:
        ValueError: height or width of the images is no multiple of 32.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        usual = self.conv1
        assert isinstance(usual, nn.Conv2d)
        width = usual.out_channels
        self.add_module("conv1", ConvolutionPaddedBehind(usual.in_channels, width, 7))
        pool = nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), POOLING_PAD), nn.MaxPool2d(kernel_size=3, stride=2))
        self.add_module("maxpool", pool)
        first_block = self.get_submodule("layer1.0")
        if first_block.downsample is None:
            first_block.downsample = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.init_weights(zero_init_last=True)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last maps [N, D, H / 32, W / 32]."""
        _check_sides(x)
        return super().forward_features(x)

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """timm's interface to the maps after the stem and after each stage."""
        _check_sides(x)
        return super().forward_intermediates(x, *args, **kwargs)


def _check_sides(images: Tensor) -> None:
    height, width = images.shape[-2:]
    if height % STRIDE or width % STRIDE:
        nearest = max(STRIDE, round(height / STRIDE) * STRIDE)
        raise ValueError(
            f"the images have {height} x {width} pixels, but SIE's ResNets halve every side 5 times: "
            f"give multiples of {STRIDE}, such as {nearest}"
        )


_CFG = {
    "input_size": (3, 256, 256),
    "num_classes": 0,
    "first_conv": "conv1",
    "classifier": "fc",
    "license": "apache-2.0",
}
default_cfgs = generate_default_cfgs(
    {f"{name}.untrained": _CFG for name in ("sie_resnet18", "sie_resnet34", "sie_resnet50")}
)


@register_model
def sie_resnet18(pretrained: bool = False, **kwargs: Any) -> SIEResNet:
    """11.2 M parameters, 512 features."""
    sizes: dict[str, Any] = {"block": StrideInSecondConvolutionBlock, "layers": (2, 2, 2, 2)}
    return build_model_with_cfg(SIEResNet, "sie_resnet18", pretrained, **sizes, **kwargs)


@register_model
def sie_resnet34(pretrained: bool = False, **kwargs: Any) -> SIEResNet:
    """21.3 M parameters, 512 features."""
    sizes: dict[str, Any] = {"block": StrideInSecondConvolutionBlock, "layers": (3, 4, 6, 3)}
    return build_model_with_cfg(SIEResNet, "sie_resnet34", pretrained, **sizes, **kwargs)


@register_model
def sie_resnet50(pretrained: bool = False, **kwargs: Any) -> SIEResNet:
    """23.5 M parameters, 2,048 features."""
    sizes: dict[str, Any] = {"block": BottleneckPaddedBehind, "layers": (3, 4, 6, 3)}
    return build_model_with_cfg(SIEResNet, "sie_resnet50", pretrained, **sizes, **kwargs)
