"""Writing a split of ordinary images: shards one at a time, then the index, then the manifest.

A record is two members side by side, KEY.cls (the class in decimal digits, -1 without one) and the image as KEY.jpg,
KEY.png or whatever its content is, so that any WebDataset reader opens it. Shards of an interrupted writer are kept as
in `ssl_equi.data.writer`: those whose note, size and SHA-256 agree.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import google_crc32c
import numpy as np

from ssl_equi.data.decode import SUFFIX_OF_KIND, ImageHeader, decode_image, read_image_header
from ssl_equi.data.image_manifest import KINDS, ImageIndex, ImageManifest, Rgb
from ssl_equi.data.index import write_sidecars
from ssl_equi.data.manifest import ShardEntry, canonical_json, index_folder, manifest_path, shard_name
from ssl_equi.data.shard import LABEL_SUFFIX, ShardWriter, check_key, walk_members
from ssl_equi.data.shard_files import ShardFiles
from ssl_equi.data.shard_notes import entry_of_shard, note_path, read_note, remove_leftovers, write_note
from ssl_equi.errors import DataError
from ssl_equi.files import map_in_order, write_errors_named

WRITER_VERSION = "ssl_equi.data.image_writer 1"  # raised when equal records would give other bytes
MEASURED_IMAGES = 10_000  # as many of the first images stored, which stand in a random order, give mean and deviation
_SUFFIXES = frozenset(SUFFIX_OF_KIND.values())


@dataclass(frozen=True)
class ImageRecord:
    """One image: key (letters, digits, '_', '-'), label (-1 for none) and the bytes of its file."""

    key: str
    label: int
    data: bytes


@dataclass(frozen=True)
class ScannedImage:
    """An image found in a shard: its record, where its bytes lie, and what they are."""

    key: str
    label: int
    offset: int  # first byte of the image in the shard
    size: int
    crc32c: int
    header: ImageHeader


@dataclass(frozen=True)
class ImageSplitSettings:
    """What the manifest says about a split besides its contents."""

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
    def plan_sha256(self) -> str:
        """One hash of all settings: shards of different hashes never mix."""
        return hashlib.sha256(canonical_json({"writer": WRITER_VERSION, **dataclasses.asdict(self)})).hexdigest()


class ImageSplitWriter:
    """Streams images into the shards of one split; use it as a context manager and end with `finish`.

    Finished shards of an earlier writer with the same settings are kept; `num_images` says how many records to skip.
    Raises DataError when the split is already complete or was begun with other settings, a record is malformed, or a
    file cannot be written (earlier shards then stay).
    """

    def __init__(self, folder: Path, settings: ImageSplitSettings) -> None:
        self.folder = folder
        self.settings = settings
        self.num_images = 0
        self._entries: list[ShardEntry] = []
        self._parts: list[ImageIndex] = []
        self._keys: set[str] = set()
        self._shard: ShardWriter | None = None
        manifest = manifest_path(folder, settings.split)
        if manifest.exists():
            raise DataError(f"{manifest} already describes a complete split: choose another folder or delete the split")
        with write_errors_named(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._keep_finished_shards()
            remove_leftovers(folder, settings.split, first_number=len(self._entries))

    def __enter__(self) -> "ImageSplitWriter":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shard is not None:
            self._shard.abort()
            self._shard = None

    def add(self, record: ImageRecord) -> None:
        """Check a record and append it to the current shard."""
        where = f"image '{record.key}'"
        check_key(record.key, where)
        if record.key in self._keys:
            raise DataError(f"key '{record.key}' was given twice: give every image a key of its own")
        num_classes = len(self.settings.class_names)
        if not -1 <= record.label < num_classes:
            raise DataError(f"label {record.label} of {where} has no class name: give one of 0..{num_classes - 1}")
        suffix = SUFFIX_OF_KIND[read_image_header(record.data, f"'{record.key}'").kind]
        if self._shard is None:
            self._shard = ShardWriter(self.folder / shard_name(self.settings.split, len(self._entries)))
        self._shard.add_members(record.key, [(LABEL_SUFFIX, str(record.label).encode()), (suffix, record.data)])
        self._keys.add(record.key)
        self.num_images += 1
        if self._shard.count == self.settings.images_per_shard:
            self._finish_shard()

    def finish(self, workers: int = 1) -> ImageManifest:
        """Finish the last shard, measure the pixels with so many threads, write the index and, last, the manifest."""
        self._finish_shard()
        settings = self.settings
        if not self._parts:
            raise DataError(f"split '{settings.split}' for {self.folder} got no image: give at least one")
        index = concatenate(self._parts)
        mean_rgb, std_rgb = self._measure(index, workers)
        kinds, kind_counts = np.unique(index.kinds, return_counts=True)
        labelled = index.labels[index.labels >= 0]
        manifest = ImageManifest(
            split=settings.split,
            num_objects=self.num_images,
            num_unlabelled=self.num_images - len(labelled),
            class_names=settings.class_names,
            images_per_class=tuple(np.bincount(labelled, minlength=len(settings.class_names)).tolist()),
            kinds={KINDS[kind]: count for kind, count in zip(kinds.tolist(), kind_counts.tolist())},
            height_range=(int(index.heights.min()), int(index.heights.max())),
            width_range=(int(index.widths.min()), int(index.widths.max())),
            mean_rgb=settings.mean_rgb or mean_rgb,
            std_rgb=settings.std_rgb or std_rgb,
            measured_mean_rgb=mean_rgb,
            measured_std_rgb=std_rgb,
            measured_images=min(MEASURED_IMAGES, self.num_images),
            source=settings.source,
            source_version=settings.source_version,
            license=settings.license,
            reencoding=settings.reencoding,
            seed=settings.seed,
            writer=WRITER_VERSION,
            plan_sha256=settings.plan_sha256,
            shards=tuple(self._entries),
            sidecars=write_sidecars(index_folder(self.folder, settings.split), vars(index)),
        )
        manifest.write(self.folder)
        for entry in self._entries:
            note_path(self.folder / entry.name).unlink(missing_ok=True)
        return manifest

    def _measure(self, index: ImageIndex, workers: int) -> tuple[Rgb, Rgb]:
        files = ShardFiles([self.folder / entry.name for entry in self._entries])

        def moments(row: int) -> np.ndarray:
            data = files.read(int(index.shard_numbers[row]), int(index.offsets[row]), int(index.sizes[row]))
            return pixel_moments(decode_image(data, f"'{index.keys[row].decode()}'"))

        with ThreadPoolExecutor(workers) as pool:
            rows = range(min(MEASURED_IMAGES, self.num_images))
            measured = mean_and_std(list(map_in_order(pool, moments, rows, ahead=2 * workers)))
        files.close()
        return measured

    def _finish_shard(self) -> None:
        if self._shard is None:
            return
        path, count = self._shard.path, self._shard.count
        self._shard.finish()
        self._shard = None
        entry = entry_of_shard(path, self.num_images - count, count)
        self._add_to_index(entry)
        write_note(path, entry, self.settings.plan_sha256)

    def _add_to_index(self, entry: ShardEntry) -> None:
        images = list(scan_image_shard(self.folder / entry.name))
        self._parts.append(index_of_images(images, shard_number=len(self._entries)))
        self._entries.append(entry)

    def _keep_finished_shards(self) -> None:
        """Keep the longest run of shards from number 0 whose note, size and SHA-256 agree."""
        while True:
            path = self.folder / shard_name(self.settings.split, len(self._entries))
            entry = read_note(path, self.settings.plan_sha256)
            if entry is None or entry.first != self.num_images:
                return
            self._add_to_index(entry)
            self.num_images += entry.count
            self._keys.update(key.decode() for key in self._parts[-1].keys.tolist())


def scan_image_shard(path: Path) -> Iterator[ScannedImage]:
    """Walk a shard that `ImageSplitWriter` wrote from its first to its last byte and yield its images.

    Raises DataError, naming shard and member, for a file that is cut (even at a member's boundary), a member that is
    missing, doubled, out of order or of a type outside the allowlist, a label that is no number, an image whose header
    can't be read or isn't what its suffix says, or a key that occurs twice.
    """
    keys_seen: set[str] = set()
    with open(path, "rb") as file:
        members = walk_members(file, path, _check_suffix)
        for label_name, _, label_text in members:
            key = label_name.removesuffix(f".{LABEL_SUFFIX}")
            name, offset, data = next(members, ("the end of the file", 0, b""))
            stem, _, suffix = name.rpartition(".")
            if key == label_name or stem != key or suffix not in _SUFFIXES:
                raise DataError(
                    f"shard {path} has '{label_name}' and then '{name}' where a KEY.cls and its image are due (a "
                    f"member is missing, doubled or out of order): rebuild this shard"
                )
            check_key(key, f"a member of shard {path}")
            if key in keys_seen:
                raise DataError(f"key '{key}' occurs twice in shard {path}: rebuild this shard")
            keys_seen.add(key)
            if not re.fullmatch(rb"-1|\d{1,9}", label_text):
                raise DataError(
                    f"label of '{key}' in shard {path} is {label_text[:20]!r}, not a decimal number: rebuild this shard"
                )
            header = read_image_header(data, f"'{name}' in shard {path}")
            if SUFFIX_OF_KIND[header.kind] != suffix:
                raise DataError(f"image '{name}' in shard {path} is a {header.kind}: rebuild this shard")
            yield ScannedImage(key, int(label_text), offset, len(data), google_crc32c.value(data), header)
    if not keys_seen:
        raise DataError(f"shard {path} holds no image: rebuild it or download it again")


def index_of_images(images: Sequence[ScannedImage], shard_number: int) -> ImageIndex:
    """The index rows of one shard's images."""
    return ImageIndex.from_columns(
        {
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
    )


def concatenate(parts: Sequence[ImageIndex]) -> ImageIndex:
    """The index of several shards, one after the other."""
    return ImageIndex(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def pixel_moments(image: np.ndarray) -> np.ndarray:
    """Mean of the levels and of their squares, for each channel of uint8 [H, W, 3]: float64 [2, 3], from exact sums."""
    levels = np.arange(256)
    histograms = [np.bincount(image[..., channel].ravel(), minlength=256) for channel in range(3)]
    sums = [[int(histogram @ levels), int(histogram @ levels**2)] for histogram in histograms]
    return np.array(sums, dtype=np.float64).T / (image.shape[0] * image.shape[1])


def mean_and_std(moments: Sequence[np.ndarray]) -> tuple[Rgb, Rgb]:
    """Mean and standard deviation over pixels in units of [0, 1], from each image's `pixel_moments`.

    Every image counts the same, whatever its size. Rounded to six digits, so that the order of additions doesn't show.
    """
    mean, mean_of_squares = np.mean(moments, axis=0)
    std = np.sqrt(np.maximum(mean_of_squares - mean**2, 0.0))
    red, green, blue = (mean / 255).round(6).tolist()
    red_std, green_std, blue_std = (std / 255).round(6).tolist()
    return (red, green, blue), (red_std, green_std, blue_std)


def _check_suffix(name: str, path: Path) -> None:
    """Only members that no reader would unpickle or execute are accepted."""
    if name.partition(".")[2] not in (LABEL_SUFFIX, *_SUFFIXES):
        allowed = ", ".join(f".{suffix}" for suffix in (LABEL_SUFFIX, *sorted(_SUFFIXES)))
        raise DataError(
            f"member '{name}' of shard {path} is of a type that shards may not hold (only {allowed}): get this shard "
            f"from a source you trust"
        )
