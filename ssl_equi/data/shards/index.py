"""The index of a split: where each record lies, and everything small about it, as plain .npy arrays.

The arrays are memory-mapped, so all processes of a machine share one copy in the page cache. Replace these files if you
must, never change them in place: shortening a mapped file kills the processes that map it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np

from ssl_equi.data.images import SUFFIX_OF_KIND
from ssl_equi.data.npy import map_npy, npy_bytes
from ssl_equi.data.shards.manifest import ImageManifest, Manifest, ShardEntry, ShardManifest, index_folder
from ssl_equi.errors import DataError
from ssl_equi.files import sha256_of_file, write_atomically

KINDS = tuple(SUFFIX_OF_KIND)  # of image files; the array `kinds` holds places in it
_CURE = "download or rebuild this data set again"
_VALUES_AT_ONCE = 1 << 20
# An index up to so many bytes is hashed and checked whenever it is opened, in tenths of a second; that of ten million
# images would take seconds, so larger ones are checked by `verify` and after a download.
MOST_BYTES_CHECKED = 256 << 20


@dataclass(frozen=True)
class SplitIndex:
    """n rendered objects, V views, L latents; one .npy file a field."""

    DTYPES: ClassVar[dict[str, str]] = {
        "offsets": "i8", "sizes": "i4", "crc32c": "u4", "shard_numbers": "i4", "labels": "i8", "latents": "f4",
        "quats_xyzw": "f4", "keys": "S100",
    }  # fmt: skip

    offsets: np.ndarray  # int64 [n, V], first byte of the view in its shard
    sizes: np.ndarray  # int32 [n, V], bytes
    crc32c: np.ndarray  # uint32 [n, V]
    shard_numbers: np.ndarray  # int32 [n]
    labels: np.ndarray  # int64 [n]
    latents: np.ndarray  # float32 [n, V, L]
    keys: np.ndarray  # S100 [n]
    quats_xyzw: np.ndarray | None = None  # float32 [n, V, 4], computed in float64; None where the schema has no pose


@dataclass(frozen=True)
class ImageIndex:
    """n images; one .npy file a field."""

    DTYPES: ClassVar[dict[str, str]] = {
        "shard_numbers": "i4", "offsets": "i8", "sizes": "i4", "crc32c": "u4", "labels": "i8", "heights": "i4",
        "widths": "i4", "kinds": "u1", "keys": "S100",
    }  # fmt: skip

    shard_numbers: np.ndarray  # int32 [n]
    offsets: np.ndarray  # int64 [n], first byte of the image in its shard
    sizes: np.ndarray  # int32 [n], bytes
    crc32c: np.ndarray  # uint32 [n]
    labels: np.ndarray  # int64 [n], -1 for an image without a label
    heights: np.ndarray  # int32 [n], pixels
    widths: np.ndarray  # int32 [n], pixels
    kinds: np.ndarray  # uint8 [n], place in KINDS
    keys: np.ndarray  # S100 [n]


AnyIndex = TypeVar("AnyIndex", SplitIndex, ImageIndex)


def concatenate(parts: Sequence[AnyIndex]) -> AnyIndex:
    """The index of several shards, one after the other."""
    names = [name for name in parts[0].DTYPES if getattr(parts[0], name) is not None]
    return type(parts[0])(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def write_index(folder: Path, split: str, index: SplitIndex | ImageIndex) -> dict[str, str]:
    """Write each array as NAME.npy; returns the file names and their SHA-256 for the manifest."""
    sidecars = index_folder(folder, split)
    sidecars.mkdir(exist_ok=True)
    checksums = {}
    for name in index.DTYPES:
        array, path = getattr(index, name), sidecars / f"{name}.npy"
        if array is not None:
            write_atomically(path, npy_bytes(array))
            checksums[path.name] = sha256_of_file(path)
    return checksums


def shapes_of_arrays(manifest: ShardManifest) -> dict[str, tuple[int, ...]]:
    """The arrays that the index of a split has, by name, and how large they are."""
    n = manifest.num_objects
    if not isinstance(manifest, Manifest):
        return dict.fromkeys(ImageIndex.DTYPES, (n,))
    views = manifest.num_views
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("offsets", "sizes", "crc32c"), (n, views))
    shapes |= dict.fromkeys(("shard_numbers", "labels", "keys"), (n,))
    shapes["latents"] = (n, views, len(manifest.latent_names))
    if manifest.schema.pose is not None:
        shapes["quats_xyzw"] = (n, views, 4)
    return shapes


def read_index(folder: Path, manifest: Manifest, *, verify: bool = False) -> SplitIndex:
    """Memory-map the arrays of a split of rendered objects; checked unless they are large, or in any case to `verify`.

    Raises DataError when an array is absent, is not the one the manifest was written with, has an unexpected type or
    shape, holds NaN, or contradicts the manifest's shards.
    """
    arrays, is_checked = _open_arrays(SplitIndex.DTYPES, folder, manifest, verify)
    index = SplitIndex(**arrays)
    if is_checked:
        _check_places(index, manifest, folder)
        for rows, _, _ in rows_of_shards(manifest.shards, manifest.num_views):
            known = [index.latents] if index.quats_xyzw is None else [index.latents, index.quats_xyzw]
            if not all(np.isfinite(array[rows]).all() for array in known):
                source = index_folder(folder, manifest.split)
                raise DataError(
                    f"sidecar {source / 'latents.npy'} or {source / 'quats_xyzw.npy'} holds NaN or infinity: "
                    f"rebuild this data set from a clean source"
                )
    return index


def read_image_index(folder: Path, manifest: ImageManifest, *, verify: bool = False) -> ImageIndex:
    """Memory-map the arrays of a split of ordinary images, as `read_index` does those of rendered objects."""
    arrays, is_checked = _open_arrays(ImageIndex.DTYPES, folder, manifest, verify)
    index = ImageIndex(**arrays)
    if is_checked:
        _check_places(index, manifest, folder)
        if (index.kinds >= len(KINDS)).any():
            raise _contradiction(folder, manifest, "kinds", "contradicts the manifest")
    return index


def _open_arrays(
    dtypes: Mapping[str, str],
    folder: Path,
    manifest: ShardManifest,
    verify: bool,
) -> tuple[dict[str, np.ndarray], bool]:
    """The arrays by name, and whether their values are to be checked, as their SHA-256 was."""
    shapes = shapes_of_arrays(manifest)
    paths = {name: index_folder(folder, manifest.split) / f"{name}.npy" for name in shapes}
    arrays = {
        name: map_npy(path, f"sidecar {path}", DataError, _CURE, dtype=np.dtype(dtypes[name]), shape=shapes[name])
        for name, path in paths.items()
    }
    is_checked = verify or sum(array.nbytes for array in arrays.values()) <= MOST_BYTES_CHECKED
    for path in paths.values() if is_checked else ():
        if sha256_of_file(path) != manifest.sidecars.get(path.name):
            raise DataError(
                f"sidecar {path} does not match the SHA-256 in the manifest, it was changed or is of another build: "
                f"{_CURE}"
            )
    return arrays, is_checked


def _check_places(index: SplitIndex | ImageIndex, manifest: ShardManifest, folder: Path) -> None:
    """That all records lie in their shards, and have labels with names."""
    lowest = -1 if isinstance(index, ImageIndex) else 0  # -1 for an image without a label
    for rows, shard_numbers, shard_bytes in rows_of_shards(manifest.shards, max(1, index.offsets[:1].size)):
        if not np.array_equal(index.shard_numbers[rows], shard_numbers):
            raise _contradiction(folder, manifest, "shard_numbers", "contradicts the manifest's shards")
        offsets, sizes, labels = index.offsets[rows], index.sizes[rows], index.labels[rows]
        ends = shard_bytes.reshape(-1, *[1] * (offsets.ndim - 1))
        if (offsets < 0).any() or (sizes <= 0).any() or (offsets + sizes > ends).any():
            raise _contradiction(folder, manifest, "offsets", "points outside a shard")
        if (labels < lowest).any() or (labels >= len(manifest.class_names)).any():
            problem = f"holds a label outside {lowest}..{len(manifest.class_names) - 1}"
            raise _contradiction(folder, manifest, "labels", problem)


def _contradiction(folder: Path, manifest: ShardManifest, name: str, problem: str) -> DataError:
    path = index_folder(folder, manifest.split) / f"{name}.npy"
    return DataError(f"sidecar {path} {problem}: rebuild this data set")


def rows_of_shards(
    shards: Iterable[ShardEntry], values_per_row: int = 1
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Rows of an index, about a million values at a time, with each row's shard number and that shard's bytes.

    So the checks of a large index need little memory. Bytes are int64 [m], shard numbers int64 [m].
    """
    shards = list(shards)
    ends = np.cumsum([entry.count for entry in shards])
    bytes_of_shards = np.array([entry.bytes for entry in shards])
    rows_at_once = max(1, _VALUES_AT_ONCE // values_per_row)
    for first in range(0, int(ends[-1]), rows_at_once):
        end = min(first + rows_at_once, int(ends[-1]))
        shard_numbers = np.searchsorted(ends, np.arange(first, end), side="right")
        yield slice(first, end), shard_numbers, bytes_of_shards[shard_numbers]
