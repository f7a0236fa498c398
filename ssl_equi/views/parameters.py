"""What was drawn for each view: tensors with units, enough to make the same view again.

N is the number of images. Every class has `applied`, bool [N]; a row that was not applied holds the neutral value
(factor 1, hue 0, sigma 0, angle 0, turns 0, scale 1, permutation 0, the whole source as the crop).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Rows = int | slice | Sequence[int] | Tensor
AnyParameters = TypeVar("AnyParameters", bound="ParameterRows")


@dataclass(frozen=True)
class ParameterRows:
    """Rows of drawn parameters, one an image; the base of every class in this file."""

    def __len__(self) -> int:
        """The number of images."""
        return _row_count(self)

    def to(self: AnyParameters, device: torch.device | str) -> AnyParameters:
        """The same values on another device."""
        moved = {name: value.to(device) for name, value in _row_values(self).items()}
        return replace(self, **moved)

    def rows(self: AnyParameters, index: Rows) -> AnyParameters:
        """The parameters of the chosen images: a slice, indices, a bool mask, or one number (which stays one row)."""
        chosen = index if isinstance(index, slice) else _as_selection(index, len(self))
        selected = {
            name: value.rows(chosen) if isinstance(value, ParameterRows) else value[chosen]
            for name, value in _row_values(self).items()
        }
        return replace(self, **selected)


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
    """A mirror image; the field of `ViewParameters` says which way."""


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
class QuarterTurnParameters(TransformParameters):
    """Rotation by multiples of 90 degrees, exact on pixels."""

    turns: Tensor
    """int64 [N], 0 to 3, counter-clockwise"""


@dataclass(frozen=True)
class RotationParameters(TransformParameters):
    """Rotation about the image's centre."""

    angle_rad: Tensor
    """float32 [N], counter-clockwise"""


@dataclass(frozen=True)
class AffineParameters(TransformParameters):
    """Shear (x, then y), scale and rotation about the image's centre, in this order, then translation."""

    angle_rad: Tensor
    """float32 [N], counter-clockwise"""
    translate_right: Tensor
    """float32 [N], fraction of the image's width"""
    translate_down: Tensor
    """float32 [N], fraction of the image's height"""
    scale: Tensor
    """float32 [N], factor; above 1 enlarges the content"""
    shear_x_rad: Tensor
    """float32 [N]; a positive angle moves what is above the centre to the right"""
    shear_y_rad: Tensor
    """float32 [N]; a positive angle moves what is right of the centre upwards"""


@dataclass(frozen=True)
class JigsawParameters(TransformParameters):
    """The four quarters of the image, permuted."""

    permutation: Tensor
    """int64 [N], 0 to 23; 0 is the identity"""


@dataclass(frozen=True)
class InversionParameters(TransformParameters):
    """Every value v replaced by 1 - v."""


@dataclass(frozen=True)
class ViewParameters(ParameterRows):
    """All that was drawn for a batch of views; a transform that the pipeline does not have is None."""

    crop: CropParameters | None = None
    horizontal_flip: FlipParameters | None = None
    vertical_flip: FlipParameters | None = None
    jitter: ColorJitterParameters | None = None
    grayscale: GrayscaleParameters | None = None
    blur: BlurParameters | None = None
    solarize: SolarizeParameters | None = None
    quarter_turn: QuarterTurnParameters | None = None
    rotation: RotationParameters | None = None
    affine: AffineParameters | None = None
    jigsaw: JigsawParameters | None = None
    inversion: InversionParameters | None = None


def concatenate(parameters: Sequence[AnyParameters]) -> AnyParameters:
    """Joins the rows of several parameters of one kind, in order.

    Raises:
        ValueError: if there is none, or if they are not alike (other types, transforms or output sizes).
    """
    if not parameters:
        raise ValueError("there are no parameters to concatenate: pass at least one")
    first = parameters[0]
    for other in parameters:
        if type(other) is not type(first) or _fixed_values(other) != _fixed_values(first):
            raise ValueError(
                f"{_describe(first)} and {_describe(other)} cannot be concatenated: "
                "pass parameters drawn by one pipeline"
            )
    joined: dict[str, Any] = {}
    for name, value in _row_values(first).items():
        values = [getattr(other, name) for other in parameters]
        joined[name] = concatenate(values) if isinstance(value, ParameterRows) else torch.cat(values)
    return replace(first, **joined)


def _row_values(parameters: ParameterRows) -> dict[str, Any]:
    """The fields with one row an image: tensors, and parameters within parameters."""
    return {name: value for name, value in vars(parameters).items() if isinstance(value, (Tensor, ParameterRows))}


def _fixed_values(parameters: ParameterRows) -> dict[str, Any]:
    """The other fields: None and settings that all images share."""
    rows = _row_values(parameters)
    return {field.name: getattr(parameters, field.name) for field in fields(parameters) if field.name not in rows}


def _row_count(parameters: ParameterRows) -> int:
    lengths = {len(value) for value in _row_values(parameters).values()}
    if len(lengths) > 1:
        raise ValueError(
            f"{type(parameters).__name__} holds fields of {sorted(lengths)} rows: pass one row an image in each"
        )
    return lengths.pop() if lengths else 0


def _as_selection(index: int | Sequence[int] | Tensor, count: int) -> slice | Tensor:
    """An index that keeps the row dimension."""
    selection = torch.as_tensor(index)
    if selection.ndim == 0:
        position = int(selection)
        if not -count <= position < count:
            raise IndexError(
                f"row {position} of parameters of {count} images does not exist: pass -{count}..{count - 1}"
            )
        return slice(position % count, position % count + 1)
    return selection


def _describe(parameters: ParameterRows) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in _fixed_values(parameters).items() if value is not None)
    present = ", ".join(name for name, value in _row_values(parameters).items() if isinstance(value, ParameterRows))
    return f"{type(parameters).__name__}({', '.join(part for part in (present, settings) if part)})"
