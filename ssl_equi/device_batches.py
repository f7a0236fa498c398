"""The batches of a loader on the device that trains: made and copied there while it works at the step before."""

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from ssl_equi.data.batch import ViewBatch

STEPS_AHEAD = 2
"""That the host may queue before the first of them is done. More would hold as many batches on the device."""


def on_device(batches: Iterator[ViewBatch], device: torch.device) -> Iterator[ViewBatch]:
    """The batches on a device, for the stream that is current at the first call.

    On a GPU all that a batch takes there runs on a stream of its own, beside the step that is under way: the copy of
    stored views, and the rendering or decoding of others, which happens when a loader is asked for its next batch. So a
    buffer of the loader is free again as soon as its copy is done, and not only after the step.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    training, loading = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    loading.wait_stream(training)  # for what a loader has put on the device, such as meshes
    steps_queued: deque[torch.cuda.Event] = deque()
    while True:
        if len(steps_queued) == STEPS_AHEAD:
            # A whole step is queued behind the one that is waited for here, so the device does not run dry.
            steps_queued.popleft().synchronize()
        with torch.cuda.stream(loading):
            loaded = next(batches, None)
            if loaded is None:
                return
            batch = loaded.to(device)
        training.wait_stream(loading)
        for value in vars(batch).values():
            if isinstance(value, Tensor) and value.device.type == "cuda":
                value.record_stream(training)  # or the next batch would get its memory before the step is done with it
        yield batch
        steps_queued.append(torch.cuda.Event(blocking=True))
        steps_queued[-1].record(training)
