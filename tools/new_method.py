"""Begins a method of your own: objective, recipe and test case, which train, pass the tests and appear on the site.

    ssl-equi new-method my_method
    python tools/new_method.py my_method           the same
    ssl-equi train my_method

The three files are those of CONTRIBUTING.md's example under the new name, a working method to change line by line; the
page of the site is made of their docstrings until you write docs/methods/NAME.md. A clone is needed.
"""

import keyword
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.errors import UserError

ROOT = Path(__file__).parents[1]
EXAMPLE, EXAMPLE_CLASS = "alignment", "Alignment"
# A block of code follows the first mention of its file.
SHOWN = re.compile(r"`([\w/]+\.py)`:[^`]*(?:`[^`]+`[^`]*)*?```python\n(.*?)```", flags=re.DOTALL)


@dataclass(frozen=True)
class Config:
    """Which method."""

    name: Annotated[str, tyro.conf.Positional]
    """Name of the recipe and its files, such as my_method."""
    into: Path = ROOT
    """Clone of the repository."""


def main(config: Config) -> None:
    files = files_of(config.name)
    there = [path for path in files if (config.into / path).exists()]
    if there:
        raise UserError(f"{config.into / there[0]} exists already: choose another name than {config.name}")
    for path, code in files.items():
        (config.into / path).write_text(code, encoding="utf-8")
        print(f"wrote {path}")
    print(f"train it: ssl-equi train {config.name}")
    print(f"test it:  pytest tests/objectives && pytest tests/recipes -k {config.name}")


def files_of(name: str) -> dict[str, str]:
    """The files of a new method by their paths in the repository; UserError for what can't be their name."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(f"the name is {name!r}: give lower-case letters, digits and _, such as my_method")
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    class_name = "".join(word.capitalize() for word in name.split("_"))
    return {renamed(path, name, class_name): renamed(code, name, class_name) for path, code in SHOWN.findall(guide)}


def renamed(text: str, name: str, class_name: str) -> str:
    """The example's text with another name for its module, recipe and classes; terms of its loss keep theirs."""
    text = re.sub(rf"\b{EXAMPLE_CLASS}(Config)?\b(?! and)", rf"{class_name}\1", text)
    text = re.sub(rf"(objectives\.|objectives/|recipes/|cases/){EXAMPLE}\b", rf"\g<1>{name}", text)
    # The name of runs, and of the test case.
    return re.sub(rf'(Pretraining\(config, |CASES = \{{)"{EXAMPLE}"', rf'\g<1>"{name}"', text)


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
