"""Splits that lie elsewhere, in the user's cache folder."""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from platformdirs import user_cache_path

from ssl_equi.data.manifest import manifest_path
from ssl_equi.data.remote_download import download_split
from ssl_equi.data.remote_files import open_folder
from ssl_equi.data.remote_shards import fetch_manifest
from ssl_equi.files import write_errors_named

_LINE_EVERY_SECONDS = 20.0


def cache_folder_of(address: str) -> Path:
    """Where the splits of an address are kept: a folder of the user's cache for each address."""
    stripped = address.rstrip("/")
    digest = hashlib.sha256(stripped.encode()).hexdigest()[:16]
    return user_cache_path("ssl_equi") / "fetched" / f"{stripped.rpartition('/')[2].replace(':', '-')}-{digest}"


def fetch_splits(address: str, splits: Sequence[str]) -> Path:
    """Copy whole splits into the user's cache folder, unless they are there; returns the folder.

    A split is there if its manifest, which is written last, is that of the address now. Every shard is compared with
    its SHA-256 when it is fetched. A line is printed when a split begins and every 20 seconds.

    Raises:
        DataError: as `ssl_equi.data.remote_download.download_split`; also if the disk has no room for a split.
    """
    folder = cache_folder_of(address)
    with write_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for split in dict.fromkeys(splits):
        if not _is_there(address, split, folder):
            print(f"fetching split '{split}' of {address} to {folder}", flush=True)
            download_split(
                address, split, folder, max_bytes=shutil.disk_usage(folder).free, report_shard=_Lines().report
            )
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


class _Lines:
    """Says now and then which shard has been fetched."""

    def __init__(self) -> None:
        self._last_at = time.monotonic()

    def report(self, shard: str) -> None:
        if time.monotonic() - self._last_at >= _LINE_EVERY_SECONDS:
            self._last_at = time.monotonic()
            print(f"fetched {shard}", flush=True)
