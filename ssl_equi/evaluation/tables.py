"""Tables of records as text: of one seed, and of several with means and standard errors; made from nothing else."""

import math
import re
import shutil
import statistics
import textwrap
from collections.abc import Sequence

import numpy as np

from ssl_equi.evaluation.metrics import (
    ANGLE_MEDIAN,
    class_of_metric,
    fixed,
    format_value,
    lower_is_better,
    name_of_class_metric,
)
from ssl_equi.evaluation.protocol import AUGMENTATION_EQUIVARIANCE, AUGMENTATION_PARAMETERS
from ssl_equi.evaluation.results import ProbeRecord

LINE_WIDTH = 80
RELATIVE = "relative_"  # begins the names of tasks about what changes from view to view
WHOLE, CHANGING = ("all",), ("equi", "all")  # parts that a headline is about, the first that there is
LARGEST_SHARE = 5  # larger numbers are degrees, which have one decimal
COLUMNS = ("task", "part", "metric", "value", "baseline", "random", "n")  # of a table of one seed
LAYERS = "_layers"  # ends the names of tasks about single layers, which the report draws


def print_records(records: Sequence[ProbeRecord], notes: Sequence[str] = ()) -> None:
    """Print a table at most 80 columns wide, with the baselines beside each value, and the notes under it."""
    shown = in_short_tables(records)
    rows = [rounded_row(record) for record in shown]
    lines = _table(COLUMNS[2:], rows, tasks_in_a_column=True)
    if max(map(len, lines)) > _width():
        lines = _table(COLUMNS[2:], rows, tasks_in_a_column=False)
    _print(lines, [*describe_origins(shown), *describe_columns(shown), *notes])


def rounded_row(record: ProbeRecord) -> tuple[str, ...]:
    """A record as text, under `COLUMNS`."""
    numbers = [format_value(record.metric, each) for each in (record.value, record.baseline, record.random_encoder)]
    return (record.task, record.part, record.metric, *numbers, str(record.n))


def print_headline(records: Sequence[ProbeRecord], notes: Sequence[str] = ()) -> None:
    """Print the numbers that one looks at first, at most one a question: the class, and what changes from view to view.

    The class is that of all features; what changes is read from the equivariant part where there is one. Notes stand
    under the numbers.
    """
    rows = []
    for title, record in headline(records):
        numbers = [format_value(record.metric, each) for each in (record.value, record.random_encoder, record.baseline)]
        rows.append((f"{title} ({record.metric} of {record.part})", *numbers))
    lines: list[str] = []
    if rows:
        head = (f"on {records[0].num_objects:,} objects of {records[0].split}", "value", "random", "constant")
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        for row in (head, *rows):
            cells = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append(" ".join([f"{row[0]:<{widths[0]}}", *cells]))
    _print(lines, notes)


def headline(records: Sequence[ProbeRecord]) -> list[tuple[str, ProbeRecord]]:
    """At most four records of one seed, each with what it is about in words; of errors, the lower is the better."""
    by_place = {(record.task, record.metric, record.part): record for record in reversed(records)}

    def first_of(task: str, metrics: Sequence[str], parts: Sequence[str]) -> ProbeRecord | None:
        places = [(task, metric, part) for part in parts for metric in metrics]
        return next((by_place[place] for place in places if place in by_place), None)

    found: list[tuple[str, ProbeRecord | None]] = [("class", first_of("classification", ("top1",), WHOLE))]
    changes = list(dict.fromkeys(record.task for record in records if record.task.startswith(RELATIVE)))
    if changes:
        what = changes[0].removeprefix(RELATIVE)
        found.append((f"change of {what}", first_of(changes[0], ("r2_uniform", "top1"), CHANGING)))
        found.append((f"error of {what}", first_of(changes[0], (ANGLE_MEDIAN, "distance_median"), CHANGING)))
    else:
        for title, transform in (("crop", "crop"), ("colour jitter", "jitter")):
            told = first_of(AUGMENTATION_PARAMETERS, (f"r2_uniform_{transform}",), CHANGING)
            found.append((f"{title} of an augmentation", told))
        errors = first_of(AUGMENTATION_EQUIVARIANCE, ("gamma_f",), CHANGING)
        found.append(("equivariance error of augmentations", errors))
    others = [*(record.task for record in records if record.task == "colour"), *changes[1:]]
    if others:
        what = others[0].removeprefix(RELATIVE)
        found.append((f"change of {what}", first_of(others[0], ("r2_uniform", "top1"), CHANGING)))
    return [(title, record) for title, record in found if record is not None]


