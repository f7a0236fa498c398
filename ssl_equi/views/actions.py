"""Actions between augmented views: what changed from one view's parameters to the next one's, as a vector.

The encodings:

- standard: ours. Every transform of the pipeline contributes differences, second view minus first, in units of fixed
  constants. Nothing depends on other views, and equal parameters give zeros.
- augself: the differences that AugSelf regresses (Lee et al., NeurIPS 2021, and its released code).
- seq_jepa_raw: the nine parameters of seq-JEPA (Ghaemi et al., NeurIPS 2025), plain differences in their own units.
- seq_jepa_legacy: as its released code makes them, which divides every parameter by its length over all views of
  the sequence first. Scales are lost, and an action between two views depends on all others, the target included: what
  is to be predicted leaks into the input. For comparison with that code only.
"""

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.views.exact import JIGSAW_PERMUTATIONS
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
    ViewParameters,
)

ActionEncoding = Literal["standard", "augself", "seq_jepa_raw", "seq_jepa_legacy"]

LEAST_JITTER_FACTOR = 0.05
"""Smaller factors count as this one in the standard encoding, whose logarithm of 0 would be infinite."""

NEUTRAL_VALUES = {"brightness": 1, "contrast": 1, "saturation": 1, "threshold": 1, "scale": 1}
"""What a parameter holds where the transform was not applied, if that is not 0."""

SEQ_JEPA_NAMES = (
    "crop_top_px", "crop_left_px", "crop_height_px", "crop_width_px", "brightness", "contrast", "saturation", "hue",
    "blur_sigma_px",
)  # fmt: skip
AUGSELF_NAMES = (
    "crop_centre_down", "crop_centre_right", "crop_height", "crop_width", "brightness", "contrast", "saturation", "hue",
    "horizontal_flip", "blur_sigma_px",
)  # fmt: skip
AUGSELF_JITTER_RANGES = (0.8, 0.8, 0.8, 0.2)
"""Widths of the ranges that AugSelf's jitter of strengths 0.4, 0.4, 0.4 and 0.1 draws from; it divides by them."""

REQUIRED_FIELDS: dict[ActionEncoding, tuple[str, ...]] = {
    "standard": (),
    "augself": ("crop", "horizontal_flip", "jitter", "blur"),
    "seq_jepa_raw": ("crop", "jitter", "blur"),
    "seq_jepa_legacy": ("crop", "jitter", "blur"),
}


def augmentation_action(first: ViewParameters, second: ViewParameters, encoding: ActionEncoding = "standard") -> Tensor:
    """The actions from one view of each image to another, float32 [N, A]; see `augmentation_actions`."""
    return augmentation_actions([first, second], encoding)[:, 0]


def augmentation_actions(views: Sequence[ViewParameters], encoding: ActionEncoding = "standard") -> Tensor:
    """The actions from each view of a sequence to the next.

    Args:
        views: V parameters of the same N images. A transform that only some of the views have, as in BYOL's pipelines,
            counts as not applied in the others; the crop must be in all or none.
        encoding: see the top of this file.

    Returns:
        float32 [N, V - 1, A]; `action_names` names the A columns.

    Raises:
        ValueError: fewer than two views, views of different numbers of images, some with and some without a crop, an
            unknown encoding, or one that needs a transform which the views do not have.
    """
    if len(views) < 2:
        raise ValueError(f"there are parameters of {len(views)} view: an action needs at least 2")
    counts = {len(view) for view in views}
    if len(counts) > 1:
        raise ValueError(f"the views are of {sorted(counts)} images: give parameters of the same images")
    filled = _with_the_same_fields(views)
    action_names(encoding, _present_fields(filled[0]))
    return ENCODERS[encoding](filled).float()


def sequence_actions_between(
    views: Sequence[ViewParameters], encoding: ActionEncoding = "standard"
) -> Callable[[int, int], Tensor]:
    """A function from (i, j) to the actions [N, A] that take view i of a sequence to view j, counted from 0.

    With "seq_jepa_legacy" these depend on all views of the sequence, otherwise on the two views only. Arguments and
    errors as in `augmentation_actions`; all actions have the same columns.
    """
    filled = _with_the_same_fields(views)
    action_names(encoding, _present_fields(filled[0]))
    if encoding == "seq_jepa_legacy":
        normalised = _normalised_over_the_sequence(filled)
        return lambda first, second: normalised[:, second] - normalised[:, first]
    return lambda first, second: ENCODERS[encoding]([filled[first], filled[second]])[:, 0].float()


