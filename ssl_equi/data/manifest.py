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
from typing import Any

from ssl_equi.data.errors import DataError
from ssl_equi.data.files import write_atomically

FORMAT_NAME = "ssl-equi-shards"
FORMAT_VERSION = 1
_LATER_FIELDS: dict[str, Any] = {"view_format": "jpg", "notes": ()}
_SPLIT_PATTERN = re.compile(r"[A-Za-z0-9_-]+")


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
    return folder / f"{split}.manifest.json"


def index_folder(folder: Path, split: str) -> Path:
    """Where the sidecar arrays of a split lie."""
    return folder / f"{split}.index"


def shard_name(split: str, number: int) -> str:
    """File name of a shard: train-000000.tar, train-000001.tar, ..."""
    return f"{split}-{number:06d}.tar"


def read_manifest(folder: Path, split: str) -> Manifest:
    """Read and check a manifest.

    Raises DataError when it is absent, of another format version, malformed, or edited by hand.
    """
    path = manifest_path(folder, split)
    content = read_manifest_content(path, FORMAT_NAME, FORMAT_VERSION)
    fingerprint = content.pop("fingerprint", None)
    try:
        manifest = _manifest_from_json(content)
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"manifest {path} is malformed ({error}): rebuild or download this data set again") from error
    check_manifest(manifest.fingerprint, fingerprint, manifest.split, manifest.shards, manifest.num_objects, path)
    return manifest


def read_manifest_content(path: Path, format_name: str, format_version: int) -> dict[str, Any]:
    """The fields of a manifest of the format that is named, with its fingerprint.

    Raises DataError when it is absent, not JSON, or of another format or version.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"there is no manifest {path}: build this data set (an unfinished build leaves none) or name its folder"
        ) from None
    except ValueError as error:
        raise DataError(f"manifest {path} is not JSON ({error}): rebuild or download this data set again") from error
    if not isinstance(content, dict) or content.pop("format", None) != format_name:
        raise DataError(f"{path} is not a manifest of '{format_name}': name the folder of a data set of this format")
    version = content.pop("format_version", None)
    if version != format_version:
        raise DataError(
            f"manifest {path} has format version {version}, this reader knows version {format_version}: "
            f"install the release that wrote it, or rebuild the data set"
        )
    return content


def _manifest_from_json(content: dict[str, Any]) -> Manifest:
    """Give JSON lists their tuple types back; unknown or absent fields raise TypeError."""
    fields = dict(content)
    for name in ("image_size", "latent_names", "class_names"):
        fields[name] = tuple(fields[name])
    for name in ("mean_rgb", "std_rgb"):
        fields[name] = None if fields[name] is None else tuple(fields[name])
    fields["latent_ranges"] = {name: tuple(limits) for name, limits in fields["latent_ranges"].items()}
    fields["notes"] = tuple(fields.get("notes", ()))
    fields["shards"] = tuple(ShardEntry(**entry) for entry in fields["shards"])
    return Manifest(**fields)


def check_manifest(
    fingerprint: str, stated_fingerprint: Any, split: str, shards: Iterable[ShardEntry], num_objects: int, path: Path
) -> None:
    """Raise DataError for a manifest that was edited, or whose shards aren't the expected ones.

    Shards must carry their expected names (nothing outside the folder) and cover the objects without a gap.
    """
    if fingerprint != stated_fingerprint:
        raise DataError(
            f"manifest {path} does not match its fingerprint {stated_fingerprint}, it was changed after it was "
            f"written: download or rebuild this data set again"
        )
    first = 0
    for number, entry in enumerate(shards):
        if entry.name != shard_name(split, number) or entry.first != first:
            raise DataError(f"manifest {path} lists shard '{entry.name}' out of place: rebuild this data set")
        first += entry.count
    if first != num_objects:
        raise DataError(
            f"manifest {path} counts {num_objects} objects but its shards hold {first}: rebuild this data set"
        )
