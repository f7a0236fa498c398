"""The comparison of runs as HTML: who is compared, the table of numbers, why some are not ranked, what differs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssl_equi.evaluation.metrics import format_value, meaning_of
from ssl_equi.evaluation.report.compared_runs import ComparedRun
from ssl_equi.evaluation.report.comparison import Cell, Row
from ssl_equi.evaluation.report.figures import curve_figure
from ssl_equi.evaluation.report.overlays import overview_figure, shortened, styles_in_words
from ssl_equi.evaluation.report.page import captioned_figure, escaped, shown_setting
from ssl_equi.evaluation.report.part_choices import EQUIVARIANT_FIRST, INVARIANT_FIRST, absent_in_words, choose_parts
from ssl_equi.evaluation.report.run_page import explanations, is_of_latent, read_curves, shown_interval
from ssl_equi.evaluation.tables import describe_columns
from ssl_equi.evaluation.tasks.latents import RELATIVE

Curve = tuple[np.ndarray, np.ndarray]  # steps and values

RUNS_IN_A_TABLE = 6
BEST, NEAR = "★", "☆"
SEED_SETTINGS = ("seed", "out", "resume")

# Task, metric, the parts to look at first, and a word.
Asked = tuple[str, str, tuple[str, ...], str]
WHAT_STAYS: Asked = ("classification", "top1", ("inv", "agg", "all"), "class")


def comparison_header(title: str, runs: Sequence[ComparedRun]) -> str:
    """Title, and where the numbers come from."""
    records = [record for run in runs for folder in run.folders for record in folder.records]
    splits = ", ".join(dict.fromkeys(record.split for record in records))
    protocols = ", ".join(dict.fromkeys(record.protocol for record in records))
    origin = f"splits: {splits}; protocols: {protocols}" if records else "no probes were run"
    return f"<header><h1>{escaped(title)}</h1><p>{escaped(origin)}</p></header>"


def runs_section(runs: Sequence[ComparedRun]) -> str:
    """Who is compared: a name and colour for each column, where it lies, and what it was trained and judged on."""
    colours = styles_in_words([run.name for run in runs])
    items = []
    for run in runs:
        first = run.folders[0]
        facts = [
            fact
            for fact in (
                f"{first.run['name']} recipe" if "steps" in first.run and "name" in first.run else "",
                str(first.run.get("encoder", first.config.get("encoder", ""))),
                f"{first.run['steps']} steps" if "steps" in first.run else "",
                f"data {first.run['data']}" if isinstance(first.run.get("data"), str) else "",
                f"{len(run.folders)} training seeds" if len(run.folders) > 1 else "",
            )
            if fact
        ]
        command = first.run.get("command")
        shown = f"<pre><code>{escaped(command)}</code></pre>" if command else ""
        places = ", ".join(str(folder.path) for folder in run.folders)
        items.append(
            f'<li><span class="swatch" style="background: {colours[run.name]}"></span><strong>{escaped(run.name)}'
            f"</strong> <span class=muted>{escaped(' · '.join(facts))}</span>"
            f'<details><summary>where from</summary><p class="wrap">{escaped(places)}</p>{shown}</details></li>'
        )
    return f'<section id="runs"><h2>Runs</h2><ul class="runs">{"".join(items)}</ul></section>'


def overview_section(runs: Sequence[ComparedRun], rows: Sequence[Row]) -> str:
    """What stays against what changes, if two runs or more have both numbers and these can be compared."""
    chosen = []
    overview = (WHAT_STAYS, _what_changes(rows))
    for task, metric, parts, _ in overview:
        found: dict[str, tuple[str, Row, Cell]] = {}
        for part in parts:
            for row in rows:
                if (row.task, row.metric, row.part) == (task, metric, part) and not _differs(row):
                    for run, cell in zip(runs, row.cells, strict=True):
                        if cell is not None:
                            found.setdefault(run.name, (part, row, cell))
        chosen.append(found)
    both = [run.name for run in runs if all(run.name in found for found in chosen)]
    conditions = [[cell.conditions for _, _, cell in (found[name] for name in both)] for found in chosen]
    if len(both) < 2 or any(others != same[0] for same in conditions for others in same):
        return ""
    points = {name: (chosen[0][name][2].mean, chosen[1][name][2].mean) for name in both}
    labels = tuple(f"{what} ({metric})" for _, metric, _, what in overview)
    baselines = tuple(found[both[0]][2].baseline for found in chosen)
    svg = overview_figure("overview", points, labels, baselines)  # type: ignore[arg-type]
    parts_used = "; ".join(
        f"{name}: class from {chosen[0][name][0]}, {overview[1][3]} from {chosen[1][name][0]}" for name in both
    )
    caption = (
        "What stays and what changes: up and to the right is better. Dotted: baselines without an image. Parts: "
        f"{parts_used}"
    )
    figure = f'<div class="single">{captioned_figure(svg, caption)}</div>'
    return f'<section id="overview"><h2>At a glance</h2>{figure}</section>'


def _what_changes(rows: Sequence[Row]) -> Asked:
    """The rotation between two views, or the first latent of the data's own whose change was asked for."""
    own = [row.task for row in rows if is_of_latent(row.task) and row.task.startswith(RELATIVE)]
    asked = {row.task for row in rows}
    task = own[0] if own and "relative_rotation" not in asked else "relative_rotation"
    return task, "r2_uniform", ("equi", "all"), task.removeprefix(RELATIVE)


