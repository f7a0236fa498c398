"""Every variant of seq-JEPA trains, is judged, and differs from the base in what its name says."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from ssl_equi.errors import UserError

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(TOOLS)
    specification = importlib.util.spec_from_file_location("seq_jepa_variants", TOOLS / "seq_jepa_variants.py")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, specification.name, module)
    specification.loader.exec_module(module)
    small = {"batch_size": 4}
    variants = {
        name: replace(variant, config=variant.config | small, objective={"layers": 1} | variant.objective)
        for name, variant in module.VARIANTS.items()
    }
    monkeypatch.setattr(module, "VARIANTS", variants)
    monkeypatch.setattr(module, "QUICK", replace(module.QUICK, heads=replace(module.QUICK.heads, rotation_epochs=1)))
    return module


def test_variants_are_trained_and_judged_one_by_one(tool: ModuleType, tiny_data: Path, tmp_path: Path) -> None:
    names = (
        "base", "no_action", "centred_target", "linear_last_layer", "zero_branches", "all_latents", "gated_predictor",
    )  # fmt: skip
    figures = tmp_path / "figures.jsonl"
    tool.main(tool.Config(tiny_data, data_dir=tiny_data, only=names, images=32, json=figures))
    lines = {line["variant"]: line for line in map(json.loads, figures.read_text().splitlines())}
    assert tuple(lines) == names
    assert all(line["steps"] == 2 for line in lines.values())
    assert len({line["loss"] for line in lines.values()}) == len(names), "each changes something"


def test_unknown_variants_and_too_few_objects_are_refused(tool: ModuleType, tiny_data: Path) -> None:
    with pytest.raises(UserError, match="'bse': choose from base"):
        tool.main(tool.Config(tiny_data, data_dir=tiny_data, only=("bse",)))
    tool.VARIANTS["base"].config["batch_size"] = 1000
    with pytest.raises(UserError, match="at least 1000 objects of 4 views"):
        tool.main(tool.Config(tiny_data, data_dir=tiny_data, only=("base",), images=8000))
