"""The forms of SIE's step that are timed side by side compute the same, and are compared as they say."""

import io
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tools.test_tools import assert_is_benchmark_report, load_tool

TINY = {"image_size": 32, "batch_size": 4, "projector": (32, 32, 32), "num_classes": 3}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("sie_forms")


def in_double(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors)


def test_the_published_reading_has_the_loss_and_gradients_of_sie(tool: ModuleType) -> None:
    sizes = tool.Sizes(**TINY)
    torch.manual_seed(0)
    objective = tool.PlainSIE(
        tool.create_encoder(sizes.encoder, 32), tool.SIEConfig(projector=sizes.projector, separate_batch_norm=True)
    )
    published = tool.PublishedSIE(objective, sizes.num_classes).double()
    objective.double()
    with torch.no_grad():
        published.hypernetwork.weight.copy_(objective.predictor.matrices.flatten(1).T)
    views, actions, labels, poses = in_double(tool.random_inputs(sizes))
    parameters = [*objective.encoder.parameters(), *objective.projectors.parameters()]
    ours, theirs = tool.SIE.forward(objective, views, actions), published(views, actions, labels, poses)
    assert theirs.loss_of_sie.item() == pytest.approx(ours.loss.item(), rel=1e-9)
    pairs = zip(*(torch.autograd.grad(output.loss, parameters) for output in (ours, theirs)), strict=True)
    assert all(torch.allclose(mine, other, rtol=1e-6, atol=1e-9) for mine, other in pairs)


def test_a_plain_step_learns_what_that_of_runs_does(tool: ModuleType) -> None:
    steps = [tool.make_step(form, tool.Sizes(**TINY)) for form in ("as_runs", "plain")]
    for step in steps:
        step.objective.double()
        step.inputs = in_double(step.inputs)
        step.run()
        step.run()
    ours, theirs = (step.objective.state_dict() for step in steps)
    for name, value in theirs.items():
        assert torch.allclose(ours[name].double(), value.double(), rtol=1e-6, atol=1e-9), name


def test_the_evaluator_has_the_size_of_the_published_one(tool: ModuleType) -> None:
    with torch.device("meta"):
        objective = tool.SIE(tool.create_encoder("sie_resnet18", 64), tool.SIEConfig())
        evaluator = tool.PublishedSIE(objective, 55).evaluator
    assert sum(parameter.numel() for parameter in evaluator.parameters()) == pytest.approx(44.8e6, rel=0.01)
    assert all(isinstance(head, nn.Linear) for head in evaluator.classifiers)


def test_a_process_answers_each_line_with_a_time(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("round\nround\n"))
    tool.main(tool.Config("published", tool.Sizes(**TINY), steps_per_round=1))
    peak, *seconds = map(float, capsys.readouterr().out.split())
    assert peak > 1e6 and len(seconds) == 2 and all(value > 0 for value in seconds)


@pytest.mark.parametrize(("measure", "slower"), [("setup", "plain"), ("published", "published")])
def test_forms_are_compared(measure: str, slower: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench = load_tool("bench_step")
    ended: list[str] = []

    class Process:
        def __init__(self, form: str, sizes: Any, steps_per_round: int) -> None:
            self.form, self.peak_bytes = form, 100 if form == "as_runs" else 250
            self.rounds = 0

        def seconds(self) -> float:
            self.rounds += 1
            return 1e9 if self.rounds == 1 else (2.0 if self.form == "as_runs" else 3.0 + self.rounds)

        def end(self) -> None:
            ended.append(self.form)

    monkeypatch.setattr(bench, "FormProcess", Process)
    bench.main(bench.Config(measure=measure, forms=bench.FormsConfig(rounds=3), json=tmp_path / "report.json"))
    rows = assert_is_benchmark_report(tmp_path / "report.json")
    assert rows[f"time, {slower} / as_runs"]["ratio"] == 3  # rounds of 2.5, 3 and 3.5, the first left out
    assert rows[f"shortest rounds, {slower} / as_runs"]["ratio"] == 2.5
    assert rows[f"peak memory, {slower} / as_runs"]["ratio"] == 2.5
    assert rows["images per second, as_runs"]["ratio"] == 64
    assert sorted(ended) == sorted(["as_runs", slower])


@pytest.mark.slow
def test_real_processes_take_turns(tmp_path: Path) -> None:
    bench = load_tool("bench_step")
    forms = bench.FormsConfig(steps_per_round=1, rounds=2, setup=bench.Sizes(**TINY))
    bench.main(bench.Config(measure="setup", forms=forms, json=tmp_path / "report.json"))
    rows = assert_is_benchmark_report(tmp_path / "report.json")
    assert rows["images per second, plain"]["ratio"] > 0
