"""The numbers of runs as tables: cards of the first questions, all rows with what to know about them, and exports.

Nothing here knows the names of tasks or metrics, apart from sentences about some of them: what has records has a card,
a row, and a line in each export.
"""

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Literal

from ssl_equi.evaluation.metrics import class_of_metric, format_value, meaning_of
from ssl_equi.evaluation.report.compared_runs import ComparedRun
from ssl_equi.evaluation.report.comparison import Cell, Row
from ssl_equi.evaluation.report.figures import series_colour
from ssl_equi.evaluation.report.page import data_table, escaped, figure_grid, listed, page_section
from ssl_equi.evaluation.report.part_choices import choose_parts, parts_meant_for
from ssl_equi.evaluation.results import ProbeRecord
from ssl_equi.evaluation.tables import describe_columns, describe_origins, markdown_table, markdown_text
from ssl_equi.evaluation.task import TASKS
from ssl_equi.evaluation.tasks.latents import ABSOLUTE, RELATIVE

TableFormat = Literal["latex", "markdown"]
ByClass = dict[str, dict[tuple[int, int], ProbeRecord]]

MAX_CARDS = 8
RUNS_IN_A_TABLE = 6
FEW_RUNS = 3  # leave room for more in a line
BEST, NEAR = "★", "☆"
IN_WORDS = {"angle_deg_median": "median angle", "distance_median": "median distance"}
CAPSULE_NOTES = {  # of what an objective's ending asks, which is no task of encoders
    "capsule_rotation": "the rotation between two views, read from all capsules' poses in closed form, without a head",
    "capsule_equivariance": "whether the poses of view 1, multiplied by the true action, are those of view 2",
}


