"""The loader of a run, from the source of images that its options choose."""

from dataclasses import replace

from ssl_equi.data.loading import choice
from ssl_equi.data.loading.loader import Loader
from ssl_equi.data.sources import DataSource
from ssl_equi.training.config import LoaderSize, PretrainingOptions
from ssl_equi.training.processes import Processes


def open_loader(
    config: PretrainingOptions, data: DataSource, processes: Processes, size: LoaderSize, stored_views: int
) -> Loader:
    """Loads this process's share of the global batches: `stored_views` views of each object."""
    for note in data.notes:
        processes.say(note)
    if size.workers > 0:
        processes.say(f"{size.workers} processes decode the images")
    return choice.open_loader(
        data.train,
        replace(config.image_source, threads=size.threads, workers=size.workers, device=processes.device),
        show_progress=processes.is_main,
        global_batch_size=config.batch_size,
        views=stored_views,
        seed=config.seed,
        rank=processes.rank,
        world_size=processes.world_size,
        keep_incomplete_batch=config.keep_incomplete_batch,
        on_bad_record=config.on_bad_record,
        max_skipped=config.max_skipped,
    )
