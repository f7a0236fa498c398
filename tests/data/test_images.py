"""Image files to pixels, and pixels to images of one size."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from torchvision.transforms import CenterCrop as TorchvisionCenterCrop
from torchvision.transforms import Compose, Resize

from ssl_equi.data import images as decode
from ssl_equi.data.images import (
    SUFFIX_OF_KIND,
    Canvas,
    CenterCrop,
    ImageHeader,
    decode_image,
    imagenet_center_crop,
    normalise_images,
    read_image_header,
)
from ssl_equi.errors import DataError
from tests.simulated_device import SimulatedDevice


def smooth_rgb(height: int = 24, width: int = 32) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 5, columns * 4, (rows + columns) * 2], axis=-1).astype(np.uint8)


def encoded(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG written by hand: what Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )  # fmt: skip


def message(data: bytes) -> str:
    with pytest.raises(DataError) as caught:
        decode_image(data, "folder/cat.jpg")
    text = str(caught.value)
    assert "folder/cat.jpg" in text and "\n" not in text
    return text


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "PPM", "TIFF", "GIF"])
def test_lossless_formats_give_the_pixels(image_format: str) -> None:
    pixels = smooth_rgb()
    image = Image.fromarray(pixels)
    if image_format == "GIF":
        image = image.quantize(256)
        pixels = np.asarray(image.convert("RGB"))
    found = decode_image(encoded(image, image_format), "a")
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, pixels)


def test_jpeg_gives_the_pixels_of_pillow() -> None:
    data = simplejpeg.encode_jpeg(smooth_rgb(), quality=90)
    np.testing.assert_array_equal(decode_image(data, "a"), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_grey_becomes_three_equal_channels(image_format: str) -> None:
    grey = smooth_rgb()[..., 1]
    options = {"lossless": True} if image_format == "WEBP" else {}
    found = decode_image(encoded(Image.fromarray(grey), image_format, **options), "a")
    assert found.shape == (24, 32, 3)
    np.testing.assert_array_equal(found[..., 0], found[..., 2])
    np.testing.assert_allclose(found[..., 0].astype(int), grey, atol=4 if image_format == "JPEG" else 0)


def test_transparency_is_laid_over_white() -> None:
    pixels = np.full((4, 4, 4), (200, 100, 0, 255), dtype=np.uint8)
    pixels[0, 0, 3] = 0
    pixels[0, 1, 3] = 128
    found = decode_image(encoded(Image.fromarray(pixels), "PNG"), "a")
    expected = np.array([200, 100, 0]) * 128 / 255 + 255 * 127 / 255
    assert found[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_allclose(found[0, 1], expected, atol=1)
    assert found[1, 1].tolist() == [200, 100, 0]

    grey_alpha = np.stack([np.full((4, 4), 10), np.array([[0, 255, 255, 255]] * 4)], axis=-1).astype(np.uint8)
    found = decode_image(encoded(Image.fromarray(grey_alpha, "LA"), "PNG"), "a")
    assert found[0, :2, 0].tolist() == [255, 10]


def test_a_transparent_colour_of_a_palette_becomes_white() -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    opaque = decode_image(encoded(image, "PNG"), "a")
    assert opaque[0].tolist() == [[255, 0, 0], [0, 0, 255]]
    partly = decode_image(encoded(image, "PNG", transparency=0), "a")
    assert partly[0].tolist() == [[255, 255, 255], [0, 0, 255]]


def test_black_and_white_and_cmyk() -> None:
    bits = Image.fromarray(smooth_rgb()[..., 1] > 60)
    assert set(np.unique(decode_image(encoded(bits, "PNG"), "a"))) == {0, 255}
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    found = decode_image(encoded(cmyk, "JPEG", quality=95), "a")
    np.testing.assert_allclose(found[8, 8], [255, 0, 0], atol=6)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_grey_of_sixteen_bits_is_scaled_and_not_clipped(image_format: str) -> None:
    values = np.array([[0, 128, 129, 257], [300, 32768, 65000, 65535]], dtype=np.uint16)
    found = decode_image(encoded(Image.fromarray(values), image_format), "a")
    expected = np.round(values / 257)
    for channel in range(3):
        np.testing.assert_array_equal(found[..., channel], expected)


def test_of_sixteen_bit_colour_the_upper_byte_is_kept() -> None:
    values = (0x0000, 0x01FF, 0x80FF, 0xFFFF)
    row = b"\0" + b"".join(struct.pack(">H", value) * 3 for value in values)
    found = decode_image(png(4, 2, 16, 2, 2 * row), "a")
    assert found[1, :, 0].tolist() == [value >> 8 for value in values]


def test_pixels_of_32_bits_or_floating_point_are_refused() -> None:
    wide = Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32))
    assert "32 bits" in message(encoded(wide, "TIFF"))
    assert "floating point" in message(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


def test_the_orientation_of_exif_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    for image_format in ("JPEG", "PNG"):
        data = encoded(Image.fromarray(smooth_rgb()), image_format, exif=exif)
        assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
        assert decode_image(data, "a").shape == (24, 32, 3)


def test_empty_text_and_unknown_files_are_named() -> None:
    assert "is empty (0 bytes): restore it" in message(b"")
    assert "does not decode" in message(b"this is a text file\n" * 50)
    assert "does not decode" in message(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    assert "does not decode" in message(b"\xff\xd8\xff")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_cut_file_is_named(image_format: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), image_format)
    assert "does not decode" in message(data[: int(len(data) * share)])


def test_damaged_bytes_inside_a_jpeg_are_seen() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = bytearray(simplejpeg.encode_jpeg(noise))
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(255 - value for value in data[middle : middle + 40])
    assert "does not decode" in message(bytes(data))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_images_of_one_pixel_are_refused(image_format: str, size: tuple[int, int]) -> None:
    found = message(encoded(Image.new("RGB", size), image_format))
    assert f"has {size[1]} x {size[0]} pixels, the smallest side allowed is 2" in found


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    claims = png(60_000, 60_000, 8, 2, b"\0" * 100)
    assert re.search("bomb", message(claims))
    monkeypatch.setattr(decode, "MAX_PIXELS", 24 * 32 - 1)
    for image_format in ("JPEG", "PNG"):
        data = encoded(Image.fromarray(smooth_rgb()), image_format)
        assert "claims 24 x 32 pixels, more than 767" in message(data)


@pytest.mark.parametrize(
    ("mode", "image_format", "kind", "suffix"),
    [
        ("RGB", "JPEG", "JPEG", "jpg"), ("L", "JPEG", "JPEG", "jpg"), ("CMYK", "JPEG", "JPEG in CMYK", "jpg"),
        ("RGBA", "PNG", "PNG", "png"), ("RGB", "WEBP", "WEBP", "webp"), ("RGB", "BMP", "BMP", "bmp"),
        ("P", "GIF", "GIF", "gif"), ("RGB", "TIFF", "TIFF", "tif"), ("L", "PPM", "PPM", "ppm"),
    ],
)  # fmt: skip
def test_headers_say_what_a_file_is(mode: str, image_format: str, kind: str, suffix: str) -> None:
    data = encoded(Image.fromarray(smooth_rgb()).convert(mode), image_format)
    assert read_image_header(data, "a") == ImageHeader(kind, height=24, width=32)
    assert SUFFIX_OF_KIND[kind] == suffix


@pytest.mark.parametrize("data", [b"", b"\x80\x04K\x01.", b"\xff\xd8\xff\xe0", b"%!PS-Adobe-3.0"])
def test_what_has_no_header_is_named(data: bytes) -> None:
    with pytest.raises(DataError, match=r"image a (is empty|does not decode)"):
        read_image_header(data, "a")


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


def test_a_gpu_normalises_in_one_launch_to_the_same_values(device: SimulatedDevice) -> None:
    images = torch.from_numpy(np.stack([smooth_rgb(8, 12), smooth_rgb(8, 12)[::-1]]))
    mean, std = (0.48, 0.46, 0.41), (0.23, 0.22, 0.27)
    there, before = images.to("cuda"), device.launches
    normalised = normalise_images(there, mean, std)
    assert device.launches - before <= 5  # the first call also copies the constants
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    expected = (images.double().permute(0, 3, 1, 2) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(
        3, 1, 1
    )
    for made in (normalised.cpu(), normalise_images(images, mean, std)):
        torch.testing.assert_close(made, expected.float(), atol=2e-6, rtol=0)
    before = device.launches
    normalise_images(there, mean, std)
    assert device.launches - before == 1
