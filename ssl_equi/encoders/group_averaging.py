"""Any encoder made exactly invariant, or equivariant, by showing it every symmetric copy of an image.

Frame averaging (Puny et al., "Frame Averaging for Invariant and Equivariant Network Design", ICLR 2022) with the whole
group as the frame: F[h] = f(h^-1 x), so that F of g x is F moved by g, and the mean over h is invariant. Quarter turns
and mirrorings only move pixels, so that holds to rounding errors, at |G| times the cost.
"""

import torch
from torch import Tensor, nn

from ssl_equi.encoders.arguments import check_square_images
from ssl_equi.encoders.group_convolutions import GroupName, group_size
from ssl_equi.encoders.regular_features import Features, RegularFeatures
from ssl_equi.encoders.square_symmetries import act_on_image, inverse
from ssl_equi.encoders.wrapped_encoder import WrappedEncoder, stated_num_features


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
        parts: columns of the features by name, see `ssl_equi.encoders.regular_features.RegularFeatures`.

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
