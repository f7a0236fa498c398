"""Each transform does what its parameters say, and draws them from the stated distributions."""

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from ssl_equi.views.parameters import ColorJitterParameters
from ssl_equi.views.transforms import (
    CentralCrop,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    RandomResizedCrop,
    Solarize,
    Transform,
    perform,
)
from tests.simulated_device import SimulatedDevice

SIZE = 16
OCCASIONAL: dict[str, Transform[Any]] = {
    "horizontal_flip": HorizontalFlip(probability=0.5),
    "jitter": ColorJitter(0.4, 0.4, 0.4, 0.1, probability=0.5),
    "grayscale": Grayscale(probability=0.5),
    "blur": GaussianBlur(5, sigma=(0.5, 2.0), probability=0.5),
    "solarize": Solarize(probability=0.5),
}
NEUTRAL = {"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0, "sigma": 0, "threshold": 1}


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 12, height: int = SIZE, width: int = SIZE) -> Tensor:
    return torch.rand(count, 3, height, width, generator=seeded(1))


def sizes(count: int, height: int = SIZE, width: int = SIZE) -> Tensor:
    return torch.tensor([[height, width]]).expand(count, 2)


def draw(transform: Transform[Any], count: int, seed: int = 0, height: int = SIZE, width: int = SIZE) -> Any:
    return transform.draw(count, sizes(count, height, width), seeded(seed))


def apply(transform: Transform[Any], batch: Tensor, drawn: Any) -> Tensor:
    return perform(transform.operations(drawn, batch.device), batch)


def row(number: int) -> slice:
    return slice(number, number + 1)


def coordinates(height: int, width: int) -> Tensor:
    """An image whose red is the row and whose green is the column of the pixel's centre, over 1000 pixels."""
    rows = (torch.arange(height) + 0.5).view(-1, 1).expand(height, width)
    columns = (torch.arange(width) + 0.5).expand(height, width)
    return torch.stack([rows, columns, torch.zeros(height, width)]).unsqueeze(0) / 1000


@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize("name", OCCASIONAL)
def test_images_to_which_it_is_not_applied_stay_equal_to_the_bit_with_neutral_parameters(
    name: str, place: str, device: SimulatedDevice
):
    transform, batch = OCCASIONAL[name], images(40)
    before = batch.clone()
    drawn = draw(transform, 40)
    changed = apply(transform, batch.to(place), drawn).cpu()
    assert 5 < drawn.applied.sum() < 35
    assert torch.equal(changed[~drawn.applied], batch[~drawn.applied])
    assert torch.equal(batch, before)
    differs = (changed != batch).flatten(1).any(dim=1)
    assert torch.equal(differs, drawn.applied)
    for field in fields(drawn):
        if field.name in NEUTRAL:
            assert (getattr(drawn, field.name)[~drawn.applied] == NEUTRAL[field.name]).all()


@pytest.mark.parametrize("name", OCCASIONAL)
def test_the_probability_is_the_share_that_is_applied(name: str):
    for probability in (0.0, 0.8, 1.0):
        applied = draw(replace(OCCASIONAL[name], probability=probability), 20_000).applied.float().mean().item()
        assert applied == pytest.approx(probability, abs=0 if probability in (0, 1) else 0.01)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (64, 32)])
def test_a_crop_shows_the_rectangle_that_its_parameters_state(height: int, width: int):
    drawn = draw(RandomResizedCrop(8), 30, height=height, width=width)
    views = apply(RandomResizedCrop(8), coordinates(height, width).expand(30, -1, -1, -1), drawn) * 1000
    torch.testing.assert_close(views[:, 0].mean(dim=(1, 2)), drawn.top + drawn.height / 2, atol=0.3, rtol=0)
    torch.testing.assert_close(views[:, 1].mean(dim=(1, 2)), drawn.left + drawn.width / 2, atol=0.3, rtol=0)
    rows_apart = (views[:, 0, 5] - views[:, 0, 2]).mean(dim=1) / 3
    columns_apart = (views[:, 1, :, 5] - views[:, 1, :, 2]).mean(dim=1) / 3
    torch.testing.assert_close(rows_apart, drawn.height / 8, rtol=0.05, atol=0.02)
    torch.testing.assert_close(columns_apart, drawn.width / 8, rtol=0.05, atol=0.02)


def test_crops_are_uniform_in_area_and_in_the_logarithm_of_their_ratio():
    drawn = draw(RandomResizedCrop(8, scale=(0.1, 0.5), ratio=(0.5, 2.0)), 20_000, height=1000, width=1000)
    area = drawn.height * drawn.width / 1e6
    log_ratio = torch.log(drawn.width / drawn.height) / math.log(2)
    for values, low, high in ((area, 0.1, 0.5), (log_ratio, -1.0, 1.0)):
        share = (values - low) / (high - low)
        assert share.min() > -0.01
        assert share.max() < 1.01
        for quantile in (0.25, 0.5, 0.75):
            assert share.quantile(quantile).item() == pytest.approx(quantile, abs=0.03)
    assert (drawn.top >= 0).all()
    assert (drawn.top + drawn.height <= 1000).all()
    assert (drawn.left + drawn.width <= 1000).all()
    free = 1000 - drawn.height
    assert (drawn.top / free).mean().item() == pytest.approx(0.5, abs=0.01)
    assert (drawn.top == free).any() or (drawn.top >= free - 1).any()