def meaning_of_task(task: str) -> str:
    """A sentence about a task, such as its first line of documentation; empty where nothing is known."""
    if task in CAPSULE_NOTES:
        return CAPSULE_NOTES[task]
    if task in TASKS:
        return (TASKS[task].answer.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    if task.startswith(RELATIVE):
        return (
            f"how the latent {task.removeprefix(RELATIVE)} changes between two views; R² is that of the change as its "
            "kind writes it, such as sine and cosine of an angle's, or the share of a number's range"
        )
    if task.startswith(ABSOLUTE):
        return (
            f"the latent {task.removeprefix(ABSOLUTE)} in a single view; R² is that of the value as its kind writes it"
        )
    return ""


def answers_of_meant_parts(rows: Sequence[Row], task: str, metric: str) -> dict[int, tuple[Row, Cell]]:
    """Each run's answer from the part that is meant for the task, if it has that, by the run's place."""
    found: dict[int, tuple[Row, Cell]] = {}
    asked = [row for row in rows if (row.task, row.metric) == (task, metric)]
    for part in parts_meant_for(task, [row.part for row in asked]):
        for row in asked:
            for index, cell in enumerate(row.cells):
                if row.part == part and cell is not None:
                    found.setdefault(index, (row, cell))
    return dict(sorted(found.items()))


def headline_section(runs: Sequence[ComparedRun], rows: Sequence[Row]) -> str:
    """A card for each of the first tasks: its first metric, of the part of each run that is meant for it."""
    cards = []
    for task in _distinct(row.task for row in rows)[:MAX_CARDS]:
        metric = next(row.metric for row in rows if row.task == task)
        shown = answers_of_meant_parts(rows, task, metric)
        parts = _distinct(row.part for row, _ in shown.values())
        cells = [cell for _, cell in shown.values()]
        compared = [f"{cells[0].baseline_name} {_shown_baseline(metric, cells)}"]
        if len(runs) == 1:
            randoms = [cell.random_encoder for cell in cells if cell.random_encoder is not None]
            compared += [f"random encoder {format_value(metric, random)}" for random in randoms]
            value = f'<div class="value">{escaped(format_value(metric, cells[0].mean))}</div>'
        else:
            value = "".join(
                f'<div class="run"><span class="swatch" style="background: {series_colour(index)}"></span>'
                f'<span class="name" title="{escaped(f"{runs[index].name}, part {row.part}")}">'
                f"{escaped(runs[index].name)}</span>{BEST if index == row.best and len(parts) == 1 else ''}"
                f"<strong>{escaped(format_value(metric, cell.mean))}</strong></div>"
                for index, (row, cell) in shown.items()
            )
        cards.append(
            f'<div class="card"><div class="label">{escaped(in_words(task))}</div>'
            f'<div class="muted">{_breakable(metric)}, part {escaped(" or ".join(parts))}</div>{value}'
            f'<div class="muted">{escaped(" · ".join(compared))}</div></div>'
        )
    return page_section("headline", "In short", f'<div class="cards">{"".join(cards)}</div>' if cards else "")


def results_section(runs: Sequence[ComparedRun], rows: Sequence[Row]) -> str:
    """All numbers, at most `RUNS_IN_A_TABLE` runs beside each other, and what one must know to read them."""
    if not rows:
        return ""
    reasons = list(dict.fromkeys(row.why_not_ranked for row in rows if row.why_not_ranked))
    tables = [
        _table(runs, rows, range(start, min(start + RUNS_IN_A_TABLE, len(runs))), reasons)
        for start in range(0, len(runs), RUNS_IN_A_TABLE)
    ]
    why = "".join(f'<li id="reason-{number}">{escaped(reason)}</li>' for number, reason in enumerate(reasons, 1))
    records = [record for run in runs for folder in run.folders for record in folder.records]
    noted: dict[str, list[str]] = {}
    for run in runs:
        for note in dict.fromkeys(note for folder in run.folders for note in folder.notes):
            noted.setdefault(note, []).append(run.name)
    notes = [note if len(names) == len(runs) else f"{', '.join(names)}: {note}" for note, names in noted.items()]
    known = {metric: meaning_of(metric) for metric in _distinct(row.metric for row in rows)}
    metrics = [f"{metric}: {meaning}" for metric, meaning in known.items() if meaning not in ("", metric)]
    return page_section(
        "results",
        "Results",
        _exports(runs, rows),
        *tables,
        _class_tables(runs),
        f'<h3>Not ranked</h3><ol class="notes">{why}</ol>' if reasons else "",
        "<h3>How to read this</h3>",
        listed([*describe_origins(records), *_signs(runs, rows), *describe_columns(records), *metrics, *notes]),
    )


def text_table(runs: Sequence[ComparedRun], rows: Sequence[Row], table_format: TableFormat) -> str:
    """The rows as a table for a paper or an issue: mean ± standard error, baselines, the best in bold if it is ranked.

    LaTeX needs the package booktabs.
    """
    latex = table_format == "latex"
    shown_text, shown_number, bold = (
        (_latex_text, _latex_number, r"\textbf{%s}") if latex else (markdown_text, str, "**%s**")
    )
    lines: list[list[str]] = []
    for row in rows:
        task = row.task if row.setting is None else f"{row.task} ({', '.join(row.setting)})"
        baseline = _shown_baseline(row.metric, [cell for cell in row.cells if cell is not None])
        numbers = []
        for index, cell in enumerate(row.cells):
            number = "-" if cell is None else format_value(row.metric, cell.mean)
            if cell is not None and cell.standard_error is not None:
                number += f" ± {format_value(row.metric, cell.standard_error)}"
            numbers.append((bold if index == row.best else "%s") % shown_number(number))
        lines.append([*map(shown_text, (task, row.metric, row.part)), shown_number(baseline), *numbers])
    columns = [shown_text(name) for name in ("task", "metric", "part", "baseline", *(run.name for run in runs))]
    if not latex:
        return markdown_table(columns, lines, text_columns=3)
    body, previous = "", ""
    for task, *cells in lines:
        # Each task is named once, with a little room above it.
        space = "\\addlinespace\n" if previous and task != previous else ""
        body += f"{space}{' & '.join(['' if task == previous else task, *cells])} \\\\\n"
        previous = task
    return (
        f"\\begin{{tabular}}{{lll{'r' * (1 + len(runs))}}}\n\\toprule\n{' & '.join(columns)} \\\\\n\\midrule\n{body}"
        "\\bottomrule\n\\end{tabular}\n"
    )


def in_words(task: str) -> str:
    """Such as "Relative rotation"."""
    return task.replace("_", " ").capitalize()


def _exports(runs: Sequence[ComparedRun], rows: Sequence[Row]) -> str:
    """Links and texts to take the numbers along, which work without a script."""
    content = [
        {"name": run.name, "records": [asdict(record) for folder in run.folders for record in folder.records]}
        for run in runs
    ]
    encoded = base64.b64encode(json.dumps({"runs": content}, separators=(",", ":")).encode()).decode()
    formats: dict[str, TableFormat] = {"LaTeX": "latex", "Markdown": "markdown"}
    texts = "".join(
        f'<details class="export"><summary>{name}</summary>'
        f'<pre data-format="{name}">{escaped(text_table(runs, rows, table_format))}</pre></details>'
        for name, table_format in formats.items()
    )
    # A link to data, and not a blob that a script makes: it works without one.
    link = f'<a download="records.json" href="data:application/json;base64,{encoded}">all records as JSON</a>'
    return f'<div class="exports">{texts}{link}</div>'


def _table(runs: Sequence[ComparedRun], rows: Sequence[Row], columns: range, reasons: Sequence[str]) -> str:
    head = '<th scope="col">metric</th><th scope="col">part</th><th scope="col" class="number">baseline</th>'
    head += "".join(
        f'<th scope="col" class="number run">{escaped(runs[index].name if len(runs) > 1 else "value")}</th>'
        for index in columns
    )
    # By heading, since the rows of a task may be of several protocols or splits in turn.
    bodies: dict[str, list[str]] = {}
    last_metric: dict[str, str] = {}
    for row in rows:
        present = [cell for cell in row.cells if cell is not None]
        if all(row.cells[index] is None for index in columns):
            continue
        heading = f'<th colspan="{3 + len(columns)}" scope="colgroup"><div>{_heading(row.task, present)}</div></th>'
        again = ' class="again"' if last_metric.get(heading) == row.metric else ""
        last_metric[heading] = row.metric
        mark = ""
        if row.why_not_ranked:
            number = reasons.index(row.why_not_ranked) + 1
            mark = f' <a href="#reason-{number}" title="{escaped(row.why_not_ranked)}">[{number}]</a>'
        note = escaped(meaning_of(row.metric))
        named = escaped(", ".join(_distinct(cell.baseline_name for cell in present)))
        bodies.setdefault(heading, [heading]).append(
            f'<td{again} title="{note}"><code>{_breakable(row.metric)}</code></td><td>{escaped(row.part)}{mark}</td>'
            f'<td class="number" title="{named}" data-value="{present[0].baseline}">'
            f"{escaped(_shown_baseline(row.metric, present))}</td>"
            + "".join(_shown_cell(row, index) for index in columns)
        )
    css_class = "comparison few" if len(columns) <= FEW_RUNS else "comparison"
    return data_table(css_class, head, list(bodies.values()))


def _heading(task: str, cells: Sequence[Cell]) -> str:
    """Task, what is the same for all of its numbers, and what it asks."""
    facts = []
    for name in ("protocol", "split", "n"):
        values = frozenset().union(*(cell.conditions[name] for cell in cells))
        facts += [f"{'n = ' if name == 'n' else ''}{value}" for value in values if len(values) == 1]
    meaning = meaning_of_task(task)
    about = f'<span class="muted about">{escaped(meaning)}</span>' if meaning else ""
    return f'{escaped(task)} <span class="muted">{escaped(" · ".join(facts))}</span>{about}'


def _shown_cell(row: Row, index: int) -> str:
    cell = row.cells[index]
    if cell is None:
        return '<td class="number muted">-</td>'
    value = escaped(format_value(row.metric, cell.mean))
    mark, title = "", ""
    if index == row.best:
        value, mark, title = f"<strong>{value}</strong>", BEST, "best"
    elif index in row.near:
        by_objects = row.differences[index] is not None
        mark, title = NEAR, "may be as good as the best" if by_objects else "within two standard errors of the best"
    if mark:
        mark = f'<span class="mark" title="{title}" role="img" aria-label="{title}">{mark}</span>'
    if cell.standard_error is not None:
        error = escaped(format_value(row.metric, cell.standard_error))
        value += f' <small title="standard error over {escaped(cell.over)}">± {error}</small>'
    below = _shown_interval(row.metric, *cell.interval)
    difference = row.differences[index]
    if difference is not None:
        ends = (format_value(row.metric, each) for each in (difference.low, difference.high))
        apart = f"{format_value(row.metric, difference.value)} [{', '.join(ends)}]"
        title = "difference from the best, and its 95 % interval over resampled objects"
        below += f'<small title="{title}">Δ {escaped(apart)}</small>'
    if cell.random_encoder is not None:
        random = escaped(format_value(row.metric, cell.random_encoder))
        below += f'<small title="random encoder"><span class="word">random </span>{random}</small>'
    return f'<td class="number" data-value="{cell.mean}">{mark}{value}{_below(below)}</td>'


def _shown_baseline(metric: str, cells: Sequence[Cell]) -> str:
    """One number if the runs agree on it to the digits that are shown, otherwise their range."""
    shown = _distinct(format_value(metric, value) for value in sorted(cell.baseline for cell in cells))
    return shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}"


