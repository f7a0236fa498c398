"""Octic vision transformers under fixed names, registered with timm; see `octic_vit` for the three kinds.

Multiplications are of one image of 224 pixels; neither they nor the parameters count a classifier. Standard vision
transformers of the sizes small, base and large have 21.7 M, 85.8 M and 303 M parameters and take 4.6 G, 17.6 G and
61.6 G multiplications. All arguments of `OcticVisionTransformer` can be passed on.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor

from ssl_equi.encoders.octic_arguments import Kind
from ssl_equi.encoders.octic_layers import resized_table
from ssl_equi.encoders.octic_vit import OcticVisionTransformer

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
"""Those of the standard vision transformers."""
PREFIXES: dict[str, Kind] = {"octic": "octic", "hybrid_octic": "hybrid", "invariant_octic": "invariant"}

SHARED_CFG = {
    "input_size": (3, 224, 224),
    "fixed_input_size": True,
    "num_classes": 0,
    "first_conv": "patch_embed",
    "classifier": "head",
    "license": "apache-2.0",
}

default_cfgs = generate_default_cfgs(
    {f"{prefix}_vit_{size}_patch16_224.untrained": SHARED_CFG for prefix in PREFIXES for size in SIZES}
)


def fit_positions(state: dict[str, Tensor], encoder: OcticVisionTransformer) -> dict[str, Tensor]:
    """The weights with their table of positions resized to the encoder's, for weights of another image size.

    On images of its new size, the encoder then computes what the old one computed on them.
    """
    if "pos_embed" not in state:
        return state
    return state | {"pos_embed": resized_table(state["pos_embed"], encoder.patch_embed.grid_size[0])}


def _make(name: str, pretrained: bool, arguments: dict[str, Any]) -> OcticVisionTransformer:
    prefix, _, rest = name.partition("_vit_")
    sizes = {"kind": PREFIXES[prefix], "patch_size": 16, **SIZES[rest.split("_")[0]]}
    return build_model_with_cfg(
        OcticVisionTransformer,
        name,
        pretrained,
        pretrained_filter_fn=fit_positions,
        feature_cfg={"feature_cls": "getter", "out_indices": 3},
        **(sizes | arguments),
    )


@register_model
def octic_vit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """All blocks commute with the group: 0.7 M parameters, 0.4 G multiplications."""
    return _make("octic_vit_tiny_patch16_224", pretrained, kwargs)


@register_model
def octic_vit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """All blocks commute with the group: 2.7 M parameters, 1.2 G multiplications."""
    return _make("octic_vit_small_patch16_224", pretrained, kwargs)


@register_model
def octic_vit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """All blocks commute with the group: 10.7 M parameters, 4.0 G multiplications."""
    return _make("octic_vit_base_patch16_224", pretrained, kwargs)


@register_model
def octic_vit_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """All blocks commute with the group: 37.9 M parameters, 13.2 G multiplications."""
    return _make("octic_vit_large_patch16_224", pretrained, kwargs)


@register_model
def octic_vit_huge_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """All blocks commute with the group: 78.9 M parameters, 26.6 G multiplications."""
    return _make("octic_vit_huge_patch16_224", pretrained, kwargs)


@register_model
def hybrid_octic_vit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes with the group: 3.0 M parameters, 0.8 G multiplications."""
    return _make("hybrid_octic_vit_tiny_patch16_224", pretrained, kwargs)


@register_model
def hybrid_octic_vit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes with the group: 12.0 M parameters, 2.9 G multiplications."""
    return _make("hybrid_octic_vit_small_patch16_224", pretrained, kwargs)


@register_model
def hybrid_octic_vit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes with the group: 47.9 M parameters, 10.8 G multiplications."""
    return _make("hybrid_octic_vit_base_patch16_224", pretrained, kwargs)


@register_model
def hybrid_octic_vit_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes with the group: 170 M parameters, 37.4 G multiplications."""
    return _make("hybrid_octic_vit_large_patch16_224", pretrained, kwargs)


@register_model
def hybrid_octic_vit_huge_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes with the group: 354 M parameters, 77.0 G multiplications."""
    return _make("hybrid_octic_vit_huge_patch16_224", pretrained, kwargs)


@register_model
def invariant_octic_vit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes, the rest sees invariants: 3.1 M parameters, 0.8 G multiplications."""
    return _make("invariant_octic_vit_tiny_patch16_224", pretrained, kwargs)


@register_model
def invariant_octic_vit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes, the rest sees invariants: 12.1 M parameters, 2.9 G multiplications."""
    return _make("invariant_octic_vit_small_patch16_224", pretrained, kwargs)


@register_model
def invariant_octic_vit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes, the rest sees invariants: 48.4 M parameters, 10.9 G multiplications."""
    return _make("invariant_octic_vit_base_patch16_224", pretrained, kwargs)


@register_model
def invariant_octic_vit_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes, the rest sees invariants: 171 M parameters, 37.5 G multiplications."""
    return _make("invariant_octic_vit_large_patch16_224", pretrained, kwargs)


@register_model
def invariant_octic_vit_huge_patch16_224(pretrained: bool = False, **kwargs: Any) -> OcticVisionTransformer:
    """The first half of the blocks commutes, the rest sees invariants: 356 M parameters, 77.2 G multiplications."""
    return _make("invariant_octic_vit_huge_patch16_224", pretrained, kwargs)
