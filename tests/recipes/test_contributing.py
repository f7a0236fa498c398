"""The method that CONTRIBUTING.md adds: both files, as they stand there, train, resume, and leave what any run does."""

import dataclasses
import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ssl_equi import load_encoder
from ssl_equi.checkpoint import list_checkpoints
from tests.fakes import SmallConfig, numbers, train_only

ROOT = Path(__file__).parents[2]
OBJECTIVE, RECIPE = "ssl_equi/objectives/alignment.py", "recipes/alignment.py"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """What CONTRIBUTING.md shows, written into a folder; each block follows the first mention of its file."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    shown = dict(re.findall(r"`([\w/]+\.py)`:[^`]*(?:`[^`]+`[^`]*)*?```python\n(.*?)```", text, flags=re.DOTALL))
    assert set(shown) == {OBJECTIVE, RECIPE}
    for name, code in shown.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    return {name: tmp_path / name for name in shown}


def module_of(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, name, module)
    specification.loader.exec_module(module)
    return module


def test_what_is_shown_is_in_the_style_of_the_house(files: dict[str, Path]) -> None:
    for command in (["check", "--ignore", "I001"], ["format", "--check"]):  # ruff finds no package around the copies
        ruff = [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
        checked = subprocess.run([*ruff, *map(str, files.values())], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout


@pytest.mark.usefixtures("quick_probes")
def test_the_new_method_trains_resumes_and_leaves_what_every_run_does(
    files: dict[str, Path], small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module_of(files[OBJECTIVE], "ssl_equi.objectives.alignment", monkeypatch)
    recipe, out = module_of(files[RECIPE], "recipe_alignment", monkeypatch), tmp_path / "run"
    config = small_config(recipe, out=out, save_every=1, compare_with_random=False)
    train_only(recipe, dataclasses.replace(config, steps=2))
    recipe.main(dataclasses.replace(config, steps=4, resume=True))
    lines = numbers(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(math.isfinite(line[name]) for line in lines for name in ("loss", "alignment", "uniformity"))
    assert any("all/top1" in line for line in numbers(out, "online_probe"))
    assert [path.name for path in list_checkpoints(out / "checkpoints")] == ["step-00000003", "step-00000004"]
    assert load_encoder(out / "encoder")(torch.zeros(1, 3, 32, 32)).shape == (1, 512)
    records = json.loads((out / "results.json").read_text())["records"]
    assert {"classification", "relative_rotation"} <= {record["task"] for record in records}
    assert (out / "report.html").is_file()
