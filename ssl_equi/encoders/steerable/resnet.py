"""ResNets that turn with the image by finer angles than 90 degrees: C_N for any N, and SO(2), all turns.

The layout of He et al. (CVPR 2016) with basic blocks, of steerable convolutions (Weiler and Cesa, NeurIPS 2019), whose
kernels the library escnn finds; it is needed to make one of these, not to import this module. See
`ssl_equi.encoders.steerable.layers` and, for what a field is, `ssl_equi.encoders.steerable.groups`.

Where the group has them, quarter turns are exact. Other turns are as good as sampling allows, so it is done with care:
convolutions have 5 x 5 kernels of low angular frequency and stride 1, and maps are halved by blurring first and then
keeping every second pixel.

`channels` counts all channels: N for each field of C_N, 7 for each of SO(2). Multiplications are those of an image,
without the expansion of kernels, which is done once a batch (or never, after `bake`).

    name                        images  channels            features  parameters  multiplications
    c8_resnet18                 224     64, 128, 256, 512   512       1.09 M      4.96 G
    so2_resnet18                224     56, 112, 224, 448   448       0.88 M      3.97 G
    c8_resnet10_small_images    64      32, 64, 128, 256    256       0.12 M      0.18 G
    so2_resnet10_small_images   64      28, 56, 112, 224    224       0.10 M      0.15 G

Change of the features of smooth images under a turn by 45 degrees, relative to the difference between two images
(`ssl_equi.evaluation.symmetry.errors`), with random weights, three seeds, 64 pixels, interpolation included: invariant
features .06 to .08 for c8_resnet10_small_images, .06 to .09 for so2_resnet10_small_images; .32 to .52 for
c4_resnet10_small_images, .27 to .33 for timm's resnet10t. Regular ones change by .36 to .40 (c8) and .23 to .36 (so2),
of which what the turn does to them explains all but .15 to .17 and .09 to .12.
"""

from itertools import pairwise

from torch import Tensor, nn

from ssl_equi.encoders.square.convolutions import OrientationBatchNorm
from ssl_equi.encoders.square.features import Features
from ssl_equi.encoders.square.symmetries import act_on_image
from ssl_equi.encoders.steerable.groups import (
    FOURIER_SAMPLES,
    SteerableFeatures,
    SteerableGroup,
    fourier_values,
    steerable_group,
)
from ssl_equi.encoders.steerable.layers import (
    AntialiasedPooling,
    MixedBlocks,
    SteerableConvolution,
    antialiased_window,
)
from ssl_equi.encoders.symmetric import Element, Symmetries
from ssl_equi.encoders.symmetric_resnet import (
    Stem,
    SymmetricBasicBlock,
    SymmetricResNet,
    fields_of_channels,
    register_resnets,
)

__all__ = ["SteerableResNet"]


class SteerableActivation(nn.Module):
    """A pointwise function of fields: ReLU for C_N; for so2 ELU at 16 orientations, back to Fourier coefficients.

    Takes values at all orientations, as `steerable_norm` gives them.
    """

    def __init__(self, group: SteerableGroup) -> None:
        super().__init__()
        self.function = nn.ReLU() if group.order is not None else nn.ELU()
        # Back to the coefficients of fields; higher frequencies, which the function made, are dropped.
        self.to_fields = nn.Identity() if group.order is not None else MixedBlocks(fourier_values().T / FOURIER_SAMPLES)

    def forward(self, values: Tensor) -> Tensor:
        """[N, orientations * C, h, w] to fields [N, channels_per_field * C, h, w]."""
        return self.to_fields(self.function(values))


def steerable_norm(group: SteerableGroup, fields: int) -> nn.Module:
    """Batch norm of fields that gives their values at the orientations of the group, [N, orientations * C, h, w]."""
    norm = OrientationBatchNorm(group.orientations, fields)
    return norm if group.order is not None else nn.Sequential(MixedBlocks(fourier_values()), norm)


class SteerableBasicBlock(SymmetricBasicBlock):
    """Two steerable convolutions and a shortcut, on maps of one side.

    Maps [N, channels_per_field * in_fields, h, w] become [N, channels_per_field * out_fields, h, w].
    """

    def __init__(
        self, group: SteerableGroup, in_fields: int, out_fields: int, kernel_size: int, max_frequency: int
    ) -> None:
        super().__init__()
        kernels = (kernel_size, max_frequency)
        self.conv1 = SteerableConvolution(group.name, "fields", in_fields, out_fields, *kernels)
        self.norm1 = steerable_norm(group, out_fields)
        self.conv2 = SteerableConvolution(group.name, "fields", out_fields, out_fields, *kernels)
        self.norm2 = steerable_norm(group, out_fields)
        self.activation = SteerableActivation(group)
        if in_fields != out_fields:
            projection = SteerableConvolution(group.name, "fields", in_fields, out_fields, 1)
            self.shortcut = nn.Sequential(projection, steerable_norm(group, out_fields))
        else:
            self.shortcut = nn.Identity() if group.order is not None else MixedBlocks(fourier_values())


