"""The embedded set rendered while it is trained on, on a GPU or the CPU, in the place of stored pictures.

Objects, latents and quaternions are those of the stored set, to the bit; the pictures are those that were encoded as
JPEG there, which changed their values by 1 of 255 levels on average (64 pixels, quality 95). On a CPU the same batch
always has the same pixels; other company in a batch, or another device, may change some values by one level. Fresh
views, new ones in each epoch, are what files can't give.
"""

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.derived import ResizedViews
from ssl_equi.data.loading.loader import Fetched, Fetcher, Loader, PendingBatch, bad_records_of
from ssl_equi.data.order import BatchOptions, BatchOrder, sizes_of
from ssl_equi.data.rendering.procedural import (
    ProceduralConfig,
    default_folder,
    latents_of_object,
    plan_objects,
    split_plans,
    split_settings,
)
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.errors import DataError
from ssl_equi.files import building_progress
from ssl_equi.geometry.latents import quat_xyzw_from_latents
from ssl_equi.scenes.families import build_object
from ssl_equi.scenes.render import Renderer
from ssl_equi.scenes.sampling import RotationSampling, sample_latents
from ssl_equi.scenes.scene import SceneSettings

_FRESH_STREAM = 2  # of the random words of an epoch; ssl_equi.data.order takes its own
_OBJECTS_AT_ONCE = 8  # that a thread renders; fixed, so that pictures don't depend on the threads
_ROTATIONS_OF_TRAINING: tuple[RotationSampling, ...] = ("euler_box", "uniform")


class RenderedViews(ViewCollection):
    """A split of the embedded set that is rendered when it is read; `exact_latents` are float64 [n, V, L].

    Every object's mesh is made at the start, which takes about 5 ms and 45 kB each, and kept on the device.

    Raises DataError if there is no such split.
    """

    def __init__(
        self,
        config: ProceduralConfig,
        split: str,
        device: torch.device | str = "cpu",
        *,
        show_progress: bool = False,
    ) -> None:
        self.config, self.split = config, split
        objects = plan_objects(config, split)
        plan, settings = split_plans(config)[split], split_settings(config, split)
        self.rotation = plan.rotation
        self.folder = default_folder(config)  # where the stored set would lie
        self.source = f"{settings.source}, while they are read"
        self.plan_sha256 = settings.plan_sha256
        self.fingerprint = self.content_key = hashlib.sha256(f"{settings.plan_sha256} rendered".encode()).hexdigest()
        self.num_objects, self.num_views = len(objects), config.views
        self.image_size, self.fills_image = (config.image_size, config.image_size), True
        self.class_names = plan.families
        self.mean_rgb, self.std_rgb = settings.mean_rgb, settings.std_rgb
        self.labels = np.array([planned.label for planned in objects], dtype=np.int64)
        self.exact_latents = planned_latents(config, split)
        self.latents = self.exact_latents.astype(np.float32)
        quats_xyzw = quat_xyzw_from_latents(torch.from_numpy(self.exact_latents))  # in float64, as an index has them
        self.quats_xyzw = quats_xyzw.numpy().astype(np.float32)
        self.schema = settings.schema
        with building_progress(show_progress) as progress:
            meshes = [
                build_object(planned.family, planned.object_seed)
                for planned in progress.track(objects, description=f"making the objects of {split}")
            ]
        self.device = torch.device(device)
        self._renderer = Renderer(meshes, SceneSettings(resolution=config.image_size), device)

    def render(self, object_indices: np.ndarray, latents: NDArray[np.float64]) -> Tensor:
        """Pictures uint8 [b, k, H, W, 3] on the device of objects [b] under latents [b, k, L]."""
        of_each_view = torch.from_numpy(object_indices).repeat_interleave(latents.shape[1])
        images = self._renderer.render(of_each_view, torch.from_numpy(latents.reshape(-1, latents.shape[-1])))
        return images.unflatten(0, latents.shape[:2])

    def _read(
        self, object_indices: np.ndarray, view_indices: np.ndarray, out: np.ndarray, sizes_out: np.ndarray | None
    ) -> None:
        out[...] = self.render(object_indices, self.exact_latents[object_indices[:, None], view_indices]).cpu().numpy()


def rendered_loader(
    rendered: RenderedViews, *, threads: int = 2, fresh_views: bool = False, **options: Unpack[BatchOptions]
) -> Loader:
    """Batches rendered on the device of the views, where their images lie, in memory of their own.

    On a CPU the next batch is rendered ahead by `threads` threads, on whose number pictures don't depend. On a GPU a
    batch is rendered when it is asked for, on the stream that is current then (see `ssl_equi.training.devices`), and
    `seconds_waited` is what it took to queue the work. With `fresh_views` each epoch has new views, as many as asked
    for, whose latents are a pure function of (seed, epoch, object, view).

    Raises ValueError for sizes that do not fit.
    """
    if threads < 1:
        raise ValueError(f"threads is {threads}: give at least 1 thread")
    sizes = sizes_of(options)
    num_views = sizes["views"] if fresh_views else rendered.num_views
    order = BatchOrder(num_objects=rendered.num_objects, num_views=num_views, **sizes)
    fetcher = RenderedFetcher(rendered, order, threads, fresh_views)
    prefetch = 1 if rendered.device.type == "cpu" else 0
    return Loader(rendered, order, fetcher, prefetch=prefetch, bad_records=bad_records_of(options))


