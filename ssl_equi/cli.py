"""From a dataclass to a command line, and from an error to one sentence."""

import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import tyro

from ssl_equi.errors import UserError

Config = TypeVar("Config")


def parse_command_line(
    config_type: type[Config], description: str, default: Config | None = None, arguments: list[str] | None = None
) -> Config:
    """The options of a dataclass from the command line; an unknown one ends the process with status 2 and a hint."""
    if default is None:
        return tyro.cli(config_type, args=arguments, description=description.strip())
    return tyro.cli(config_type, args=arguments, description=description.strip(), default=default)


def run_recipe(main: Callable[[Config], None], configs: Mapping[str, Callable[[], Config]], description: str) -> None:
    """Runs `main` with the configuration that the command line names and changes.

    `recipe.py --seed 1` changes the first of `configs`, `recipe.py NAME --seed 1` the one of that name. An error that
    the user can mend ends the process with its sentence and status 1.
    """
    arguments = sys.argv[1:]
    name = arguments.pop(0) if arguments and arguments[0] in configs else next(iter(configs))
    default = configs[name]()
    names = f"Configurations, given as the first word: {', '.join(configs)}. These are the defaults of {name}."
    config = parse_command_line(type(default), f"{description.strip()}\n\n{names}", default, arguments)
    explain_errors(lambda: main(config))


def explain_errors(action: Callable[[], None]) -> None:
    """Calls `action`; an error meant for the user is printed as one sentence and ends the process with status 1.

    These are `UserError`, and a ValueError that this package itself raised about an argument. Anything else is a
    defect and keeps its traceback.
    """
    try:
        action()
    except (UserError, ValueError) as error:
        if not isinstance(error, UserError) and not _raised_by_this_package(error):
            raise
        # One write of one line: that of another process can't get in between, nor can a library's line breaks.
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.stderr.flush()
        raise SystemExit(1) from None


def _raised_by_this_package(error: Exception) -> bool:
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    return Path(innermost.filename).is_relative_to(Path(__file__).parent)
