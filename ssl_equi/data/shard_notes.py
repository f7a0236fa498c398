"""Notes beside the finished shards of an unfinished split, from which an interrupted writer goes on.

Each finished shard is followed by a small JSON file with its size, its SHA-256 and the plan it belongs to; the manifest
makes them superfluous.
"""

import dataclasses
import re
import shutil
from pathlib import Path

from ssl_equi.data.manifest import ShardEntry, canonical_json, from_json, index_folder
from ssl_equi.errors import DataError
from ssl_equi.files import read_json_object, sha256_of_file, write_atomically

_NOTE_SUFFIX = ".finished.json"


def note_path(shard: Path) -> Path:
    """Where the note of a shard lies."""
    return shard.with_name(shard.name + _NOTE_SUFFIX)


def entry_of_shard(shard: Path, first: int, count: int) -> ShardEntry:
    """Size and SHA-256 of a shard that holds the objects [first, first + count)."""
    return ShardEntry(shard.name, shard.stat().st_size, sha256_of_file(shard), first, count)


def write_note(shard: Path, entry: ShardEntry, plan_sha256: str) -> None:
    """Note that a shard is finished. DataError when the note cannot be written."""
    note = {"plan_sha256": plan_sha256, **dataclasses.asdict(entry)}
    write_atomically(note_path(shard), canonical_json(note))


def read_note(shard: Path, plan_sha256: str) -> ShardEntry | None:
    """The entry of a finished, intact shard; None where the shard must be written again.

    Raises DataError for a shard that was begun with other settings, which would mix two sets.
    """
    try:
        note = read_json_object(note_path(shard), ValueError)
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


def remove_leftovers(folder: Path, split: str, first_number: int) -> None:
    """Remove what an interrupted writer of this split left, from shard `first_number` on."""
    pattern = re.compile(re.escape(split) + r"-(\d{6})\.tar(\.partial|" + re.escape(_NOTE_SUFFIX) + ")?")
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        if match and int(match[1]) >= first_number:
            path.unlink()
    shutil.rmtree(index_folder(folder, split), ignore_errors=True)
