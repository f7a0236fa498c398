"""Batch norms that normalise as in training, but leave their running statistics alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms of `module` in train mode use the statistics of the batch and record nothing.

    Running mean, running variance and the count of batches are afterwards equal to the bit, also after an exception.
    It copies nothing: the buffers are taken away meanwhile, so make no checkpoint inside. Layers in eval mode, and
    those without running statistics, are left as they are. Works for torch's batch norms (the synchronised one too),
    timm's `BatchNormAct2d` and `ssl_equi.objectives.distributed.SynchronisedBatchNorm`.
    """
    layers = [
        layer
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats
    ]
    buffers = [{name: getattr(layer, name) for name in STATISTICS} for layer in layers]
    for layer in layers:
        _set_statistics(layer, dict.fromkeys(STATISTICS), tracked=False)
    try:
        yield
    finally:
        for layer, kept in zip(layers, buffers, strict=True):
            _set_statistics(layer, kept, tracked=True)


def _set_statistics(layer: _BatchNorm, buffers: dict[str, Tensor | None], tracked: bool) -> None:
    # Both are needed: our own batch norm looks for the buffers only, torch's synchronised one at the flag only.
    layer.track_running_stats = tracked
    for name, buffer in buffers.items():
        setattr(layer, name, buffer)
