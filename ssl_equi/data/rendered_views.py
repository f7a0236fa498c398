"""The embedded set rendered while it is trained on, on a GPU or the CPU, in the place of stored pictures.

Objects, latents and quaternions are those of the stored set, to the bit; the pictures are those that were encoded as
JPEG there, which changed their values by 1 of 255 levels on average (64 pixels, quality 95). On a CPU the same batch
always has the same pixels; other company in a batch, or another device, may change some values by one level. Fresh
views, new ones in each epoch, are what files can't give.
"""

import dataclasses
import hashlib
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.collection import ViewCollection, check_request
from ssl_equi.data.order import BatchOrder
from ssl_equi.data.procedural import (
    ProceduralConfig,
    default_folder,
    latents_of_object,
    plan_objects,
    split_plans,
    split_settings,
)
from ssl_equi.data.reader import ShardDataset
from ssl_equi.data.stage_seconds import StageSeconds
from ssl_equi.errors import DataError
from ssl_equi.files import building_progress
from ssl_equi.geometry.latents import LATENT_SIZE_WITH_TRANSLATION, quat_xyzw_from_latents
from ssl_equi.scenes.families import build_object
from ssl_equi.scenes.render import Renderer
from ssl_equi.scenes.sampling import RotationSampling, sample_latents
from ssl_equi.scenes.scene import SceneSettings

_FRESH_STREAM = 2  # of the random words of an epoch; ssl_equi.data.order takes its own
_OBJECTS_AT_ONCE = 8  # that a thread renders; fixed, so that pictures don't depend on the threads
_ROTATIONS_OF_TRAINING: tuple[RotationSampling, ...] = ("euler_box", "uniform")


class RenderedViews:
    """A split of the embedded set that is rendered when it is read; a `ViewCollection`, described there.

    Every object's mesh is made at the start, which takes about 5 ms and 45 kB each, and kept on the device.

    Args:
        config: which set.
        split: of it.
        device: where to render.

    Raises:
        DataError: there is no such split.
    """

    def __init__(
        self,
        config: ProceduralConfig,
        split: str,
        device: torch.device | str = "cpu",
        *,
        show_progress: bool = False,
    ) -> None:
        self.config = config
        self.split = split
        objects = plan_objects(config, split)
        plan, settings = split_plans(config)[split], split_settings(config, split)
        self.rotation = plan.rotation
        self.folder = default_folder(config)  # where the stored set would lie
        self.source = f"{settings.source}, while they are read"
        self.plan_sha256 = settings.plan_sha256
        self.fingerprint = self.content_key = hashlib.sha256(f"{settings.plan_sha256} rendered".encode()).hexdigest()
        self.num_objects = len(objects)
        self.num_views = config.views
        self.class_names = plan.families
        self.image_size = (config.image_size, config.image_size)
        self.fills_image = True
        self.mean_rgb, self.std_rgb = settings.mean_rgb, settings.std_rgb
        self.labels = np.array([planned.label for planned in objects], dtype=np.int64)
        self.exact_latents = planned_latents(config, split)
        """float64 [n, V, L], which the pictures are made from."""
        self.latents = self.exact_latents.astype(np.float32)
        self.quats_xyzw: np.ndarray | None = quats_xyzw_of(self.exact_latents)
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

    def read_views(
        self,
        object_indices: np.ndarray,
        view_indices: np.ndarray,
        out: np.ndarray,
        content_sizes_out: np.ndarray | None = None,
    ) -> StageSeconds:
        """Render views into `out` uint8 [b, k, H, W, 3]; see `ViewCollection.read_views`. Rendering is the decoding."""
        began = time.perf_counter()
        check_request(
            object_indices, view_indices, out, content_sizes_out,
            num_objects=self.num_objects, num_views=self.num_views, image_size=self.image_size,
        )  # fmt: skip
        if content_sizes_out is not None:
            content_sizes_out[...] = self.image_size
        out[...] = self.render(object_indices, self.exact_latents[object_indices[:, None], view_indices]).cpu().numpy()
        return StageSeconds(decoding=time.perf_counter() - began)