def _shown_interval(metric: str, low: float | None, high: float | None) -> str:
    """An interval under its value; nothing where there is none."""
    if low is None or high is None:
        return ""
    shown = f"[{format_value(metric, low)}, {format_value(metric, high)}]"
    return f'<small title="95 % interval over resampled objects">{escaped(shown)}</small>'


def _below(smalls: str) -> str:
    return f'<div class="below">{smalls}</div>' if smalls else ""


def _class_tables(runs: Sequence[ComparedRun]) -> str:
    """A table for each question that was judged class by class: a row for each class, the mean over seeds."""
    # By question, run, part, class, and folder and seed, of which the newest record counts.
    found: dict[tuple[str, str], dict[str, dict[str, ByClass]]] = {}
    for run in runs:
        for place, folder in enumerate(run.folders):
            for record in folder.records:
                if of_class := class_of_metric(record.metric):
                    metric, class_name = of_class
                    by_run = found.setdefault((record.task, metric), {other.name: {} for other in runs})
                    by_class = by_run[run.name].setdefault(record.part, {})
                    by_class.setdefault(class_name, {})[place, record.seed] = record
    tables = []
    for (task, metric), by_run in found.items():
        parts = [part for by_part in by_run.values() for part in by_part]
        for choice in choose_parts(by_run, parts_meant_for(task, parts)):
            shown = {label: by_class for label, by_class in choice.shown.items() if by_class is not None}
            rows, baseline_name = [], ""
            for class_name in _distinct(name for by_class in shown.values() for name in by_class):
                answers = [list(by_class.get(class_name, {}).values()) for by_class in shown.values()]
                first = next(records[0] for records in answers if records)
                baseline_name = first.baseline_name
                rows.append(
                    f"<td>{escaped(class_name)}</td>{''.join(_class_cell(metric, records) for records in answers)}"
                    f'<td class="number" data-value="{first.baseline}">'
                    f"{escaped(format_value(metric, first.baseline))}</td>"
                )
            head = '<th scope="col">class</th>'
            head += "".join(f'<th scope="col" class="number">{escaped(name)}</th>' for name in (*shown, baseline_name))
            which = f", {choice.title}" if len(runs) > 1 else ""
            heading = f"{task}: {IN_WORDS.get(metric, metric)} by class{which}"
            tables.append(f"<div><h3>{escaped(heading)}</h3>{data_table('classes', head, [rows])}</div>")
    if not tables:
        return ""
    return f'<details id="classes"><summary>Class by class ({len(tables)})</summary>{figure_grid(tables)}</details>'


