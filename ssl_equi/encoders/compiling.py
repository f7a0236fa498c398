"""torch.compile for encoders, in the form that ends within a coffee break."""

from torch import nn


def compile_encoder(encoder: nn.Module) -> None:
    """Compiles an encoder in place, so that the names of its parameters stay the same.

    Vision transformers are compiled block by block: blocks that are alike share their code, which takes a minute where
    the whole model takes half an hour, and runs as fast.
    """
    blocks = getattr(encoder, "blocks", None)
    if hasattr(encoder, "patch_embed") and isinstance(blocks, (nn.ModuleList, nn.Sequential)):
        for block in blocks:
            block.compile()
    else:
        encoder.compile()
