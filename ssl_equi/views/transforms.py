"""Random transforms of batches that say what they drew: see `ssl_equi.views.transform.Transform` for their use.

The distributions are those of `torchvision.transforms.v2`, except that here everything is drawn for each image apart,
the order of the colour changes included. Angles are counter-clockwise.
"""

import functools
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from ssl_equi.views import exact, operations
from ssl_equi.views.parameters import (
    AffineParameters,
    BlurParameters,
    ColorJitterParameters,
    CropParameters,
    FlipParameters,
    GrayscaleParameters,
    InversionParameters,
    JigsawParameters,
    QuarterTurnParameters,
    RotationParameters,
    SolarizeParameters,
)
from ssl_equi.views.transform import (
    OccasionalTransform,
    Operation,
    Transform,
    check_from_zero,
    check_interval,
    uniform,
    where_applied,
)

CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class Crop(Transform[CropParameters]):
    """A rectangle of the source, resized to a square; the base of both crops."""

    size: int
    """side of the result in pixels"""
    interpolation: operations.Interpolation = field(default="bilinear", kw_only=True)
    """bilinear or bicubic; both average when they shrink (antialiasing)"""
    name: ClassVar[str] = "crop"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a crop has size {self.size}: use at least 1 pixel")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"a crop has interpolation {self.interpolation!r}: use 'bilinear' or 'bicubic'")

    def _settings(self) -> tuple[Any, ...]:
        return self.size, self.interpolation

    def _parameters(
        self, source_sizes: Tensor, *, top: Tensor, left: Tensor, height: Tensor, width: Tensor
    ) -> CropParameters:
        return CropParameters(
            applied=torch.ones(len(source_sizes), dtype=torch.bool),
            top=top.float(),
            left=left.float(),
            height=height.float(),
            width=width.float(),
            source_height=source_sizes[:, 0].float(),
            source_width=source_sizes[:, 1].float(),
            output_size=self.size,
        )

    def _operation(self, parameters: CropParameters) -> Operation:
        tallest, widest = int(parameters.source_height.max()), int(parameters.source_width.max())
        edges = [parameters.top, parameters.left, parameters.height, parameters.width]

        def change(images: Tensor, boxes: Tensor) -> Tensor:
            height, width = images.shape[2:]
            if tallest > height or widest > width:
                raise ValueError(
                    f"images of {height} x {width} pixels are smaller than the sources that crops were drawn for: "
                    "pass the images whose sizes were given to draw"
                )
            return operations.crop_and_resize(images, boxes, parameters.output_size, self.interpolation)

        return Operation(change, (torch.stack(edges, dim=1).round().long(),))


@dataclass(frozen=True)
class RandomResizedCrop(Crop):
    """A random rectangle: its share of the area and the logarithm of its ratio are uniform.

    Of ten rectangles the first that fits is taken; if none does, the largest central one of an allowed ratio.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    """least and greatest share of the source's area"""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """least and greatest width divided by height"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_interval("a crop's scale", self.scale, 0, 1, "two shares of the area above 0 and up to 1, low to high")
        check_interval("a crop's ratio", self.ratio, 0, math.inf, "two positive numbers, low to high")

    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> CropParameters:
        sizes = source_sizes.double()
        attempts = (count, CROP_ATTEMPTS)
        area = sizes.prod(dim=1, keepdim=True) * uniform(attempts, *self.scale, generator)
        ratio = uniform(attempts, math.log(self.ratio[0]), math.log(self.ratio[1]), generator).exp()
        sides = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], dim=2).round()
        fits = ((sides >= 1) & (sides <= sizes.unsqueeze(1))).all(dim=2)
        first_that_fits = fits.int().argmax(dim=1)
        random_sides = sides[torch.arange(count), first_that_fits]
        random_corners = ((sizes - random_sides + 1) * uniform((count, 2), 0, 1, generator)).floor()

        height, width = sizes.unbind(dim=1)
        tallest, widest = (width / self.ratio[0]).round().clamp(min=1), (height * self.ratio[1]).round().clamp(min=1)
        central_sides = torch.minimum(sizes, torch.stack([tallest, widest], dim=1))
        central_corners = ((sizes - central_sides) / 2).floor()

        found = fits.any(dim=1, keepdim=True)
        top, left = torch.where(found, random_corners, central_corners).unbind(dim=1)
        height, width = torch.where(found, random_sides, central_sides).unbind(dim=1)
        return self._parameters(source_sizes, top=top, left=left, height=height, width=width)


