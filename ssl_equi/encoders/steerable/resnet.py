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
(`ssl_equi.probing.symmetry_errors`), with random weights, three seeds, 64 pixels, interpolation included: invariant
features .06 to .08 for c8_resnet10_small_images, .06 to .09 for so2_resnet10_small_images; .32 to .52 for
c4_resnet10_small_images, .27 to .33 for timm's resnet10t. Regular ones change by .36 to .40 (c8) and .23 to .36 (so2),
of which what the turn does to them explains all but .15 to .17 and .09 to .12.
"""

from itertools import pairwise
from typing import Any, Literal

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ssl_equi.encoders.square.convolutions import OrientationBatchNorm
from ssl_equi.encoders.square.features import Features
from ssl_equi.encoders.square.sampling import Window
from ssl_equi.encoders.square.symmetries import TURNS, act_on_image
from ssl_equi.encoders.steerable.groups import SteerableFeatures, SteerableGroup, steerable_group
from ssl_equi.encoders.steerable.layers import (
    AntialiasedPooling,
    FourierCoefficients,
    FourierValues,
    SteerableConvolution,
    antialiased_window,
)
from ssl_equi.encoders.symmetric_resnet import (
    ResNetLayers,
    SymmetricResNet,
    check_blocks,
    check_image_size,
    fields_of_channels,
    fit_colours,
    resnet_feature_info,
    timm_cfg,
)

__all__ = ["SteerableResNet"]

Stem = Literal["large_images", "small_images"]
QUARTER_TURN_DEG = 90


class SteerableActivation(nn.Module):
    """A pointwise function of fields: ReLU for C_N; for so2 ELU at 16 orientations, back to Fourier coefficients.

    Takes values at all orientations, as `steerable_norm` gives them.
    """

    def __init__(self, group: SteerableGroup) -> None:
        super().__init__()
        self.function = nn.ReLU() if group.order is not None else nn.ELU()
        self.to_fields = nn.Identity() if group.order is not None else FourierCoefficients()

    def forward(self, values: Tensor) -> Tensor:
        """[N, orientations * C, h, w] to fields [N, channels_per_field * C, h, w]."""
        return self.to_fields(self.function(values))


def steerable_norm(group: SteerableGroup, fields: int) -> nn.Module:
    """Batch norm of fields that gives their values at the orientations of the group, [N, orientations * C, h, w]."""
    norm = OrientationBatchNorm(group.orientations, fields)
    return norm if group.order is not None else nn.Sequential(FourierValues(), norm)


class SteerableBasicBlock(nn.Module):
    """Two steerable convolutions and a shortcut: fields to fields on maps of the same side.

    Args:
        group: of `ssl_equi.encoders.steerable.groups`.
        in_fields, out_fields: how many.
        kernel_size, max_frequency: of the two convolutions' kernels.
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
        self.shortcut: nn.Module
        if in_fields != out_fields:
            projection = SteerableConvolution(group.name, "fields", in_fields, out_fields, 1)
            self.shortcut = nn.Sequential(projection, steerable_norm(group, out_fields))
        else:
            self.shortcut = nn.Identity() if group.order is not None else FourierValues()

    def forward(self, maps: Tensor) -> Tensor:
        """[N, channels_per_field * in_fields, h, w] to [N, channels_per_field * out_fields, h, w]."""
        residual = self.activation(self.norm1(self.conv1(maps)))
        residual = self.norm2(self.conv2(residual))
        return self.activation(residual + self.shortcut(maps))


