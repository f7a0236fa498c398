"""The two record formats of shards: rendered objects with latents, and ordinary images.

An object is `KEY.latents.npy` ([V, L] floating point, the source's precision), `KEY.cls` (the label in decimal digits)
and its views `KEY.v00.jpg` ... in their original bytes; all views of a split are of one image format. An image is
`KEY.cls` (-1 without a label) and the image as `KEY.jpg`, `KEY.png` or whatever its content is. The members of a record
stand side by side in this order, so that any WebDataset reader opens the shards.

The walks (`scan_...`) read a shard strictly and are the only thing the index is made from, so the index describes the
bytes on the disk and not what the writer meant to write.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import simplejpeg

from ssl_equi.data.images import (
    JPEG_START,
    SUFFIX_OF_KIND,
    ImageHeader,
    decode_with_pillow,
    read_image_header,
)
from ssl_equi.data.npy import npy_bytes, parse_npy
from ssl_equi.data.shards.tar import walk_members
from ssl_equi.errors import DataError

LATENTS_SUFFIX = "latents.npy"
LABEL_SUFFIX = "cls"
MAX_KEY_LENGTH = 100 - len("." + LATENTS_SUFFIX)  # a USTAR member name holds 100 bytes
JPEG = "jpg"
VIEW_FORMATS = tuple(dict.fromkeys(SUFFIX_OF_KIND.values()))  # of which a split of objects has one
_KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
_VIEW_SUFFIX_PATTERN = re.compile(rf"v\d{{2,}}\.({'|'.join(VIEW_FORMATS)})")
_END_OF_FILE = ("the end of the file", 0, b"")
_Member = tuple[str, int, bytes]  # name, offset of the content, content


@dataclass(frozen=True)
class ObjectRecord:
    """All there is about one object: key (letters, digits, '_', '-'), label, latents [V, L], V encoded views."""

    key: str
    label: int
    latents: np.ndarray
    images: list[bytes]


@dataclass(frozen=True)
class ImageRecord:
    """One image: key (letters, digits, '_', '-'), label (-1 for none) and the bytes of its file."""

    key: str
    label: int
    data: bytes


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


@dataclass(frozen=True)
class ScannedImage:
    """An image found in a shard: its record, where its bytes lie, and what they are."""

    key: str
    label: int
    offset: int  # first byte of the image in the shard
    size: int
    crc32c: int
    header: ImageHeader


# ---------------------------------------------------------------- keys, latents, views


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
    """Raise DataError unless the latents are a finite floating point matrix with a row per view."""
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
    if view_format != JPEG:
        header = read_image_header(data, where)
        return header.height, header.width
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
    try:
        if view_format == JPEG:
            # strict: by default libjpeg turns damaged data into wrong pixels without an error
            image = simplejpeg.decode_jpeg(data, "RGB", buffer=out, strict=True)
        else:
            image = decode_with_pillow(data, "")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plug-ins raise errors of many types for damaged files
        return f"does not decode ({error})"
    if image.shape != out.shape:
        return f"has {image.shape[0]}x{image.shape[1]} pixels, not {out.shape[0]}x{out.shape[1]}"
    if view_format != JPEG:
        out[...] = image
    return None


# ---------------------------------------------------------------- members of a record


def object_members(record: ObjectRecord) -> list[tuple[str, bytes]]:
    """Suffix and content of the members of an object."""
    view_format, num_views = view_format_of(record.images[0]), len(record.images)
    views = [(view_suffix(view, num_views, view_format), image) for view, image in enumerate(record.images)]
    latents = npy_bytes(np.ascontiguousarray(record.latents))
    return [(LATENTS_SUFFIX, latents), (LABEL_SUFFIX, str(record.label).encode()), *views]


def image_members(record: ImageRecord) -> list[tuple[str, bytes]]:
    """Suffix and content of the members of an image."""
    suffix = SUFFIX_OF_KIND[read_image_header(record.data, f"'{record.key}'").kind]
    return [(LABEL_SUFFIX, str(record.label).encode()), (suffix, record.data)]


# ---------------------------------------------------------------- walks


def scan_shard(path: Path) -> Iterator[ScannedObject]:
    """Walk a shard of objects from its first to its last byte and yield them.

    Raises DataError, naming shard and member, for a file that is cut (even at a member's boundary), a member that is
    missing, doubled, out of order or of a type outside the allowlist, latents that are not a finite matrix with a
    row per view, a view that is no image or has another size than the first, or a key that occurs twice.
    """
    keys: set[str] = set()
    with open(path, "rb") as file:
        members = walk_members(file, path, _check_object_suffix)
        for member in members:
            found = _scan_object(member, members, path)
            _add_key(found.key, keys, path)
            yield found
    if not keys:
        raise DataError(f"shard {path} holds no object: rebuild it or download it again")


def _scan_object(first: _Member, members: Iterator[_Member], path: Path) -> ScannedObject:
    """Read the members of one object, in their one allowed order, the first being already read."""
    first_name, _, latents_npy = first
    key, _, suffix = first_name.partition(".")
    where = f"'{key}' in shard {path}"
    check_key(key, f"a member of shard {path}")
    if suffix != LATENTS_SUFFIX:
        raise DataError(f"shard {path} has '{first_name}' where '{key}.{LATENTS_SUFFIX}' is due: rebuild this shard")
    latents = parse_npy(latents_npy, f"the member of latents of {where}", DataError, "rebuild this shard")
    check_latents(latents, where)

    def checked(expected_suffix: str, member: _Member) -> tuple[int, bytes]:
        name, offset, content = member
        if name != f"{key}.{expected_suffix}":
            raise DataError(
                f"shard {path} has '{name}' where '{key}.{expected_suffix}' is due (a member is missing, doubled or "
                f"out of order): rebuild this shard"
            )
        return offset, content

    label = _label(checked(LABEL_SUFFIX, next(members, _END_OF_FILE))[1], rb"\d{1,9}", where)
    offsets, sizes, checksums = [], [], []
    view_format, image_size = JPEG, (0, 0)
    for view in range(len(latents)):
        member = next(members, _END_OF_FILE)
        if view == 0:
            named_format = member[0].rpartition(".")[2]
            view_format = named_format if named_format in VIEW_FORMATS else JPEG
        suffix = view_suffix(view, len(latents), view_format)
        offset, content = checked(suffix, member)
        size_of_view = view_image_size(content, view_format, f"image '{key}.{suffix}' in shard {path}")
        image_size = image_size if view else size_of_view
        if size_of_view != image_size:
            raise DataError(
                f"image '{key}.{suffix}' in shard {path} is {size_of_view[0]}x{size_of_view[1]} pixels, the first view "
                f"{image_size[0]}x{image_size[1]}: bring the views to one size and rebuild this shard"
            )
        offsets.append(offset)
        sizes.append(len(content))
        checksums.append(google_crc32c.value(content))
    return ScannedObject(key, label, latents, offsets, sizes, checksums, image_size, view_format)


def scan_image_shard(path: Path) -> Iterator[ScannedImage]:
    """Walk a shard of images from its first to its last byte and yield them; raises DataError as `scan_shard` does."""
    keys: set[str] = set()
    with open(path, "rb") as file:
        members = walk_members(file, path, _check_image_suffix)
        for label_name, _, label_text in members:
            key = label_name.removesuffix(f".{LABEL_SUFFIX}")
            name, offset, data = next(members, _END_OF_FILE)
            stem, _, suffix = name.rpartition(".")
            if key == label_name or stem != key or suffix not in VIEW_FORMATS:
                raise DataError(
                    f"shard {path} has '{label_name}' and then '{name}' where a KEY.cls and its image are due (a "
                    f"member is missing, doubled or out of order): rebuild this shard"
                )
            check_key(key, f"a member of shard {path}")
            _add_key(key, keys, path)
            label = _label(label_text, rb"-1|\d{1,9}", f"'{key}' in shard {path}")
            header = read_image_header(data, f"'{name}' in shard {path}")
            if SUFFIX_OF_KIND[header.kind] != suffix:
                raise DataError(f"image '{name}' in shard {path} is a {header.kind}: rebuild this shard")
            yield ScannedImage(key, label, offset, len(data), google_crc32c.value(data), header)
    if not keys:
        raise DataError(f"shard {path} holds no image: rebuild it or download it again")


def _add_key(key: str, keys: set[str], path: Path) -> None:
    if key in keys:
        raise DataError(f"key '{key}' occurs twice in shard {path}: rebuild this shard")
    keys.add(key)


def _label(text: bytes, pattern: bytes, where: str) -> int:
    if not re.fullmatch(pattern, text):
        raise DataError(f"label of {where} is {text[:20]!r}, not a decimal number: rebuild this shard")
    return int(text)


def _check_object_suffix(name: str, path: Path) -> None:
    suffix = name.partition(".")[2]
    if suffix not in (LATENTS_SUFFIX, LABEL_SUFFIX) and not _VIEW_SUFFIX_PATTERN.fullmatch(suffix):
        raise _forbidden_member(name, path, f".{LATENTS_SUFFIX}, .{LABEL_SUFFIX} and views as .vNN.jpg")


def _check_image_suffix(name: str, path: Path) -> None:
    if name.partition(".")[2] not in (LABEL_SUFFIX, *VIEW_FORMATS):
        raise _forbidden_member(name, path, ", ".join(f".{suffix}" for suffix in (LABEL_SUFFIX, *sorted(VIEW_FORMATS))))


def _forbidden_member(name: str, path: Path, allowed: str) -> DataError:
    # Members of other types might be unpickled or executed by some reader.
    return DataError(
        f"member '{name}' of shard {path} is of a type that shards may not hold (only {allowed}): get this shard from "
        f"a source you trust"
    )
