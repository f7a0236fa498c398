"""How octic layers store features, and the group's action on them.

A feature vector of width D = 8 C is C copies of the regular representation of the square's symmetries (see
`square_symmetries`), split into irreducible ones: C values each of A1, A2, B1 and B2, and 2 C vectors of E, which have
two rows. Tokens [B, N, D] have them one after another: A1, A2, B1, B2, the first row of E, the second row of E. Layers
pass tokens on to each other. A linear layer is two batched matrix products, and hands over what they leave behind:

    ones    [4, B, N, C]     A1, A2, B1, B2 of N tokens of B images
    twos    [2, B, N, 2 C]   the rows of E
    bias    [4, C]           what is still to be added to ones, zero but for A1

so that the loop that reads them next, which torch.compile writes, is also the one that puts them together and adds the
bias.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.encoders.square.symmetries import ELEMENTS, act_on_image, irrep_matrix
from ssl_equi.runtime.device_copies import constant


class OcticFeatures(NamedTuple):
    """Features of B images of N tokens, split into irreducible representations."""

    ones: Tensor
    """[4, B, N, C]."""
    twos: Tensor
    """[2, B, N, 2 C]."""
    bias: Tensor | None = None
    """[4, C], zero but for A1: still to be added to ones, by whoever reads them."""

    def with_bias(self) -> "OcticFeatures":
        """The same with the bias added."""
        return self if self.bias is None else OcticFeatures(_AddBias.apply(self.ones, self.bias), self.twos)

    def to_tokens(self) -> Tensor:
        """As [B, N, D]."""
        ones, twos, _ = self.with_bias()
        return torch.cat([part.permute(1, 2, 0, 3).flatten(2) for part in (ones, twos)], dim=2)

    @staticmethod
    def from_tokens(tokens: Tensor) -> "OcticFeatures":
        """Views of tokens [B, N, D], the inverse of `to_tokens`."""
        ones, twos = split_components(tokens)
        return OcticFeatures(ones.permute(2, 0, 1, 3), twos.permute(2, 0, 1, 3))


class _AddBias(torch.autograd.Function):
    """Adds a bias [4, C] to ones [4, B, N, C] that is zero but for A1."""

    # Gradients are handed on as they are and summed for A1 alone; autograd's own formulas would read all of them.

    @staticmethod
    def forward(ctx: Any, ones: Tensor, bias: Tensor) -> Tensor:
        return ones + bias.view(4, 1, 1, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        return gradient, bias_gradient(gradient)


def bias_gradient(ones: Tensor) -> Tensor:
    """Of a bias [4, C], from the gradient of what it was added to, [4, B, N, C]."""
    return F.pad(ones[:1].sum(dim=(1, 2)), (0, 0, 0, 3))


def check_octic_width(what: str, width: int) -> None:
    """Raises ValueError if a width is not a positive multiple of 8; `what` names it in the message."""
    if width < ELEMENTS or width % ELEMENTS:
        nearest = max(ELEMENTS, ELEMENTS * round(width / ELEMENTS))
        raise ValueError(f"{what} is {width}: octic features need a multiple of {ELEMENTS}, use {nearest}")


def split_components(features: Tensor) -> tuple[Tensor, Tensor]:
    """[..., D] to views of A1, A2, B1, B2 [..., 4, C] and of the rows of E [..., 2, 2 C]."""
    ones, twos = features.chunk(2, dim=-1)
    return ones.unflatten(-1, (4, -1)), twos.unflatten(-1, (2, -1))


# What each element is in A1, A2, B1, B2, [8, 4], and in E, [8, 2, 2].
_SIGNS = tuple(tuple(irrep_matrix(name, g).item() for name in ("A1", "A2", "B1", "B2")) for g in range(ELEMENTS))
_MATRICES = tuple(tuple(tuple(row) for row in irrep_matrix("E", g).tolist()) for g in range(ELEMENTS))


def act_on_components(elements: int | Tensor, features: Tensor) -> Tensor:
    """The group's action on feature vectors [..., D]; exact, since it only swaps and negates values.

    Elements are one for all vectors, or int64 [...] with one for each, which are not checked.
    """
    check_octic_width("the last dimension of the features", features.shape[-1])
    if isinstance(elements, int) and not 0 <= elements < ELEMENTS:
        raise ValueError(f"{elements} is not a symmetry of the square: use 0..{ELEMENTS - 1}")
    signs, matrices = (constant(table, features.device, features.dtype)[elements] for table in (_SIGNS, _MATRICES))
    ones, twos = split_components(features)
    ones = ones * signs.unsqueeze(-1)
    # Element by element, for a matrix product may round to fewer bits.
    twos = (matrices.unsqueeze(-1) * twos.unsqueeze(-3)).sum(dim=-2)
    return torch.cat([ones.flatten(-2), twos.flatten(-2)], dim=-1)


def irreps_to_regular(irreps: Sequence[Tensor]) -> list[Tensor]:
    """The regular representation: T^T of `square_symmetries.regular_to_irreps`, in three stages of sums.

    Args:
        irreps: eight tensors of one shape, in the order of a feature vector: A1, A2, B1, B2, then the first row of both
            copies of E, then the second row of both. The result's eight are by group element.
    """
    # Unlike a product with T, sums never round to the reduced precision of matrix products. Eight tensors that are
    # never stacked can be compiled to one loop that reads and writes every value once, backward as well.
    a1, a2, b1, b2, first_x, second_x, first_y, second_y = irreps
    from_ones = [value * 8**-0.5 for value in (a1 + b1, a2 + b2, a1 - b1, a2 - b2)]
    from_twos = [second_y * 0.5, first_x * 0.5, second_x * -0.5, first_y * 0.5]
    pairs = list(zip(from_ones, from_twos))
    turns = [x + y for x, y in pairs] + [x - y for x, y in pairs]
    pairs = list(zip(turns[::2], turns[1::2]))
    return [even + odd for even, odd in pairs] + [even - odd for even, odd in pairs]


def regular_to_irreps(values: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `irreps_to_regular`."""
    pairs = list(zip(values[:4], values[4:]))
    even0, even1, even2, even3 = (unmirrored + mirrored for unmirrored, mirrored in pairs)
    odd0, odd1, odd2, odd3 = (unmirrored - mirrored for unmirrored, mirrored in pairs)
    a1_and_b1, a2_and_b2 = (even0 + even2, even1 + even3), (odd0 + odd2, odd1 + odd3)
    ones = [x + y for x, y in (a1_and_b1, a2_and_b2)] + [x - y for x, y in (a1_and_b1, a2_and_b2)]
    twos = [odd0 - odd2, even3 - even1, odd1 - odd3, even0 - even2]
    return [value * 8**-0.5 for value in ones] + [value * 0.5 for value in twos]


