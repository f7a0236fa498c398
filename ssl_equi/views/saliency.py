"""Saliency maps: two classical ones that need no training, and files of maps, computed once or the user's.

Maps are [N, H, W], non-negative, and each sums to 1: the probability that a fixation falls on a pixel. Both classical
ones work on a small version of the image (longer side 64 pixels; smaller images as they are) and are resized back; an
image without contrast, below half a grey level of 8 bits, has the uniform map.

A file is a NumPy array [n, H, W], or [n, V, H, W] for V views of each object, of float16, float32 or uint8, in the
order of the objects; a map's values are densities up to a factor. It stays on the disk: reading a batch reads its maps.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from platformdirs import user_cache_path
from torch import Tensor

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.npy import map_npy
from ssl_equi.data.shards.manifest import canonical_json
from ssl_equi.errors import DataError
from ssl_equi.files import building_progress, sync_folder, working_alone, write_errors_named
from ssl_equi.views import operations

WORKING_SIDE = 64  # longer side of the small version, in pixels
SPECTRUM_SMOOTHING = 2.5  # standard deviation in pixels of the small version
CENTRE_SIGMAS = (1.0, 2.0, 4.0)  # standard deviations in pixels of the small version
SURROUND_FACTOR = 4.0  # a surround's standard deviation in units of its centre's
GREY_LEVEL = 1 / 255
FILE_TYPES = (np.float16, np.float32, np.uint8)
MAPS_VERSION = 1  # raised when the same images would get other maps, so that no cache is stale
IMAGES_AT_ONCE = 256


@torch.no_grad()
def spectral_residual(images: Tensor) -> Tensor:
    """What is unexpected in the spectrum (Hou and Zhang, "Saliency Detection: A Spectral Residual Approach", 2007).

    With the Fourier transform A exp(i P) of the small grey image, the residual is log A minus its average over 3 x 3
    frequencies; the saliency is the squared inverse transform of exp(residual + i P), smoothed by a Gaussian. The mean
    grey is taken off first, unlike in the paper: it has no place, and would be added to every one. In the average,
    amplitudes are raised by what rounding to 8 bits adds to them, so that log A stays finite.

    Args:
        images: float32 [N, 3, H, W] in [0, 1].
    """
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
    """
    red, green, blue = _small(images).unbind(dim=1)
    features = torch.stack([(red + green + blue) / 3, red - green, blue - (red + green) / 2], dim=1)
    total = torch.zeros_like(features[:, :1])
    for sigma in CENTRE_SIGMAS:
        contrast = (_blur(features, sigma) - _blur(features, SURROUND_FACTOR * sigma)).abs()
        contrast = contrast / contrast.amax(dim=(2, 3), keepdim=True).clamp(min=GREY_LEVEL)
        total = total + (_prominence(contrast, sigma) * contrast).sum(dim=1, keepdim=True)
    return _distributions(total, _has_contrast(features), images.shape[2:])


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


SaliencySource = Literal["spectral_residual", "centre_surround"]
SALIENCY_SOURCES: dict[SaliencySource, Callable[[Tensor], Tensor]] = {
    "spectral_residual": spectral_residual,
    "centre_surround": centre_surround,
}


class SaliencyMaps:
    """The maps of all views of a collection, in a file.

    Args:
        file: .npy, see above.
        collection: what the maps are of; a file without V is of collections with one view per object.

    Raises:
        DataError: the file is missing, not such an array, or of other images.
    """

    def __init__(self, file: Path, collection: ViewCollection) -> None:
        self.file = Path(file)
        height, width = collection.image_size
        maps = map_npy(self.file, str(self.file), DataError, "give a .npy file of saliency maps that numpy.save wrote")
        if maps.dtype not in FILE_TYPES or maps.ndim not in (3, 4):
            raise DataError(
                f"{self.file} holds {maps.dtype} {maps.shape}: give one array of float16, float32 or uint8 [objects, "
                "height, width], or [objects, views, height, width]"
            )
        self._maps = maps if maps.ndim == 4 else maps[:, None]
        if self._maps.shape[:2] != (collection.num_objects, collection.num_views):
            raise DataError(
                f"{self.file} has maps of {self._maps.shape[0]} objects with {self._maps.shape[1]} views and split "
                f"{collection.split!r} of {collection.folder} holds {collection.num_objects} with "
                f"{collection.num_views}: give the file of this split"
            )
        if self._maps.shape[2:] != (height, width):
            raise DataError(
                f"{self.file} has maps of {self._maps.shape[2]} x {self._maps.shape[3]} pixels and the images of split "
                f"{collection.split!r} have {height} x {width}: resize the maps to the images"
            )

    def read(self, object_indices: Tensor | np.ndarray, view_indices: Tensor | np.ndarray) -> Tensor:
        """The maps of views [b] of objects [b]: float32 [b, H, W] on the CPU, each with the sum 1.

        Raises:
            DataError: names the first object whose map has negative or non-finite values, or no value above zero.
            IndexError: an index is out of range.
        """
        objects, views = (np.asarray(torch.as_tensor(index).cpu()) for index in (object_indices, view_indices))
        maps = self._maps[objects, views].astype(np.float32)
        largest, smallest = maps.max(axis=(1, 2)), maps.min(axis=(1, 2))
        # Checked here and not when the file is opened, which would read all of it.
        # A value that is not a number makes the largest one that, so every comparison with it fails.
        good = (smallest >= 0) & (largest > 0) & (largest < np.inf)
        if not good.all():
            row = int(np.argmin(good))
            if largest[row] == smallest[row] == 0:
                problem, cure = "is zero everywhere", "give a uniform map where nothing is salient"
            elif smallest[row] < 0:
                problem, cure = "has negative values", "give densities, such as exp of log densities"
            else:
                problem, cure = "has values that are not finite", "compute it again"
            raise DataError(f"the map of object {objects[row]}, view {views[row]}, in {self.file} {problem}: {cure}")
        maps /= largest[:, None, None]
        maps /= maps.sum(axis=(1, 2), keepdims=True)
        return torch.from_numpy(maps)


