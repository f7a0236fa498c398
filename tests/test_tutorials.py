"""The tutorials: stored as they ran, without traces of a machine; slow: run anew, they print the same."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from notebooks import written_files

from tests.documents import ROOT, tutorials

LARGEST_BYTES = 300_000
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/-])/(?:tmp|root|home|work|usr|var|opt|Users)/")
# Rounding and trained weights depend on the machine, and with them decimals, seconds and fingerprints.
NUMBER = re.compile(r"-?\d+\.\d+|\b\d+(?= s\b)|\b[0-9a-f]{16}\b")

each_notebook = pytest.mark.parametrize("path", tutorials(), ids=lambda path: path.stem)


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(notebook: dict[str, Any]) -> list[list[str]]:
    """Of each code cell the words and whole numbers that it printed; all else is a #."""
    texts = []
    for cell in code_cells(notebook):
        outputs = [output.get("text") or output["data"].get("text/markdown", "") for output in cell["outputs"]]
        texts.append(NUMBER.sub("#", "".join("".join(text) for text in outputs)).split())
    return texts


def test_there_are_three() -> None:
    assert [path.stem for path in tutorials()] == ["own_images", "own_method", "own_posed_images"]


@each_notebook
def test_it_is_stored_as_it_ran(path: Path) -> None:
    cells = code_cells(json.loads(path.read_text()))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"] == []
    assert all("\x1b" not in "".join(output.get("text", "")) for output in outputs)


@each_notebook
def test_it_names_no_folder_of_a_machine_and_is_small(path: Path) -> None:
    text = path.read_text()
    assert ABSOLUTE_PATH.search(text) is None
    assert len(text) < LARGEST_BYTES


@each_notebook
def test_files_that_it_writes_are_in_the_style_of_the_house(path: Path, tmp_path: Path) -> None:
    for name, code in written_files(path).items():
        (tmp_path / name).write_text(code)
        for command in (["check", "--ignore", "I001"], ["format", "--check"]):  # ruff finds no package around the copy
            ruff = [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
            checked = subprocess.run([*ruff, str(tmp_path / name)], capture_output=True, text=True, check=False)
            assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
@each_notebook
def test_run_anew_it_prints_the_same(path: Path) -> None:
    nbformat = pytest.importorskip(
        "nbformat", reason="it comes with the group docs: uv run --group docs pytest -m slow tests/test_tutorials.py"
    )
    pytest.importorskip("nbclient")
    from run_notebooks import executed

    assert printed(executed(nbformat.read(path, as_version=4))) == printed(json.loads(path.read_text()))