def augmentation_action_size(encoding: ActionEncoding, present_fields: Collection[str]) -> int:
    """The width A of the actions, see `action_names`."""
    return len(action_names(encoding, present_fields))


def action_names(encoding: ActionEncoding, present_fields: Collection[str]) -> tuple[str, ...]:
    """The names of an action's columns, in order.

    Args:
        encoding: see the top of this file.
        present_fields: names of the fields of `ViewParameters` that the pipelines of the views fill, in any order.

    Raises:
        ValueError: an unknown encoding or field, or the encoding needs a field that is not there.
    """
    if encoding not in ENCODERS:
        raise ValueError(f"the action encoding is {encoding!r}: choose from {', '.join(ENCODERS)}")
    unknown = [name for name in present_fields if name not in STANDARD]
    if unknown:
        raise ValueError(f"there is no transform {unknown[0]!r}: name fields of ViewParameters, {', '.join(STANDARD)}")
    missing = [name for name in REQUIRED_FIELDS[encoding] if name not in present_fields]
    if missing:
        raise ValueError(
            f"the encoding {encoding!r} needs {' and '.join(missing)}, which the views do not have: choose other "
            "augmentations, or the encoding 'standard', which takes any"
        )
    if encoding == "augself":
        return AUGSELF_NAMES
    if encoding != "standard":
        return SEQ_JEPA_NAMES
    names = tuple(name for field, part in STANDARD.items() if field in present_fields for name in part.units)
    if not names:
        raise ValueError("the views have no transforms: an action needs at least one")
    return names


def _present_fields(parameters: ViewParameters) -> tuple[str, ...]:
    return tuple(field.name for field in fields(parameters) if getattr(parameters, field.name) is not None)


def _with_the_same_fields(views: Sequence[ViewParameters]) -> list[ViewParameters]:
    """Gives each view the transforms that only others have, as not applied."""
    examples = {field: getattr(view, field) for view in views for field in _present_fields(view)}
    filled = []
    for view in views:
        absent = [field for field in examples if getattr(view, field) is None]
        if "crop" in absent:
            raise ValueError("one of the views has a crop and another has none: crop all of them, or none")
        filled.append(replace(view, **{field: _not_applied(examples[field]) for field in absent}))
    return filled


def _not_applied(example: Any) -> Any:
    """Neutral parameters of the type of `example` for as many images."""
    return replace(
        example,
        **{
            field.name: torch.full_like(getattr(example, field.name), NEUTRAL_VALUES.get(field.name, 0))
            for field in fields(example)
        },
    )


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

    def coordinates(crop: CropParameters) -> Tensor:
        right = (crop.left + crop.width / 2) / crop.source_width
        down = (crop.top + crop.height / 2) / crop.source_height
        log_height, log_width = (crop.height / crop.source_height).log(), (crop.width / crop.source_width).log()
        return torch.stack([right, down, log_height, log_width])

    return list(coordinates(second) - coordinates(first))


def _applied_differences(
    first: FlipParameters | GrayscaleParameters | InversionParameters,
    second: FlipParameters | GrayscaleParameters | InversionParameters,
) -> list[Tensor]:
    """1 where only the second view has it, -1 where only the first has it."""
    return [second.applied.float() - first.applied.float()]


def _jitter_differences(first: ColorJitterParameters, second: ColorJitterParameters) -> list[Tensor]:
    """Of the factors' logarithms, and of the hue the short way round the circle; the order is left out."""

    def log_factors(jitter: ColorJitterParameters) -> Tensor:
        return torch.stack([jitter.brightness, jitter.contrast, jitter.saturation]).clamp(LEAST_JITTER_FACTOR).log()

    hue = second.hue - first.hue
    return [*(log_factors(second) - log_factors(first)), hue - hue.round()]


