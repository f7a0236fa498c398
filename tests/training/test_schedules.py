"""Learning rates and momenta at the places that matter."""

import dataclasses
import math

import pytest
import torch

from ssl_equi.errors import UserError
from ssl_equi.options import check_options
from ssl_equi.training.config import PretrainingOptions
from ssl_equi.training.optimisation import (
    follow_schedule,
    set_learning_rate,
    target_momentum,
    warmup_cosine,
)


@dataclasses.dataclass(frozen=True)
class WithTarget(PretrainingOptions):
    target_momentum: float = 0.996


STEPS_PER_EPOCH = 82  # 41,920 objects in batches of 512, the last one incomplete
RELEASED = WithTarget(
    epochs=1000, learning_rate=4e-4, final_learning_rate=4e-4, warmup_from=1e-5, warmup_steps=20 * STEPS_PER_EPOCH,
    schedule_by="epoch",
)  # fmt: skip


def rate_of(config: PretrainingOptions, step: int) -> float:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    returned = follow_schedule(optimizer, config, step, config.epochs * STEPS_PER_EPOCH)
    assert optimizer.param_groups[0]["lr"] == returned
    return returned


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
    by_step = WithTarget(epochs=1, target_momentum=0.99)
    assert [target_momentum(by_step, step, 101) for step in (0, 50, 100, 300)] == pytest.approx([0.99, 0.995, 1.0, 1.0])
    assert target_momentum(by_step, 100, 101) == 1
    assert target_momentum(by_step, 0, 1) == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 1e-5), (1, 2.95e-5), (19, 3.805e-4), (20, 4e-4), (21, 4e-4), (999, 4e-4)]
)
def test_the_rate_of_an_epoch_is_that_of_seq_jepas_released_code(epoch: int, expected: float) -> None:
    steps = (0, 1, STEPS_PER_EPOCH // 2, STEPS_PER_EPOCH - 1)
    rates = [rate_of(RELEASED, epoch * STEPS_PER_EPOCH + step) for step in steps]
    assert rates == [pytest.approx(expected, rel=1e-12)] * 4 and len(set(rates)) == 1


@pytest.mark.parametrize("epoch", [0, 1, 19, 20, 500, 999])
def test_the_momentum_of_an_epoch_is_that_of_seq_jepas_released_code(epoch: int) -> None:
    expected = 1 - (1 - 0.996) * (math.cos(math.pi * epoch / 1000) + 1) / 2
    steps = (0, 1, STEPS_PER_EPOCH - 1)
    total_steps = RELEASED.epochs * STEPS_PER_EPOCH
    momenta = [target_momentum(RELEASED, epoch * STEPS_PER_EPOCH + step, total_steps) for step in steps]
    assert momenta == [pytest.approx(expected, rel=1e-12)] * 3 and len(set(momenta)) == 1
    assert momenta[0] < 1


def test_an_epoch_keeps_the_rate_of_its_first_step_on_every_schedule() -> None:
    by_step = PretrainingOptions(epochs=10, warmup_steps=100, schedule_by="step")
    by_epoch = dataclasses.replace(by_step, schedule_by="epoch")
    for step in range(10 * STEPS_PER_EPOCH):
        assert rate_of(by_epoch, step) == rate_of(by_step, STEPS_PER_EPOCH * (step // STEPS_PER_EPOCH))
    assert len({rate_of(by_step, step) for step in range(10 * STEPS_PER_EPOCH)}) > 800


def test_a_warm_up_from_a_rate_is_linear_and_ends_one_step_later() -> None:
    config = PretrainingOptions(epochs=2, learning_rate=1.0, final_learning_rate=1.0, warmup_steps=4, warmup_from=0.2)
    assert [rate_of(config, step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    as_before = dataclasses.replace(config, warmup_from=None)
    assert [rate_of(as_before, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_rate_to_warm_up_from_needs_a_warm_up() -> None:
    config = PretrainingOptions(warmup_steps=0)
    with pytest.raises(UserError, match=r"--warmup-from is 0\.1 and has no effect: give warmup_steps above 0"):
        check_options(dataclasses.replace(config, warmup_from=0.1), config)
    with pytest.raises(UserError, match=r"--warmup-from is -0\.1: give a number of at least 0"):
        check_options(PretrainingOptions(warmup_from=-0.1))
