"""Saliency maps: where a spot or an odd colour lies, against NumPy, and what is done without contrast."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_equi.views.saliency import centre_surround, normalise_saliency, spectral_residual

SOURCES = [spectral_residual, centre_surround]
Source = Callable[[Tensor], Tensor]


def noisy_images(count: int = 3, height: int = 48, width: int = 40) -> Tensor:
    return 0.4 + 0.1 * torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("size", [(48, 40), (200, 90), (3, 100), (1, 1)])
def test_maps_are_distributions_of_the_images_size(source: Source, size: tuple[int, int]) -> None:
    maps = source(noisy_images(3, *size))
    assert maps.shape == (3, *size) and maps.dtype == torch.float32
    assert (maps >= 0).all() and torch.allclose(maps.sum(dim=(1, 2)), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("source", SOURCES)
def test_an_image_without_contrast_has_the_uniform_map(source: Source) -> None:
    images = noisy_images()
    images[1] = torch.tensor([0.2, 0.7, 0.4]).view(3, 1, 1)
    images[2] = 0
    maps = source(images)
    assert torch.allclose(maps[1:], torch.full((2, 48, 40), 1 / (48 * 40)), rtol=1e-4)
    assert maps[0].max() > 1.5 / (48 * 40)


@pytest.mark.parametrize("source", SOURCES)
def test_a_map_is_the_same_alone_and_in_a_batch(source: Source) -> None:
    images = noisy_images()
    maps = source(images)
    alone = torch.cat([source(image) for image in images.split(1)])
    assert torch.allclose(alone, maps, rtol=1e-4)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("scale", [1, 3], ids=["as it is", "shrunk to the working size"])
def test_a_bright_spot_is_the_most_salient_place(source: Source, scale: int) -> None:
    images = noisy_images(1, 60, 60)
    images[0, :, 14:18, 40:44] = 1
    images = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    maps = source(images)
    row, column = divmod(int(maps[0].argmax()), 60 * scale)
    assert abs(row / scale - 15.5) <= 2 and abs(column / scale - 41.5) <= 2
    spot = maps[0, 10 * scale : 22 * scale, 36 * scale : 48 * scale].sum()
    assert spot > 2.5 * (12 * 12) / (60 * 60)


def test_an_odd_colour_of_the_same_grey_is_salient_to_the_centre_surround_contrast() -> None:
    images = torch.full((1, 3, 64, 64), 0.5)
    images[0, :, 20:28, 40:48] = torch.tensor([0.7, 0.4, 0.4]).view(3, 1, 1)  # mean 0.5
    row, column = divmod(int(centre_surround(images)[0].argmax()), 64)
    assert 20 <= row < 28 and 40 <= column < 48


def test_the_spectral_residual_is_that_of_a_numpy_formula() -> None:
    images = noisy_images(1, 32, 24)
    red, green, blue = images[0].double().numpy()
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    spectrum = np.fft.fft2(grey - grey.mean())
    log_amplitude = np.log(np.abs(spectrum) + np.sqrt(32 * 24 / 12) / 255)
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    average = np.mean([np.roll(log_amplitude, shift, axis=(0, 1)) for shift in shifts], axis=0)
    residual = np.log(np.abs(spectrum) + 1e-300) - average
    energy = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    offsets = np.arange(-8, 9)
    kernel = np.exp(-(offsets**2) / (2 * 2.5**2))
    kernel /= kernel.sum()
    padded = np.pad(energy, 8, mode="reflect")
    smoothed = np.apply_along_axis(np.convolve, 0, padded, kernel, mode="valid")
    smoothed = np.apply_along_axis(np.convolve, 1, smoothed, kernel, mode="valid")
    expected = smoothed / smoothed.sum()
    assert np.allclose(spectral_residual(images)[0].numpy(), expected, rtol=1e-4)


def test_normalising_leaves_proportions_and_takes_any_scale() -> None:
    maps = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(1)) * torch.tensor([1e-30, 1, 255, 1e30]).view(
        4, 1, 1
    )
    normalised = normalise_saliency(maps)
    assert torch.allclose(normalised.sum(dim=(1, 2)), torch.ones(4))
    assert torch.allclose(normalised[2], maps[2] / maps[2].sum(), rtol=1e-5)
    whole = (maps[2:3]).to(torch.uint8)
    assert normalise_saliency(whole).dtype == torch.float32


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "saliency map 1 has values that are not finite: compute it again"),
        (-1.0, "saliency map 1 has negative values: pass densities, such as exp of log densities"),
        (None, "saliency map 1 has no value above zero: pass a uniform map"),
    ],
)
def test_a_bad_map_is_named_with_the_cure(value: float | None, message: str) -> None:
    maps = torch.ones(3, 4, 4)
    if value is None:
        maps[1] = 0
    else:
        maps[1, 2, 2] = value
    with pytest.raises(ValueError, match=message):
        normalise_saliency(maps)


def test_wrong_images_and_maps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"saliency maps have shape \(4, 4\): pass \[N, H, W\]"):
        normalise_saliency(torch.ones(4, 4))
    for source in SOURCES:
        with pytest.raises(ValueError, match=r"pass \[N, 3, H, W\]"):
            source(torch.rand(2, 1, 8, 8))
        with pytest.raises(ValueError, match="pass float32 in"):
            source(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