def _blur_differences(first: BlurParameters, second: BlurParameters) -> list[Tensor]:
    """Of the standard deviations in pixels."""
    return [second.sigma - first.sigma]


def _solarize_differences(first: SolarizeParameters, second: SolarizeParameters) -> list[Tensor]:
    """Of the inverted part of the range of values, 1 - threshold."""
    return [first.threshold - second.threshold]


def _quarter_turn_differences(first: QuarterTurnParameters, second: QuarterTurnParameters) -> list[Tensor]:
    return _turning((second.turns - first.turns) * (math.pi / 2))


def _rotation_differences(first: RotationParameters, second: RotationParameters) -> list[Tensor]:
    return _turning(second.angle_rad - first.angle_rad)


def _turning(angle_rad: Tensor) -> list[Tensor]:
    """cos - 1 and sin of the relative angle: zeros for none, the same for whole turns.

    Exchanging the views gives the inverse rotation: the sine changes its sign, the cosine does not.
    """
    return [angle_rad.cos() - 1, angle_rad.sin()]


def _affine_differences(first: AffineParameters, second: AffineParameters) -> list[Tensor]:
    """Of the parameters, which are not those of the map from one view to the other: affine maps do not commute."""
    return [
        *_turning(second.angle_rad - first.angle_rad),
        second.translate_right - first.translate_right,
        second.translate_down - first.translate_down,
        second.scale.log() - first.scale.log(),
        second.shear_x_rad - first.shear_x_rad,
        second.shear_y_rad - first.shear_y_rad,
    ]


