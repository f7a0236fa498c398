"""What the two kinds of records mean to a writer: settings, checks, members, the index's rows and the manifest."""

import dataclasses
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch

from ssl_equi.data.collection import Rgb
from ssl_equi.data.images import decode_image
from ssl_equi.data.shards.files import ShardFiles
from ssl_equi.data.shards.format import (
    ImageRecord,
    ObjectRecord,
    check_latents,
    image_members,
    object_members,
    scan_image_shard,
    scan_shard,
    view_format_of,
    view_image_size,
)
from ssl_equi.data.shards.index import KINDS, ImageIndex, SplitIndex, concatenate, write_index
from ssl_equi.data.shards.manifest import FEWEST_OF_SEVERAL, ImageManifest, Manifest, ShardEntry, canonical_json
from ssl_equi.data.view_counts import is_view, padded
from ssl_equi.errors import DataError
from ssl_equi.files import map_in_order
from ssl_equi.latents.schema import SCHEMA_OF_WIDTH, THREEDIEBENCH, LatentSchema

MEASURED_IMAGES = 10_000  # as many of the first images stored, which stand in a random order, give mean and deviation

_Record_contra = TypeVar("_Record_contra", bound=ObjectRecord | ImageRecord, contravariant=True)


# ---------------------------------------------------------------- settings: what the manifest says besides its contents


@dataclass(frozen=True)
class SplitSettings:
    """What the manifest says about a split of objects besides its contents."""

    WRITER: ClassVar[str] = "ssl_equi.data.writer 1"  # raised when equal records would give other bytes

    split: str
    class_names: tuple[str, ...]  # a label is an index into them
    source: str
    license: str
    seed: int  # the seed that made the data or its order
    schema: LatentSchema = THREEDIEBENCH
    objects_per_shard: int = 500
    mean_rgb: Rgb | None = None  # over pixels in [0, 1], for normalisation
    std_rgb: Rgb | None = None
    notes: tuple[str, ...] = ()  # what a reader of numbers must know, such as how the pixels were changed
    plan: str = ""  # names the objects to come (such as a hash of their list), so that resuming can compare

    def __post_init__(self) -> None:
        if self.objects_per_shard < 1:
            raise DataError(f"objects_per_shard is {self.objects_per_shard}: give at least 1")

    @property
    def records_per_shard(self) -> int:
        """Of all shards but the last."""
        return self.objects_per_shard

    @property
    def plan_sha256(self) -> str:
        """One hash of all settings: shards of different hashes never mix."""
        content = {"writer": self.WRITER, **vars(self), "latent_names": self.schema.column_names}
        # Neither notes nor other schemas than 3DIEBench's were there from the beginning.
        content |= {"schema": self.schema_json}
        content = {name: value for name, value in content.items() if value or name not in ("notes", "schema")}
        return hashlib.sha256(canonical_json(content)).hexdigest()

    @property
    def schema_json(self) -> dict[str, Any] | None:
        """As it stands in a manifest: None for 3DIEBench's and 3DIEBench-T's."""
        return None if self.schema in SCHEMA_OF_WIDTH.values() else self.schema.as_json()

    def new_format(self) -> "_ObjectFormat":
        """What a writer does with these records."""
        return _ObjectFormat(self)


@dataclass(frozen=True)
class ImageSplitSettings:
    """What the manifest says about a split of images besides its contents."""

    WRITER: ClassVar[str] = "ssl_equi.data.image_writer 1"  # raised when equal records would give other bytes

    split: str
    class_names: tuple[str, ...]  # a label is an index into them
    source: str
    source_version: str
    license: str
    seed: int  # of the order in which the images come
    images_per_shard: int = 2000
    mean_rgb: Rgb | None = None  # to normalise with; the measured ones when None
    std_rgb: Rgb | None = None
    reencoding: str | None = None  # how the pixels were changed
    plan: str = ""  # names the images to come (such as a hash of their list), so that resuming can compare

    def __post_init__(self) -> None:
        if self.images_per_shard < 1:
            raise DataError(f"images_per_shard is {self.images_per_shard}: give at least 1")

    @property
    def records_per_shard(self) -> int:
        """Of all shards but the last."""
        return self.images_per_shard

    @property
    def plan_sha256(self) -> str:
        """One hash of all settings: shards of different hashes never mix."""
        return hashlib.sha256(canonical_json({"writer": self.WRITER, **dataclasses.asdict(self)})).hexdigest()

    def new_format(self) -> "_ImageFormat":
        """What a writer does with these records."""
        return _ImageFormat(self)


# ---------------------------------------------------------------- what differs between the record formats


