"""What a task raises that can't be asked of these data or features, and what becomes of one that fails."""

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class TaskSkipped(Exception):  # noqa: N818  (the suite goes on: it is a reason, not an error)
    """The task has no answer here; the message is one sentence with the thing, its value and what would help.

    The suite turns it into a note beside the results and goes on with the next task.
    """


@contextmanager
def noted_if_unanswered(question: str, notes: list[str]) -> Iterator[None]:
    """Whatever a question raises becomes a note, so that it never costs the answers of the others.

    A reason to skip it is all that there is to say; anything else is a defect, and is warned of where it happened.
    """
    try:
        yield
    except TaskSkipped as reason:
        notes.append(f"{question}: {reason}")
    except Exception as error:
        note = f"{question}: not answered, because of an error ({described(error)})"
        notes.append(note)
        place = traceback.extract_tb(error.__traceback__)[-1]
        warnings.warn(f"{note} in {place.filename}, line {place.lineno}", stacklevel=3)


def described(error: Exception) -> str:
    """Type and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
