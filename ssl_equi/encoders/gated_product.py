"""Many linear maps of one input, each with gates of its own on it, without the gated inputs of all of them in memory.

This is what a layer of capsules needs: output capsule j takes a linear map of all input poses, and how much each input
counts (the gate) differs from sample to sample and from j to j. The sum over input capsules of gated votes is one
matrix product an output capsule, so no vote of a single input capsule is ever formed. Autograd would keep the gated
inputs of all output capsules until the backward pass; here those of one are made at a time, and made again there.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def gated_product(inputs: Tensor, gates: Tensor, weight: Tensor) -> Tensor:
    """out[j, n, c, v] = sum over q and i of weight[j, v, q, i] * gates[j, n, i] * inputs[n, c, q, i].

    Args:
        inputs: [N, C, Q, I], contiguous.
        gates: [J, N, I].
        weight: [J, V, Q, I].

    Returns:
        [J, N, C, V]; it can be differentiated once.
    """
    return _GatedProduct.apply(inputs, gates, weight)


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(inputs: Tensor, gates: Tensor, weight: Tensor) -> Tensor:
        samples, columns = inputs.shape[:2]
        products = [
            (inputs * gates_j[:, None, None]).view(samples * columns, -1) @ weight_j.flatten(1).T
            for gates_j, weight_j in zip(gates, weight, strict=True)
        ]
        return torch.stack(products).unflatten(1, (samples, columns))

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
        rows = gradient.shape[1]
        for j in range(weight.shape[0]):
            gates_j = gates[j, :, None, None]
            weight_gradient[j] = (gradient[j].T @ (inputs * gates_j).view(rows, -1)).view_as(weight[j])
            gated_gradient = (gradient[j] @ weight[j].flatten(1)).view_as(inputs)
            gates_gradient[j] = (gated_gradient * inputs).sum(dim=(1, 2))
            inputs_gradient.addcmul_(gated_gradient, gates_j)
        return inputs_gradient, gates_gradient, weight_gradient
