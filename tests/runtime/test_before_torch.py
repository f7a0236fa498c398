"""Scripts say how idle threads spin and tensors lie before they load torch, and leave alone what the user has said."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_equi.runtime.before_torch import HUGE_PAGES, SPINNING, bound_spinning, use_huge_pages

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    *sorted((ROOT / "recipes").glob("*.py")),
    *sorted(path for path in (ROOT / "evaluation").glob("*.py") if path.name != "report.py"),
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_that_trains_or_probes_begins_with_it(script: Path) -> None:
    body = ast.parse(script.read_text()).body
    first = next(node for node in body if isinstance(node, ast.Import | ast.ImportFrom))
    assert ast.unparse(first) == "import ssl_equi.runtime.before_torch"


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
    environment = {chosen: "of the user"}
    bound_spinning(environment)
    assert environment == {chosen: "of the user"}


def test_huge_pages_that_the_user_has_refused_stay_refused() -> None:
    environment = {HUGE_PAGES: "0"}
    use_huge_pages(environment)
    assert environment == {HUGE_PAGES: "0"}
