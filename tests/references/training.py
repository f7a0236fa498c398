"""Training, as the papers state it: Adam, a learning rate that rises and falls, and targets that follow.

The other references hold one step to the formulas. Here step follows step, so that what one hands to the next is held
as well: weights, moments of the optimizer, the target network, rates and momenta. How weights start is not held.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Training:
    """AdamW (Loshchilov and Hutter, 2019), Adam where nothing decays, and targets that follow ever more slowly.

    Rate and momentum arrive at their ends in `last_step`, counted from 0: papers say no more than that they do.

    Attributes:
        first_rate: of step 0, from which the rate rises to its full value in step `warmup_steps`; None: it rises by
            equal parts, and is full in the last step of the warm-up.
        momentum: of the target at the first step; it rises to 1 (Grill et al., NeurIPS 2020).
    """

    last_step: int
    rate: float
    final_rate: float
    warmup_steps: int = 0
    first_rate: float | None = None
    weight_decay: float = 0.0
    momentum: float = 0.0

    def learning_rate(self, step: int) -> float:
        """A line up to the full rate, then half a cosine down."""
        if step < self.warmup_steps and self.first_rate is None:
            return self.rate * (step + 1) / self.warmup_steps
        if step < self.warmup_steps:
            return self.first_rate + (self.rate - self.first_rate) * step / self.warmup_steps
        done = (step - self.warmup_steps) / (self.last_step - self.warmup_steps)
        return self.final_rate + (self.rate - self.final_rate) * (1 + math.cos(math.pi * done)) / 2

    def target_momentum(self, step: int) -> float:
        """Half a cosine up to 1."""
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * step / self.last_step)) / 2

    def losses(
        self,
        loss_of: Callable[[Batch], Tensor],
        weights: Sequence[Tensor],
        batches: Iterable[Batch],
        followed: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> Iterator[float]:
        """Trains on batches; the loss of each step, once the step is done.

        Args:
            loss_of: the loss of a batch, which depends on the weights.
            weights: leaf tensors, changed in place.
            followed: weights of a target, and those that they follow.
        """
        moments = [(torch.zeros_like(weight), torch.zeros_like(weight)) for weight in weights]
        for step, batch in enumerate(batches):
            loss = loss_of(batch)
            gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
            with torch.no_grad():
                for weight, gradient, (first, second) in zip(weights, gradients, moments, strict=True):
                    first.mul_(0.9).add_(0.1 * gradient)
                    second.mul_(0.999).add_(0.001 * gradient**2)
                    if weight.ndim > 1:  # biases and norms don't decay
                        weight.mul_(1 - self.learning_rate(step) * self.weight_decay)
                    root = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                    weight.sub_(self.learning_rate(step) * first / (1 - 0.9 ** (step + 1)) / root)
                momentum = self.target_momentum(step)
                for target, leader in followed:
                    target.mul_(momentum).add_((1 - momentum) * leader)
            yield loss.item()
