"""What is shown of the questions about sequences: curves over the number of views, narrow tables, one page.

Everything is made from the records alone, so that pictures and tables show the numbers of `results.json`.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_equi.errors import CheckpointError
from ssl_equi.evaluation.records import ProbeRecord, describe_origins, format_value
from ssl_equi.evaluation.report.compared_runs import ComparedRun, EvaluatedFolder
from ssl_equi.evaluation.report.comparison import compare_runs
from ssl_equi.evaluation.report.figures import INK, MUTED, SERIES, new_figure, plain_legend, to_svg
from ssl_equi.evaluation.report.page import (
    Sections,
    captioned_figure,
    drawn_sections,
    escaped,
    page_document,
    settings_table,
)
from ssl_equi.evaluation.report.runs import page_header, runs_section
from ssl_equi.evaluation.report.tables import results_section
from ssl_equi.files import write_atomically

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


@dataclass(frozen=True)
class Curve:
    """One line over the number of views M."""

    label: str
    lengths: np.ndarray
    values: np.ndarray
    color: str
    dashes: str | tuple[int, tuple[float, ...]] = "solid"


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
        self.tasks = list(dict.fromkeys(record.task for record in records))

    def value(self, task: str, part: str, metric: str) -> float | None:
        record = self.records.get((task, part, metric))
        return None if record is None else record.value

    def baseline(self, task: str, part: str, metric: str) -> float | None:
        record = self.records.get((task, part, metric))
        return None if record is None else record.baseline

    def lengths(self, task: str) -> list[int]:
        """The numbers M for which there is an aggregate's answer."""
        found = (re.fullmatch(r"agg@(\d+)", part) for name, part, _ in self.records if name == task)
        return sorted({int(match[1]) for match in found if match})

    def metrics(self, task: str) -> list[str]:
        return list(dict.fromkeys(metric for name, _, metric in self.records if name == task))

    def curve(self, label: str, task: str, part: str, metric: str, color: str, **style: Any) -> Curve:
        """Over M, of the part that `part.format(M)` names."""
        points = [(length, self.value(task, part.format(length), metric)) for length in self.lengths(task)]
        known = [(length, value) for length, value in points if value is not None]
        return Curve(label, np.array([m for m, _ in known]), np.array([value for _, value in known]), color, **style)


def class_figure(records: Sequence[ProbeRecord]) -> str:
    """Top-1 from the aggregate of M views, beside the encoder's from one view and the majority class."""
    numbers = _Numbers(records)
    lengths = np.array(numbers.lengths("classification"))
    curves = [numbers.curve("aggregate of M views", "classification", "agg@{}", "top1", SERIES[0])]
    single, majority = [
        np.full(len(lengths), level, dtype=float)
        for level in (
            numbers.value("classification", "all@1", "top1"),
            numbers.baseline("classification", "all@1", "top1"),
        )
    ]
    curves.append(Curve("encoder, one view", lengths, single, INK, (0, (1, 1.5))))
    curves.append(Curve("majority class", lengths, majority, MUTED, "dashed"))
    return _length_figure("sequence-class", curves, "top1", limits=(0, None))


def leakage_figure(records: Sequence[ProbeRecord], task: str) -> str:
    """How well the action is read from two aggregates of M views, beside the encoder's features of two views."""
    numbers = _Numbers(records)
    curves = [
        numbers.curve("two aggregates", task, "agg@{}", "r2_uniform", SERIES[0]),
        numbers.curve("encoder, two views", task, "all@{}", "r2_uniform", INK, dashes=(0, (1, 1.5))),
    ]
    return _length_figure(f"sequence-{task}", curves, "r2_uniform", limits=(LEAST_R2_SHOWN, 1.05))


def path_figure(records: Sequence[ProbeRecord], task: str, metric: str) -> str:
    """Path integration over M with both ablations, the oracle, the constant and the trivial point M = 1."""
    numbers = _Numbers(records)
    curves = [
        numbers.curve("images and actions", task, "agg@{}", metric, SERIES[0]),
        numbers.curve("no images", task, "agg@{} no images", metric, SERIES[1]),
        numbers.curve("no actions", task, "agg@{} no actions", metric, SERIES[2]),
        numbers.curve("oracle", task, "oracle@{}", metric, INK, dashes=(0, (1, 1.5))),
    ]
    lengths = numbers.lengths(task)
    constants = [numbers.baseline(task, f"agg@{length}", metric) for length in lengths]
    curves.append(Curve("constant", np.array(lengths), np.array(constants, dtype=float), MUTED, "dashed"))
    limits = (LEAST_R2_SHOWN, 1.05) if metric == "r2_uniform" else (-3.0, 180.0)
    return _length_figure(f"sequence-{task}-{metric}", curves, metric, limits=limits, trivial_length=1)


