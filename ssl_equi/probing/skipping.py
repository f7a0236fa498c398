"""What a task raises that can't be asked of these data or features."""


class TaskSkipped(Exception):  # noqa: N818  (the suite goes on: it is a reason, not an error)
    """The task has no answer here; the message is one sentence with the thing, its value and what would help.

    The suite turns it into a note beside the results and goes on with the next task.
    """