def comparison_section(runs: Sequence[ComparedRun], rows: Sequence[Row], notes: Sequence[str]) -> str:
    """All numbers, at most `RUNS_IN_A_TABLE` runs beside each other, and what one must know to read them.

    Args:
        notes: what was skipped and why.
    """
    if not rows:
        return ""
    reasons = list(dict.fromkeys(row.why_not_ranked for row in rows if row.why_not_ranked))
    tables = [
        _table(runs, rows, range(start, min(start + RUNS_IN_A_TABLE, len(runs))), reasons)
        for start in range(0, len(runs), RUNS_IN_A_TABLE)
    ]
    listed = "".join(f'<li id="reason-{number}">{escaped(reason)}</li>' for number, reason in enumerate(reasons, 1))
    why = f'<h3>Not ranked</h3><ol class="notes">{listed}</ol>' if reasons else ""
    records = [record for run in runs for folder in run.folders for record in folder.records]
    used = dict.fromkeys([row.task for row in rows] + [row.metric for row in rows])
    lines = [*_how_to_read(runs, rows), *describe_columns(records), *explanations([*used]), *notes]
    read = "".join(f"<li>{escaped(line)}</li>" for line in lines)
    return (
        f'<section id="results"><h2>Results</h2>{"".join(tables)}{why}'
        f'<h3>How to read this</h3><ul class="notes">{read}</ul></section>'
    )


def training_overlays(runs: Sequence[ComparedRun]) -> str:
    """Online probes of all runs over each other; losses only of runs of the same recipe, which mean the same."""
    figures: list[str] = []
    small: list[str] = []
    probes = {run.name: _curves(run, "online_probe") for run in runs}
    for metric in dict.fromkeys(name.rpartition("/")[2] for curves in probes.values() for name in curves):
        by_part = {
            run: {name.rpartition("/")[0]: curve for name, curve in curves.items() if name.rpartition("/")[2] == metric}
            for run, curves in probes.items()
        }
        for choice in choose_parts(by_part, INVARIANT_FIRST if metric.endswith("top1") else EQUIVARIANT_FIRST):
            svg = curve_figure(f"online-{len(figures)}", _drawable(choice.shown), y_label=metric)
            caption = f"Online probe on training batches: {metric}, {choice.title}{absent_in_words(choice)}"
            figures.append(captioned_figure(svg, caption))
    for method in dict.fromkeys(run.method for run in runs):
        losses = {run.name: _curves(run, "loss") if run.method == method else {} for run in runs}
        for term in dict.fromkeys(name for curves in losses.values() for name in curves):
            shown = _drawable({run: curves.get(term) for run, curves in losses.items()})
            svg = curve_figure(f"term-{len(small)}", shown, y_label=shortened(f"{method}: {term}"), small=True)
            small.append(captioned_figure(svg, f"{method}: {term} over training steps", "small"))
    if not figures and not small:
        return ""
    return (
        f'<section id="training"><h2>Training</h2><div class="figures">{"".join(figures)}</div>'
        f'<div class="figures small">{"".join(small)}</div></section>'
    )


def differences_section(runs: Sequence[ComparedRun]) -> str:
    """Options and versions in which the runs differ; seeds and folders are left out."""
    settings = [_flat(run.folders[0].config) | _flat(run.folders[0].versions) for run in runs]
    known = [index for index, found in enumerate(settings) if found]
    names = dict.fromkeys(name for index in known for name in settings[index])
    differing = [
        name
        for name in names
        if name not in (*SEED_SETTINGS, "command")
        and len({shown_setting(settings[index].get(name, "-")) for index in known}) > 1
    ]
    if len(known) < 2 or not differing:
        return ""
    head = "".join(f'<th scope="col">{escaped(runs[index].name)}</th>' for index in known)
    rows = "".join(
        f'<tr><th scope="row">{escaped(name)}</th>'
        + "".join(f"<td><code>{escaped(shown_setting(settings[index].get(name, '-')))}</code></td>" for index in known)
        + "</tr>"
        for name in differing
    )
    return (
        f'<details id="differences"><summary>Options in which the runs differ ({len(differing)})</summary>'
        f'<div class="scroll"><table class="plain"><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody>'
        "</table></div></details>"
    )


