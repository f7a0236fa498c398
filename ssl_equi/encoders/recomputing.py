"""Activation checkpointing: activations that are computed again in the backward pass rather than kept."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ssl_equi.encoders.batch_norm import running_statistics_kept
from ssl_equi.errors import EncoderError


def checkpoint_activations(encoder: nn.Module) -> None:
    """Lets an encoder keep the inputs of its blocks or stages only, for about a third more computation.

    Losses and gradients stay the same. Batch norms of timm's encoders would record the same images twice: run the
    backward pass within `running_statistics_kept(encoder)`, as `Run.backward` does.

    Raises:
        EncoderError: the encoder can't do that.
    """
    try:
        encoder.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AssertionError, AttributeError, ValueError) as error:
        raise EncoderError(
            f"--checkpoint-activations is given and the encoder {type(encoder).__name__} can't compute its activations "
            "again: leave it out, or choose another encoder, such as a vision transformer or a ResNet"
        ) from error


def recomputed(block: nn.Module, inputs: Any) -> Any:
    """`block(inputs)` that keeps nothing but its inputs; batch norms record them once."""
    if torch.compiler.is_compiling():  # which takes no contexts, and what it compiles records once anyway
        return checkpoint(block, inputs, use_reentrant=False)
    # The contexts in which the block is computed, and computed again.
    return checkpoint(
        block, inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), running_statistics_kept(block))
    )
