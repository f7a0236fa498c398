"""What is shown of the questions about sequences: curves over the number of views M, and narrow tables.

Everything is made from the records alone, so that pictures and tables show the numbers of `results.json`.
"""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssl_equi.evaluation.metrics import format_value
from ssl_equi.evaluation.report.compared_runs import ComparedRun, in_last_setting
from ssl_equi.evaluation.report.figures import DOTTED, INK, MUTED, SERIES, legend_above, new_figure, to_svg
from ssl_equi.evaluation.report.page import (
    captioned_figure,
    data_table,
    escaped,
    figure_grid,
    listed,
    page_section,
)
from ssl_equi.evaluation.results import ProbeRecord
from ssl_equi.evaluation.sequences.tasks import PROTOCOLS
from ssl_equi.evaluation.tables import describe_origins

COLUMNS_IN_A_TABLE = 8  # as many numbers as stand beside a name in 80 columns
LONGEST_NUMBER = 6  # characters in such a table
LEAST_R2_SHOWN = -0.6
EXPLANATIONS = (
    "agg@M: aggregate of M views; all, all@M: features of the encoder, of any views or of the same as agg@M ends with",
    "class: from the first M views of a sequence, a linear head for each M",
    "leakage: the action between the last views of two windows of M views, which neither aggregate was told",
    "path: the action from view 1 to view M + 1, from the aggregate of M views and the last step; M = 1 is trivial, "
    "because the last step is the answer",
    "no images, no actions: zeros instead, where the head has learnt from both; oracle: the exact steps composed",
)
# By the first word of a task's name: label, part at M views, colour and dashes of each line.
LINES: dict[str, tuple[tuple[str, str, str, Any], ...]] = {
    "classification": (("aggregate", "agg@{}", SERIES[0], "solid"), ("encoder, one view", "all@1", INK, DOTTED)),
    "leakage": (("two aggregates", "agg@{}", SERIES[0], "solid"), ("encoder, two views", "all@{}", INK, DOTTED)),
    "path": (
        ("images and actions", "agg@{}", SERIES[0], "solid"),
        ("no images", "agg@{} no images", SERIES[1], "solid"),
        ("no actions", "agg@{} no actions", SERIES[2], "solid"),
        ("oracle", "oracle@{}", INK, DOTTED),
    ),
}
BASELINES = {"classification": "majority class", "path": "constant"}
LIMITS: dict[str, tuple[float, float | None]] = {  # of the figures, by metric
    "top1": (0, None), "r2_uniform": (LEAST_R2_SHOWN, 1.05), "angle_deg_median": (-3.0, 180.0),
}  # fmt: skip


@dataclass(frozen=True)
class SummaryTable:
    """A table whose first column names the rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class _Numbers:
    """Records by task, part and metric."""

    def __init__(self, records: Sequence[ProbeRecord]) -> None:
        self.records = {(record.task, record.part, record.metric): record for record in records}

    def about(self, question: str) -> list[str]:
        """The tasks of a question, by the first word of their names."""
        return list(dict.fromkeys(task for task, _, _ in self.records if task.partition("_")[0] == question))

    def metrics(self, task: str) -> list[str]:
        return list(dict.fromkeys(metric for name, _, metric in self.records if name == task))

    def lengths(self, task: str) -> list[int]:
        """The numbers M for which there is an aggregate's answer."""
        found = (re.fullmatch(r"agg@(\d+)", part) for name, part, _ in self.records if name == task)
        return sorted({int(match[1]) for match in found if match})

    def value(self, task: str, part: str, metric: str) -> float | None:
        record = self.records.get((task, part, metric))
        return None if record is None else record.value

    def lines(self, task: str, metric: str) -> dict[str, list[float | None]]:
        """The values of each line of a question over `lengths`, and of its baseline as the last one."""
        question, lengths = task.partition("_")[0], self.lengths(task)
        lines = {
            label: [self.value(task, part.format(length), metric) for length in lengths]
            for label, part, _, _ in LINES[question]
        }
        if question in BASELINES:
            aggregates = [self.records.get((task, f"agg@{length}", metric)) for length in lengths]
            lines[BASELINES[question]] = [None if record is None else record.baseline for record in aggregates]
        return lines


