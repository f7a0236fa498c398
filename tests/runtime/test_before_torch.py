"""Scripts say how idle threads spin and tensors lie before they load torch, and leave alone what the user has said."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_equi.runtime.before_torch import HUGE_PAGES, SPINNING, choose_for_torch

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    *sorted((ROOT / "recipes").glob("*.py")),
    *sorted(path for path in (ROOT / "evaluation").glob("*.py") if path.name not in ("report.py", "table.py")),
]


def test_scripts_that_train_or_probe_begin_with_it() -> None:
    for script in SCRIPTS:
        body = ast.parse(script.read_text()).body
        first = next(node for node in body if isinstance(node, ast.Import | ast.ImportFrom))
        assert ast.unparse(first) == "import ssl_equi.runtime.before_torch", script.name


def test_it_comes_before_torch() -> None:
    variables = f"os.environ['GOMP_SPINCOUNT'], os.environ['{HUGE_PAGES}']"
    program = f"import os, sys, ssl_equi.runtime.before_torch; print('torch' in sys.modules, {variables})"
    ours = ("OMP_WAIT_POLICY", HUGE_PAGES, *SPINNING)
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment["PYTHONPATH"] = str(ROOT)
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert output.stdout.split() == ["False", SPINNING["GOMP_SPINCOUNT"], "1"]


@pytest.mark.parametrize("chosen", ["OMP_WAIT_POLICY", *SPINNING])
def test_what_the_user_has_chosen_stays(chosen: str) -> None:
    environment = {chosen: "of the user", HUGE_PAGES: "0"}
    choose_for_torch(environment)
    assert environment == {chosen: "of the user", HUGE_PAGES: "0"}
