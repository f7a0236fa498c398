"""One shard: a plain USTAR file with the members of each object side by side, latents and class first.

    KEY.latents.npy   [V, L] floating point, the source's precision
    KEY.cls           the label in decimal digits
    KEY.v00.jpg ...   the V views, original bytes; .png, .webp, ... where all views of the split are of that format

`ShardWriter` writes one; `scan_shard` walks one strictly and is the only thing the index is made from, so the index
describes the bytes on the disk and not what the writer meant to write.
"""

import contextlib
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np
import simplejpeg

from ssl_equi.data.decode import JPEG_START, SUFFIX_OF_KIND, decode_with_pillow, read_image_header
from ssl_equi.data.npy import npy_bytes, parse_npy
from ssl_equi.errors import DataError
from ssl_equi.files import sync_folder, write_errors_named

LATENTS_SUFFIX = "latents.npy"
LABEL_SUFFIX = "cls"
MAX_KEY_LENGTH = 100 - len("." + LATENTS_SUFFIX)  # a USTAR member name holds 100 bytes
_KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
JPEG = "jpg"
VIEW_FORMATS = tuple(dict.fromkeys(SUFFIX_OF_KIND.values()))  # of which a split has one
_VIEW_SUFFIX_PATTERN = re.compile(rf"v\d{{2,}}\.({'|'.join(VIEW_FORMATS)})")
_BLOCK = tarfile.BLOCKSIZE
END_OF_FILE = ("the end of the file", 0, b"")


@dataclass(frozen=True)
class ObjectRecord:
    """All there is about one object: key (letters, digits, '_', '-'), label, latents [V, L], V encoded views."""

    key: str
    label: int
    latents: np.ndarray
    images: list[bytes]


@dataclass(frozen=True)
class ScannedObject:
    """An object found in a shard: its record's small members, and where each view's bytes lie."""

    key: str
    label: int
    latents: np.ndarray  # [V, L], the precision stored
    offsets: list[int]  # first byte of each view in the shard
    sizes: list[int]
    crc32c: list[int]
    image_size: tuple[int, int]  # height, width
    view_format: str  # one of VIEW_FORMATS


def view_suffix(view: int, num_views: int, view_format: str = JPEG) -> str:
    """Suffix of a view's member: v00.jpg, v01.jpg, ... with as many digits as the last view needs, at least two."""
    digits = max(2, len(str(num_views - 1)))
    return f"v{view:0{digits}d}.{view_format}"


def check_key(key: str, where: str) -> None:
    """Raise DataError for a key that a tar reader could split, shorten or take for a path."""
    if not _KEY_PATTERN.fullmatch(key):
        raise DataError(f"key '{key}' of {where} has forbidden characters: use letters, digits, '_' and '-'")
    if len(key) > MAX_KEY_LENGTH:
        raise DataError(f"key '{key}' of {where} has {len(key)} characters: use at most {MAX_KEY_LENGTH}")


def check_latents(latents: np.ndarray, where: str) -> None:
    """Raise DataError unless the latents are a finite floating point matrix with a row a view."""
    if latents.ndim != 2 or not np.issubdtype(latents.dtype, np.floating) or 0 in latents.shape:
        raise DataError(
            f"latents of {where} have shape {latents.shape} and type {latents.dtype}: "
            f"give a floating point matrix with one row a view"
        )
    if not np.isfinite(latents).all():
        view = int(np.flatnonzero(~np.isfinite(latents).all(axis=1))[0])
        raise DataError(f"latents of {where} hold NaN or infinity in view {view}: rebuild this object from its source")


def view_format_of(data: bytes) -> str:
    """Which of `VIEW_FORMATS` an encoded view has; the usual one for data that have none."""
    if data.startswith(JPEG_START):
        return JPEG
    try:
        return SUFFIX_OF_KIND[read_image_header(data, "").kind]
    except DataError:
        return JPEG


def view_image_size(data: bytes, view_format: str, where: str) -> tuple[int, int]:
    """Height and width from a view's header; DataError unless it has this format."""
    found = view_format_of(data)
    if found != view_format and (found != JPEG or data.startswith(JPEG_START)):
        raise DataError(f"{where} is {found} and not {view_format}: give all views of a split one format")
    if view_format == JPEG:
        return _jpeg_image_size(data, where)
    header = read_image_header(data, where)
    return header.height, header.width


def _jpeg_image_size(data: bytes, where: str) -> tuple[int, int]:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise DataError(f"{where} is not a readable JPEG ({error}): restore it from its source") from error
    if colorspace.upper() not in ("YCBCR", "RGB", "GRAY"):
        raise DataError(f"{where} is a JPEG in {colorspace}: convert it to RGB or grayscale at its source")
    return height, width


