"""Encode every view of a split exactly once, and prove that the encoder was not changed by it.

All probes then train on the cached features: the reference code re-encodes every image for each probe and epoch, and
leaves batch normalisation in training mode while it does, so that the "frozen" encoder drifts.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ssl_equi.data.bad_records import BadRecords, problems_of_rows
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.images import normalise_images
from ssl_equi.data.view_counts import ViewsOfEach, is_view
from ssl_equi.errors import DataError, FeatureError
from ssl_equi.latents.schema import LatentSchema


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


def encode_split(
    encoder: nn.Module,
    dataset: ViewCollection,
    mean_rgb: Sequence[float],
    std_rgb: Sequence[float],
    device: torch.device | str = "cpu",
    batch_size: int = 512,
    bad_records: BadRecords | None = None,
) -> FeatureCache:
    """Encode each view of `dataset` once, in evaluation mode and float32; the features stay on the CPU.

    The next batch is decoded in a second thread while the present one is encoded. The modes (training or evaluation)
    of the encoder and of each submodule are what they were before.

    Args:
        encoder: maps `[N, 3, H, W]` to `[N, D]`.
        mean_rgb, std_rgb: of the training images, in units of [0, 1].
        batch_size: views in one forward pass, rounded down to whole objects (at least one object).
        bad_records: if these are skipped, an object of which a view can't be read is left out of the cache.

    Raises:
        DataError: a view can't be read and isn't skipped, or no object is left.
        FeatureError: a feature is not finite.
        RuntimeError: encoding changed a parameter or a buffer of the encoder.
    """
    batches: list[Tensor] = []
    problems: dict[int, DataError] | None = {} if bad_records is not None and bad_records.are_skipped else None
    encode_batches(
        encoder, dataset, mean_rgb, std_rgb, device, batch_size, lambda _, features: batches.append(features),
        problems=problems,
    )  # fmt: skip
    # Concatenated outside inference mode, so that the cache is an ordinary tensor that autograd accepts.
    return without_bad_objects(cache_of(torch.cat(batches), dataset), dataset, problems, bad_records)


def without_bad_objects(
    cache: FeatureCache,
    dataset: ViewCollection,
    problems: dict[int, DataError] | None,
    bad_records: BadRecords | None,
) -> FeatureCache:
    """The cache without the objects that have a problem, each of which is counted.

    Raises:
        DataError: no object is left, or more are bad than allowed.
    """
    if not problems or bad_records is None:
        return cache
    for object_index, problem in problems.items():
        bad_records.count(object_index, problem)
    good = [index for index in range(dataset.num_objects) if index not in problems]
    if not good:
        raise DataError(f"none of the {dataset.num_objects} objects of split {dataset.split!r} can be read: rebuild it")
    return cache.objects(torch.tensor(good))


def encode_batches(
    encoder: nn.Module,
    dataset: ViewCollection,
    mean_rgb: Sequence[float],
    std_rgb: Sequence[float],
    device: torch.device | str,
    batch_size: int,
    receive: Callable[[int, Tensor], None],
    encoder_name: str = "the encoder",
    problems: dict[int, DataError] | None = None,
    change: ImageChange | None = None,
) -> None:
    """Encode each view once, as `encode_split` does, and hand over each batch in turn.

    Args:
        receive: is given the index of the batch's first object, and features float32 `[b, n_views, D]` on the CPU.
        encoder_name: for errors.
        problems: is told what is wrong with an object that can't be read, whose features mean nothing then; such an
            object raises when None.
        change: of the images before they are encoded.

    Raises:
        FeatureError: a feature is not finite.
        RuntimeError: encoding changed a parameter or a buffer of the encoder.
    """
    first_object = 0
    with frozen(encoder):
        objects_per_batch = max(1, batch_size // dataset.num_views)
        for images in _image_batches(dataset, objects_per_batch, torch.device(device), problems):
            images = images if change is None else change(images, first_object)
            if dataset.view_counts is None:
                encoded = encoder(normalise_images(images.flatten(0, 1), mean_rgb, std_rgb))
                features = encoded.float().unflatten(0, images.shape[:2]).cpu()
            else:
                counts = dataset.view_counts[first_object : first_object + len(images)]
                there = torch.from_numpy(is_view(counts, dataset.num_views))
                encoded = encoder(normalise_images(images[there.to(images.device)], mean_rgb, std_rgb)).float().cpu()
                features = encoded.new_zeros(*there.shape, encoded.shape[1])
                features[there] = encoded
            _check_finite(features, first_object, dataset, encoder_name)
            receive(first_object, features)
            first_object += len(images)


def cache_of(features: Tensor, dataset: ViewCollection) -> FeatureCache:
    """Features `[n_objects, n_views, D]` of all views of a split with what the split knows about them."""
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


@contextmanager
def frozen(encoder: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards each submodule has its own mode again.

    Raises:
        RuntimeError: at the end, if a parameter or a buffer was changed.
    """
    hashes_before = _state_hashes(encoder)
    with _evaluation_mode(encoder), torch.inference_mode():
        yield
    _check_unchanged(hashes_before, _state_hashes(encoder))


def _check_finite(features: Tensor, first_object: int, dataset: ViewCollection, encoder_name: str) -> None:
    """Raises FeatureError naming the first bad view of a batch `[b, n_views, D]`."""
    bad = (~torch.isfinite(features).all(dim=-1)).nonzero()
    if len(bad):
        object_in_batch, view = bad[0].tolist()
        raise FeatureError(
            f"features of {encoder_name} are not finite, first those of view {view} of object "
            f"{first_object + object_in_batch} of the {dataset.split} split: it diverged, use an earlier checkpoint"
        )


def _image_batches(
    dataset: ViewCollection, objects_per_batch: int, device: torch.device, problems: dict[int, DataError] | None
) -> Iterator[Tensor]:
    """All views of consecutive objects, uint8 `[b, V, H, W, 3]` on `device`; valid until the next one is asked for.

    What is wrong with an object is put into `problems`, and its images are any; without `problems` it raises.
    """
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


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards each submodule's own mode again."""
    modes = {submodule: submodule.training for submodule in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for submodule, training in modes.items():
            submodule.training = training


def _state_hashes(module: nn.Module) -> dict[str, str]:
    """Hash of each parameter and buffer, non-persistent buffers included, by name."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: _tensor_hash(tensor) for name, tensor in tensors.items()}


def state_sha256(module: nn.Module) -> str:
    """One hash of all parameters and buffers with their names, types and shapes; modes don't count.

    Non-persistent buffers are included, so that it tells of any change that could alter the features.
    """
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    lines = [
        f"{name} {tensor.dtype} {tuple(tensor.shape)} {_tensor_hash(tensor)}\n"
        for name, tensor in sorted(tensors.items())
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _tensor_hash(tensor: Tensor) -> str:
    raw_bytes = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(raw_bytes.tobytes(), digest_size=16).hexdigest()


def _check_unchanged(before: dict[str, str], after: dict[str, str]) -> None:
    changed = [name for name in before | after if before.get(name) != after.get(name)]
    if changed:
        raise RuntimeError(
            f"encoding changed '{changed[0]}' of the encoder ({len(changed)} of {len(before)} tensors): "
            "a frozen encoder must not update its state in evaluation mode"
        )
