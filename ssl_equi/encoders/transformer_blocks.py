"""The blocks of vision transformers: what is compiled, or shared out among processes, piece by piece."""

from torch import nn


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
