"""The script that all checkpoints are imported with, and what it says and leaves."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from ssl_equi.cli import explain_errors

TOOL = Path(__file__).parent.parent.parent / "tools" / "import_checkpoint.py"


@pytest.fixture(scope="session")
def tool() -> ModuleType:
    specification = importlib.util.spec_from_file_location("tools_import_checkpoint", TOOL)
    tool = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = tool
    specification.loader.exec_module(tool)
    return tool


@pytest.fixture
def imported(tool: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    """imported(file, name="out", **options): the folder that the script makes of a file."""

    def run(file: Path, name: str = "out", **options: object) -> Path:
        tool.main(tool.Config(file, tmp_path / name, **options))
        return tmp_path / name

    return run


@pytest.fixture
def error_of(
    tool: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """error_of(file, **options): the one sentence with which an import ends, of a file in the test's own folder."""
    monkeypatch.chdir(tmp_path)

    def end(file: str, **options: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            explain_errors(lambda: tool.main(tool.Config(Path(file), Path("out"), **options)))
        assert stopped.value.code == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert not Path("out").exists()
        return error.removeprefix("error: ")

    return end
