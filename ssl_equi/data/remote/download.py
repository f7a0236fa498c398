"""Copying whole splits from a web server, S3 or another folder to this machine, so that they are read by index."""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from platformdirs import user_cache_path

from ssl_equi.data.remote.transport import Patience, RemoteFolder, open_folder
from ssl_equi.data.remote.views import (
    fetch_file,
    fetch_manifest,
    named_by_address,
    read_image_metadata,
    read_rendered_metadata,
)
from ssl_equi.data.shards.manifest import ImageManifest, Manifest, index_folder, manifest_path, manifest_type_of
from ssl_equi.errors import DataError
from ssl_equi.files import sha256_of_file, working_alone, write_atomically, write_errors_named

_LINE_EVERY_SECONDS = 20.0


def cache_folder_of(address: str) -> Path:
    """Where the splits of an address are kept: a folder of the user's cache for each address."""
    stripped = address.rstrip("/")
    digest = hashlib.sha256(stripped.encode()).hexdigest()[:16]
    return user_cache_path("ssl_equi") / "fetched" / f"{stripped.rpartition('/')[2].replace(':', '-')}-{digest}"


def fetch_splits(address: str, splits: Sequence[str]) -> Path:
    """Copy whole splits into the user's cache folder, unless they are there; returns the folder.

    A split is there if its manifest, which is written last, is that of the address now. A line is printed when a split
    begins and every 20 seconds. Raises DataError as `download_split`; also if the disk has no room for a split.
    """
    folder = cache_folder_of(address)
    with write_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for split in dict.fromkeys(splits):
        if _is_there(address, split, folder):
            continue
        print(f"fetching split '{split}' of {address} to {folder}", flush=True)
        last_at = time.monotonic()

        def report(shard: str) -> None:
            nonlocal last_at
            if time.monotonic() - last_at >= _LINE_EVERY_SECONDS:
                last_at = time.monotonic()
                print(f"fetched {shard}", flush=True)

        download_split(address, split, folder, max_bytes=shutil.disk_usage(folder).free, report_shard=report)
    return folder


def _is_there(address: str, split: str, folder: Path) -> bool:
    present = manifest_path(folder, split)
    if not present.is_file():
        return False
    remote = open_folder(address)
    try:
        with tempfile.TemporaryDirectory(prefix="ssl-equi-manifest-") as scratch:
            return fetch_manifest(remote, split, Path(scratch)).read_bytes() == present.read_bytes()
    finally:
        remote.close()


def download_split(
    location: str | Path,
    split: str,
    folder: Path,
    *,
    max_bytes: int,
    patience: Patience | None = None,
    report_shard: Callable[[str], None] = lambda name: None,
) -> Manifest | ImageManifest:
    """Copy a whole split into a local folder, where `ShardDataset` (ordinary images: `ImageShards`) opens it.

    Each shard is compared with the manifest's SHA-256 before it gets its final name, and the manifest comes last.
    Called again after an interruption, shards that are there and intact are kept. Of several processes that want the
    same folder one works and the others wait.

    Raises DataError if something can't be read or written, does not match its checksum, or the shards have more than
    `max_bytes` together. `report_shard` is called with each shard's name once it is there.
    """
    remote = open_folder(location, patience)
    with write_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with (
            working_alone(folder / f".{split}.lock", f"downloading split '{split}' to {folder}"),
            tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as fetched,
        ):
            return _download(remote, split, folder, Path(fetched), max_bytes, report_shard)
    finally:
        remote.close()


def _download(
    remote: RemoteFolder,
    split: str,
    folder: Path,
    fetched: Path,
    max_bytes: int,
    report_shard: Callable[[str], None],
) -> Manifest | ImageManifest:
    """Fetch what isn't there into the folder `fetched` and rename it from there, shards first."""
    manifest: Manifest | ImageManifest
    with named_by_address(remote, fetched):
        if manifest_type_of(fetch_manifest(remote, split, fetched)) is ImageManifest:
            manifest, _ = read_image_metadata(remote, split, fetched)
        else:
            manifest, _ = read_rendered_metadata(remote, split, fetched)
    total = sum(entry.bytes for entry in manifest.shards)
    if total > max_bytes:
        raise DataError(
            f"the shards of split '{split}' at {remote.describe('')} have {total:,} bytes together and max_bytes is "
            f"{max_bytes:,}: allow more, or stream them"
        )
    for entry in manifest.shards:
        target = folder / entry.name
        if not (target.is_file() and sha256_of_file(target) == entry.sha256):
            fetch_file(remote, entry.name, fetched / entry.name, entry.bytes)
            if sha256_of_file(fetched / entry.name) != entry.sha256:
                raise DataError(
                    f"shard {remote.describe(entry.name)} does not match its SHA-256 in the manifest: upload it again "
                    f"or rebuild this data set"
                )
            with write_errors_named(target):
                (fetched / entry.name).replace(target)
        report_shard(entry.name)
    sidecars = index_folder(folder, split)
    with write_errors_named(sidecars):
        sidecars.mkdir(exist_ok=True)
    for array in index_folder(fetched, split).iterdir():
        write_atomically(sidecars / array.name, array.read_bytes())
    write_atomically(manifest_path(folder, split), manifest_path(fetched, split).read_bytes())
    return manifest
