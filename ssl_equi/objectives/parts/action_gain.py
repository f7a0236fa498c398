"""Action gain: how much larger a prediction error is with the actions of other objects."""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ssl_equi.encoders.batch_norm import running_statistics_kept
from ssl_equi.objectives.parts.batch import full_precision, gather_batch, rank, sum_over_processes, world_size

SMALLEST_ERROR = 1e-12  # so that a perfect prediction has a finite gain


@torch.no_grad()
def action_gain(
    predict: Callable[[Tensor], Tensor],
    error: Callable[[Tensor], Tensor],
    actions: Tensor,
    prediction: Tensor,
    *modules: nn.Module,
) -> Tensor:
    """By which share the prediction error grows when every object is given the actions of another one: [].

        gain = error(predict(actions of other objects)) / error(predict(actions)) - 1

    0: the prediction doesn't use the actions. The other object is the one before it in the global batch, so the gain
    doesn't depend on the number of processes. Running statistics and random generators are left as they were.

    Args:
        predict: from actions [B, ..., A] to the predictions of this process's objects.
        error: their mean error [], of predictions in float32 or better and without autocast.
        actions: [B, ..., A] of this process.
        prediction: what `predict` made of them.
        modules: what `predict` calls that has batch norms or dropout.
    """
    exchanged = gather_batch(actions).roll(1, dims=0)[rank() * len(actions) :][: len(actions)]
    layers = [layer for module in modules for layer in module.modules()]
    drops = any(isinstance(layer, nn.Dropout) and layer.training and layer.p > 0 for layer in layers)

    def predicted(given: Tensor) -> Tensor:
        with ExitStack() as kept:
            if drops:
                kept.enter_context(torch.random.fork_rng([given.device] if given.is_cuda else []))
            for module in modules:
                kept.enter_context(running_statistics_kept(module))
            return predict(given)

    # What drops something is compared with itself under the same draws: both start from the generator as it is now.
    predictions = (predicted(actions) if drops else prediction, predicted(exchanged))
    with torch.autocast(actions.device.type, enabled=False):
        errors = torch.stack([error(full_precision(each)) for each in predictions])
    with_own, with_others = (sum_over_processes(errors) / world_size()).unbind()
    return (with_others - with_own) / with_own.clamp(min=SMALLEST_ERROR)
