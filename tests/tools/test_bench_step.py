"""The benchmark of training steps compares methods fairly, at tiny sizes, and writes what it promises."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

TOOL = Path(__file__).parent.parent.parent / "tools" / "bench_step.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    specification = importlib.util.spec_from_file_location("tools_bench_step", TOOL)
    tool = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = tool
    specification.loader.exec_module(tool)
    return tool


def tiny_sizes(tool: ModuleType, **changes: object) -> object:
    return tool.MethodsConfig(
        encoder="strided_cnn_tiny", batch_size=4, image_size=32, small_size=16, projector=(16, 8), chunk_size=2,
        steps_per_round=1, rounds=2, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("bf16", [False, True])
def test_methods_are_compared_with_their_base(tool: ModuleType, bf16: bool, tmp_path: Path) -> None:
    tool.main(tool.Config(measure="methods", methods=tiny_sizes(tool, bf16=bf16), json=tmp_path / "cost.json"))
    report = json.loads((tmp_path / "cost.json").read_text())
    assert {"device", "python", "torch"} <= set(report["machine"])
    targets = {row["name"]: row["target"] for row in report["rows"]}
    assert targets["E-SSL / SimCLR"] == 1.4
    assert targets["CARE, two passes / SimCLR"] == 1.15
    assert "milliseconds, SimCLR" in targets
    assert all(0 < row["low"] <= row["ratio"] <= row["high"] for row in report["rows"])


def test_moco_is_compared_with_itself_and_a_pass_for_probes(tool: ModuleType, tmp_path: Path) -> None:
    tool.main(tool.Config(measure="probe_pass", methods=tiny_sizes(tool), json=tmp_path / "cost.json"))
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert [row["name"] for row in rows if "/" in row["name"]] == [
        "CARE on MoCo / CARE on MoCo and pass", "MoCo / MoCo and pass",
    ]  # fmt: skip
    assert sum("milliseconds" in row["name"] for row in rows) == 4


def test_a_busy_machine_is_timed_with_and_without_bounded_spinning(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def images_per_second(loop: object, spinning: dict[str, str]) -> float:
        asked.append(spinning)
        return 30.0 if spinning else 10.0

    monkeypatch.setattr(tool, "images_per_second_of_a_process", images_per_second)
    tool.main(tool.Config(measure="busy", busy=tool.BusyConfig(programs=(0, 1), turns=2), json=tmp_path / "busy.json"))
    rows = {row["name"]: row["ratio"] for row in json.loads((tmp_path / "busy.json").read_text())["rows"]}
    assert rows["bounded / OpenMP's own, beside 1 programs"] == 3
    assert rows["images per second, OpenMP's own, beside 0 programs"] == 10
    assert [bool(spinning) for spinning in asked] == [False, True] * 4


def test_methods_learn_from_the_same_images(tool: ModuleType) -> None:
    steps = tool.make_steps(tiny_sizes(tool), "cpu")
    views = steps[tool.BASE].inputs[0]
    assert views.shape == (4, 2, 3, 32, 32)
    assert views.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert all(step.inputs[0] is views for step in steps.values())
    assert steps["E-SSL"].inputs[2].shape == (4, 4, 3, 16, 16)
    before = [parameter.clone() for parameter in steps["E-SSL"].objective.parameters()]
    steps["E-SSL"].run()
    after = list(steps["E-SSL"].objective.parameters())
    assert not any(torch.equal(x, y) for x, y in zip(before, after, strict=True) if x.ndim > 1)


def test_measuring_the_gain_of_actions_is_timed_for_every_recipe_that_predicts(
    tool: ModuleType, tmp_path: Path
) -> None:
    gain = tool.GainConfig(recipes=("sie", "conv_jepa"), batch_size=2, steps_per_round=1, rounds=2)
    tool.main(tool.Config(measure="action_gain", gain=gain, json=tmp_path / "cost.json"))
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["sie, share of a step", "conv_jepa, share of a step"]
    assert {row["target"] for row in rows} == {0.02}


def test_all_recipes_that_predict_have_a_step(tool: ModuleType) -> None:
    for name in sys.modules["recipe_steps"].PREDICTING:
        step = sys.modules["recipe_steps"].recipe_step(name, "cpu", batch_size=2)
        step.objective.measures_action_gain = True
        assert step.objective(*step.inputs).action_gain is not None, name
