"""Opening an index of very many images: quick, and small in memory."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ssl_equi.errors import UserError

TOOL = Path(__file__).parent.parent.parent / "tools" / "bench_index.py"
IMAGES = 200_000


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    specification = importlib.util.spec_from_file_location("tools_bench_index", TOOL)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["images", pytest.param("objects", marks=pytest.mark.slow)])
def test_memory_keeps_bounds_that_reach_ten_million_images(kind: str, tool: ModuleType, tmp_path: Path) -> None:
    tool.make_split(tmp_path, IMAGES, kind)
    found = tool.measured_in_a_fresh_process(tmp_path)
    # The orders of two epochs take 8 bytes an image, and making one at most 48 MiB, however many images there are.
    assert found["opened_mib"] < 2 + 24  # what checks of a million values at a time need
    assert found["peak_mib"] < 8 * IMAGES / 2**20 + 48


@pytest.mark.slow
def test_ten_million_images_open_in_50_milliseconds_and_take_less_than_200_mib(
    tool: ModuleType, tmp_path: Path
) -> None:
    tool.main(tool.Config(folder=tmp_path, json=tmp_path / "rows.json"))
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {row["name"].partition(":")[0] for row in rows} == {"images", "objects"}
    for row in rows:
        if row["target"] is not None:
            assert row["low"] < row["target"], row


def test_too_few_images_are_a_one_sentence_error(tool: ModuleType) -> None:
    with pytest.raises(UserError, match="--images is 3: give at least a batch of 64"):
        tool.main(tool.Config(images=3))
