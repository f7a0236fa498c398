"""The symmetries of the square: the laws of a group, its action on images and its representations."""

import pytest
import torch
from torch import Tensor

from ssl_equi.encoders.square.symmetries import (
    ELEMENTS,
    IRREPS,
    MULTIPLICATION,
    TURNS,
    act_on_image,
    compose,
    inverse,
    irrep_matrix,
    regular_to_irreps,
)
from tests.encoders.symmetric_encoders import assert_refused

PAIRS = [(g, h) for g in range(ELEMENTS) for h in range(ELEMENTS)]


def regular_permutation(g: int) -> Tensor:
    """P_g: it moves the value at h to g h."""
    matrix = torch.zeros(ELEMENTS, ELEMENTS, dtype=torch.float64)
    for h in range(ELEMENTS):
        matrix[compose(g, h), h] = 1
    return matrix


def test_the_multiplication_table_is_that_of_a_group() -> None:
    assert MULTIPLICATION.dtype == torch.int64
    elements = torch.arange(ELEMENTS)
    assert torch.equal(MULTIPLICATION[0], elements) and torch.equal(MULTIPLICATION[:, 0], elements)
    for table in (MULTIPLICATION, MULTIPLICATION.T):
        assert torch.equal(table.sort(dim=1).values, elements.expand(ELEMENTS, -1))
    assert torch.equal(MULTIPLICATION[MULTIPLICATION], MULTIPLICATION[:, MULTIPLICATION])
    assert not torch.equal(MULTIPLICATION, MULTIPLICATION.T)
    for g, h in PAIRS:
        assert MULTIPLICATION[g, h] == compose(g, h)
        assert (compose(g, h) == 0) == (h == inverse(g))
        assert compose(g, h) < TURNS or g >= TURNS or h >= TURNS


def test_composition_is_that_of_the_action_on_images() -> None:
    for side in (2, 3, 5):
        images = torch.arange(2.0 * side * side).view(2, side, side)
        for g, h in PAIRS:
            assert torch.equal(act_on_image(g, act_on_image(h, images)), act_on_image(compose(g, h), images))
        assert len({tuple(act_on_image(g, images).flatten().tolist()) for g in range(ELEMENTS)}) == ELEMENTS


def test_elements_mirror_first_and_then_turn_counter_clockwise() -> None:
    image = torch.tensor([[1, 2], [3, 4]])
    assert act_on_image(0, image).tolist() == [[1, 2], [3, 4]]
    assert act_on_image(1, image).tolist() == [[2, 4], [1, 3]]
    assert act_on_image(4, image).tolist() == [[2, 1], [4, 3]]
    assert act_on_image(5, image).tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize("name", IRREPS)
def test_irreducible_representations_are_orthogonal_homomorphisms(name: str) -> None:
    for g, h in PAIRS:
        assert torch.equal(irrep_matrix(name, g) @ irrep_matrix(name, h), irrep_matrix(name, compose(g, h)))
    for g in range(ELEMENTS):
        matrix = irrep_matrix(name, g)
        assert matrix.shape == (IRREPS[name], IRREPS[name]) and matrix.dtype == torch.float64
        assert torch.equal(matrix @ matrix.T, torch.eye(IRREPS[name], dtype=torch.float64))


def test_their_characters_are_orthonormal() -> None:
    characters = torch.stack([torch.stack([irrep_matrix(n, g).trace() for g in range(ELEMENTS)]) for n in IRREPS])
    assert torch.equal(characters @ characters.T / ELEMENTS, torch.eye(len(IRREPS), dtype=torch.float64))


def test_e_moves_directions_as_the_action_moves_pixels() -> None:
    """A bright pixel right of and above the centre, its place as (right, up)."""
    place = torch.tensor([1.0, 2.0], dtype=torch.float64)
    image = torch.zeros(5, 5)
    image[2 - 2, 2 + 1] = 1
    for g in range(ELEMENTS):
        row, column = act_on_image(g, image).nonzero()[0].tolist()
        assert [column - 2, 2 - row] == (irrep_matrix("E", g) @ place).tolist()


def test_the_regular_representation_is_split_into_irreducible_ones() -> None:
    change = regular_to_irreps()
    assert torch.allclose(change @ change.T, torch.eye(ELEMENTS, dtype=torch.float64), atol=1e-15)
    for g in range(ELEMENTS):
        blocks = [irrep_matrix(name, g) for name in ("A1", "A2", "B1", "B2", "E", "E")]
        split = change @ regular_permutation(g) @ change.T
        assert torch.allclose(split, torch.block_diag(*blocks), atol=1e-15)


def test_what_is_no_symmetry_of_a_square_is_refused() -> None:
    assert_refused(
        ("-1 is not a symmetry of the square: use 0..7", lambda: inverse(-1)),
        ("8 is not a symmetry of the square: use 0..7", lambda: inverse(8)),
        ("is not a symmetry", lambda: compose(0, 8)),
        ("is not a symmetry", lambda: act_on_image(-1, torch.zeros(3, 3))),
        (r"shape \(3, 4, 5\).*square images", lambda: act_on_image(4, torch.zeros(3, 4, 5))),
        ("representation 'B3': choose one of A1, A2, B1, B2, E", lambda: irrep_matrix("B3", 0)),
    )
