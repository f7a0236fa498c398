"""The loader of a run, by the way to the views that its options choose."""

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Protocol, Self

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.decoded_cache import CachedViews
from ssl_equi.data.device_decoding import DeviceDecodedLoader, encoded_views, nvjpeg_decoder
from ssl_equi.data.loader import ViewLoader
from ssl_equi.data.remote_shards import RemoteImages, RemoteShards
from ssl_equi.data.rendered_views import RenderedLoader, RenderedViews, config_of_stored
from ssl_equi.data.sources import DataSource
from ssl_equi.data.streaming import StreamedLoader
from ssl_equi.training.config import LoaderSize, PretrainingOptions
from ssl_equi.training.processes import Processes


class TrainingLoader(Protocol):
    """What a run asks of a loader."""

    @property
    def steps_per_epoch(self) -> int:
        """Global steps in an epoch."""

    def batches(self, start_step: int = 0) -> Iterator[ViewBatch]:
        """Endless batches from a global step on, each a function of (seed, step)."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def open_loader(
    config: PretrainingOptions, data: DataSource, processes: Processes, size: LoaderSize, stored_views: int
) -> TrainingLoader:
    """Loads this process's share of the global batches: `stored_views` views of each object."""
    for note in data.notes:
        processes.say(note)
    options: dict[str, Any] = {
        "global_batch_size": config.batch_size, "seed": config.seed, "rank": processes.rank,
        "world_size": processes.world_size, "keep_incomplete_batch": config.keep_incomplete_batch,
        "threads": size.threads,
    }  # fmt: skip
    if config.render_views:
        rendered = RenderedViews(
            config_of_stored(data.train), "train", processes.device, show_progress=processes.is_main
        )
        return RenderedLoader(rendered, views_per_object=stored_views, fresh_views=config.fresh_views, **options)
    if config.decode_on == "cuda":
        decode = nvjpeg_decoder(processes.device)
        options |= {"views_per_object": stored_views, "device": processes.device, "decode": decode}
        return DeviceDecodedLoader(encoded_views(data.train), **options)
    options |= {"views": stored_views, "on_bad_record": config.on_bad_record, "max_skipped": config.max_skipped}
    if isinstance(data.train, (RemoteShards, RemoteImages)):
        return StreamedLoader(
            data.train.location, data.train.split,
            fit=data.train.fit if isinstance(data.train, RemoteImages) else None,
            image_size=data.train.image_size[0], shuffle_buffer=config.shuffle_buffer, **options,
        )  # fmt: skip
    if size.workers > 0:
        processes.say(f"{size.workers} processes decode the images")
    train = CachedViews(data.train, show_progress=processes.is_main) if config.cache_decoded else data.train
    return ViewLoader(train, workers=size.workers, **options)
