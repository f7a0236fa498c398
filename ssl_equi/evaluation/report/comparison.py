"""Numbers of several runs side by side: means, standard errors, and which may be ranked.

Numbers are ranked only if they answer the same question of the same data: same protocol, split, number of samples and
fingerprint of the data. Where they are not, a sentence says why. Where both runs kept what each object contributed to a
number, their difference has an interval over objects that are resampled for both alike; it says more than two standard
errors, because objects that are hard are hard for both.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from ssl_equi.evaluation.bootstrap import ObjectStatistic, paired_interval, stored_statistic
from ssl_equi.evaluation.metrics import lower_is_better, why_no_merit
from ssl_equi.evaluation.report.compared_runs import ComparedRun, EvaluatedFolder
from ssl_equi.evaluation.results import ProbeRecord
from ssl_equi.evaluation.tables import in_short_tables

NEAR_IN_STANDARD_ERRORS = 2
KNOWN_PARTS = ("all", "inv", "equi")

Question = tuple[str, str, str]  # task, metric, part
Setting = tuple[str, str]  # protocol, split


@dataclass(frozen=True)
class Cell:
    """One run's answer.

    Attributes:
        mean: over training runs, or over the seeds of the heads.
        standard_error: of the mean; None for a single number without one.
        over: what the standard error is over, such as "3 runs"; empty without one.
        random_encoder: None if it was not measured.
        interval: of a single number, percentiles over resampled objects; None twice where there is none.
        conditions: all that must agree before numbers are ranked, by its name, in the order of `CONDITIONS`.
        over_objects: how one of the numbers follows from the objects; None if that was not kept, or of several training
            runs, which differ by more than the objects that they are judged on.
    """

    mean: float
    standard_error: float | None
    over: str
    baseline: float
    baseline_name: str
    random_encoder: float | None
    interval: tuple[float | None, float | None]
    conditions: Mapping[str, frozenset[Any]]
    over_objects: ObjectStatistic | None

    def beats_random(self, sign: int) -> bool:
        """Whether it is better than its own random encoder, where that was measured; `sign` -1: lower is better."""
        return self.random_encoder is None or sign * self.mean > sign * self.random_encoder


@dataclass(frozen=True)
class Difference:
    """What a run has more than the best one, with a 95 % interval over resampled objects; one seed of the heads."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One line of the comparison: what was asked of which features, and each run's answer.

    Attributes:
        setting: protocol and split, where a run answers the question in several; None otherwise.
        cells: of each run; None where it has no answer.
        best: the run with the best mean; None if the row is not ranked.
        near: runs that may be as good as the best: by the interval of the difference if there is one, otherwise those
            whose mean is within two standard errors of the difference.
        differences: of each run from the best; None where there is no interval.
        why_not_ranked: a sentence; empty if it is ranked, or if there is one number only.
    """

    task: str
    metric: str
    part: str
    setting: Setting | None
    cells: tuple[Cell | None, ...]
    best: int | None
    near: frozenset[int]
    differences: tuple[Difference | None, ...]
    why_not_ranked: str


_Found = tuple[ProbeRecord, EvaluatedFolder]
CONDITIONS: dict[str, Callable[[ProbeRecord, EvaluatedFolder], Any]] = {
    "protocol": lambda record, _: record.protocol,
    "split": lambda record, _: record.split,
    "n": lambda record, _: record.n,
    "objects": lambda record, _: record.num_objects,
    "data": lambda record, folder: folder.fingerprint(record.split),
}


def compare_runs(runs: Sequence[ComparedRun]) -> list[Row]:
    """All rows: task by task and metric by metric in the order of the records, parts in a fixed order."""
    found = [_records_by_question(run) for run in runs]
    rows = []
    for question in _questions(found):
        answers = [settings.get(question, {}) for settings in found]
        # A run that answers in two settings, such as for two splits, has a row for each.
        if max(len(settings) for settings in answers) > 1:
            for setting in dict.fromkeys(setting for settings in answers for setting in settings):
                chosen = [{setting: settings[setting]} if setting in settings else {} for settings in answers]
                rows.append(_row(question, setting, chosen, runs))
        else:
            rows.append(_row(question, None, answers, runs))
    return rows


def _records_by_question(run: ComparedRun) -> dict[Question, dict[Setting, list[_Found]]]:
    """The newest record of each folder and seed, by question and setting."""
    newest: dict[tuple[Question, Setting, int, int], _Found] = {}
    for index, folder in enumerate(run.folders):
        for record in in_short_tables(folder.records):
            question, setting = (record.task, record.metric, record.part), (record.protocol, record.split)
            newest[question, setting, index, record.seed] = (record, folder)
    found: dict[Question, dict[Setting, list[_Found]]] = {}
    for (question, setting, _, _), entry in newest.items():
        found.setdefault(question, {}).setdefault(setting, []).append(entry)
    return found


def _questions(found: Sequence[Mapping[Question, Any]]) -> list[Question]:
    questions = dict.fromkeys(question for settings in found for question in settings)
    tasks = list(dict.fromkeys(task for task, _, _ in questions))
    metrics = list(dict.fromkeys((task, metric) for task, metric, _ in questions))
    parts = list(dict.fromkeys((*KNOWN_PARTS, *(part for _, _, part in questions))))
    return sorted(questions, key=lambda each: (tasks.index(each[0]), metrics.index(each[:2]), parts.index(each[2])))


def _row(
    question: Question,
    setting: Setting | None,
    answers: Sequence[Mapping[Setting, Sequence[_Found]]],
    runs: Sequence[ComparedRun],
) -> Row:
    task, metric, part = question
    cells = tuple(_cell(question, next(iter(settings.values()))) if settings else None for settings in answers)
    present = {index: cell for index, cell in enumerate(cells) if cell is not None}
    reason = _why_not_ranked(task, part, {runs[index].name: cell for index, cell in present.items()})
    best, near = None, frozenset[int]()
    differences: tuple[Difference | None, ...] = (None,) * len(cells)
    if len(present) > 1 and not reason:
        sign = -1 if lower_is_better(metric) else 1
        # Equal means share the first place.
        first = max(present, key=lambda index: sign * present[index].mean)
        leader = present[first]
        if sign * leader.mean <= sign * leader.baseline:
            reason = f"not ranked: no run is better than the baseline ({leader.baseline_name})"
        elif not leader.beats_random(sign):
            reason = f"not ranked: {runs[first].name}, the best one, is no better than its random encoder"
        else:
            best = first
            differences = tuple(_difference(None if cell is leader else cell, leader) for cell in cells)
            near = frozenset(
                index
                for index, cell in present.items()
                if cell is not leader and _is_near(leader, cell, differences[index], sign) and cell.beats_random(sign)
            )
    return Row(task, metric, part, setting, cells, best, near, differences, reason)


def _cell(question: Question, entries: Sequence[_Found]) -> Cell:
    """Mean and standard error over training runs if there are several, otherwise over seeds, otherwise over objects."""
    by_folder: dict[int, list[float]] = {}
    for record, folder in entries:
        by_folder.setdefault(id(folder), []).append(record.value)
    records = [record for record, _ in entries]
    several_runs = len(by_folder) > 1
    values = [fmean(group) for group in by_folder.values()] if several_runs else [record.value for record in records]
    standard_error, over = records[0].object_standard_error, "objects"
    if len(values) > 1:
        standard_error = stdev(values) / math.sqrt(len(values))
        over = f"{len(values)} {'runs' if several_runs else 'seeds'}"
    randoms = [record.random_encoder for record in records if record.random_encoder is not None]
    return Cell(
        mean=fmean(values),
        standard_error=standard_error,
        over="" if standard_error is None else over,
        baseline=fmean(record.baseline for record in records),
        baseline_name=records[0].baseline_name,
        random_encoder=fmean(randoms) if randoms else None,
        interval=(records[0].interval_low, records[0].interval_high) if len(records) == 1 else (None, None),
        conditions={name: frozenset(of(*entry) for entry in entries) for name, of in CONDITIONS.items()},
        over_objects=None if several_runs else _kept_statistic(question, entries[0][1], records),
    )


def _kept_statistic(
    question: Question, folder: EvaluatedFolder, records: Sequence[ProbeRecord]
) -> ObjectStatistic | None:
    """How one of the records follows from the objects, by the folder's arrays."""
    task, metric, part = question
    statistic = stored_statistic(folder.arrays, task, part, metric)
    if statistic is None:
        return None
    # A folder keeps the arrays of its first seed and of the protocol and split that came last: are they of these?
    value = statistic.value()
    known = any(math.isclose(value, record.value, rel_tol=1e-4, abs_tol=1e-5) for record in records)
    return statistic if known else None


