"""The command `ssl-equi`: the repository's scripts by name, also where nothing but the wheel is installed.

    ssl-equi demo                                 SIE on the embedded set, minutes on two CPU cores
    ssl-equi train vicreg --seed 1                recipes/vicreg.py --seed 1
    ssl-equi train sie --images PHOTOS            a folder of your own images, as they are
    ssl-equi train sie --seeds 0 1 2              a sweep over seeds, and its table; the same command completes it
    ssl-equi train sie paper --data-dir SHARDS    the settings of the paper
    ssl-equi evaluate --encoder runs/sie          evaluation/suite.py: one protocol for any encoder
    ssl-equi evaluate sequences runs/seq_jepa     another script of evaluation/
    ssl-equi report runs/sie runs/vicreg          evaluation/report.py: one page of several runs
    ssl-equi table runs/*-seed?                   evaluation/table.py: means over seeds, for Markdown, LaTeX or CSV
    ssl-equi export runs/sie --to onnx            evaluation/export.py: torch, timm or the hub as well
    ssl-equi data posed_images --table views.csv  datasets/posed_images.py: your own images as shards
    ssl-equi new-method my_method                 tools/new_method.py: begins a method of your own, in a clone
    ssl-equi where train sie                      the script's path, for accelerate launch and torchrun
    ssl-equi completion bash                      a script that lets bash, zsh or fish complete all of these

`ssl-equi train`, `ssl-equi evaluate list` and `ssl-equi data` list what there is; --help behind a script lists its
options.
"""

import ast
import difflib
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NoReturn

PROGRAM = "ssl-equi"
LIST = ("list", "--help", "-h")


@dataclass(frozen=True)
class Command:
    """The scripts that a command runs.

    Attributes:
        folder: of the scripts.
        script: the one that is run where none is named.
        named: whether another one can be named.
        configuration: of the recipe that is run.
    """

    folder: str
    script: str | None = None
    named: bool = True
    configuration: str | None = None


COMMANDS = {
    "train": Command("recipes"),
    "evaluate": Command("evaluation", "suite"),
    "report": Command("evaluation", "report", named=False),
    "table": Command("evaluation", "table", named=False),
    "export": Command("evaluation", "export", named=False),
    "data": Command("datasets"),
    "demo": Command("recipes", "sie", named=False, configuration="demo"),
    "new-method": Command("tools", "new_method", named=False),
}
WHERE, COMPLETION = "where", "completion"


def main() -> None:
    """Runs what the command line names, as if its script had been called."""
    words = sys.argv[1:]
    if not words or words[0] in LIST:
        print(__doc__.strip() if __doc__ else PROGRAM)
        return
    if words[0] == COMPLETION:
        print_completion(words[1:])
        return
    shows_path = words[0] == WHERE
    words = words[1:] if shows_path else words
    name, *options = words or [""]
    if name not in COMMANDS:
        stop("command", name, (*COMMANDS, WHERE, COMPLETION))
    command = COMMANDS[name]
    script, options = chosen_script(name, command, options)
    if script is None:
        print_scripts(name, command)
    elif shows_path:
        print(script)
    else:
        try:
            run_or_sweep(name, script, options)
        except KeyboardInterrupt:  # while it imports, which takes seconds
            from ssl_equi.cli import say_interrupted

            say_interrupted()


def run_or_sweep(name: str, script: Path, options: list[str]) -> None:
    """Runs a script, or a recipe once with each of its `--seeds` and then the table of these runs."""
    if name == "train" and "--seeds" in options:
        from ssl_equi.cli import explain_errors
        from ssl_equi.training.sweep import train_seeds

        folders = explain_errors(lambda: train_seeds(["-m", "ssl_equi", name], script.stem, options))
        if not all((folder / "results.json").exists() for folder in folders):
            print(f"not probed, so there is no table: {PROGRAM} evaluate --encoder {folders[0]} probes the first run")
            return
        name, script, options = "table", scripts_of(COMMANDS["table"])["table"], [str(folder) for folder in folders]
    run(script, [" ".join([PROGRAM, name, *([script.stem] if COMMANDS[name].named else [])]), *options])


def run(script: Path, arguments: list[str]) -> None:
    """Runs a script as Python would, but for its name: usage and records say how it was called."""
    sys.argv = arguments
    sys.path.insert(0, str(script.parent))
    module = ModuleType("__main__")
    module.__file__ = str(script)
    sys.modules["__main__"] = module  # where processes that it starts look for it
    exec(compile(script.read_bytes(), str(script), "exec"), module.__dict__)


def chosen_script(name: str, command: Command, options: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The script and its options; None if the command's scripts are asked for."""
    there = scripts_of(command)
    if command.script is not None and command.script not in there:
        sys.stderr.write(f"error: {PROGRAM} {name} works on a clone of the repository: run it in one\n")
        raise SystemExit(1)
    if command.script is not None and (not command.named or not options or options[0].startswith("-")):
        chosen = [] if command.configuration is None else [command.configuration]
        return there[command.script], [*chosen, *options]
    if not options or options[0] in LIST:
        return None, []
    if options[0] not in there:
        stop(f"{PROGRAM} {name}", options[0], list(there))
    return there[options[0]], list(options[1:])


def scripts_of(command: Command) -> dict[str, Path]:
    """By name: in the wheel beside this file, in a clone at its root."""
    package = Path(__file__).resolve().parent
    root = package / "scripts" if (package / "scripts").is_dir() else package.parent
    return {path.stem: path for path in sorted((root / command.folder).glob("*.py"))}


def print_scripts(name: str, command: Command) -> None:
    """Each script with the first line of what it says of itself."""
    there = scripts_of(command)
    columns = 2 + max(map(len, there)) + 2
    print(f"{PROGRAM} {name} NAME [options], where NAME is one of")
    for script, path in there.items():
        first_line = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        width = max(shutil.get_terminal_size().columns, 2 * columns)
        print(textwrap.fill(f"  {script}".ljust(columns) + first_line, width, subsequent_indent=" " * columns))


def print_completion(words: Sequence[str]) -> None:
    """Prints what the shell that is named reads, with the words of all scripts that there are."""
    from ssl_equi.shell.completion import SHELLS, CompletedCommand, completion_script

    if len(words) != 1 or words[0] not in SHELLS:
        stop("shell", " ".join(words), SHELLS)
    commands: dict[str, CompletedCommand] = {}
    for name, command in COMMANDS.items():
        there = scripts_of(command)
        if command.script is None or command.script in there:
            default = None if command.script is None else there[command.script]
            configured = command.configuration is not None
            commands[name] = CompletedCommand(there if command.named else {}, default, configured)
    print(completion_script(words[0], commands, {COMPLETION: " ".join(SHELLS)}), end="")


def stop(what: str, given: str, known: Sequence[str]) -> NoReturn:
    """Ends the process with status 2 and a sentence about a name that doesn't exist."""
    close = difflib.get_close_matches(given, known, n=1)
    hint = f"did you mean {close[0]} (of {', '.join(known)})" if close else f"choose from {', '.join(known)}"
    sys.stderr.write(f"error: {what} {given!r} does not exist: {hint}\n")
    raise SystemExit(2)


if __name__ == "__main__":
    main()
