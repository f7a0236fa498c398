"""The eight symmetries of the square: quarter turns and mirrorings, the dihedral group of order 8 ("octic", D4).

Elements are numbered g = r + 4 m: first mirror left-right m times, then turn counter-clockwise by 90 r degrees. So
element 0 is the identity, 0..3 are the turns (the cyclic subgroup C4), and 4..7 the mirrorings. On pixels every element
is a permutation: nothing is interpolated. Functions raise ValueError for what is no element.

The group has five irreducible representations: A1 (trivial), A2, B1 and B2 of dimension 1, and E of dimension 2, the
symmetries as matrices that act on (right, up). Serre 1977, "Linear Representations of Finite Groups", sections 2.4 and
5.3.
"""

import torch
from torch import Tensor

ELEMENTS = 8
"""Order of the group."""
TURNS = 4
"""Order of its cyclic subgroup: the elements 0..3."""

_SIGNS = {"A1": (1, 1), "A2": (1, -1), "B1": (-1, 1), "B2": (-1, -1)}
"""What a quarter turn and what mirroring left-right is in each irreducible representation of dimension 1."""
_QUARTER_TURN = torch.tensor([[0, -1], [1, 0]], dtype=torch.float64)
_MIRRORING = torch.tensor([[-1, 0], [0, 1]], dtype=torch.float64)

IRREPS = {"A1": 1, "A2": 1, "B1": 1, "B2": 1, "E": 2}
"""Dimension of each irreducible representation; the regular representation holds each as often as its dimension."""


def compose(g: int, h: int) -> int:
    """The element that does first h, then g."""
    (turns_g, mirrored_g), (turns_h, mirrored_h) = _turns_and_mirrorings(g), _turns_and_mirrorings(h)
    # A turn after mirroring is mirroring after the opposite turn.
    turns = turns_g - turns_h if mirrored_g else turns_g + turns_h
    return turns % TURNS + TURNS * (mirrored_g ^ mirrored_h)


def inverse(g: int) -> int:
    """The element that undoes g; mirrorings undo themselves."""
    turns, mirrored = _turns_and_mirrorings(g)
    return g if mirrored else -turns % TURNS


def act_on_image(g: int, images: Tensor) -> Tensor:
    """Mirrors and turns square images, or any square maps, [..., S, S]: rows from the top, columns from the left."""
    turns, mirrored = _turns_and_mirrorings(g)
    if images.ndim < 2 or images.shape[-2] != images.shape[-1]:
        raise ValueError(
            f"images have shape {tuple(images.shape)}: the symmetries of the square act on square images [..., S, S], "
            "crop or pad them"
        )
    if mirrored:
        images = images.flip(-1)
    return torch.rot90(images, turns, dims=(-2, -1))


def irrep_matrix(name: str, g: int) -> Tensor:
    """The element g in an irreducible representation, an orthogonal matrix float64 [d, d]."""
    if name not in IRREPS:
        raise ValueError(f"the square has no irreducible representation {name!r}: choose one of {', '.join(IRREPS)}")
    turns, mirrored = _turns_and_mirrorings(g)
    if name == "E":
        turn, mirroring = _QUARTER_TURN, _MIRRORING
    else:
        turn, mirroring = (torch.tensor([[sign]], dtype=torch.float64) for sign in _SIGNS[name])
    return torch.linalg.matrix_power(turn, turns) @ torch.linalg.matrix_power(mirroring, mirrored)


def regular_to_irreps() -> Tensor:
    """The orthogonal matrix T, float64 [8, 8], that splits the regular representation into irreducible ones.

    The regular representation permutes functions on the group: (P_g f)(h) = f(g^-1 h). T P_g T^T is block diagonal for
    every g: A1, A2, B1, B2, E, E, each as `irrep_matrix` gives it. Row (name, column j, row i) of T is
    sqrt(d / 8) irrep_matrix(name, h)[i, j] over h, and i runs fastest (Serre 1977, proposition 5 and theorem 4).
    """
    rows = []
    for name, dimension in IRREPS.items():
        matrices = torch.stack([irrep_matrix(name, h) for h in range(ELEMENTS)])
        rows.append(matrices.permute(2, 1, 0).reshape(-1, ELEMENTS) * (dimension / ELEMENTS) ** 0.5)
    return torch.cat(rows)


def _turns_and_mirrorings(g: int) -> tuple[int, int]:
    if not 0 <= g < ELEMENTS:
        raise ValueError(f"{g} is not a symmetry of the square: use 0..{ELEMENTS - 1}")
    return g % TURNS, g // TURNS


MULTIPLICATION = torch.tensor([[compose(g, h) for h in range(ELEMENTS)] for g in range(ELEMENTS)])
"""int64 [8, 8]: at [g, h] the element that does first h, then g."""
