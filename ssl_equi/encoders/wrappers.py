"""Exact symmetry for any encoder, from outside: averaging over the group, or learned canonicalisation.

timm makes the wrapped encoders as "group_averaged" and "canonicalized", with the name of a backbone as an argument.
"""

from typing import Any, Literal, get_args

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_equi.encoders.catalogue import create_encoder
from ssl_equi.encoders.square.convolutions import (
    GroupBatchNorm,
    GroupConvolution,
    GroupName,
    LiftingConvolution,
    act_on_regular_stack,
    check_element,
    group_size,
)
from ssl_equi.encoders.square.features import Features, RegularFeatures
from ssl_equi.encoders.square.symmetries import act_on_image, inverse
from ssl_equi.encoders.timm_interface import check_square_images, refuse_classifier, side_for_backbone


class WrappedEncoder(nn.Module):
    """What timm expects of an encoder, handed on to the one inside.

    Args:
        encoder: maps images to features.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.num_classes = encoder, 0

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Accepts 0 only: there is no classifier.

        Raises:
            ValueError: a classifier, or another pooling is asked for.
        """
        refuse_classifier(num_classes)
        if global_pool is not None:
            raise ValueError(f"global_pool is {global_pool!r}: the pooling is that of the wrapped encoder, pass None")

    def get_classifier(self) -> nn.Module:
        """nn.Identity: there is no classifier."""
        return nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As of the wrapped encoder.

        Raises:
            ValueError: the wrapped encoder can't do that.
        """
        setter = getattr(self.encoder, "set_grad_checkpointing", None)
        if callable(setter):
            setter(enable)
        elif enable:
            raise ValueError(f"{type(self.encoder).__name__} has no gradient checkpointing: choose another backbone")

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should spare, beside all vectors: those of the wrapped encoder."""
        names = getattr(self.encoder, "no_weight_decay", None)
        return {f"encoder.{name}" for name in names()} if callable(names) else set()


def stated_num_features(encoder: nn.Module) -> int:
    """D of an encoder.

    Raises:
        ValueError: it states none.
    """
    num_features = getattr(encoder, "num_features", None)
    if not isinstance(num_features, int) or num_features < 1:
        raise ValueError(
            f"num_features of {type(encoder).__name__} is {num_features}: make the encoder with create_encoder, "
            "or set the width of its features"
        )
    return num_features


