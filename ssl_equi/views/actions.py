"""Actions between augmented views: what changed from one view's parameters to another's, as a vector.

The encodings:

- standard: ours. Every transform of the pipeline contributes differences, second view minus first, in units of fixed
  constants. Nothing depends on other views, and equal parameters give zeros.
- augself: the differences that AugSelf regresses (Lee et al., NeurIPS 2021, and its released code).
- seq_jepa_raw: the nine parameters of seq-JEPA (Ghaemi et al., NeurIPS 2025), plain differences in their own units.
- seq_jepa_legacy: as its released code makes them, which divides every parameter by its length over all views of
  the sequence first. Scales are lost, and an action between two views depends on all others, the target included: what
  is to be predicted leaks into the input. For comparison with that code only.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.views.parameters import ColorJitterParameters, CropParameters, TransformParameters, ViewParameters

ActionEncoding = Literal["standard", "augself", "seq_jepa_raw", "seq_jepa_legacy"]

LEAST_JITTER_FACTOR = 0.05
"""Smaller factors count as this one in the standard encoding, whose logarithm of 0 would be infinite."""
AUGSELF_JITTER_RANGES = (0.8, 0.8, 0.8, 0.2)
"""Widths of the ranges that AugSelf's jitter of strengths 0.4, 0.4, 0.4 and 0.1 draws from; it divides by them."""
NEUTRAL_VALUES = {"brightness": 1, "contrast": 1, "saturation": 1, "threshold": 1}
"""What a parameter holds where the transform was not applied, if that is not 0."""

# Columns in order, each with the transform (a field of `ViewParameters`) that it tells of.
JITTER_COLUMNS = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), "jitter")
SEQ_JEPA_COLUMNS = {
    **dict.fromkeys(("crop_top_px", "crop_left_px", "crop_height_px", "crop_width_px"), "crop"),
    **JITTER_COLUMNS,
    "blur_sigma_px": "blur",
}
AUGSELF_COLUMNS = {
    **dict.fromkeys(("crop_centre_down", "crop_centre_right", "crop_height", "crop_width"), "crop"),
    **JITTER_COLUMNS,
    "horizontal_flip": "horizontal_flip",
    "blur_sigma_px": "blur",
}


def augmentation_action(first: ViewParameters, second: ViewParameters, encoding: ActionEncoding = "standard") -> Tensor:
    """The actions [N, A] from one view of each image to another; see `actions_between`."""
    return actions_between([first, second], encoding)(0, 1)


def actions_between(
    views: Sequence[ViewParameters], encoding: ActionEncoding = "standard"
) -> Callable[[int, int], Tensor]:
    """A function from (i, j) to the actions, float32 [N, A], that take view i of a sequence to view j, counted from 0.

    `action_columns` names the A columns. With "seq_jepa_legacy" an action depends on all views of the sequence,
    otherwise on the two views only.

    Args:
        views: V parameters of the same N images. A transform that only some of the views have, as in BYOL's pipelines,
            counts as not applied in the others; the crop must be in all or none.
        encoding: see the top of this file.
    """
    views = _with_the_same_fields(views)
    action_columns(encoding, _present_fields(views[0]))
    if encoding == "standard":
        return lambda first, second: _standard(views[first], views[second])
    if encoding == "augself":
        return lambda first, second: _augself(views[first], views[second])
    absolute = []  # the nine parameters of each view, [N, 9]; a jitter that was not applied is (1, 1, 1, 0)
    for view in views:
        assert view.crop and view.jitter and view.blur
        crop = torch.stack([view.crop.top, view.crop.left, view.crop.height, view.crop.width], dim=1)
        absolute.append(torch.cat([crop, _jitter_values(view.jitter).T, view.blur.sigma.unsqueeze(1)], dim=1))
    values = torch.stack(absolute, dim=1)
    if encoding == "seq_jepa_legacy":
        values = F.normalize(values, dim=1)
    return lambda first, second: values[:, second] - values[:, first]


def action_columns(encoding: ActionEncoding, present_fields: Collection[str]) -> dict[str, str]:
    """The names of an action's columns, in order, each with the transform that it tells of.

    Args:
        encoding: see the top of this file.
        present_fields: names of the fields of `ViewParameters` that the pipelines of the views fill, in any order.

    Raises:
        ValueError: an unknown encoding, or one that needs a field that is not there.
    """
    if encoding == "standard":
        return {name: field for field, part in STANDARD.items() if field in present_fields for name in part.units}
    columns = {"augself": AUGSELF_COLUMNS, "seq_jepa_raw": SEQ_JEPA_COLUMNS, "seq_jepa_legacy": SEQ_JEPA_COLUMNS}
    if encoding not in columns:
        raise ValueError(f"the action encoding is {encoding!r}: choose from standard, {', '.join(columns)}")
    missing = [field for field in dict.fromkeys(columns[encoding].values()) if field not in present_fields]
    if missing:
        raise ValueError(
            f"the encoding {encoding!r} needs {' and '.join(missing)}, which the views do not have: choose other "
            "augmentations, or the encoding 'standard', which takes any"
        )
    return columns[encoding]


def columns_about(
    transforms: Collection[str], encoding: ActionEncoding, present_fields: Collection[str]
) -> tuple[int, ...]:
    """The columns of an action that tell of `transforms`, in order; an objective can be told of crops only, say.

    Raises:
        ValueError: an action has no column about one of the transforms; or as `action_columns`.
    """
    told_of = [*action_columns(encoding, present_fields).values()]
    missing = [transform for transform in transforms if transform not in told_of]
    if missing:
        raise ValueError(
            f"the action has no column about {missing[0]!r}: choose from {', '.join(dict.fromkeys(told_of))}"
        )
    return tuple(index for index, transform in enumerate(told_of) if transform in transforms)


