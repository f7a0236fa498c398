"""The benchmark of capsules compares equal things, at tiny sizes, and its figures are what they say."""

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from benchmarks import (
    Cost,
    Targets,
    comparison_rows,
    costs_in_turns,
    largest_relative_difference,
    peak_bytes,
    seconds_of,
)

TOOL = Path(__file__).parent.parent.parent / "tools" / "bench_capsules.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    specification = importlib.util.spec_from_file_location("tools_bench_capsules", TOOL)
    tool = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = tool
    specification.loader.exec_module(tool)
    return tool


@pytest.mark.parametrize("votes", ["free", "matrix"])
@pytest.mark.parametrize("pose_side", [3, 4])
def test_the_report_has_ratios_ranges_and_targets(tool: ModuleType, votes: str, pose_side: int, tmp_path: Path) -> None:
    sizes = {"batch_size": 4, "capsules": 4, "map_side": 3, "rounds": 2, "votes": votes, "pose_side": pose_side}
    tool.main(tool.Config(**sizes, json=tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"device", "python", "torch"} <= set(report["machine"])
    rows = {row["name"]: row for row in report["rows"]}
    assert {name: row["target"] for name, row in rows.items()} == {
        "self-routing time, broadcast / batched": 3.0,
        "self-routing peak memory, broadcast / batched": 5.0,
        "self-routing largest relative difference": 1e-5,
    }
    assert all(0 < row["low"] <= row["ratio"] <= row["high"] for row in rows.values())
    assert rows["self-routing largest relative difference"]["ratio"] < 1e-5


def test_a_wrong_weight_would_be_seen(tool: ModuleType) -> None:
    problem = tool.make_problem(tool.Config(batch_size=2, capsules=3, map_side=2))
    problem.broadcast_weights[1].data[5, 1, 2] += 0.1
    difference = largest_relative_difference(
        tool.broadcast_forward_backward(problem), tool.batched_forward_backward(problem)
    )
    assert difference > 1e-3


def test_peak_memory_is_that_of_tensors_that_live_together() -> None:
    kept = torch.zeros(1000)

    def work() -> torch.Tensor:
        first = kept + 1  # 4,000 bytes, gone with the next line
        first = torch.cat([first, first])  # 8,000 bytes beside it
        return first[:10].clone()

    assert peak_bytes(work, "cpu") == pytest.approx(12_000, abs=600)
    assert peak_bytes(lambda: kept.repeat(5), "cpu") == pytest.approx(20_000, abs=600)


def test_works_take_turns_and_the_first_round_does_not_count() -> None:
    turns: list[str] = []
    costs = costs_in_turns({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, rounds=2, device="cpu")
    assert "".join(turns) == "ab" + "ab" * 3
    assert [len(cost.seconds) for cost in costs.values()] == [2, 2]
    assert seconds_of(lambda: time.sleep(0.02), "cpu") >= 0.02


def test_ratios_are_of_one_round() -> None:
    costs = {"plain": Cost([2.0, 8.0, 3.0], 100), "better": Cost([1.0, 2.0, 1.0], 25)}
    time_row, memory_row, difference_row = comparison_rows("thing", costs, 1e-7, Targets(3.0, 5.0, 1e-5))
    assert time_row == {"name": "thing time, plain / better", "ratio": 3.0, "low": 2.0, "high": 4.0, "target": 3.0}
    assert memory_row["ratio"] == 4 and memory_row["target"] == 5
    assert difference_row["ratio"] == 1e-7