def _length_figure(
    name: str,
    curves: Sequence[Curve],
    y_label: str,
    *,
    limits: tuple[float | None, float | None],
    trivial_length: int | None = None,
) -> str:
    """Lines over M as inline SVG; the first curve's point at `trivial_length` is hollow and named."""
    figure, axes = new_figure((4.2, 2.8))
    for curve in curves:
        axes.plot(
            curve.lengths, curve.values, color=curve.color, linestyle=curve.dashes, linewidth=1.4, label=curve.label
        )
        if curve.dashes == "solid":
            axes.plot(curve.lengths, curve.values, "o", color=curve.color, markersize=3.5)
    for length, value in zip(curves[0].lengths, curves[0].values, strict=True):
        if length == trivial_length:
            axes.plot([length], [value], "o", markersize=8, markerfacecolor="none", color=MUTED)
            axes.annotate("trivial", (length, value), (8, -10), textcoords="offset points", fontsize=8, color=MUTED)
    axes.set_xlabel("number of observed views M")
    axes.set_ylabel(y_label)
    axes.set_xticks(sorted({int(m) for curve in curves for m in curve.lengths}))
    low, high = limits
    drawn_low, drawn_high = axes.get_ylim()
    axes.set_ylim(drawn_low if low is None else max(low, min(drawn_low, 0)), drawn_high if high is None else high)
    plain_legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return to_svg(figure, name)


def summary_tables(records: Sequence[ProbeRecord]) -> list[SummaryTable]:
    """The main numbers, a table for each question; over M where there is one, `COLUMNS_IN_A_TABLE` at a time."""
    numbers = _Numbers(records)
    tables = []
    if "classification" in numbers.tasks:
        rows = {"aggregate": "agg@{}", "encoder, one view": "all@1"}
        tables += _tables_over_lengths(numbers, "class", "classification", "top1", rows, "majority class")
    pairs = [task for task in numbers.tasks if task.startswith("pair_")]
    if pairs:
        columns = tuple(dict.fromkeys(metric for task in pairs for metric in numbers.metrics(task)))
        shown = tuple(
            (
                task.removeprefix("pair_"),
                *(format_value(metric, numbers.value(task, "all", metric)) for metric in columns),
            )
            for task in pairs
        )
        tables.append(SummaryTable("action between two views, from the encoder", columns, shown))
    tables += [_leakage_matrix(numbers, length) for length in _leakage_lengths(numbers)]
    rows = {
        "images and actions": "agg@{}", "no images": "agg@{} no images", "no actions": "agg@{} no actions",
        "oracle": "oracle@{}",
    }  # fmt: skip
    for task in numbers.tasks:
        if task.startswith("path_"):
            title = f"path integration of {task.removeprefix('path_')}s, M = 1 is trivial"
            for metric in numbers.metrics(task):
                tables += _tables_over_lengths(numbers, title, task, metric, rows, "constant")
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


def write_page(
    path: Path,
    *,
    title: str,
    records: Sequence[ProbeRecord],
    notes: Sequence[str],
    protocol: Mapping[str, Any],
    config: Mapping[str, Any],
    command: str,
) -> None:
    """Write one self-contained page, atomically: figures, tables, every record, the protocol.

    Args:
        protocol, config: every number of the protocol, and the options that were given.
        command: what was typed.
    """
    explained = "".join(f"<li>{escaped(line)}</li>" for line in (*EXPLANATIONS, *notes))

    def in_short() -> str:
        tables = "".join(_html_table(table) for table in summary_tables(records))
        return f'<section id="tables"><h2>In short</h2>{tables}<ul class="notes">{explained}</ul></section>'

    def figures() -> str:
        drawn = f'<div class="figures">{_figures(records)}</div>'
        return f'<section id="figures"><h2>Over the number of views</h2>{drawn}</section>'

    folder = EvaluatedFolder(path.parent, records, (), {"command": command}, {}, {}, {}, None)
    runs = [ComparedRun(title, (folder,))]
    sections: Sections = {
        "header": lambda: page_header(title, runs),
        "runs": lambda: runs_section(runs),
        "figures": figures,
        "tables": in_short,
        "results": lambda: results_section(runs, compare_runs(runs)),
        "protocol": lambda: settings_table("protocol", "Protocol", {"": protocol}, list(protocol)),
        "configuration": lambda: settings_table("configuration", "Configuration", {"": config}, list(config)),
    }
    write_atomically(path, page_document(title, drawn_sections(sections)), CheckpointError)