class GroupAveraged(WrappedEncoder):
    """Square images [N, 3, S, S] to features [N, num_features] of an encoder that sees all |G| copies of each.

    Batch norms of the encoder see the |G| * N copies together, so it holds in training mode too; with dropout inside,
    it holds in eval mode only.

    Args:
        encoder: maps images to features [N, D], with D as its `num_features`.
        group: "c4" or "d4".
        features: "invariant": the mean over the copies, [N, D]. "regular": the features of each copy, [N, |G| * D].
            "both": first the mean, then the copies.

    Attributes:
        num_features: D, |G| * D, or (1 + |G|) * D.
        parts: columns of the features by name, see `ssl_equi.encoders.square.features.RegularFeatures`.

    Raises:
        ValueError: there is no such group, there are no such features, or the encoder doesn't state D.
    """

    def __init__(self, encoder: nn.Module, group: GroupName = "c4", features: Features = "invariant") -> None:
        super().__init__(encoder)
        self.group = group
        self.head = RegularFeatures(group, stated_num_features(encoder), features)
        self.parts = self.head.parts
        self.num_features = self.head_hidden_size = self.head.num_features

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, S, S] to [N, num_features].

        Raises:
            ValueError: the images are not square.
        """
        copies = undone_copies(self.group, images).flatten(0, 1)
        stack = self.encoder(copies).unflatten(0, (group_size(self.group), -1))
        return self.head(stack.transpose(0, 1).flatten(1))

    def act_on_features(self, g: int, features: Tensor) -> Tensor:
        """The features of g x, from those of x: [N, num_features] to the same shape.

        Raises:
            ValueError: the group has no such element, or the features have another width.
        """
        return self.head.act(g, features)


def undone_copies(group: GroupName, images: Tensor) -> Tensor:
    """h^-1 x for every element h: [N, 3, S, S] to [|G|, N, 3, S, S].

    Raises:
        ValueError: the images have another shape.
    """
    check_square_images(images, None, lambda side: side)
    return torch.stack([act_on_image(inverse(h), images) for h in range(group_size(group))])


CanonicalFeatures = Literal["invariant", "with_element"]
SCORED_SIDE = 32  # side in pixels of what the scorer sees


class GroupScorer(nn.Module):
    """Square images [N, in_chans, S, S] of any size to one score for each element, [N, |G|].

    Scores of g x are those of x, moved by g. The image is averaged over a grid of 32 x 32 cells first: the cells of
    adaptive pooling lie symmetrically whatever S is.

    Args:
        group: "c4" or "d4".
        fields: |G| channels each, in every layer.
        in_chans: colour channels.
    """

    def __init__(self, group: GroupName, fields: int = 8, in_chans: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(SCORED_SIDE),
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

    The gradient reaches the scorer straight through the choice: forwards the canonical image is h*^-1 x, backwards it
    is taken for the sum over h of softmax(s)[h] h^-1 x. The scorer runs in the precision of its weights, also under
    autocast.

    Args:
        encoder: maps images to features [N, D], with D as its `num_features`.
        group: "c4" or "d4".
        features: "invariant": of the canonical image, [N, D]. "with_element": those, and after them a column for each
            element, which is 1 for h* and 0 for the others, [N, D + |G|]; the columns change places with the group.
        scorer: maps images to scores [N, |G|] that the group moves; a `GroupScorer` unless given.

    Attributes:
        num_features: D, or D + |G|.
        parts: columns of the features by name: all, inv, and equi with the element.

    Raises:
        ValueError: there is no such group, there are no such features, or the encoder doesn't state D.
    """

    def __init__(
        self,
        encoder: nn.Module,
        group: GroupName = "c4",
        features: CanonicalFeatures = "invariant",
        scorer: nn.Module | None = None,
    ) -> None:
        super().__init__(encoder)
        if features not in get_args(CanonicalFeatures):
            raise ValueError(f"features is {features!r}: choose 'invariant' or 'with_element'")
        self.group, self.size, self.features = group, group_size(group), features
        width = stated_num_features(encoder)
        self.scorer = GroupScorer(group) if scorer is None else scorer
        self.num_features = self.head_hidden_size = width + (self.size if features == "with_element" else 0)
        self.parts = {"all": slice(0, self.num_features), "inv": slice(0, width)}
        if features == "with_element":
            self.parts["equi"] = slice(width, self.num_features)

    def scores(self, images: Tensor) -> Tensor:
        """One score for each element, [N, |G|].

        Raises:
            ValueError: the scorer gives another shape.
        """
        dtype = next((parameter.dtype for parameter in self.scorer.parameters()), images.dtype)
        with torch.autocast(images.device.type, enabled=False):
            scores = self.scorer(images.to(dtype))
        if scores.shape != (images.shape[0], self.size):
            raise ValueError(
                f"scores have shape {tuple(scores.shape)}: a scorer for {self.group} gives [{len(images)}, {self.size}]"
            )
        return scores

    def canonicalize(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images put upright, and the elements that turn these back into what they were.

        Args:
            images: [N, 3, S, S].

        Returns:
            h*^-1 x, [N, 3, S, S], and h* as one-hot rows [N, |G|]. With `elements.argmax(1)`, an output for the
            canonical image (a mask, a map) is turned to fit the image by `act_on_image`.

        Raises:
            ValueError: the images are not square, or the scorer gives another shape.
        """
        copies = undone_copies(self.group, images)
        scores = self.scores(images)
        chosen = scores.argmax(dim=1)
        one_hot = F.one_hot(chosen, self.size).to(scores.dtype)
        if not scores.requires_grad:
            return copies[chosen, torch.arange(images.shape[0], device=images.device)], one_hot
        probabilities = scores.softmax(dim=1)
        one_hot = one_hot + (probabilities - probabilities.detach())  # the bracket is exactly zero
        weights = one_hot.T.to(images.dtype).reshape(self.size, -1, 1, 1, 1)
        return (weights * copies).sum(dim=0), one_hot

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, S, S] to [N, num_features].

        Raises:
            ValueError: the images are not square, or the scorer gives another shape.
        """
        canonical, elements = self.canonicalize(images)
        features = self.encoder(canonical)
        return torch.cat([features, elements.to(features.dtype)], dim=1) if "equi" in self.parts else features

    def prior_loss(self, images: Tensor, elements: Tensor | None = None) -> Tensor:
        """Cross-entropy between softmax of the scores and how the images are known to stand; add it to the loss.

        It keeps the images of a data set that has an upright direction upright, as Mondal et al., "Equivariant
        Adaptation of Large Pretrained Models", NeurIPS 2023, do.

        Args:
            images: [N, 3, S, S].
            elements: int64 [N], how each image has been turned from upright; upright (0) unless given.

        Raises:
            ValueError: other elements, or the scorer gives another shape.
        """
        scores = self.scores(images)
        if elements is None:
            elements = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        if elements.shape != images.shape[:1] or elements.dtype != torch.int64:
            raise ValueError(
                f"elements have shape {tuple(elements.shape)} and dtype {elements.dtype}: pass int64 [{len(images)}]"
            )
        return F.cross_entropy(scores, elements)

    def act_on_features(self, g: int, features: Tensor) -> Tensor:
        """The features of g x, from those of x: [N, num_features] to the same shape.

        Raises:
            ValueError: the group has no such element, or the features have another width.
        """
        check_element(self.group, g)
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(f"features have shape {tuple(features.shape)}: these are [N, {self.num_features}]")
        if "equi" not in self.parts:
            return features
        invariant, elements = features.tensor_split([self.parts["equi"].start], dim=1)
        return torch.cat([invariant, act_on_regular_stack(self.group, g, elements)], dim=1)


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
