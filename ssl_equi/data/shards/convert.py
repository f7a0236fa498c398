"""From any layout to shards: checked, put in a random order, resumed, verified; what converters share.

Each image is decoded once, strictly, and stored as the bytes it was. Pixels only change where the user asks for it, and
the manifest then says how.
"""

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import simplejpeg
from PIL import Image, PngImagePlugin
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ssl_equi.data.collection import Rgb
from ssl_equi.data.images import REPAIRED_COMMENT, CenterCrop, decode_image, decode_with_pillow
from ssl_equi.data.order import epoch_permutation
from ssl_equi.data.shards.format import MAX_KEY_LENGTH, ImageRecord, ObjectRecord
from ssl_equi.data.shards.manifest import (
    ImageManifest,
    Manifest,
    canonical_json,
    has_manifest,
    read_image_manifest,
    read_manifest,
)
from ssl_equi.data.shards.records import ImageSplitSettings, SplitSettings, mean_and_std, pixel_moments
from ssl_equi.data.shards.verify import verify_split
from ssl_equi.data.shards.writer import SplitWriter
from ssl_equi.errors import DataError
from ssl_equi.files import map_in_order
from ssl_equi.options import Count, ImageSide, Seed, Threads
from ssl_equi.runtime.system import usable_cores

JPEG_QUALITY = 90  # of images whose shorter side was resized
RESIZED_QUALITY = 95  # of the JPEGs that resized views become, with colours at the full resolution
MEASURED_VIEWS = 500  # for mean and standard deviation of the pixels of views
_READ_AHEAD_PER_WORKER = 4
_DIGEST_LENGTH = 10  # hexadecimal digits that tell keys apart whose texts had to be changed

Item = TypeVar("Item")


@dataclass(frozen=True)
class PlannedSplit(Generic[Item]):
    """A split before it is stored."""

    settings: SplitSettings | ImageSplitSettings
    """What its manifest will say; their plan names every record, so that only runs of the same list are continued."""
    items: Sequence[Item]
    """What records are made of, in the order in which they are stored."""
    record_of: Callable[[Item], ObjectRecord | ImageRecord]
    """Thread-safe; raises DataError for what can't be stored."""


@dataclass(frozen=True)
class ConversionOptions:
    """How images are stored, whatever they come from."""

    out: Path
    """Folder of the shards."""
    images_per_shard: Count = 2000
    """Images in each tar file but the last."""
    seed: Seed = 0
    """Draws the order in which images are stored."""
    workers: Threads = field(default_factory=lambda: min(16, usable_cores()))
    """Threads that read and check images."""
    verify: bool = False
    """Read everything back at the end: every checksum compared, every image decoded."""
    resize_shorter_side: ImageSide | None = None
    """Shrink larger images to this shorter side in pixels, as JPEG of quality 90; original bytes if None."""
    repair_damaged: bool = False
    """Store the pixels that Pillow makes of an image that strict decoding refuses (counted in the manifest)."""


@dataclass(frozen=True)
class Provenance:
    """What the manifest says of where the images are from, and how training normalises them (as measured if None)."""

    source: str
    source_version: str
    license: str
    mean_rgb: Rgb | None = None
    std_rgb: Rgb | None = None


@dataclass(frozen=True)
class ListedImages:
    """The images of one split, in the order of their source."""

    split: str
    class_names: tuple[str, ...]
    keys: Sequence[str]
    labels: Sequence[int]  # -1 for an image without a label
    read: Callable[[int], bytes]  # the file of image i; thread-safe; raises DataError
    name_of: Callable[[int], str]  # what errors call image i


def convert_images(
    splits: Sequence[ListedImages], provenance: Provenance, options: ConversionOptions
) -> dict[str, ImageManifest]:
    """Write splits of images in a random order; see `write_splits`."""
    for images in splits:
        _check_listed(images)
    planned = [_planned(images, provenance, options) for images in splits]
    return write_splits(options.out, planned, options.workers, options.verify)


