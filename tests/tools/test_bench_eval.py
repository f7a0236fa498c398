"""The benchmark of evaluation counts and times what it says, at tiny sizes, and notices if the two ways differ."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ssl_equi.errors import UserError

TOOL = Path(__file__).parent.parent.parent / "tools" / "bench_eval.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    specification = importlib.util.spec_from_file_location("tools_bench_eval", TOOL)
    tool = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = tool
    specification.loader.exec_module(tool)
    return tool


def tiny(tool: ModuleType, **changes: object) -> object:
    sizes = {
        "train_objects": 6,
        "test_objects": 4,
        "views": 5,
        "epochs": 2,
        "objects": 7,
        "embedding_dim": 8,
        "rounds": 2,
    }
    return tool.Config(**(sizes | changes))


def test_the_report_has_counts_ratios_and_targets(tool: ModuleType, tmp_path: Path) -> None:
    tool.main(tiny(tool, json=tmp_path / "eval.json"))
    report = json.loads((tmp_path / "eval.json").read_text())
    assert {"device", "python", "torch"} <= set(report["machine"])
    rows = {row["name"]: row for row in report["rows"]}
    usual = rows["images, nine probes the usual way, 2 epochs"]
    assert usual["ratio"] == usual["target"] == 2 * (6 + 4) * 5 * 3
    assert rows["images, the same probes and more with ours"]["ratio"] == (6 + 4) * 5
    ratio = rows["images of 300 epochs, usual / ours"]
    assert (ratio["ratio"], ratio["target"]) == (4500 / 5, 50)
    assert rows["both, loop / ours"]["target"] == 50
    assert rows["operators of nine heads, apart / together"]["ratio"] > 2
    assert all(0 < row["low"] <= row["ratio"] <= row["high"] for row in report["rows"])


def test_the_formula_gives_the_numbers_of_3diebench(tool: ModuleType) -> None:
    objects = 41_920 + 10_552
    assert tool.images_of_the_usual_way(objects) == pytest.approx(236e6, rel=1e-3)
    assert tool.images_of_the_usual_way(objects) / (objects * 50) == 90


def test_the_usual_way_learns(tool: ModuleType) -> None:
    """So that its count is that of probes, not of something that only encodes."""
    torch.manual_seed(0)
    encoder = tool.CountingEncoder().eval()
    splits = [tool.RandomViews(name, count, 5) for name, count in (("train", 64), ("test", 16))]
    losses = [
        tool.probe_the_usual_way(encoder, slice(0, 12), "relative_rotation", *splits, epochs, "cpu")
        for epochs in (1, 60)
    ]
    assert losses[1] < losses[0]
    assert encoder.images == (64 + 16) * 2 * 61


@pytest.mark.parametrize("broken", ["ranks_of_ours", "errors_of_ours"])
def test_other_results_than_the_loops_are_an_error(
    tool: ModuleType, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = tool.make_retrieval(tiny(tool))
    tool.check_equal(problem, range(35))
    shifted = problem._replace(predictions=problem.predictions.roll(1, dims=0))
    original = getattr(tool, broken)
    monkeypatch.setattr(tool, broken, lambda _: original(shifted))
    with pytest.raises(RuntimeError, match="the loop"):
        tool.check_equal(problem, range(35))


def test_sizes_without_an_answer_are_named(tool: ModuleType) -> None:
    with pytest.raises(UserError, match="give 3 training objects, 2 views and 1 of all else or more"):
        tool.main(tiny(tool, views=1))