def _class_cell(metric: str, records: Sequence[ProbeRecord]) -> str:
    if not records:
        return '<td class="number">-</td>'
    mean = sum(record.value for record in records) / len(records)
    ends = (records[0].interval_low, records[0].interval_high) if len(records) == 1 else (None, None)
    shown = f"{escaped(format_value(metric, mean))}{_below(_shown_interval(metric, *ends))}"
    return f'<td class="number" data-value="{mean}">{shown}</td>'


def _signs(runs: Sequence[ComparedRun], rows: Sequence[Row]) -> list[str]:
    """What ±, small numbers and stars mean, as far as the rows have them."""
    over: dict[str, list[str]] = {}
    for index, run in enumerate(runs):
        for name in _distinct(cell.over for row in rows if (cell := row.cells[index]) is not None):
            over.setdefault(name, []).append(run.name)
    alone = over.pop("", [])
    lines = []
    for name, names in sorted(over.items()):
        of_runs = f": {', '.join(names)}" if len(runs) > 1 else ""
        lines.append(f"± standard error over {'evaluated objects' if name == 'objects' else name}{of_runs}")
    if any(cell is not None and cell.random_encoder is not None for row in rows for cell in row.cells):
        lines.append("the small number under a value: the random encoder's")
    if alone and len(runs) > 1:
        lines.append(f"one number without a standard error, in some rows or all: {', '.join(alone)}")
    if any(row.best is not None for row in rows):
        lines.append(
            f"{BEST} best of the row; {NEAR} within two standard errors of the difference from it, or with an interval "
            "of that difference that contains 0; without either a small lead may be chance"
        )
    if any(difference is not None for row in rows for difference in row.differences):
        lines.append(
            "Δ: difference from the best, in brackets its 95 % interval over objects that are resampled for both runs "
            "alike; of the first seed of the heads"
        )
    return lines


def _breakable(name: str) -> str:
    """A name that a narrow column may break after each underscore."""
    return escaped(name).replace("_", "_<wbr>")


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _latex_number(number: str) -> str:
    """A shown number, or a range of them, in math mode, where a minus is one."""
    in_math = number.replace("°", r"^{\circ}").replace("±", r"\pm").replace(" to ", "$ to $")
    return number if number == "-" else f"${in_math}$"
