"""ResNets for images of 32 pixels: the stem keeps the resolution.

The ImageNet stem (7 x 7 convolution of stride 2, then a max-pooling of stride 2) would leave 8 x 8 cells of a CIFAR
image. SimCLR (Chen et al., ICML 2020, appendix B.9) and those who follow it, E-SSL and CARE among them, put one 3 x 3
convolution of stride 1 in its place. Everything else is timm's, `zero_init_last` among it: whether the last
normalisation of each block starts at 0, as by default, or at 1.
"""

from typing import Any, Literal, get_args

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

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
