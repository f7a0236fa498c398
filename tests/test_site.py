"""The documentation site: it builds without a warning, shows equations without a script, and asks no other host."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.documents import ROOT, documents, tutorials

pytestmark = pytest.mark.slow
mkdocs = pytest.importorskip(
    "mkdocs", reason="it comes with the group docs: uv run --group docs pytest -m slow tests/test_site.py"
)
# Elements that make a browser fetch something by itself.
FETCHED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src", "video": "src"}


class Fetches(HTMLParser):
    """Collects the addresses that a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if value and FETCHED.get(tag) == name]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_document_is_a_page(site: Path) -> None:
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    for document in documents():
        name = document.relative_to(ROOT).with_suffix("").as_posix().removeprefix("docs/")
        shown = re.sub(r"(^|/)README$", r"\1index", name)
        assert f"{shown}.html" in pages, document


def test_every_recipe_is_on_a_page_of_its_method(site: Path) -> None:
    pages = "".join(page.read_text() for page in (site / "methods").glob("*.html"))
    assert [path.name for path in (ROOT / "recipes").glob("*.py") if f"recipes/{path.name}" not in pages] == []


def test_notebooks_are_pages_with_what_their_cells_printed_and_drew(site: Path) -> None:
    for notebook in tutorials():
        text = (site / "tutorials" / notebook.with_suffix(".html").name).read_text()
        cells = json.loads(notebook.read_text())["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        pictures = [output for output in outputs if output.get("data", {}).keys() & {"image/png", "image/jpeg"}]
        assert pictures or notebook.stem == "own_method"
        assert text.count('src="data:image/') == len(pictures)
        texts = [output for output in outputs if output["output_type"] == "stream"]
        assert text.count('class="output highlight"') == len(texts)
        assert "%%" not in text


def test_equations_are_mathml(site: Path) -> None:
    for page in (site / "methods").glob("*.html"):
        text = page.read_text()
        assert "<math" in text and "arithmatex" not in text, page.name


@pytest.mark.parametrize(
    ("latex", "unknown"),
    [(r"x + \nosuchcommand", r"has \\nosuchcommand"), (r"\begin{nosuch} a & b \end{nosuch}", "has &")],
)
def test_what_the_converter_does_not_know_is_an_error(latex: str, unknown: str) -> None:
    from documentation_site import as_mathml

    assert as_mathml(r"\frac{a}{b}", block=True).startswith('<div class="equation"><math')
    with pytest.raises(ValueError, match=unknown):
        as_mathml(latex)


def test_pages_fetch_nothing_from_another_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        parser = Fetches()
        parser.feed(page.read_text())
        elsewhere = [address for address in parser.addresses if re.match(r"(\w+:)?//", address)]
        assert not elsewhere, f"{page.name}: {elsewhere}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//", style.read_text()), style.name


def test_the_search_index_is_there_for_pages_that_are_opened_as_files(site: Path) -> None:
    assert (site / "search" / "search_index.js").read_text().startswith("var __index = ")
    assert 'src="assets/iframe-worker.js"' in (site / "index.html").read_text()
