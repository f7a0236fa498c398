"""From a recipe's named configurations to a command line, and from an error to one sentence."""

import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

import tyro

Config = TypeVar("Config")

# Errors whose message is a sentence meant for the user; anything else is a defect and keeps its traceback.
USER_ERRORS = ("RunError", "DataError", "CheckpointError", "EncoderError")


def run_recipe(main: Callable[[Config], None], configs: Mapping[str, Callable[[], Config]], description: str) -> None:
    """Runs `main` with the configuration that the command line names and changes.

    `recipe.py --seed 1` changes the first of `configs`, `recipe.py NAME --seed 1` the one of that name. An error that
    the user can mend ends the process with its sentence and exit status 1; an unknown flag with status 2.
    """
    arguments = sys.argv[1:]
    name = arguments.pop(0) if arguments and arguments[0] in configs else next(iter(configs))
    others = ", ".join(configs)
    config = tyro.cli(
        type(configs[name]()),
        default=configs[name](),
        args=arguments,
        description=f"{description.strip()}\n\nConfigurations, given as the first word: {others} (now: {name}).",
    )
    explain_errors(lambda: main(config))


def explain_errors(action: Callable[[], None]) -> None:
    """Calls `action`; an error meant for the user is printed as one sentence and ends the process with status 1."""
    try:
        action()
    except Exception as error:
        if type(error).__name__ not in USER_ERRORS:
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
