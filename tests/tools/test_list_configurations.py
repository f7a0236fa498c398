"""The page of named configurations is what the tool writes, has all of them, and says what their help says."""

import importlib
import re
from pathlib import Path

import pytest

from ssl_equi.training.provenance import SOURCES, provenance_of
from tests.recipes.test_named_configurations import named_configurations
from tests.references import comparison
from tests.references.table import REFERENCES
from tests.tools.test_tools import load_tool

PAGE = Path(__file__).parents[2] / "docs" / "configurations.md"


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text()


def test_the_page_is_what_the_tool_writes(page: str, tmp_path: Path) -> None:
    tool = load_tool("list_configurations")
    tool.main(tool.Config(out=tmp_path / "page.md"))
    assert (tmp_path / "page.md").read_text() == page, "run PYTHONPATH=. python tools/list_configurations.py"


def test_every_configuration_has_a_row_that_names_its_source_and_departures(page: str) -> None:
    departures = re.findall(r"^(\d+)\. (.*(?:\n +.*)*)", page.partition("## Known departures")[2], flags=re.MULTILINE)
    number_of = {" ".join(text.split()): number for number, text in departures}
    sections = dict(re.findall(r"### `recipes/(\w+)\.py`\n(.*?)(?=\n##)", page, flags=re.DOTALL))
    for recipe, name in named_configurations():
        if f"{recipe} {name}" not in REFERENCES:
            continue  # a recipe that follows no paper, see test_references
        provenance = provenance_of(importlib.import_module(f"recipes.{recipe}").CONFIGS[name])
        row = re.search(
            rf"^\| `{name}` \| (.*?) \| (.*?) \| (\d+) \| (\d+) \| (\d+) \|$", sections[recipe], re.MULTILINE
        )
        assert row is not None, f"{recipe} {name}"
        follows = "own" if provenance.basis == "own" else f"{provenance.source}, {provenance.basis}"
        assert row[1] == follows
        assert set(filter(None, row[2].split(", "))) == {number_of[text] for text in provenance.departures}
        assert all(int(count) > 0 for count in row.groups()[2:])


def test_the_page_is_narrow_and_lists_the_sources(page: str) -> None:
    assert max(map(len, page.splitlines())) <= 80
    assert all(f"- {name}: {source}\n" in page for name, source in SOURCES.items())


def test_a_difference_ends_the_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = load_tool("list_configurations")
    monkeypatch.setattr(tool, "differences", lambda *_: {"loss": 1e-3, "term cosine": 1e-12})
    with pytest.raises(tool.UserError, match=r"^simsiam embedded differs from its reference in loss: "):
        tool.compare(importlib.import_module("recipes.simsiam"), "simsiam embedded")
    assert comparison.unlike({"loss": 1e-3}) == {"loss": 1e-3}


def test_help_says_what_a_configuration_follows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = importlib.import_module("recipes.care")
    monkeypatch.setattr("sys.argv", ["recipes/care.py", "cifar10_released", "--help"])
    with pytest.raises(SystemExit):
        recipe.run_recipe(recipe.main, recipe.CONFIGS, recipe.__doc__)
    shown = " ".join(capsys.readouterr().out.split())
    assert "It follows the released code of CARE (Gupta et al., ICLR 2024). Known departures: every chunk" in shown
