"""Batch norms that normalise as in training, but leave their running statistics alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def batch_counts(module: nn.Module) -> dict[_BatchNorm, Tensor]:
    """The counts of batches that the batch norms of `module` keep, by layer."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    return {layer: layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None}


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms of `module` in train mode use the statistics of the batch, and record them where none looks.

    Running mean, running variance and the count of batches are afterwards equal to the bit, also after an exception.
    Other buffers stand in for them meanwhile, so make no checkpoint inside. Layers in eval mode, and those without
    running statistics, are left as they are. Works for torch's batch norms (the synchronised one too), timm's
    `BatchNormAct2d` and `ssl_equi.objectives.parts.batch.SynchronisedBatchNorm`.
    """
    layers = [
        layer
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats
    ]
    kept = [(layer, name, getattr(layer, name)) for layer in layers for name in STATISTICS]
    # One count for all. It starts at 0, as some layers divide by it; what the others hold is never read.
    counts = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
    count = torch.zeros_like(counts[0]) if counts else None
    # Not None: activation checkpointing compares what is saved for the backward pass here with what is saved elsewhere.
    for layer, name, buffer in kept:
        setattr(layer, name, count if name == "num_batches_tracked" else torch.empty_like(buffer))
    try:
        yield
    finally:
        for layer, name, buffer in kept:
            setattr(layer, name, buffer)