class RecordFormat(Protocol[_Record_contra]):
    """What a writer asks of the format of its records."""

    what: str  # "object" or "image", for messages
    lowest_label: int

    def check(self, record: _Record_contra, where: str) -> None:
        """Raise DataError unless the record is well formed, and like those before it where they have to be alike."""

    def members(self, record: _Record_contra) -> list[tuple[str, bytes]]:
        """Suffix and content of its members in the tar."""

    def index_shard(self, path: Path, shard_number: int) -> Any:
        """The rows of the index that a finished shard makes, from a strict walk of it."""

    def manifest(self, folder: Path, parts: list[Any], shards: tuple[ShardEntry, ...], workers: int) -> Any:
        """Write the index, made of its parts, and return the manifest."""


class _ObjectFormat:
    what, lowest_label = "object", 0

    def __init__(self, settings: SplitSettings) -> None:
        self._settings = settings
        self._counts: set[int] = set()  # numbers of views that objects have
        # Of the first view, which all others must be like; None before there is one.
        self._image_size: tuple[int, int] | None = None
        self._view_format: str | None = None

    def check(self, record: ObjectRecord, where: str) -> None:
        check_latents(record.latents, where)
        count = len(record.images)
        expected = (count or 1, self._settings.schema.num_columns)
        if not count or record.latents.shape != expected:
            raise DataError(
                f"{where} has {count} views and latents of shape {record.latents.shape}: give {count or 1} views and "
                f"latents of shape {expected}"
            )
        counts = self._counts | {count}
        if len(counts) > 1 and min(counts) < FEWEST_OF_SEVERAL:
            one = f"{where} has 1 view and others have more" if count == 1 else f"an object before {where} has 1 view"
            raise DataError(f"{one}: a pair takes two views of an object, so leave objects with one view out")
        self._counts = counts
        for view, image in enumerate(record.images):
            self._view_format = self._view_format or view_format_of(image)
            image_size = view_image_size(image, self._view_format, f"view {view} of {where}")
            self._image_size = self._image_size or image_size
            if image_size != self._image_size:
                raise DataError(
                    f"view {view} of {where} is {image_size[0]}x{image_size[1]} pixels, the split's first view "
                    f"{self._image_size[0]}x{self._image_size[1]}: bring the views to one size"
                )

    def members(self, record: ObjectRecord) -> list[tuple[str, bytes]]:
        return object_members(record)

    def index_shard(self, path: Path, shard_number: int) -> SplitIndex:
        objects = list(scan_shard(path))
        self._image_size, self._view_format = objects[0].image_size, objects[0].view_format
        counts = np.array([len(found.offsets) for found in objects])
        self._counts |= set(counts.tolist())
        latents = padded([found.latents.astype(np.float64) for found in objects])
        quats_xyzw = self._settings.schema.quats_xyzw(torch.from_numpy(latents))
        if quats_xyzw is not None:
            quats_xyzw[~torch.from_numpy(is_view(counts, latents.shape[1]))] = 0
        columns = {
            "offsets": padded([np.array(found.offsets) for found in objects]),
            "sizes": padded([np.array(found.sizes) for found in objects]),
            "crc32c": padded([np.array(found.crc32c) for found in objects]),
            "shard_numbers": [shard_number] * len(objects),
            "labels": [found.label for found in objects],
            "latents": latents,
            "quats_xyzw": quats_xyzw,
            "keys": [found.key.encode() for found in objects],
            "view_counts": counts,
        }
        arrays = {
            name: np.asarray(columns[name], dtype)
            for name, dtype in SplitIndex.DTYPES.items()
            if columns[name] is not None
        }
        return SplitIndex(**arrays)

    def manifest(self, folder: Path, parts: list[SplitIndex], shards: tuple[ShardEntry, ...], workers: int) -> Manifest:
        assert self._image_size is not None and self._view_format is not None
        index, settings = concatenate(parts), self._settings
        num_views, counts = index.offsets.shape[1], index.view_counts
        latents = index.latents if counts is None else index.latents[is_view(counts, num_views)][None]
        lowest, highest = latents.min(axis=(0, 1)), latents.max(axis=(0, 1))
        return Manifest(
            split=settings.split,
            num_objects=len(index.labels),
            num_views=num_views,
            image_size=self._image_size,
            latent_names=settings.schema.column_names,
            latent_ranges={
                name: (float(lowest[column]), float(highest[column]))
                for column, name in enumerate(settings.schema.column_names)
            },
            class_names=settings.class_names,
            source=settings.source,
            license=settings.license,
            seed=settings.seed,
            writer=settings.WRITER,
            plan_sha256=settings.plan_sha256,
            mean_rgb=settings.mean_rgb,
            std_rgb=settings.std_rgb,
            shards=shards,
            sidecars=write_index(folder, settings.split, index),
            view_format=self._view_format,
            notes=settings.notes,
            latent_schema=settings.schema_json,
            fewest_views=None if counts is None else int(counts.min()),
        )


