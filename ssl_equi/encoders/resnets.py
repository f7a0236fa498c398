"""timm's ResNets with other stems: those of SIE, and those for images of 32 pixels.

The ResNets of SIE (Garrido, Najman and LeCun, ICML 2023), whose weights fit no other ResNet, differ from those of He et
al. (CVPR 2016) as torchvision and timm build them:

- Windows that move in steps of 2 start at the first pixel: an even side gets zeros behind its last row and column, none
  before the first. The 7 x 7 convolution of the stem pads 2 before and 3 behind, the others of 3 x 3 none and 1; the
  max-pooling pads none and 1, with -10,000. Elsewhere one zero stands on every side.
- A basic block takes its step of 2 in the second convolution.
- Each stage has a 1 x 1 convolution and a batch norm on the shortcut of its first block; the first stage, too.

EquiCaps starts from the ResNet-18, too. Written from this description; the 11,180,736 parameters of the ResNet-18 are
those of the released one. The description is of basic blocks. The ResNet-50 follows the same rule, which is inferred:
the 3 x 3 convolution of a bottleneck takes the step of 2, and pads behind.

On images of 32 pixels, the ImageNet stem (7 x 7 convolution of stride 2, then a max-pooling of stride 2) would leave
8 x 8 cells. SimCLR (Chen et al., ICML 2020, appendix B.9) and those who follow it, E-SSL and CARE among them, put one
3 x 3 convolution of stride 1 in its place. Everything else is timm's, `zero_init_last` among it: whether the last
normalisation of each block starts at 0, as by default, or at 1.

    name                                  parameters  features
    sie_resnet18, resnet18_small_images   11.2 M      512
    sie_resnet34                          21.3 M      512
    sie_resnet50, resnet50_small_images   23.5 M      2,048
"""

from typing import Any, Literal, get_args

import torch.nn.functional as F
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from ssl_equi.encoders.timm_interface import register_encoders, untrained_cfg

__all__ = ["SIEResNet", "SmallImageResNet"]

SIDE_STEP = 32
"""Pixels of the image to a cell of SIE's last map: a power of two, so sides that it divides stay even up to there."""
POOLING_PAD = -1e4
StemInit = Literal["he_fan_out", "pytorch"]


class ConvolutionPaddedBehind(nn.Conv2d):
    """A convolution of stride 2 and an odd kernel that pads more behind than before: [N, C, H, W] to [N, D, H/2, W/2].

    Even sides are halved exactly; it has no bias.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=2, padding=0, bias=False)
        before, behind = (kernel_size - 2) // 2, (kernel_size - 1) // 2
        self.padding_per_side = (before, behind, before, behind)

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(F.pad(maps, self.padding_per_side))


class StrideInSecondConvolutionBlock(BasicBlock):
    """timm's basic block, but that its second convolution moves in steps of `stride`, 1 or 2; arguments as there."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, *args: Any, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, 1, *args, **kwargs)
        self.stride = stride
        if stride == 2:
            _pad_second_convolution_behind(self)


class BottleneckPaddedBehind(Bottleneck):
    """timm's bottleneck whose 3 x 3 convolution pads behind where it moves in steps of 2; arguments as there."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, *args: Any, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, stride, *args, **kwargs)
        if stride == 2:
            _pad_second_convolution_behind(self)


def _pad_second_convolution_behind(block: BasicBlock | Bottleneck) -> None:
    second = block.conv2
    block.add_module("conv2", ConvolutionPaddedBehind(second.in_channels, second.out_channels, 3))


class SIEStem(ConvolutionPaddedBehind):
    """The first convolution, which raises ValueError for images whose height or width is no multiple of 32."""

    def forward(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[-2:]
        if height % SIDE_STEP or width % SIDE_STEP:
            nearest = max(SIDE_STEP, round(height / SIDE_STEP) * SIDE_STEP)
            raise ValueError(
                f"the images have {height} x {width} pixels, but SIE's ResNets halve every side 5 times: "
                f"give multiples of {SIDE_STEP}, such as {nearest}"
            )
        return super().forward(maps)


class SIEResNet(ResNet):
    """timm's ResNet with the stem, blocks and shortcuts of SIE: images [N, 3, H, W] to [N, D].

    It raises ValueError for images whose height or width is no multiple of 32.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        usual = self.conv1
        assert isinstance(usual, nn.Conv2d)
        width = usual.out_channels
        self.add_module("conv1", SIEStem(usual.in_channels, width, 7))
        pool = nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), POOLING_PAD), nn.MaxPool2d(kernel_size=3, stride=2))
        self.add_module("maxpool", pool)
        first_block = self.get_submodule("layer1.0")
        if first_block.downsample is None:
            first_block.downsample = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
        # Once more, for the layers that are not timm's.
        self.init_weights(zero_init_last=True)


class SmallImageResNet(ResNet):
    """timm's ResNet with a 3 x 3 convolution of stride 1 as its stem; images [N, 3, H, W] from 8 pixels.

    Args:
        stem_init: he_fan_out is how timm starts its convolutions (standard deviation .06). pytorch is the default of
            nn.Conv2d (.11), which a stem has that replaces another one in a finished ResNet, as in CARE.
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


register_encoders(
    __name__,
    SIEResNet,
    {
        "sie_resnet18": {"block": StrideInSecondConvolutionBlock, "layers": (2, 2, 2, 2)},
        "sie_resnet34": {"block": StrideInSecondConvolutionBlock, "layers": (3, 4, 6, 3)},
        "sie_resnet50": {"block": BottleneckPaddedBehind, "layers": (3, 4, 6, 3)},
    },
    untrained_cfg(256, first_conv="conv1", classifier="fc"),
)
register_encoders(
    __name__,
    SmallImageResNet,
    {
        "resnet18_small_images": {"block": BasicBlock, "layers": (2, 2, 2, 2)},
        "resnet50_small_images": {"block": Bottleneck, "layers": (3, 4, 6, 3)},
    },
    untrained_cfg(32, first_conv="conv1", classifier="fc"),
)
