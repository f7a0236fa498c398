"""Actions between augmented views: values worked out by hand, laws of exchange, and which views they depend on."""

import math
from dataclasses import fields, replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from ssl_equi.views.actions import (
    STANDARD,
    ActionEncoding,
    action_columns,
    actions_between,
    augmentation_action,
    columns_about,
)
from ssl_equi.views.parameters import (
    BlurParameters,
    ColorJitterParameters,
    CropParameters,
    FlipParameters,
    GrayscaleParameters,
    SolarizeParameters,
    ViewParameters,
)

ENCODINGS = get_args(ActionEncoding)
ALL_FIELDS = tuple(field.name for field in fields(ViewParameters))


def random_view(seed: int, count: int = 6) -> ViewParameters:
    """Every transform, applied to about half of the images."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    def some() -> Tensor:
        return torch.rand(count, generator=generator) < 0.5

    jittered, blurred, solarized = some(), some(), some()
    height, width = uniform(30, 90).round(), uniform(30, 120).round()
    return ViewParameters(
        crop=CropParameters(
            torch.ones(count, dtype=torch.bool), top=(uniform(0, 1) * (100 - height)).floor(),
            left=(uniform(0, 1) * (160 - width)).floor(), height=height, width=width,
            source_height=torch.full((count,), 100.0), source_width=torch.full((count,), 160.0), output_size=32,
        ),
        horizontal_flip=FlipParameters(some()),
        jitter=ColorJitterParameters(
            jittered, torch.where(jittered, uniform(0.6, 1.4), 1), torch.where(jittered, uniform(0.6, 1.4), 1),
            torch.where(jittered, uniform(0.6, 1.4), 1), torch.where(jittered, uniform(-0.5, 0.5), 0),
            order=torch.rand(count, 4, generator=generator).argsort(dim=1),
        ),
        grayscale=GrayscaleParameters(some()),
        blur=BlurParameters(blurred, torch.where(blurred, uniform(0.1, 2), 0)),
        solarize=SolarizeParameters(solarized, torch.where(solarized, 0.5, 1.0)),
    )  # fmt: skip


def only(view: ViewParameters, *names: str) -> ViewParameters:
    """The same view without the other transforms."""
    return replace(view, **{name: None for name in ALL_FIELDS if name not in names})


def crop_jitter_blur(
    top: float, left: float, height: float, width: float, jitter: tuple[float, ...], sigma: float, flipped: bool
) -> ViewParameters:
    """One image of 100 x 200 pixels."""
    applied = torch.ones(1, dtype=torch.bool)
    column = [torch.tensor([float(value)]) for value in (top, left, height, width, 100, 200)]
    return ViewParameters(
        crop=CropParameters(applied, *column, output_size=32),
        horizontal_flip=FlipParameters(torch.tensor([flipped])),
        jitter=ColorJitterParameters(applied, *[torch.tensor([v]) for v in jitter], order=torch.arange(4)[None]),
        blur=BlurParameters(applied, torch.tensor([sigma])),
    )


FIRST = crop_jitter_blur(10, 20, 40, 80, (1.2, 0.8, 1.0, 0.4), sigma=0.0, flipped=False)
SECOND = crop_jitter_blur(30, 80, 50, 100, (0.6, 1.6, 1.0, -0.4), sigma=1.8, flipped=True)


def test_standard_values():
    """Centres (60, 30) and (130, 55) in pixels; the short way from hue 0.4 to -0.4 is 0.2."""
    expected = [
        (130 - 60) / 200 / 0.15, (55 - 30) / 100 / 0.15, math.log(1.25) / 0.4, math.log(1.25) / 0.4,
        1.0,
        math.log(0.5) / 0.3, math.log(2) / 0.3, 0.0, 0.2 / 0.075,
        1.8 / 0.9,
    ]  # fmt: skip
    action = augmentation_action(FIRST, SECOND, "standard")
    assert action.shape == (1, 10)
    assert action.dtype == torch.float32
    assert torch.allclose(action, torch.tensor([expected]), atol=1e-5)
    assert tuple(action_columns("standard", ["blur", "crop", "jitter", "horizontal_flip"])) == (
        "crop_right", "crop_down", "crop_log_height", "crop_log_width", "horizontal_flip", "log_brightness",
        "log_contrast", "log_saturation", "hue", "blur_sigma",
    )  # fmt: skip


def test_augself_values():
    """First minus second; to the right is mirrored where the first view is flipped."""
    expected = [-0.25, -0.35, -0.1, -0.1, 0.6 / 0.8, -0.8 / 0.8, 0.0, 0.8 / 0.2, 1.0, -1.8]
    assert torch.allclose(augmentation_action(FIRST, SECOND, "augself"), torch.tensor([expected]), atol=1e-6)
    expected = [0.25, -0.35, 0.1, 0.1, -0.6 / 0.8, 0.8 / 0.8, 0.0, -0.8 / 0.2, 1.0, 1.8]
    assert torch.allclose(augmentation_action(SECOND, FIRST, "augself"), torch.tensor([expected]), atol=1e-6)


def test_seq_jepa_values():
    absolute = torch.tensor([[10, 20, 40, 80, 1.2, 0.8, 1.0, 0.4, 0.0], [30, 80, 50, 100, 0.6, 1.6, 1.0, -0.4, 1.8]])
    raw = augmentation_action(FIRST, SECOND, "seq_jepa_raw")
    assert torch.allclose(raw, (absolute[1:] - absolute[:1]), atol=1e-5)
    lengths = (absolute**2).sum(dim=0).sqrt()
    released = augmentation_action(FIRST, SECOND, "seq_jepa_legacy")
    assert torch.allclose(released, (absolute[1:] - absolute[:1]) / lengths, atol=1e-6)


def test_solarisation_at_the_usual_threshold_is_an_indicator():
    view = random_view(0)
    neutral = replace(view, solarize=SolarizeParameters(torch.zeros(6, dtype=torch.bool), torch.ones(6)))
    action = augmentation_action(only(neutral, "solarize"), only(view, "solarize"))
    assert torch.equal(action[:, 0], view.solarize.applied.float())


def test_a_factor_of_zero_stays_finite():
    dark = replace(FIRST, jitter=replace(FIRST.jitter, brightness=torch.zeros(1)))
    assert torch.isfinite(augmentation_action(FIRST, dark)).all()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_equal_parameters_give_zeros_and_exchanged_ones_the_opposite(encoding: ActionEncoding) -> None:
    first, second = random_view(1), random_view(2)
    columns = len(action_columns(encoding, ALL_FIELDS))
    assert torch.equal(augmentation_action(first, first, encoding), torch.zeros(6, columns))
    there, back = augmentation_action(first, second, encoding), augmentation_action(second, first, encoding)
    assert (there.abs().sum(dim=0) > 0).all()
    if encoding != "augself":  # whose flips have no direction, and whose crops are seen from the first view
        assert torch.allclose(back, -there, atol=1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_only_actions_of_the_legacy_encoding_depend_on_further_views(encoding: ActionEncoding) -> None:
    views = [random_view(seed) for seed in range(4)]
    of_four, of_three = actions_between(views, encoding), actions_between(views[:3], encoding)
    for first, second in ((0, 1), (1, 2), (2, 0)):
        same = torch.equal(of_four(first, second), augmentation_action(views[first], views[second], encoding))
        assert same == torch.equal(of_four(first, second), of_three(first, second)) == (encoding != "seq_jepa_legacy")


def test_a_transform_of_one_view_counts_as_not_applied_in_the_other():
    """As in BYOL's pipelines, where only view 2 may be solarised."""
    second = replace(SECOND, solarize=SolarizeParameters(torch.tensor([True]), torch.tensor([0.5])))
    first = only(FIRST, "crop")
    jitter = [math.log(0.6) / 0.3, math.log(1.6) / 0.3, 0, -0.4 / 0.075]
    there, back = augmentation_action(first, second)[0], augmentation_action(second, first)[0]
    assert torch.allclose(there[4:], torch.tensor([1, *jitter, 1.8 / 0.9, 1]), atol=1e-5)
    assert torch.allclose(back[4:], -torch.tensor([1, *jitter, 1.8 / 0.9, 1]), atol=1e-5)


