"""The views benchmark runs at a tiny size and writes what it promises."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

TOOL = Path(__file__).parent.parent.parent / "tools" / "bench_views.py"


@pytest.fixture
def tool() -> ModuleType:
    specification = importlib.util.spec_from_file_location("tools_bench_views", TOOL)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def test_the_report_has_the_ratio_its_range_and_target(tool: ModuleType, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        tool.main(tool.Config(batch_size=4, image_size=32, rounds=3, json=tmp_path / "report.json"))
    finally:
        torch.set_num_threads(threads)
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"device", "python", "torch"} <= set(report["machine"])
    (row,) = report["rows"]
    assert 0 < row["low"] <= row["ratio"] <= row["high"]
    assert row["target"] == 1
    assert "32 px, batches of 4 on cpu" in row["name"]


def test_both_sides_see_the_same_pictures(tool: ModuleType) -> None:
    pictures = tool.make_pictures(tool.Config(batch_size=5, image_size=32), torch.Generator().manual_seed(0))
    for picture, canvas, (height, width) in zip(pictures.each, pictures.canvas, pictures.sizes.tolist(), strict=True):
        assert picture.shape == (3, height, width)
        assert torch.equal(canvas[:height, :width].permute(2, 0, 1), picture)
        assert canvas[height:].sum() == canvas[:, width:].sum() == 0
