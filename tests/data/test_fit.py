"""Bringing images of any size to one: canvases to train on, central crops to probe on."""

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop as TorchvisionCenterCrop
from torchvision.transforms import Compose, Resize

from ssl_equi.data.fit import Canvas, CenterCrop, imagenet_center_crop


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def placed(fit: Canvas | CenterCrop, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Into a buffer that still holds another picture."""
    out = np.full((*fit.image_size, 3), 77, dtype=np.uint8)
    size = fit.place(image, out)
    return out, size


@pytest.mark.parametrize(("height", "width"), [(20, 30), (64, 10), (64, 64), (2, 2)])
def test_a_small_picture_lies_unchanged_in_the_corner_of_the_canvas(height: int, width: int) -> None:
    image = noise(height, width)
    out, size = placed(Canvas(64), image)
    assert size == (height, width)
    np.testing.assert_array_equal(out[:height, :width], image)
    assert not out[height:].any() and not out[:, width:].any()


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(128, 64, (64, 32)), (65, 130, (32, 64)), (1000, 2, (64, 1)), (2, 999, (1, 64))]
)
def test_a_large_picture_is_shrunk_until_its_longer_side_fits(
    height: int, width: int, expected: tuple[int, int]
) -> None:
    image = noise(height, width)
    out, size = placed(Canvas(64), image)
    assert size == expected
    shrunk = Image.fromarray(image).resize(expected[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(out[: size[0], : size[1]], np.asarray(shrunk))
    assert not out[size[0] :].any() and not out[:, size[1] :].any()


def test_shrinking_averages_and_does_not_skip() -> None:
    stripes = np.zeros((128, 128, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    out, _ = placed(Canvas(32), stripes)
    np.testing.assert_allclose(out[:, 1:-1], 127.5, atol=3)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (401, 299), (256, 256), (40, 90), (31, 20)])
@pytest.mark.parametrize("side", [224, 64])
def test_the_central_crop_is_that_of_torchvision(height: int, width: int, side: int) -> None:
    image = noise(height, width)
    crop = imagenet_center_crop(side)
    reference = Compose([Resize(crop.shorter_side), TorchvisionCenterCrop(side)])
    out, size = placed(crop, image)
    assert size == (side, side)
    difference = np.abs(out.astype(int) - np.asarray(reference(Image.fromarray(image))).astype(int))
    assert difference.max() <= 1


def test_the_crop_keeps_seven_eighths_of_the_shorter_side() -> None:
    assert imagenet_center_crop(224).shorter_side == 256
    assert imagenet_center_crop(32).shorter_side == 37


def test_an_image_of_the_right_size_is_left_as_it_is() -> None:
    image = noise(32, 32)
    np.testing.assert_array_equal(placed(CenterCrop(32, 32), image)[0], image)


def test_a_very_long_picture_is_not_enlarged_as_a_whole() -> None:
    out, _ = placed(imagenet_center_crop(224), noise(2, 60_000))  # enlarged, it would have 5 GB
    assert out.shape == (224, 224, 3)