def _present_fields(parameters: ViewParameters) -> tuple[str, ...]:
    return tuple(field.name for field in fields(parameters) if getattr(parameters, field.name) is not None)


def _with_the_same_fields(views: Sequence[ViewParameters]) -> list[ViewParameters]:
    """Gives each view the transforms that only others have, as not applied."""
    examples = {field: getattr(view, field) for view in views for field in _present_fields(view)}

    filled = []
    for view in views:
        absent = [field for field in examples if getattr(view, field) is None]
        assert "crop" not in absent, "a crop has no neutral value: crop all views, or none"
        not_applied = {}
        for field in absent:
            values = vars(examples[field]).items()
            neutral = {name: torch.full_like(value, NEUTRAL_VALUES.get(name, 0)) for name, value in values}
            not_applied[field] = replace(examples[field], **neutral)
        filled.append(replace(view, **not_applied))
    return filled


# ---------------------------------------------------------------- standard


@dataclass(frozen=True)
class _StandardPart:
    """What one transform contributes to the standard encoding."""

    units: dict[str, float]
    """column names, in order, with the constants that the columns are divided by"""
    differences: Callable[[Any, Any], Sequence[Tensor]]
    """the columns [N] before the division, from the parameters of both views"""


def _crop_differences(first: CropParameters, second: CropParameters) -> list[Tensor]:
    """Of the centre, in sides of the source, to the right and down; of the logarithms of height and width.

    In the frame of the source image, whatever the flips of the views.
    """
    (down, right, *sides), (later_down, later_right, *later_sides) = _crop_values(first), _crop_values(second)
    logs = [later.log() - earlier.log() for earlier, later in zip(sides, later_sides, strict=True)]
    return [later_right - right, later_down - down, *logs]


def _crop_values(crop: CropParameters) -> Tensor:
    """[4, N], in sides of the source: how far down and to the right the centre lies, height, width."""
    down, right = (crop.top + crop.height / 2) / crop.source_height, (crop.left + crop.width / 2) / crop.source_width
    return torch.stack([down, right, crop.height / crop.source_height, crop.width / crop.source_width])


def _applied_differences(first: TransformParameters, second: TransformParameters) -> list[Tensor]:
    """1 where only the second view has it, -1 where only the first has it."""
    return [second.applied.float() - first.applied.float()]


def _jitter_differences(first: ColorJitterParameters, second: ColorJitterParameters) -> list[Tensor]:
    """Of the factors' logarithms, and of the hue the short way round the circle; the order is left out."""
    logs = [_jitter_values(jitter)[:3].clamp(LEAST_JITTER_FACTOR).log() for jitter in (first, second)]
    hue = second.hue - first.hue
    return [*(logs[1] - logs[0]), hue - hue.round()]


# The units of crop, jitter, hue and blur are about the standard deviations of these differences between views drawn
# like SimCLR's: area from 0.08 or 0.2, strengths 0.4, 0.4, 0.4 and 0.1 in 4 of 5 views, sigma 0.1 to 2 in every second.
# Indicators stay as they are; solarisation counts the inverted part of the range of values, 1 - threshold.
STANDARD: dict[str, _StandardPart] = {
    "crop": _StandardPart(
        {"crop_right": 0.15, "crop_down": 0.15, "crop_log_height": 0.4, "crop_log_width": 0.4}, _crop_differences
    ),
    "horizontal_flip": _StandardPart({"horizontal_flip": 1.0}, _applied_differences),
    "jitter": _StandardPart(
        {"log_brightness": 0.3, "log_contrast": 0.3, "log_saturation": 0.3, "hue": 0.075}, _jitter_differences
    ),
    "grayscale": _StandardPart({"grayscale": 1.0}, _applied_differences),
    "blur": _StandardPart({"blur_sigma": 0.9}, lambda first, second: [second.sigma - first.sigma]),
    "solarize": _StandardPart({"solarize": 0.5}, lambda first, second: [first.threshold - second.threshold]),
}
"""What each field of `ViewParameters` contributes to the standard encoding, in the order of the columns."""


def _standard(first: ViewParameters, second: ViewParameters) -> Tensor:
    columns: list[Tensor] = []
    for field in _present_fields(first):
        part = STANDARD[field]
        differences = part.differences(getattr(first, field), getattr(second, field))
        columns += [column / unit for column, unit in zip(differences, part.units.values(), strict=True)]
    return torch.stack(columns, dim=1)


# ---------------------------------------------------------------- of the papers


def _augself(first: ViewParameters, second: ViewParameters) -> Tensor:
    """First view minus second, the reverse of the other encodings, as AugSelf has it.

    Crops are in sides of the source; to the right is as seen in the first view, so mirrored where that was flipped.
    The flip column is 1 where one of the views is flipped and 0 where none or both are; the released code has the
    complement. AugSelf learns this one with a cross-entropy, and each kind of augmentation with a head of its own.
    """
    assert first.crop and second.crop and first.horizontal_flip and second.horizontal_flip
    assert first.jitter and second.jitter and first.blur and second.blur
    crop = (_crop_values(first.crop) - _crop_values(second.crop)).T
    crop[:, 1] = torch.where(first.horizontal_flip.applied, -crop[:, 1], crop[:, 1])
    jitter = (_jitter_values(first.jitter) - _jitter_values(second.jitter)).T
    flip = first.horizontal_flip.applied ^ second.horizontal_flip.applied
    others = torch.stack([flip.float(), first.blur.sigma - second.blur.sigma], dim=1)
    return torch.cat([crop, jitter / jitter.new_tensor(AUGSELF_JITTER_RANGES), others], dim=1)


def _jitter_values(jitter: ColorJitterParameters) -> Tensor:
    """[4, N]"""
    return torch.stack([jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue])
