"""The benchmark of seq-JEPA beside SIE compares what it says, at tiny sizes, and writes what it promises."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from benchmarks import TrainingStep, seconds_in_turns, step_cost_rows
from torch import nn

from ssl_equi.errors import UserError
from ssl_equi.objectives.seq_jepa import SeqJEPAConfig
from ssl_equi.objectives.sie import SIEConfig

TOOL = Path(__file__).parent.parent.parent / "tools" / "bench_sequences.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    specification = importlib.util.spec_from_file_location("tools_bench_sequences", TOOL)
    tool = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = tool
    specification.loader.exec_module(tool)
    return tool


def tiny_sizes(tool: ModuleType, **changes: object) -> object:
    sizes: dict = {
        "encoder": "strided_cnn_tiny", "batch_size": 4, "image_size": 32, "rounds": 2,
        "sie": SIEConfig(projector=(32, 32, 32)),
        "seq_jepa": SeqJEPAConfig(action_width=8, layers=1, feedforward_width=16, predictor_hidden_width=16),
    }  # fmt: skip
    return tool.Config(**(sizes | changes))


@pytest.mark.parametrize("bf16", [False, True])
def test_the_report_has_ratios_ranges_and_targets(tool: ModuleType, bf16: bool, tmp_path: Path) -> None:
    tool.main(tiny_sizes(tool, bf16=bf16, json=tmp_path / "cost.json"))
    report = json.loads((tmp_path / "cost.json").read_text())
    assert {"device", "python", "torch"} <= set(report["machine"])
    targets = {row["name"]: row["target"] for row in report["rows"]}
    assert targets["seq-JEPA M=1 / SIE"] == pytest.approx(1.1)
    assert targets["seq-JEPA M=3 / SIE"] == pytest.approx(2.2)
    assert {"milliseconds, SIE", "milliseconds, seq-JEPA M=1", "milliseconds, seq-JEPA M=3"} <= set(targets)
    assert all(0 < row["low"] <= row["ratio"] <= row["high"] for row in report["rows"])


def test_all_methods_see_as_many_objects(tool: ModuleType) -> None:
    steps = tool.make_steps(tiny_sizes(tool, observed_views=(2,)))
    assert [step.inputs[0].shape for step in steps.values()] == [(4, 2, 3, 32, 32), (4, 3, 3, 32, 32)]
    assert [step.inputs[1].shape for step in steps.values()] == [(4, 4), (4, 2, 4)]
    for step in steps.values():
        assert step.inputs[0].flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(step.inputs[1].norm(dim=-1), torch.ones(()))


def test_observed_views_take_one_call_of_the_encoder_and_targets_one_of_theirs(tool: ModuleType) -> None:
    step = tool.make_steps(tiny_sizes(tool, observed_views=(3,)))["seq-JEPA M=3"]
    objective = step.objective
    calls: list[tuple[str, int]] = []
    for name, encoder in (("encoder", objective.encoder), ("target", objective.target_encoder)):
        encoder.register_forward_pre_hook(lambda module, images, name=name: calls.append((name, len(images[0]))))
    before = [parameter.clone() for parameter in objective.target_encoder.parameters()]
    step.run()
    assert sorted(calls) == [("encoder", 3 * 4), ("target", 4)]
    moved = [not torch.equal(x, y) for x, y in zip(before, objective.target_encoder.parameters(), strict=True)]
    assert all(moved)


@pytest.mark.parametrize("observed_views", [(), (1, 0)])
def test_without_an_observed_view_there_is_nothing_to_measure(tool: ModuleType, observed_views: tuple) -> None:
    with pytest.raises(UserError, match="give numbers from 1 up"):
        tool.make_steps(tiny_sizes(tool, observed_views=observed_views))


class Recorded(TrainingStep):
    """Notes its turns instead of training."""

    def __init__(self, name: str, turns: list[str], figures: list[float]) -> None:
        self.name, self.turns, self.figures = name, turns, iter([0.0, *figures])

    def seconds(self, count: int) -> float:
        self.turns.append(f"{self.name}{count}")
        return next(self.figures)


def test_turns_alternate_and_ratios_are_of_one_round() -> None:
    turns: list[str] = []
    steps = {"a": Recorded("a", turns, [1.0, 4.0, 2.0]), "b": Recorded("b", turns, [2.0, 2.0, 6.0])}
    seconds = seconds_in_turns(steps, rounds=3, steps_per_round=5)
    assert turns == ["a2", "b2", "a5", "b5", "b5", "a5", "a5", "b5"]
    ratio, *milliseconds = step_cost_rows(seconds, "a", {"b": 1.5})
    assert ratio == {"name": "b / a", "ratio": 2.0, "low": 0.5, "high": 3.0, "target": 1.5}
    assert [row["ratio"] for row in milliseconds] == [2000.0, 2000.0]


def test_a_step_trains_and_then_does_what_follows() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.tensor(3.0))
            self.fixed = nn.Parameter(torch.tensor(1.0), requires_grad=False)

        def forward(self) -> nn.Module:
            self.loss = self.fixed * self.x**2
            return self

    objective, seen = Square(), []
    step = TrainingStep(
        objective, (), lambda parameters: torch.optim.SGD(parameters, lr=0.25), device="cpu",
        after=lambda: seen.append(objective.x.item()),
    )  # fmt: skip
    step.run()
    assert seen == [1.5]  # 3 - 0.25 * 2 * 3
    assert objective.x.grad is None
    assert objective.fixed.item() == 1