@dataclass(frozen=True)
class CentralCrop(Crop):
    """The central square; nothing is random."""

    fraction: float = 1.0
    """side of the square as a share of the source's shorter side"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_interval("a central crop's fraction", (self.fraction,) * 2, 0, 1, "a number above 0 and up to 1")

    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> CropParameters:
        sizes = source_sizes.double()
        side = (sizes.amin(dim=1) * self.fraction).round().clamp(min=1)
        top, left = ((sizes - side.unsqueeze(1)) / 2).floor().unbind(dim=1)
        return self._parameters(source_sizes, top=top, left=left, height=side, width=side)


@dataclass(frozen=True)
class HorizontalFlip(OccasionalTransform[FlipParameters]):
    """Swaps left and right."""

    probability: float = field(default=0.5, kw_only=True)
    """probability that an image is transformed"""
    name: ClassVar[str] = "horizontal_flip"

    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> FlipParameters:
        return FlipParameters(self._draw_applied(count, generator))

    def _operation(self, parameters: FlipParameters) -> Operation:
        return Operation(exact.flip_horizontally)


@dataclass(frozen=True)
class VerticalFlip(OccasionalTransform[FlipParameters]):
    """Swaps top and bottom."""

    probability: float = field(default=0.5, kw_only=True)
    """probability that an image is transformed"""
    name: ClassVar[str] = "vertical_flip"

    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> FlipParameters:
        return FlipParameters(self._draw_applied(count, generator))

    def _operation(self, parameters: FlipParameters) -> Operation:
        return Operation(exact.flip_vertically)


@dataclass(frozen=True)
class ColorJitter(OccasionalTransform[ColorJitterParameters]):
    """Brightness, contrast, saturation and hue, in an order drawn for each image.

    A factor is uniform in [max(0, 1 - x), 1 + x], where x is the field of that name; 0 leaves that property alone.
    """

    brightness: float
    """range of the factor of all values"""
    contrast: float
    """range of the factor of the distance to the image's mean grey"""
    saturation: float
    """range of the factor of the distance to the pixel's grey"""
    hue: float
    """greatest shift in either direction, a fraction of the colour circle up to 0.5"""
    compiled: bool = field(default=False, kw_only=True)
    """whether a GPU runs compiled code"""
    name: ClassVar[str] = "jitter"

    def __post_init__(self) -> None:
        super().__post_init__()
        for property_name in ("brightness", "contrast", "saturation"):
            check_from_zero(f"the jitter's {property_name}", getattr(self, property_name))
        check_from_zero("the jitter's hue", self.hue, highest=0.5)

    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> ColorJitterParameters:
        applied = self._draw_applied(count, generator)

        def factor(strength: float) -> Tensor:
            drawn = uniform(count, max(0.0, 1 - strength), 1 + strength, generator)
            return where_applied(applied, drawn, 1)

        return ColorJitterParameters(
            applied=applied,
            brightness=factor(self.brightness),
            contrast=factor(self.contrast),
            saturation=factor(self.saturation),
            hue=where_applied(applied, uniform(count, -self.hue, self.hue, generator), 0),
            order=uniform((count, 4), 0, 1, generator).argsort(dim=1),
        )

    def _settings(self) -> tuple[Any, ...]:
        return (self.compiled,)

    def _operation(self, parameters: ColorJitterParameters) -> Operation:
        values = torch.stack([parameters.brightness, parameters.contrast, parameters.saturation, parameters.hue], dim=1)
        change = functools.partial(operations.adjust_colours, compiled=self.compiled)
        return Operation(change, (values, parameters.order.argsort(dim=1)))


@dataclass(frozen=True)
class Grayscale(OccasionalTransform[GrayscaleParameters]):
    """Takes the colour away: three equal channels."""

    name: ClassVar[str] = "grayscale"

    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> GrayscaleParameters:
        return GrayscaleParameters(self._draw_applied(count, generator))

    def _operation(self, parameters: GrayscaleParameters) -> Operation:
        return Operation(operations.to_grayscale)


@dataclass(frozen=True)
class GaussianBlur(OccasionalTransform[BlurParameters]):
    """Convolution with a Gaussian whose standard deviation is uniform in `sigma`."""

    kernel_size: int
    """pixels, odd; SimCLR takes about a tenth of the image's side"""
    sigma: tuple[float, float] = (0.1, 2.0)
    """least and greatest standard deviation in pixels of the image as it is blurred"""
    name: ClassVar[str] = "blur"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"the blur's kernel size is {self.kernel_size}: use a positive odd number")
        check_interval("the blur's sigma", self.sigma, 0, math.inf, "two positive numbers of pixels, low to high")

    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> BlurParameters:
        applied = self._draw_applied(count, generator)
        return BlurParameters(applied, sigma=where_applied(applied, uniform(count, *self.sigma, generator), 0))

    def _settings(self) -> tuple[Any, ...]:
        return (self.kernel_size,)

    def _operation(self, parameters: BlurParameters) -> Operation:
        def change(images: Tensor, weights: Tensor) -> Tensor:
            return operations.blur_by_weights(images, weights, self.kernel_size)

        return Operation(change, (operations.blur_weights(parameters.sigma, self.kernel_size),))