def _difference(cell: Cell | None, best: Cell) -> Difference | None:
    if cell is None or cell.over_objects is None or best.over_objects is None:
        return None
    interval = paired_interval(cell.over_objects, best.over_objects)
    return None if interval is None else Difference(cell.over_objects.value() - best.over_objects.value(), *interval)


def _why_not_ranked(task: str, part: str, cells: Mapping[str, Cell]) -> str:
    """One sentence, empty if the numbers can be ranked or there are fewer than two."""
    if len(cells) < 2:
        return ""
    for name in CONDITIONS:
        values = {run: cell.conditions[name] for run, cell in cells.items()}
        if name == "data":
            unknown = [run for run, found in values.items() if None in found]
            if unknown:
                return f"not ranked: {_joined(unknown)} {'does' if len(unknown) == 1 else 'do'} not say which data"
        if len(frozenset().union(*values.values())) > 1:
            return f"not ranked: {_how_they_differ(name, values)}"
    no_merit = why_no_merit(task, part)
    return f"not ranked: {no_merit}" if no_merit else ""


def _how_they_differ(name: str, values: Mapping[str, frozenset[Any]]) -> str:
    """Such as "split is test (sie) and val (moco)"."""
    runs_by_value: dict[str, list[str]] = {}
    for run, found in values.items():
        shown = sorted(str(value)[:8] if name == "data" else str(value) for value in found)
        runs_by_value.setdefault(" or ".join(shown), []).append(run)
    described = [f"{value} ({', '.join(runs)})" for value, runs in runs_by_value.items()]
    label = {"data": "the data's fingerprint", "objects": "the number of objects"}.get(name, name)
    return f"{label} is {_joined(described)}"


def _is_near(best: Cell, other: Cell, difference: Difference | None, sign: int) -> bool:
    if best.mean == other.mean:
        return True
    if difference is not None:
        # Of several seeds the mean says who is best: one seed may say the reverse, which is no lead either.
        return max(sign * difference.low, sign * difference.high) >= 0
    if best.standard_error is None or other.standard_error is None:
        return False
    error = math.hypot(best.standard_error, other.standard_error)
    return abs(best.mean - other.mean) <= NEAR_IN_STANDARD_ERRORS * error


def _joined(texts: Iterable[str]) -> str:
    """a, b and c."""
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last