class _ImageFormat:
    what, lowest_label = "image", -1

    def __init__(self, settings: ImageSplitSettings) -> None:
        self._settings = settings

    def check(self, record: ImageRecord, where: str) -> None:
        """Its header is read when its members are named."""

    def members(self, record: ImageRecord) -> list[tuple[str, bytes]]:
        return image_members(record)

    def index_shard(self, path: Path, shard_number: int) -> ImageIndex:
        images = list(scan_image_shard(path))
        columns = {
            "shard_numbers": [shard_number] * len(images),
            "offsets": [image.offset for image in images],
            "sizes": [image.size for image in images],
            "crc32c": [image.crc32c for image in images],
            "labels": [image.label for image in images],
            "heights": [image.header.height for image in images],
            "widths": [image.header.width for image in images],
            "kinds": [KINDS.index(image.header.kind) for image in images],
            "keys": [image.key.encode() for image in images],
        }
        return ImageIndex(**{name: np.asarray(columns[name], dtype) for name, dtype in ImageIndex.DTYPES.items()})

    def manifest(
        self, folder: Path, parts: list[ImageIndex], shards: tuple[ShardEntry, ...], workers: int
    ) -> ImageManifest:
        index, settings = concatenate(parts), self._settings
        mean_rgb, std_rgb = self._measure(folder, index, shards, workers)
        kinds, kind_counts = np.unique(index.kinds, return_counts=True)
        labelled = index.labels[index.labels >= 0]
        return ImageManifest(
            split=settings.split,
            num_objects=len(index.labels),
            num_unlabelled=len(index.labels) - len(labelled),
            class_names=settings.class_names,
            images_per_class=tuple(np.bincount(labelled, minlength=len(settings.class_names)).tolist()),
            kinds={KINDS[kind]: count for kind, count in zip(kinds.tolist(), kind_counts.tolist())},
            height_range=(int(index.heights.min()), int(index.heights.max())),
            width_range=(int(index.widths.min()), int(index.widths.max())),
            mean_rgb=settings.mean_rgb or mean_rgb,
            std_rgb=settings.std_rgb or std_rgb,
            measured_mean_rgb=mean_rgb,
            measured_std_rgb=std_rgb,
            measured_images=min(MEASURED_IMAGES, len(index.labels)),
            source=settings.source,
            source_version=settings.source_version,
            license=settings.license,
            reencoding=settings.reencoding,
            seed=settings.seed,
            writer=settings.WRITER,
            plan_sha256=settings.plan_sha256,
            shards=shards,
            sidecars=write_index(folder, settings.split, index),
        )

    def _measure(self, folder: Path, index: ImageIndex, shards: Sequence[ShardEntry], workers: int) -> tuple[Rgb, Rgb]:
        files = ShardFiles([folder / entry.name for entry in shards])

        def moments(row: int) -> np.ndarray:
            data = files.read(int(index.shard_numbers[row]), int(index.offsets[row]), int(index.sizes[row]))
            return pixel_moments(decode_image(data, f"'{index.keys[row].decode()}'"))

        with ThreadPoolExecutor(workers) as pool:
            rows = range(min(MEASURED_IMAGES, len(index.labels)))
            measured = mean_and_std(list(map_in_order(pool, moments, rows, ahead=2 * workers)))
        files.close()
        return measured


def pixel_moments(image: np.ndarray) -> np.ndarray:
    """Mean of the levels and of their squares, for each channel of uint8 [H, W, 3]: float64 [2, 3], from exact sums."""
    levels = np.arange(256)
    histograms = [np.bincount(image[..., channel].ravel(), minlength=256) for channel in range(3)]
    sums = [[int(histogram @ levels), int(histogram @ levels**2)] for histogram in histograms]
    return np.array(sums, dtype=np.float64).T / (image.shape[0] * image.shape[1])


def mean_and_std(moments: Sequence[np.ndarray], digits: int = 6) -> tuple[Rgb, Rgb]:
    """Mean and standard deviation over pixels in units of [0, 1], from each image's `pixel_moments`.

    Every image counts the same, whatever its size. Rounded, so that the order of additions doesn't show.
    """
    mean, mean_of_squares = np.mean(moments, axis=0)
    std = np.sqrt(np.maximum(mean_of_squares - mean**2, 0.0))
    red, green, blue = (mean / 255).round(digits).tolist()
    red_std, green_std, blue_std = (std / 255).round(digits).tolist()
    return (red, green, blue), (red_std, green_std, blue_std)
