"""Scripts that let a shell complete the words of `ssl-equi`: commands, scripts, configurations, options, values."""

import ast
import runpy
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_equi.cli import IMAGES
from ssl_equi.options import CommandLineOption, command_line_options

SHELLS = ("bash", "zsh", "fish")
FILES = "FILES"  # in the place of values: any name of a file
Table = dict[str, str]  # words, separated by spaces, by what stands before them


@dataclass(frozen=True)
class CompletedCommand:
    """A command of `ssl-equi`.

    Attributes:
        scripts: by the name that is typed behind it; none if none is typed.
        default: the script that is run where none is named.
        configured: whether the command chooses the configuration, so that none is typed.
    """

    scripts: Mapping[str, Path]
    default: Path | None
    configured: bool = False


def completion_script(shell: str, commands: Mapping[str, CompletedCommand], further: Mapping[str, str]) -> str:
    """What a shell reads once, and then completes words without asking Python.

    Args:
        shell: one of `SHELLS`.
        commands: by name.
        further: words that can stand behind commands that run no script, by command.
    """
    tables = completion_tables(commands, further)
    write = _fish_function if shell == "fish" else _posix_function
    functions = [write(name, table) for name, table in tables.items()]
    parts = ["fish.fish"] if shell == "fish" else ["candidates.sh", f"{shell}.sh"]
    parts = [Path(__file__).with_name(part).read_text(encoding="utf-8") for part in parts]
    head = f"# Written by: ssl-equi completion {shell}\n"
    return head + "\n".join([*functions, *parts])


def completion_tables(commands: Mapping[str, CompletedCommand], further: Mapping[str, str]) -> dict[str, Table]:
    """What can stand where, by the name of the function that tells it.

    Scripts go by FOLDER/NAME, or by the command that chooses their configuration. `first` are words that may come
    before all options, and `values` those behind an option; both begin with `one` or `several`, as many as may follow
    each other.
    """
    tables: dict[str, Table] = {name: {} for name in ("commands", "scripts", "folder", "default", "first", "options")}
    tables["commands"]["all"] = " ".join((*commands, *further, "where"))
    scripts: dict[str, Path] = {}
    for name, command in commands.items():
        if command.scripts:
            tables["scripts"][name] = " ".join(command.scripts)
            tables["folder"][name] = next(iter(command.scripts.values())).parent.name
            scripts |= {_key(script): script for script in command.scripts.values()}
        if command.default is not None:
            tables["default"][name] = name if command.configured else _key(command.default)
            scripts[tables["default"][name]] = command.default
    for name, words in further.items():
        tables["default"][name], tables["first"][name] = name, f"one {words}"
    values: dict[tuple[str, str], str] = {}
    for key, script in scripts.items():
        first, options = words_of_script(script)
        if key in commands:  # which chooses the configuration, and trains with one seed
            first = ""
            del options["--seeds"]
        tables["options"][key] = " ".join(options)
        if first:
            tables["first"][key] = first
        values |= {(key, flag): known for flag, known in options.items() if known}
    return tables | {"values": _shared_by_scripts(values)}


def words_of_script(script: Path) -> tuple[str, Table]:
    """What may stand first behind a script, and its options with their values; the script is imported for that."""
    module = runpy.run_path(str(script), run_name=script.stem)
    configs: Mapping[str, Callable[[], Any]] = module.get("CONFIGS", {})
    if configs:
        first, config = f"one {' '.join(configs)}", next(iter(configs.values()))()
    else:
        first, config = "", module[_name_of_options(script)]
    options: Table = {"--help": ""}
    for option in command_line_options(config):
        if not option.flag:
            first = _values(option)
        elif option.is_switch:
            group, last = option.flag.removeprefix("--").rpartition(".")[::2]
            options |= {option.flag: "", f"--{group}{'.' if group else ''}no-{last}": ""}
        else:
            options[option.flag] = _values(option)
    return first, options | ({IMAGES: f"one {FILES}", "--seeds": "several "} if configs else {})


def _name_of_options(script: Path) -> str:
    """Of the dataclass that a script gives to `parse_command_line`."""
    calls = (node for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    return next(ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func) == "parse_command_line")


def _values(option: CommandLineOption) -> str:
    known = " ".join(option.choices) or (FILES if option.takes_text else "")
    return f"{'several' if option.takes_several else 'one'} {known}"


def _key(script: Path) -> str:
    return f"{script.parent.name}/{script.stem}"


def _shared_by_scripts(values: Mapping[tuple[str, str], str]) -> Table:
    """By "SCRIPT OPTION", or by "* OPTION" what most scripts have in common; exceptions come before."""
    exceptions: Table = {}
    shared: Table = {}
    for flag in dict.fromkeys(flag for _, flag in values):
        of_flag = {key: known for (key, other), known in values.items() if other == flag}
        shared[f"* {flag}"] = Counter(of_flag.values()).most_common(1)[0][0]
        exceptions |= {f"{key} {flag}": known for key, known in of_flag.items() if known != shared[f"* {flag}"]}
    return exceptions | shared


def _patterns(table: Table) -> Iterable[tuple[str, str]]:
    """The quoted patterns of a table, with the star of "* OPTION" left free."""
    for words, known in table.items():
        yield f"*{shlex.quote(words[1:])}" if words.startswith("*") else shlex.quote(words), shlex.quote(known)


def _posix_function(name: str, table: Table) -> str:
    cases = "\n".join(f"    {pattern}) echo {known} ;;" for pattern, known in _patterns(table))
    return f'_ssl_equi_{name}() {{\n  case "$1" in\n{cases}\n  esac\n}}\n'


def _fish_function(name: str, table: Table) -> str:
    cases = "\n".join(
        f"        case {shlex.quote(words)}\n            string split -n ' ' -- {shlex.quote(known)}"
        for words, known in table.items()
    )
    return f"function __ssl_equi_{name}\n    switch $argv[1]\n{cases}\n    end\nend\n"
