"""Image files to pixels, pixels to images of one size, and those to what an encoder takes."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from ssl_equi.errors import DataError
from ssl_equi.runtime.device_copies import constant

# Pillow's other plug-ins are left out: nobody trains on them, and one of them starts a program (EPS, Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MIN_SIDE = 2  # pixels; smaller "images" are place-holders of web pages
MAX_PIXELS = 178_956_970  # Pillow's own limit: more is taken for a decompression bomb

# What image files are, by the suffix of their member in a tar shard. Those in CMYK and those that were repaired when
# the shard was written are kinds of their own, so that they are counted.
JPEG_IN_CMYK, REPAIRED_PNG = "JPEG in CMYK", "repaired PNG"
SUFFIX_OF_KIND = {
    "JPEG": "jpg", JPEG_IN_CMYK: "jpg", "PNG": "png", REPAIRED_PNG: "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif",
    "TIFF": "tif", "PPM": "ppm",
}  # fmt: skip
REPAIRED_COMMENT = "pixels of a damaged image, as Pillow decoded them"  # marks a repaired PNG

_SIXTEEN_TO_EIGHT_BIT = 257  # 65535 / 255
JPEG_START = b"\xff\xd8\xff"
_CURE = "restore it from its source or take it out of the data set"
_FILTER = Image.Resampling.BILINEAR  # shrinks with anti-aliasing, as torchvision's Resize does


# ---------------------------------------------------------------- from files to pixels


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes of an image file say: a key of `SUFFIX_OF_KIND`, height and width in pixels."""

    kind: str
    height: int
    width: int


def read_image_header(data: bytes, name: str) -> ImageHeader:
    """The kind and the size of an image file by its content, whatever its name says; the pixels aren't decoded.

    Raises DataError if the data, called `name`, are empty or no image of any of `FORMATS`.
    """
    if not data:
        raise DataError(f"image {name} is empty (0 bytes): {_CURE}")
    try:
        if data.startswith(JPEG_START):
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
            kind = JPEG_IN_CMYK if colorspace.upper() in ("CMYK", "YCCK") else "JPEG"
            return ImageHeader(kind, height, width)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            repaired = image.format == "PNG" and image.info.get("Comment") == REPAIRED_COMMENT
            return ImageHeader(REPAIRED_PNG if repaired else str(image.format), image.height, image.width)
    except Exception as error:  # Pillow's plug-ins raise errors of many types for damaged files
        raise DataError(f"image {name} does not decode ({error}): {_CURE}") from error


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decode an image file of any of `FORMATS` into uint8 [H, W, 3]; errors call it `name`.

    Grey levels become three equal channels. Transparency is laid over white. CMYK becomes RGB. Grey of 16 bits is
    divided by 257 and rounded, so that white stays white; of 16-bit colour Pillow keeps the upper byte. Of an animation
    the first frame is taken. An orientation in the EXIF data is not applied, as in torchvision's and WebDataset's
    readers, so that results can be compared.

    Raises DataError if the data are empty, cut, damaged or no image; a side is below 2 pixels; there are more than
    178,956,970 pixels; or the pixels are floating point or 32-bit numbers.
    """
    if not data:
        raise DataError(f"image {name} is empty (0 bytes): {_CURE}")
    try:
        if data.startswith(JPEG_START):
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
            _check_size(height, width, name)
            if colorspace.upper() in ("YCBCR", "RGB", "GRAY"):
                # Strict: by default libjpeg-turbo turns damaged data into wrong pixels without a word.
                return simplejpeg.decode_jpeg(data, "RGB", strict=True)
        return decode_with_pillow(data, name)
    except DataError:
        raise
    except Exception as error:  # Pillow's plug-ins raise errors of many types for damaged files
        raise DataError(f"image {name} does not decode ({error}): {_CURE}") from error


def decode_with_pillow(data: bytes, name: str) -> np.ndarray:
    """What `decode_image` gives for a whole image; damage that Pillow doesn't notice in a JPEG gives wrong pixels.

    Raises DataError as `decode_image` does, and whatever Pillow raises for data that it can't decode.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(image.height, image.width, name)
        image.load()
        if image.mode.startswith("I"):
            return _from_sixteen_bits(np.asarray(image), name)
        if image.mode == "F":
            raise DataError(f"image {name} has floating point pixels: convert it to 8 or 16 bits")
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            image_rgba = image.convert("RGBA")
            on_white = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image_rgba)
            return np.asarray(on_white.convert("RGB"))
        return np.asarray(image.convert("RGB"))