def features_to_regular(features: OcticFeatures) -> list[Tensor]:
    """Eight tensors [B, N, C], by group element."""
    a1, *others = features.ones.unbind(0)
    copies = [copy for row in features.twos.unbind(0) for copy in row.chunk(2, dim=-1)]
    return irreps_to_regular([a1 if features.bias is None else a1 + features.bias[0], *others, *copies])


def tokens_to_regular(tokens: Tensor) -> list[Tensor]:
    """Eight tensors [B, N, C], by group element, of tokens [B, N, D]."""
    return irreps_to_regular(tokens.chunk(ELEMENTS, dim=-1))


def regular_to_tokens(values: Sequence[Tensor]) -> Tensor:
    """The inverse of `tokens_to_regular`."""
    irreps = regular_to_irreps(values)
    width = ELEMENTS * irreps[0].shape[-1]
    if irreps[0].is_cuda:
        # Of up to eight parts torch.compile makes a second loop that looks for each value's part; of more it writes
        # each to its place, in one loop. So one is there twice.
        irreps.append(irreps[0])
    return torch.cat(irreps, dim=-1)[..., :width]


def steerable_maps(maps: Tensor) -> Tensor:
    """Fills the space of steerable maps from free ones: all eight transformed copies, split into irreducible parts.

    Turning every map of the result by g is the same as multiplying its first dimension by g^-1, so as the kernels of a
    convolution they give octic features, and added to octic features they commute with the group. Nothing is lost:
    the space has the dimension of the free maps. [C, ..., S, S] become [8 C, ..., S, S], in a feature vector's order.
    """
    return torch.cat(regular_to_irreps([act_on_image(g, maps) for g in range(ELEMENTS)]))
