"""Common corruptions of images, at five severities, to ask how much of a question's answer survives them.

The kinds are those that Hendrycks & Dietterich ("Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019) made usual; what each one does is said at its function. The strengths are this project's:
lengths are shares of the image's side, so that they suit images of any size, and each severity is further from the
image than the one before. Results are therefore not comparable with those on ImageNet-C.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.views.operations import adjust_saturation

SMALLEST_SIDE_PX = 32  # lengths in smaller images are those of this side, so that they stay visible
ZOOM_STEP_PX = 1.0  # between neighbours of the zoomed images that are averaged, at the border
FOG_GRID = 5  # cells of the fog along each side
FOG_DARKEST = 0.7  # of the fog's own brightness, which reaches 1
VERSION = 1  # raised when the same corruption would give other images, so that no kept features are stale

Apply = Callable[[Tensor, float, list[np.random.Generator]], Tensor]


@dataclass(frozen=True)
class CorruptionKind:
    """What a corruption does, and how strongly.

    Attributes:
        apply: of float32 images `[N, 3, H, W]` in [0, 1], the strength, and a generator of random numbers for each
            image; what it gives is clipped to [0, 1].
        strengths: of severities 1 to 5.
    """

    apply: Apply
    strengths: tuple[float, float, float, float, float]


@dataclass(frozen=True)
class Corruption:
    """A corruption of a split's views, for `ssl_equi.evaluation.features.FeatureStore.encode`."""

    name: str
    severity: int
    seed: int = 0

    @property
    def label(self) -> str:
        return self.name

    @property
    def fingerprint(self) -> str:
        described = f"corruption {VERSION} {self.name} {self.severity} {self.seed}"
        return hashlib.sha256(described.encode()).hexdigest()

    def __call__(self, images: Tensor, first_object: int) -> Tensor:
        """uint8 `[b, V, H, W, 3]` of consecutive objects; a view's number in the split is its image index."""
        first = first_object * images.shape[1]
        indices = np.arange(first, first + images.shape[0] * images.shape[1])
        changed = corrupt(images.flatten(0, 1), self.name, self.severity, image_indices=indices, seed=self.seed)
        return changed.unflatten(0, images.shape[:2])


@torch.no_grad()
def corrupt(images: Tensor, name: str, severity: int, *, image_indices: np.ndarray, seed: int = 0) -> Tensor:
    """Corrupts images on their device; an image's result depends on (seed, its index) and not on the batch.

    Args:
        images: uint8 `[N, H, W, 3]`.
        name: one of `CORRUPTIONS`.
        severity: 1 (least) to 5.
        image_indices: int `[N]`, at least 0.
        seed: of what is random: noise, the direction of motion, the shape of the fog.

    Returns:
        uint8 `[N, H, W, 3]`.
    """
    kind = CORRUPTIONS[name]
    keys = [np.array([seed, index], np.uint64) for index in image_indices.tolist()]
    generators = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
    values = images.permute(0, 3, 1, 2).float().div_(255).contiguous()
    changed = kind.apply(values, kind.strengths[severity - 1], generators)
    return changed.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _gaussian_noise(images: Tensor, deviation: float, generators: list[np.random.Generator]) -> Tensor:
    """Adds to every value a normal number of this standard deviation."""
    return images + deviation * _drawn(
        lambda generator: generator.standard_normal(images.shape[1:]), images, generators
    )


def _shot_noise(images: Tensor, photons: float, generators: list[np.random.Generator]) -> Tensor:
    """Counts photons, of which a white pixel sends so many on average: Poisson numbers, divided by the white's mean."""
    expected = (images * photons).cpu().double().numpy()
    counts = [generator.poisson(rates) for generator, rates in zip(generators, expected, strict=True)]
    return torch.from_numpy(np.stack(counts)).float().to(images.device) / photons


def _impulse_noise(images: Tensor, share: float, generators: list[np.random.Generator]) -> Tensor:
    """Makes a share of the pixels black or white, either one as often."""
    lot = _drawn(lambda generator: generator.random((1, *images.shape[2:])), images, generators)
    images = torch.where(lot < share / 2, torch.zeros_like(images), images)
    return torch.where(lot > 1 - share / 2, torch.ones_like(images), images)


def _defocus_blur(images: Tensor, radius: float, generators: list[np.random.Generator]) -> Tensor:
    """Spreads every pixel evenly over a disk; its radius is a share of the side."""
    radius_px = radius * _length_px(images)
    down, right = _offsets(math.ceil(radius_px), images)
    disk = (radius_px + 0.5 - torch.hypot(down, right)).clamp(0, 1)  # how much of a pixel the disk covers, about
    return _convolve(images, disk.expand(len(images), -1, -1))


def _motion_blur(images: Tensor, length: float, generators: list[np.random.Generator]) -> Tensor:
    """Spreads every pixel evenly along a line in a direction of the image's own; the length is a share of the side."""
    length_px = length * _length_px(images)
    angle_rad = _drawn(lambda generator: generator.uniform(0, math.pi, (1, 1)), images, generators)
    down, right = _offsets(math.ceil(length_px / 2), images)
    along = right * angle_rad.cos() + down * angle_rad.sin()
    across = down * angle_rad.cos() - right * angle_rad.sin()
    line = (length_px / 2 + 0.5 - along.abs()).clamp(0, 1) * (1 - across.abs()).clamp(0, 1)
    return _convolve(images, line)


