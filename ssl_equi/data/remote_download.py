"""Copying a whole split from a web server, S3 or another folder to this machine, so that it can be read by index."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from ssl_equi.data.image_manifest import ImageManifest, is_image_manifest
from ssl_equi.data.manifest import Manifest, index_folder, manifest_path
from ssl_equi.data.remote_files import Patience, RemoteFolder, open_folder
from ssl_equi.data.remote_shards import (
    fetch_file,
    fetch_manifest,
    named_by_address,
    read_image_metadata,
    read_rendered_metadata,
)
from ssl_equi.errors import DataError
from ssl_equi.files import sha256_of_file, working_alone, write_atomically, write_errors_named


def download_split(
    location: str | Path,
    split: str,
    folder: Path,
    *,
    max_bytes: int,
    patience: Patience | None = None,
    report_shard: Callable[[str], None] | None = None,
) -> Manifest | ImageManifest:
    """Copy a whole split into a local folder, where `ShardDataset` (ordinary images: `ImageShards`) opens it.

    Each shard is compared with the manifest's SHA-256 before it gets its final name, and the manifest comes last.
    Called again after an interruption, shards that are there and intact are kept. Of several processes that want the
    same folder one works and the others wait.

    Args:
        location: local folder, or http://, https:// or s3:// address.
        split: name of the split.
        folder: where to put it; made if it isn't there.
        max_bytes: refuse a split whose shards are larger than this together.
        patience: how long a server is waited for.
        report_shard: called with each shard's name once it is there.

    Raises:
        DataError: something can't be read or written, does not match its checksum, or is too large.
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
    report_shard: Callable[[str], None] | None,
) -> Manifest | ImageManifest:
    """Fetch what isn't there into the folder `fetched` and rename it from there, shards first."""
    manifest: Manifest | ImageManifest
    with named_by_address(remote, fetched):
        if is_image_manifest(fetch_manifest(remote, split, fetched)):
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
        if report_shard is not None:
            report_shard(entry.name)
    sidecars = index_folder(folder, split)
    with write_errors_named(sidecars):
        sidecars.mkdir(exist_ok=True)
    for array in index_folder(fetched, split).iterdir():
        write_atomically(sidecars / array.name, array.read_bytes())
    write_atomically(manifest_path(folder, split), manifest_path(fetched, split).read_bytes())
    return manifest
