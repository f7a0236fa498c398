"""Image shards that others wrote: their headers are walked once, after which every image is a single read.

The members of a record stand side by side. A key ends at the first dot of the file's name, as for WebDataset, and the
rest is the member's suffix:

    KEY.jpg              the image: .jpg, .jpeg or .png; without one of these .webp, .bmp, .gif, .tif, .tiff, .ppm, .pgm
    KEY.cls  or          the class in decimal digits
    KEY.json             without a .cls: an object with an integer "label"

A key without an image and a label (a README, say) is passed over and counted, and so are all other members of a
record. What a walk found is kept beside the shards, in SPLIT.images.npz, if the folder can be written to.
"""

import contextlib
import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from ssl_equi.data.images import SUFFIXES
from ssl_equi.data.npy import read_stored_npz
from ssl_equi.data.shards.manifest import canonical_json
from ssl_equi.data.shards.tar import tar_members
from ssl_equi.errors import DataError
from ssl_equi.files import FileState, file_state, list_folder, parse_json_object, write_atomically

CURE = "download this shard again or write it anew"
LABEL, JSON = "cls", "json"
_INDEX_VERSION = 2  # raised when equal shards would give another index
_USUAL_IMAGES = ("jpg", "jpeg", "png")
_OTHER_IMAGES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES if suffix[1:] not in _USUAL_IMAGES)
_MOST_LABEL_BYTES, _MOST_JSON_BYTES = 64, 1 << 20
_WITHOUT_DOTS = (
    "a key ends at the first dot of a file's name, so write the members as KEY.jpg and KEY.cls, KEY without a dot"
)


_Named = list[tuple[str, tarfile.TarInfo]]  # with the suffix of each


@dataclass(frozen=True)
class ForeignRecord:
    """Where an image lies, and its class."""

    key: str
    offset: int
    size: int
    label: int


@dataclass(frozen=True)
class ShardIndex:
    """Where each image of a split lies; arrays of n rows, in the order of the shards."""

    shard_numbers: np.ndarray  # int32
    offsets: np.ndarray  # int64, first byte of the image in its shard
    sizes: np.ndarray  # int64, bytes
    labels: np.ndarray  # int64
    keys: np.ndarray  # bytes


@dataclass(frozen=True)
class ForeignSplit:
    """What a walk of shards that others wrote found."""

    index: ShardIndex
    passed_over: dict[str, int]  # members that are no part of a record, counted by their suffix


def records_of_shard(shard: Path, passed_over: Counter[str] | None = None) -> Iterator[ForeignRecord]:
    """The records of one shard; members that are no part of one are counted in `passed_over` by their suffix.

    Raises DataError for a shard that can't be read, is cut or damaged or holds no record, and for a record that is
    incomplete, doubled or ill-labelled, or whose key has a dot.
    """
    passed_over = Counter() if passed_over is None else passed_over
    found = 0
    for key, group in groupby(tar_members(shard, CURE), lambda member: _split_name(member.name)[0]):
        members = [(_split_name(member.name)[1], member) for member in group]
        record, used = (None, ()) if key is None else _record(key, members, shard)
        passed_over.update(_kind(suffix) for suffix, member in members if member not in used)
        if record is not None:
            found += 1
            yield record
    if not found:
        raise DataError(
            f"shard {shard} holds no image with a class: write images as KEY.jpg and their classes as KEY.cls, side by "
            f"side"
        )


