"""The first term of a run that is not finite has its step and its name, however rarely somebody asks for it."""

import math

import pytest
import torch

from ssl_equi.objectives.base import ObjectiveOutput
from ssl_equi.training import log
from ssl_equi.training.log import FiniteWatch


def output(loss: float = 1.0, **terms: float) -> ObjectiveOutput:
    values = {name: torch.tensor(value) for name, value in terms.items()}
    return ObjectiveOutput(torch.tensor(loss), values, torch.zeros(1, 1, 1))


@pytest.mark.parametrize("most_unread", [2, 100])
def test_the_first_step_is_named_and_a_term_before_the_loss(most_unread: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MOST_STEPS_UNREAD", most_unread)
    watch = FiniteWatch()
    watch.look(output(variance=0.5), 1)
    watch.look(output(math.nan, variance=0.5, std_all=math.inf), 2)
    for step in (3, 4, 5, 6, 7):
        watch.look(output(math.nan, variance=math.nan), step)
    assert watch.first_bad().read() == (2, "std_all")
    watch.look(output(math.inf, variance=0.5), 8)
    assert watch.first_bad().read() == (8, "loss")


def test_all_is_well_before_the_first_step_and_after_finite_ones() -> None:
    watch = FiniteWatch()
    assert watch.first_bad().read() is None
    for step in range(5):
        watch.look(output(**({"std_all": 1.0} if step == 4 else {}), variance=2.0), step)
    assert watch.first_bad().read() is None
