"""Writing a split: shards one at a time, then the index, then the manifest that declares the split complete.

A killed writer leaves no manifest. Each finished shard is followed by a small JSON note with its size and SHA-256;
with `resume=True` the shards whose note, size and SHA-256 agree, and that were begun with the same settings, are kept.
"""

import dataclasses
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from ssl_equi.data.collection import Rgb
from ssl_equi.data.shards.format import ImageRecord, ObjectRecord, check_key
from ssl_equi.data.shards.manifest import (
    Manifest,
    ShardEntry,
    canonical_json,
    from_json,
    index_folder,
    manifest_path,
    shard_name,
)
from ssl_equi.data.shards.records import ImageSplitSettings, RecordFormat, SplitSettings
from ssl_equi.data.shards.tar import ShardWriter
from ssl_equi.errors import DataError
from ssl_equi.files import read_json_object, sha256_of_file, write_atomically, write_errors_named
from ssl_equi.latents.schema import THREEDIEBENCH, LatentSchema

_NOTE_SUFFIX = ".finished.json"
_Record = TypeVar("_Record", ObjectRecord, ImageRecord)


class SplitWriter(Generic[_Record]):
    """Streams records into the shards of one split; use it as a context manager and end with `finish`.

    With `resume=True` the records of finished shards are kept and `num_records` says how many to skip.
    Raises DataError when the split is already complete, a record is malformed, or a file cannot be written (earlier
    shards then stay).
    """

    def __init__(self, folder: Path, settings: SplitSettings | ImageSplitSettings, *, resume: bool = False) -> None:
        self.folder, self.settings = folder, settings
        self.num_records = 0
        self._format: RecordFormat[Any] = settings.new_format()
        self._entries: list[ShardEntry] = []
        self._parts: list[Any] = []
        self._keys: set[str] = set()
        self._shard: ShardWriter | None = None
        manifest = manifest_path(folder, settings.split)
        if manifest.exists():
            raise DataError(f"{manifest} already describes a complete split: choose another folder or delete the split")
        with write_errors_named(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if resume:
                self._keep_finished_shards()
            self._remove_leftovers()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shard is not None:
            self._shard.abort()
            self._shard = None

    def add(self, record: _Record) -> None:
        """Check a record and append it to the current shard."""
        what, lowest, num_classes = self._format.what, self._format.lowest_label, len(self.settings.class_names)
        where = f"{what} '{record.key}'"
        check_key(record.key, where)
        if record.key in self._keys:
            raise DataError(f"key '{record.key}' was given twice: give every {what} a key of its own")
        if not lowest <= record.label < num_classes:
            raise DataError(f"label {record.label} of {where} has no class name: give one of 0..{num_classes - 1}")
        self._format.check(record, where)
        members = self._format.members(record)
        if self._shard is None:
            self._shard = ShardWriter(self._path_of_next())
        self._shard.add(record.key, members)
        self._keys.add(record.key)
        self.num_records += 1
        if self._shard.count == self.settings.records_per_shard:
            self._finish_shard()

    def finish(self, workers: int = 1) -> Any:
        """Finish the last shard, write the index and, last, the manifest, which is returned.

        `workers` threads measure the pixels of ordinary images.
        """
        self._finish_shard()
        if not self._parts:
            what, split = self._format.what, self.settings.split
            raise DataError(f"split '{split}' for {self.folder} got no {what}: give at least one")
        manifest = self._format.manifest(self.folder, self._parts, tuple(self._entries), workers)
        manifest.write(self.folder)
        for entry in self._entries:
            _note_path(self.folder / entry.name).unlink(missing_ok=True)
        return manifest

    def _path_of_next(self) -> Path:
        return self.folder / shard_name(self.settings.split, len(self._entries))

    def _finish_shard(self) -> None:
        if self._shard is None:
            return
        path, count = self._shard.path, self._shard.count
        self._shard.finish()
        self._shard = None
        entry = ShardEntry(path.name, path.stat().st_size, sha256_of_file(path), self.num_records - count, count)
        self._add_to_index(entry)
        note = {"plan_sha256": self.settings.plan_sha256, **dataclasses.asdict(entry)}
        write_atomically(_note_path(path), canonical_json(note))

    def _add_to_index(self, entry: ShardEntry) -> None:
        self._parts.append(self._format.index_shard(self.folder / entry.name, shard_number=len(self._entries)))
        self._entries.append(entry)

    def _keep_finished_shards(self) -> None:
        """Keep the longest run of shards from number 0 whose note, size and SHA-256 agree."""
        while True:
            entry = _read_note(self._path_of_next(), self.settings.plan_sha256)
            if entry is None or entry.first != self.num_records:
                return
            self._add_to_index(entry)
            self.num_records += entry.count
            self._keys.update(key.decode() for key in self._parts[-1].keys.tolist())

    def _remove_leftovers(self) -> None:
        """Remove what an interrupted writer of this split left behind the shards that are kept."""
        split = self.settings.split
        pattern = re.compile(re.escape(split) + r"-(\d{6})\.tar(\.partial|" + re.escape(_NOTE_SUFFIX) + ")?")
        for path in self.folder.iterdir():
            match = pattern.fullmatch(path.name)
            if match and int(match[1]) >= len(self._entries):
                path.unlink()
        shutil.rmtree(index_folder(self.folder, split), ignore_errors=True)


def _note_path(shard: Path) -> Path:
    return shard.with_name(shard.name + _NOTE_SUFFIX)


def _read_note(shard: Path, plan_sha256: str) -> ShardEntry | None:
    """The entry of a finished, intact shard; None where the shard must be written again.

    Raises DataError for a shard that was begun with other settings, which would mix two sets.
    """
    try:
        note = read_json_object(_note_path(shard), ValueError)
        noted_plan_sha256 = note.pop("plan_sha256", None)
        entry: ShardEntry = from_json(ShardEntry, note)
    except ValueError:
        return None
    if noted_plan_sha256 != plan_sha256:
        raise DataError(
            f"{shard} was begun with other settings or another list of objects: choose another folder, or delete "
            f"the unfinished split there and start anew"
        )
    intact = shard.exists() and shard.stat().st_size == entry.bytes and sha256_of_file(shard) == entry.sha256
    return entry if intact else None


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
    schema: LatentSchema = THREEDIEBENCH,
    mean_rgb: Rgb | None = None,
    std_rgb: Rgb | None = None,
) -> Manifest:
    """Write a whole split from an iterable of records, one shard at a time; see SplitWriter for the errors raised."""
    settings = SplitSettings(
        split=split,
        class_names=tuple(class_names),
        source=source,
        license=license,
        seed=seed,
        schema=schema,
        objects_per_shard=objects_per_shard,
        mean_rgb=mean_rgb,
        std_rgb=std_rgb,
    )
    with SplitWriter[ObjectRecord](folder, settings) as writer:
        for record in records:
            writer.add(record)
        manifest: Manifest = writer.finish()
        return manifest