def test_crop_parameters_are_whole_pixels_and_know_their_source():
    drawn = draw(RandomResizedCrop(8), 50, height=33, width=47)
    for edge in (drawn.top, drawn.left, drawn.height, drawn.width):
        assert torch.equal(edge, edge.round())
    assert drawn.output_size == 8
    assert drawn.source_height.unique().tolist() == [33]
    assert drawn.source_width.unique().tolist() == [47]
    assert drawn.applied.all()


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1, 1, (0, 0, 1, 1)), (10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10)), (1, 50, (0, 24, 1, 1))],
)
def test_where_no_rectangle_fits_the_central_one_is_taken(height: int, width: int, expected: tuple[int, ...]):
    transform = RandomResizedCrop(4, scale=(0.9, 1.0))
    drawn = draw(transform, 3, height=height, width=width)
    for row in torch.stack([drawn.top, drawn.left, drawn.height, drawn.width], dim=1).tolist():
        assert tuple(row) == expected
    assert apply(transform, images(3, height, width), drawn).shape == (3, 3, 4, 4)


def test_the_central_crop_is_the_central_square() -> None:
    drawn = draw(CentralCrop(20), 2, height=20, width=30)
    assert [drawn.top[0], drawn.left[0], drawn.height[0], drawn.width[0]] == [0, 5, 20, 20]
    view = apply(CentralCrop(20), coordinates(20, 30), drawn.rows(row(0)))
    torch.testing.assert_close(view, coordinates(20, 30)[:, :, :, 5:25])


def jitter_rows(**values: list[float]) -> ColorJitterParameters:
    count = len(next(iter(values.values())))
    one, none = torch.ones(count), torch.zeros(count)
    given = {name: torch.tensor(value) for name, value in values.items()}
    neutral = {"brightness": one, "contrast": one, "saturation": one, "hue": none}
    neutral["order"] = torch.arange(4).repeat(count, 1)
    return ColorJitterParameters(applied=one.bool(), **(neutral | given))


def test_jitter_of_flat_colours_is_arithmetic():
    jitter = ColorJitter(0.5, 0.5, 0.5, 0.5)
    flat = torch.tensor([0.4, 0.2, 0.6]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    grey = 0.299 * 0.4 + 0.587 * 0.2 + 0.114 * 0.6
    brighter = apply(jitter, flat, jitter_rows(brightness=[0.5, 1.5]))[:, :, 0, 0]
    torch.testing.assert_close(brighter, torch.tensor([[0.2, 0.1, 0.3], [0.6, 0.3, 0.9]]))
    for name in ("contrast", "saturation"):
        paler = apply(jitter, flat, jitter_rows(**{name: [0.5, 1.2]}))[:, :, 0, 0]
        expected = torch.stack([grey + factor * (flat[0, :, 0, 0] - grey) for factor in (0.5, 1.2)])
        torch.testing.assert_close(paler, expected, atol=1e-5, rtol=0)
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    assert apply(jitter, red, jitter_rows(hue=[1 / 3])).flatten().tolist() == pytest.approx([0, 1, 0], abs=1e-6)


def test_jitter_follows_the_order_of_each_image():
    jitter = ColorJitter(1, 1, 1, 0)
    half = torch.cat([torch.full((1, 3, 2, 1), 0.2), torch.full((1, 3, 2, 1), 0.8)], dim=3).expand(2, -1, -1, -1)
    rows = jitter_rows(brightness=[2.0, 2.0], contrast=[0.5, 0.5], order=[[0, 1, 2, 3], [1, 0, 2, 3]])
    brightness_first, contrast_first = apply(jitter, half, rows)[:, 0, 0].tolist()
    assert brightness_first == pytest.approx([0.55, 0.85])  # 0.4 and 1 (clipped) around 0.7
    assert contrast_first == pytest.approx([0.7, 1.0])  # 0.35 and 0.65 doubled, clipped


def test_jitter_factors_have_torchvisions_ranges_and_all_orders_come_up():
    drawn = draw(ColorJitter(0.4, 2.0, 0.0, 0.2), 20_000)
    for values, low, high in ((drawn.brightness, 0.6, 1.4), (drawn.contrast, 0.0, 3.0), (drawn.hue, -0.2, 0.2)):
        assert values.dtype == torch.float32
        assert values.min().item() == pytest.approx(low, abs=0.01)
        assert values.max().item() == pytest.approx(high, abs=0.01)
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.02)
    assert (drawn.saturation == 1).all()
    orders, counts = drawn.order.unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert counts.min() > 0.8 * 20_000 / 24


def test_a_flip_swaps_left_and_right() -> None:
    flip = HorizontalFlip(probability=1.0)
    assert torch.equal(apply(flip, images(), draw(flip, 12)), images().flip(3))


def test_the_range_of_blur() -> None:
    sigma = draw(GaussianBlur(9, sigma=(0.5, 1.5)), 5000).sigma
    assert sigma.min().item() == pytest.approx(0.5, abs=0.01)
    assert sigma.max().item() == pytest.approx(1.5, abs=0.01)