def print_seeds(records: Sequence[ProbeRecord], notes: Sequence[str] = (), paper_metrics: Sequence[str] = ()) -> None:
    """Print the mean over seeds of every metric with its two standard errors, baseline and random encoder.

    Args:
        notes: printed under the table; those that say the same of several tasks or parts share a line.
        paper_metrics: marked with a star.
    """
    shown = in_short_tables(records)
    rows = []
    for group in _grouped(shown):
        record = group[0]
        random_values = [each.random_encoder for each in group if each.random_encoder is not None]
        # Every seed is judged on the same objects, so errors over objects are averaged.
        object_errors = [each.object_standard_error for each in group if each.object_standard_error is not None]
        numbers = (
            float(np.mean([each.value for each in group])),
            _standard_error([each.value for each in group]),
            float(np.mean(object_errors)) if object_errors else None,
            float(np.mean([each.baseline for each in group])),
            float(np.mean(random_values)) if random_values else None,
        )
        name = record.metric + ("*" if record.metric in paper_metrics else "")
        cells = [format_value(record.metric, number) for number in numbers]
        rows.append((record.task, record.part, name, *cells, str(record.n)))
    headers = ("metric", "value", "±seed", "±obj", "baseline", "random", "n")
    lines = [*_describe_seeds(shown, paper_metrics), *describe_columns(shown), *merged_notes(notes)]
    _print(_table(headers, rows, tasks_in_a_column=False), lines)


def _table(headers: Sequence[str], rows: Sequence[tuple[str, ...]], *, tasks_in_a_column: bool) -> list[str]:
    """Aligned lines of rows that begin with task and part, which are written where they change; metrics come third."""
    left = 3 if tasks_in_a_column else 2
    shown: list[tuple[str, ...]] = [("task", "part", *headers) if tasks_in_a_column else ("  part", *headers)]
    task = part = None
    for row in rows:
        new_task, new_part = row[0] != task, row[:2] != (task, part)
        shown_part = row[1] if new_part else ""
        if tasks_in_a_column:
            shown += [()] if new_part and task is not None else []
            shown.append((row[0] if new_task else "", shown_part, *row[2:]))
        else:
            shown += [(), (row[0],)] if new_task else []
            shown.append((f"  {shown_part}", *row[2:]))
        task, part = row[:2]
    widths = [max(map(len, column)) for column in zip(*(row for row in shown if len(row) > 1), strict=True)]
    lines = []
    for row in shown:
        cells = [f"{cell:<{width}}" if index < left else f"{cell:>{width}}"
                 for index, (cell, width) in enumerate(zip(row, widths, strict=False))]  # fmt: skip
        lines.append(" ".join(cells) if len(row) > 1 else "".join(row))
    return lines


def _print(table: Sequence[str], lines: Sequence[str]) -> None:
    """The table, which had better be wrapped by a narrow terminal than cut, and what one must know to read it."""
    if table:
        print("\n".join(table))
    for line in lines:
        print(textwrap.fill(line, _width(), break_long_words=False))


def _width() -> int:
    return max(LINE_WIDTH, shutil.get_terminal_size().columns)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int | None = None) -> str:
    """A table in Markdown, of cells that are Markdown; the columns behind the first `text_columns` are numbers."""
    text_columns = len(head) if text_columns is None else text_columns
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *rows))


def markdown_text(text: str) -> str:
    """Text as Markdown shows it, on one line."""
    return re.sub(r"([\\`*_|<>])", r"\\\1", " ".join(text.split()))


def _grouped(records: Sequence[ProbeRecord]) -> list[list[ProbeRecord]]:
    """Records that differ in their seed alone, in the order of the first seed."""
    groups: dict[tuple[str, ...], list[ProbeRecord]] = {}
    for record in records:
        key = (record.protocol, record.split, record.task, record.part, record.metric)
        groups.setdefault(key, []).append(record)
    tasks = list(dict.fromkeys(record.task for record in records))
    parts = list(dict.fromkeys(record.part for record in records))
    return sorted(groups.values(), key=lambda group: (tasks.index(group[0].task), parts.index(group[0].part)))