def _table(runs: Sequence[ComparedRun], rows: Sequence[Row], columns: range, reasons: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in ("metric", "part", "baseline"))
    head += "".join(f'<th scope="col" class="run">{escaped(runs[index].name)}</th>' for index in columns)
    body, shown_task, shown_metric = [], "", ""
    for row in rows:
        if all(row.cells[index] is None for index in columns):
            continue
        heading = _heading(row)
        if heading != shown_task:
            body.append(f'<tr class="task"><th colspan="{3 + len(columns)}" scope="colgroup">{heading}</th></tr>')
            shown_metric = ""
        note = escaped(meaning_of(row.metric))
        metric = (
            f'<td title="{note}"><code>{_breakable(row.metric)}</code></td>'
            if row.metric != shown_metric
            else "<td></td>"
        )
        shown_task, shown_metric = heading, row.metric
        mark = ""
        if row.why_not_ranked:
            number = reasons.index(row.why_not_ranked) + 1
            mark = f' <a href="#reason-{number}" title="{escaped(row.why_not_ranked)}">[{number}]</a>'
        cells = "".join(_shown_cell(row, index) for index in columns)
        body.append(f"<tr>{metric}<td>{escaped(row.part)}{mark}</td>{_shown_baseline(row)}{cells}</tr>")
    return (
        f'<div class="scroll"><table class="comparison"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _breakable(name: str) -> str:
    """A name that a narrow column may break after each underscore."""
    return escaped(name).replace("_", "_<wbr>")


def _heading(row: Row) -> str:
    """Task, and what is the same for all of its numbers."""
    present = [cell for cell in row.cells if cell is not None]
    shared = {
        name: frozenset().union(*(cell.conditions[name] for cell in present)) for name in ("protocol", "split", "n")
    }
    facts = [
        f"{'n = ' if name == 'n' else ''}{next(iter(values))}" for name, values in shared.items() if len(values) == 1
    ]
    return f"{escaped(row.task)} <span class=muted>{escaped(' · '.join(facts))}</span>"


def _shown_cell(row: Row, index: int) -> str:
    cell = row.cells[index]
    if cell is None:
        return '<td class="number muted">-</td>'
    value = escaped(format_value(row.metric, cell.mean))
    mark = ""
    if index == row.best:
        value, mark = (
            f"<strong>{value}</strong>",
            f'<span class="mark" title="best" role="img" aria-label="best">{BEST}</span>',
        )
    elif index in row.near:
        by_objects = row.differences[index] is not None
        title = "may be as good as the best" if by_objects else "within two standard errors of the best"
        mark = f'<span class="mark" title="{title}" role="img" aria-label="{title}">{NEAR}</span>'
    if cell.standard_error is not None:
        error = escaped(format_value(row.metric, cell.standard_error))
        value += f' <small title="standard error over {escaped(cell.over)}">± {error}</small>'
    value += shown_interval(row.metric, *cell.interval)
    difference = row.differences[index]
    if difference is not None:
        apart, low, high = (
            format_value(row.metric, each) for each in (difference.value, difference.low, difference.high)
        )
        title = "difference from the best, and its 95 % interval over resampled objects"
        value += f'<small class="below" title="{title}">Δ {escaped(f"{apart} [{low}, {high}]")}</small>'
    if cell.random_encoder is not None:
        random = escaped(format_value(row.metric, cell.random_encoder))
        value += f'<small class="below" title="random encoder"><span class="word">random </span>{random}</small>'
    return f'<td class="number">{mark}{value}</td>'


def _shown_baseline(row: Row) -> str:
    """One number if the runs agree on it to the digits that are shown, otherwise their range."""
    present = [cell for cell in row.cells if cell is not None]
    shown = list(
        dict.fromkeys(format_value(row.metric, cell.baseline) for cell in sorted(present, key=lambda c: c.baseline))
    )
    text = shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}"
    names = ", ".join(dict.fromkeys(cell.baseline_name for cell in present))
    return f'<td class="number" title="{escaped(names)}">{escaped(text)}</td>'


def _how_to_read(runs: Sequence[ComparedRun], rows: Sequence[Row]) -> list[str]:
    over: dict[str, list[str]] = {}
    for run, cells in zip(runs, zip(*(row.cells for row in rows), strict=True), strict=True):
        for name in dict.fromkeys(cell.over for cell in cells if cell is not None):
            over.setdefault(name, []).append(run.name)
    alone = over.pop("", [])
    words = {"objects": "evaluated objects"}
    lines = [
        f"± standard error over {words.get(name, name)}: {', '.join(names)}" for name, names in sorted(over.items())
    ]
    if any(cell is not None and cell.random_encoder is not None for row in rows for cell in row.cells):
        lines.append("the small number under a value: the random encoder's")
    if alone:
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


def _differs(row: Row) -> bool:
    return "not meant to" not in row.why_not_ranked and bool(row.why_not_ranked)


def _curves(run: ComparedRun, event: str) -> Mapping[str, Curve]:
    path = run.folders[0].metrics_path
    return {} if path is None else read_curves(path, event)


def _drawable(curves: Mapping[str, Curve | None]) -> dict[str, Curve]:
    """Without a curve, one without points: it takes a colour, so that those of the others stay what they are."""
    return {run: (np.zeros(0), np.zeros(0)) if curve is None else curve for run, curve in curves.items()}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": value}
    return flat