def _jigsaw_differences(first: JigsawParameters, second: JigsawParameters) -> list[Tensor]:
    """How far each of the four pieces moved, in pieces, to the right and down."""
    places = torch.tensor([[order.index(piece) for piece in range(4)] for order in JIGSAW_PERMUTATIONS])
    right_and_down = torch.stack([places % 2, places // 2], dim=2).flatten(1).to(first.permutation.device)
    return list((right_and_down[second.permutation] - right_and_down[first.permutation]).float().unbind(dim=1))


# The units of crop, jitter, hue and blur are about the standard deviations of these differences between views drawn
# like SimCLR's: area from 0.08 or 0.2, strengths 0.4, 0.4, 0.4 and 0.1 in 4 of 5 views, sigma 0.1 to 2 in every second.
# The affine map's are round numbers of that size, indicators and turns stay as they are.
STANDARD: dict[str, _StandardPart] = {
    "crop": _StandardPart(
        {"crop_right": 0.15, "crop_down": 0.15, "crop_log_height": 0.4, "crop_log_width": 0.4}, _crop_differences
    ),
    "horizontal_flip": _StandardPart({"horizontal_flip": 1.0}, _applied_differences),
    "vertical_flip": _StandardPart({"vertical_flip": 1.0}, _applied_differences),
    "jitter": _StandardPart(
        {"log_brightness": 0.3, "log_contrast": 0.3, "log_saturation": 0.3, "hue": 0.075}, _jitter_differences
    ),
    "grayscale": _StandardPart({"grayscale": 1.0}, _applied_differences),
    "blur": _StandardPart({"blur_sigma": 0.9}, _blur_differences),
    "solarize": _StandardPart({"solarize": 0.5}, _solarize_differences),
    "quarter_turn": _StandardPart({"quarter_turn_cos": 1.0, "quarter_turn_sin": 1.0}, _quarter_turn_differences),
    "rotation": _StandardPart({"rotation_cos": 1.0, "rotation_sin": 1.0}, _rotation_differences),
    "affine": _StandardPart(
        {
            "affine_cos": 1.0, "affine_sin": 1.0, "affine_right": 0.15, "affine_down": 0.15, "affine_log_scale": 0.4,
            "affine_shear_x": 0.3, "affine_shear_y": 0.3,
        },
        _affine_differences,
    ),
    "jigsaw": _StandardPart(
        {f"jigsaw_piece_{piece}_{direction}": 1.0 for piece in range(4) for direction in ("right", "down")},
        _jigsaw_differences,
    ),
    "inversion": _StandardPart({"inversion": 1.0}, _applied_differences),
}  # fmt: skip
"""What each field of `ViewParameters` contributes to the standard encoding, in the order of the columns."""


def _between_neighbours(difference: Callable[[ViewParameters, ViewParameters], Tensor]) -> Callable[..., Tensor]:
    """From a function of two views to one of a sequence of views."""

    def of_sequence(views: Sequence[ViewParameters]) -> Tensor:
        return torch.stack([difference(first, second) for first, second in itertools.pairwise(views)], dim=1)

    return of_sequence


def _standard(first: ViewParameters, second: ViewParameters) -> Tensor:
    columns = []
    for field, part in STANDARD.items():
        mine, theirs = getattr(first, field), getattr(second, field)
        if mine is not None:
            differences = part.differences(mine, theirs)
            columns += [column / unit for column, unit in zip(differences, part.units.values(), strict=True)]
    return torch.stack(columns, dim=1)


def _augself(first: ViewParameters, second: ViewParameters) -> Tensor:
    """First view minus second, the reverse of the other encodings, as AugSelf has it.

    Crops are in sides of the source; to the right is as seen in the first view, so mirrored where that was flipped.
    The flip column is 1 where one of the views is flipped and 0 where none or both are; the released code has the
    complement. AugSelf learns this one with a cross-entropy, and each kind of augmentation with a head of its own.
    """
    assert first.crop is not None and second.crop is not None
    assert first.horizontal_flip is not None and second.horizontal_flip is not None
    assert first.jitter is not None and second.jitter is not None
    assert first.blur is not None and second.blur is not None

    def crop_columns(crop: CropParameters) -> Tensor:
        down = (crop.top + crop.height / 2) / crop.source_height
        right = (crop.left + crop.width / 2) / crop.source_width
        return torch.stack([down, right, crop.height / crop.source_height, crop.width / crop.source_width], dim=1)

    crop = crop_columns(first.crop) - crop_columns(second.crop)
    crop[:, 1] = torch.where(first.horizontal_flip.applied, -crop[:, 1], crop[:, 1])
    jitter = _jitter_values(first.jitter) - _jitter_values(second.jitter)
    flip = first.horizontal_flip.applied ^ second.horizontal_flip.applied
    others = torch.stack([flip.float(), first.blur.sigma - second.blur.sigma], dim=1)
    return torch.cat([crop, jitter / jitter.new_tensor(AUGSELF_JITTER_RANGES), others], dim=1)


def _seq_jepa_raw(views: Sequence[ViewParameters]) -> Tensor:
    return _seq_jepa_parameters(views).diff(dim=1)


def _seq_jepa_legacy(views: Sequence[ViewParameters]) -> Tensor:
    return _normalised_over_the_sequence(views).diff(dim=1)


def _normalised_over_the_sequence(views: Sequence[ViewParameters]) -> Tensor:
    """Each of the nine parameters divided by its length over all views, [N, V, 9]."""
    return F.normalize(_seq_jepa_parameters(views), dim=1)


def _seq_jepa_parameters(views: Sequence[ViewParameters]) -> Tensor:
    """The nine absolute parameters of each view, [N, V, 9]; a jitter that was not applied is (1, 1, 1, 0)."""
    rows = []
    for view in views:
        assert view.crop is not None and view.jitter is not None and view.blur is not None
        crop = torch.stack([view.crop.top, view.crop.left, view.crop.height, view.crop.width], dim=1)
        rows.append(torch.cat([crop, _jitter_values(view.jitter), view.blur.sigma.unsqueeze(1)], dim=1))
    return torch.stack(rows, dim=1)


def _jitter_values(jitter: ColorJitterParameters) -> Tensor:
    return torch.stack([jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue], dim=1)


ENCODERS: dict[ActionEncoding, Callable[[Sequence[ViewParameters]], Tensor]] = {
    "standard": _between_neighbours(_standard),
    "augself": _between_neighbours(_augself),
    "seq_jepa_raw": _seq_jepa_raw,
    "seq_jepa_legacy": _seq_jepa_legacy,
}
"""From V views to the actions [N, V - 1, A] between neighbours."""
