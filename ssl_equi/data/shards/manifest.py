"""The manifest of a split: what its shards hold, and the checksums that prove it.

`{split}.manifest.json` is written last, so a split without one is unfinished. Its fingerprint, the SHA-256 of
the manifest's canonical JSON, identifies the data in checkpoints and results. There are two formats, of rendered
objects and of ordinary images.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from ssl_equi.data.collection import Rgb
from ssl_equi.data.images import MAX_PIXELS
from ssl_equi.errors import DataError
from ssl_equi.files import read_json_object, write_atomically
from ssl_equi.latents.schema import SCHEMA_OF_WIDTH, LatentSchema

FORMAT_VERSION = 1  # of both formats
_SPLIT_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
_SUFFIX = ".manifest.json"
_FEWEST_BYTES_PER_RECORD = 2048  # of a tar: two headers and two contents


@dataclass(frozen=True)
class ShardEntry:
    """One tar file: its size, its checksum and the objects [first, first + count) that it holds."""

    name: str
    bytes: int
    sha256: str
    first: int
    count: int


@dataclass(frozen=True)
class ShardManifest:
    """What the manifests of both formats have; `class_names` are indexed by label."""

    FORMAT: ClassVar[str]
    LATER_FIELDS: ClassVar[dict[str, Any]] = {}  # with what they were before there were any

    split: str
    num_objects: int
    class_names: tuple[str, ...]
    source: str
    license: str
    seed: int
    writer: str
    plan_sha256: str  # of the settings and the list of objects the writer was given
    shards: tuple[ShardEntry, ...]
    sidecars: dict[str, str]  # file name in the index folder -> SHA-256

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of this manifest."""
        return hashlib.sha256(canonical_json(self._as_json())).hexdigest()

    def write(self, folder: Path) -> None:
        """Write the manifest, with its own fingerprint beside the fields, atomically."""
        content = {**self._as_json(), "fingerprint": self.fingerprint}
        text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
        write_atomically(manifest_path(folder, self.split), text.encode())

    def check(self, path: Path) -> None:
        """Raise DataError for values that a manifest of this format can't have."""

    def _as_json(self) -> dict[str, Any]:
        # `dataclasses.asdict` takes far longer for thousands of shards.
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        content = {"format": self.FORMAT, "format_version": FORMAT_VERSION, **fields}
        content["shards"] = [vars(entry) for entry in self.shards]
        # Fields that came later are left out where they say nothing, so that fingerprints stay as they were.
        return {name: value for name, value in content.items() if self.LATER_FIELDS.get(name, ...) != value}


@dataclass(frozen=True)
class Manifest(ShardManifest):
    """Everything about a split of rendered objects but its pixels."""

    FORMAT: ClassVar[str] = "ssl-equi-shards"
    LATER_FIELDS: ClassVar[dict[str, Any]] = {"view_format": "jpg", "notes": (), "latent_schema": None}

    num_views: int
    image_size: tuple[int, int]  # height, width in pixels
    latent_names: tuple[str, ...]
    latent_ranges: dict[str, tuple[float, float]]  # the extremes found in the split
    mean_rgb: Rgb | None
    std_rgb: Rgb | None
    view_format: str = "jpg"  # suffix of the views' members
    notes: tuple[str, ...] = ()  # what a reader of numbers must know, such as how the pixels were changed
    latent_schema: dict[str, Any] | None = None  # None for that of 3DIEBench or 3DIEBench-T

    @cached_property
    def schema(self) -> LatentSchema:
        """What the latents are. Raises DataError for a schema that contradicts the names of the columns."""
        if self.latent_schema is not None:
            schema: LatentSchema | None = LatentSchema.from_json(self.latent_schema)
        else:
            schema = SCHEMA_OF_WIDTH.get(len(self.latent_names))
        if schema is None or schema.column_names != self.latent_names:
            raise DataError(f"the columns {', '.join(self.latent_names)} are not those of its schema")
        return schema

    def check(self, path: Path) -> None:
        """See `ShardManifest.check`."""
        height, width = self.image_size
        if min(self.num_views, height, width) < 1 or height * width > MAX_PIXELS:
            raise DataError(
                f"manifest {path} states {self.num_views} views of {height} x {width} pixels: rebuild this data set"
            )
        if set(self.latent_ranges) != set(self.latent_names):
            raise DataError(f"manifest {path} states ranges of other latents than it names: rebuild this data set")
        try:
            _ = self.schema
        except DataError as error:
            raise DataError(f"manifest {path} states no usable schema ({error}): rebuild this data set") from error


