"""Trackers beside metrics.jsonl: they are helpers, and none of them ends a run that has begun."""

import sys
from collections.abc import Callable
from typing import Any, Protocol

from ssl_equi.errors import RunError

_CURES = {"wandb": "run `wandb login` (or set WANDB_MODE=offline)", "trackio": "check its settings"}


class TrackingAccelerator(Protocol):
    """The part of `accelerate.Accelerator` that speaks to trackers."""

    def init_trackers(self, project_name: str, config: dict[str, Any] | None = ...) -> None: ...

    def log(self, values: dict[str, Any], step: int | None = ...) -> None: ...

    def end_training(self) -> None: ...


class Tracking:
    """What one process tells its tracker. After the first failure it warns once, and tells it no more.

    Args:
        accelerator: made with the tracker's name, or without.
        tracker: its name; None for no tracker, in which case nothing is done.
    """

    def __init__(self, accelerator: TrackingAccelerator, tracker: str | None) -> None:
        self._accelerator, self._tracker = accelerator, tracker
        self._active = False

    def start(self, project: str, options: dict[str, str]) -> None:
        """Raises RunError if the tracker doesn't start."""
        if self._tracker is None:
            return
        try:
            self._accelerator.init_trackers(project, config=options)
        except Exception as error:  # trackers raise errors of many types
            cure = _CURES.get(self._tracker, "check its installation")
            raise RunError(
                f"--tracker {self._tracker} does not start ({_described(error)}): {cure}, or leave the option out"
            ) from error
        self._active = True

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Sends the numbers of a step."""
        self._try(lambda: self._accelerator.log(numbers, step=step))

    def end(self) -> None:
        """Lets the tracker finish; safe to call twice."""
        self._try(self._accelerator.end_training)
        self._active = False

    def _try(self, action: Callable[[], object]) -> None:
        if not self._active:
            return
        try:
            action()
        except Exception as error:  # a tracker that fails must not cost the run
            self._active = False
            print(
                f"warning: the tracker {self._tracker} failed ({_described(error)}) and is told no more: the run goes "
                "on, and metrics.jsonl is complete",
                file=sys.stderr, flush=True,
            )  # fmt: skip


def _described(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())
