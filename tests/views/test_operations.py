"""Pixel operations against torchvision, against arithmetic, and on single pixels for their signs."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torchvision.transforms.v2.functional as reference
from torch import Tensor
from torchvision.transforms import InterpolationMode

from ssl_equi.views import operations


def random_images(count: int = 4, height: int = 20, width: int = 24) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def one_bright_pixel(row: int, column: int, size: int = 9) -> Tensor:
    images = torch.zeros(1, 3, size, size)
    images[:, :, row, column] = 1
    return images


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("name", ["adjust_brightness", "adjust_contrast", "adjust_saturation"])
def test_factors_mean_what_torchvision_means(name: str, factor: float):
    images = random_images()
    ours = getattr(operations, name)(images, torch.full((4,), factor))
    theirs = torch.stack([getattr(reference, name)(image, factor) for image in images])
    # torchvision weighs red with 0.2989 instead of 0.299
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)


@pytest.mark.parametrize("fraction", [-0.5, -0.2, 0.0, 0.1, 0.5])
def test_hue_is_torchvisions(fraction: float):
    images = random_images()
    images[0] = (images[0] * 4).round() / 4  # with equal channels and grey pixels
    ours = operations.adjust_hue(images, torch.full((4,), fraction))
    torch.testing.assert_close(ours, reference.adjust_hue(images, fraction), atol=2e-6, rtol=0)


@pytest.mark.parametrize("change", [operations._adjust_in_turn, operations._adjust_at_once])
def test_colours_change_in_an_order_of_each_images_own(change: Callable[..., Tensor]):
    orders = torch.tensor([*itertools.permutations(range(4))])
    images = random_images(len(orders))
    factors = 0.2 + 1.6 * torch.rand(len(orders), 3, generator=torch.Generator().manual_seed(1))
    values = torch.cat([factors, factors[:, :1] / 2 - 0.5], dim=1)
    named = [getattr(reference, f"adjust_{name}") for name in ("brightness", "contrast", "saturation", "hue")]
    expected = []
    for image, row, order in zip(images, values, orders.tolist()):
        for number in order:
            image = named[number](image, row[number].item())
        expected.append(image)
    positions = orders.argsort(dim=1)
    found = change(images, values, positions)
    # torchvision weighs red with 0.2989 instead of 0.299
    torch.testing.assert_close(found, torch.stack(expected), atol=2e-3, rtol=0)
    torch.testing.assert_close(
        found, operations._adjust_in_turn(images, values, orders.argsort(dim=1)), atol=5e-6, rtol=0
    )


@pytest.mark.parametrize("change", [operations._adjust_in_turn, operations._adjust_at_once])
def test_neutral_values_leave_colours_alone(change: Callable[..., Tensor]):
    images, orders = random_images(24), torch.tensor([*itertools.permutations(range(4))])
    found = change(images, torch.tensor([1.0, 1, 1, 0]).expand(24, 4), orders)
    torch.testing.assert_close(found, images, atol=1e-6, rtol=0)


def test_hue_of_pure_colours_turns_from_red_to_green_to_blue():
    red, green, blue = torch.eye(3).view(3, 1, 3, 1, 1)
    third = torch.tensor([1 / 3])
    for colour, following in ((red, green), (green, blue), (blue, red)):
        torch.testing.assert_close(operations.adjust_hue(colour, third), following, atol=1e-6, rtol=0)
        torch.testing.assert_close(operations.adjust_hue(following, -third), colour, atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_grey_has_no_hue(value: float):
    grey = torch.full((1, 3, 2, 2), value)
    assert torch.equal(operations.adjust_hue(grey, torch.tensor([0.3])), grey)


def test_each_image_takes_its_own_value():
    images = torch.full((3, 3, 2, 2), 0.5)
    brighter = operations.adjust_brightness(images, torch.tensor([0.5, 1.0, 1.5]))
    assert brighter[:, 0, 0, 0].tolist() == [0.25, 0.5, 0.75]


def test_grayscale_and_solarize():
    images = random_images()
    torch.testing.assert_close(
        operations.to_grayscale(images), reference.rgb_to_grayscale(images, 3), atol=2e-4, rtol=0
    )
    threshold = torch.tensor([0.0, 0.3, 0.5, 1.0])
    ours = operations.solarize(images, threshold)
    for image, result, value in zip(images, ours, threshold.tolist()):
        assert torch.equal(result, reference.solarize(image, value))


@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0])
@pytest.mark.parametrize("blur", [operations._blur_by_shifts, operations._blur_by_products])
def test_blur_is_torchvisions(blur: Callable[..., Tensor], sigma: float):
    images = random_images()
    ours = blur(images, operations.blur_weights(torch.full((4,), sigma), 9))
    torch.testing.assert_close(ours, reference.gaussian_blur(images, [9, 9], [sigma, sigma]), atol=2e-6, rtol=0)


def test_blur_of_an_impulse_has_the_stated_variance():
    sigma = torch.tensor([0.8, 1.5, 2.0])
    blurred = operations.gaussian_blur(one_bright_pixel(20, 20, 41).expand(3, -1, -1, -1), sigma, 23)
    torch.testing.assert_close(blurred[:, 0].sum(dim=(1, 2)), torch.ones(3), atol=1e-5, rtol=0)
    offset = torch.arange(41) - 20.0
    for dim in (1, 2):
        variance = (blurred[:, 0].sum(dim=dim) * offset**2).sum(dim=1)
        torch.testing.assert_close(variance, sigma**2, rtol=1e-3, atol=0)


def test_blur_without_deviation_changes_nothing():
    images = random_images()
    assert torch.equal(operations.gaussian_blur(images, torch.tensor([0.0, 0.5, 0.0, 2.0]), 9)[::2], images[::2])


def test_blur_refuses_a_kernel_that_does_not_fit():
    with pytest.raises(ValueError, match="kernel size 23 got images of 8 x 8 pixels: use a smaller kernel"):
        operations.gaussian_blur(random_images(1, 8, 8), torch.ones(1), 23)


BOXES = {
    "top": torch.tensor([3.0, 0, 0, 10, 5]),
    "left": torch.tensor([0.0, 5, 7, 8, 9]),
    "height": torch.tensor([40.0, 50, 1, 30, 20]),
    "width": torch.tensor([60.0, 33, 2, 44, 50]),
}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [1, 16, 96])
@pytest.mark.parametrize("crop", [operations._crop_in_turn, operations._crop_at_once])
def test_crops_are_torchvisions(crop, size: int, interpolation: operations.Interpolation):
    images = random_images(5, 50, 60)
    boxes = torch.stack([edge.long() for edge in BOXES.values()], dim=1)
    theirs = [
        reference.resized_crop(
            image, *box, [size, size], interpolation=InterpolationMode(interpolation), antialias=True
        )
        for image, box in zip(images, boxes.tolist())
    ]
    torch.testing.assert_close(crop(images, boxes, size, interpolation), torch.stack(theirs), atol=5e-6, rtol=0)


def test_bicubic_crops_stay_within_zero_and_one():
    edges = torch.zeros(2, 3, 8, 8)
    edges[:, :, :, 4:] = 1
    whole = torch.tensor([0, 0, 8, 8]).expand(2, 4)
    resized = operations.crop_and_resize(edges, whole, output_size=32, interpolation="bicubic")
    assert resized.min() == 0
    assert resized.max() == 1