def describe_counts(counts: dict[str, int]) -> str:
    """The most frequent first: '12 .json, 3 .txt'."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{count:,} {kind}" for kind, count in ordered[:6]]
    rest = sum(count for _, count in ordered[6:])
    return ", ".join([*named, f"{rest:,} of other kinds"] if rest else named)


def _record(key: str, members: _Named, shard: Path) -> tuple[ForeignRecord | None, tuple[tarfile.TarInfo, ...]]:
    """The record that the members of a key make, None if it has neither image nor label, and those it is made of."""
    where = f"key {key!r} of shard {shard}"
    images = [member for suffix, member in members if suffix in _USUAL_IMAGES]
    images = images or [member for suffix, member in members if suffix in _OTHER_IMAGES]
    labels = [member for suffix, member in members if suffix == LABEL]
    jsons = [member for suffix, member in members if suffix == JSON]
    dotted_images = _middles(members, (*_USUAL_IMAGES, *_OTHER_IMAGES))
    if dotted_images and (not images or dotted_images & _middles(members, (LABEL,))):
        names = ", ".join(repr(member.name.rpartition("/")[2]) for _, member in members[:4])
        raise DataError(f"{where} has the members {names}: {_WITHOUT_DOTS}")
    if len(labels) > 1 or len(images) > 1:
        what = "labels" if len(labels) > 1 else "images"
        raise DataError(f"{where} has two {what}: give every image a key of its own")
    if not images:
        if not labels:
            return None, ()
        others = ", ".join(f".{suffix}" for suffix, _ in members if suffix != LABEL) or "nothing else"
        raise DataError(
            f"{where} has no image member beside its .{LABEL}, but {others}: write its image as KEY.jpg (or another of "
            f"{', '.join(SUFFIXES)}) side by side with it"
        )
    label = _label_in_digits(labels[0], shard) if labels else None
    if not labels and len(jsons) == 1:
        label = _label_in_json(jsons[0], shard)
    if label is None:
        raise DataError(
            f'{where} has no .{LABEL} member beside its image, and no .{JSON} with an integer "label": write its class '
            f"number as KEY.{LABEL} side by side with it"
        )
    image = images[0]
    return ForeignRecord(key, image.offset_data, image.size, label), (image, (labels or jsons)[0])


def _label_in_digits(member: tarfile.TarInfo, shard: Path) -> int:
    content = _content(member, shard, _MOST_LABEL_BYTES).strip()
    if not re.fullmatch(rb"\d{1,9}", content):
        raise DataError(
            f"member {member.name!r} of shard {shard} is {content[:20]!r}, not a class number in decimal digits: "
            f"number the classes from 0"
        )
    return int(content)


def _label_in_json(member: tarfile.TarInfo, shard: Path) -> int | None:
    name = f"member {member.name!r} of shard {shard}"
    label = parse_json_object(_content(member, shard, _MOST_JSON_BYTES), name, DataError, CURE).get("label")
    return label if type(label) is int and 0 <= label < 10**9 else None


def _content(member: tarfile.TarInfo, shard: Path, most_bytes: int) -> bytes:
    if member.size > most_bytes:
        raise DataError(
            f"member {member.name!r} of shard {shard} has {member.size:,} bytes, more than any label: {CURE}"
        )
    try:
        with open(shard, "rb") as file:
            return os.pread(file.fileno(), member.size, member.offset_data)
    except OSError as error:
        raise DataError(f"shard {shard} can't be read ({error.strerror}): {CURE}") from error


def _middles(members: _Named, last_suffixes: tuple[str, ...]) -> set[str]:
    """What stands between the first dot and the last one, for members with several dots that end so."""
    parts = [suffix.rpartition(".") for suffix, _ in members]
    return {middle for middle, dot, last in parts if dot and last in last_suffixes}


def _kind(suffix: str) -> str:
    return "hidden or without a suffix" if not suffix else f".{suffix.rpartition('.')[2]}"


def _split_name(name: str) -> tuple[str | None, str]:
    """Key and suffix, parted at the first dot of the last path component, as WebDataset does."""
    folder, slash, file = name.rpartition("/")
    key, dot, suffix = file.partition(".")
    return (f"{folder}{slash}{key}", suffix.lower()) if key and dot else (None, "")


def find_shards(folder: Path, split: str) -> list[Path]:
    """The split's tar files by name; DataError if there are none."""
    if not os.path.isdir(folder):
        raise DataError(f"there is no folder {folder}: give the folder that holds the tar shards as --data-dir")
    names = sorted(entry.name for entry in list_folder(folder) if re.fullmatch(r".*-[^-]*\.tar", entry.name))
    shards = [folder / name for name in names if name.startswith(f"{split}-")]
    if not shards:
        present = ", ".join(sorted({name.rpartition("-")[0] for name in names})) or "no shards"
        raise DataError(
            f"{folder} has no shards {split}-*.tar but {present}: choose a split that is there, or use "
            f"--dataset folder for images in folders"
        )
    return shards


