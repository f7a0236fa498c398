"""The comparison of commits finds what differs, and leaves no recipe out."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    specification = importlib.util.spec_from_file_location("compare_commits", ROOT / "tools" / "compare_commits.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look it up there
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal folders like those of a run and a set in one."""
    old = tmp_path / "old"
    (old / "encoder").mkdir(parents=True)
    save_file({"weight": torch.ones(2), "bias": torch.zeros(1)}, old / "encoder" / "model.safetensors")
    (old / "encoder" / "config.json").write_text("{}")
    (old / "train-000000.tar").write_bytes(b"images")
    lines = [{"event": "loss", "step": 1, "loss": 0.5}, {"event": "speed", "step": 1, "seconds": 2.0}]
    (old / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    record = {"task": "classification", "part": "all", "metric": "top1", "value": 0.25}
    (old / "results.json").write_text(json.dumps({"records": [record], "run": {"time": 1}}))
    shutil.copytree(old, tmp_path / "new")
    return old, tmp_path / "new"


def replace_text(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_equal_folders_and_other_clocks_are_no_difference(tool: ModuleType, folders: tuple[Path, Path]) -> None:
    old, new = folders
    replace_text(new / "metrics.jsonl", "2.0", "3.0")
    replace_text(new / "results.json", '"time": 1', '"time": 2')
    assert tool.differences(old, new) == []


def test_each_difference_is_named(tool: ModuleType, folders: tuple[Path, Path]) -> None:
    old, new = folders
    replace_text(new / "metrics.jsonl", "0.5", "0.50000001")
    replace_text(new / "results.json", "0.25", "0.26")
    save_file({"weight": torch.ones(2), "bias": torch.full((1,), 1e-9)}, new / "encoder" / "model.safetensors")
    (new / "train-000000.tar").write_bytes(b"pixels")
    assert sorted(tool.differences(old, new)) == [
        "encoder/model.safetensors: 1 of 2 tensors differ, such as bias",
        "metrics.jsonl: {'event': 'loss', 'step': 1}: loss 0.5 -> 0.50000001",
        "results.json: {'task': 'classification', 'part': 'all', 'metric': 'top1'}: value 0.25 -> 0.26",
        "train-000000.tar differs",
    ]


def test_what_is_missing_and_what_is_empty_differ(tool: ModuleType, folders: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = folders
    (new / "encoder" / "config.json").unlink()
    replace_text(new / "metrics.jsonl", '"event": "loss"', '"event": "other"')
    assert tool.differences(old, new) == [
        "metrics.jsonl: 1 entries before, 0 after",
        "other files: [PosixPath('encoder/config.json')]",
    ]
    (tmp_path / "empty").mkdir()
    assert tool.differences(tmp_path / "empty", tmp_path / "empty") == ["nothing was left that could be compared"]


def test_every_recipe_and_evaluation_is_compared(tool: ModuleType) -> None:
    scripts = {case.command[0] for case in (*tool.runs(), *tool.evaluations())}
    recipes = {f"recipes/{file.name}" for file in (ROOT / "recipes").glob("*.py")}
    evaluations = {f"evaluation/{file.name}" for file in (ROOT / "evaluation").glob("*.py")}
    no_numbers = {f"evaluation/{name}.py" for name in ("export", "report", "table")}  # of their own
    assert scripts == recipes | evaluations - no_numbers
    names = [case.name for case in (*tool.sets(), *tool.runs(), *tool.evaluations())]
    assert len(names) == len(set(names))


def test_named_additions_and_another_order_are_told_from_other_numbers(
    tool: ModuleType, folders: tuple[Path, Path]
) -> None:
    old, new = folders
    first, second = ({"task": task, "part": "all", "metric": "top1", "value": 0.5} for task in ("linear", "knn"))
    added = {"task": "action_gain", "part": "all", "metric": "action_gain", "value": 0.1}
    (old / "results.json").write_text(json.dumps({"records": [first, second]}))
    (new / "results.json").write_text(json.dumps({"records": [first, second, added]}))
    replace_text(new / "metrics.jsonl", '"loss": 0.5', '"loss": 0.5, "action_gain": 0.2')
    assert len(tool.differences(old, new)) == 2
    assert tool.differences(old, new, ["action_gain"]) == []
    (new / "results.json").write_text(json.dumps({"records": [second, added, first]}))
    assert tool.differences(old, new, ["action_gain"]) == ["results.json: another order"]
