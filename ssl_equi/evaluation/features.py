"""Features of every view of a split: encoded once for each encoder, kept on disk, and found again by whoever asks."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock
from platformdirs import user_cache_path
from torch import Tensor, nn

from ssl_equi.checkpoint import describe_os_error
from ssl_equi.data.bad_records import BadRecords, problems_of_rows
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.images import normalise_images
from ssl_equi.data.npy import map_npy
from ssl_equi.data.view_counts import ViewsOfEach, is_view
from ssl_equi.errors import CheckpointError, DataError, FeatureError
from ssl_equi.files import read_json_object, sync_folder, write_durably
from ssl_equi.latents.schema import LatentSchema
from ssl_equi.runtime.frozen import frozen

FORMAT_VERSION = 1  # raised when the same key would stand for other numbers
FEATURES_FILE, ENTRY_FILE = "features.npy", "entry.json"
HASHED_BYTES_AT_ONCE = 1 << 24
# On a CPU, larger batches fall out of its cache and are slower; those of fewer than 32 images may take other kernels,
# which round features differently.
CPU_BATCH = 64

OnProgress = Callable[[int, int], None]  # views done, of so many


class ImageChange(Protocol):
    """Something done to every image of a split before it is encoded, on the device: a corruption, an augmentation."""

    @property
    def label(self) -> str:
        """A word for it, to show."""

    @property
    def fingerprint(self) -> str:
        """Tells this change from all others."""

    def __call__(self, images: Tensor, first_object: int) -> Tensor:
        """Changed images of consecutive objects from `first_object` on: uint8 `[b, V, H, W, 3]`, and the same back.

        Where an object has fewer views than V, the rest is zero, and is not looked at afterwards.
        """


@dataclass(frozen=True)
class FeatureCache:
    """Features of every view of a split, with what is known about the views.

    Attributes:
        features: float32 `[n_objects, n_views, D]`.
        labels: int64 `[n_objects]`.
        latents: float32 `[n_objects, n_views, L]`, columns as `schema` says; L is 0 without one.
        quats_xyzw: float32 `[n_objects, n_views, 4]`, absolute rotation of each view, w > 0; None where unknown.
        class_names: by label; empty where unknown.
        view_counts: int64 `[n_objects]` where objects have different numbers of views: all else is zero behind an
            object's own views, which means nothing. None: every object has n_views.
        schema: of the latents; None where nothing is known about the views.
    """

    features: Tensor
    labels: Tensor
    latents: Tensor
    quats_xyzw: Tensor | None
    class_names: tuple[str, ...] = ()
    schema: LatentSchema | None = None
    view_counts: Tensor | None = None

    @property
    def num_objects(self) -> int:
        return self.features.shape[0]

    @property
    def num_views(self) -> int:
        """Views of the object that has the most."""
        return self.features.shape[1]

    @property
    def views_of_each(self) -> ViewsOfEach:
        """How many views each object has: one number where all have as many."""
        return self.num_views if self.view_counts is None else self.view_counts.cpu().numpy()

    @property
    def fewest_views(self) -> int:
        """Views of the object that has the fewest."""
        return int(np.min(self.views_of_each))

    @property
    def num_images(self) -> int:
        """Views of all objects."""
        return self.num_objects * self.num_views if self.view_counts is None else int(self.view_counts.sum())

    @property
    def has_view(self) -> Tensor:
        """Where there are views in arrays `[n_objects, n_views, ...]`: bool."""
        counts = np.broadcast_to(self.views_of_each, self.num_objects)
        return torch.from_numpy(is_view(counts, self.num_views)).to(self.features.device)

    @property
    def first_rows(self) -> np.ndarray:
        """Row of each object's view 0 in `rows`, int64 `[n_objects]`; its other views follow."""
        counts = np.broadcast_to(self.views_of_each, self.num_objects).astype(np.int64)
        return np.cumsum(counts) - counts

    def rows(self, values: Tensor) -> Tensor:
        """Features, latents or quaternions `[n_objects, n_views, C]` of every view as rows `[num_images, C]`."""
        return values.flatten(0, 1) if self.view_counts is None else values[self.has_view]

    def to(self, device: torch.device | str) -> "FeatureCache":
        """The same cache with its tensors on `device`."""
        return self._with_each(lambda values: values.to(device))

    def part(self, columns: slice) -> "FeatureCache":
        """The same cache with only these feature columns (a view, no copy)."""
        return replace(self, features=self.features[..., columns])

    def objects(self, chosen: Tensor | slice) -> "FeatureCache":
        """The same cache with only these objects, int64 `[m]` or a slice."""
        return self._with_each(lambda values: values[chosen])

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "FeatureCache":
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)