@dataclass(frozen=True)
class ImageManifest(ShardManifest):
    """Everything about a split of ordinary images but their pixels.

    `mean_rgb` and `std_rgb` are what training normalises with; the measured ones are of the first `measured_images`
    stored, each image counting the same, in units of [0, 1].
    """

    FORMAT: ClassVar[str] = "ssl-equi-image-shards"

    num_unlabelled: int
    images_per_class: tuple[int, ...]
    kinds: dict[str, int]  # JPEG, PNG, ...: how many images
    height_range: tuple[int, int]  # pixels
    width_range: tuple[int, int]
    mean_rgb: Rgb
    std_rgb: Rgb
    measured_mean_rgb: Rgb
    measured_std_rgb: Rgb
    measured_images: int
    source_version: str
    reencoding: str | None  # how the pixels differ from the source's; None where all bytes are the source's


MANIFEST_TYPES: tuple[type[ShardManifest], ...] = (Manifest, ImageManifest)
_AnyManifest = TypeVar("_AnyManifest", bound=ShardManifest)


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
    """Read and check a manifest of rendered objects; see `read_manifest_as`."""
    return read_manifest_as(Manifest, folder, split)


def read_image_manifest(folder: Path, split: str) -> ImageManifest:
    """Read and check a manifest of ordinary images; see `read_manifest_as`."""
    return read_manifest_as(ImageManifest, folder, split)


def manifest_type_of(path: Path) -> type[ShardManifest]:
    """What a manifest, whole or not, says that it is; what is no manifest at all is refused by the readers."""
    try:
        format_name = read_json_object(path, DataError).get("format")
    except DataError:
        return Manifest
    return ImageManifest if format_name == ImageManifest.FORMAT else Manifest


def read_manifest_as(manifest_type: type[_AnyManifest], folder: Path, split: str) -> _AnyManifest:
    """Read and check a manifest of one format.

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
    if content.pop("format", None) != manifest_type.FORMAT:
        raise DataError(
            f"{path} is not a manifest of '{manifest_type.FORMAT}': name the folder of a data set of this format"
        )
    version = content.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise DataError(
            f"manifest {path} has format version {version}, this reader knows version {FORMAT_VERSION}: "
            f"install the release that wrote it, or rebuild the data set"
        )
    if found_fingerprint != stated_fingerprint:
        raise DataError(
            f"manifest {path} does not match its fingerprint {stated_fingerprint}, it was changed after it was "
            f"written: download or rebuild this data set again"
        )
    try:
        manifest: _AnyManifest = from_json(manifest_type, content)
    except ValueError as error:
        raise DataError(f"manifest {path} is malformed ({error}): rebuild or download this data set again") from error
    if manifest.split != split:
        raise DataError(
            f"manifest {path} is of split '{manifest.split}', it was copied or renamed: download or rebuild split "
            f"'{split}' again"
        )
    _check_shards(manifest.shards, manifest.num_objects, path)
    manifest.check(path)
    return manifest


def from_json(kind: Any, value: Any, name: str = "") -> Any:
    """A value of JSON as the dataclass, tuple, dictionary, number or text that the annotation `kind` asks for.

    Raises ValueError, which says what `name` holds, for a value of another type.
    """
    if kind is Any:
        return value
    if type(value) is kind and kind in (int, str, float):  # most of what a manifest of thousands of shards holds
        return value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints, required = _fields_of(kind)
        if not isinstance(value, dict):
            raise ValueError(f"{name or 'its fields'}: {type(value).__name__} is absent or unknown")
        if not required <= value.keys() <= hints.keys():
            difference = sorted((required - value.keys()) | (value.keys() - hints.keys()))
            raise ValueError(f"{name or 'its fields'}: {difference} is absent or unknown")
        return kind(**{field: from_json(hints[field], each, field) for field, each in value.items()})
    origin, arguments = get_origin(kind), get_args(kind)
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


@functools.cache  # asked for thousands of shards, and slow
def _fields_of(kind: type) -> tuple[dict[str, Any], frozenset[str]]:
    """The annotations of a dataclass's fields by name, and the names of those without a default."""
    hints, fields = get_type_hints(kind), dataclasses.fields(kind)
    required = frozenset(field.name for field in fields if field.default is dataclasses.MISSING)
    return {field.name: hints[field.name] for field in fields}, required


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
