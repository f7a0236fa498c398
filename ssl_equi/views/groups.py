"""Finite sets of image transformations with exact labels, those of the study in E-SSL (Dangovski et al., ICLR 2022).

Element 0 is the identity in all of them. Most are groups that move or negate pixels; reducing to grey and blurring
can't be undone, so those two sets have labels but no composition.

    four_fold_rotation    quarter turns, counter-clockwise
    horizontal_flip, vertical_flip, inversion, grayscale    1 applies it
    jigsaw                the entry of `exact.JIGSAW_PERMUTATIONS`
    half_translations     periodic: 1 half the height down, 2 half the width to the right, 3 both
    four_fold_blur        the entry of `BLUR_SIGMAS_PX`
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ssl_equi.runtime.device_copies import constant, copy_together
from ssl_equi.views.exact import (
    JIGSAW_PERMUTATIONS,
    check_even_sides,
    check_images,
    flip_horizontally,
    flip_vertically,
    invert,
    jigsaw,
    quarter_turns,
    roll,
)
from ssl_equi.views.operations import gaussian_blur, to_grayscale

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
    transform: Callable[[Tensor, Tensor], Tensor] = field(repr=False)
    """Images [N, 3, H, W] and elements [N] to transformed images; `apply` checks its input and calls it."""
    composition: Table | None = field(default=None, repr=False)
    """[g][h]: the label of first h, then g; None if the set is not a group."""

    @property
    def is_group(self) -> bool:
        """Whether any two elements, one after the other, are again an element, and each can be undone."""
        return self.composition is not None

    def apply(self, images: Tensor, elements: Tensor) -> Tensor:
        """Transforms each image by its element.

        Args:
            images: float [N, 3, H, W] in [0, 1]; square for four_fold_rotation, even sides for jigsaw and
                half_translations.
            elements: int64 [N] of 0..size-1.

        Returns:
            images of the same shape.

        Raises:
            ValueError: wrong shapes, types or sides; elements out of range (looked for when they are on the CPU).
        """
        check_images(images)
        if not images.is_floating_point():
            raise ValueError(f"images have dtype {images.dtype}: pass float images in [0, 1]")
        if elements.shape != images.shape[:1] or elements.dtype != torch.int64:
            raise ValueError(
                f"elements have shape {tuple(elements.shape)} and dtype {elements.dtype}: pass int64 [{len(images)}]"
            )
        if elements.device.type == "cpu" and not ((elements >= 0) & (elements < self.size)).all():
            raise ValueError(
                f"elements of {self.name} have values {elements.min()}..{elements.max()}: use 0..{self.size - 1}"
            )
        return self.transform(images, copy_together([elements], images.device)[0])

    def all_elements(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Every image under every element.

        Args:
            images: float [B, 3, H, W] in [0, 1].

        Returns:
            transformed images [B, G, 3, H, W], and the elements 0..G-1 of each, int64 [B, G].

        Raises:
            ValueError: as `apply`.
        """
        elements = torch.arange(self.size, device=images.device).repeat(len(images), 1)
        return self._apply_several(images, elements), elements

    def sample_elements(self, images: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Every image under k different elements of its own, each choice equally likely.

        Args:
            images: float [B, 3, H, W] in [0, 1].
            k: 1..G.
            generator: on the CPU, so that the choice does not depend on the device.

        Returns:
            transformed images [B, k, 3, H, W], and the elements of each in the order drawn, int64 [B, k].

        Raises:
            ValueError: k is out of range; otherwise as `apply`.
        """
        if not 1 <= k <= self.size:
            raise ValueError(f"{k} elements of {self.name} were asked for: it has {self.size}, use 1..{self.size}")
        # The places of the smallest of G random numbers: k different elements without a loop over images.
        drawn = torch.rand(len(images), self.size, generator=generator).argsort(dim=1)[:, :k]
        (elements,) = copy_together([drawn], images.device)
        return self._apply_several(images, elements), elements

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

    def relative(self, first: Tensor, second: Tensor) -> Tensor:
        """The element g2 g1^-1 for `first` g1 and `second` g2, int64 tensors of one shape: apply g2 = it after g1."""
        return copy_together([self.relative_table()], first.device)[0][first, second]

    def _apply_several(self, images: Tensor, elements: Tensor) -> Tensor:
        """[B, 3, H, W] under [B, K] -> [B, K, 3, H, W]."""
        repeated = images.repeat_interleave(elements.shape[1], dim=0)
        return self.apply(repeated, elements.flatten()).unflatten(0, elements.shape)


def _flip_horizontally(images: Tensor, elements: Tensor) -> Tensor:
    return flip_horizontally(images, elements == 1)


def _flip_vertically(images: Tensor, elements: Tensor) -> Tensor:
    return flip_vertically(images, elements == 1)


def _invert(images: Tensor, elements: Tensor) -> Tensor:
    return torch.where(_per_image(elements == 1), invert(images), images)


def _reduce_to_grey(images: Tensor, elements: Tensor) -> Tensor:
    return torch.where(_per_image(elements == 1), to_grayscale(images), images)


def _blur(images: Tensor, elements: Tensor) -> Tensor:
    # A Gaussian of width 0 has no kernel, so images that stay sharp are blurred by some width and then not taken.
    sigmas = constant((BLUR_SIGMAS_PX[1], *BLUR_SIGMAS_PX[1:]), images.device, images.dtype)
    blurred = gaussian_blur(images, sigmas[elements], BLUR_KERNEL_SIZE)
    return torch.where(_per_image(elements == 0), images, blurred)


def _move_by_halves(images: Tensor, elements: Tensor) -> Tensor:
    check_even_sides(images, "a translation by half the side")
    down, right = elements % 2, elements // 2
    return roll(images, down / 2, right / 2)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _cyclic(size: int) -> Table:
    return tuple(tuple((g + h) % size for h in range(size)) for g in range(size))


def _permutations() -> Table:
    """First h, then g puts at place i the piece that h has put at place g[i]."""
    label = {permutation: number for number, permutation in enumerate(JIGSAW_PERMUTATIONS)}
    return tuple(tuple(label[tuple(h[place] for place in g)] for h in JIGSAW_PERMUTATIONS) for g in JIGSAW_PERMUTATIONS)


def _two_switches() -> Table:
    return tuple(tuple(g ^ h for h in range(4)) for g in range(4))


_SETS = (
    TransformationSet("four_fold_rotation", 4, quarter_turns, _cyclic(4)),
    TransformationSet("horizontal_flip", 2, _flip_horizontally, _cyclic(2)),
    TransformationSet("vertical_flip", 2, _flip_vertically, _cyclic(2)),
    TransformationSet("jigsaw", 24, jigsaw, _permutations()),
    TransformationSet("inversion", 2, _invert, _cyclic(2)),
    TransformationSet("half_translations", 4, _move_by_halves, _two_switches()),
    TransformationSet("grayscale", 2, _reduce_to_grey),
    TransformationSet("four_fold_blur", len(BLUR_SIGMAS_PX), _blur),
)
GROUPS: dict[str, TransformationSet] = {transformations.name: transformations for transformations in _SETS}
"""The sets by name; all but grayscale and four_fold_blur are groups."""