def cache_of(features: Tensor, dataset: ViewCollection) -> FeatureCache:
    """Features `[n_objects, n_views, D]` of all views of a split, with what the split knows about them."""
    quats_xyzw, counts = dataset.quats_xyzw, dataset.view_counts
    return FeatureCache(
        features=features,
        labels=torch.from_numpy(np.array(dataset.labels, dtype=np.int64)),
        latents=torch.from_numpy(np.array(dataset.latents, dtype=np.float32)),
        quats_xyzw=None if quats_xyzw is None else torch.from_numpy(np.array(quats_xyzw, dtype=np.float32)),
        class_names=tuple(dataset.class_names),
        schema=dataset.schema,
        view_counts=None if counts is None else torch.from_numpy(np.array(counts, dtype=np.int64)),
    )


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder at work, and all of it that features depend on.

    Attributes:
        module: images `[N, 3, H, W]` -> features `[N, D]`; on `device`; encodes in evaluation mode.
        mean_rgb, std_rgb: of the training images, in units of [0, 1].
        name: for errors and progress.
        architecture: name and arguments.
        state_sha256: of its parameters and buffers.
        batch_size: views that are encoded at once: whole objects, one at least.
    """

    module: nn.Module
    mean_rgb: Sequence[float]
    std_rgb: Sequence[float]
    name: str = "the encoder"
    architecture: str = ""
    state_sha256: str = ""
    device: torch.device | str = "cpu"
    batch_size: int = 512


def encode_split(
    module: nn.Module,
    dataset: ViewCollection,
    mean_rgb: Sequence[float],
    std_rgb: Sequence[float],
    device: torch.device | str = "cpu",
    batch_size: int = 512,
    bad_records: BadRecords | None = None,
) -> FeatureCache:
    """What `FeatureStore.encode` makes of a split, not kept."""
    encoder = FrozenEncoder(module, mean_rgb, std_rgb, device=device, batch_size=batch_size)
    return FeatureStore(None).encode(encoder, dataset, bad_records=bad_records)


def encode_images(encoder: nn.Module, pixels: Tensor, mean_rgb: Sequence[float], std_rgb: Sequence[float]) -> Tensor:
    """Features float32 `[n, D]` of images `[n, H, W, 3]` in 0..255, in batches that suit their device.

    Images of float32 are overwritten.
    """
    num_batches = max(1, -(-len(pixels) // CPU_BATCH)) if pixels.device.type == "cpu" else 1
    batches = pixels.tensor_split(num_batches)  # evenly, so that none of them is a small rest
    return torch.cat([encoder(normalise_images(batch, mean_rgb, std_rgb)).float() for batch in batches])


def default_cache_folder() -> Path:
    """Where features are kept if nothing else is said: the user's cache folder."""
    return user_cache_path("ssl_equi") / "features"