def _figures(records: Sequence[ProbeRecord]) -> str:
    """All figures for which there are numbers."""
    numbers = _Numbers(records)
    drawn = []
    if numbers.lengths("classification"):
        drawn.append(captioned_figure(class_figure(records), "Class from M views of unseen objects, a head for each M"))
    for task in numbers.tasks:
        name = task.partition("_")[2]
        if task.startswith("leakage_"):
            caption = (
                f"Leakage: {name} between the last views of two windows of M views; lower is better for aggregates"
            )
            drawn.append(captioned_figure(leakage_figure(records, task), caption))
        if task.startswith("path_"):
            for metric in numbers.metrics(task):
                caption = f"Path integration: {name} from view 1 to view M + 1 ({metric})"
                if metric == "r2_uniform":
                    caption += f"; values below {LEAST_R2_SHOWN} lie outside"
                drawn.append(captioned_figure(path_figure(records, task, metric), caption))
    return "".join(drawn)


def _tables_over_lengths(
    numbers: _Numbers, title: str, task: str, metric: str, rows: Mapping[str, str], baseline_name: str
) -> list[SummaryTable]:
    """Rows `{name: part}` over M, where a part names M by {}; the baseline is the last row."""
    lengths = numbers.lengths(task)
    tables = []
    for start in range(0, len(lengths), COLUMNS_IN_A_TABLE):
        chunk = lengths[start : start + COLUMNS_IN_A_TABLE]
        values = {
            name: [numbers.value(task, part.format(length), metric) for length in chunk] for name, part in rows.items()
        }
        values[baseline_name] = [numbers.baseline(task, f"agg@{length}", metric) for length in chunk]
        shown = tuple((name, *(_short(metric, value) for value in row)) for name, row in values.items())
        tables.append(SummaryTable(f"{title} ({metric})", tuple(f"M={length}" for length in chunk), shown))
    return tables


def _short(metric: str, value: float | None) -> str:
    """At most as many digits as let 8 numbers stand in a line."""
    text = format_value(metric, value)
    return text if value is None or len(text) <= LONGEST_NUMBER else f"{value:.3g}"


def _leakage_lengths(numbers: _Numbers) -> list[int]:
    tasks = [task for task in numbers.tasks if task.startswith("leakage_")]
    return sorted({length for task in tasks for length in numbers.lengths(task)})


def _leakage_matrix(numbers: _Numbers, length: int) -> SummaryTable:
    """What the encoder and what the aggregate know: the class, and the action."""
    tasks = [task for task in numbers.tasks if task.startswith("leakage_")]
    rows = []
    for name, class_part, action_part in (("encoder", "all@1", f"all@{length}"), ("aggregate", *[f"agg@{length}"] * 2)):
        values = [("top1", numbers.value("classification", class_part, "top1"))]
        values += [("r2_uniform", numbers.value(task, action_part, "r2_uniform")) for task in tasks]
        rows.append((name, *(format_value(metric, value) for metric, value in values)))
    return SummaryTable(
        f"what is where, M = {length} (class: top1, action: r2_uniform)",
        ("class", *(task.removeprefix("leakage_") for task in tasks)),
        tuple(rows),
    )


def _html_table(table: SummaryTable) -> str:
    head = "".join(f'<th scope="col">{escaped(column)}</th>' for column in ("", *table.columns))
    rows = "".join(
        f'<tr><th scope="row">{escaped(name)}</th>'
        + "".join(f'<td class="number">{escaped(cell)}</td>' for cell in cells)
        + "</tr>"
        for name, *cells in table.rows
    )
    return (
        f"<h3>{escaped(table.title)}</h3>"
        f'<div class="scroll" style="margin-bottom: 20px"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