class RenderedLoader:
    """Endless batches like `ViewLoader`'s, rendered on the device of the views; objects and views are the same ones.

    A batch is a pure function of (seed, global step), and its images lie on the device already, in memory of their
    own. On a CPU the next batch is rendered ahead, by threads whose operations aren't shared out to further ones, which
    is several times as fast. On a GPU a batch is rendered when it is asked for, on the stream that is current then (see
    `ssl_equi.training.devices`), and `seconds_waited` is what it took to queue the work. Use it as a context manager,
    which ends the threads.

    Args:
        views: what is rendered.
        global_batch_size: objects in a batch over all ranks.
        views_per_object: distinct views of each object.
        seed: of order and views.
        rank: this process.
        world_size: number of processes.
        keep_incomplete_batch: end an epoch with a smaller batch, as in `ViewLoader`.
        threads: that render, on a CPU. Pictures don't depend on their number.
        fresh_views: draw new views in each epoch, as many as asked for, in place of the stored set's. Their latents
            are a pure function of (seed, epoch, object, view).

    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        views: RenderedViews,
        *,
        global_batch_size: int,
        views_per_object: int = 2,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        keep_incomplete_batch: bool = False,
        threads: int = 2,
        fresh_views: bool = False,
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads is {threads}: give at least 1")
        self.views = views
        self.fresh_views = fresh_views
        self.order = BatchOrder(
            num_objects=views.num_objects,
            num_views=views_per_object if fresh_views else views.num_views,
            global_batch_size=global_batch_size,
            views=views_per_object,
            seed=seed,
            rank=rank,
            world_size=world_size,
            keep_incomplete_batch=keep_incomplete_batch,
        )
        self._pool = None
        if views.device.type == "cpu":
            self._pool = ThreadPoolExecutor(threads, "render", initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    @property
    def steps_per_epoch(self) -> int:
        """Global steps in an epoch; the epoch of a step is step // steps_per_epoch."""
        return self.order.steps_per_epoch

    @property
    def skipped(self) -> int:
        """Bad records that were replaced: none, for nothing is read."""
        return 0

    def batches(self, start_step: int = 0) -> Iterator[ViewBatch]:
        """Yield the batches of global steps start_step, start_step + 1, ... without end."""
        if start_step < 0:
            raise ValueError(f"start_step is {start_step}: give a step of at least 0")
        return self._iterate(start_step)

    def _iterate(self, step: int) -> Iterator[ViewBatch]:
        ahead = 0 if self._pool is None else 1
        pending: deque[_PendingBatch] = deque()
        next_step = step
        while True:
            started = time.perf_counter()
            while len(pending) <= ahead:
                pending.append(self._start_batch(next_step))
                next_step += 1
            yield self._finish_batch(pending.popleft(), started)

    def _start_batch(self, step: int) -> "_PendingBatch":
        objects, views = self.order.batch(step)
        if self.fresh_views:
            latents = fresh_latents(self.views, self.order.seed, step // self.steps_per_epoch, objects, views)
        else:
            latents = self.views.exact_latents[objects[:, None], views]
        chunks: list[Future[Tensor]] = []
        if self._pool is not None:
            for first in range(0, len(objects), _OBJECTS_AT_ONCE):
                rows = slice(first, first + _OBJECTS_AT_ONCE)
                chunks.append(self._pool.submit(self.views.render, objects[rows], latents[rows]))
        return _PendingBatch(objects, views, latents, chunks)

    def _finish_batch(self, pending: "_PendingBatch", started: float) -> ViewBatch:
        if self._pool is None:
            images = self.views.render(pending.object_indices, pending.latents)
        else:
            images = torch.cat([chunk.result() for chunk in pending.chunks])
        return ViewBatch(
            images=images,
            latents=torch.from_numpy(pending.latents.astype(np.float32)),
            quat_xyzw=torch.from_numpy(quats_xyzw_of(pending.latents)),
            labels=torch.from_numpy(self.views.labels[pending.object_indices]),
            object_indices=torch.from_numpy(pending.object_indices),
            view_indices=torch.from_numpy(pending.view_indices),
            seconds_waited=time.perf_counter() - started,
        )


@dataclasses.dataclass(frozen=True)
class _PendingBatch:
    """A batch whose pictures are being rendered, in pieces; in none where rendering waits until it is asked for."""

    object_indices: np.ndarray
    view_indices: np.ndarray
    latents: NDArray[np.float64]
    chunks: list[Future[Tensor]]


def planned_latents(config: ProceduralConfig, split: str) -> NDArray[np.float64]:
    """The latents of a split's views, [n, V, L], as they are written into its shards."""
    rotation = split_plans(config)[split].rotation
    return np.stack([latents_of_object(planned, config, rotation) for planned in plan_objects(config, split)])


def quats_xyzw_of(latents: NDArray[np.float64]) -> NDArray[np.float32]:
    """Poses [..., 4] as the index of a stored set has them: computed in float64."""
    return quat_xyzw_from_latents(torch.from_numpy(latents)).numpy().astype(np.float32)


def fresh_latents(
    views: RenderedViews, seed: int, epoch: int, object_indices: np.ndarray, view_indices: np.ndarray
) -> NDArray[np.float64]:
    """Latents [b, k, L] of views [b, k] that no other epoch has, drawn as those of the split are.

    Each row is a pure function of (seed, epoch, object, view): a Philox4x64 stream is keyed by (seed, epoch), and its
    counter begins with view and object.
    """
    key = np.array([seed, epoch], dtype=np.uint64)
    drawn = [
        sample_latents(
            1,
            np.random.Generator(
                np.random.Philox(key=key, counter=np.array([0, view, object_index, _FRESH_STREAM], dtype=np.uint64))
            ),
            views.rotation,
            views.config.translation,
        )
        for object_index, row in zip(object_indices.tolist(), view_indices.tolist(), strict=True)
        for view in row
    ]
    return np.concatenate(drawn).reshape(*view_indices.shape, -1)


def config_of_stored(stored: ViewCollection) -> ProceduralConfig:
    """The configuration whose objects and views are those of a stored split `train`, compared key by key, bit by bit.

    Raises:
        DataError: the split was not rendered by this version of the project.
    """
    if isinstance(stored, ShardDataset) and stored.split == "train" and stored.num_views > 1:
        config = ProceduralConfig(
            families=stored.class_names,
            held_out_families=(),
            train_objects=max(1, stored.num_objects // len(stored.class_names)),
            views=stored.num_views,
            image_size=stored.image_size[0],
            translation=stored.latents.shape[-1] == LATENT_SIZE_WITH_TRANSLATION,
            seed=stored.manifest.seed,
        )
        for rotation in _ROTATIONS_OF_TRAINING:
            candidate = dataclasses.replace(config, rotation=rotation)
            keys = [planned.key.encode() for planned in plan_objects(candidate, "train")]
            if keys == stored.keys.tolist() and np.array_equal(
                planned_latents(candidate, "train").astype(np.float32), stored.latents
            ):
                return candidate
    raise DataError(
        f"split {stored.split!r} in {stored.folder} is not one that this version renders: leave --render-views out, or "
        f"give the --data-dir of a set that datasets/procedural.py built"
    )
