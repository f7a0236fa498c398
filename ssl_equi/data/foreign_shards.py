"""The records of an image shard that others wrote, found by walking its headers; what is no part of one is counted.

The members of a record stand side by side. A key ends at the first dot of the file's name, as for WebDataset, and the
rest is the member's suffix:

    KEY.jpg              the image: .jpg, .jpeg or .png; without one of these .webp, .bmp, .gif, .tif, .tiff, .ppm, .pgm
    KEY.cls  or          the class in decimal digits
    KEY.json             without a .cls: an object with an integer "label"

A key without an image and a label (a README, say) is passed over, and so are all other members of a record.
"""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ssl_equi.data.decode import SUFFIXES
from ssl_equi.data.tar_members import tar_members
from ssl_equi.errors import DataError
from ssl_equi.files import parse_json_object

CURE = "download this shard again or write it anew"
LABEL, JSON = "cls", "json"
_USUAL_IMAGES = ("jpg", "jpeg", "png")
_OTHER_IMAGES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES if suffix[1:] not in _USUAL_IMAGES)
_MOST_LABEL_BYTES, _MOST_JSON_BYTES = 64, 1 << 20
_WITHOUT_DOTS = (
    "a key ends at the first dot of a file's name, so write the members as KEY.jpg and KEY.cls, KEY without a dot"
)


_Named = list[tuple[str, tarfile.TarInfo]]  # with the suffix of each


@dataclass(frozen=True)
class _Members:
    """What is used of the members of a key."""

    key: str
    image: tarfile.TarInfo
    label_member: tarfile.TarInfo
    label: int


@dataclass(frozen=True)
class ForeignRecord:
    """Where an image lies, and its class."""

    key: str
    offset: int
    size: int
    label: int


def records_of_shard(shard: Path, passed_over: Counter[str] | None = None) -> Iterator[ForeignRecord]:
    """The records of one shard; members that are no part of one are counted in `passed_over` by their suffix.

    Raises DataError for a shard that can't be read, is cut or damaged or holds no record, and for a record that is
    incomplete, doubled or ill-labelled, or whose key has a dot.
    """
    passed_over = Counter() if passed_over is None else passed_over
    found = 0
    for key, group in groupby(tar_members(shard, CURE), lambda member: _split_name(member.name)[0]):
        members = [(_split_name(member.name)[1], member) for member in group]
        record = None if key is None else _record(key, members, shard)
        used = () if record is None else (record.image, record.label_member)
        passed_over.update(_kind(suffix) for suffix, member in members if member not in used)
        if record is not None:
            found += 1
            yield ForeignRecord(record.key, record.image.offset_data, record.image.size, record.label)
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


def _record(key: str, members: _Named, shard: Path) -> _Members | None:
    """The image and the label among the members of a key; None if it has neither."""
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
            return None
        others = ", ".join(f".{suffix}" for suffix, _ in members if suffix != LABEL) or "nothing else"
        raise DataError(
            f"{where} has no image member beside its .{LABEL}, but {others}: write its image as KEY.jpg (or another of "
            f"{', '.join(SUFFIXES)}) side by side with it"
        )
    if labels:
        return _Members(key, images[0], labels[0], _label_in_digits(labels[0], shard))
    label = _label_in_json(jsons[0], shard) if len(jsons) == 1 else None
    if label is None:
        raise DataError(
            f'{where} has no .{LABEL} member beside its image, and no .{JSON} with an integer "label": write its class '
            f"number as KEY.{LABEL} side by side with it"
        )
    return _Members(key, images[0], jsons[0], label)


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
