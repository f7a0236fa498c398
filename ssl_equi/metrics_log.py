"""metrics.jsonl: one JSON object a line, which a resumed run continues as if it had never stopped."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ssl_equi.checkpoint import CheckpointError, describe_os_error, write_text_atomically


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
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except ValueError:
                continue
        write_text_atomically(self.path, "".join(kept))