def sequence_section(runs: Sequence[ComparedRun]) -> str:
    """Figures and tables of each run that was asked about sequences; nothing if none was."""
    figures, tables, notes = [], [], list(EXPLANATIONS)
    for index, run in enumerate(runs):
        asked = [record for record in run.folders[0].records if record.protocol.startswith(PROTOCOLS)]
        if not asked:
            continue
        # A run is asked in short at its end, and in full by the script: what was asked last is shown.
        records = in_last_setting(asked)
        whose = f"{run.name}: " if len(runs) > 1 else ""
        figures += _figures(_Numbers(records), f"sequence{index}", whose)
        tables += [_html_table(table, whose) for table in summary_tables(records)]
        notes += [f"{whose}{origin}" for origin in describe_origins(records)]
    if not figures and not tables:
        return ""
    return page_section("sequences", "Over the number of observed views", figure_grid(figures), *tables, listed(notes))


def summary_tables(records: Sequence[ProbeRecord]) -> list[SummaryTable]:
    """The main numbers, a table for each question; over M where there is one, `COLUMNS_IN_A_TABLE` at a time."""
    numbers = _Numbers(records)
    tables = []
    for task in numbers.about("classification"):
        tables += _tables_over_lengths(numbers, "class", task, "top1")
    pairs = numbers.about("pair")
    if pairs:
        columns = tuple(dict.fromkeys(metric for task in pairs for metric in numbers.metrics(task)))
        rows = []
        for task in pairs:
            values = (format_value(metric, numbers.value(task, "all", metric)) for metric in columns)
            rows.append((task.removeprefix("pair_"), *values))
        tables.append(SummaryTable("action between two views, from the encoder", columns, tuple(rows)))
    leaks = numbers.about("leakage")
    for length in sorted({length for task in leaks for length in numbers.lengths(task)}):
        tables.append(_leakage_matrix(numbers, leaks, length))
    for task in numbers.about("path"):
        title = f"path integration of {task.removeprefix('path_')}s, M = 1 is trivial"
        for metric in numbers.metrics(task):
            tables += _tables_over_lengths(numbers, title, task, metric)
    return tables


def print_summary(records: Sequence[ProbeRecord], notes: Sequence[str] = ()) -> None:
    """Print the tables, what they mean and where they come from; no line is wider than 80 characters."""
    for table in summary_tables(records):
        cells = [("", *table.columns), *table.rows]
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        print(table.title)
        for row in cells:
            numbers = [text.rjust(width + 1) for text, width in zip(row[1:], widths[1:], strict=True)]
            print("  " + row[0].ljust(max(widths[0], 18)) + "".join(numbers))
        print()
    for line in [*describe_origins(records), *EXPLANATIONS, *notes]:
        print(textwrap.fill(line, width=80, subsequent_indent="  "))


def _figures(numbers: _Numbers, name: str, whose: str) -> list[str]:
    """All figures for which there are numbers."""
    captions: dict[tuple[str, str], str] = {}
    if numbers.lengths("classification"):
        captions["classification", "top1"] = "Class from M views of unseen objects, a head for each M"
    for task in numbers.about("leakage"):
        captions[task, "r2_uniform"] = (
            f"Leakage: {task.removeprefix('leakage_')} between the last views of two windows of M views; lower is "
            "better for aggregates"
        )
    for task in numbers.about("path"):
        for metric in numbers.metrics(task):
            outside = f"; values below {LEAST_R2_SHOWN} lie outside" if metric == "r2_uniform" else ""
            what = task.removeprefix("path_")
            captions[task, metric] = f"Path integration: {what} from view 1 to view M + 1 ({metric}){outside}"
    return [
        captioned_figure(_length_figure(numbers, f"{name}-{task}-{metric}", task, metric), f"{whose}{caption}")
        for (task, metric), caption in captions.items()
    ]


