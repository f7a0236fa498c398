"""Shift-equivariant vision transformers under fixed names, registered with timm; see `shift_equivariant_vit`.

Multiplications are of one image of 224 pixels; neither they nor the parameters count a classifier. All arguments of the
classes can be passed on.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from ssl_equi.encoders.shift_equivariant_vit import ShiftEquivariantTwins, ShiftEquivariantVisionTransformer


def _cfg(first_conv: str) -> dict[str, Any]:
    return {
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "num_classes": 0,
        "first_conv": first_conv,
        "classifier": "head",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs(
    {
        "shift_equivariant_vit_tiny_patch16_224.untrained": _cfg("patch_embed.proj"),
        "shift_equivariant_vit_small_patch16_224.untrained": _cfg("patch_embed.proj"),
        "shift_equivariant_vit_base_patch16_224.untrained": _cfg("patch_embed.proj"),
        "shift_equivariant_twins_small.untrained": _cfg("patch_embeds.0.proj"),
    }
)


def _vit(
    name: str, pretrained: bool, width: int, num_heads: int, arguments: dict[str, Any]
) -> ShiftEquivariantVisionTransformer:
    sizes = {"patch_size": 16, "embed_dim": width, "depth": 12, "num_heads": num_heads}
    return build_model_with_cfg(
        ShiftEquivariantVisionTransformer,
        name,
        pretrained,
        feature_cfg={"feature_cls": "getter", "out_indices": 3},
        **(sizes | arguments),
    )


@register_model
def shift_equivariant_vit_tiny_patch16_224(
    pretrained: bool = False, **kwargs: Any
) -> ShiftEquivariantVisionTransformer:
    """192 features: 5.5 M parameters, 1.2 G multiplications."""
    return _vit("shift_equivariant_vit_tiny_patch16_224", pretrained, 192, 3, kwargs)


@register_model
def shift_equivariant_vit_small_patch16_224(
    pretrained: bool = False, **kwargs: Any
) -> ShiftEquivariantVisionTransformer:
    """384 features: 21.6 M parameters, 4.6 G multiplications."""
    return _vit("shift_equivariant_vit_small_patch16_224", pretrained, 384, 6, kwargs)


@register_model
def shift_equivariant_vit_base_patch16_224(
    pretrained: bool = False, **kwargs: Any
) -> ShiftEquivariantVisionTransformer:
    """768 features: 85.7 M parameters, 17.5 G multiplications."""
    return _vit("shift_equivariant_vit_base_patch16_224", pretrained, 768, 12, kwargs)


@register_model
def shift_equivariant_twins_small(pretrained: bool = False, **kwargs: Any) -> ShiftEquivariantTwins:
    """512 features: 23.5 M parameters, 2.9 G multiplications; images of 64 pixels need other window_sizes."""
    return build_model_with_cfg(
        ShiftEquivariantTwins,
        "shift_equivariant_twins_small",
        pretrained,
        feature_cfg={"feature_cls": "getter", "out_indices": (0, 1, 2, 3)},
        **kwargs,
    )
