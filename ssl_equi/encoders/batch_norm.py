"""Batch norms that normalise as in training, but leave their running statistics alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms of `module` in train mode use the statistics of the batch, and record them where none looks.

    Running mean, running variance and the count of batches are afterwards equal to the bit, also after an exception.
    Other buffers stand in for them meanwhile, so make no checkpoint inside. Layers in eval mode, and those without
    running statistics, are left as they are. Works for torch's batch norms (the synchronised one too), timm's
    `BatchNormAct2d` and `ssl_equi.objectives.parts.batch.SynchronisedBatchNorm`.
    """
    kept: list[tuple[nn.Module, str, Tensor]] = [
        (layer, name, getattr(layer, name))
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats
        for name in STATISTICS
    ]
    # Not None: activation checkpointing compares what is saved for the backward pass here with what is saved elsewhere.
    for layer, name, buffer in kept:
        setattr(layer, name, torch.zeros_like(buffer))
    try:
        yield
    finally:
        for layer, name, buffer in kept:
            setattr(layer, name, buffer)
