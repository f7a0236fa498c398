"""The learning rate's values at the places that matter."""

import math

import pytest
import torch

from ssl_equi.schedules import rising_momentum, set_learning_rate, warmup_cosine


def rate(step: int) -> float:
    return warmup_cosine(step, base=1.0, final=0.1, warmup_steps=10, total_steps=111)


def test_warm_up_is_linear_and_never_zero() -> None:
    assert [rate(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])


def test_cosine_starts_at_base_and_ends_at_final() -> None:
    assert rate(10) == pytest.approx(1.0)
    assert rate(60) == pytest.approx(0.55)
    assert rate(85) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.75)))
    assert rate(110) == pytest.approx(0.1)
    assert rate(500) == pytest.approx(0.1)


def test_equal_ends_are_a_constant_rate() -> None:
    rates = {warmup_cosine(step, base=1e-3, final=1e-3, warmup_steps=0, total_steps=50) for step in range(50)}
    assert rates == {1e-3}


def test_groups_follow_with_their_factor_or_stay() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    groups = [{"params": [weights[0]]}, {"params": [weights[1]], "rate_factor": 0.1}]
    optimizer = torch.optim.SGD([*groups, {"params": [weights[2]], "constant_rate": 0.7}], lr=1.0)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 0.05, 0.7])


def test_the_targets_momentum_rises_to_one() -> None:
    values = [rising_momentum(step, base=0.99, total_steps=101) for step in (0, 50, 100, 300)]
    assert values == pytest.approx([0.99, 0.995, 1.0, 1.0])
    assert rising_momentum(0, base=0.99, total_steps=1) == pytest.approx(0.99)