def _zoom_blur(images: Tensor, zoom: float, generators: list[np.random.Generator]) -> Tensor:
    """The mean of the image and its centre enlarged by up to 1 + zoom."""
    steps = max(2, math.ceil(zoom * max(images.shape[2:]) / 2 / ZOOM_STEP_PX) + 1)
    total = torch.zeros_like(images)
    for factor in np.linspace(1, 1 + zoom, steps):
        scale = torch.tensor([[1 / factor, 0, 0], [0, 1 / factor, 0]], dtype=images.dtype, device=images.device)
        grid = F.affine_grid(scale.expand(len(images), -1, -1), list(images.shape), align_corners=False)
        total += F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return total / steps


def _fog(images: Tensor, density: float, generators: list[np.random.Generator]) -> Tensor:
    """Blends with a bright grey that varies slowly over the image, which takes contrast away unevenly."""
    coarse = _drawn(lambda generator: generator.uniform(FOG_DARKEST, 1, (1, FOG_GRID, FOG_GRID)), images, generators)
    fog = F.interpolate(coarse, images.shape[2:], mode="bicubic", align_corners=True).clamp(FOG_DARKEST, 1)
    return (1 - density) * images + density * fog


def _brightness(images: Tensor, added: float, generators: list[np.random.Generator]) -> Tensor:
    """Adds the same to every value."""
    return images + added


def _contrast(images: Tensor, factor: float, generators: list[np.random.Generator]) -> Tensor:
    """Shrinks the distance of every value to the mean of its channel over the image."""
    mean = images.mean(dim=(2, 3), keepdim=True)
    return mean + factor * (images - mean)


def _pixelate(images: Tensor, share: float, generators: list[np.random.Generator]) -> Tensor:
    """Keeps a share of the rows and columns, as means of what they stand for, and draws them as large as before."""
    height, width = images.shape[2:]
    smaller = F.interpolate(images, (max(1, round(share * height)), max(1, round(share * width))), mode="area")
    return F.interpolate(smaller, (height, width), mode="nearest-exact")


def _jpeg_compression(images: Tensor, quality: float, generators: list[np.random.Generator]) -> Tensor:
    """Through a JPEG file of this quality, with colours at half of the resolution."""
    pixels = images.permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).cpu().contiguous().numpy()
    decoded = [
        simplejpeg.decode_jpeg(
            simplejpeg.encode_jpeg(image, quality=int(quality), colorspace="RGB", colorsubsampling="420"),
            colorspace="RGB",
        )
        for image in pixels
    ]
    return torch.from_numpy(np.stack(decoded)).to(images.device).permute(0, 3, 1, 2).float() / 255


def _saturate(images: Tensor, factor: float, generators: list[np.random.Generator]) -> Tensor:
    """Enlarges the distance of every value to its pixel's grey."""
    return adjust_saturation(images, torch.full((len(images),), factor))


CORRUPTIONS: dict[str, CorruptionKind] = {
    "gaussian_noise": CorruptionKind(_gaussian_noise, (0.04, 0.08, 0.12, 0.18, 0.26)),
    "shot_noise": CorruptionKind(_shot_noise, (200, 80, 40, 20, 10)),
    "impulse_noise": CorruptionKind(_impulse_noise, (0.02, 0.05, 0.09, 0.16, 0.25)),
    "defocus_blur": CorruptionKind(_defocus_blur, (0.018, 0.027, 0.036, 0.05, 0.065)),
    "motion_blur": CorruptionKind(_motion_blur, (0.045, 0.07, 0.1, 0.14, 0.2)),
    "zoom_blur": CorruptionKind(_zoom_blur, (0.06, 0.11, 0.16, 0.22, 0.3)),
    "fog": CorruptionKind(_fog, (0.2, 0.35, 0.5, 0.62, 0.75)),
    "brightness": CorruptionKind(_brightness, (0.1, 0.18, 0.26, 0.35, 0.45)),
    "contrast": CorruptionKind(_contrast, (0.65, 0.45, 0.3, 0.2, 0.1)),
    "pixelate": CorruptionKind(_pixelate, (0.6, 0.45, 0.33, 0.25, 0.18)),
    "jpeg_compression": CorruptionKind(_jpeg_compression, (30, 20, 13, 8, 4)),
    "saturate": CorruptionKind(_saturate, (1.5, 2.2, 3, 5, 9)),
}


def _drawn(
    draw: Callable[[np.random.Generator], np.ndarray], images: Tensor, generators: list[np.random.Generator]
) -> Tensor:
    """One draw an image, side by side on the images' device."""
    return torch.from_numpy(np.stack([draw(generator) for generator in generators])).float().to(images.device)


def _length_px(images: Tensor) -> int:
    """The side that shares of lengths are of."""
    return max(SMALLEST_SIDE_PX, min(images.shape[2:]))


def _offsets(radius: int, images: Tensor) -> tuple[Tensor, Tensor]:
    """How far down and right of the middle each pixel of a square kernel is, both `[2 * radius + 1] * 2`."""
    steps = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    down, right = torch.meshgrid(steps, steps, indexing="ij")
    return down, right


def _convolve(images: Tensor, kernels: Tensor) -> Tensor:
    """Each image with its kernel `[N, 2r + 1, 2r + 1]`, which is made to sum to 1; the border is repeated outwards.

    By Fourier transforms, whose cost doesn't grow with the kernel, and which no device computes in TF32.
    """
    kernels = kernels / kernels.sum(dim=(1, 2), keepdim=True)
    radius = kernels.shape[1] // 2
    height, width = images.shape[2:]
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    size = (height + 2 * radius, width + 2 * radius)
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernels, s=size)[:, None]
    return torch.fft.irfft2(spectrum, s=size)[..., 2 * radius :, 2 * radius :]
