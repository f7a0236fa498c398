"""Notices the first step at which a term of the loss is not finite, without waiting for the GPU at every step."""

import math

import torch
from torch import Tensor

from ssl_equi.objectives.base import ObjectiveOutput
from ssl_equi.runtime.device_copies import Unread


class FiniteWatch:
    """Keeps, on the device, the first step at which each term was not finite."""

    def __init__(self) -> None:
        self._first_bad: Tensor | None = None
        self._names: list[str] = []

    def look(self, output: ObjectiveOutput, step: int) -> None:
        """Takes note of one step's terms; nothing is copied from the device."""
        self._names = ["loss", *output.terms]
        values = torch.stack([output.loss.detach().float(), *(term.float() for term in output.terms.values())])
        if self._first_bad is None:
            self._first_bad = torch.full((len(values),), math.inf, device=values.device)
        now = torch.full_like(self._first_bad, float(step))
        self._first_bad = torch.where(torch.isfinite(values), self._first_bad, torch.minimum(self._first_bad, now))

    def first_bad(self) -> Unread[tuple[int, str] | None]:
        """The step and the term that went wrong first; None if all is well. A term comes before the loss, their sum."""
        return Unread(() if self._first_bad is None else (self._first_bad,), self._earliest)

    def _earliest(self, first_bad: list[list[float]]) -> tuple[int, str] | None:
        steps = first_bad[0] if first_bad else []
        earliest = min(steps, default=math.inf)
        if math.isinf(earliest):
            return None
        names = [name for name, step in zip(self._names, steps, strict=True) if step == earliest]
        return int(earliest), next((name for name in names if name != "loss"), "loss")
