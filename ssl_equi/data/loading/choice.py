"""The loader that the options of a run ask for: which of the sources of images it takes, and which options exclude."""

from dataclasses import dataclass, field
from typing import Literal, Unpack

import torch

from ssl_equi.data.cache import CachedViews, DecodedInMemory
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.derived import ResizedViews
from ssl_equi.data.loading.device import DecodedOnDevice, device_loader
from ssl_equi.data.loading.gpu import encoded_views, gpu_loader, nvjpeg_decoder
from ssl_equi.data.loading.loader import Loader
from ssl_equi.data.loading.rendered import RenderedViews, config_of_stored, rendered_loader
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.order import BatchOptions
from ssl_equi.data.remote.streaming import streamed_loader
from ssl_equi.data.remote.views import RemoteImages, RemoteViews

CachePlace = Literal["disk", "memory", "device"]


@dataclass(frozen=True)
class ImageSource:
    """Where the images of a run come from; stored ones are decoded by threads where nothing else is asked for."""

    render_views: bool = False
    cache_decoded: CachePlace | None = None
    """Where views that are decoded once are kept."""
    decode_on_cuda: bool = False
    streamed: bool = False
    workers: int = 0
    """Processes that decode in the place of threads."""
    fresh_views: bool = False
    """Of rendered views: new ones in each epoch."""
    shuffle_buffer: int = 1000
    """Of streamed views: objects among which batches are mixed."""
    threads: int = 2
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where rendered views, and those that a GPU decodes or keeps, are made."""

    def problem(self) -> str | None:
        """The one rule: a source alone, and worker processes for what is stored or cached; None if it is kept."""
        given = {
            "--render-views": self.render_views,
            "--cache-decoded": self.cache_decoded is not None,
            "--decode-on cuda": self.decode_on_cuda,
            "--reading streamed": self.streamed,
        }
        chosen = [flag for flag, is_given in given.items() if is_given]
        if self.workers and self.cache_decoded not in ("disk", "memory"):  # which processes read as well
            chosen.append("--loader-workers")
        if len(chosen) < 2:
            return None
        return f"{' and '.join(chosen)} are given, which each say where images come from: give at most one of them"


def open_loader(
    train: ViewCollection, source: ImageSource, *, show_progress: bool = False, **options: Unpack[BatchOptions]
) -> Loader:
    """Batches of the views of a training split from the source that was chosen.

    Raises DataError for views that the source can't give, ValueError for sizes that do not fit.
    """
    if source.render_views:
        views = RenderedViews(config_of_stored(train), "train", source.device, show_progress=show_progress)
        return rendered_loader(views, threads=source.threads, fresh_views=source.fresh_views, **options)
    if source.decode_on_cuda:
        decode = nvjpeg_decoder(source.device)
        return gpu_loader(encoded_views(train), device=source.device, decode=decode, threads=source.threads, **options)
    remote = train.stored if isinstance(train, ResizedViews) else train
    if isinstance(remote, RemoteViews):
        return streamed_loader(
            remote.location,
            remote.split,
            fit=remote.fit if isinstance(remote, RemoteImages) else None,
            image_size=train.image_size[0] if remote is not train else None,
            threads=source.threads,
            shuffle_buffer=source.shuffle_buffer,
            **options,
        )
    if source.cache_decoded is not None:
        skips = options.get("on_bad_record") == "skip"
        if source.cache_decoded == "device":
            on_device = DecodedOnDevice(train, source.device, keep_bad_views=skips, show_progress=show_progress)
            return device_loader(on_device, **options)
        decoded_once = CachedViews if source.cache_decoded == "disk" else DecodedInMemory
        train = decoded_once(train, keep_bad_views=skips, show_progress=show_progress)
    return stored_loader(train, threads=source.threads, workers=source.workers, **options)
