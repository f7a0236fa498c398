"""Any encoder made exactly invariant by learning to put every image upright first.

Kaba et al., "Equivariance with Learned Canonicalization Functions", ICML 2023. A small group-equivariant network gives
each element of the group a score, s_gx[h] = s_x[g^-1 h]. The element h* with the highest score says how the image
stands, and the encoder sees h*^-1 x, which is the same for all g x. It costs one pass of the encoder, where averaging
costs |G|.

Where two elements have equal scores, the one with the lower number is taken. If the image itself is symmetric, both
give the same canonical image, and nothing is lost. Otherwise the features jump there, and rounding may decide: scores
that differ by less than rounding errors (about 1e-6 of their size in float32) are the one case in which f(g x) can
differ from f(x).
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_equi.encoders.group_averaging import undone_copies
from ssl_equi.encoders.group_convolutions import (
    GroupBatchNorm,
    GroupConvolution,
    GroupName,
    LiftingConvolution,
    act_on_regular_stack,
    check_element,
    group_size,
)
from ssl_equi.encoders.wrapped_encoder import WrappedEncoder, stated_num_features

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
