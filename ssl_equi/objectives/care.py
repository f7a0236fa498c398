"""CARE (Gupta, Robinson, Lim, Villar and Jegelka, "Structuring Representation Geometry with Rotationally Equivariant
Contrastive Learning", ICLR 2024, arXiv:2306.13924): an augmentation turns all embeddings alike.

If two augmentations a, a' leave the same cosines between the embeddings of any two images, then one orthogonal matrix
takes f(a' x) to f(a x) for all images x (proposition 1 of the paper).
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.encoders.batch_norm import running_statistics_kept
from ssl_equi.objectives.base import Extension, ObjectiveOutput, ProjectedObjective
from ssl_equi.objectives.parts.batch import full_precision
from ssl_equi.objectives.parts.checks import check_number, check_views
from ssl_equi.options import ActsWhen, NonNegative, Width


@dataclass(frozen=True)
class CAREConfig:
    """Defaults are the paper's for CIFAR-10. Weights are on a mean over pairs, see `mean_pair_weight`."""

    weight: NonNegative = 0.3
    """Weight of the Gram term; 0 leaves the base as it is. Paper: 0.3 on CIFAR-10 (0.9 in the released script), 0.126
    on CIFAR-100, 0.62 on STL-10, 0.07 on ImageNet-100 (0.14 with MoCo v2, for which the script has 0.07); its own
    lambda, the weight of a sum, is 0.01 (script 0.03), 0.001, 0.01, 0.005 and 0.01 (script 0.005)."""
    chunk_size: Annotated[
        Width, ActsWhen(lambda options: options.weight > 0 or options.reuse_views, "give a weight above 0")
    ] = 16
    """Images that share a pair of augmentations; only pairs within a chunk are compared. Paper: 16 on CIFAR-10, 64 on
    CIFAR-100, 32 on STL-10, 8 on ImageNet-100. (In the released code all chunks of a step have the same pair.)"""
    reuse_views: bool = False
    """The base learns from the shared views, too, so there are as many encoder passes as with the base alone. Off: its
    views are augmented image by image and the Gram term has two further passes, as in the paper."""
    separate_statistics: Annotated[
        bool,
        ActsWhen(
            lambda options: options.weight > 0 and not options.reuse_views, "give a weight above 0, without reuse_views"
        ),
    ] = True
    """The further passes leave the running statistics of batch norms alone. Off: they count like the base's views, as
    in the released code. Nothing to choose with reuse_views."""


def mean_pair_weight(released_weight: float, chunk_size: int) -> float:
    """The paper's lambda as a weight on a mean over pairs: 2 (N - 1) lambda for chunks of N images.

    The released code takes (2 / N) times the sum over ordered pairs i != j, which grows with the chunk; `CARE` takes
    the mean over them.
    """
    return 2 * (chunk_size - 1) * released_weight


def gram_difference(embeddings: Tensor, chunk_size: int) -> Tensor:
    """How differently two augmentations place the images of a chunk relative to each other, the paper's L_equi.

    With f the embeddings at length 1, the mean over ordered pairs i != j of a chunk of
    (<f(a x_i), f(a x_j)> - <f(a' x_i), f(a' x_j)>)^2, and the mean over chunks.

    Embeddings are [B, 2, E], each image under its chunk's a and a'; chunks are `chunk_size` consecutive rows. The
    result is in [0, 4], and 0 exactly if a rotation or reflection of each chunk's own takes one view to the other.
    """
    directions = F.normalize(embeddings, dim=-1).unflatten(0, (-1, chunk_size)).transpose(1, 2)  # [chunks, 2, N, E]
    cosines = directions @ directions.mT
    # The diagonal is 1 - 1, but only up to rounding.
    different_images = 1 - torch.eye(chunk_size, dtype=cosines.dtype, device=cosines.device)
    difference = (cosines[:, 0] - cosines[:, 1]) * different_images
    return difference.square().sum() / (len(difference) * chunk_size * (chunk_size - 1))


class CARE(Extension):
    """loss = base loss + weight * `gram_difference` of views whose augmentations are shared by chunks of images.

    Args:
        base: a contrastive objective; with `reuse_views` one that `embeds_both_views`.
    """

    base: ProjectedObjective

    def __init__(self, base: ProjectedObjective, config: CAREConfig = CAREConfig()) -> None:
        super().__init__(base)
        if not isinstance(base, ProjectedObjective):
            raise ValueError(
                f"the base objective {type(base).__name__} has no projector: pass one that can embed single images, "
                "such as SimCLR(encoder)"
            )
        if config.reuse_views and not base.embeds_both_views:
            raise ValueError(
                f"the base objective {type(base).__name__} does not embed both views with its online branch: set "
                "reuse_views=False, or pass a base that does, such as SimCLR(encoder) or a symmetric MoCo"
            )
        check_number("weight", config.weight, minimum=0)
        if config.chunk_size < 2:
            raise ValueError(f"chunk_size is {config.chunk_size}: a chunk needs 2 images to compare, such as 16")
        self.config = config

    def forward(
        self, views: Tensor, actions: Tensor | None = None, shared_views: Tensor | None = None
    ) -> ObjectiveOutput:
        """The loss of two views.

        Args:
            views: [B, 2, 3, H, W]; with `reuse_views` augmented chunk by chunk.
            actions: handed to the base.
            shared_views: [B, 2, 3, H, W]: two views of each image, augmented chunk by chunk, where a chunk is
                `chunk_size` consecutive images. None with `reuse_views`, or if the weight is 0.

        Returns:
            the base's terms, `gram_difference`, and the monitor `alignment_shared`, the mean cosine of the two shared
            views of an image (1: the encoder is invariant, and the Gram term has nothing to do).
        """
        config = self.config
        if config.weight == 0:
            if shared_views is not None:
                raise ValueError("weight is 0 but shared_views were passed: leave them out, nothing would use them")
            return replace(self.base(views, actions), embeddings=None, encoder_features=None)
        compared = self._compared_views(views, shared_views)
        check_views(compared)
        if len(compared) % config.chunk_size:
            raise ValueError(
                f"a process has {len(compared)} images but chunk_size is {config.chunk_size}: choose a batch size whose"
                " share of each process is a multiple of it"
            )
        output = self.base(views, actions)
        if config.reuse_views:
            embeddings = output.embeddings
        else:
            with running_statistics_kept(self.base) if config.separate_statistics else nullcontext():
                embeddings = self.on_views(self.base.embed, compared)
        assert embeddings is not None, "a base that embeds both views hands them out"
        with torch.autocast(views.device.type, enabled=False):
            embeddings = full_precision(embeddings)
            # A mean over chunks, which lie within a process: the mean over processes is that of all chunks.
            difference = gram_difference(embeddings, config.chunk_size)
            first, second = embeddings.unbind(dim=1)
            monitors = self.monitors(lambda: {"alignment_shared": F.cosine_similarity(first, second, dim=1).mean()})
            loss = output.loss + config.weight * difference
        terms = {"gram_difference": difference, **monitors}
        return self.output(loss, output.terms | terms, output.features)

    def _compared_views(self, views: Tensor, shared_views: Tensor | None) -> Tensor:
        """The views whose augmentations are shared by chunks."""
        if self.config.reuse_views:
            if shared_views is not None:
                raise ValueError("reuse_views is on but shared_views were passed: leave one of the two out")
            return views
        if shared_views is None:
            raise ValueError(
                "shared_views are missing: pass [B, 2, 3, H, W] with augmentations shared by chunks, or set reuse_views"
            )
        return shared_views
