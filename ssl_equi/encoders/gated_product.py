"""Many linear maps of one input, each with gates of its own on it, without the gated inputs of all of them in memory.

This is what a layer of capsules needs: output capsule j takes a linear map of all input poses, and how much each input
counts (the gate) differs from sample to sample and from j to j. The sum over input capsules of gated votes is one
matrix product an output capsule, so no vote of a single input capsule is ever formed. Autograd would keep the gated
inputs of all output capsules until the backward pass; here those of a few are made at a time, and made again there.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

OUTPUTS_AT_ONCE = 2  # output capsules whose gated inputs are in memory together


def gated_product(inputs: Tensor, gates: Tensor, weight: Tensor) -> Tensor:
    """out[j, n, c, v] = sum over k, q, x of weight[j, v, k, q, x] * gates[j, n, k, x] * inputs[n, c, k, q, x].

    Args:
        inputs: [N, C, K, Q, X].
        gates: [J, N, K, X].
        weight: [J, V, K, Q, X].

    Returns:
        [J, N, C, V]; it can be differentiated once.
    """
    return _GatedProduct.apply(inputs, gates, weight)


def _apply_gates(inputs: Tensor, gates: Tensor) -> Tensor:
    """The gated inputs of some outputs, [j, N, C, K, Q, X]."""
    return inputs * gates[:, :, None, :, None, :]


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(inputs: Tensor, gates: Tensor, weight: Tensor) -> Tensor:
        samples, columns = inputs.shape[:2]
        outputs, values = weight.shape[:2]
        result = inputs.new_empty(outputs, samples * columns, values)
        for start in range(0, outputs, OUTPUTS_AT_ONCE):
            part = slice(start, start + OUTPUTS_AT_ONCE)
            gated = _apply_gates(inputs, gates[part]).flatten(3).flatten(1, 2)
            result[part] = torch.bmm(gated, weight[part].flatten(2).transpose(1, 2))
        return result.unflatten(1, (samples, columns))

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs, gates, weight = ctx.saved_tensors
        inputs_gradient = torch.zeros_like(inputs)
        gates_gradient, weight_gradient = torch.empty_like(gates), torch.empty_like(weight)
        gradient = gradient.flatten(1, 2)
        for start in range(0, len(weight), OUTPUTS_AT_ONCE):
            part = slice(start, start + OUTPUTS_AT_ONCE)
            gated = _apply_gates(inputs, gates[part]).flatten(3).flatten(1, 2)
            weight_gradient[part] = torch.bmm(gradient[part].transpose(1, 2), gated).view_as(weight[part])
            del gated
            gated_gradient = torch.bmm(gradient[part], weight[part].flatten(2)).view(-1, *inputs.shape)
            gates_gradient[part] = (gated_gradient * inputs).sum(dim=(2, 4))
            inputs_gradient += _apply_gates(gated_gradient, gates[part]).sum(dim=0)
        return inputs_gradient, gates_gradient, weight_gradient
