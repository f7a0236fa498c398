"""The manifest of a split: what its shards hold, and the checksums that prove it.

`{split}.manifest.json` is written last, so a split without one is unfinished. Its fingerprint, the SHA-256 of
the manifest's canonical JSON, identifies the data in checkpoints and results.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ssl_equi.data.decode import MAX_PIXELS
from ssl_equi.errors import DataError
from ssl_equi.files import read_json_object, write_atomically

FORMAT_NAME = "ssl-equi-shards"
FORMAT_VERSION = 1
_LATER_FIELDS: dict[str, Any] = {"view_format": "jpg", "notes": ()}
_SPLIT_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
_SUFFIX = ".manifest.json"
_FEWEST_BYTES_PER_RECORD = 2048  # of a tar: two headers and two contents

_AnyManifest = TypeVar("_AnyManifest", bound=Any)


@dataclass(frozen=True)
class ShardEntry:
    """One tar file: its size, its checksum and the objects [first, first + count) that it holds."""

    name: str
    bytes: int
    sha256: str
    first: int
    count: int


@dataclass(frozen=True)
class Manifest:
    """Everything about a split but its pixels; `latent_ranges` are the extremes found in the split."""

    split: str
    num_objects: int
    num_views: int
    image_size: tuple[int, int]  # height, width in pixels
    latent_names: tuple[str, ...]
    latent_ranges: dict[str, tuple[float, float]]
    class_names: tuple[str, ...]  # a label is an index into them
    source: str
    license: str
    seed: int
    writer: str
    plan_sha256: str  # of the settings and the list of objects the writer was given
    mean_rgb: tuple[float, float, float] | None
    std_rgb: tuple[float, float, float] | None
    shards: tuple[ShardEntry, ...]
    sidecars: dict[str, str]  # file name in the index folder -> SHA-256
    view_format: str = "jpg"  # suffix of the views' members
    notes: tuple[str, ...] = ()  # what a reader of numbers must know, such as how the pixels were changed

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of this manifest."""
        return hashlib.sha256(canonical_json(self._as_json())).hexdigest()

    def _as_json(self) -> dict[str, Any]:
        content = {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, **fields_as_json(self)}
        # Fields that came later are left out where they say nothing, so that fingerprints stay as they were.
        return {name: value for name, value in content.items() if _LATER_FIELDS.get(name, ...) != value}

    def write(self, folder: Path) -> None:
        """Write the manifest, with its own fingerprint beside the fields, atomically."""
        write_manifest_content(manifest_path(folder, self.split), self._as_json(), self.fingerprint)


