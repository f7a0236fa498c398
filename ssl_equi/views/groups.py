"""Finite sets of image transformations with exact labels, those of the study in E-SSL (Dangovski et al., ICLR 2022).

Element 0 is the identity in all of them. Most are groups that move or negate pixels and interpolate nothing; reducing
to grey and blurring can't be undone, so those two sets have labels but no composition. Row 0 is the top, column 0 the
left.

    four_fold_rotation    quarter turns, counter-clockwise
    horizontal_flip, vertical_flip, inversion, grayscale    1 applies it
    jigsaw                the entry of `JIGSAW_PERMUTATIONS`
    half_translations     periodic: 1 half the height down, 2 half the width to the right, 3 both
    four_fold_blur        the entry of `BLUR_SIGMAS_PX`
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ssl_equi.runtime.device_copies import constant
from ssl_equi.views.operations import gaussian_blur, to_grayscale

JIGSAW_PERMUTATIONS: tuple[tuple[int, ...], ...] = tuple(itertools.permutations(range(4)))
"""The 24 arrangements of a 2 x 2 grid, in lexicographic order: entry [p][i] is the piece that comes to place i.

Places and pieces are numbered 0 top left, 1 top right, 2 bottom left, 3 bottom right; [0] leaves all where they are.
"""
BLUR_SIGMAS_PX = (0.0, 0.5, 1.0, 2.0)
"""Standard deviations of the four blurs in pixels of the blurred image; the paper's are not public, these are ours."""
BLUR_KERNEL_SIZE = 11

Table = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TransformationSet:
    """A finite set of transformations of images, with a label 0..size-1 for each.

    Composition, inverses and relative elements exist for groups only; asked of another set they raise ValueError.
    """

    name: str
    """As in `GROUPS`."""
    size: int
    """Number of elements G."""
    apply: Callable[[Tensor, Tensor], Tensor] = field(repr=False)
    """Square images [N, 3, S, S] in [0, 1] and their elements int64 [N], on one device, to transformed images."""
    composition: Table | None = field(default=None, repr=False)
    """[g][h]: the label of first h, then g; None if the set is not a group."""
    halves_sides: bool = False
    """Whether images must have even sides."""

    def composition_table(self) -> Tensor:
        """int64 [G, G]: at [g, h] the label of first h, then g."""
        if self.composition is None:
            raise ValueError(f"{self.name} is not a group, its elements can't be composed or undone: use another set")
        return torch.tensor(self.composition)

    def inverses(self) -> Tensor:
        """int64 [G]: at [g] the label of the element that undoes g."""
        return (self.composition_table() == 0).int().argmax(dim=1)

    def relative_table(self) -> Tensor:
        """int64 [G, G]: at [g1, g2] the label of g2 g1^-1, which takes what g1 gives to what g2 gives."""
        return self.composition_table()[:, self.inverses()].T.contiguous()


def _where(chosen: Tensor, changed: Tensor, images: Tensor) -> Tensor:
    """The changed images where `chosen`, bool [N], is true."""
    return torch.where(chosen.view(-1, 1, 1, 1), changed, images)


def _jigsaw(images: Tensor, elements: Tensor) -> Tensor:
    count, channels, height, width = images.shape
    pieces = images.reshape(count, channels, 2, height // 2, 2, width // 2)
    pieces = pieces.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    piece_at_place = constant(JIGSAW_PERMUTATIONS, images.device, torch.int64)[elements]
    moved = pieces[torch.arange(count, device=images.device).unsqueeze(1), piece_at_place]
    return moved.unflatten(1, (2, 2)).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def _blur(images: Tensor, elements: Tensor) -> Tensor:
    # A Gaussian of width 0 has no kernel, so images that stay sharp are blurred by some width and then not taken.
    sigmas = constant((BLUR_SIGMAS_PX[1], *BLUR_SIGMAS_PX[1:]), images.device, images.dtype)
    return _where(elements > 0, gaussian_blur(images, sigmas[elements], BLUR_KERNEL_SIZE), images)


Change = Callable[[Tensor], Tensor]


def _switches(first: Change, second: Change | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """Odd elements apply the first change, those from 2 on the second one, after it."""

    def apply(images: Tensor, elements: Tensor) -> Tensor:
        images = _where(elements % 2 == 1, first(images), images)
        return images if second is None else _where(elements >= 2, second(images), images)

    return apply


_SWITCH = ((0, 1), (1, 0))
_TWO_SWITCHES = tuple(tuple(g ^ h for h in range(4)) for g in range(4))
_TURNS = tuple(tuple((g + h) % 4 for h in range(4)) for g in range(4))
# First h, then g puts at place i the piece that h has put at place g[i].
_ARRANGEMENTS = tuple(
    tuple(JIGSAW_PERMUTATIONS.index(tuple(h[place] for place in g)) for h in JIGSAW_PERMUTATIONS)
    for g in JIGSAW_PERMUTATIONS
)
_quarter_turns = _switches(lambda images: torch.rot90(images, 1, dims=(2, 3)), lambda images: images.flip(2, 3))
_move_by_halves = _switches(
    lambda images: torch.roll(images, images.shape[2] // 2, 2),
    lambda images: torch.roll(images, images.shape[3] // 2, 3),
)
_SETS = (
    TransformationSet("four_fold_rotation", 4, _quarter_turns, _TURNS),
    TransformationSet("horizontal_flip", 2, _switches(lambda images: images.flip(3)), _SWITCH),
    TransformationSet("vertical_flip", 2, _switches(lambda images: images.flip(2)), _SWITCH),
    TransformationSet("jigsaw", 24, _jigsaw, _ARRANGEMENTS, halves_sides=True),
    TransformationSet("inversion", 2, _switches(lambda images: 1 - images), _SWITCH),
    TransformationSet("half_translations", 4, _move_by_halves, _TWO_SWITCHES, halves_sides=True),
    TransformationSet("grayscale", 2, _switches(to_grayscale)),
    TransformationSet("four_fold_blur", len(BLUR_SIGMAS_PX), _blur),
)
GROUPS: dict[str, TransformationSet] = {transformations.name: transformations for transformations in _SETS}
"""The sets by name; all but grayscale and four_fold_blur are groups."""
