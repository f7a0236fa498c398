"""Exact symmetry for any encoder, from outside: averaging over the group, or learned canonicalisation.

timm makes the wrapped encoders as "group_averaged" and "canonicalized", with the name of a backbone as an argument.
"""

from typing import Any, Literal

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from ssl_equi.encoders.arguments import side_for_backbone
from ssl_equi.encoders.canonicalization import CanonicalFeatures, Canonicalized
from ssl_equi.encoders.create import create_encoder
from ssl_equi.encoders.group_averaging import GroupAveraged
from ssl_equi.encoders.group_convolutions import GroupName
from ssl_equi.encoders.regular_features import Features

__all__ = ["Canonicalized", "GroupAveraged", "wrap"]

Kind = Literal["averaging", "canonicalization"]


def wrap(encoder: nn.Module, kind: Kind, group: GroupName = "c4", **arguments: Any) -> GroupAveraged | Canonicalized:
    """Makes an encoder exactly invariant, or equivariant, under quarter turns (C4), or also mirrorings (D4).

    Args:
        encoder: maps square images to features [N, D], with D as its `num_features`.
        kind: "averaging" shows it all |G| copies of an image, see `GroupAveraged`. "canonicalization" learns which copy
            to show it, see `Canonicalized`.
        group: "c4" or "d4".
        arguments: of that class, such as `features`.

    Returns:
        The wrapped encoder, with `num_features`, `parts` and `act_on_features`.

    Raises:
        ValueError: there is no such kind or group, or an argument is out of range.
    """
    if kind == "averaging":
        return GroupAveraged(encoder, group, **arguments)
    if kind == "canonicalization":
        return Canonicalized(encoder, group, **arguments)
    raise ValueError(f"kind is {kind!r}: choose 'averaging' or 'canonicalization'")


def _make_group_averaged(group: GroupName = "c4", features: Features = "invariant", **backbone: Any) -> GroupAveraged:
    """What timm calls."""
    return GroupAveraged(_make_backbone(**backbone), group, features)


def _make_canonicalized(
    group: GroupName = "c4", features: CanonicalFeatures = "invariant", **backbone: Any
) -> Canonicalized:
    """What timm calls."""
    return Canonicalized(_make_backbone(**backbone), group, features)


def _make_backbone(
    backbone: str, img_size: int | tuple[int, int] = 64, num_classes: int = 0, in_chans: int = 3
) -> nn.Module:
    return create_encoder(backbone, side_for_backbone(img_size, num_classes, in_chans))


_CFG = {
    "input_size": (3, 64, 64),
    "fixed_input_size": True,
    "num_classes": 0,
    "first_conv": None,
    "classifier": None,
    "license": "apache-2.0",
}
default_cfgs = generate_default_cfgs({"group_averaged.untrained": _CFG, "canonicalized.untrained": _CFG})


@register_model
def group_averaged(pretrained: bool = False, backbone: str = "strided_cnn_tiny", **kwargs: Any) -> GroupAveraged:
    """The mean over quarter turns of the features of any backbone, a timm name."""
    return build_model_with_cfg(_make_group_averaged, "group_averaged", pretrained, backbone=backbone, **kwargs)


@register_model
def canonicalized(pretrained: bool = False, backbone: str = "strided_cnn_tiny", **kwargs: Any) -> Canonicalized:
    """The features of any backbone, a timm name, of images that a small network has turned upright."""
    return build_model_with_cfg(_make_canonicalized, "canonicalized", pretrained, backbone=backbone, **kwargs)