def problem_of_bytes(data: bytes, size: int, crc32c: int | None) -> str | None:
    """What is wrong with the bytes read for a view, None if they are those that the index describes.

    `crc32c` is None where nobody computed it.
    """
    if len(data) != size:
        return f"is cut (expected {size} bytes, found {len(data)})"
    if crc32c is not None and google_crc32c.value(data) != crc32c:
        return "does not match its CRC-32C"
    return None


def decode_view(data: bytes, out: np.ndarray, view_format: str = JPEG) -> str | None:
    """Decode a view into `out` uint8 [H, W, 3]; returns what is wrong with the image, None if nothing is."""
    if view_format != JPEG:
        return _decode_with_pillow(data, out)
    try:
        # strict: by default libjpeg turns damaged data into wrong pixels without an error
        image = simplejpeg.decode_jpeg(data, "RGB", buffer=out, strict=True)
    except ValueError as error:
        return f"does not decode ({error})"
    return _problem_of_size(image, out)


def _decode_with_pillow(data: bytes, out: np.ndarray) -> str | None:
    try:
        image = decode_with_pillow(data, "")
    except Exception as error:  # Pillow's plug-ins raise errors of many types for damaged files
        return f"does not decode ({error})"
    problem = _problem_of_size(image, out)
    if problem is None:
        out[...] = image
    return problem


def _problem_of_size(image: np.ndarray, out: np.ndarray) -> str | None:
    if image.shape == out.shape:
        return None
    return f"has {image.shape[0]}x{image.shape[1]} pixels, not {out.shape[0]}x{out.shape[1]}"


