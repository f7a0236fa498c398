"""Exact symmetry for any encoder, from outside: averaging over the group, or learned canonicalisation.

timm makes the wrapped encoders as "group_averaged" and "canonicalized", with the name of a backbone as an argument.

Averaging is frame averaging (Puny et al., "Frame Averaging for Invariant and Equivariant Network Design", ICLR 2022)
with the whole group as the frame: F[h] = f(h^-1 x), so that F of g x is F moved by g, and the mean over h is invariant.
Quarter turns and mirrorings only move pixels, so that holds to rounding errors, at |G| times the cost.

Canonicalisation (Kaba et al., "Equivariance with Learned Canonicalization Functions", ICML 2023) learns to put every
image upright first. A small group-equivariant network gives each element of the group a score, s_gx[h] = s_x[g^-1 h].
The element h* with the highest score says how the image stands, and the encoder sees h*^-1 x, which is the same for all
g x. It costs one pass of the encoder, where averaging costs |G|.

Where two elements have equal scores, the one with the lower number is taken. If the image itself is symmetric, both
give the same canonical image, and nothing is lost. Otherwise the features jump there, and rounding may decide: scores
that differ by less than rounding errors (about 1e-6 of their size in float32) are the one case in which f(g x) can
differ from f(x).
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ssl_equi.encoders.strided_cnn  # noqa: F401  (the backbone by default, registered with timm)
from ssl_equi.encoders.checks import check_square_images
from ssl_equi.encoders.square.convolutions import (
    GroupBatchNorm,
    GroupConvolution,
    GroupName,
    LiftingConvolution,
    act_on_regular_stack,
    check_element,
    group_size,
    square_group,
)
from ssl_equi.encoders.square.features import Features, RegularFeatures
from ssl_equi.encoders.square.symmetries import act_on_image, inverse
from ssl_equi.encoders.symmetric import Symmetric
from ssl_equi.encoders.timm_interface import (
    TimmEncoder,
    build_backbone,
    register_encoders,
    untrained_cfg,
)

__all__ = ["Canonicalized", "GroupAveraged", "wrap"]

Kind = Literal["averaging", "canonicalization"]
CanonicalFeatures = Literal["invariant", "with_element"]
SCORED_SIDE = 32  # side in pixels of what the scorer sees


class WrappedEncoder(TimmEncoder, Symmetric):
    """What timm expects of an encoder, handed on to the one inside."""

    # The encoder inside makes vectors and need not have maps, so a wrapped one has no `forward_features`.

    def __init__(self, encoder: nn.Module, group: GroupName) -> None:
        super().__init__()
        width = getattr(encoder, "num_features", None)
        if not isinstance(width, int) or width < 1:
            raise ValueError(
                f"num_features of {type(encoder).__name__} is {width}: make the encoder with create_encoder, "
                "or set the width of its features"
            )
        self.encoder, self.width = encoder, width
        self.group, self.symmetries = group, square_group(group)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As of the wrapped encoder; raises ValueError if that can't do it."""
        setter = getattr(self.encoder, "set_grad_checkpointing", None)
        if callable(setter):
            setter(enable)
        elif enable:
            raise ValueError(f"{type(self.encoder).__name__} has no gradient checkpointing: choose another backbone")

    def no_weight_decay(self) -> set[str]:
        names = getattr(self.encoder, "no_weight_decay", None)
        return {f"encoder.{name}" for name in names()} if callable(names) else set()


class GroupAveraged(WrappedEncoder):
    """Square images [N, 3, S, S] to features [N, num_features] of an encoder that sees all |G| copies of each.

    The symmetry holds in training mode too, unless the encoder has dropout. Features are the mean over the copies
    ("invariant", [N, D]), those of each copy ("regular", [N, |G| * D]), or first the mean, then the copies ("both").
    """

    def __init__(self, encoder: nn.Module, group: GroupName = "c4", features: Features = "invariant") -> None:
        super().__init__(encoder, group)
        self.head = RegularFeatures(group, self.width, features)
        self.parts, self.num_features = self.head.parts, self.head.num_features

    def forward(self, images: Tensor) -> Tensor:
        # All copies in one batch: batch norms then see the same values, whichever way the images stand.
        copies = undone_copies(self.group, images).flatten(0, 1)
        stack = self.encoder(copies).unflatten(0, (group_size(self.group), -1))
        return self.head(stack.transpose(0, 1).flatten(1))

    def act_on_features(self, element: int, features: Tensor) -> Tensor:
        return self.head.act(element, features)


def undone_copies(group: GroupName, images: Tensor) -> Tensor:
    """h^-1 x for every element h: [N, 3, S, S] to [|G|, N, 3, S, S]."""
    check_square_images(images, None)
    return torch.stack([act_on_image(inverse(h), images) for h in range(group_size(group))])


