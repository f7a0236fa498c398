"""The benchmark of encoders compares what it says, at tiny sizes and without compiling."""

import dataclasses
import functools
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ssl_equi.errors import UserError

TOOL = Path(__file__).parent.parent.parent / "tools" / "bench_encoders.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The tool, with two blocks in every transformer."""
    specification = importlib.util.spec_from_file_location("tools_bench_encoders", TOOL)
    tool = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = tool
    specification.loader.exec_module(tool)
    for case, contestants in tool.CASES.items():
        if "vit" in case:
            tool.CASES[case] = [
                dataclasses.replace(contestant, make=functools.partial(contestant.make, depth=2))
                for contestant in contestants
            ]
    return tool


def report_of(tool: ModuleType, file: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    """Rows by name."""
    sizes = {"batch_size": 2, "image_size": 32, "rounds": 2, "compile": False}
    tool.main(tool.Config(**(sizes | changes), json=file))
    report = json.loads(file.read_text())
    assert {"device", "python", "torch"} <= set(report["machine"])
    rows = {row["name"]: row for row in report["rows"]}
    assert len(rows) == len(report["rows"])
    assert all(0 < row["low"] <= row["ratio"] <= row["high"] for row in rows.values())
    return rows


def test_blocks_and_transformers_are_compared_with_the_ordinary_ones(tool: ModuleType, tmp_path: Path) -> None:
    rows = report_of(tool, tmp_path / "cost.json", cases=("block_base", "vit_tiny"))
    assert rows["block_base: CPU time, Block / OcticBlock"]["target"] == 3.0
    title = "vit_tiny_patch16_224 / octic_vit_tiny_patch16_224"
    assert rows[f"vit_tiny: multiplications of linear layers, {title}"]["ratio"] == pytest.approx(64 / 12)
    for kind in ("CPU time", "wall clock"):
        assert {f"vit_tiny: {kind}, {title}", f"vit_tiny: {kind}, {title.replace('/ ', '/ hybrid_')}"} <= set(rows)
    assert "vit_tiny: milliseconds, vit_tiny_patch16_224" in rows


def test_what_cannot_be_trained_is_timed_in_inference_only(tool: ModuleType, tmp_path: Path) -> None:
    cases = {"cases": ("group_resnet",), "rounds": 1}
    title = "group_resnet: CPU time, resnet18 / d4_resnet18"
    trained = report_of(tool, tmp_path / "cost.json", **cases)
    assert title in trained and f"{title}, baked" not in trained
    assert {title, f"{title}, baked"} <= set(report_of(tool, tmp_path / "cost.json", **cases, passes="inference"))


@pytest.mark.parametrize("case", ["shift_equivariant_vit", "averaging"])
def test_a_profile_has_shares_of_the_time(tool: ModuleType, case: str, tmp_path: Path) -> None:
    rows = report_of(tool, tmp_path / "cost.json", cases=(case,), rounds=1, profile=True)
    shares = {name: row["ratio"] for name, row in rows.items() if "share" in name}
    contestants = tool.CASES[case]
    for number, contestant in enumerate(contestants):
        own = [share for name, share in shares.items() if name.endswith(f", {contestant.name}")]
        assert 2 <= len(own) <= 8 and 0.5 < sum(own) <= 1, number


def test_multiplications_alone_can_be_counted(tool: ModuleType, tmp_path: Path) -> None:
    rows = report_of(tool, tmp_path / "cost.json", cases=("vit_huge",), rounds=0, image_size=224)
    assert all("multiplications" in name for name in rows)
    title = "vit_huge_patch16_224 / hybrid_octic_vit_huge_patch16_224"
    assert rows[f"vit_huge: multiplications of linear layers, {title}"]["ratio"] == pytest.approx(2 / (1 + 12 / 64))
    assert 1.6 < rows[f"vit_huge: multiplications, {title}"]["ratio"] < 1.68


def test_targets_are_of_the_device_and_of_training(tool: ModuleType) -> None:
    contestants = tool.CASES["vit_small"]
    seconds = {contestant.name: [tool.Seconds(4.0, 3.0), tool.Seconds(2.0, 9.0)] for contestant in contestants}
    seconds[contestants[1].name] = [tool.Seconds(2.0, 1.0), tool.Seconds(0.5, 3.0)]

    def rows(device: str, passes: str) -> list[dict[str, Any]]:
        found = tool.ratio_rows(contestants, seconds, tool.Config(device=device, passes=passes))
        return [row for row in found if " / octic" in row["name"]]

    cpu, wall = rows("cpu", "training")
    assert (cpu["ratio"], cpu["low"], cpu["high"], cpu["target"]) == (3.0, 3.0, 3.0, 2.2)
    assert (wall["ratio"], wall["low"], wall["high"], wall["target"]) == (3.0, 2.0, 4.0, None)
    assert [row["target"] for row in rows("cpu", "inference")] == [None, None]
    assert [row["name"] for row in rows("cuda", "training")] == [wall["name"]]
    large = {contestant.name: contestant.cuda_target for contestant in tool.CASES["vit_large"]}
    assert large["hybrid_octic_vit_large_patch16_224"] == 1.4


def test_turns_alternate_and_the_first_rounds_do_not_count(tool: ModuleType) -> None:
    turns: list[str] = []

    class Recorded:
        device = "cpu"

        def __init__(self, name: str) -> None:
            self.run = lambda: turns.append(name)

    seconds = tool.seconds_in_turns({name: Recorded(name) for name in "ab"}, rounds=2)
    assert "".join(turns) == "ab" + "ba" + "ab" + "ba"
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_compiling_is_checked_in_float32(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    step = tool.Step(tool.CASES["block_base"][1], tool.Config(batch_size=1, image_size=32))
    compiled: list[bool] = []
    monkeypatch.setattr(step.module.blocks[0], "compile", lambda: compiled.append(True))
    assert step.compile_blocks() and compiled == [True]
    assert step.results().keys() == {"outputs", "gradients"}
    assert step.compilation_difference() == 0

    seen: list[tuple[bool, torch.Tensor]] = []

    def results_that_change() -> dict[str, torch.Tensor]:
        seen.append((step.bf16, torch.full((2,), 4.0 + len(seen))))
        return {"outputs": seen[-1][1]}

    step.bf16 = True  # as on CUDA
    monkeypatch.setattr(step, "results", results_that_change)
    with pytest.raises(RuntimeError, match=r"compiling changes results by 2\.5e-01, more than 1e-04"):
        step.compilation_difference()
    assert [bf16 for bf16, _ in seen] == [False, False] and step.bf16
    assert not tool.Step(tool.CASES["group_resnet"][0], tool.Config(batch_size=1, image_size=32)).compile_blocks()


def test_a_case_that_fails_does_not_end_the_others(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def differs(step: Any) -> float:
        raise RuntimeError("compiling changes results by 6.9e-02, more than 1e-04")

    file = tmp_path / "cost.json"
    monkeypatch.setattr(tool.Step, "compilation_difference", differs)
    with pytest.raises(UserError, match="block_base failed, see above"):
        report_of(tool, file, cases=("group_resnet", "block_base", "averaging"), rounds=1, compile=True, image_size=64)
    assert "block_base failed: compiling changes results by 6.9e-02" in capsys.readouterr().out
    kept = {row["name"].partition(":")[0] for row in json.loads(file.read_text())["rows"]}
    assert kept == {"group_resnet", "averaging"}
