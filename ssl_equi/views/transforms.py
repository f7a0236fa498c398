"""Random transforms of batches that say what they drew.

The distributions are those of `torchvision.transforms.v2`, except that here everything is drawn for each image apart,
the order of the colour changes included.
"""

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Generator, Tensor

from ssl_equi.runtime.device_copies import copy_together
from ssl_equi.views import operations
from ssl_equi.views.parameters import (
    BlurParameters,
    ColorJitterParameters,
    CropParameters,
    FlipParameters,
    GrayscaleParameters,
    SolarizeParameters,
    TransformParameters,
)

CROP_ATTEMPTS = 10
Parameters = TypeVar("Parameters", bound=TransformParameters)


@dataclass(frozen=True)
class Operation:
    """What is done to some images, and what a device has to be told for it."""

    change: Callable[..., Tensor]
    """(images, *tensors) -> new images"""
    tensors: tuple[Tensor, ...] = ()
    """as they were drawn, on the CPU; `perform` copies those of several operations together"""

    def on_rows(self, rows: Tensor) -> "Operation":
        """The same for some images of a batch; the others come back equal to the bit."""

        def change_rows(images: Tensor, rows: Tensor, *tensors: Tensor) -> Tensor:
            return images.index_copy(0, rows, self.change(images[rows], *tensors))

        return Operation(change_rows, (rows, *self.tensors))

    def where(self, mask: Tensor) -> "Operation":
        """The same for all images, of which those keep what it gives where the mask, bool [N], is true."""

        def change_all(images: Tensor, mask: Tensor, *tensors: Tensor) -> Tensor:
            return torch.where(mask.view(-1, 1, 1, 1), self.change(images, *tensors), images)

        return Operation(change_all, (mask, *self.tensors))


@torch.no_grad()
def perform(steps: Sequence[Operation], images: Tensor) -> Tensor:
    """Changes images by one operation after another, for which the host never waits."""
    there = iter(copy_together([tensor for step in steps for tensor in step.tensors], images.device))
    with torch.autocast(images.device.type, enabled=False):
        for operation in steps:
            images = operation.change(images, *itertools.islice(there, len(operation.tensors)))
    return images


class Transform(ABC, Generic[Parameters]):
    """Draws one row of parameters per image, and says what is done to images by rows that it is given.

    Images are float32 [N, 3, H, W] in [0, 1]; no gradients flow through. Rows that were not applied come back equal to
    the bit; on the CPU they are not computed, either. Parameters stay on the CPU, where they are drawn: then the host
    never waits for a device.
    """

    name: ClassVar[str]
    """the transform's field in `ssl_equi.views.parameters.ViewParameters`"""
    settings: ClassVar[tuple[str, ...]] = ()
    """fields that the operation depends on besides the parameters; the others are for drawing"""

    @abstractmethod
    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> Parameters:
        """Parameters of `count` images, on the CPU.

        Args:
            count: N.
            source_sizes: int64 [N, 2], height and width of the images in pixels; only crops look at them.
            generator: on the CPU.
        """

    def operations(self, parameters: Parameters, device: torch.device) -> list[Operation]:
        """What `perform` does on a device with these parameters: one operation, or none where no row was applied."""
        rows = parameters.applied.nonzero().squeeze(1)
        if len(rows) == 0:
            return []
        if len(rows) == len(parameters):
            return [self._operation(parameters)]
        if device.type == "cpu":
            return [self._operation(parameters.rows(rows)).on_rows(rows)]
        # A GPU changes all images in less time than it takes to launch what picks some of them.
        return [self._operation(parameters).where(parameters.applied)]

    def changes_like(self, other: "Transform[Any]") -> bool:
        """Whether both make the same of equal parameters, whatever they draw."""
        return self.name == other.name and all(getattr(self, own) == getattr(other, own) for own in self.settings)

    @abstractmethod
    def _operation(self, parameters: Parameters) -> Operation:
        """Transforms as many images as there are rows, each of them."""


@dataclass(frozen=True)
class OccasionalTransform(Transform[Parameters]):
    """A transform that is applied to a share of the images, each by a draw of its own."""

    probability: float = field(default=1.0, kw_only=True)
    """probability that an image is transformed"""

    def _draw_applied(self, count: int, generator: Generator) -> Tensor:
        """bool [count]"""
        return torch.rand(count, generator=generator, dtype=torch.float64) < self.probability


def uniform(shape: int | tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    """float64 values in [low, high)."""
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def where_applied(applied: Tensor, values: Tensor, neutral: float) -> Tensor:
    """float32: the values, or the neutral one where the transform is not applied."""
    return torch.where(applied, values, neutral).float()


@dataclass(frozen=True)
class Crop(Transform[CropParameters]):
    """A rectangle of the source, resized to a square; the base of both crops."""

    size: int
    """side of the result in pixels"""
    interpolation: operations.Interpolation = field(default="bilinear", kw_only=True)
    """bilinear or bicubic; both average when they shrink (antialiasing)"""
    name: ClassVar[str] = "crop"
    settings: ClassVar[tuple[str, ...]] = ("size", "interpolation")

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
        edges = [parameters.top, parameters.left, parameters.height, parameters.width]
        change = functools.partial(
            operations.crop_and_resize, output_size=parameters.output_size, interpolation=self.interpolation
        )
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

    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> CropParameters:
        sizes = source_sizes.double()
        attempts = (count, CROP_ATTEMPTS)
        area = sizes.prod(dim=1, keepdim=True) * uniform(attempts, *self.scale, generator)
        ratio = uniform(attempts, math.log(self.ratio[0]), math.log(self.ratio[1]), generator).exp()
        sides = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], dim=2).round()
        fits = ((sides >= 1) & (sides <= sizes.unsqueeze(1))).all(dim=2)
        first_that_fits = fits.int().argmax(dim=1)  # of equal values, argmax takes the first
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

    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> CropParameters:
        sizes = source_sizes.double()
        side = sizes.amin(dim=1)
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
        return Operation(lambda images: images.flip(3))


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
    settings: ClassVar[tuple[str, ...]] = ("compiled",)

    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> ColorJitterParameters:
        applied = self._draw_applied(count, generator)

        # Images that stay as they are take their random numbers, too, so that the others' don't depend on them.
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
    settings: ClassVar[tuple[str, ...]] = ("kernel_size",)

    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> BlurParameters:
        applied = self._draw_applied(count, generator)
        return BlurParameters(applied, sigma=where_applied(applied, uniform(count, *self.sigma, generator), 0))

    def _operation(self, parameters: BlurParameters) -> Operation:
        change = functools.partial(operations.blur_by_weights, kernel_size=self.kernel_size)
        return Operation(change, (operations.blur_weights(parameters.sigma, self.kernel_size),))


@dataclass(frozen=True)
class Solarize(OccasionalTransform[SolarizeParameters]):
    """Inverts all values from the threshold upwards."""

    threshold: float = 0.5
    """value in [0, 1]; 128 of 255 in BYOL, up to rounding"""
    name: ClassVar[str] = "solarize"

    def draw(self, count: int, source_sizes: Tensor, generator: Generator) -> SolarizeParameters:
        applied = self._draw_applied(count, generator)
        threshold = torch.full((count,), self.threshold, dtype=torch.float64)
        return SolarizeParameters(applied, threshold=where_applied(applied, threshold, 1))

    def _operation(self, parameters: SolarizeParameters) -> Operation:
        return Operation(operations.solarize, (parameters.threshold,))
