"""The table of an evaluation with several seeds: means, standard errors, baselines, in 80 columns."""

import math
import shutil
from collections.abc import Sequence

import numpy as np

from ssl_equi.probing.records import ProbeRecord, describe_columns, format_value


def print_seeds(records: Sequence[ProbeRecord], notes: Sequence[str] = (), paper_metrics: Sequence[str] = ()) -> None:
    """Print the mean over seeds of every metric with its two standard errors, baseline and random encoder.

    Args:
        notes: printed under the table; those that say the same of several tasks or parts share a line.
        paper_metrics: marked with a star.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("part", "metric"):
        table.add_column(name, no_wrap=True)
    for name in ("value", "±seeds", "±objects", "baseline", "random", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    shown_task = shown_part = ""
    for group in grouped(records):
        record = group[0]
        if record.task != shown_task:
            table.add_row(f"[bold]{record.task}")
        new_part = record.task != shown_task or record.part != shown_part
        shown_task, shown_part = record.task, record.part
        random_values = [each.random_encoder for each in group if each.random_encoder is not None]
        table.add_row(
            f" {record.part}" if new_part else "",
            record.metric + ("*" if record.metric in paper_metrics else ""),
            format_value(record.metric, float(np.mean([each.value for each in group]))),
            format_value(record.metric, standard_error([each.value for each in group])),
            format_value(record.metric, object_error(group)),
            format_value(record.metric, float(np.mean([each.baseline for each in group]))),
            format_value(record.metric, float(np.mean(random_values)) if random_values else None),
            str(record.n),
        )
    console = Console(width=max(80, shutil.get_terminal_size().columns))
    console.print(table)
    for line in [*describe_seeds(records, paper_metrics), *describe_columns(records), *merged_notes(notes)]:
        console.print(line, highlight=False, markup=False)


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
    lines.append("±seeds, ±objects: standard errors over heads' seeds, and over evaluated objects")
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
