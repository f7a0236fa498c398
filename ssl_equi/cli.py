"""Command lines from dataclasses, and errors as one sentence."""

import dataclasses
import difflib
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from ssl_equi.errors import UserError
from ssl_equi.options import check_options, option_flags, taken_out
from ssl_equi.training.provenance import describe

Config = TypeVar("Config")
Result = TypeVar("Result")

EXIT_INTERRUPTED = 128 + 2

IMAGES = "--images"
IMAGES_HELP = f"""{IMAGES} FOLDER instead of data options: learn from your own images, which lie in the folder as they
are, flat or nested; a fifth is judged unless it holds train/ and val/. Views are augmentations, and the action is the
change between two. Any other option can be given beside it."""


def parse_command_line(
    config_type: type[Config], description: str, default: Config | None = None, arguments: list[str] | None = None
) -> Config:
    """The options of a dataclass from the command line.

    An unknown option ends the process with status 2 and a hint; one that is out of range, or that was changed and has
    no effect, with its sentence and status 1.

    Args:
        default: the options where none are given; those of the dataclass when None.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Characters that a terminal or a log file can't hold are replaced, instead of ending the process.
            stream.reconfigure(errors="replace")
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if default is None:
            config = tyro.cli(config_type, args=arguments, description=description.strip())
        else:
            config = tyro.cli(config_type, args=arguments, description=description.strip(), default=default)
    except SystemExit as stop:
        if stop.code == 2:
            for hint in hints(arguments, option_flags(default or config_type)):
                print(hint, file=sys.stderr)
        raise
    explain_errors(lambda: check_options(config, default or with_defaults(config)))
    return config


def run_recipe(main: Callable[[Config], None], configs: Mapping[str, Callable[[], Config]], description: str) -> None:
    """Runs `main` with the configuration that the command line names and changes.

    `recipe.py --seed 1` changes the first of `configs`, `recipe.py NAME --seed 1` the one of that name, and `--images
    FOLDER` makes either one for a folder of images, see `training.own_images`. An error that the user can mend ends the
    process with its sentence and status 1; a NAME that doesn't exist with status 2; a signal that stops the run with
    `stopping.EXIT_STOPPED`.
    """
    arguments = sys.argv[1:]
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else next(iter(configs))
    if name not in configs:
        close = difflib.get_close_matches(name, configs, n=1)
        hint = f"did you mean {close[0]} (of {', '.join(configs)})" if close else f"choose from {', '.join(configs)}"
        sys.stderr.write(f"error: there is no configuration {name!r}: {hint}\n")
        raise SystemExit(2)
    default = configs[name]()
    names = f"Configurations, given as the first word: {', '.join(configs)}. These are the defaults of {name}."
    names = f"{names} {describe(configs[name])}\n\n{IMAGES_HELP}"
    images, arguments = explain_errors(lambda: taken_out(IMAGES, arguments))
    if images is not None:
        from ssl_equi.training.own_images import for_own_images

        default = explain_errors(lambda: for_own_images(default, Path(images)))
    config = parse_command_line(type(default), f"{description.strip()}\n\n{names}", default, arguments)
    # They import torch, which takes seconds and which other commands may do without.
    from ssl_equi.errors import LostProcessError
    from ssl_equi.training.config import with_configuration_name
    from ssl_equi.training.processes import naming_lost_processes
    from ssl_equi.training.stopping import run_to_the_end

    def with_other_processes() -> None:
        try:
            with naming_lost_processes():
                main(_with_named_encoder(with_configuration_name(config, name)))
        except LostProcessError as error:
            print_error(error)
            # A group without one of its processes may hang or abort when Python takes it down.
            os._exit(1)

    run_to_the_end(lambda: explain_errors(with_other_processes))


def _with_named_encoder(config: Config) -> Config:
    """The options with the encoder that `init` names, where they have one."""
    if getattr(config, "init", None) is None:
        return config
    from ssl_equi.training.pretraining import with_named_encoder  # and with it timm, which takes seconds, too

    return with_named_encoder(config)


def hints(arguments: Iterable[str], known: Iterable[str]) -> list[str]:
    """For each unknown option a line with those that it may stand for: by initials (--lr), a word, or its spelling."""
    flags = list(known)
    lines = []
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if not flag.startswith("--") or flag in flags or flag.replace("--no-", "--", 1) in flags:
            continue
        last_words = {known_flag: known_flag.removeprefix("--").split(".")[-1] for known_flag in flags}
        word = flag.removeprefix("--")
        initials = {last: "".join(part[0] for part in last.split("-") if part) for last in last_words.values()}
        meant = [known_flag for known_flag, last in last_words.items() if word in (initials[last], last)]
        meant = meant or [known_flag for known_flag, last in last_words.items() if word in last.split("-")]
        meant = meant or difflib.get_close_matches(flag, flags, n=3, cutoff=0.75)
        if meant:
            lines.append(f"{argument.partition('=')[0]} is no option: did you mean {' or '.join(meant[:4])}?")
    return lines


def with_defaults(config: Config) -> Config:
    """The configuration with everything reset that has a default."""
    defaults: dict[str, Any] = {}
    for entry in dataclasses.fields(config):  # type: ignore[arg-type]
        if entry.default is not dataclasses.MISSING:
            defaults[entry.name] = entry.default
        elif entry.default_factory is not dataclasses.MISSING:
            defaults[entry.name] = entry.default_factory()
    return dataclasses.replace(config, **defaults)  # type: ignore[type-var]


def explain_errors(action: Callable[[], Result]) -> Result:
    """Calls `action`; an error meant for the user is printed as one sentence and ends the process with status 1.

    These are `UserError`, and a ValueError that this package itself raised about an argument. Anything else is a
    defect and keeps its traceback. Ctrl-C ends the process with a sentence too.
    """
    try:
        return action()
    except KeyboardInterrupt:
        say_interrupted()
    except (UserError, ValueError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if not isinstance(error, UserError) and not raised_in.is_relative_to(Path(__file__).parent):
            raise
        print_error(error)
        raise SystemExit(1) from None


def say_interrupted() -> NoReturn:
    """Ends the process with the status that shells give to a process that Ctrl-C ended."""
    sys.stderr.write("\nstopped by Ctrl-C: run the same command again\n")
    raise SystemExit(EXIT_INTERRUPTED) from None


def print_error(error: Exception) -> None:
    """Prints one line, without a library's line breaks."""
    # In one write, so that a line of another process can't get in between.
    sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
    sys.stderr.flush()