class SteerableResNet(SymmetricResNet):
    """Square images [N, in_chans, S, S] to features [N, num_features].

    Its weights fit any size, its symmetry only some: with four stages, S must be a multiple of 32 with the stem for
    large images, and of 16 with the other one.

    Args:
        group: "c8", any other C_N as "c2", "c3", ..., or "so2".
        blocks: basic blocks of each stage.
        channels: of each stage, multiples of N, or of 7 for so2.
        stem: "large_images": a convolution, and the maps halved twice. "small_images": halved once.
        features: "regular": the pooled fields, [N, channels[-1]]. "invariant": their means over the orientations,
            [N, C], C = channels[-1] / N (/ 7 for so2). "both", for C_N: first the means, then the fields; so2's fields
            begin with their means as they are.
        kernel_size: of all convolutions but those of shortcuts, odd.
        max_frequency: largest angular frequency of kernels. With 2, a layer can do more, and features follow turns by
            other angles than 90 degrees less well, see `ssl_equi.encoders.steerable.layers`.

    Making one raises EncoderError without the library escnn.
    """

    head: SteerableFeatures

    def __init__(
        self,
        group: str = "c8",
        blocks: tuple[int, ...] = (2, 2, 2, 2),
        channels: tuple[int, ...] = (64, 128, 256, 512),
        stem: Stem = "large_images",
        img_size: int | tuple[int, int] = 224,
        features: Features = "regular",
        kernel_size: int = 5,
        max_frequency: int = 1,
        num_classes: int = 0,
        in_chans: int = 3,
    ) -> None:
        known = steerable_group(group)
        fields = fields_of_channels(group, known.channels_per_field, channels)
        pools = {"large_images": 2, "small_images": 1}
        if stem not in pools:
            raise ValueError(f"stem is {stem!r}: choose 'large_images' or 'small_images'")
        stem_windows = [antialiased_window(f"pool.{number}") for number in range(pools[stem])]
        # Every stage but the first halves the map.
        windows = [*stem_windows, *(antialiased_window(f"stages.{stage}.0") for stage in range(1, len(blocks)))]
        super().__init__(windows, img_size, blocks, channels, (1, 2 ** len(stem_windows)), num_classes, in_chans)
        self.steerable_group = known
        self.symmetries = Symmetries(group, known.quarter_turns, act_on_image)
        head = SteerableFeatures(known, fields[-1], features)
        kernels = (kernel_size, max_frequency)
        self.conv1 = SteerableConvolution(group, "image", in_chans, fields[0], *kernels)
        self.norm1 = steerable_norm(known, fields[0])
        self.activation = SteerableActivation(known)
        self.pool = nn.Sequential(*(AntialiasedPooling(window.name) for window in stem_windows))
        self.stages = nn.Sequential()
        for number, (in_fields, out_fields, depth) in enumerate(zip([fields[0], *fields], fields, blocks)):
            widths = [in_fields, *[out_fields] * depth]
            layers: list[nn.Module] = [AntialiasedPooling(f"stages.{number}.0")] if number else []
            layers += [SteerableBasicBlock(known, before, after, *kernels) for before, after in pairwise(widths)]
            self.stages.append(nn.Sequential(*layers))
        self.head = head
        self.add_classifier()

    def act_on_features(self, element: Element, features: Tensor) -> Tensor:
        """The features of g x, from those of x: [N, num_features] to the same shape.

        What turning does to features is known exactly; the network does it to images only approximately, unless the
        angle is a multiple of 90 degrees. The element is a quarter turn by its number, or degrees counter-clockwise as
        a float: for C_N multiples of 360/N, for so2 any.
        """
        return self.head.turn(self.steerable_group.angle_deg(element), features)

    def act_on_layer(self, layer: str, element: Element, maps: Tensor) -> Tensor | None:
        angle_deg = self.steerable_group.angle_deg(element)
        if isinstance(element, int):
            return act_on_image(element, self.steerable_group.act_on_stack(angle_deg, maps))
        return None  # maps of other turns are between the pixels


register_resnets(
    __name__,
    SteerableResNet,
    {"c8_resnet18": {"group": "c8"}, "so2_resnet18": {"group": "so2", "channels": (56, 112, 224, 448)}},
    image_size=224,
)
_SMALL = {"blocks": (1, 1, 1, 1), "stem": "small_images"}
register_resnets(
    __name__,
    SteerableResNet,
    {
        "c8_resnet10_small_images": {"group": "c8", "channels": (32, 64, 128, 256), **_SMALL},
        "so2_resnet10_small_images": {"group": "so2", "channels": (28, 56, 112, 224), **_SMALL},
    },
    image_size=64,
)