def write_manifest_content(path: Path, content: dict[str, Any], fingerprint: str) -> None:
    """Write a manifest's JSON with its fingerprint beside the fields, atomically."""
    text = json.dumps({**content, "fingerprint": fingerprint}, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(path, text.encode())


def fields_as_json(manifest: Any) -> dict[str, Any]:
    """The fields of a manifest, a dataclass with a field `shards`, for JSON; far faster than `dataclasses.asdict`."""
    fields = {field.name: getattr(manifest, field.name) for field in dataclasses.fields(manifest)}
    return {**fields, "shards": [vars(entry) for entry in manifest.shards]}


def canonical_json(content: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal contents give equal bytes."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def manifest_path(folder: Path, split: str) -> Path:
    """Where the manifest of a split lies; DataError for a split name that could leave the folder."""
    if not _SPLIT_PATTERN.fullmatch(split):
        raise DataError(f"split name '{split}' is not usable in file names: use letters, digits, '_' and '-'")
    return folder / f"{split}{_SUFFIX}"


def has_manifest(folder: Path, split: str) -> bool:
    """True if a split has a manifest; DataError for a folder into which nobody may look."""
    path = manifest_path(folder, split)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DataError(f"{path} can't be looked for ({error.strerror}): allow reading {folder}") from error
    return True


def index_folder(folder: Path, split: str) -> Path:
    """Where the sidecar arrays of a split lie."""
    return folder / f"{split}.index"


def shard_name(split: str, number: int) -> str:
    """File name of a shard: train-000000.tar, train-000001.tar, ..."""
    return f"{split}-{number:06d}.tar"


def read_manifest(folder: Path, split: str) -> Manifest:
    """Read and check a manifest.

    Raises DataError when it is absent, of another split or format version, malformed, or edited by hand.
    """
    manifest = read_manifest_as(Manifest, folder, split, FORMAT_NAME, FORMAT_VERSION)
    path, (height, width) = manifest_path(folder, split), manifest.image_size
    if min(manifest.num_views, height, width) < 1 or height * width > MAX_PIXELS:
        raise DataError(
            f"manifest {path} states {manifest.num_views} views of {height} x {width} pixels: rebuild this data set"
        )
    if set(manifest.latent_ranges) != set(manifest.latent_names):
        raise DataError(f"manifest {path} states ranges of other latents than it names: rebuild this data set")
    return manifest


def read_manifest_as(
    manifest_type: type[_AnyManifest], folder: Path, split: str, format_name: str, format_version: int
) -> _AnyManifest:
    """Read and check what manifests of every format have in common; `manifest_type` is the dataclass of its fields.

    Raises DataError when it is absent, no JSON object, of another format, version or split, changed after it was
    written, has absent, unknown or mistyped fields, or lists shards that don't carry their expected names (nothing
    outside the folder) or don't cover the objects without a gap.
    """
    path = manifest_path(folder, split)
    if not has_manifest(folder, split):
        raise DataError(
            f"there is no manifest {path}: build this data set (an unfinished build leaves none) or name its folder"
        )
    content = read_json_object(path, DataError, "rebuild or download this data set again")
    stated_fingerprint = content.pop("fingerprint", None)
    found_fingerprint = hashlib.sha256(canonical_json(content)).hexdigest()
    if content.pop("format", None) != format_name:
        raise DataError(f"{path} is not a manifest of '{format_name}': name the folder of a data set of this format")
    version = content.pop("format_version", None)
    if version != format_version:
        raise DataError(
            f"manifest {path} has format version {version}, this reader knows version {format_version}: "
            f"install the release that wrote it, or rebuild the data set"
        )
    if found_fingerprint != stated_fingerprint:
        raise DataError(
            f"manifest {path} does not match its fingerprint {stated_fingerprint}, it was changed after it was "
            f"written: download or rebuild this data set again"
        )
    try:
        manifest = from_json(manifest_type, content)
    except ValueError as error:
        raise DataError(f"manifest {path} is malformed ({error}): rebuild or download this data set again") from error
    if manifest.split != split:
        raise DataError(
            f"manifest {path} is of split '{manifest.split}', it was copied or renamed: download or rebuild split "
            f"'{split}' again"
        )
    _check_shards(manifest.shards, manifest.num_objects, path)
    return manifest


def from_json(kind: Any, value: Any, name: str = "") -> Any:
    """A value of JSON as the dataclass, tuple, dictionary, number or text that the annotation `kind` asks for.

    Raises ValueError, which says what `name` holds, for a value of another type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        required = {each.name for each in dataclasses.fields(kind) if each.default is dataclasses.MISSING}
        if not isinstance(value, dict) or not required <= set(value) <= set(hints):
            known = isinstance(value, dict)
            difference = sorted((required - set(value)) | (set(value) - set(hints))) if known else type(value).__name__
            raise ValueError(f"{name or 'its fields'}: {difference} is absent or unknown")
        return kind(**{field: from_json(hints[field], each, field) for field, each in value.items()})
    if origin is UnionType:
        return None if value is None else from_json(arguments[0], value, name)
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(value) == len(kinds):
            return tuple(from_json(each, item, name) for each, item in zip(kinds, value))
    elif origin is dict and isinstance(value, dict):
        return {key: from_json(arguments[1], item, name) for key, item in value.items()}
    elif origin is None and isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool):
        return value
    raise ValueError(f"'{name}' holds {type(value).__name__} {str(value)[:30]!r}")


def _check_shards(shards: Iterable[ShardEntry], num_objects: int, path: Path) -> None:
    first = 0
    for number, entry in enumerate(shards):
        if entry.name != shard_name(path.name.removesuffix(_SUFFIX), number) or entry.first != first:
            raise DataError(f"manifest {path} lists shard '{entry.name}' out of place: rebuild this data set")
        if not 1 <= entry.count <= entry.bytes // _FEWEST_BYTES_PER_RECORD:
            raise DataError(
                f"manifest {path} lists shard '{entry.name}' with {entry.count} objects in {entry.bytes} bytes: "
                f"rebuild this data set"
            )
        first += entry.count
    if first != num_objects or not first:
        raise DataError(
            f"manifest {path} counts {num_objects} objects but its shards hold {first}: rebuild this data set"
        )
