"""torch.compile for encoders and what is trained with them, in the form that ends within a coffee break."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from ssl_equi.errors import EncoderError


def compile_encoder(encoder: nn.Module) -> None:
    """Compiles an encoder in place, so that the names of its parameters stay the same.

    Vision transformers are compiled block by block: blocks that are alike share their code, which takes a minute where
    the whole model takes half an hour, and runs as fast.
    """
    for network in transformer_blocks(encoder) or [encoder]:
        network.compile()


def compile_networks(objective: nn.Module) -> None:
    """Compiles in place every network of an objective: encoders and their momentum targets, projectors, predictors.

    What the objective itself computes between them, its loss among it, stays eager.
    """
    for network in _networks(objective):
        compile_itself: Callable[[], None] | None = getattr(network, "compile_parts", None)
        if compile_itself is not None:
            compile_itself()
        else:
            compile_encoder(network)


def _networks(module: nn.Module) -> Iterator[nn.Module]:
    """The children that have parameters; those of an objective that another one extends, and of containers, singly."""
    for name, child in module.named_children():
        if name == "base" or isinstance(child, nn.ModuleDict | nn.ModuleList):
            yield from _networks(child)
        elif next(child.parameters(), None) is not None:
            yield child


def try_compiler(device: torch.device) -> None:
    """Compiles and runs the smallest function on the device, since an encoder is compiled at the first step only.

    Raises:
        EncoderError: that doesn't work, because no C++ compiler is installed, say.
    """
    smallest = nn.ReLU()
    smallest.compile()
    try:
        smallest(torch.ones(8, device=device))
    except Exception as error:  # of many types, by the compiler's stage
        inner = getattr(error, "inner_exception", error)
        reason = str(inner).strip().partition("\n")[0].rstrip(":.") or type(inner).__name__
        raise EncoderError(
            f"--compile needs a working compiler, and torch.compile fails ({reason}): install a C++ compiler such as "
            "g++ (CXX names another one), or leave the option out"
        ) from error


def transformer_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of every vision transformer in a module, in order; none of other encoders.

    A transformer has `patch_embed` and the list `blocks`, as timm's and ours; those of hierarchical ones (Swin, Twins)
    differ from stage to stage and don't count.
    """
    found: list[nn.Module] = []
    for part in module.modules():
        blocks = getattr(part, "blocks", None)
        if hasattr(part, "patch_embed") and isinstance(blocks, (nn.ModuleList, nn.Sequential)):
            found += blocks
    return found
