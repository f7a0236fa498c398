"""The script that all checkpoints are imported with."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parent.parent.parent / "tools" / "import_checkpoint.py"


@pytest.fixture(scope="session")
def tool() -> ModuleType:
    specification = importlib.util.spec_from_file_location("tools_import_checkpoint", TOOL)
    tool = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = tool
    specification.loader.exec_module(tool)
    return tool
