"""Vision transformers as DINO and DINOv2 name them: which one the shapes are of, and timm's names for its tensors."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

POSITIONS, PATCHES, CLASS, REGISTERS = "pos_embed", "patch_embed.proj.weight", "cls_token", "register_tokens"
# (width, blocks) -> size in timm's names
SIZES = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large"}
SIZES_WITH_LAYER_SCALE = {(384, 12): "small", (768, 12): "base", (1024, 24): "large", (1536, 40): "giant"}
RENAMED = (
    (re.compile(r"^blocks\.\d+\.(\d+\.)"), r"blocks.\1"),  # DINOv2's training code keeps blocks in chunks
    (re.compile(r"\.mlp\.w12\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."),
    (re.compile(r"^register_tokens$"), "reg_token"),
)


@dataclass(frozen=True)
class VisionTransformerSizes:
    """What the shapes tell of a vision transformer, and which one of timm has them."""

    architecture: str
    arguments: dict[str, int | float | bool | str]
    """Of `timm.create_model`."""


def is_vision_transformer(tensors: Mapping[str, Tensor]) -> bool:
    return CLASS in tensors and PATCHES in tensors and POSITIONS in tensors


def timm_name(name: str) -> str:
    """A tensor's name in timm's vision transformer."""
    for pattern, replacement in RENAMED:
        name = pattern.sub(replacement, name)
    return name


def native_image_size(tensors: Mapping[str, Tensor]) -> int | None:
    """Side in pixels of the images that the position embedding is for: that of a class token and a square grid.

    None if it is for something else.
    """
    cells = tensors[POSITIONS].shape[1] - 1
    side = math.isqrt(cells)
    return side * tensors[PATCHES].shape[-1] if side * side == cells else None


def sizes_of(tensors: Mapping[str, Tensor]) -> VisionTransformerSizes | None:
    """timm's vision transformer with tensors of these shapes, or None; heads are 64 wide, as in DINO and DINOv2."""
    width, patch_size = tensors[PATCHES].shape[0], tensors[PATCHES].shape[-1]
    depth = len({timm_name(name).split(".")[1] for name in tensors if name.startswith("blocks.")})
    layer_scale = any(name.endswith("ls1.gamma") for name in tensors)
    size = (SIZES_WITH_LAYER_SCALE if layer_scale else SIZES).get((width, depth))
    if size is None:
        return None
    arguments: dict[str, int | float | bool | str] = {"patch_size": patch_size}
    if not layer_scale:
        architecture = f"vit_{size}_patch16_224"
    elif REGISTERS in tensors:
        architecture = f"vit_{size}_patch14_reg4_dinov2"
        arguments["reg_tokens"] = tensors[REGISTERS].shape[1]
    else:
        architecture = f"vit_{size}_patch14_dinov2"
    return VisionTransformerSizes(architecture, arguments)


def fit_tokens(tensors: Mapping[str, Tensor], image_size: int) -> dict[str, Tensor]:
    """The tensors with positions for images of this size, and in timm's split of class token and positions.

    With registers, timm adds the class token's position to the class token itself: the same sum. For other image sizes
    than its own, the grid of positions is resampled as timm does it, bicubic and antialiased. Positions for anything
    else than a class token and a square grid stay as they are.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed  # timm takes seconds to import: --help needs none

    if native_image_size(tensors) is None:
        return dict(tensors)
    fitted = dict(tensors)
    grid = image_size // tensors[PATCHES].shape[-1]
    fitted[POSITIONS] = resample_abs_pos_embed(tensors[POSITIONS], [grid, grid], num_prefix_tokens=1)
    if REGISTERS in tensors:
        fitted[CLASS] = tensors[CLASS] + tensors[POSITIONS][:, :1]
        fitted[POSITIONS] = fitted[POSITIONS][:, 1:]
    return fitted
