"""Other ways to the views of a run than the loader of stored ones: rendered while training, or decoded by the GPU."""

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

import torch

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.device_decoding import DeviceDecodedLoader, encoded_views, nvjpeg_decoder
from ssl_equi.data.rendered_views import RenderedLoader, RenderedViews, config_of_stored
from ssl_equi.data.sources import DataSource
from ssl_equi.training.config import LoaderSize
from ssl_equi.training.pretraining_config import PretrainingOptions


class TrainingLoader(Protocol):
    """What recipes ask of a loader."""

    @property
    def steps_per_epoch(self) -> int:
        """Global steps in an epoch."""

    def batches(self, start_step: int = 0) -> Iterator[ViewBatch]:
        """Endless batches from a global step on, each a function of (seed, step)."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Process(Protocol):
    """This process among those of the run."""

    rank: int
    world_size: int
    is_main: bool
    loader_size: LoaderSize

    @property
    def device(self) -> torch.device:
        """What it trains on."""


def rendered_loader(
    config: PretrainingOptions, data: DataSource, process: Process, views_per_object: int
) -> RenderedLoader:
    """Renders the objects of the stored training split, on the device of the run; raises DataError as that does."""
    views = RenderedViews(config_of_stored(data.train), "train", process.device, show_progress=process.is_main)
    return RenderedLoader(
        views,
        global_batch_size=config.batch_size,
        views_per_object=views_per_object,
        seed=config.seed,
        rank=process.rank,
        world_size=process.world_size,
        keep_incomplete_batch=config.keep_incomplete_batch,
        threads=process.loader_size.threads,
        fresh_views=config.fresh_views,
    )


def device_decoded_loader(
    config: PretrainingOptions, data: DataSource, process: Process, views_per_object: int
) -> DeviceDecodedLoader:
    """Decodes the stored views on the CUDA device of the run; raises DataError for data that it can't decode."""
    return DeviceDecodedLoader(
        encoded_views(data.train),
        global_batch_size=config.batch_size,
        views_per_object=views_per_object,
        seed=config.seed,
        device=process.device,
        decode=nvjpeg_decoder(process.device),
        rank=process.rank,
        world_size=process.world_size,
        keep_incomplete_batch=config.keep_incomplete_batch,
        threads=process.loader_size.threads,
    )
