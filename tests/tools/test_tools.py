"""The tools run, at tiny sizes, and write what they promise."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import simplejpeg

TOOLS = Path(__file__).parent.parent.parent / "tools"


def load_tool(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"tools_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def assert_is_benchmark_report(file: Path) -> dict[str, dict]:
    report = json.loads(file.read_text())
    assert {"python", "torch"} <= set(report["machine"])
    for row in report["rows"]:
        assert {"name", "ratio", "low", "high", "target"} <= set(row)
        assert row["low"] <= row["ratio"] <= row["high"]
    return {row["name"]: row for row in report["rows"]}


def test_predictor_benchmark(tmp_path: Path) -> None:
    tool = load_tool("bench_predictor")
    tool.main(tool.Config(batch_size=16, dim=64, rounds=2, json=tmp_path / "report.json"))
    rows = assert_is_benchmark_report(tmp_path / "report.json")
    assert len(rows) >= 3


def test_step_benchmark(tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = load_tool("bench_step")
    real = tool.open_data
    monkeypatch.setattr(tool, "open_data", lambda name, folder, split, size: real(name, tiny_data, split, 32))
    sizes = tool.LoopConfig(batch_size=8, projector_width=32, steps_per_round=4, rounds=2)
    tool.main(tool.Config(measure="loop", loop=sizes, json=tmp_path / "report.json"))
    rows = assert_is_benchmark_report(tmp_path / "report.json")
    assert rows["images a second"]["ratio"] > 0
    assert 0 <= rows["waiting for data, share of the loop"]["ratio"] < 1


def test_contact_sheet_has_the_stated_size(tmp_path: Path) -> None:
    tool = load_tool("contact_sheet")
    tool.main(tool.Config(out=tmp_path / "sheet.jpg", families=("chair", "dog", "mug"), objects=2, resolution=32))
    sheet = simplejpeg.decode_jpeg((tmp_path / "sheet.jpg").read_bytes())
    assert sheet.shape == (2 * 32, 2 * 2 * 2 * 32, 3)
    assert np.ptp(sheet) > 50
