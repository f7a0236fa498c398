"""What was drawn for each view: tensors with units, enough to make the same view again.

N is the number of images. Every class has `applied`, bool [N]; a row that was not applied holds the neutral value
(factor 1, hue 0, sigma 0, threshold 1, the whole source as the crop).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

AnyParameters = TypeVar("AnyParameters", bound="ParameterRows")


@dataclass(frozen=True)
class ParameterRows:
    """Rows of drawn parameters, one per image; the base of every class in this file."""

    def __len__(self) -> int:
        """The number of images."""
        return max((len(value) for value in self._values().values()), default=0)

    def to(self: AnyParameters, device: torch.device | str) -> AnyParameters:
        """The same values on another device."""
        return replace(self, **{name: value.to(device) for name, value in self._values().items()})

    def rows(self: AnyParameters, index: slice | Tensor) -> AnyParameters:
        """The parameters of the chosen images: a slice, indices or a bool mask."""
        selected = {
            name: value.rows(index) if isinstance(value, ParameterRows) else value[index]
            for name, value in self._values().items()
        }
        return replace(self, **selected)

    def _values(self) -> dict[str, Any]:
        """The fields with one row per image: tensors, and parameters within parameters."""
        return {name: value for name, value in vars(self).items() if isinstance(value, (Tensor, ParameterRows))}


@dataclass(frozen=True)
class TransformParameters(ParameterRows):
    """What was drawn for one transform."""

    applied: Tensor
    """bool [N]; False where the transform left the image as it was"""


@dataclass(frozen=True)
class CropParameters(TransformParameters):
    """A rectangle of the source image, resized to a square of `output_size` pixels; always applied."""

    top: Tensor
    """float32 [N], pixels of the source image: the rectangle's upper edge"""
    left: Tensor
    """float32 [N], pixels of the source image: the rectangle's left edge"""
    height: Tensor
    """float32 [N], pixels of the source image"""
    width: Tensor
    """float32 [N], pixels of the source image"""
    source_height: Tensor
    """float32 [N], pixels"""
    source_width: Tensor
    """float32 [N], pixels"""
    output_size: int
    """side of the result in pixels, the same for all images"""


@dataclass(frozen=True)
class FlipParameters(TransformParameters):
    """Left and right swapped."""


@dataclass(frozen=True)
class ColorJitterParameters(TransformParameters):
    """Brightness, contrast, saturation and hue, changed one after another in an order of each image's own."""

    brightness: Tensor
    """float32 [N], factor"""
    contrast: Tensor
    """float32 [N], factor of the distance to the image's mean grey value"""
    saturation: Tensor
    """float32 [N], factor of the distance to the pixel's grey value"""
    hue: Tensor
    """float32 [N], fraction of the colour circle in [-0.5, 0.5]; 1/3 takes red to green"""
    order: Tensor
    """int64 [N, 4], which comes first to last: 0 brightness, 1 contrast, 2 saturation, 3 hue"""


@dataclass(frozen=True)
class GrayscaleParameters(TransformParameters):
    """Colour removed; the three channels stay."""


@dataclass(frozen=True)
class BlurParameters(TransformParameters):
    """Convolution with a Gaussian."""

    sigma: Tensor
    """float32 [N], standard deviation in pixels of the blurred image"""


@dataclass(frozen=True)
class SolarizeParameters(TransformParameters):
    """Inversion of all values from a threshold upwards."""

    threshold: Tensor
    """float32 [N] in [0, 1]; 1 where it was not applied"""


@dataclass(frozen=True)
class ViewParameters(ParameterRows):
    """All that was drawn for a batch of views; a transform that the pipeline does not have is None."""

    crop: CropParameters | None = None
    horizontal_flip: FlipParameters | None = None
    jitter: ColorJitterParameters | None = None
    grayscale: GrayscaleParameters | None = None
    blur: BlurParameters | None = None
    solarize: SolarizeParameters | None = None


def concatenate(parameters: Sequence[AnyParameters]) -> AnyParameters:
    """Joins the rows of several parameters that one pipeline drew, in order."""
    first = parameters[0]
    joined: dict[str, Any] = {}
    for name, value in first._values().items():
        values = [getattr(other, name) for other in parameters]
        joined[name] = concatenate(values) if isinstance(value, ParameterRows) else torch.cat(values)
    return replace(first, **joined)