def _standard_error(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


# ---------------------------------------------------------------- what a reader must know


def in_short_tables(records: Sequence[ProbeRecord]) -> list[ProbeRecord]:
    """The records without those of single classes and single layers."""
    return [record for record in records if class_of_metric(record.metric) is None and not record.task.endswith(LAYERS)]


def describe_origins(records: Sequence[ProbeRecord]) -> list[str]:
    """A line for each protocol, split and seed that the records come from."""
    origins = {(record.protocol, record.split, record.num_objects, record.seed) for record in records}
    return [
        f"protocol {protocol}, split {split} ({num_objects} objects), probe seed {seed}"
        for protocol, split, num_objects, seed in sorted(origins)
    ]


def _describe_seeds(records: Sequence[ProbeRecord], paper_metrics: Sequence[str]) -> list[str]:
    origins: dict[tuple[str, str, int], set[int]] = {}
    for record in records:
        origins.setdefault((record.protocol, record.split, record.num_objects), set()).add(record.seed)
    lines = [
        f"protocol {protocol}, split {split} ({num_objects} objects), mean of probe seeds "
        f"{', '.join(str(seed) for seed in sorted(seeds))}"
        for (protocol, split, num_objects), seeds in origins.items()
    ]
    lines.append("±seed, ±obj: standard errors over the heads' seeds, and over evaluated objects")
    if any(record.metric in paper_metrics for record in records):
        lines.append("*: what the paper of this protocol reports")
    return lines


def describe_columns(records: Sequence[ProbeRecord], *, intervals_shown: bool = False) -> list[str]:
    """What "baseline" and "random" stand for, which metrics are errors, and what or where the intervals are."""
    metrics_by_name: dict[str, list[str]] = {}
    for metric, name in dict.fromkeys((each.metric, each.baseline_name) for each in in_short_tables(records)):
        metrics_by_name.setdefault(name, []).append(metric)
    metrics_by_name.pop("constant", None)
    named = "; ".join(f"{', '.join(metrics)}: {name}" for name, metrics in metrics_by_name.items())
    lines = [f"baseline: the best constant answer{f', or as named ({named})' if named else ''}"]
    all_metrics = dict.fromkeys(
        record.metric if of_class is None else name_of_class_metric(of_class[0], "CLASS")
        for record, of_class in ((record, class_of_metric(record.metric)) for record in records)
    )
    lower = [metric for metric in all_metrics if lower_is_better(metric)]
    if lower:
        lines.append(f"lower is better: {', '.join(lower)}")
    if any(record.interval_low is not None for record in records):
        where = "in brackets" if intervals_shown else "in results.json and report.html"
        lines.append(f"95 % intervals over resampled objects are {where}")
    if any(record.part.startswith("agg@") for record in records):
        lines.append("agg@M: the aggregate of M views; all@M: the features of the views that it ends with")
    if any(record.random_encoder is not None for record in records):
        lines.append("random: same architecture with fresh weights, same probes")
    return lines


def merged_notes(notes: Sequence[str]) -> list[str]:
    """Notes "TASK, part PART: why" with the same reason on one line; others as they are."""
    reasons: dict[str, list[str]] = {}
    for note in notes:
        where, colon, why = note.partition(": ")
        if colon and ", part " in where:
            reasons.setdefault(why, []).append(where)
        else:
            reasons.setdefault(note, [])
    lines = []
    for why, places in reasons.items():
        tasks = dict.fromkeys(place.rpartition(", part ")[0] for place in places)
        parts = dict.fromkeys(place.rpartition(", part ")[2] for place in places)
        lines.append(f"{', '.join(tasks)} (part {', '.join(parts)}): {why}" if places else why)
    return lines


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds, the value alone where there is one, a dash for nothing."""
    if not values:
        return "-"
    decimals = 1 if max(values) > LARGEST_SHARE else 3
    mean = fixed(statistics.mean(values), decimals)
    return mean if len(values) == 1 else f"{mean} ± {fixed(statistics.stdev(values), decimals)}"