class GroupScorer(nn.Module):
    """Square images [N, in_chans, S, S] of any size to one score for each element, [N, |G|].

    Scores of g x are those of x, moved by g. Every layer has `fields` of |G| channels each.
    """

    def __init__(self, group: GroupName, fields: int = 8, in_chans: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(SCORED_SIDE),  # whose cells lie symmetrically whatever S is
            LiftingConvolution(group, in_chans, fields, 4, stride=2, padding=1),
            GroupBatchNorm(group, fields),
            nn.ReLU(inplace=True),
            GroupConvolution(group, fields, fields, 4, stride=2, padding=1),
            GroupBatchNorm(group, fields),
            nn.ReLU(inplace=True),
            GroupConvolution(group, fields, fields, 3, padding=1),
            GroupBatchNorm(group, fields),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            GroupConvolution(group, fields, 1, 1),
            nn.Flatten(),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Canonicalized(WrappedEncoder):
    """Square images [N, 3, S, S] to features [N, num_features] of an encoder that sees them put upright.

    Args:
        encoder: maps images to features [N, D], with D as its `num_features`.
        features: "invariant": of the canonical image, [N, D]. "with_element": those, and after them a column for each
            element, which is 1 for h* and 0 for the others, [N, D + |G|]; the columns change places with the group.
        scorer: maps images to scores [N, |G|] that the group moves; a `GroupScorer` unless given.
    """

    def __init__(
        self,
        encoder: nn.Module,
        group: GroupName = "c4",
        features: CanonicalFeatures = "invariant",
        scorer: nn.Module | None = None,
    ) -> None:
        super().__init__(encoder, group)
        if features not in get_args(CanonicalFeatures):
            raise ValueError(f"features is {features!r}: choose 'invariant' or 'with_element'")
        self.size, self.with_element = group_size(group), features == "with_element"
        self.scorer = GroupScorer(group) if scorer is None else scorer
        self.num_features = self.width + (self.size if self.with_element else 0)
        self.parts = {"all": slice(0, self.num_features), "inv": slice(0, self.width)}
        if self.with_element:
            self.parts["equi"] = slice(self.width, self.num_features)

    def scores(self, images: Tensor) -> Tensor:
        """One score for each element, [N, |G|]."""
        # In the precision of its weights: under autocast, rounding would decide between elements more often.
        dtype = next((parameter.dtype for parameter in self.scorer.parameters()), images.dtype)
        with torch.autocast(images.device.type, enabled=False):
            scores = self.scorer(images.to(dtype))
        if scores.shape != (images.shape[0], self.size):
            raise ValueError(
                f"scores have shape {tuple(scores.shape)}: a scorer for {self.group} gives [{len(images)}, {self.size}]"
            )
        return scores

    def canonicalize(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images put upright, h*^-1 x, [N, 3, S, S], and h* as one-hot rows [N, |G|].

        With `elements.argmax(1)`, an output for the canonical image (a mask, a map) is turned to fit the image by
        `act_on_image`.
        """
        copies = undone_copies(self.group, images)
        scores = self.scores(images)
        chosen = scores.argmax(dim=1)
        one_hot = F.one_hot(chosen, self.size).to(scores.dtype)
        if not scores.requires_grad:
            return copies[chosen, torch.arange(images.shape[0], device=images.device)], one_hot
        # The gradient reaches the scorer straight through the choice: backwards, the canonical image is taken for the
        # sum over h of softmax(s)[h] h^-1 x.
        probabilities = scores.softmax(dim=1)
        one_hot = one_hot + (probabilities - probabilities.detach())  # the bracket is exactly zero
        weights = one_hot.T.to(images.dtype).reshape(self.size, -1, 1, 1, 1)
        return (weights * copies).sum(dim=0), one_hot

    def forward(self, images: Tensor) -> Tensor:
        canonical, elements = self.canonicalize(images)
        features = self.encoder(canonical)
        return torch.cat([features, elements.to(features.dtype)], dim=1) if self.with_element else features

    def act_on_features(self, element: int, features: Tensor) -> Tensor:
        check_element(self.group, element)
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(f"features have shape {tuple(features.shape)}: these are [N, {self.num_features}]")
        if not self.with_element:
            return features
        invariant, elements = features.tensor_split([self.width], dim=1)
        return torch.cat([invariant, act_on_regular_stack(self.group, element, elements)], dim=1)


def wrap(encoder: nn.Module, kind: Kind, group: GroupName = "c4", **arguments: Any) -> GroupAveraged | Canonicalized:
    """Makes an encoder exactly invariant, or equivariant, under quarter turns (C4), or also mirrorings (D4).

    Args:
        encoder: maps square images to features [N, D], with D as its `num_features`.
        kind: "averaging" shows it all |G| copies of an image, see `GroupAveraged`. "canonicalization" learns which copy
            to show it, see `Canonicalized`; arguments are those of the class.
    """
    if kind == "averaging":
        return GroupAveraged(encoder, group, **arguments)
    if kind == "canonicalization":
        return Canonicalized(encoder, group, **arguments)
    raise ValueError(f"kind is {kind!r}: choose 'averaging' or 'canonicalization'")


def _make(
    kind: Kind,
    group: GroupName = "c4",
    features: str = "invariant",
    backbone: str = "strided_cnn_tiny",
    img_size: int | tuple[int, int] = 64,
    num_classes: int = 0,
    in_chans: int = 3,
) -> GroupAveraged | Canonicalized:
    """What timm calls."""
    encoder, _ = build_backbone(backbone, img_size, num_classes, in_chans)
    return wrap(encoder, kind, group, features=features)


register_encoders(
    __name__,
    _make,
    {"group_averaged": {"kind": "averaging"}, "canonicalized": {"kind": "canonicalization"}},
    untrained_cfg(64, fixed_input_size=True),
)
