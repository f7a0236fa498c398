"""The script that all checkpoints are imported with, and what it says and leaves."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import huggingface_hub
import pytest

from ssl_equi.cli import explain_errors
from tests.export.fake_hub import TOKEN, FakeHub, fake_hub

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


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A stand-in for the Hugging Face hub, with a token that may write to it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with fake_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        files = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        yield hub
