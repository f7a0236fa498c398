"""Adaptive polyphase anchoring: against phases cut out one by one, and under every circular shift."""

import itertools

import pytest
import torch
from torch import Tensor

from ssl_equi.encoders.shifts.polyphase import (
    act_on_image,
    anchor,
    nearest_multiple,
    phase_energies,
    phase_offsets,
    shift_back,
)
from tests.encoders.symmetric_encoders import assert_refused


def random_maps(height: int = 8, width: int = 12, n: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 2, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def one_by_one(maps: Tensor, period: int) -> tuple[Tensor, Tensor]:
    """What `anchor` is defined to give, from slices and norms."""
    anchored, offsets = [], []
    for own in maps:
        phases = list(itertools.product(range(period), repeat=2))
        norms = [own[:, a::period, b::period].double().norm() for a, b in phases]
        a, b = phases[norms.index(max(norms))]
        anchored.append(torch.roll(own, (-a, -b), (1, 2)))
        offsets.append([a, b])
    return torch.stack(anchored), torch.tensor(offsets)


@pytest.mark.parametrize("period", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_phase_of_largest_energy_comes_first(period: int, dtype: torch.dtype) -> None:
    maps = random_maps(n=16, dtype=dtype)
    anchored, offsets = anchor(maps, period)
    expected, expected_offsets = one_by_one(maps, period)
    assert torch.equal(anchored, expected) and anchored.dtype == dtype
    assert torch.equal(offsets, expected_offsets) and torch.equal(phase_offsets(maps, period), offsets)
    assert torch.equal(shift_back(anchored, offsets), maps)
    energies = phase_energies(anchored, period)
    assert torch.equal(energies.flatten(1).argmax(1), torch.zeros(16, dtype=torch.int64))
    assert torch.allclose(energies.sum((1, 2)), maps.double().square().sum((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_shift_moves_what_is_anchored_by_the_predicted_whole_periods(dtype: torch.dtype) -> None:
    """Equal to the bit, for all 96 shifts of the map and some around it."""
    period, maps = 4, random_maps(dtype=dtype)
    anchored, offsets = anchor(maps, period)
    for shift in itertools.product(range(-2, 10), range(-3, 13)):
        found, found_offsets = anchor(act_on_image(shift, maps), period)
        begins = offsets + torch.tensor(shift)
        assert torch.equal(found_offsets, begins % period)
        for own, before, begin in zip(found, anchored, begins.tolist()):
            whole = tuple(coordinate // period * period for coordinate in begin)
            assert torch.equal(own, act_on_image(whole, before))


def test_shifts_are_a_group_that_acts_on_images() -> None:
    maps = random_maps()
    assert torch.equal(act_on_image((0, 0), maps), maps) and torch.equal(act_on_image((8, -12), maps), maps)
    assert torch.equal(act_on_image((1, 2), act_on_image((3, -5), maps)), act_on_image((4, -3), maps))
    assert torch.equal(act_on_image((1, 2), maps)[..., 1, 2], maps[..., 0, 0])


def test_ties_and_near_ties_are_resolved_in_every_precision() -> None:
    assert torch.equal(phase_offsets(torch.ones(1, 1, 4, 4), 2), torch.tensor([[0, 0]]))  # the first phase
    maps = torch.zeros(2, 1, 4, 4)
    maps[:, 0, 0, 1] = 1.0
    maps[:, 0, 3, 2] = torch.tensor([-1.0, -1.5])
    assert torch.equal(phase_offsets(maps, 2), torch.tensor([[0, 1], [1, 0]]))
    # Energies 2^24 and 2^24 + 1 are equal in single precision if each is one sum.
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 0, 0], maps[0, 0, 0, 1], maps[0, 0, 2, 1] = 4096.0, 4096.0, 1.0
    assert phase_offsets(maps, 2).tolist() == [[0, 1]]
    # Both energies would overflow in half precision, and tie.
    maps = torch.zeros(1, 2, 4, 4, dtype=torch.float16)
    maps[0, :, 0, 0], maps[0, :, 1, 1] = 300.0, 400.0
    assert phase_offsets(maps, 2).tolist() == [[1, 1]]


def test_a_tie_of_different_phases_does_not_move_with_the_map() -> None:
    """The documented limit: one bright and one dark dot of the same energy."""
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 0, 0], maps[0, 0, 0, 1] = 1.0, -1.0
    assert anchor(maps, 2)[0][..., ::2, ::2].sum() == 1
    assert anchor(act_on_image((0, 1), maps), 2)[0][..., ::2, ::2].sum() == -1


def test_gradients_pass_through_the_shift() -> None:
    maps = random_maps(4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda own: anchor(own, 2)[0], (maps,))
    weights = random_maps(4, 4, n=3).flip(0)
    anchored, offsets = anchor(maps, 2)
    (gradient,) = torch.autograd.grad((anchored * weights).sum(), maps)
    assert torch.equal(gradient, shift_back(weights, offsets))


def test_nearest_multiples() -> None:
    for side, step, nearest in ((8, 4, 8), (9, 4, 8), (10, 4, 12), (1, 4, 4), (0, 3, 3)):
        assert nearest_multiple(side, step) == nearest


def test_what_has_no_phases_is_named() -> None:
    assert_refused(
        (r"shape \(3, 4, 4\): anchoring takes \[N, C, H, W\]", lambda: anchor(torch.zeros(3, 4, 4), 2)),
        ("of type torch.uint8: .*use maps.float", lambda: anchor(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 2)),
        ("period is 0: it must be at least 1", lambda: anchor(torch.zeros(1, 3, 4, 4), 0)),
        ("8 x 10 have no .* period 4: the nearest .* is 8 x 12", lambda: anchor(torch.zeros(1, 3, 8, 10), 4)),
        ("0 x 4 have no .* period 2: the nearest .* is 2 x 4", lambda: anchor(torch.zeros(1, 3, 0, 4), 2)),
    )


def test_no_maps_are_no_error() -> None:
    anchored, offsets = anchor(torch.zeros(0, 3, 4, 4), 2)
    assert anchored.shape == (0, 3, 4, 4) and offsets.shape == (0, 2)
