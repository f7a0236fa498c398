"""Hooks of mkdocs.yml: pages from beside docs/, notebooks as pages, and equations as MathML, which needs no script.

Sources keep their paths in the repository (`docs/recipes.md`, `datasets/images.md`), and with them all links between
them; on the site, what is in docs/ stands at the top.
"""

import ast
import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from notebooks import as_markdown

ROOT = Path(__file__).parents[1]
# Pages, and files that pages link to.
PUBLISHED = (
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "datasets/*.md", "tools/gpu/README.md",
    "docs/**/*.md", "docs/tutorials/*.ipynb", "docs/**/*.jpg", "docs/**/*.svg", "docs/assets/*", "docs/slurm.sbatch",
)  # fmt: skip
EQUATION = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', flags=re.DOTALL)


class NotebookFile(File):
    """A notebook, which is a page."""

    def is_documentation_page(self) -> bool:
        return True


def on_config(config: Any) -> Any:
    """Adds methods without a page to the navigation, see `made_pages`."""
    methods = next(entry["Methods"] for entry in config.nav if "Methods" in entry)
    methods += [{name: path} for name, path in ((Path(path).stem, path) for path in made_pages())]
    return config


def made_pages() -> dict[str, str]:
    """Pages of recipes that no page of docs/methods/ is about, by path: docstrings of recipe and objective."""
    written = "".join(path.read_text() for path in (ROOT / "docs" / "methods").glob("*.md"))
    pages = {}
    for recipe in sorted((ROOT / "recipes").glob("*.py")):
        if f"recipes/{recipe.name}" not in written:
            summary, _, rest = (ast.get_docstring(ast.parse(recipe.read_text())) or recipe.stem).partition("\n")
            objective = f"::: ssl_equi.objectives.{recipe.stem}\n"
            has_objective = (ROOT / "ssl_equi" / "objectives" / recipe.name).exists()
            pages[f"docs/methods/{recipe.stem}.md"] = f"# {summary}\n{rest}\n\n{objective if has_objective else ''}"
    return pages


def on_files(files: Files, config: Any) -> Files:
    """Replaces what mkdocs found in docs/ by what is published, each named by its path in the repository."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for path in sorted({path for pattern in PUBLISHED for path in ROOT.glob(pattern)}):
        source = path.relative_to(ROOT).as_posix()
        kind = NotebookFile if path.suffix == ".ipynb" else File
        file = kind(source, str(ROOT), config.site_dir, config.use_directory_urls)
        shown_as = file.dest_uri.removeprefix("docs/")
        files.append(kind(source, str(ROOT), config.site_dir, config.use_directory_urls, dest_uri=shown_as))
    for path, text in made_pages().items():
        file = File.generated(config, path, content=text)
        file.dest_uri = path.removeprefix("docs/").replace(".md", ".html")
        files.append(file)
    return files


def on_page_read_source(page: Page, **_: Any) -> str | None:
    """The Markdown of a notebook; other pages are read as they are."""
    return as_markdown(Path(str(page.file.abs_src_path))) if isinstance(page.file, NotebookFile) else None


def on_page_content(content: str, **_: Any) -> str:
    """Equations of a page ($ ... $, or a block of the language math) as MathML; no line breaks beside ±."""
    content = content.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
    return EQUATION.sub(lambda found: as_mathml(html.unescape(found["latex"]), block=found["tag"] == "div"), content)


def as_mathml(latex: str, block: bool = False) -> str:
    """An equation as MathML; raises a ValueError for what the converter doesn't know and would show as it is."""
    mathml = convert(" ".join(latex.split()), display="block" if block else "inline")
    unknown = re.search(r"<m[io]>(\\[A-Za-z]+|&)<", mathml)
    if unknown:
        raise ValueError(
            f"the equation {latex!r} has {unknown[1]} where latex2mathml doesn't know it: write it otherwise"
        )
    # Names of functions with the spaces that TeX puts: none before a bracket, a thin one before another argument.
    mathml = re.sub(r"<m[io]>([A-Za-z]{2,})</m[io]>", r"<mi>\1</mi>", mathml)
    mathml = re.sub(r"(<mi>[A-Za-z]{2,}</mi>)(?!<mo|<mrow><mo|</)", r'\1<mspace width="0.17em" />', mathml)
    return f'<div class="equation">{mathml}</div>' if block else mathml