@dataclass
class FeatureStore:
    """Encodes splits, or finds what was encoded before.

    An entry is a folder named after a hash of all that features depend on. It holds `features.npy`, which is read as a
    memory map, and `entry.json`, which says what it is and how the array hashes. It is written under another name batch
    by batch and renamed when it is whole; one that is damaged is encoded anew.

    Attributes:
        folder: of the entries; None: features stay in memory and are not kept.
        encoder_passes: images that went through an encoder so far.
    """

    folder: Path | None
    encoder_passes: int = field(default=0, init=False)

    @contextmanager
    def counting(self, module: nn.Module) -> Iterator[None]:
        """Inside, images that go through an encoder are counted."""

        def count(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.encoder_passes += len(inputs[0])

        handle = module.register_forward_pre_hook(count)
        try:
            yield
        finally:
            handle.remove()

    def encode(
        self,
        encoder: FrozenEncoder,
        dataset: ViewCollection,
        *,
        change: ImageChange | None = None,
        bad_records: BadRecords | None = None,
        on_progress: OnProgress = lambda done, total: None,
    ) -> FeatureCache:
        """Features of every view of `dataset`, float32 on the CPU, from the store if they are there.

        Args:
            change: of the images before they are encoded; its fingerprint is one of the things features depend on.
            bad_records: if these are skipped, an object of which a view can't be read is left out, and features are
                not kept.
        """
        problems: dict[int, DataError] | None = {} if bad_records is not None and bad_records.are_skipped else None

        def encode_into(receive: Callable[[int, Tensor], None]) -> None:
            """Gives each batch's first object and its features `[b, n_views, D]`."""
            first_object = 0
            with frozen(encoder.module), self.counting(encoder.module):
                for images in _image_batches(dataset, encoder, problems):
                    images = images if change is None else change(images, first_object)
                    features = _encode_views(encoder, dataset, images, first_object)
                    _check_finite(features, first_object, dataset, encoder.name)
                    receive(first_object, features)
                    first_object += len(images)
                    on_progress(first_object * dataset.num_views, dataset.num_objects * dataset.num_views)

        if self.folder is None or problems is not None:
            batches: list[Tensor] = []
            encode_into(lambda _, features: batches.append(features))
            # Put together outside inference mode, so that the cache is an ordinary tensor that autograd accepts.
            cache = cache_of(torch.cat(batches), dataset)
            if problems and bad_records is not None:
                cache = _without_bad_objects(cache, dataset, problems, bad_records)
            return cache
        key = _key(encoder, dataset)
        if change is not None:
            key["change"] = change.fingerprint
        entry = self.folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f".{entry.name}.lock"):
                if not _is_whole(entry, key):
                    _write(entry, key, dataset, encode_into)
        except OSError as error:
            raise CheckpointError(describe_os_error(error, entry)) from error
        path = entry / FEATURES_FILE
        cure = f"delete the folder {entry}, it is made anew"
        # Copy on write: the array may be changed in memory, which torch asks for, and the file never is.
        features = map_npy(path, str(path), CheckpointError, cure, dtype="float32", copy_on_write=True)
        return cache_of(torch.from_numpy(features), dataset)


def _encode_views(encoder: FrozenEncoder, dataset: ViewCollection, images: Tensor, first_object: int) -> Tensor:
    """Features `[b, n_views, D]` on the CPU of images `[b, n_views, H, W, 3]`; zero behind an object's own views."""

    def encode(pixels: Tensor) -> Tensor:
        return encode_images(encoder.module, pixels, encoder.mean_rgb, encoder.std_rgb)

    if dataset.view_counts is None:
        return encode(images.flatten(0, 1)).unflatten(0, images.shape[:2]).cpu()
    counts = dataset.view_counts[first_object : first_object + len(images)]
    there = torch.from_numpy(is_view(counts, dataset.num_views))
    encoded = encode(images[there.to(images.device)]).cpu()
    features = encoded.new_zeros(*there.shape, encoded.shape[1])
    features[there] = encoded
    return features


