"""The table of formats has all families of encoders, and says what the code can do."""

import fnmatch
import re
from pathlib import Path

import pytest

from ssl_equi.encoders.catalogue import timm_with_our_encoders
from ssl_equi.export.programs import LARGEST_DIFFERENCE
from tests.tools.test_tools import load_tool

PAGE = Path(__file__).parents[2] / "docs" / "encoders.md"
DIFFERENCE = re.compile(r"0|\de[+-]\d\d")
QUICK = ("strided_cnn_*", "group_averaged", "canonicalized", "resnet18")

tool = load_tool("list_formats")


def table_of_the_page() -> list[list[str]]:
    found = tool.TABLE.search(PAGE.read_text())
    assert found is not None
    return [line.strip("|\n").split("|") for line in found[0].splitlines()]


def statuses(row: list[str]) -> list[str]:
    """The cells of a row, whose differences depend on the machine."""
    return ["a small difference" if DIFFERENCE.fullmatch(cell.strip()) else cell.strip() for cell in row]


WRITTEN = {row[0].strip(" `"): statuses(row) for row in table_of_the_page()}
NOT_THE_PAGE = "run PYTHONPATH=. python tools/list_formats.py"


def test_every_encoder_of_ours_is_of_one_family() -> None:
    timm = timm_with_our_encoders()
    ours = [name for name in timm.list_models() if timm.models.model_entrypoint(name).__module__.startswith("ssl_equi")]
    assert len(ours) > 30
    for name in ours:
        assert len([pattern for pattern in tool.FAMILIES if fnmatch.fnmatchcase(name, pattern)]) == 1, name


def test_the_page_has_a_row_for_each_family() -> None:
    head, _, *rows = table_of_the_page()
    assert tuple(cell.strip() for cell in head) == tool.HEAD
    assert [row[0].strip(" `") for row in rows] == list(tool.FAMILIES)
    shown = [float(cell) for row in rows for cell in row[3:] if DIFFERENCE.fullmatch(cell.strip())]
    assert shown and max(shown) <= LARGEST_DIFFERENCE


@pytest.mark.parametrize("name", QUICK)
def test_the_page_says_what_programs_there_are(tmp_path: Path, name: str) -> None:
    tool.export_family(tool.FAMILIES[name], tmp_path / "encoder")
    assert statuses(tool.program_cells(tmp_path / "encoder")) == WRITTEN[name][3:], NOT_THE_PAGE


@pytest.mark.slow
@pytest.mark.parametrize("name", tool.FAMILIES)
def test_the_page_says_what_can_be_exported_and_how_timm_opens_it(name: str) -> None:
    (row,) = tool.rows([name])
    assert statuses(row) == WRITTEN[name], NOT_THE_PAGE


def test_an_architecture_that_a_format_cannot_hold_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise tool.UserError("strided_cnn_nano can't be exported to onnx (a | b): choose another format")

    monkeypatch.setattr(tool, "compared_program", refuse)
    monkeypatch.setattr(tool, "opened_by_timm", lambda folders: dict.fromkeys(folders, False))
    (row,) = tool.rows(["strided_cnn_*"])
    assert row[3:] == ["strided_cnn_nano can't be exported to onnx (a / b): choose another format"] * 2


def test_a_family_that_does_not_exist_is_named() -> None:
    with pytest.raises(tool.UserError, match="there is no family 'resnet9': choose from strided_cnn_"):
        tool.main(tool.Config(families=("resnet9",)))