def state_of_shard(shard: Path) -> FileState:
    try:
        return file_state(shard)
    except OSError as error:
        raise DataError(f"shard {shard} can't be read ({error.strerror}): restore it, or take it out") from error


def read_or_scan(folder: Path, split: str, shards: Sequence[Path], states: Sequence[FileState]) -> ForeignSplit:
    """What was kept if it belongs to these shards as they are now, else a new walk, kept if that is possible."""
    path = folder / f"{split}.images.npz"
    names = [shard.name for shard in shards]
    belongs_to = canonical_json({"version": _INDEX_VERSION, "shards": list(zip(names, states))})
    kept = _read_kept(path, belongs_to, [state[0] for state in states])
    if kept is not None:
        return kept
    found = _scan(shards)
    buffer = io.BytesIO()
    passed_over = np.frombuffer(canonical_json(found.passed_over), np.uint8)
    np.savez(buffer, belongs_to=np.frombuffer(belongs_to, np.uint8), passed_over=passed_over, **vars(found.index))
    with contextlib.suppress(DataError):  # a folder that can't be written to is scanned anew each time
        write_atomically(path, buffer.getvalue())
    return found


def _read_kept(path: Path, belongs_to: bytes, shard_bytes: Sequence[int]) -> ForeignSplit | None:
    """What an earlier walk left; None if it left nothing, of other shards, or something that was damaged since."""
    try:
        arrays = read_stored_npz(path, DataError, "")
        if arrays["belongs_to"].tobytes() != belongs_to:
            return None
        passed_over = parse_json_object(arrays["passed_over"].tobytes(), str(path), DataError)
        index = ShardIndex(**{name: arrays[name] for name in ShardIndex.__dataclass_fields__})
    except (DataError, KeyError):
        return None
    known = index.labels.ndim == 1 and all(array.shape == index.labels.shape for array in vars(index).values())
    if not known or index.shard_numbers.max(initial=-1) >= len(shard_bytes) or index.offsets.min(initial=0) < 0:
        return None
    ends = np.array(shard_bytes)[index.shard_numbers]
    return ForeignSplit(index, passed_over) if (index.offsets + index.sizes <= ends).all() else None


def _scan(shards: Sequence[Path]) -> ForeignSplit:
    shard_numbers: list[int] = []
    records: list[ForeignRecord] = []
    passed_over: Counter[str] = Counter()
    for number, shard in enumerate(shards):
        found = list(records_of_shard(shard, passed_over))
        shard_numbers += [number] * len(found)
        records += found
    keys = np.array([record.key.encode(errors="surrogateescape") for record in records])
    unique, counts = np.unique(keys, return_counts=True)
    if len(unique) < len(keys):
        raise DataError(
            f"key {unique[counts > 1][0].decode(errors='replace')!r} occurs more than once in the shards of "
            f"{shards[0].parent}: give every image a key of its own"
        )
    index = ShardIndex(
        shard_numbers=np.array(shard_numbers, dtype=np.int32),
        offsets=np.array([record.offset for record in records], dtype=np.int64),
        sizes=np.array([record.size for record in records], dtype=np.int64),
        labels=np.array([record.label for record in records], dtype=np.int64),
        keys=keys,
    )
    return ForeignSplit(index, dict(passed_over))
