"""Features on disk: a split is encoded once for each encoder, and found again by everyone who asks for the same.

An entry is a folder named after a hash of all that features depend on: the encoder's state and architecture, the data
and how images are given, the kind of device, and the versions of torch and timm. It holds `features.npy`, which is
read as a memory map, and `entry.json`, which says what it is and how the array hashes. It is written under another name
batch by batch and renamed when it is whole; one that is damaged is encoded anew.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from platformdirs import user_cache_path
from torch import Tensor, nn

from ssl_equi.checkpoint import describe_os_error
from ssl_equi.data.bad_records import BadRecords
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.npy import map_npy
from ssl_equi.errors import CheckpointError, DataError, FeatureError
from ssl_equi.evaluation.features import FeatureCache, ImageChange, cache_of, encode_batches, without_bad_objects
from ssl_equi.files import read_json_object, sync_folder, write_durably

FORMAT_VERSION = 1  # raised when the same key would stand for other numbers
FEATURES_FILE, ENTRY_FILE = "features.npy", "entry.json"
HASHED_BYTES_AT_ONCE = 1 << 24

FeatureType = Literal["float32", "float16"]
OnProgress = Callable[[int, int], None]  # views done, of so many


def default_cache_folder() -> Path:
    """Where features are kept if nothing else is said: the user's cache folder."""
    return user_cache_path("ssl_equi") / "features"


