"""Where an image draws the eye: two classical maps that need no training, from the pixels alone.

Both work on a small version of the image (longer side 64 pixels; smaller images as they are) and are resized back.
Maps are [N, H, W], non-negative, and each sums to 1: the probability that a fixation falls on a pixel. An image
without contrast, below half a grey level of 8 bits, has the uniform map.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.views import operations
from ssl_equi.views.transform import check_images

WORKING_SIDE = 64  # longer side of the small version, in pixels
SPECTRUM_SMOOTHING = 2.5  # standard deviation in pixels of the small version
CENTRE_SIGMAS = (1.0, 2.0, 4.0)  # standard deviations in pixels of the small version
SURROUND_FACTOR = 4.0  # a surround's standard deviation in units of its centre's
GREY_LEVEL = 1 / 255


@torch.no_grad()
def spectral_residual(images: Tensor) -> Tensor:
    """What is unexpected in the spectrum (Hou and Zhang, "Saliency Detection: A Spectral Residual Approach", 2007).

    With the Fourier transform A exp(i P) of the small grey image, the residual is log A minus its average over 3 x 3
    frequencies; the saliency is the squared inverse transform of exp(residual + i P), smoothed by a Gaussian. The mean
    grey is taken off first, unlike in the paper: it has no place, and would be added to every one. In the average,
    amplitudes are raised by what rounding to 8 bits adds to them, so that log A stays finite.

    Args:
        images: float32 [N, 3, H, W] in [0, 1].

    Raises:
        ValueError: images of another type or shape.
    """
    check_images(images, len(images))
    grey = operations.to_grayscale(_small(images))[:, :1]
    spectrum = torch.fft.fft2(grey - grey.mean(dim=(2, 3), keepdim=True))
    # Rounding to whole grey levels is noise of standard deviation 1 / sqrt(12) levels in every pixel.
    rounding = GREY_LEVEL * math.sqrt(grey.shape[2] * grey.shape[3] / 12)
    log_amplitude = torch.log(spectrum.abs() + rounding)
    # A spectrum is periodic, so its average goes round its edges.
    expected = F.avg_pool2d(F.pad(log_amplitude, (1, 1, 1, 1), mode="circular"), kernel_size=3, stride=1)
    # exp(log A - expected + i P) without a phase, which an amplitude of zero doesn't have.
    residual = torch.fft.ifft2(spectrum * torch.exp(-expected)).abs().square()
    maps = _blur(residual, SPECTRUM_SMOOTHING)
    return _distributions(maps, _has_contrast(grey), images.shape[2:])


@torch.no_grad()
def centre_surround(images: Tensor) -> Tensor:
    """Contrast between places and their surroundings (in the manner of Itti, Koch and Niebur, PAMI 1998).

    Intensity (r + g + b) / 3 and the opponent colours r - g and b - (r + g) / 2 are blurred by narrow Gaussians and by
    four times wider ones; the absolute differences, at three scales, are the feature maps. Each is scaled to a largest
    value of 1 (never by more than 255) and weighted by the square of how far its largest value stands above the average
    of its other peaks, so that a map with one peak counts more than one with many alike; the saliency is their sum.
    Orientations, which the authors use too, are left out.

    Args:
        images: float32 [N, 3, H, W] in [0, 1].

    Raises:
        ValueError: images of another type or shape.
    """
    check_images(images, len(images))
    red, green, blue = _small(images).unbind(dim=1)
    features = torch.stack([(red + green + blue) / 3, red - green, blue - (red + green) / 2], dim=1)
    total = torch.zeros_like(features[:, :1])
    for sigma in CENTRE_SIGMAS:
        contrast = (_blur(features, sigma) - _blur(features, SURROUND_FACTOR * sigma)).abs()
        contrast = contrast / contrast.amax(dim=(2, 3), keepdim=True).clamp(min=GREY_LEVEL)
        total = total + (_prominence(contrast, sigma) * contrast).sum(dim=1, keepdim=True)
    return _distributions(total, _has_contrast(features), images.shape[2:])


def normalise_saliency(maps: Tensor) -> Tensor:
    """The maps [N, H, W] as float32, or float64 if they are that, each with the sum 1.

    Raises:
        ValueError: the shape is another, or a map has negative or non-finite values or is zero everywhere; the first
            such map is named.
    """
    if maps.ndim != 3:
        raise ValueError(f"saliency maps have shape {tuple(maps.shape)}: pass [N, H, W]")
    maps = maps if maps.dtype == torch.float64 else maps.float()
    for problem, is_bad, cure in (
        ("values that are not finite", ~maps.isfinite().flatten(1).all(dim=1), "compute it again"),
        ("negative values", (maps < 0).flatten(1).any(dim=1), "pass densities, such as exp of log densities"),
        ("no value above zero", (maps <= 0).flatten(1).all(dim=1), "pass a uniform map where nothing is salient"),
    ):
        bad = is_bad.nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"saliency map {bad[0]} has {problem}: {cure}")
    # The largest value first, so that neither large nor tiny values lose their sum.
    maps = maps / maps.amax(dim=(1, 2), keepdim=True)
    return maps / maps.sum(dim=(1, 2), keepdim=True)


def _small(images: Tensor) -> Tensor:
    """The images with a longer side of 64 pixels at most, averaged down."""
    height, width = images.shape[2:]
    longer = max(height, width)
    if longer <= WORKING_SIDE:
        return images
    size = [max(1, round(side * WORKING_SIDE / longer)) for side in (height, width)]
    return F.interpolate(images.contiguous(), size, mode="bilinear", antialias=True)


def _blur(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [N, C, h, w]; its kernel ends at three standard deviations or at the image's shorter side."""
    radius = min(math.ceil(3 * sigma), min(maps.shape[2:]) - 1)
    return operations.gaussian_blur(maps, torch.full((len(maps),), sigma), kernel_size=2 * radius + 1)


def _prominence(contrast: Tensor, sigma: float) -> Tensor:
    """[N, C, 1, 1]: (largest value - mean of the other peaks)^2; a peak is the largest within two sigmas."""
    window = 2 * math.ceil(2 * sigma) + 1
    is_peak = contrast == F.max_pool2d(contrast, window, stride=1, padding=window // 2)
    largest = contrast.amax(dim=(2, 3), keepdim=True)
    others = (contrast * is_peak).sum(dim=(2, 3), keepdim=True) - largest
    count = is_peak.sum(dim=(2, 3), keepdim=True) - 1
    return (largest - others / count.clamp(min=1)).square()


def _has_contrast(channels: Tensor) -> Tensor:
    """bool [N]: some channel of [N, C, h, w] spans half a grey level or more."""
    spans = channels.amax(dim=(2, 3)) - channels.amin(dim=(2, 3))
    return (spans >= GREY_LEVEL / 2).any(dim=1)


def _distributions(maps: Tensor, is_usable: Tensor, size: torch.Size) -> Tensor:
    """[N, 1, h, w] resized to [N, H, W] with the sum 1 each; uniform where a map is not usable or zero everywhere."""
    resized = F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)[:, 0]
    is_usable = is_usable & (resized.amax(dim=(1, 2)) > 0)
    resized = torch.where(is_usable.view(-1, 1, 1), resized, torch.ones_like(resized))
    return resized / resized.sum(dim=(1, 2), keepdim=True)
