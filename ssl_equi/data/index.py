"""The index of a split: where each view lies, and everything small about each object, as plain .npy arrays.

The arrays are memory-mapped, so all processes of a machine share one copy in the page cache. The first opening on a
machine compares their SHA-256 with the manifest and checks their values, since a wrong label or latent would not show
otherwise; later ones see from a stamp (`ssl_equi.data.index_stamps`) that it was done.
Replace these files if you must, never change them in place: shortening a mapped file kills the processes that map it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_equi.data.index_stamps import IndexStamp
from ssl_equi.data.manifest import Manifest, ShardEntry, index_folder
from ssl_equi.data.npy import map_npy, npy_bytes
from ssl_equi.data.shard import ScannedObject
from ssl_equi.errors import DataError
from ssl_equi.files import sha256_of_file, write_atomically
from ssl_equi.geometry.latents import quat_xyzw_from_latents

_DTYPES: dict[str, np.dtype] = {
    "offsets": np.dtype(np.int64),
    "sizes": np.dtype(np.int32),
    "crc32c": np.dtype(np.uint32),
    "shard_numbers": np.dtype(np.int32),
    "labels": np.dtype(np.int64),
    "latents": np.dtype(np.float32),
    "quats_xyzw": np.dtype(np.float32),
    "keys": np.dtype("S100"),
}
_VALUES_AT_ONCE = 1 << 20
SIDECAR_NAMES = tuple(f"{name}.npy" for name in _DTYPES)


@dataclass(frozen=True)
class SplitIndex:
    """n objects, V views, L latents; one .npy file a field."""

    offsets: np.ndarray  # int64 [n, V], first byte of the view in its shard
    sizes: np.ndarray  # int32 [n, V], bytes
    crc32c: np.ndarray  # uint32 [n, V]
    shard_numbers: np.ndarray  # int32 [n]
    labels: np.ndarray  # int64 [n]
    latents: np.ndarray  # float32 [n, V, L]
    quats_xyzw: np.ndarray  # float32 [n, V, 4], computed in float64
    keys: np.ndarray  # S100 [n]


def index_of_objects(objects: Sequence[ScannedObject], shard_number: int) -> SplitIndex:
    """The index rows of one shard's objects, which must agree in number of views and latents."""
    latents = np.stack([found.latents for found in objects])
    quats_xyzw = quat_xyzw_from_latents(torch.from_numpy(latents.astype(np.float64)))
    columns: dict[str, Any] = {
        "offsets": [found.offsets for found in objects],
        "sizes": [found.sizes for found in objects],
        "crc32c": [found.crc32c for found in objects],
        "shard_numbers": [shard_number] * len(objects),
        "labels": [found.label for found in objects],
        "latents": latents,
        "quats_xyzw": quats_xyzw.numpy(),
        "keys": [found.key.encode() for found in objects],
    }
    return SplitIndex(**{name: np.asarray(column, dtype=_DTYPES[name]) for name, column in columns.items()})


def concatenate(parts: Iterable[SplitIndex]) -> SplitIndex:
    """The index of several shards, one after the other."""
    parts = list(parts)
    return SplitIndex(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in _DTYPES})


def write_index(folder: Path, split: str, index: SplitIndex) -> dict[str, str]:
    """Write the arrays of a split; returns their file names and SHA-256 for the manifest."""
    return write_sidecars(index_folder(folder, split), {name: getattr(index, name) for name in _DTYPES})


def write_sidecars(folder: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Write each array as NAME.npy into a folder; returns the file names and their SHA-256."""
    folder.mkdir(exist_ok=True)
    checksums = {}
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        write_atomically(path, npy_bytes(array))
        checksums[path.name] = sha256_of_file(path)
    return checksums


def read_index(folder: Path, manifest: Manifest, *, always_verify: bool = False) -> SplitIndex:
    """Memory-map the arrays of a split, verified now or, unless `always_verify`, earlier on this machine.

    Raises DataError when an array is absent, is not the one the manifest was written with, has an unexpected type or
    shape, holds NaN, or contradicts the manifest's shards.
    """
    source = index_folder(folder, manifest.split)
    stamp = IndexStamp(source, manifest.fingerprint, SIDECAR_NAMES)
    verify = always_verify or not stamp.is_known()
    checksums = manifest.sidecars if verify else None
    index = SplitIndex(
        **{
            name: open_sidecar(source / f"{name}.npy", checksums, _DTYPES[name], shape)
            for name, shape in _shapes(manifest).items()
        }
    )
    if verify:
        _check_values(index, manifest, source)
        if not always_verify:
            stamp.write()
    return index


def open_sidecar(
    path: Path, checksums: Mapping[str, str] | None, dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray:
    """Memory-map one array whose SHA-256 the manifest states under its file name; None: it is known to be right.

    Raises DataError when it is absent, no plain array, of another type or shape, or not the one the manifest was
    written with.
    """
    cure = "download or rebuild this data set again"
    array = map_npy(path, f"sidecar {path}", DataError, cure, dtype=dtype, shape=shape)
    if checksums is not None and sha256_of_file(path) != checksums.get(path.name):
        raise DataError(
            f"sidecar {path} does not match the SHA-256 in the manifest, it was changed or is of another build: {cure}"
        )
    return array


def _shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    n, views, latents = manifest.num_objects, manifest.num_views, len(manifest.latent_names)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("offsets", "sizes", "crc32c"), (n, views))
    shapes |= dict.fromkeys(("shard_numbers", "labels", "keys"), (n,))
    return shapes | {"latents": (n, views, latents), "quats_xyzw": (n, views, 4)}


def _check_values(index: SplitIndex, manifest: Manifest, source: Path) -> None:
    for rows, shard_numbers, shard_bytes in rows_of_shards(manifest.shards, max(1, manifest.num_views)):
        if not np.array_equal(index.shard_numbers[rows], shard_numbers):
            raise DataError(
                f"sidecar {source / 'shard_numbers.npy'} contradicts the manifest's shards: rebuild this data set"
            )
        offsets, sizes = index.offsets[rows], index.sizes[rows]
        if (offsets < 0).any() or (sizes <= 0).any() or (offsets + sizes > shard_bytes[:, None]).any():
            raise DataError(f"sidecar {source / 'offsets.npy'} points outside a shard: rebuild this data set")
        if not (np.isfinite(index.latents[rows]).all() and np.isfinite(index.quats_xyzw[rows]).all()):
            raise DataError(
                f"sidecar {source / 'latents.npy'} or {source / 'quats_xyzw.npy'} holds NaN or infinity: "
                f"rebuild this data set from a clean source"
            )
    if (index.labels < 0).any() or (index.labels >= len(manifest.class_names)).any():
        raise DataError(
            f"sidecar {source / 'labels.npy'} holds a label outside 0..{len(manifest.class_names) - 1}: "
            f"rebuild this data set"
        )


def rows_of_shards(
    shards: Sequence[ShardEntry], values_per_row: int = 1
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Rows of an index, about a million values at a time, with each row's shard number and that shard's bytes.

    So the checks of a large index need little memory. Bytes are int64 [m], shard numbers int64 [m].
    """
    ends = np.cumsum([entry.count for entry in shards])
    bytes_of_shards = np.array([entry.bytes for entry in shards])
    rows_at_once = max(1, _VALUES_AT_ONCE // values_per_row)
    for first in range(0, int(ends[-1]), rows_at_once):
        end = min(first + rows_at_once, int(ends[-1]))
        shard_numbers = np.searchsorted(ends, np.arange(first, end), side="right")
        yield slice(first, end), shard_numbers, bytes_of_shards[shard_numbers]