@contextmanager
def counted_images(encoder: nn.Module) -> Iterator[list[int]]:
    """Inside, the one number of the list is how many images went through `encoder`."""
    count = [0]

    def add(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        count[0] += len(inputs[0])

    handle = encoder.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        handle.remove()


@dataclass
class FeatureStore:
    """Encodes splits, or finds what was encoded before.

    Attributes:
        folder: of the entries; None: features stay in memory and are not kept.
        dtype: of the numbers on disk. float16 takes half of the space and rounds each number by at most 1 / 2048 of
            itself (numbers below 6e-5 by more); tasks compute in float32 either way.
        encoder_passes: images that went through an encoder so far.
    """

    folder: Path | None
    dtype: FeatureType = "float32"
    encoder_passes: int = field(default=0, init=False)

    def encode(
        self,
        encoder: nn.Module,
        dataset: ViewCollection,
        mean_rgb: Sequence[float],
        std_rgb: Sequence[float],
        *,
        name: str,
        architecture: str,
        encoder_sha256: str,
        device: torch.device | str = "cpu",
        batch_size: int = 512,
        change: ImageChange | None = None,
        bad_records: BadRecords | None = None,
        on_progress: OnProgress = lambda done, total: None,
    ) -> FeatureCache:
        """Features of every view of `dataset`, float32 on the CPU, from the store if they are there.

        Args:
            encoder: maps `[N, 3, H, W]` to `[N, D]`; on `device`; its state and modes are left untouched.
            name: of the encoder, for errors.
            architecture: name and arguments of the encoder.
            encoder_sha256: of its parameters and buffers (`state_sha256`).
            change: of the images before they are encoded; its fingerprint is one of the things features depend on.
            bad_records: if these are skipped, an object of which a view can't be read is left out, and features are
                not kept.

        Raises:
            FeatureError: a feature is not finite, or too large for float16.
            DataError: a view can't be read and isn't skipped, or no object is left.
            CheckpointError: the folder can't be written.
            RuntimeError: encoding changed the encoder.
        """
        total = dataset.num_objects * dataset.num_views
        problems: dict[int, DataError] | None = {} if bad_records is not None and bad_records.are_skipped else None

        def encode_into(receive: Callable[[int, Tensor], None]) -> None:
            def count(first_object: int, features: Tensor) -> None:
                receive(first_object, features)
                on_progress(first_object * dataset.num_views + features.shape[0] * features.shape[1], total)

            with counted_images(encoder) as images:
                try:
                    encode_batches(
                        encoder, dataset, mean_rgb, std_rgb, device, batch_size, count, name, problems, change
                    )
                finally:
                    self.encoder_passes += images[0]

        if self.folder is None or problems is not None:
            batches: list[Tensor] = []
            encode_into(lambda _, features: batches.append(self._rounded(features, name)))
            return without_bad_objects(cache_of(torch.cat(batches).float(), dataset), dataset, problems, bad_records)
        key = _key(dataset, mean_rgb, std_rgb, architecture, encoder_sha256, self.dtype, torch.device(device))
        if change is not None:
            key["change"] = change.fingerprint
        entry = self.folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f".{entry.name}.lock"):
                if not _is_whole(entry, key):
                    self._write(entry, key, dataset, encode_into, name)
        except OSError as error:
            raise CheckpointError(describe_os_error(error, entry)) from error
        # Copy on write: the array may be changed in memory, which torch asks for, and the file never is.
        path = entry / FEATURES_FILE
        cure = f"delete the folder {entry}, it is made anew"
        features = torch.from_numpy(
            map_npy(path, str(path), CheckpointError, cure, dtype=self.dtype, copy_on_write=True)
        )
        return cache_of(features.float(), dataset)

    def _rounded(self, features: Tensor, name: str) -> Tensor:
        """In the type of the store, so that features are the same whether they are kept or not."""
        if self.dtype == "float32":
            return features
        rounded = features.half()
        if not bool(torch.isfinite(rounded).all()):
            raise FeatureError(
                f"features of {name} reach {float(features.abs().max()):.0f}, and float16 ends at 65504: keep them as "
                "float32"
            )
        return rounded

    def _write(
        self,
        entry: Path,
        key: dict[str, Any],
        dataset: ViewCollection,
        encode_into: Callable[[Callable[[int, Tensor], None]], None],
        name: str,
    ) -> None:
        temporary = entry.with_name(f".writing-{entry.name}-{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        arrays: list[np.memmap[Any, Any]] = []

        def write_batch(first_object: int, features: Tensor) -> None:
            rows = self._rounded(features, name).numpy()
            if not arrays:
                shape = (dataset.num_objects, dataset.num_views, rows.shape[-1])
                arrays.append(
                    np.lib.format.open_memmap(temporary / FEATURES_FILE, mode="w+", dtype=rows.dtype, shape=shape)
                )
            arrays[0][first_object : first_object + len(rows)] = rows

        try:
            encode_into(write_batch)
            arrays.pop().flush()
            described = {"key": key, "features_blake2b": _file_hash(temporary / FEATURES_FILE)}
            write_durably(temporary / ENTRY_FILE, (json.dumps(described, indent=1) + "\n").encode())
            shutil.rmtree(entry, ignore_errors=True)
            temporary.rename(entry)
            sync_folder(entry.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _key(
    dataset: ViewCollection,
    mean_rgb: Sequence[float],
    std_rgb: Sequence[float],
    architecture: str,
    encoder_sha256: str,
    dtype: FeatureType,
    device: torch.device,
) -> dict[str, Any]:
    """All that features depend on. The content key of turned views tells how they are turned."""
    return {
        "format": FORMAT_VERSION,
        "encoder_sha256": encoder_sha256,
        "architecture": architecture,
        "data_fingerprint": dataset.content_key,
        "split": dataset.split,
        "views": [dataset.num_objects, dataset.num_views],
        "image_size": list(dataset.image_size),
        "mean_rgb": [float(value) for value in mean_rgb],
        "std_rgb": [float(value) for value in std_rgb],
        "dtype": dtype,
        "device": device.type,
        "torch": str(torch.__version__),
        "timm": version("timm"),
    }


def _is_whole(entry: Path, key: dict[str, Any]) -> bool:
    """Whether an entry is there, is what its name says, and holds what was written."""
    try:
        described = read_json_object(entry / ENTRY_FILE, FeatureError)
        return described.get("key") == key and described.get("features_blake2b") == _file_hash(entry / FEATURES_FILE)
    except (OSError, FeatureError):
        return False


def _file_hash(path: Path) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(HASHED_BYTES_AT_ONCE):
            hasher.update(block)
    return hasher.hexdigest()
