"""The method that CONTRIBUTING.md adds and `ssl-equi new-method` begins: it trains, resumes, and passes the tests."""

import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import new_method
import pytest
import torch

from ssl_equi import load_encoder
from ssl_equi.checkpoint import list_checkpoints
from ssl_equi.errors import UserError
from tests.fakes import SmallConfig, numbers, train_only
from tests.objectives import test_every_objective

ROOT = Path(__file__).parents[2]
OBJECTIVE, RECIPE = "ssl_equi/objectives/my_method.py", "recipes/my_method.py"
CASE = "tests/objectives/cases/my_method.py"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """What `ssl-equi new-method my_method` writes, in a folder."""
    for name in (OBJECTIVE, RECIPE, CASE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    new_method.main(new_method.Config("my_method", into=tmp_path))
    with pytest.raises(UserError, match="exists already"):
        new_method.main(new_method.Config("my_method", into=tmp_path))
    return {name: tmp_path / name for name in (OBJECTIVE, RECIPE, CASE)}


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
    module_of(files[OBJECTIVE], "ssl_equi.objectives.my_method", monkeypatch)
    recipe, out = module_of(files[RECIPE], "recipe_my_method", monkeypatch), tmp_path / "run"
    config = small_config(recipe, out=out, save_every=1, compare_with_random=False)
    train_only(recipe, dataclasses.replace(config, steps=2))
    recipe.main(dataclasses.replace(config, steps=4, resume=True))
    lines = numbers(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(math.isfinite(line[name]) for line in lines for name in ("loss", "alignment", "uniformity"))
    assert any("all/top1" in line for line in numbers(out, "online_probe"))
    assert [path.name for path in list_checkpoints(out / "checkpoints")] == ["step-00000003", "step-00000004"]
    assert load_encoder(out / "encoder")(torch.zeros(1, 3, 32, 32)).shape == (1, 256)
    records = json.loads((out / "results.json").read_text())["records"]
    assert {"classification", "relative_rotation"} <= {record["task"] for record in records}
    assert (out / "report.html").is_file()


def test_the_new_method_keeps_what_objectives_promise(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    module_of(files[OBJECTIVE], "ssl_equi.objectives.my_method", monkeypatch)
    case = module_of(files[CASE], "case_my_method", monkeypatch).CASES["my_method"]
    objective, inputs = test_every_objective.make(case), case.inputs()
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    losses = [test_every_objective.step(objective, optimizer, inputs) for _ in range(20)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["My-Method", "class", "2views", ""])
def test_names_that_files_cannot_have_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give lower-case letters"):
        new_method.main(new_method.Config(name, into=tmp_path))


def test_the_example_keeps_its_own_name() -> None:
    shown = (ROOT / "CONTRIBUTING.md").read_text()
    for path, code in new_method.files_of(new_method.EXAMPLE).items():
        assert f"`{path}`" in shown and code in shown