def write_splits(out: Path, splits: Sequence[PlannedSplit[Any]], workers: int, verify: bool = False) -> dict[str, Any]:
    """Write every split, going on after the finished shards of an earlier call, and verify them if asked.

    Shows a progress bar; returns the manifests. Raises DataError naming the first record that can't be stored, or the
    first damage found.
    """
    manifests = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        for planned in splits:
            settings, total = planned.settings, len(planned.items)
            task = progress.add_task(f"{settings.split} {settings.new_format().what}s", total=total)
            manifests[settings.split] = _stored_split(out, planned, workers, partial(progress.update, task))
        for split, manifest in manifests.items() if verify else ():
            task = progress.add_task(f"verifying {split} shards", total=len(manifest.shards))

            def advance(shard: str, task: TaskID = task) -> None:
                progress.advance(task)

            verify_split(out, split, workers=workers, report_shard=advance)
    return manifests


def _stored_split(out: Path, planned: PlannedSplit[Any], workers: int, report: Callable[..., None]) -> Any:
    """The manifest of a split that is there already, or is written after its finished shards."""
    settings = planned.settings
    if has_manifest(out, settings.split):
        read = read_manifest if isinstance(settings, SplitSettings) else read_image_manifest
        manifest: Manifest | ImageManifest = read(out, settings.split)
        if manifest.plan_sha256 != settings.plan_sha256:
            raise DataError(
                f"{out} holds a {settings.split} split made with other options or from other images: choose another "
                f"folder with --out or delete that split"
            )
        report(completed=manifest.num_objects)
        return manifest
    with SplitWriter[Any](out, settings, resume=True) as writer, ThreadPoolExecutor(workers) as pool:
        report(completed=writer.num_records)
        remaining = planned.items[writer.num_records :]
        for record in map_in_order(pool, planned.record_of, remaining, ahead=workers * _READ_AHEAD_PER_WORKER):
            writer.add(record)
            report(completed=writer.num_records)
        return writer.finish(workers)


def in_stored_order(items: Sequence[Item], seed: int) -> list[Item]:
    """Images or objects in the order in which shards hold them."""
    return [items[row] for row in epoch_permutation(len(items), seed, epoch=0).tolist()]