class ShardWriter:
    """Streams objects into `path` under a temporary name; `finish` fsyncs and renames it.

    Equal objects give equal bytes: time, user and group of every member are zero.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._temporary = path.with_name(path.name + ".partial")
        with write_errors_named(path):
            self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed by finish or abort
            self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, record: ObjectRecord) -> None:
        """Append one object, its small members before its views."""
        latents = npy_bytes(np.ascontiguousarray(record.latents))
        num_views = len(record.images)
        small = [(LATENTS_SUFFIX, latents), (LABEL_SUFFIX, str(record.label).encode())]
        view_format = view_format_of(record.images[0])
        views = [(view_suffix(view, num_views, view_format), image) for view, image in enumerate(record.images)]
        self.add_members(record.key, [*small, *views])

    def add_members(self, key: str, members: Iterable[tuple[str, bytes]]) -> None:
        """Append one object as its members KEY.SUFFIX, given as (suffix, content), side by side."""
        with write_errors_named(self.path):
            for suffix, content in members:
                member = tarfile.TarInfo(f"{key}.{suffix}")  # time, user and group are zero and nameless by default
                member.size = len(content)
                self._tar.addfile(member, io.BytesIO(content))
        self.count += 1

    def finish(self) -> None:
        """Write the end marker, make the bytes durable and give the shard its final name."""
        with write_errors_named(self.path):
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self.path)
            sync_folder(self.path.parent)

    def abort(self) -> None:
        """Drop the unfinished shard and give its space back."""
        self._temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # closing flushes what is left, which fails again on a full disk
            self._file.close()


def scan_shard(path: Path) -> Iterator[ScannedObject]:
    """Walk a shard from its first to its last byte and yield its objects.

    Raises DataError, naming shard and member, for a file that is cut (even at a member's boundary), a member that is
    missing, doubled, out of order or of a type outside the allowlist, latents that are not a finite matrix with a
    row a view, a view that is no JPEG or has another size than the first, or a key that occurs twice.
    """
    keys_seen: set[str] = set()
    with open(path, "rb") as file:
        members = walk_members(file, path, _check_suffix)
        for name, _, content in members:
            found = _scan_object(name, content, members, path)
            if found.key in keys_seen:
                raise DataError(f"key '{found.key}' occurs twice in shard {path}: rebuild this shard")
            keys_seen.add(found.key)
            yield found
    if not keys_seen:
        raise DataError(f"shard {path} holds no object: rebuild it or download it again")


def _scan_object(
    first_name: str, first_content: bytes, members: Iterator[tuple[str, int, bytes]], path: Path
) -> ScannedObject:
    """Read the members of one object, in their one allowed order, the first being already read."""
    key, _, suffix = first_name.partition(".")
    where = f"'{key}' in shard {path}"
    check_key(key, f"a member of shard {path}")
    if suffix != LATENTS_SUFFIX:
        raise DataError(f"shard {path} has '{first_name}' where '{key}.{LATENTS_SUFFIX}' is due: rebuild this shard")
    latents = _parse_latents(first_content, where)

    def content_of(expected_suffix: str) -> tuple[int, bytes]:
        return checked(expected_suffix, next(members, END_OF_FILE))

    def checked(expected_suffix: str, member: tuple[str, int, bytes]) -> tuple[int, bytes]:
        name, offset, content = member
        if name != f"{key}.{expected_suffix}":
            raise DataError(
                f"shard {path} has '{name}' where '{key}.{expected_suffix}' is due (a member is missing, doubled or "
                f"out of order): rebuild this shard"
            )
        return offset, content

    label_text = content_of(LABEL_SUFFIX)[1]
    if not re.fullmatch(rb"\d{1,9}", label_text):
        raise DataError(f"label of {where} is {label_text[:20]!r}, not a decimal number: rebuild this shard")
    num_views = len(latents)
    offsets, sizes, checksums = [], [], []
    image_size: tuple[int, int] | None = None
    member = next(members, END_OF_FILE)
    named_format = member[0].rpartition(".")[2]
    view_format = named_format if named_format in VIEW_FORMATS else JPEG
    for view in range(num_views):
        suffix = view_suffix(view, num_views, view_format)
        offset, content = checked(suffix, member) if view == 0 else content_of(suffix)
        size_of_view = view_image_size(content, view_format, f"image '{key}.{suffix}' in shard {path}")
        image_size = image_size or size_of_view
        if size_of_view != image_size:
            raise DataError(
                f"image '{key}.{suffix}' in shard {path} is {size_of_view[0]}x{size_of_view[1]} pixels, the first view "
                f"{image_size[0]}x{image_size[1]}: bring the views to one size and rebuild this shard"
            )
        offsets.append(offset)
        sizes.append(len(content))
        checksums.append(google_crc32c.value(content))
    assert image_size is not None
    return ScannedObject(key, int(label_text), latents, offsets, sizes, checksums, image_size, view_format)


def _parse_latents(content: bytes, where: str) -> np.ndarray:
    latents = parse_npy(content, f"the member of latents of {where}", DataError, "rebuild this shard")
    check_latents(latents, where)
    return latents


def walk_members(
    file: BinaryIO, path: Path, check_name: Callable[[str, Path], None]
) -> Iterator[tuple[str, int, bytes]]:
    """Yield (name, offset of the content, content) of each member up to the end marker, whose presence is required.

    Python's tarfile takes a file that ends at a member's boundary for complete; this walk does not. `check_name` is
    called with each member's name, before its content is read, and raises DataError for one that may not be there.
    """
    last_name = "the first member"
    while True:
        header = file.read(_BLOCK)
        if header == bytes(_BLOCK):
            break
        try:
            member = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            reason = "ends" if len(header) < _BLOCK else "has a damaged header"
            raise DataError(
                f"shard {path} {reason} after '{last_name}' at byte {file.tell()} ({error}): "
                f"rebuild this shard or download it again"
            ) from error
        if not member.isreg():
            raise DataError(f"member '{member.name}' of shard {path} is not a plain file: rebuild this shard")
        check_name(member.name, path)
        last_name = member.name
        offset = file.tell()
        left = os.fstat(file.fileno()).st_size - offset  # asked before so many bytes are made room for
        if not 0 <= member.size <= left or member.size + -member.size % _BLOCK > left:
            raise DataError(
                f"shard {path} ends inside member '{member.name}' (expected {member.size} bytes, found "
                f"{min(left, max(member.size, 0))}): rebuild this shard or download it again"
            )
        content = file.read(member.size)
        file.seek(-member.size % _BLOCK, os.SEEK_CUR)
        yield member.name, offset, content
    tail = file.read()
    if len(tail) < _BLOCK or tail.strip(b"\0"):
        raise DataError(f"shard {path} is damaged after '{last_name}': rebuild this shard or download it again")


def _check_suffix(name: str, path: Path) -> None:
    """Only members that no reader would unpickle or execute are accepted."""
    suffix = name.partition(".")[2]
    if suffix not in (LATENTS_SUFFIX, LABEL_SUFFIX) and not _VIEW_SUFFIX_PATTERN.fullmatch(suffix):
        raise DataError(
            f"member '{name}' of shard {path} is of a type that shards may not hold (only .{LATENTS_SUFFIX}, "
            f".{LABEL_SUFFIX} and views as .vNN.jpg): get this shard from a source you trust"
        )
