"""Writing a split: shards one at a time, then the index, then the manifest that declares the split complete.

A killed writer leaves no manifest. Each finished shard is followed by a small JSON note with its size and SHA-256;
with `resume=True` the shards whose note, size and SHA-256 agree, and that were begun with the same settings, are kept.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ssl_equi.data.index import SplitIndex, concatenate, index_of_objects, write_index
from ssl_equi.data.manifest import (
    Manifest,
    ShardEntry,
    canonical_json,
    manifest_path,
    shard_name,
)
from ssl_equi.data.shard import (
    ObjectRecord,
    ShardWriter,
    check_key,
    check_latents,
    scan_shard,
    view_format_of,
    view_image_size,
)
from ssl_equi.data.shard_notes import entry_of_shard, note_path, read_note, remove_leftovers, write_note
from ssl_equi.errors import DataError
from ssl_equi.files import write_errors_named
from ssl_equi.geometry.latents import LATENT_NAMES, LATENT_SIZE, LATENT_SIZE_WITH_TRANSLATION

__all__ = ["ObjectRecord", "SplitSettings", "SplitWriter", "write_split"]

WRITER_VERSION = "ssl_equi.data.writer 1"  # raised when equal records would give other bytes


@dataclass(frozen=True)
class SplitSettings:
    """What the manifest says about a split besides its contents."""

    split: str
    class_names: tuple[str, ...]  # a label is an index into them
    source: str
    license: str
    seed: int  # the seed that made the data or its order
    latent_names: tuple[str, ...] = LATENT_NAMES[:LATENT_SIZE]
    objects_per_shard: int = 500
    mean_rgb: tuple[float, float, float] | None = None  # over pixels in [0, 1], for normalisation
    std_rgb: tuple[float, float, float] | None = None
    notes: tuple[str, ...] = ()  # what a reader of numbers must know, such as how the pixels were changed
    plan: str = ""  # names the objects to come (such as a hash of their list), so that resuming can compare

    def __post_init__(self) -> None:
        if self.latent_names not in (LATENT_NAMES[:LATENT_SIZE], LATENT_NAMES[:LATENT_SIZE_WITH_TRANSLATION]):
            raise DataError(
                f"latent_names {self.latent_names} are unknown: use the first {LATENT_SIZE} or all "
                f"{LATENT_SIZE_WITH_TRANSLATION} of {LATENT_NAMES}"
            )
        if self.objects_per_shard < 1:
            raise DataError(f"objects_per_shard is {self.objects_per_shard}: give at least 1")

    @property
    def plan_sha256(self) -> str:
        """One hash of all settings: shards of different hashes never mix."""
        content = {"writer": WRITER_VERSION, **dataclasses.asdict(self)}
        if not self.notes:
            del content["notes"]
        return hashlib.sha256(canonical_json(content)).hexdigest()


class SplitWriter:
    """Streams records into the shards of one split; use it as a context manager and end with `finish`.

    With `resume=True` the objects of finished shards are kept and `num_objects` says how many records to skip.
    Raises DataError when the split is already complete, a record is malformed, or a file cannot be written (earlier
    shards then stay).
    """

    def __init__(self, folder: Path, settings: SplitSettings, *, resume: bool = False) -> None:
        self.folder = folder
        self.settings = settings
        self.num_objects = 0
        self._entries: list[ShardEntry] = []
        self._parts: list[SplitIndex] = []
        self._keys: set[str] = set()
        self._num_views: int | None = None
        self._image_size: tuple[int, int] | None = None
        self._view_format: str | None = None
        self._shard: ShardWriter | None = None
        manifest = manifest_path(folder, settings.split)
        if manifest.exists():
            raise DataError(f"{manifest} already describes a complete split: choose another folder or delete the split")
        with write_errors_named(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if resume:
                self._keep_finished_shards()
            remove_leftovers(folder, settings.split, first_number=len(self._entries))

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shard is not None:
            self._shard.abort()
            self._shard = None

    def add(self, record: ObjectRecord) -> None:
        """Check a record and append it to the current shard."""
        self._check_record(record)
        if self._shard is None:
            self._shard = ShardWriter(self.folder / shard_name(self.settings.split, len(self._entries)))
        self._shard.add(record)
        self._keys.add(record.key)
        self.num_objects += 1
        if self._shard.count == self.settings.objects_per_shard:
            self._finish_shard()

    def finish(self) -> Manifest:
        """Finish the last shard, write the index and, last, the manifest."""
        self._finish_shard()
        if not self._parts:
            raise DataError(f"split '{self.settings.split}' for {self.folder} got no object: give at least one")
        assert self._num_views is not None and self._image_size is not None and self._view_format is not None
        index = concatenate(self._parts)
        lowest, highest = index.latents.min(axis=(0, 1)), index.latents.max(axis=(0, 1))
        settings = self.settings
        manifest = Manifest(
            split=settings.split,
            num_objects=self.num_objects,
            num_views=self._num_views,
            image_size=self._image_size,
            latent_names=settings.latent_names,
            latent_ranges={
                name: (float(lowest[column]), float(highest[column]))
                for column, name in enumerate(settings.latent_names)
            },
            class_names=settings.class_names,
            source=settings.source,
            license=settings.license,
            seed=settings.seed,
            writer=WRITER_VERSION,
            plan_sha256=settings.plan_sha256,
            mean_rgb=settings.mean_rgb,
            std_rgb=settings.std_rgb,
            shards=tuple(self._entries),
            sidecars=write_index(self.folder, settings.split, index),
            view_format=self._view_format,
            notes=settings.notes,
        )
        manifest.write(self.folder)
        for entry in self._entries:
            note_path(self.folder / entry.name).unlink(missing_ok=True)
        return manifest

    def _check_record(self, record: ObjectRecord) -> None:
        where = f"object '{record.key}'"
        check_key(record.key, where)
        check_latents(record.latents, where)
        if record.key in self._keys:
            raise DataError(f"key '{record.key}' was given twice: give every object a key of its own")
        num_classes = len(self.settings.class_names)
        if not 0 <= record.label < num_classes:
            raise DataError(f"label {record.label} of {where} has no class name: give one of 0..{num_classes - 1}")
        self._num_views = self._num_views or len(record.images)
        expected = (self._num_views, len(self.settings.latent_names))
        if len(record.images) != self._num_views or record.latents.shape != expected:
            raise DataError(
                f"{where} has {len(record.images)} views and latents of shape {record.latents.shape}: "
                f"give {self._num_views} views and latents of shape {expected} to every object of the split"
            )
        for view, image in enumerate(record.images):
            self._view_format = self._view_format or view_format_of(image)
            image_size = view_image_size(image, self._view_format, f"view {view} of {where}")
            self._image_size = self._image_size or image_size
            if image_size != self._image_size:
                raise DataError(
                    f"view {view} of {where} is {image_size[0]}x{image_size[1]} pixels, the split's first view "
                    f"{self._image_size[0]}x{self._image_size[1]}: bring the views to one size"
                )

    def _finish_shard(self) -> None:
        if self._shard is None:
            return
        path, count = self._shard.path, self._shard.count
        self._shard.finish()
        self._shard = None
        entry = entry_of_shard(path, self.num_objects - count, count)
        self._add_to_index(entry)
        write_note(path, entry, self.settings.plan_sha256)

    def _add_to_index(self, entry: ShardEntry) -> None:
        objects = list(scan_shard(self.folder / entry.name))
        self._parts.append(index_of_objects(objects, shard_number=len(self._entries)))
        self._entries.append(entry)
        self._num_views = len(objects[0].offsets)
        self._image_size, self._view_format = objects[0].image_size, objects[0].view_format

    def _keep_finished_shards(self) -> None:
        """Keep the longest run of shards from number 0 whose note, size and SHA-256 agree."""
        while True:
            path = self.folder / shard_name(self.settings.split, len(self._entries))
            entry = read_note(path, self.settings.plan_sha256)
            if entry is None or entry.first != self.num_objects:
                return
            self._add_to_index(entry)
            self.num_objects += entry.count
            self._keys.update(key.decode() for key in self._parts[-1].keys.tolist())


def write_split(
    folder: Path,
    split: str,
    records: Iterable[ObjectRecord],
    class_names: Sequence[str],
    *,
    source: str,
    seed: int,
    license: str,
    objects_per_shard: int = 500,
    latent_names: Sequence[str] = LATENT_NAMES[:LATENT_SIZE],
    mean_rgb: tuple[float, float, float] | None = None,
    std_rgb: tuple[float, float, float] | None = None,
) -> Manifest:
    """Write a whole split from an iterable of records, one shard at a time; see SplitWriter for the errors raised."""
    settings = SplitSettings(
        split=split,
        class_names=tuple(class_names),
        source=source,
        license=license,
        seed=seed,
        latent_names=tuple(latent_names),
        objects_per_shard=objects_per_shard,
        mean_rgb=mean_rgb,
        std_rgb=std_rgb,
    )
    with SplitWriter(folder, settings) as writer:
        for record in records:
            writer.add(record)
        return writer.finish()