def _from_sixteen_bits(grey: np.ndarray, name: str) -> np.ndarray:
    """[H, W] of 0..65535 -> uint8 [H, W, 3]. Pillow's own conversion would clip everything above 255 to white."""
    if grey.min() < 0 or grey.max() > 65535:
        raise DataError(f"image {name} has pixels of 32 bits, beyond 0..65535: convert it to 8 or 16 bits")
    rounded = (grey.astype(np.uint32) + _SIXTEEN_TO_EIGHT_BIT // 2) // _SIXTEEN_TO_EIGHT_BIT
    return np.repeat(rounded.astype(np.uint8)[:, :, None], 3, axis=2)


def _check_size(height: int, width: int, name: str) -> None:
    if min(height, width) < MIN_SIDE:
        raise DataError(
            f"image {name} has {height} x {width} pixels, the smallest side allowed is {MIN_SIDE}: "
            f"take it out of the data set"
        )
    if height * width > MAX_PIXELS:
        raise DataError(
            f"image {name} claims {height} x {width} pixels, more than {MAX_PIXELS:,}, and may be a decompression "
            f"bomb: shrink it or take it out of the data set"
        )


# ---------------------------------------------------------------- to one size


class Fit(Protocol):
    """Writes an image of any size into a buffer of one size."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the buffer."""

    @property
    def fills_image(self) -> bool:
        """True if the picture always fills the buffer."""

    def place(self, image: np.ndarray, out: np.ndarray) -> tuple[int, int]:
        """Write uint8 [h, w, 3] into uint8 [H, W, 3]; returns height and width of the picture in `out`."""


@dataclass(frozen=True)
class Canvas:
    """A square of `side` pixels with the picture in its top-left corner and zeros elsewhere, to be cropped later.

    A picture whose longer side exceeds `side` is shrunk to it, keeping its proportions; none is enlarged.
    """

    side: int
    fills_image = False

    @property
    def image_size(self) -> tuple[int, int]:
        return self.side, self.side

    def place(self, image: np.ndarray, out: np.ndarray) -> tuple[int, int]:
        height, width = image.shape[:2]
        longer = max(height, width)
        if longer > self.side:
            height, width = (max(1, round(length * self.side / longer)) for length in (height, width))
            image = np.asarray(Image.fromarray(image).resize((width, height), _FILTER))
        out[height:] = 0
        out[:height, width:] = 0
        out[:height, :width] = image
        return height, width


@dataclass(frozen=True)
class CenterCrop:
    """The central square of `side` pixels of the picture after its shorter side was resized to `shorter_side`."""

    side: int
    shorter_side: int
    fills_image = True

    @property
    def image_size(self) -> tuple[int, int]:
        return self.side, self.side

    def place(self, image: np.ndarray, out: np.ndarray) -> tuple[int, int]:
        height, width = image.shape[:2]
        shorter = min(height, width)
        if height == width == self.side == self.shorter_side:
            out[...] = image
            return self.side, self.side
        resized_height = self.shorter_side * height // shorter
        resized_width = self.shorter_side * width // shorter
        top = round((resized_height - self.side) / 2)
        left = round((resized_width - self.side) / 2)
        # Only the pixels of the crop are computed, which is the same: the filter still sees the picture around it.
        box = (
            left * width / resized_width,
            top * height / resized_height,
            (left + self.side) * width / resized_width,
            (top + self.side) * height / resized_height,
        )
        out[...] = np.asarray(Image.fromarray(image).resize((self.side, self.side), _FILTER, box=box))
        return self.side, self.side


def imagenet_center_crop(side: int) -> CenterCrop:
    """The usual evaluation crop: 87.5 % of the shorter side (Resize 256, CenterCrop 224, for any `side`)."""
    return CenterCrop(side, round(side * 256 / 224))


# ---------------------------------------------------------------- to an encoder


def normalise_images(images: Tensor, mean_rgb: Sequence[float], std_rgb: Sequence[float]) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in channels-last memory: (x / 255 - mean) / std."""
    # The permuted NHWC tensor already has the channels-last strides, and what follows keeps them.
    images = images.permute(0, 3, 1, 2)
    if images.device.type == "cpu":
        means, stds = (tuple(float(np.float32(value) * np.float32(255)) for value in of) for of in (mean_rgb, std_rgb))
        mean, std = (constant(values, images.device).view(3, 1, 1) for values in (means, stds))
        return images.float().sub_(mean).div_(std)
    # One launch and one pass over the pixels; rounded otherwise.
    scales = tuple(1 / (255 * std) for std in std_rgb)
    shifts = tuple(-mean / std for mean, std in zip(mean_rgb, std_rgb, strict=True))
    scale, shift = (constant(values, images.device).view(3, 1, 1) for values in (scales, shifts))
    return torch.addcmul(shift, images, scale)


def normalise_views(images: Tensor, mean_rgb: Sequence[float], std_rgb: Sequence[float]) -> Tensor:
    """uint8 [B, V, H, W, 3] -> float32 [B, V, 3, H, W], each image in channels-last memory."""
    return normalise_images(images.flatten(0, 1), mean_rgb, std_rgb).unflatten(0, images.shape[:2])
