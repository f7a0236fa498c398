"""ResNets whose features turn with the image: exact under quarter turns (C4), or these and mirrorings (D4).

The layout of He et al. (CVPR 2016) with basic blocks, of the convolutions of Cohen and Welling (ICML 2016); see
`square.convolutions`. Windows of 3 x 3 or 1 x 1 pixels that move in steps of 2 over a map of even side
would break the symmetry (`ssl_equi.encoders.square.sampling`). So strided convolutions have windows of 4 x 4, the
first one of 6 x 6 or 4 x 4, the max-pooling takes 2 x 2 pixels, and shortcuts average 2 x 2 before their convolution.

`channels` counts all channels, |G| for each field. At equal channels, and so equal multiplications and features, the
network has about |G| times fewer parameters than the ordinary one. To have as many parameters instead, widen it
sqrt(|G|) times: 2 times for C4, about 2.8 times for D4, at |G| times the multiplications.

    name                        images  channels            features  parameters  multiplications
    c4_resnet18                 224     64, 128, 256, 512   512       3.09 M      1.92 G
    d4_resnet18                 224     64, 128, 256, 512   512       1.55 M      1.92 G
    timm's resnet18             224     64, 128, 256, 512   512       11.18 M     1.81 G
    c4_resnet10_small_images    64      32, 64, 128, 256    256       0.38 M      0.075 G
    d4_resnet10_small_images    64      32, 64, 128, 256    256       0.19 M      0.075 G
"""

from torch import Tensor, nn

from ssl_equi.encoders.square.convolutions import (
    GroupBatchNorm,
    GroupConvolution,
    GroupName,
    LiftingConvolution,
    act_on_regular_maps,
    group_size,
    square_group,
)
from ssl_equi.encoders.square.features import Features, RegularFeatures
from ssl_equi.encoders.square.sampling import Window
from ssl_equi.encoders.symmetric_resnet import (
    Stem,
    SymmetricBasicBlock,
    SymmetricResNet,
    fields_of_channels,
    register_resnets,
)

__all__ = ["GroupResNet"]


class GroupBasicBlock(SymmetricBasicBlock):
    """Two group convolutions and a shortcut: a stride of 2 halves regular maps of even side.

    Maps [N, |G| * in_fields, h, w] become [N, |G| * out_fields, h / stride, w / stride].
    """

    def __init__(self, group: GroupName, in_fields: int, out_fields: int, stride: int = 1) -> None:
        super().__init__()
        kernel_size = 3 if stride == 1 else 4  # 3 x 3 in steps of 2 would break the symmetry
        self.conv1 = GroupConvolution(group, in_fields, out_fields, kernel_size, stride, padding=1)
        self.norm1 = GroupBatchNorm(group, out_fields)
        self.conv2 = GroupConvolution(group, out_fields, out_fields, 3, padding=1)
        self.norm2 = GroupBatchNorm(group, out_fields)
        self.activation = nn.ReLU(inplace=True)
        shortcut: list[nn.Module] = []
        if stride > 1:
            shortcut.append(nn.AvgPool2d(stride))
        if stride > 1 or in_fields != out_fields:
            shortcut += [GroupConvolution(group, in_fields, out_fields, 1), GroupBatchNorm(group, out_fields)]
        self.shortcut = nn.Sequential(*shortcut)


class GroupResNet(SymmetricResNet):
    """Square images [N, in_chans, S, S] to features [N, num_features].

    Its weights fit any size, its symmetry only some: with four stages, S must be a multiple of 32 with the stem for
    large images, and of 16 with the other one.

    Args:
        blocks: basic blocks of each stage.
        channels: of each stage, multiples of |G|.
        stem: "large_images": a 6 x 6 convolution of stride 2 and a max-pooling of stride 2. "small_images": a 4 x 4
            convolution of stride 2.
        features: "regular": the pooled regular maps, [N, |G| * C], blocks of C for each element; C is channels[-1] /
            |G|. "invariant": their mean over the elements, [N, C]. "both": first the mean, then the blocks.
        num_classes: outputs of the classifier, which are invariant if it sees invariant features.
    """

    head: RegularFeatures

    def __init__(
        self,
        group: GroupName = "d4",
        blocks: tuple[int, ...] = (2, 2, 2, 2),
        channels: tuple[int, ...] = (64, 128, 256, 512),
        stem: Stem = "large_images",
        img_size: int | tuple[int, int] = 224,
        features: Features = "regular",
        num_classes: int = 0,
        in_chans: int = 3,
    ) -> None:
        fields = fields_of_channels(group, group_size(group), channels)
        windows = _windows(stem, len(blocks))
        large, first = stem == "large_images", windows[0]
        super().__init__(windows, img_size, blocks, channels, (2, 4 if large else 2), num_classes, in_chans)
        self.group, self.symmetries = group, square_group(group)
        self.conv1 = LiftingConvolution(group, in_chans, fields[0], first.kernel_size, first.stride, first.padding)
        self.norm1 = GroupBatchNorm(group, fields[0])
        self.activation = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2) if large else nn.Identity()
        self.stages = nn.Sequential()
        for number, (in_fields, out_fields, depth) in enumerate(zip([fields[0], *fields], fields, blocks)):
            # The first block of every stage but the first halves the map.
            leading = GroupBasicBlock(group, in_fields, out_fields, stride=2 if number else 1)
            others = (GroupBasicBlock(group, out_fields, out_fields) for _ in range(depth - 1))
            self.stages.append(nn.Sequential(leading, *others))
        self.head = RegularFeatures(group, fields[-1], features)
        self.add_classifier()

    def act_on_features(self, element: int, features: Tensor) -> Tensor:
        return self.head.act(element, features)

    def act_on_layer(self, layer: str, element: int, maps: Tensor) -> Tensor:
        return act_on_regular_maps(self.group, element, maps)


def _windows(stem: Stem, stages: int) -> list[Window]:
    """Every window that moves in steps larger than 1, in order; the first is that of the first convolution.

    Shortcuts, whose 2 x 2 windows suit the same maps as the 4 x 4 ones beside them, are left out.
    """
    if stem == "large_images":
        windows = [Window("conv1", 6, stride=2, padding=2), Window("pool", 2, stride=2)]
    elif stem == "small_images":
        windows = [Window("conv1", 4, stride=2, padding=1)]
    else:
        raise ValueError(f"stem is {stem!r}: choose 'large_images' or 'small_images'")
    return windows + [Window(f"stages.{stage}.0.conv1", 4, stride=2, padding=1) for stage in range(1, stages)]


register_resnets(
    __name__, GroupResNet, {"c4_resnet18": {"group": "c4"}, "d4_resnet18": {"group": "d4"}}, image_size=224
)
_SMALL = {"blocks": (1, 1, 1, 1), "channels": (32, 64, 128, 256), "stem": "small_images"}
register_resnets(
    __name__,
    GroupResNet,
    {f"{group}_resnet10_small_images": {"group": group, **_SMALL} for group in ("c4", "d4")},
    image_size=64,
)
