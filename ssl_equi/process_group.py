"""How long the processes of a run wait for one another, and what is said when one of them is lost."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from ssl_equi.errors import LostProcessError, UserError

# Until the first step is done one process may still fetch or render the data that the others wait for.
STARTING_TIMEOUT = timedelta(minutes=30)
_WORDS_OF_GLOO = ("gloo/", "pair closure", "closed by peer")


def starting_timeout(collective_timeout: float) -> timedelta:
    """How long to wait until the first step is done.

    Args:
        collective_timeout: minutes to wait afterwards.
    """
    return max(STARTING_TIMEOUT, timedelta(minutes=collective_timeout))


def set_timeout(timeout: timedelta, groups: list[Any]) -> None:
    """Changes how long operations that are yet to start wait for the other processes.

    Args:
        groups: process groups of torch.distributed; None among them is that of all processes.
    """
    # The second is how earlier versions of torch call it.
    names = ((torch.distributed, "set_timeout"), (torch.distributed.distributed_c10d, "_set_pg_timeout"))
    setters = [getattr(module, name) for module, name in names if hasattr(module, name)]
    for group in groups if setters else []:
        setters[0](timeout, group)


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Raises LostProcessError in the place of the error with which another process's end was noticed."""
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_process(error):
            raise
        # gloo puts the line of its source that noticed before its sentence, and advice behind it.
        detail = re.sub(r"^\[\S*\] ", "", str(error).split("\n")[0]).split(". ")[0]
        raise LostProcessError(
            f"another process of this run has ended or does not answer ({detail}): see what it says itself, and go on "
            "with --resume, or with a higher --collective-timeout if it was only slow"
        ) from error


def _is_lost_process(error: RuntimeError) -> bool:
    if isinstance(error, UserError) or not torch.distributed.is_available():
        return False
    # gloo has no type of error of its own.
    return isinstance(error, torch.distributed.DistError) or any(words in str(error) for words in _WORDS_OF_GLOO)
