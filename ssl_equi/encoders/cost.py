"""What an encoder costs: its parameters, and the multiplications that one image takes.

A multiplication comes with an addition (together a MAC), so that there are half as many as floating-point operations.
Matrix products and convolutions are counted by their shapes. What is done value by value (norms, activations, softmax,
the sums in stages of octic activations) is not counted.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ssl_equi.encoders.catalogue import create_encoder


@dataclass(frozen=True)
class EncoderCost:
    """Cost of an encoder, and of one image in it."""

    parameters: int
    """Trainable or not; buffers are none."""
    linear: int
    """Multiplications of matrix products inside layers that contain no other layer: features times weights."""
    attention: int
    """Multiplications of all other matrix products: features times features."""
    convolution: int
    """Multiplications of convolutions, that of patches included."""

    @property
    def multiplications(self) -> int:
        """All of them."""
        return self.linear + self.attention + self.convolution


def encoder_cost(encoder: nn.Module, image_size: int) -> EncoderCost:
    """Counts in one forward pass in eval mode.

    Args:
        encoder: maps images [1, 3, S, S] to anything; it must not be compiled.
        image_size: S in pixels.
    """
    was_training = encoder.training
    device = next((parameter.device for parameter in encoder.parameters()), None)
    images = torch.zeros(1, 3, image_size, image_size, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.eval()(images)
    encoder.train(was_training)

    counts = {module: _multiplications(operators) for module, operators in counter.get_flop_counts().items()}
    products, convolution = counts.get("Global", (0, 0))
    linear = sum(counts[layer][0] for layer in _innermost_layers(encoder) if layer in counts)
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    return EncoderCost(parameters, linear, products - linear, convolution)


def cost_by_name(name: str, image_size: int, device: str = "meta", **arguments: Any) -> EncoderCost:
    """Cost of the encoder of a timm name.

    Args:
        name: see `create_encoder`.
        image_size: S in pixels.
        device: on "meta" even the largest encoders take no memory. Those that leave autocast for some layers (capsules,
            canonicalization) can't run there, but on "cpu".
        arguments: see `create_encoder`.
    """
    with torch.device(device):
        return encoder_cost(create_encoder(name, image_size, **arguments), image_size)


def _multiplications(operators: dict[Any, int]) -> tuple[int, int]:
    """Of matrix products and of convolutions, from the floating-point operations of each operator."""
    convolution = sum(operations for operator, operations in operators.items() if "conv" in str(operator))
    return (sum(operators.values()) - convolution) // 2, convolution // 2


def _innermost_layers(encoder: nn.Module) -> list[str]:
    """Names of layers that contain no other, as the counter has them."""
    root = type(encoder).__name__
    inner = [name for name, module in encoder.named_modules() if next(module.children(), None) is None]
    return [f"{root}.{name}" if name else root for name in inner]