class SteerableResNet(SymmetricResNet):
    """Square images [N, in_chans, S, S] to features [N, num_features].

    Its weights fit any size, its symmetry only some: with four stages, S must be a multiple of 32 with the stem for
    large images, and of 16 with the other one.

    Args:
        group: "c8", any other C_N as "c2", "c3", ..., or "so2".
        blocks: basic blocks of each stage.
        channels: of each stage, multiples of N, or of 7 for so2.
        stem: "large_images": a convolution, and the maps halved twice. "small_images": halved once.
        img_size: S, or (S, S): sizes that break the symmetry are refused here, others also when they come.
        features: "regular": the pooled fields, [N, channels[-1]]. "invariant": their means over the orientations,
            [N, C], C = channels[-1] / N (/ 7 for so2). "both", for C_N: first the means, then the fields; so2's fields
            begin with their means as they are.
        kernel_size: of all convolutions but those of shortcuts, odd.
        max_frequency: largest angular frequency of kernels. With 2, a layer can do more, and features follow turns by
            other angles than 90 degrees less well, see `ssl_equi.encoders.steerable.layers`.
        num_classes: outputs of a classifier on top, or 0.
        in_chans: colour channels.

    Attributes:
        num_features: width of the features.
        parts: columns of the features by name: all; inv (do not change with the group) and equi (do), where there are
            such.

    Raises:
        ValueError: an argument is out of range, or images of this size break the symmetry; the message names the layer
            and the nearest legal size.
        EncoderError: escnn is missing.
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
        check_blocks(blocks, channels)
        stem_windows, stage_windows = _stem_windows(stem), _stage_windows(len(blocks))
        windows = [*stem_windows, *stage_windows]
        check_image_size(windows, img_size)
        head = SteerableFeatures(known, fields[-1], features)
        layers = ResNetLayers(
            conv1=SteerableConvolution(group, "image", in_chans, fields[0], kernel_size, max_frequency),
            norm1=steerable_norm(known, fields[0]),
            activation=SteerableActivation(known),
            pool=nn.Sequential(*(AntialiasedPooling(window.name) for window in stem_windows)),
            stages=_stages(known, fields, blocks, (kernel_size, max_frequency)),
        )
        feature_info = resnet_feature_info(channels, first_map=1, first_stage=2 ** len(stem_windows))
        super().__init__(layers, head, windows, feature_info, num_classes, in_chans)
        self.group, self.steerable_group = group, known

    def act_on_maps(self, g: int, maps: Tensor) -> Tensor:
        """The last fields of g x, from those of x; g as in `act_on_features`.

        Raises:
            ValueError: the group has no such element.
        """
        return act_on_image(g, self.steerable_group.act_on_stack(self._angle_deg(g), maps))

    def act_on_features(self, g: int, features: Tensor) -> Tensor:
        """The features of g x, from those of x: [N, num_features] to the same shape.

        Args:
            g: a turn by 90 g degrees that the group has, numbered as in `ssl_equi.encoders.square.symmetries`. These
                are the elements for which the network is exact.
            features: of this encoder.

        Raises:
            ValueError: the group has no such element, or the features have another width.
        """
        return self.head.turn(self._angle_deg(g), features)

    def turn_features(self, angle_deg: float, features: Tensor) -> Tensor:
        """The features of an image turned counter-clockwise by an angle, from those of the image.

        What turning does to features is known exactly; the network does it to images only approximately, unless the
        angle is a multiple of 90 degrees.

        Args:
            angle_deg: for C_N a multiple of 360/N degrees, for so2 any.
            features: [N, num_features], of this encoder.

        Raises:
            ValueError: the group has no such turn, or the features have another width.
        """
        return self.head.turn(angle_deg, features)

    def _angle_deg(self, g: int) -> int:
        order = self.steerable_group.order
        if not 0 <= g < TURNS or (order is not None and g * order % TURNS):
            turns = [turn for turn in range(TURNS) if order is None or turn * order % TURNS == 0]
            raise ValueError(
                f"element is {g}: of the symmetries of the square, {self.group} has "
                f"{', '.join(map(str, turns))} (turns by 90 degrees times these)"
            )
        return g * QUARTER_TURN_DEG


def _stem_windows(stem: Stem) -> list[Window]:
    """Every window of the stem that moves in steps larger than 1."""
    pools = {"large_images": 2, "small_images": 1}
    if stem not in pools:
        raise ValueError(f"stem is {stem!r}: choose 'large_images' or 'small_images'")
    return [antialiased_window(f"pool.{number}") for number in range(pools[stem])]


def _stage_windows(stages: int) -> list[Window]:
    """Those of the stages, of which every one but the first halves the map."""
    return [antialiased_window(f"stages.{stage}.0") for stage in range(1, stages)]


def _stages(
    group: SteerableGroup, fields: list[int], blocks: tuple[int, ...], kernels: tuple[int, int]
) -> nn.Sequential:
    """Basic blocks with kernels of (kernel_size, max_frequency); every stage but the first halves the map first."""
    stages = []
    for number, (in_fields, out_fields, depth) in enumerate(zip([fields[0], *fields], fields, blocks)):
        widths = [in_fields, *[out_fields] * depth]
        layers: list[nn.Module] = [AntialiasedPooling(f"stages.{number}.0")] if number else []
        layers += [SteerableBasicBlock(group, before, after, *kernels) for before, after in pairwise(widths)]
        stages.append(nn.Sequential(*layers))
    return nn.Sequential(*stages)


default_cfgs = generate_default_cfgs(
    {
        "c8_resnet18.untrained": timm_cfg(224),
        "so2_resnet18.untrained": timm_cfg(224),
        "c8_resnet10_small_images.untrained": timm_cfg(64),
        "so2_resnet10_small_images.untrained": timm_cfg(64),
    }
)

_C8: dict[str, Any] = {"group": "c8"}
_SO2: dict[str, Any] = {"group": "so2", "channels": (56, 112, 224, 448)}
_C8_SMALL: dict[str, Any] = {
    "group": "c8", "blocks": (1, 1, 1, 1), "channels": (32, 64, 128, 256), "stem": "small_images",
}  # fmt: skip
_SO2_SMALL: dict[str, Any] = _C8_SMALL | {"group": "so2", "channels": (28, 56, 112, 224)}


def _build(name: str, pretrained: bool, arguments: dict[str, Any]) -> SteerableResNet:
    feature_cfg = {"feature_cls": "getter", "out_indices": (0, 1, 2, 3, 4)}
    return build_model_with_cfg(
        SteerableResNet, name, pretrained, pretrained_filter_fn=fit_colours, feature_cfg=feature_cfg, **arguments
    )


@register_model
def c8_resnet18(pretrained: bool = False, **kwargs: Any) -> SteerableResNet:
    """Turns by 45 degrees, for images of 224 pixels; needs escnn: 1.1 M parameters, 512 features."""
    return _build("c8_resnet18", pretrained, _C8 | kwargs)


@register_model
def so2_resnet18(pretrained: bool = False, **kwargs: Any) -> SteerableResNet:
    """All turns, for images of 224 pixels; needs escnn: 0.88 M parameters, 448 features."""
    return _build("so2_resnet18", pretrained, _SO2 | kwargs)


@register_model
def c8_resnet10_small_images(pretrained: bool = False, **kwargs: Any) -> SteerableResNet:
    """Turns by 45 degrees, for images of 64 pixels; needs escnn: 0.12 M parameters, 256 features."""
    return _build("c8_resnet10_small_images", pretrained, _C8_SMALL | kwargs)


@register_model
def so2_resnet10_small_images(pretrained: bool = False, **kwargs: Any) -> SteerableResNet:
    """All turns, for images of 64 pixels; needs escnn: 0.10 M parameters, 224 features."""
    return _build("so2_resnet10_small_images", pretrained, _SO2_SMALL | kwargs)