@dataclass(frozen=True)
class Solarize(OccasionalTransform[SolarizeParameters]):
    """Inverts all values from the threshold upwards."""

    threshold: float = 0.5
    """value in [0, 1]; 128 of 255 in BYOL, up to rounding"""
    name: ClassVar[str] = "solarize"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_from_zero("the solarisation's threshold", self.threshold, highest=1)

    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> SolarizeParameters:
        applied = self._draw_applied(count, generator)
        threshold = torch.full((count,), self.threshold, dtype=torch.float64)
        return SolarizeParameters(applied, threshold=where_applied(applied, threshold, 1))

    def _operation(self, parameters: SolarizeParameters) -> Operation:
        return Operation(operations.solarize, (parameters.threshold,))


@dataclass(frozen=True)
class QuarterTurn(OccasionalTransform[QuarterTurnParameters]):
    """0, 1, 2 or 3 quarter turns with equal probability, exact on pixels; for square images."""

    name: ClassVar[str] = "quarter_turn"

    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> QuarterTurnParameters:
        applied = self._draw_applied(count, generator)
        return QuarterTurnParameters(applied, turns=torch.randint(4, (count,), generator=generator) * applied)

    def _operation(self, parameters: QuarterTurnParameters) -> Operation:
        return Operation(exact.quarter_turns, (parameters.turns,))


@dataclass(frozen=True)
class Rotation(OccasionalTransform[RotationParameters]):
    """Rotation about the centre by a uniform angle; bilinear, black outside."""

    max_angle_rad: float
    """greatest angle in either direction, up to pi"""
    name: ClassVar[str] = "rotation"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_from_zero("the rotation's greatest angle", self.max_angle_rad, highest=math.pi)

    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> RotationParameters:
        applied = self._draw_applied(count, generator)
        angle_rad = uniform(count, -self.max_angle_rad, self.max_angle_rad, generator)
        return RotationParameters(applied, angle_rad=where_applied(applied, angle_rad, 0))

    def _operation(self, parameters: RotationParameters) -> Operation:
        return Operation(operations.rotate, (parameters.angle_rad,))


@dataclass(frozen=True)
class Affine(OccasionalTransform[AffineParameters]):
    """Shear, scale, rotation and translation, each uniform in its range; bilinear, black outside."""

    max_angle_rad: float = 0.0
    """greatest rotation in either direction, up to pi"""
    max_translate: float = 0.0
    """greatest translation in each of the four directions, a fraction of the image's side up to 1"""
    scale: tuple[float, float] = (1.0, 1.0)
    """least and greatest factor; above 1 enlarges the content"""
    max_shear_rad: float = 0.0
    """greatest shear angle along each axis in either direction, up to 1.5"""
    name: ClassVar[str] = "affine"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_from_zero("the affine map's greatest angle", self.max_angle_rad, highest=math.pi)
        check_from_zero("the affine map's greatest translation", self.max_translate, highest=1)
        check_from_zero("the affine map's greatest shear angle", self.max_shear_rad, highest=1.5)
        check_interval("the affine map's scale", self.scale, 0, math.inf, "two positive factors, low to high")

    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> AffineParameters:
        applied = self._draw_applied(count, generator)

        def symmetric(greatest: float) -> Tensor:
            return where_applied(applied, uniform(count, -greatest, greatest, generator), 0)

        return AffineParameters(
            applied=applied,
            angle_rad=symmetric(self.max_angle_rad),
            translate_right=symmetric(self.max_translate),
            translate_down=symmetric(self.max_translate),
            scale=where_applied(applied, uniform(count, *self.scale, generator), 1),
            shear_x_rad=symmetric(self.max_shear_rad),
            shear_y_rad=symmetric(self.max_shear_rad),
        )

    def _operation(self, parameters: AffineParameters) -> Operation:
        names = ("angle_rad", "translate_right", "translate_down", "scale", "shear_x_rad", "shear_y_rad")

        def change(images: Tensor, *values: Tensor) -> Tensor:
            return operations.affine(images, **dict(zip(names, values, strict=True)))

        return Operation(change, tuple(getattr(parameters, name) for name in names))


@dataclass(frozen=True)
class Jigsaw(OccasionalTransform[JigsawParameters]):
    """One of the 24 arrangements of the image's quarters, with equal probability; for even sides."""

    name: ClassVar[str] = "jigsaw"

    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> JigsawParameters:
        applied = self._draw_applied(count, generator)
        return JigsawParameters(applied, permutation=torch.randint(24, (count,), generator=generator) * applied)

    def _operation(self, parameters: JigsawParameters) -> Operation:
        return Operation(exact.jigsaw, (parameters.permutation,))


@dataclass(frozen=True)
class Inversion(OccasionalTransform[InversionParameters]):
    """Replaces every value v by 1 - v."""

    name: ClassVar[str] = "inversion"

    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> InversionParameters:
        return InversionParameters(self._draw_applied(count, generator))

    def _operation(self, parameters: InversionParameters) -> Operation:
        return Operation(exact.invert)