def test_each_image_has_its_own_action():
    first, second = random_view(1), random_view(2)
    whole, rows = augmentation_action(first, second), torch.tensor([4, 1])
    assert torch.equal(augmentation_action(first.rows(rows), second.rows(rows)), whole[rows])


def test_every_transform_has_its_columns_in_one_order() -> None:
    assert tuple(STANDARD) == ALL_FIELDS
    assert all(unit > 0 for part in STANDARD.values() for unit in part.units.values())
    together = augmentation_action(random_view(1), random_view(2))
    names = [*action_columns("standard", ALL_FIELDS)]
    assert together.shape == (6, len(names)) and len(names) == len(set(names))
    for field in ALL_FIELDS:
        alone = augmentation_action(only(random_view(1), field), only(random_view(2), field))
        own = action_columns("standard", [field])
        assert set(own.values()) == {field}
        start = names.index(next(iter(own)))
        assert torch.equal(alone, together[:, start : start + len(own)])


@pytest.mark.parametrize(("encoding", "size"), [("augself", 10), ("seq_jepa_raw", 9), ("seq_jepa_legacy", 9)])
def test_the_papers_encodings_have_fixed_columns_and_say_what_they_miss(encoding: ActionEncoding, size: int) -> None:
    columns = action_columns(encoding, ALL_FIELDS)
    assert augmentation_action(FIRST, SECOND, encoding).shape == (1, size) == (1, len(columns))
    assert all(name.startswith(field) for name, field in columns.items() if field != "jitter")
    for missing in set(columns.values()):
        present = set(columns.values()) - {missing}
        with pytest.raises(
            ValueError, match=f"'{encoding}' needs {missing}, which the views do not have: choose other"
        ):
            augmentation_action(only(random_view(1), *present), only(random_view(2), *present), encoding)


def test_the_columns_of_some_transforms() -> None:
    assert columns_about(("crop",), "seq_jepa_legacy", ALL_FIELDS) == (0, 1, 2, 3)
    assert columns_about(("blur", "jitter"), "seq_jepa_raw", ALL_FIELDS) == (4, 5, 6, 7, 8)
    names = [*action_columns("standard", ALL_FIELDS)]
    chosen = [names[column] for column in columns_about(("jitter", "solarize"), "standard", ALL_FIELDS)]
    assert chosen == ["log_brightness", "log_contrast", "log_saturation", "hue", "solarize"]
    with pytest.raises(ValueError, match="no column about 'solarize': choose from crop, jitter, blur"):
        columns_about(("crop", "solarize"), "seq_jepa_raw", ALL_FIELDS)
    with pytest.raises(ValueError, match="the action encoding is 'raw': choose from standard, augself, seq_jepa_raw"):
        columns_about(("crop",), "raw", ALL_FIELDS)
