"""The table of an evaluation with several seeds: means, standard errors, baselines, in 80 columns."""

import math
import shutil
import textwrap
from collections.abc import Sequence

import numpy as np

from ssl_equi.evaluation.records import ProbeRecord, describe_columns, format_value, in_short_tables

LINE_WIDTH = 80
HEADERS = ("part", "metric", "value", "±seed", "±obj", "baseline", "random", "n")


def print_seeds(records: Sequence[ProbeRecord], notes: Sequence[str] = (), paper_metrics: Sequence[str] = ()) -> None:
    """Print the mean over seeds of every metric with its two standard errors, baseline and random encoder.

    Args:
        notes: printed under the table; those that say the same of several tasks or parts share a line.
        paper_metrics: marked with a star.
    """
    rows: list[tuple[str, ...]] = []
    shown = in_short_tables(records)
    for group in grouped(shown):
        record = group[0]
        random_values = [each.random_encoder for each in group if each.random_encoder is not None]
        numbers = (
            float(np.mean([each.value for each in group])),
            standard_error([each.value for each in group]),
            object_error(group),
            float(np.mean([each.baseline for each in group])),
            float(np.mean(random_values)) if random_values else None,
        )
        name = record.metric + ("*" if record.metric in paper_metrics else "")
        cells = [format_value(record.metric, number) for number in numbers]
        rows.append((record.task, record.part, name, *cells, str(record.n)))
    print("\n".join(_table_lines(rows)))
    width = max(LINE_WIDTH, shutil.get_terminal_size().columns)
    for line in [*describe_seeds(records, paper_metrics), *describe_columns(shown), *merged_notes(notes)]:
        print(textwrap.fill(line, width, break_long_words=False))


def _table_lines(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Aligned text: a line for each task, and under it its parts and metrics."""
    columns = list(zip(*[HEADERS, *(row[1:] for row in rows)], strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    lines = [_aligned(HEADERS, widths)]
    task = part = ""
    for row in rows:
        if row[0] != task:
            lines += ["", row[0]]
        lines.append(_aligned(("" if row[:2] == (task, part) else row[1], *row[2:]), widths))
        task, part = row[:2]
    return lines


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Part and metric to the left, numbers to the right."""
    padded = [
        f"{cell:<{width}}" if index < 2 else f"{cell:>{width}}"
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  " + " ".join(padded)


def grouped(records: Sequence[ProbeRecord]) -> list[list[ProbeRecord]]:
    """Records that differ in their seed alone, in the order of the first seed."""
    groups: dict[tuple[str, ...], list[ProbeRecord]] = {}
    for record in records:
        key = (record.protocol, record.split, record.task, record.part, record.metric)
        groups.setdefault(key, []).append(record)
    tasks = list(dict.fromkeys(record.task for record in records))
    parts = list(dict.fromkeys(record.part for record in records))
    return sorted(groups.values(), key=lambda group: (tasks.index(group[0].task), parts.index(group[0].part)))


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of independent values; None for less than two."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def object_error(group: Sequence[ProbeRecord]) -> float | None:
    """Standard error over objects: the mean over seeds, since every seed is judged on the same objects."""
    errors = [record.object_standard_error for record in group if record.object_standard_error is not None]
    return float(np.mean(errors)) if errors else None


def describe_seeds(records: Sequence[ProbeRecord], paper_metrics: Sequence[str] = ()) -> list[str]:
    """Where the numbers come from, and what the errors are of."""
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
