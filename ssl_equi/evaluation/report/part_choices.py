"""Which parts of which runs stand in one figure: runs differ in their parts, and a figure compares like with like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from ssl_equi.evaluation.metrics import why_no_merit
from ssl_equi.evaluation.report.compared_runs import ComparedRun
from ssl_equi.evaluation.report.page import captioned_figure

Shown = TypeVar("Shown")

INVARIANT_FIRST = ("inv", "all")
EQUIVARIANT_FIRST = ("equi", "all")


@dataclass(frozen=True)
class Choice(Generic[Shown]):
    """What one figure shows."""

    title: str
    """Which parts they are, for the caption."""
    shown: dict[str, Shown | None]
    """By label; each run has one, None if it has nothing to show, so that its colour stays its own."""

    def caption(self, about: str) -> str:
        """The sentence under the figure: what it is about, and whose answer is missing."""
        missing = [label for label, shown in self.shown.items() if shown is None]
        return f"{about}; not measured: {', '.join(missing)}" if missing else about

    def figure(self, svg: str, about: str) -> str:
        """The drawing with its caption."""
        return captioned_figure(svg, self.caption(about))


def tasks_with(runs: Sequence[ComparedRun], kind: str) -> list[str]:
    """Tasks for which a run has an array `KIND/TASK/PART`."""
    keys = dict.fromkeys(tuple(key.split("/", 2)) for run in runs for key in run.arrays)
    return list(dict.fromkeys(key[1] for key in keys if key[0] == kind and len(key) == 3))


def arrays_by_part(runs: Sequence[ComparedRun], prefix: str) -> dict[str, dict[str, np.ndarray]]:
    """Arrays whose key is the prefix and a part, by run and part."""
    return {
        run.name: {key.removeprefix(prefix): array for key, array in run.arrays.items() if key.startswith(prefix)}
        for run in runs
    }


def parts_meant_for(task: str, parts: Sequence[str]) -> list[str]:
    """The parts in the order in which they are looked at for a task.

    First the half of the features that is meant to know it, where the other is not; then all features; then the rest.
    """
    halves = {"inv": "equi", "equi": "inv"}  # by the half that is not meant to know it
    meant = [] if why_no_merit(task, "all") else [other for half, other in halves.items() if why_no_merit(task, half)]
    return [part for part in dict.fromkeys((*meant, "all", *parts)) if part in parts]


def choose_parts(found: Mapping[str, Mapping[str, Shown]], preferred: Sequence[str]) -> list[Choice[Shown]]:
    """The figures that show what was found by run and part.

    Of one run, one figure with all of its parts. Of several: the part of each that is meant for the question, then
    every part that two of them have.

    Args:
        found: by run, then part; runs without anything are empty.
        preferred: parts that are meant for the question, the best first.
    """
    if not any(found.values()):
        return []
    if len(found) == 1:
        (parts,) = found.values()
        return [Choice("by part" if len(parts) > 1 else f"part {next(iter(parts))}", dict(parts))]
    meant = {run: next((part for part in preferred if part in parts), None) for run, parts in found.items()}
    choices = []
    if any(meant.values()):
        labelled = {run if part is None else f"{run}, {part}": (run, part) for run, part in meant.items()}
        shown = {label: None if part is None else found[run][part] for label, (run, part) in labelled.items()}
        used = {part for part in meant.values() if part is not None}
        choices.append(Choice(f"part {used.pop()}" if len(used) == 1 else "the part of each run meant for it", shown))
    parts_of_all = list(dict.fromkeys(part for parts in found.values() for part in parts))
    users = {part: [run for run, parts in found.items() if part in parts] for part in parts_of_all}
    shared = [part for part in parts_of_all if len(users[part]) > 1 and any(meant[run] != part for run in users[part])]
    if not choices and not shared:
        shared = parts_of_all[:1]
    return choices + [Choice(f"part {part}", {run: found[run].get(part) for run in found}) for part in shared]
