"""Actions between augmented views: values worked out by hand, laws of exchange, and which views they depend on."""

import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from ssl_equi.views.actions import (
    ENCODERS,
    REQUIRED_FIELDS,
    STANDARD,
    action_names,
    augmentation_action,
    augmentation_action_size,
    augmentation_actions,
)
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

ALL_FIELDS = tuple(field.name for field in fields(ViewParameters))
EVEN_COLUMNS = {"quarter_turn_cos", "rotation_cos", "affine_cos"}


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
        vertical_flip=FlipParameters(some()),
        jitter=ColorJitterParameters(
            jittered, torch.where(jittered, uniform(0.6, 1.4), 1), torch.where(jittered, uniform(0.6, 1.4), 1),
            torch.where(jittered, uniform(0.6, 1.4), 1), torch.where(jittered, uniform(-0.5, 0.5), 0),
            order=torch.rand(count, 4, generator=generator).argsort(dim=1),
        ),
        grayscale=GrayscaleParameters(some()),
        blur=BlurParameters(blurred, torch.where(blurred, uniform(0.1, 2), 0)),
        solarize=SolarizeParameters(solarized, torch.where(solarized, 0.5, 1.0)),
        quarter_turn=QuarterTurnParameters(some(), torch.randint(4, (count,), generator=generator)),
        rotation=RotationParameters(some(), uniform(-3, 3)),
        affine=AffineParameters(
            some(), uniform(-1, 1), uniform(-0.2, 0.2), uniform(-0.2, 0.2), uniform(0.5, 2), uniform(-0.3, 0.3),
            uniform(-0.3, 0.3),
        ),
        jigsaw=JigsawParameters(some(), torch.randint(24, (count,), generator=generator)),
        inversion=InversionParameters(some()),
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
    assert action_names("standard", ["blur", "crop", "jitter", "horizontal_flip"]) == (
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


@pytest.mark.parametrize(
    ("first_turns", "second_turns", "expected"),
    [(0, 1, (-1, 1)), (1, 0, (-1, -1)), (3, 0, (-1, 1)), (0, 2, (-2, 0)), (2, 2, (0, 0))],
)
def test_quarter_turns_are_a_relative_rotation(first_turns: int, second_turns: int, expected: tuple[int, int]):
    first, second = (
        ViewParameters(quarter_turn=QuarterTurnParameters(torch.tensor([turns > 0]), torch.tensor([turns])))
        for turns in (first_turns, second_turns)
    )
    assert torch.allclose(augmentation_action(first, second), torch.tensor([expected]).float(), atol=1e-6)


def test_rotations_forget_whole_turns():
    applied = torch.tensor([True])
    first = ViewParameters(rotation=RotationParameters(applied, torch.tensor([0.3])))
    second = ViewParameters(rotation=RotationParameters(applied, torch.tensor([0.3 + 2 * math.pi])))
    assert torch.allclose(augmentation_action(first, second), torch.zeros(1, 2), atol=1e-6)


def test_jigsaw_pieces_move_from_place_to_place():
    """Permutation 1 exchanges the two lower pieces, 2 and 3."""
    first, second = (
        ViewParameters(jigsaw=JigsawParameters(torch.tensor([True]), torch.tensor([permutation])))
        for permutation in (0, 1)
    )
    assert augmentation_action(first, second).tolist() == [[0, 0, 0, 0, 1, 0, -1, 0]]


def test_solarisation_at_the_usual_threshold_is_an_indicator():
    view = random_view(0)
    neutral = replace(view, solarize=SolarizeParameters(torch.zeros(6, dtype=torch.bool), torch.ones(6)))
    action = augmentation_action(only(neutral, "solarize"), only(view, "solarize"))
    assert torch.equal(action[:, 0], view.solarize.applied.float())


def test_a_factor_of_zero_stays_finite():
    dark = replace(FIRST, jitter=replace(FIRST.jitter, brightness=torch.zeros(1)))
    assert torch.isfinite(augmentation_action(FIRST, dark)).all()


@pytest.mark.parametrize("encoding", ENCODERS)
def test_equal_parameters_give_zeros(encoding: str):
    view = random_view(0)
    action = augmentation_action(view, view, encoding)
    assert torch.equal(action, torch.zeros(6, augmentation_action_size(encoding, ALL_FIELDS)))


@pytest.mark.parametrize("encoding", ["standard", "seq_jepa_raw", "seq_jepa_legacy"])
def test_exchanging_the_views_negates(encoding: str):
    """All but the cosines, which are the same for a rotation and its inverse."""
    first, second = random_view(1), random_view(2)
    there, back = augmentation_action(first, second, encoding), augmentation_action(second, first, encoding)
    names = action_names(encoding, ALL_FIELDS)
    signs = torch.tensor([1.0 if name in EVEN_COLUMNS else -1.0 for name in names])
    assert (there.abs().sum(dim=0) > 0).all()
    assert torch.allclose(back, there * signs, atol=1e-6)


@pytest.mark.parametrize("encoding", ["standard", "augself", "seq_jepa_raw"])
def test_an_action_depends_on_its_two_views_only(encoding: str):
    views = [random_view(seed) for seed in range(4)]
    actions = augmentation_actions(views, encoding)
    assert actions.shape == (6, 3, augmentation_action_size(encoding, ALL_FIELDS))
    for step in range(3):
        assert torch.equal(actions[:, step], augmentation_action(views[step], views[step + 1], encoding))


def test_the_released_encoding_leaks_the_other_views():
    """Kept for comparison: the action between the first two views changes with the third."""
    views = [random_view(seed) for seed in range(4)]
    with_third = augmentation_actions(views[:3], "seq_jepa_legacy")
    with_other = augmentation_actions([*views[:2], views[3]], "seq_jepa_legacy")
    assert not torch.allclose(with_third[:, 0], with_other[:, 0])


def test_a_transform_of_one_view_counts_as_not_applied_in_the_other():
    """As in BYOL's pipelines, where only view 2 may be solarised."""
    second = replace(
        SECOND,
        solarize=SolarizeParameters(torch.tensor([True]), torch.tensor([0.5])),
        quarter_turn=QuarterTurnParameters(torch.tensor([True]), torch.tensor([1])),
    )
    first = only(FIRST, "crop")
    jitter = [math.log(0.6) / 0.3, math.log(1.6) / 0.3, 0, -0.4 / 0.075]
    there, back = augmentation_action(first, second)[0], augmentation_action(second, first)[0]
    assert torch.allclose(there[4:], torch.tensor([1, *jitter, 1.8 / 0.9, 1, -1, 1]), atol=1e-5)
    assert torch.allclose(back[4:], -torch.tensor([1, *jitter, 1.8 / 0.9, 1, 1, 1]), atol=1e-5)


def test_each_image_has_its_own_action():
    first, second = random_view(1), random_view(2)
    whole = augmentation_action(first, second)
    assert torch.equal(augmentation_action(first.rows([4, 1]), second.rows([4, 1])), whole[[4, 1]])


def test_every_transform_has_its_columns_in_one_order():
    assert tuple(STANDARD) == ALL_FIELDS
    names = action_names("standard", ALL_FIELDS)
    assert len(names) == len(set(names))
    assert all(unit > 0 for part in STANDARD.values() for unit in part.units.values())
    assert set(REQUIRED_FIELDS) == set(ENCODERS)


@pytest.mark.parametrize("field", ALL_FIELDS)
def test_size_and_names_agree_with_the_action_of_each_transform(field: str):
    first, second = only(random_view(1), field), only(random_view(2), field)
    names = action_names("standard", [field])
    action = augmentation_action(first, second)
    assert action.shape == (6, len(names)) == (6, augmentation_action_size("standard", [field]))
    alone = action_names("standard", ALL_FIELDS).index(names[0])
    together = augmentation_action(random_view(1), random_view(2))
    assert torch.equal(action, together[:, alone : alone + len(names)])


@pytest.mark.parametrize(("encoding", "size"), [("augself", 10), ("seq_jepa_raw", 9), ("seq_jepa_legacy", 9)])
def test_fixed_encodings_have_their_size_and_names(encoding: str, size: int):
    assert augmentation_action_size(encoding, ALL_FIELDS) == len(action_names(encoding, ALL_FIELDS)) == size
    assert augmentation_action(FIRST, SECOND, encoding).shape == (1, size)


@pytest.mark.parametrize(
    ("encoding", "missing"),
    [(encoding, field) for encoding, required in REQUIRED_FIELDS.items() for field in required],
)
def test_a_missing_transform_is_refused_with_the_cure(encoding: str, missing: str):
    present = [field for field in REQUIRED_FIELDS[encoding] if field != missing]
    first, second = only(random_view(1), *present), only(random_view(2), *present)
    message = f"'{encoding}' needs {missing}, which the views do not have: choose other augmentations"
    with pytest.raises(ValueError, match=message):
        augmentation_action(first, second, encoding)
    with pytest.raises(ValueError, match=message):
        augmentation_action_size(encoding, present)


def test_wrong_views_and_names_are_refused_with_the_cure():
    view = random_view(1)
    with pytest.raises(ValueError, match="parameters of 1 view"):
        augmentation_actions([view])
    with pytest.raises(ValueError, match=r"views are of \[4, 6\] images"):
        augmentation_action(view, view.rows(slice(4)))
    with pytest.raises(ValueError, match="one of the views has a crop and another has none"):
        augmentation_action(view, only(view, "blur"))
    with pytest.raises(ValueError, match="have no transforms"):
        augmentation_action_size("standard", [])
    with pytest.raises(ValueError, match="the action encoding is 'raw': choose from standard"):
        augmentation_action_size("raw", ALL_FIELDS)
    with pytest.raises(ValueError, match="there is no transform 'flip': name fields of ViewParameters"):
        augmentation_action_size("standard", ["flip"])