def computed_saliency(collection: ViewCollection, source: SaliencySource, folder: Path | None = None) -> SaliencyMaps:
    """The maps of a collection, computed when they are first asked for and read from a file ever after.

    They are stored as float16 with a largest value of 1 each. Of a picture that doesn't fill its canvas the map is
    computed on the picture alone, and is zero around it. Safe to call from several processes at once.

    Args:
        source: spectral_residual or centre_surround.
        folder: where the file is kept; `saliency/` in the user's cache folder when None.

    Raises:
        DataError: an image that can't be read, or a file that can't be written.
    """
    folder = user_cache_path("ssl_equi") / "saliency" if folder is None else folder
    file = folder / _file_name(collection, source)
    if not file.exists():
        with write_errors_named(file):
            folder.mkdir(parents=True, exist_ok=True)
            with working_alone(file.with_name(f".{file.name}.lock"), f"computing {file}"):
                if not file.exists():
                    _compute(collection, source, file)
    return SaliencyMaps(file, collection)


def _file_name(collection: ViewCollection, source: SaliencySource) -> str:
    """Names the maps by all that they depend on: the images, how they lie in their buffers, and the source."""
    identity = {
        "version": MAPS_VERSION,
        "source": source,
        "fingerprint": collection.content_key,
        "split": collection.split,
        "image_size": list(collection.image_size),
        "fills_image": collection.fills_image,
    }
    return f"{source}-{hashlib.sha256(canonical_json(identity)).hexdigest()[:16]}.npy"


def _compute(collection: ViewCollection, source: SaliencySource, file: Path) -> None:
    shape = (collection.num_objects, collection.num_views, *collection.image_size)
    temporary = file.with_name(f".writing-{file.name}-{os.getpid()}")
    try:
        maps = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        flat = maps.reshape(-1, *collection.image_size)
        with building_progress() as progress:
            bar = progress.add_task(f"computing saliency of {collection.split}", total=collection.num_images)
            for rows, images, sizes in _image_batches(collection):
                flat[rows] = _scaled_maps(images, sizes, SALIENCY_SOURCES[source])
                progress.advance(bar, len(images))
        maps.flush()
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)
    if not progress.console.is_terminal:
        print(
            f"computed the {source} saliency of {collection.split}: {collection.num_images:,} maps in {file}",
            flush=True,
        )


def _image_batches(collection: ViewCollection) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """All views in order: rows of [n * V], pixels uint8 [b, H, W, 3], and content sizes [b, 2] if they have such."""
    total = collection.num_images
    for start in range(0, total, IMAGES_AT_ONCE):
        numbers = np.arange(start, min(start + IMAGES_AT_ONCE, total))
        objects, views = collection.numbered(numbers)
        pixels = np.zeros((len(numbers), 1, *collection.image_size, 3), dtype=np.uint8)
        sizes = None if collection.fills_image else np.zeros((len(numbers), 1, 2), dtype=np.int64)
        collection.read_views(objects, views[:, None], pixels, sizes)
        yield objects * collection.num_views + views, pixels[:, 0], None if sizes is None else sizes[:, 0]


def _scaled_maps(pixels: np.ndarray, sizes: np.ndarray | None, saliency: Callable[[Tensor], Tensor]) -> np.ndarray:
    """float32 [b, H, W] with a largest value of 1 each."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    if sizes is None:
        maps = saliency(images)
    else:
        maps = torch.zeros(len(images), *images.shape[2:])
        for image, whole_map, (height, width) in zip(images, maps, sizes.tolist(), strict=True):
            whole_map[:height, :width] = saliency(image[None, :, :height, :width])[0]
    return (maps / maps.amax(dim=(1, 2), keepdim=True)).numpy()