def _image_batches(
    dataset: ViewCollection, encoder: FrozenEncoder, problems: dict[int, DataError] | None
) -> Iterator[Tensor]:
    """All views of consecutive objects, uint8 `[b, V, H, W, 3]` on the device; valid until the next one is asked for.

    What is wrong with an object is put into `problems`, and its images are any; without `problems` it raises.
    """
    device, objects_per_batch = torch.device(encoder.device), max(1, encoder.batch_size // dataset.num_views)
    height, width = dataset.image_size
    shape = (objects_per_batch, dataset.num_views, height, width, 3)
    buffers = [torch.zeros(shape, dtype=torch.uint8, pin_memory=device.type == "cuda") for _ in range(2)]
    starts = list(range(0, dataset.num_objects, objects_per_batch))

    def read(batch_index: int) -> Tensor:
        first = starts[batch_index]
        object_indices = np.arange(first, min(first + objects_per_batch, dataset.num_objects))
        images = buffers[batch_index % 2][: len(object_indices)]
        pixels = images.numpy()
        try:
            dataset.read_all_views(object_indices, pixels)
        except DataError:
            if problems is None:
                raise

            def read_object(row: int) -> None:
                one = slice(row, row + 1)
                dataset.read_all_views(object_indices[one], pixels[one])

            found = problems_of_rows(read_object, range(len(object_indices)))
            problems.update({first + row: problem for row, problem in found.items()})
        return images

    with ThreadPoolExecutor(max_workers=1) as executor:
        pending = executor.submit(read, 0)
        for batch_index in range(len(starts)):
            images = pending.result()
            if batch_index + 1 < len(starts):
                pending = executor.submit(read, batch_index + 1)
            yield images.to(device)


def _check_finite(features: Tensor, first_object: int, dataset: ViewCollection, encoder_name: str) -> None:
    """Raises FeatureError naming the first bad view of a batch `[b, n_views, D]`."""
    bad = (~torch.isfinite(features).all(dim=-1)).nonzero()
    if len(bad):
        object_in_batch, view = bad[0].tolist()
        raise FeatureError(
            f"features of {encoder_name} are not finite, first those of view {view} of object "
            f"{first_object + object_in_batch} of the {dataset.split} split: it diverged, use an earlier checkpoint"
        )


def _without_bad_objects(
    cache: FeatureCache, dataset: ViewCollection, problems: dict[int, DataError], bad_records: BadRecords
) -> FeatureCache:
    """The cache without the objects that have a problem, each of which is counted."""
    for object_index, problem in problems.items():
        bad_records.count(object_index, problem)
    good = [index for index in range(dataset.num_objects) if index not in problems]
    if not good:
        raise DataError(f"none of the {dataset.num_objects} objects of split {dataset.split!r} can be read: rebuild it")
    return cache.objects(torch.tensor(good))


def _write(
    entry: Path,
    key: dict[str, Any],
    dataset: ViewCollection,
    encode_into: Callable[[Callable[[int, Tensor], None]], None],
) -> None:
    """Write an entry batch by batch, and give it its name when it is whole."""
    temporary = entry.with_name(f".writing-{entry.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    arrays: list[np.memmap[Any, Any]] = []

    def write_batch(first_object: int, features: Tensor) -> None:
        rows = features.numpy()
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


def _key(encoder: FrozenEncoder, dataset: ViewCollection) -> dict[str, Any]:
    """All that features depend on. The content key of turned views tells how they are turned."""
    return {
        "format": FORMAT_VERSION,
        "encoder_sha256": encoder.state_sha256,
        "architecture": encoder.architecture,
        "data_fingerprint": dataset.content_key,
        "split": dataset.split,
        "views": [dataset.num_objects, dataset.num_views],
        "image_size": list(dataset.image_size),
        "mean_rgb": [float(value) for value in encoder.mean_rgb],
        "std_rgb": [float(value) for value in encoder.std_rgb],
        "dtype": "float32",
        "device": torch.device(encoder.device).type,
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