def natural_order(text: str) -> list[tuple[bool, int, str]]:
    """A key to sort by, with which obj2 comes before obj10."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", text)]


def key_with_hash(readable: str, text: str) -> str:
    """A key of letters, digits, '_' and '-' from something readable, with a hash that stands for the whole text."""
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:_DIGEST_LENGTH]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', readable)[: MAX_KEY_LENGTH - _DIGEST_LENGTH - 1]}-{digest}"


def pixel_statistics(view_counts: Sequence[int], pixels_of: Callable[[int, int], np.ndarray]) -> tuple[Rgb, Rgb, str]:
    """Mean and standard deviation of the pixels in units of [0, 1], over 500 views or all.

    The views are one of each object, then another one of each, and so on.

    Args:
        view_counts: of each object.
        pixels_of: uint8 [H, W, 3] of an object's view, both counted from 0.

    Returns:
        Mean and standard deviation to four digits, and a note for the manifest on how many views they are of.
    """
    count = min(MEASURED_VIEWS, sum(view_counts))
    moments = []
    for row in range(count):
        turn, place = divmod(row, len(view_counts))
        moments.append(pixel_moments(pixels_of(place, (place + turn) % view_counts[place])))
    return *mean_and_std(moments, digits=4), measured_note(count)


def measured_note(count: int) -> str:
    """What the manifest says of a normalisation that was measured on so many views."""
    return f"mean and standard deviation of the pixels were measured on {count} training views"


def resized_note(side: int) -> str:
    """What the manifest says of views that `resized_square` made."""
    return (
        f"views were resized to {side} x {side} pixels when they were converted and stored as JPEG of quality "
        f"{RESIZED_QUALITY}"
    )


def resized_square(pixels: np.ndarray, side: int) -> np.ndarray:
    """The central square, resized bilinearly with anti-aliasing: uint8 [side, side, 3]."""
    resized = np.empty((side, side, 3), dtype=np.uint8)
    CenterCrop(side, side).place(pixels, resized)
    return resized


def encode_jpeg_view(pixels: np.ndarray) -> bytes:
    """A view whose pixels were changed, as JPEG."""
    return simplejpeg.encode_jpeg(pixels, quality=RESIZED_QUALITY, colorsubsampling="444")


def prepare_image(data: bytes, name: str, options: ConversionOptions) -> bytes:
    """The bytes to store for an image file: its own, unless the options ask for other pixels.

    Raises DataError for an image that strict decoding refuses, with what can be done about it.
    """
    try:
        pixels = decode_image(data, name)
    except DataError as error:
        repaired = _repaired_png(data, name)
        if repaired is None:
            raise
        if not options.repair_damaged:
            raise DataError(f"{error}, or pass --repair-damaged to store the pixels that Pillow makes of it") from error
        data, pixels = repaired, decode_image(repaired, name)
    if options.resize_shorter_side is None or min(pixels.shape[:2]) <= options.resize_shorter_side:
        return data
    return simplejpeg.encode_jpeg(
        _with_shorter_side(pixels, options.resize_shorter_side), JPEG_QUALITY, "RGB", colorsubsampling="420"
    )


def encode_png(pixels: np.ndarray, comment: str | None = None) -> bytes:
    """uint8 [H, W, 3] as a PNG file, without loss; equal pixels give equal bytes."""
    buffer, text = io.BytesIO(), PngImagePlugin.PngInfo()
    if comment is not None:
        text.add_text("Comment", comment)
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def summary(manifest: ImageManifest) -> str:
    """One paragraph on a split: counts, size, kinds of files, normalisation, fingerprint."""
    size_gb = sum(entry.bytes for entry in manifest.shards) / 1e9
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in manifest.kinds.items())
    mean, std = (
        " ".join(f"{value:.4f}" for value in rgb) for rgb in (manifest.measured_mean_rgb, manifest.measured_std_rgb)
    )
    return (
        f"{manifest.split}: {manifest.num_objects:,} images of {len(manifest.class_names):,} classes in "
        f"{len(manifest.shards):,} shards, {size_gb:.2f} GB; {kinds}; mean {mean}, deviation {std} over "
        f"{manifest.measured_images:,} images; fingerprint {manifest.fingerprint[:16]}"
    )


def _check_listed(images: ListedImages) -> None:
    """Errors that would otherwise show after hours."""
    if not images.keys:
        raise DataError(f"split '{images.split}' has no image: name the folder or archive that holds them")
    first_row: dict[str, int] = {}
    for row, key in enumerate(images.keys):
        if key in first_row:
            raise DataError(
                f"key '{key}' stands for {images.name_of(first_row[key])} and for {images.name_of(row)}: give every "
                f"image a name of its own"
            )
        first_row[key] = row


def _planned(images: ListedImages, provenance: Provenance, options: ConversionOptions) -> PlannedSplit[int]:
    """The plan names every image, so that only runs of the same list are continued."""
    order = in_stored_order(range(len(images.keys)), options.seed)
    plan = [[images.keys[row], int(images.labels[row])] for row in order]
    reencoding = None
    if options.resize_shorter_side is not None:
        if options.resize_shorter_side < 2:
            raise DataError(f"--resize-shorter-side is {options.resize_shorter_side}: give at least 2 pixels")
        reencoding = (
            f"larger images shrunk to a shorter side of {options.resize_shorter_side} pixels (bilinear with "
            f"anti-aliasing, Pillow {version('pillow')}) and stored as JPEG of quality {JPEG_QUALITY}, 4:2:0 "
            f"(simplejpeg {version('simplejpeg')})"
        )
    settings = ImageSplitSettings(
        split=images.split,
        class_names=images.class_names,
        source=provenance.source,
        source_version=provenance.source_version,
        license=provenance.license,
        seed=options.seed,
        images_per_shard=options.images_per_shard,
        mean_rgb=provenance.mean_rgb,
        std_rgb=provenance.std_rgb,
        reencoding=reencoding,
        plan=hashlib.sha256(canonical_json([plan, options.repair_damaged])).hexdigest(),
    )

    def record(row: int) -> ImageRecord:
        data = prepare_image(images.read(row), images.name_of(row), options)
        return ImageRecord(images.keys[row], int(images.labels[row]), data)

    return PlannedSplit(settings, order, record)


def _repaired_png(data: bytes, name: str) -> bytes | None:
    """A PNG of what Pillow decodes; None where it decodes nothing or what no reader would accept."""
    try:
        repaired = encode_png(decode_with_pillow(data, name), REPAIRED_COMMENT)
        decode_image(repaired, name)
    except Exception:  # Pillow's plug-ins raise errors of many types for damaged files
        return None
    return repaired


def _with_shorter_side(pixels: np.ndarray, side: int) -> np.ndarray:
    """Resized with anti-aliasing, keeping the proportions as torchvision's Resize does."""
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    size = (side * width // shorter, side * height // shorter)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
