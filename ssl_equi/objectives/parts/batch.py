"""Arithmetic on the global batch: differentiable sums and gathers over processes, batch norm, collapse monitors.

Gradient rule. DistributedDataParallel averages parameter gradients over processes, so the function that is being
minimised is the mean over processes of what each of them computes. The backward passes of `gather_batch` and
`sum_over_processes` sum the incoming gradients over processes (the exact adjoints of both). Together: a loss of the
global batch, computed in full by every process, and a mean per process both give exactly the gradient that one process
would compute on the global batch, as long as every process holds equally many samples.

Means, variances and products of columns need sums over processes only, whose size does not grow with the batch or the
number of processes. A gather is for losses that compare samples with each other. Without an initialised process group
every function here is the plain one-process operation.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

PLAIN_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def full_precision(values: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def on_both_views(module: Callable[[Tensor], Tensor], inputs: Tensor, separate_batch_norm: bool) -> Tensor:
    """Applies `module` ([N, ...] -> [N, D]) to the views of `inputs` [B, V, ...]; returns [B, V, D].

    Args:
        separate_batch_norm: False: one call on all samples, faster, and batch norms see all views together.
            True: one call per view, so each view has its own batch statistics.
    """
    if separate_batch_norm:
        return torch.stack([module(view) for view in inputs.unbind(dim=1)], dim=1)
    return module(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])


def world_size() -> int:
    """Number of processes training together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among those training together; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _GatherBatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        gathered = local.new_empty(world_size() * local.shape[0], *local.shape[1:])
        dist.all_gather_into_tensor(gathered, local)
        return gathered

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        share = gradient.new_empty(gradient.shape[0] // world_size(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(share, gradient.contiguous())
        return share


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        total = local.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def gather_batch(local: Tensor) -> Tensor:
    """The batches [B, ...] of all processes in rank order, [world_size * B, ...], with gradients to every process."""
    return _GatherBatch.apply(local.contiguous()) if world_size() > 1 else local


def sum_over_processes(local: Tensor) -> Tensor:
    """The sum of what all processes hold, [...], with gradients to every process."""
    return _SumOverProcesses.apply(local) if world_size() > 1 else local


def batch_mean(local: Tensor) -> Tensor:
    """Mean over the global batch: this process's share [B, ...] -> [...]."""
    if world_size() == 1:
        return local.mean(dim=0)
    return sum_over_processes(local.sum(dim=0)) / (world_size() * len(local))


def batch_var_mean(local: Tensor, correction: int = 1) -> tuple[Tensor, Tensor]:
    """Variance and mean over the global batch, both [...], of this process's share [B, ...]; as `torch.var_mean`."""
    if local.device.type != "cpu" and world_size() == 1:
        variance, mean = torch.var_mean(local, dim=0, correction=correction)
        return variance, mean
    # On a CPU torch.var_mean over the first dimension is a loop, which takes ten times as long.
    mean = batch_mean(local)
    squares = sum_over_processes((local - mean).square().sum(dim=0))
    return squares / (world_size() * len(local) - correction), mean


def batch_std(local: Tensor, correction: int = 1) -> Tensor:
    """Standard deviation over the global batch, see `batch_var_mean`; for monitors, which take no gradient."""
    return local.std(dim=0, correction=correction) if world_size() == 1 else batch_var_mean(local, correction)[0].sqrt()


@torch.no_grad()
def normalised_std(embeddings: Tensor) -> Tensor:
    """How far embeddings [B, V, E] of length 1 spread over the global batch (Chen and He, SimSiam, 2021, figure 2).

    The biased standard deviation of each dimension of each view after normalising to length 1, mean over dimensions and
    views, times sqrt(E): 0 when all embeddings of a view point the same way, at most 1, near 1 when they are spread
    evenly over the sphere. For losses that see directions only, where the plain standard deviation says nothing.
    """
    directions = F.normalize(full_precision(embeddings), dim=-1)
    return batch_std(directions, correction=0).mean() * embeddings.shape[-1] ** 0.5


class SynchronisedBatchNorm(_BatchNorm):
    """Batch norm over the global batch, on any device (`torch.nn.SyncBatchNorm` refuses CPU tensors).

    Outputs, gradients and running statistics equal those of a one-process batch norm on the whole batch. With one
    process, or in eval mode, it is the ordinary batch norm. Inputs are [N, C] or [N, C, ...].

    `drop` and `act` run after the normalisation; they are identities unless the replaced layer had its own, as
    timm's `BatchNormAct2d` does.
    """

    def __init__(self, *args: Any, drop: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__(*args)
        self.drop = drop or nn.Identity()
        self.act = act or nn.Identity()

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm got an input of shape {tuple(input.shape)}: pass [N, C] or [N, C, ...]")

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(self._normalise(input)))

    def _normalise(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        # Like torch's kernels, half precision is normalised in float32 and handed back in its own type.
        with torch.autocast(input.device.type, enabled=False):
            x = full_precision(input)
            mean, variance, count = self._global_statistics(x)
            self._update_running_statistics(mean.detach(), variance.detach() * count / (count - 1))
            scale = torch.rsqrt(variance + self.eps)
            if self.affine:
                scale = scale * self.weight
            per_channel = (1, -1) + (1,) * (x.ndim - 2)
            normalised = (x - mean.view(per_channel)) * scale.view(per_channel)
            if self.affine:
                normalised = normalised + self.bias.view(per_channel)
        return normalised.to(input.dtype)

    def _global_statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean [C], biased variance [C] and element count [] of each channel over all processes."""
        not_channel = [dim for dim in range(x.ndim) if dim != 1]
        local_count = x.new_full((1,), x.numel() / x.shape[1])
        local_mean = x.mean(not_channel)
        local_variance = x.var(not_channel, correction=0)
        packed = gather_batch(torch.cat([local_count, local_mean, local_variance]).unsqueeze(0))
        counts = packed[:, :1].detach()
        means, variances = packed[:, 1:].chunk(2, dim=1)
        # Combining central moments instead of sums of squares avoids the cancellation of E[x^2] - E[x]^2.
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        return mean, variance, count

    def _update_running_statistics(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return  # made with track_running_stats=False
        self.num_batches_tracked.add_(1)
        step = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), step)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), step)


class _FusedBatchNorm(SynchronisedBatchNorm, nn.SyncBatchNorm):
    """The same by torch's fused layer."""

    def _normalise(self, input: Tensor) -> Tensor:
        return nn.SyncBatchNorm.forward(self, input)


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Replaces every batch norm inside `module` by one that uses the statistics of the global batch, in place.

    Parameters and buffers are shared with the replaced layers and `state_dict` keys stay the same, so this can be
    called before or after making the optimizer. Modules on CUDA get torch's fused layer, so move the module to its
    device first. Known batch norms are `torch.nn.BatchNorm1d/2d/3d` and timm's `BatchNormAct2d`; others raise a
    TypeError. Returns the module; a new one when it is a batch norm itself.
    """
    on_cuda = any(tensor.is_cuda for tensor in (*module.parameters(), *module.buffers()))
    return _convert(module, _FusedBatchNorm if on_cuda else SynchronisedBatchNorm)


def _convert(module: nn.Module, layer_class: type[SynchronisedBatchNorm]) -> nn.Module:
    if isinstance(module, (nn.SyncBatchNorm, SynchronisedBatchNorm)):
        return module
    if not isinstance(module, _BatchNorm):
        for name, child in module.named_children():
            module.register_module(name, _convert(child, layer_class))
        return module

    has_activation = hasattr(module, "drop") and hasattr(module, "act")  # timm's BatchNormAct2d
    if type(module) not in PLAIN_BATCH_NORMS and not has_activation:
        raise TypeError(
            f"cannot synchronise {type(module).__name__} because its forward pass is unknown: "
            "use torch.nn.BatchNorm1d/2d/3d or timm's BatchNormAct2d"
        )
    converted = layer_class(
        module.num_features,
        module.eps,
        module.momentum,
        module.affine,
        module.track_running_stats,
        drop=getattr(module, "drop", None),
        act=getattr(module, "act", None),
    )
    converted.weight, converted.bias = module.weight, module.bias
    converted.running_mean, converted.running_var = module.running_mean, module.running_var
    converted.num_batches_tracked = module.num_batches_tracked
    return converted.train(module.training)
