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

    products, convolutions = {}, {}  # floating-point operations of each module, by the counter's name for it
    for module, operators in counter.get_flop_counts().items():
        convolutions[module] = sum(count for operator, count in operators.items() if "conv" in str(operator))
        products[module] = sum(operators.values()) - convolutions[module]
    root = type(encoder).__name__
    innermost = [name for name, module in encoder.named_modules() if next(module.children(), None) is None]
    linear = sum(products.get(f"{root}.{name}" if name else root, 0) for name in innermost) // 2
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    attention = products.get("Global", 0) // 2 - linear
    return EncoderCost(parameters, linear, attention, convolutions.get("Global", 0) // 2)


def cost_by_name(name: str, image_size: int, device: str = "meta", **arguments: Any) -> EncoderCost:
    """Cost of the encoder that `create_encoder` makes of these arguments.

    On the device "meta" even the largest encoders take no memory. Those that leave autocast for some layers (capsules,
    canonicalization) can't run there, but on "cpu".
    """
    with torch.device(device):
        return encoder_cost(create_encoder(name, image_size, **arguments), image_size)
