"""The documents that tests read: pages, their code blocks, and the commands in them as a shell would split them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from notebooks import as_markdown

from ssl_equi.__main__ import COMMANDS, chosen_script

ROOT = Path(__file__).parents[1]
# What CONTRIBUTING.md and others run beside scripts; each is declared in pyproject.toml.
PROGRAMS = ("pytest", "ruff", "mypy", "mkdocs")
_FENCED = re.compile(r"^```([a-z]*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("datasets/*.md"), *tutorials()])


def tutorials() -> list[Path]:
    """The notebooks."""
    return sorted(ROOT.glob("docs/tutorials/*.ipynb"))


def text_of(document: Path) -> str:
    """Markdown; of a notebook without what its cells printed."""
    is_notebook = document.suffix == ".ipynb"
    return as_markdown(document, with_outputs=False) if is_notebook else document.read_text()


def shell_blocks(text: str) -> list[str]:
    """Code blocks that hold no other language: fenced ones, and the indented lines outside of these as one more."""
    fenced = [block for language, block in _FENCED.findall(text) if language in ("", "bash", "sh")]
    return [*fenced, "\n".join(re.findall(r"^ {4}(\S.*)$", _FENCED.sub("", text), flags=re.MULTILINE))]


def commands(block: str) -> Iterator[list[str]]:
    """The words of each command of a block; of a loop its first round."""
    variables: dict[str, str] = {}
    for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
        for name, first in re.findall(r"\bfor (\w+) in ([^\s;]+)", line):
            variables[name] = first
        line = re.sub(r"\$\(.*?\)", "made-by-a-command", line.strip())
        line = re.sub(r"\$(\w+)", lambda found: variables.get(found[1], found[0]), line)
        assignment = re.fullmatch(r"(\w+)=(\"[^\"]*\"|\S+)", line)
        if assignment:
            variables[assignment[1]] = assignment[2].strip('"')
        elif re.match(r"\w[\w./-]*[ =]", line) and not line.startswith("for "):
            words: list[str] = []
            # What follows some spaces explains the command.
            for word in [*shlex.split(re.split(r"\s{3,}|\s#", line)[0]), "&&"]:
                if word not in ("&&", "||", "|", ";", ">"):
                    words.append(word)
                elif words:
                    yield words
                    words = []


def documented() -> list[tuple[str, list[str]]]:
    """(files, words) of every command once, as it goes on behind `uv run` and variables of the environment."""
    found: dict[tuple[str, ...], list[str]] = {}
    for path in documents():
        for block in shell_blocks(text_of(path)):
            for words in commands(block):
                while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                    words = words[1:]
                if words[:2] == ["uv", "run"]:
                    words = words[2:]
                    while words[0].startswith("--"):  # each with a value: --extra, --group
                        words = words[2:]
                if words and words[0] in ("python", "accelerate", "ssl-equi", *PROGRAMS):
                    found.setdefault(tuple(words), []).append(str(path.relative_to(ROOT)))
    return [(", ".join(files), list(words)) for words, files in found.items()]


def script_and_options(words: list[str]) -> tuple[str, list[str]]:
    """The file that a command runs, and what is given to it."""
    if words[0] == "ssl-equi":
        assert words[1] in COMMANDS, f"{words[1]} is no command"
        script, options = chosen_script(words[1], COMMANDS[words[1]], words[2:])
        assert script is not None
        return str(script), options
    if words[0] == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert words[1] == "launch"
        launched = launch_command_parser().parse_args(words[2:])
        return launched.training_script, launched.training_script_args
    return words[1], words[2:]