def _length_figure(numbers: _Numbers, name: str, task: str, metric: str) -> str:
    """The lines of a question over M as inline SVG; the trivial point M = 1 of a path is hollow and named."""
    question, lengths = task.partition("_")[0], numbers.lengths(task)
    figure, axes = new_figure((4.2, 2.8))
    styles = [*((color, dashes) for _, _, color, dashes in LINES[question]), (MUTED, "dashed")]
    for (label, values), (color, dashes) in zip(numbers.lines(task, metric).items(), styles):
        heights = np.array(values, dtype=float)  # NaN where there is no answer
        axes.plot(lengths, heights, color=color, linestyle=dashes, linewidth=1.4, label=label)
        if dashes == "solid":
            axes.plot(lengths, heights, "o", color=color, markersize=3.5)
    trivial = numbers.value(task, "agg@1", metric)
    if question == "path" and trivial is not None:
        axes.plot([1], [trivial], "o", markersize=8, markerfacecolor="none", color=MUTED)
        axes.annotate("trivial", (1, trivial), (8, -10), textcoords="offset points", fontsize=8, color=MUTED)
    axes.set_xlabel("number of observed views M")
    axes.set_ylabel(metric)
    axes.set_xticks(lengths)
    (low, high), (drawn_low, drawn_high) = LIMITS[metric], axes.get_ylim()
    axes.set_ylim(max(low, min(drawn_low, 0)), drawn_high if high is None else high)
    legend_above(axes)
    return to_svg(figure, name)


def _tables_over_lengths(numbers: _Numbers, title: str, task: str, metric: str) -> list[SummaryTable]:
    """The lines of a question's figure as rows over M, and the baseline as the last one."""
    columns = tuple(f"M={length}" for length in numbers.lengths(task))
    rows = {name: [_short(metric, value) for value in row] for name, row in numbers.lines(task, metric).items()}
    chunks = [slice(start, start + COLUMNS_IN_A_TABLE) for start in range(0, len(columns), COLUMNS_IN_A_TABLE)]
    return [
        SummaryTable(f"{title} ({metric})", columns[chunk], tuple((name, *row[chunk]) for name, row in rows.items()))
        for chunk in chunks
    ]


def _short(metric: str, value: float | None) -> str:
    """At most as many digits as let 8 numbers stand in a line."""
    text = format_value(metric, value)
    return text if value is None or len(text) <= LONGEST_NUMBER else f"{value:.3g}"


def _leakage_matrix(numbers: _Numbers, tasks: Sequence[str], length: int) -> SummaryTable:
    """What the encoder and what the aggregate know: the class, and the action."""
    rows = []
    for name, class_part, action_part in (("encoder", "all@1", f"all@{length}"), ("aggregate", *[f"agg@{length}"] * 2)):
        values = [("top1", numbers.value("classification", class_part, "top1"))]
        values += [("r2_uniform", numbers.value(task, action_part, "r2_uniform")) for task in tasks]
        rows.append((name, *(format_value(metric, value) for metric, value in values)))
    title = f"what is where, M = {length} (class: top1, action: r2_uniform)"
    return SummaryTable(title, ("class", *(task.removeprefix("leakage_") for task in tasks)), tuple(rows))


def _html_table(table: SummaryTable, whose: str) -> str:
    head = "".join(f'<th scope="col">{escaped(column)}</th>' for column in ("", *table.columns))
    rows = [
        f'<th scope="row">{escaped(name)}</th>' + "".join(f'<td class="number">{escaped(cell)}</td>' for cell in cells)
        for name, *cells in table.rows
    ]
    return f"<h3>{escaped(whose + table.title)}</h3>{data_table('', head, [rows])}"
