"""metrics.jsonl: one JSON object a line, which a resumed run continues as if it had never stopped."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ssl_equi.checkpoint import describe_os_error, write_text_atomically
from ssl_equi.errors import CheckpointError


class MetricsLog:
    """The log of one run; every line has an `event` and the `step` after which it was written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, lines: Iterable[dict[str, Any]]) -> None:
        """Adds lines. Raises CheckpointError if the disk is full."""
        try:
            with open(self.path, "a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
        except OSError as error:
            raise CheckpointError(describe_os_error(error, self.path)) from error

    def cut_after(self, step: int) -> None:
        """Drops lines of steps that will be done again, and the half line of a process that was killed."""
        if not self.path.is_file():
            return
        kept = [line + b"\n" for line in self.path.read_bytes().split(b"\n") if _is_up_to(line, step)]
        write_text_atomically(self.path, b"".join(kept).decode())


def _is_up_to(line: bytes, step: int) -> bool:
    """Whether a line of the log is whole and was written after this step or an earlier one."""
    try:
        written_after = json.loads(line.decode())["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return isinstance(written_after, int | float) and written_after <= step
