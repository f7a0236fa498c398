"""ResNets of timm with other stems."""

from typing import Any, Literal, get_args

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


__all__ = ["SmallImageResNet"]

StemInit = Literal["he_fan_out", "pytorch"]


class SmallImageResNet(ResNet):
    """timm's ResNet with a 3 x 3 convolution of stride 1 as its stem; images [N, 3, H, W] from 8 pixels.

    Args:
        stem_init: he_fan_out is how timm starts its convolutions (standard deviation .06). pytorch is the default of
            nn.Conv2d (.11), which a stem has that replaces another one in a finished ResNet, as in CARE.

    Raises:
        ValueError: there is no such start.
    """

    def __init__(self, *args: Any, stem_init: StemInit = "he_fan_out", **kwargs: Any) -> None:
        if stem_init not in get_args(StemInit):
            raise ValueError(f"stem_init is {stem_init!r}: choose 'he_fan_out' or 'pytorch'")
        super().__init__(*args, **kwargs)
        usual = self.conv1
        assert isinstance(usual, nn.Conv2d)
        stem = nn.Conv2d(usual.in_channels, usual.out_channels, kernel_size=3, stride=1, padding=1, bias=False)
        if stem_init == "he_fan_out":
            nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        self.add_module("conv1", stem)
        self.add_module("maxpool", nn.Identity())


_CFG = {
    "input_size": (3, 32, 32),
    "num_classes": 0,
    "first_conv": "conv1",
    "classifier": "fc",
    "license": "apache-2.0",
}
default_cfgs = generate_default_cfgs({"resnet18_small_images.untrained": _CFG, "resnet50_small_images.untrained": _CFG})


@register_model
def resnet18_small_images(pretrained: bool = False, **kwargs: Any) -> SmallImageResNet:
    """11.2 M parameters, 512 features."""
    sizes: dict[str, Any] = {"block": BasicBlock, "layers": (2, 2, 2, 2)}
    return build_model_with_cfg(SmallImageResNet, "resnet18_small_images", pretrained, **sizes, **kwargs)


@register_model
def resnet50_small_images(pretrained: bool = False, **kwargs: Any) -> SmallImageResNet:
    """23.5 M parameters, 2,048 features."""
    sizes: dict[str, Any] = {"block": Bottleneck, "layers": (3, 4, 6, 3)}
    return build_model_with_cfg(SmallImageResNet, "resnet50_small_images", pretrained, **sizes, **kwargs)