class RenderedFetcher(Fetcher):
    """Renders batches: on a CPU in threads ahead, on a GPU when they are asked for."""

    def __init__(self, views: RenderedViews, order: BatchOrder, threads: int, fresh_views: bool) -> None:
        self._views, self._order, self._fresh_views = views, order, fresh_views
        self._pool = None
        if views.device.type == "cpu":
            # Operations that aren't shared out to further threads are several times as fast.
            self._pool = ThreadPoolExecutor(threads, "render", initializer=torch.set_num_threads, initargs=(1,))

    def start(self, step: int, objects: np.ndarray, views: np.ndarray) -> PendingBatch:
        """Queue rendering, on a CPU."""
        pending = PendingBatch(step, objects, views)
        if self._fresh_views:
            epoch = step // self._order.steps_per_epoch
            pending.latents = fresh_latents(self._views, self._order.seed, epoch, objects, views)
        if self._pool is not None:
            latents = self._latents(pending)
            for first in range(0, len(objects), _OBJECTS_AT_ONCE):
                rows = slice(first, first + _OBJECTS_AT_ONCE)
                pending.chunks.append(self._pool.submit(self._views.render, objects[rows], latents[rows]))
        return pending

    def finish(self, pending: PendingBatch) -> Fetched:
        """Wait for the pictures; on a GPU, queue them."""
        if self._pool is None:
            return Fetched(self._views.render(pending.objects, self._latents(pending)))
        return Fetched(torch.cat([chunk.result() for chunk in pending.chunks]))

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _latents(self, pending: PendingBatch) -> NDArray[np.float64]:
        if pending.latents is not None:
            return pending.latents
        return self._views.exact_latents[pending.objects[:, None], pending.views]


def planned_latents(config: ProceduralConfig, split: str) -> NDArray[np.float64]:
    """The latents of a split's views, [n, V, L], as they are written into its shards."""
    rotation = split_plans(config)[split].rotation
    return np.stack([latents_of_object(planned, config, rotation) for planned in plan_objects(config, split)])


def fresh_latents(
    views: RenderedViews, seed: int, epoch: int, object_indices: np.ndarray, view_indices: np.ndarray
) -> NDArray[np.float64]:
    """Latents [b, k, L] of views [b, k] that no other epoch has, drawn as those of the split are.

    Each row is a pure function of (seed, epoch, object, view): a Philox4x64 stream is keyed by (seed, epoch), and its
    counter begins with view and object.
    """
    key = np.array([seed, epoch], dtype=np.uint64)
    drawn = []
    for row, column in np.ndindex(view_indices.shape):
        place = [0, view_indices[row, column], object_indices[row], _FRESH_STREAM]
        generator = np.random.Generator(np.random.Philox(key=key, counter=np.array(place, dtype=np.uint64)))
        drawn.append(sample_latents(1, generator, views.rotation, views.config.translation))
    return np.concatenate(drawn).reshape(*view_indices.shape, -1)


def config_of_stored(stored: ViewCollection) -> ProceduralConfig:
    """The configuration whose objects and views are those of a stored split `train`, compared key by key, bit by bit.

    Raises DataError if the split was not rendered by this version of the project.
    """
    shards = stored.stored if isinstance(stored, ResizedViews) else stored
    if isinstance(shards, ShardDataset) and shards.split == "train" and shards.num_views > 1:
        config = ProceduralConfig(
            families=shards.class_names,
            held_out_families=(),
            train_objects=max(1, shards.num_objects // len(shards.class_names)),
            views=shards.num_views,
            image_size=stored.image_size[0],
            translation=shards.manifest.schema.scene_translation or 0.0,
            seed=shards.manifest.seed,
        )
        for rotation in _ROTATIONS_OF_TRAINING:
            candidate = dataclasses.replace(config, rotation=rotation)
            keys = [planned.key.encode() for planned in plan_objects(candidate, "train")]
            if keys == shards.keys.tolist() and np.array_equal(
                planned_latents(candidate, "train").astype(np.float32), shards.latents
            ):
                return candidate
    raise DataError(
        f"split {stored.split!r} in {stored.folder} is not one that this version renders: leave --render-views out, or "
        f"give the --data-dir of a set that datasets/procedural.py built"
    )
