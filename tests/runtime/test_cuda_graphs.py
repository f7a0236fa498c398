"""Captured functions are what they capture, on a simulated graph; `tests/test_cuda.py` has those of a GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.errors import RunError
from ssl_equi.runtime.cuda_graphs import ORDINARY_CALLS, CapturedFunction
from tests.recorded_graph import RecordedGraph, simulate_graphs

CALLS = ORDINARY_CALLS + 3


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate_graphs(monkeypatch)


def test_later_calls_repeat_operators_and_no_python() -> None:
    python_calls = []
    counter = torch.zeros(2)

    def function(given: Tensor, unknown: None) -> Tensor:
        python_calls.append(1)
        counter.add_(given)
        return counter * 2

    captured = CapturedFunction(function, "cpu")
    found = [captured(torch.full((2,), float(call)), None).tolist() for call in range(CALLS)]
    assert found == [[call * (call + 1.0)] * 2 for call in range(CALLS)]
    assert len(python_calls) == ORDINARY_CALLS + 1 and RecordedGraph.replays == CALLS - ORDINARY_CALLS


@pytest.mark.parametrize("optimizer_of", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_weights_follow_the_learning_rate_of_each_call(
    optimizer_of: Callable[..., torch.optim.Optimizer],
) -> None:
    inputs = torch.randn(CALLS, 4, 3, generator=torch.Generator().manual_seed(0))

    def trained(captures: bool) -> tuple[Tensor, list[dict[str, object]]]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        groups = [{"params": [layer.weight]}, {"params": [layer.bias], "weight_decay": 0.1}]
        optimizer = optimizer_of(groups, lr=1.0, fused=True)

        def step(given: Tensor) -> Tensor:
            loss = nn.functional.dropout(layer(given)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        train = CapturedFunction(step, "cpu", [optimizer]) if captures else step
        for number, given in enumerate(inputs):
            torch.manual_seed(number)
            for group, factor in zip(optimizer.param_groups, (1.0, 0.3)):
                group["lr"] = 0.1 * factor / (number + 1)
            loss = train(given)
        options = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        return torch.cat([loss.reshape(1), layer.weight.detach().flatten(), layer.bias.detach()]), options

    (found, options), (expected, ordinary_options) = trained(True), trained(False)
    assert torch.equal(found, expected)
    assert options == ordinary_options  # with which checkpoints are written


def test_inputs_of_another_shape_have_a_graph_of_their_own() -> None:
    captured = CapturedFunction(lambda given: given.sum(dim=0), "cpu")
    for rows in (2, 3, 2, 2, 2, 3, 3, 2, 3, 3):
        given = torch.randn(rows)
        assert captured(given) == given.sum()
    assert RecordedGraph.replays == 4


def test_a_function_that_waits_for_the_device_is_refused() -> None:
    captured = CapturedFunction(lambda given: given * given.sum().item(), "cpu")
    for _ in range(ORDINARY_CALLS):
        captured(torch.ones(2))
    with pytest.raises(RunError, match=r"not permitted when stream is capturing.*: leave out --cuda-graph"):
        captured(torch.ones(2))


def test_a_function_may_need_no_inputs() -> None:
    counter = torch.zeros(1)
    captured = CapturedFunction(lambda: counter.add_(1), "cpu")
    assert [captured().item() for _ in range(CALLS)] == [*range(1, CALLS + 1)]


def test_a_number_of_python_stays_that_of_the_capture() -> None:
    """As on a GPU: whoever captures a function with such numbers learns of it here."""
    numbers = iter(range(CALLS))
    captured = CapturedFunction(lambda given: given * next(numbers), "cpu")
    found = [captured(torch.ones(1)).item() for _ in range(CALLS)]
    assert found == [0, 1, 2, 3, 3, 3]
