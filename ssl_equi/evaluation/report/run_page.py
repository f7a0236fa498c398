"""The sections of a page about one run: its numbers with their baselines, its errors, curves and pictures."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ssl_equi.evaluation.metrics import METRICS, class_of_metric, format_value, meaning_of
from ssl_equi.evaluation.report.compared_runs import EvaluatedFolder, class_names_of
from ssl_equi.evaluation.report.figures import (
    MAX_BARS,
    angle_histogram,
    curve_figure,
    image_data_uri,
    recall_bars,
    shrink,
    tile,
)
from ssl_equi.evaluation.report.page import Sections, captioned_figure, details_table, escaped, picture_strip
from ssl_equi.evaluation.results import ProbeRecord
from ssl_equi.evaluation.tables import describe_columns, describe_origins, in_short_tables
from ssl_equi.evaluation.task import TASKS
from ssl_equi.evaluation.tasks.latents import ABSOLUTE, RELATIVE

LARGEST_DRAWN = 1e100  # axes of matplotlib overflow far beyond
# Arrays that are there if, and only if, the views' poses are known, and objects have several views.
HAS_POSES, HAS_SEVERAL_VIEWS = "map_angle_deg", "views_per_object"
# Task, metric, the parts to look at first, and the card's label.
HEADLINES = (
    ("classification", "top1", ("inv", "all"), "class (top1)"),
    ("relative_rotation", "r2_uniform", ("equi", "all"), "rotation (r2_uniform)"),
    ("relative_rotation", "angle_deg_median", ("equi", "all"), "rotation error (median)"),
    ("translation_base", "r2_uniform", ("equi", "all"), "translation, base frame (r2_uniform)"),
    ("translation_object", "r2_uniform", ("equi", "all"), "translation, object frame (r2_uniform)"),
    ("colour", "r2_uniform", ("equi", "all"), "colour (r2_uniform)"),
)
TASK_NOTES = {
    "translation_object": "change of the translation in the object's own frame, t₂ - t₁; needs both rotations too, "
    "since a view shows where the object stands, R t",
    "translation_base": "how the object's centre moves in the world, R₂t₂ - R₁t₁",
    "relative_rotation_distribution": "the rotation between two views as a distribution over all rotations",
    "absolute_rotation_distribution": "the rotation of a single view as a distribution over all rotations",
    "capsule_rotation": "the rotation between two views, read from all capsules' poses in closed form, without a head",
    "capsule_equivariance": "whether the poses of view 1, multiplied by the true action, are those of view 2",
}
MAX_LATENT_HEADLINES = 4


def explanations(names: Sequence[str]) -> list[str]:
    """A sentence for each task and metric that takes one."""
    known = TASK_NOTES | {name: metric.meaning for name, metric in METRICS.items()}
    return [f"{name}: {known[name] if name in known else _about_latent(name)}" for name in names
            if name in known or is_of_latent(name)]  # fmt: skip


def is_of_latent(task: str) -> bool:
    """Whether a task is about a latent that only its data have; see `ssl_equi.evaluation.tasks.latents`."""
    return task.startswith((RELATIVE, ABSOLUTE)) and task not in TASKS


def _about_latent(task: str) -> str:
    if task.startswith(RELATIVE):
        return (
            f"how the latent {task.removeprefix(RELATIVE)} changes between two views; R² is that of the change as its "
            "kind writes it, such as sine and cosine of an angle's, or the share of a number's range"
        )
    return f"the latent {task.removeprefix(ABSOLUTE)} in a single view; R² is that of the value as its kind writes it"


def run_sections(folder: EvaluatedFolder, title: str, between: Sections) -> Sections:
    """The sections of a page about one run.

    Args:
        between: sections that stand after those about errors.
    """
    records = newest_records(folder.records)
    arrays = folder.arrays
    return {
        "header": lambda: page_header(title, records, str(folder.run.get("command", ""))),
        "headline": lambda: _headlines(records),
        "results": lambda: result_table(records, folder.notes),
        "errors": lambda: _angles_and_classes(arrays),
        **between,
        "training": lambda: _training(folder.metrics_path),
        "views": lambda: views_section(arrays),
        "neighbours": lambda: neighbours_section({"": arrays}),
        **run_details(folder),
    }


def run_details(folder: EvaluatedFolder) -> Sections:
    """Folded tables of how the numbers were made."""
    tables = {
        "Probe protocol": folder.run.get("protocol"),
        "Options": folder.run.get("options"),
        "Configuration": folder.config,
        "Versions": folder.run.get("versions", folder.versions),
    }
    return {
        heading: partial(details_table, heading, content)
        for heading, content in tables.items()
        if isinstance(content, dict) and content
    }


def newest_records(records: Sequence[ProbeRecord]) -> list[ProbeRecord]:
    """The last record of each question, protocol, split and seed; those of a task stand together."""
    newest = {(r.task, r.part, r.metric, r.protocol, r.split, r.seed): r for r in records}
    tasks = list(dict.fromkeys(record.task for record in newest.values()))
    return sorted(newest.values(), key=lambda record: tasks.index(record.task))


def read_curves(metrics_path: Path, event: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Numbers of one kind of line of `metrics.jsonl`, `{name: (steps, values)}`; broken lines are passed over."""
    points: dict[str, list[tuple[float, float]]] = {}
    for line in metrics_path.read_bytes().split(b"\n"):
        try:
            numbers = json.loads(line.decode())
        except (ValueError, RecursionError):
            continue
        if not isinstance(numbers, dict) or numbers.get("event") != event or not _can_be_drawn(numbers.get("step")):
            continue
        for name, value in numbers.items():
            if name not in ("event", "step") and _can_be_drawn(value):
                points.setdefault(name, []).append((numbers["step"], value))
    return {name: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) for name, pairs in points.items()}


def _can_be_drawn(number: Any) -> bool:
    """Whether a value is a number that axes have room for."""
    return isinstance(number, int | float) and abs(number) < LARGEST_DRAWN  # NaN is not


def page_header(title: str, records: Sequence[ProbeRecord], command: str) -> str:
    """Title, origin of the numbers, and the command that made them."""
    origin = "; ".join(describe_origins(records)) if records else "no probes were run"
    return (
        f"<header><h1>{escaped(title)}</h1><p>{escaped(origin)}</p><pre><code>{escaped(command)}</code></pre></header>"
    )


def _headlines(records: Sequence[ProbeRecord]) -> str:
    by_name = {(record.task, record.metric, record.part): record for record in records}
    cards = []
    changes = [task for task in dict.fromkeys(r.task for r in records) if is_of_latent(task)]
    changes = [task for task in changes if task.startswith(RELATIVE)][:MAX_LATENT_HEADLINES]
    of_latents = [(task, "r2_uniform", ("equi", "all"), f"{task} (r2_uniform)") for task in changes]
    for task, metric, parts, label in (*HEADLINES, *of_latents):
        record = next((by_name[task, metric, part] for part in parts if (task, metric, part) in by_name), None)
        if record is None:
            continue
        comparison = f"{record.baseline_name} {format_value(metric, record.baseline)}"
        if record.random_encoder is not None:
            comparison += f" · random encoder {format_value(metric, record.random_encoder)}"
        cards.append(
            f'<div class="card"><div class="label">{escaped(label)}</div>'
            f'<div class="value">{escaped(format_value(metric, record.value))}</div>'
            f"<div>part <strong>{escaped(record.part)}</strong></div>"
            f'<div class="muted">{escaped(comparison)}</div></div>'
        )
    return f'<section id="headline" class="cards">{"".join(cards)}</section>' if cards else ""


def result_table(records: Sequence[ProbeRecord], missing: Sequence[str]) -> str:
    """The records as an HTML table, and what is missing from it."""
    if not records:
        return ""
    columns = ("part", "metric", "value", "baseline", "random")
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    rows = []
    previous_task = None
    for record in in_short_tables(records):
        if record.task != previous_task:
            heading = f"{escaped(record.task)} <span class=muted>(n = {record.n})</span>"
            rows.append(f'<tr class="task"><th colspan="{len(columns)}" scope="colgroup">{heading}</th></tr>')
        previous_task = record.task
        note = meaning_of(record.metric)
        rows.append(
            f"<tr><td>{escaped(record.part)}</td>"
            f'<td title="{escaped(note)}"><code>{escaped(record.metric)}</code></td>'
            f'<td class="number"><strong>{escaped(format_value(record.metric, record.value))}</strong>'
            f"{shown_interval(record.metric, record.interval_low, record.interval_high)}</td>"
            f'<td class="number" title="{escaped(record.baseline_name)}">'
            f"{escaped(format_value(record.metric, record.baseline))}</td>"
            f'<td class="number">{escaped(format_value(record.metric, record.random_encoder))}</td></tr>'
        )
    used = dict.fromkeys([record.task for record in records] + [record.metric for record in records])
    lines = [*describe_origins(records), *describe_columns(records), *explanations([*used]), *missing]
    listed = "".join(f"<li>{escaped(line)}</li>" for line in lines)
    return (
        '<section id="results"><h2>Results</h2><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{class_tables(records)}"
        f'<ul class="notes">{listed}</ul></section>'
    )


def class_tables(records: Sequence[ProbeRecord]) -> str:
    """A table for each task that was judged class by class: a row for each class, a column for each part."""
    by_class: dict[tuple[str, str], list[tuple[str, ProbeRecord]]] = {}
    for record in records:
        of_class = class_of_metric(record.metric)
        if of_class is not None:
            metric, class_name = of_class
            by_class.setdefault((record.task, metric), []).append((class_name, record))
    tables = []
    for (task, metric), found in by_class.items():
        cells = {(class_name, record.part): record for class_name, record in found}
        parts = list(dict.fromkeys(part for _, part in cells))
        rows = []
        for class_name in dict.fromkeys(class_name for class_name, _ in cells):
            of_parts = [cells.get((class_name, part)) for part in parts]
            baseline = next(record.baseline for record in of_parts if record is not None)
            row = "".join(f'<td class="number">{_class_cell(record)}</td>' for record in of_parts)
            rows.append(
                f"<tr><td>{escaped(class_name)}</td>{row}"
                f'<td class="number">{escaped(format_value(metric, baseline))}</td></tr>'
            )
        head = "".join(
            f'<th scope="col">{escaped(column)}</th>' for column in ("class", *parts, found[0][1].baseline_name)
        )
        what = {"angle_deg_median": "median angle", "distance_median": "median distance"}.get(metric, metric)
        tables.append(
            f'<h3>{escaped(task)}: {escaped(what)} by class</h3><div class="scroll"><table class="classes">'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        )
    return "".join(tables)


def _class_cell(record: ProbeRecord | None) -> str:
    if record is None:
        return "-"
    interval = shown_interval(record.metric, record.interval_low, record.interval_high)
    return f"{escaped(format_value(record.metric, record.value))}{interval}"


def shown_interval(metric: str, low: float | None, high: float | None) -> str:
    """An interval as HTML, under the value; nothing where there is none."""
    if low is None or high is None:
        return ""
    shown = f"[{format_value(metric, low)}, {format_value(metric, high)}]"
    return f'<small class="below" title="95 % interval over resampled objects">{escaped(shown)}</small>'


def _angles_and_classes(arrays: Mapping[str, np.ndarray]) -> str:
    drawn: list[str] = []
    judged = dict.fromkeys(key.split("/")[1] for key in arrays if key.startswith("angle_errors_deg/"))
    for task in (task for task in judged if task == "relative_rotation" or is_of_latent(task)):
        constants = _by_part(arrays, f"constant_angle_errors_deg/{task}/")
        svg = angle_histogram(
            f"angles-{len(drawn)}" if drawn else "angles",
            _by_part(arrays, f"angle_errors_deg/{task}/"),
            _by_part(arrays, f"random_angle_errors_deg/{task}/"),
            next(iter(constants.values()), None),
        )
        what = "Rotation error" if task == "relative_rotation" else f"Error of {task}"
        drawn.append(captioned_figure(svg, f"{what} over the evaluated samples, by part and for the baselines"))
    recalls = _by_part(arrays, "per_class_recall/classification/")
    if recalls:
        first = next(iter(recalls.values()))
        svg = recall_bars("recall", recalls, class_names_of(arrays, range(len(first))))
        num_classes = int(np.isfinite(first).sum())
        which = "each class" if num_classes <= MAX_BARS else f"{MAX_BARS} of {num_classes} classes, best to worst,"
        drawn.append(captioned_figure(svg, f"Recall of {which} on unseen objects, by part"))
    if not drawn:
        return ""
    return f'<section id="errors"><h2>Where it is right</h2><div class="figures">{"".join(drawn)}</div></section>'


def _training(metrics_path: Path | None) -> str:
    if metrics_path is None or not metrics_path.exists():
        return ""
    losses, probes = read_curves(metrics_path, "loss"), read_curves(metrics_path, "online_probe")
    main_figures, small_figures = [], []
    if "loss" in losses:
        svg = curve_figure("loss", {"loss": losses.pop("loss")}, y_label="total loss")
        main_figures.append(captioned_figure(svg, "Total loss over training steps"))
    for index, (name, curve) in enumerate(losses.items()):
        svg = curve_figure(f"term-{index}", {name: curve}, y_label=name, small=True)
        small_figures.append(captioned_figure(svg, f"{name} over training steps", "small"))
    for index, metric in enumerate(dict.fromkeys(name.rpartition("/")[2] for name in probes)):
        curves = {name.rpartition("/")[0] or name: c for name, c in probes.items() if name.rpartition("/")[2] == metric}
        svg = curve_figure(f"online-{index}", curves, y_label=metric)
        main_figures.append(captioned_figure(svg, f"Online probes on training batches, linear heads: {metric} by part"))
    if not main_figures and not small_figures:
        return ""
    return (
        f'<section id="training"><h2>Training</h2><div class="figures">{"".join(main_figures)}</div>'
        f'<div class="figures small">{"".join(small_figures)}</div></section>'
    )


def views_section(arrays: Mapping[str, np.ndarray], whose: str = "") -> str:
    """The views that were evaluated; nothing if they are not stored.

    Args:
        whose: name of the run, if there are several.
    """
    if "view_sheet" not in arrays:
        return ""
    sheet = arrays["view_sheet"]
    rows, columns = sheet.shape[:2]
    if HAS_POSES in arrays or HAS_SEVERAL_VIEWS in arrays:
        heading, description = "Views", f"{columns} views of each of {rows} unseen objects, one object a row"
    else:
        heading, description = "Images", f"{rows * columns} unseen images, as the encoder is given them"
    description = escaped(f"{description}{f' ({whose})' if whose else ''}")
    image = f'<img class="sheet" alt="{description}" src="{image_data_uri(tile(shrink(sheet)))}">'
    figure = f"<figure>{image}<figcaption>{description}</figcaption></figure>"
    return f'<section id="views"><h2>{heading}</h2>{figure}</section>'


def neighbours_section(arrays_by_run: Mapping[str, Mapping[str, np.ndarray]], most_strips: int | None = None) -> str:
    """Strips of queries and their nearest neighbours.

    Args:
        arrays_by_run: by the run's name, which is empty if there is one only.
        most_strips: so many of each run and part; all when None.
    """
    blocks, has_poses, has_views = [], False, False
    for run, arrays in arrays_by_run.items():
        for part, images in _by_part(arrays, "neighbour_images/").items():
            has_poses = has_poses or HAS_POSES in arrays
            has_views = has_views or has_poses or HAS_SEVERAL_VIEWS in arrays
            captions = arrays[f"neighbour_captions/{part}"]
            rows = "".join(
                picture_strip(pictures, [str(text) for text in texts], f"nearest by {part}, {texts[0]}")
                for pictures, texts in list(zip(images, captions, strict=True))[:most_strips]
            )
            named = f"{escaped(run)}, " if run else ""
            blocks.append(f"<div><h3>{named}by part <code>{escaped(part)}</code></h3>{rows}</div>")
    if not blocks:
        return ""
    what = "views (cosine) of other objects, at most one an object" if has_views else "other images (cosine)"
    told = "degrees: angle between the two poses" if has_poses else "the name is its class"
    return (
        '<section id="neighbours"><h2>Nearest neighbours</h2><p class="muted">Framed: the query. Then the nearest '
        f'{what}. ✓: same class; {told}.</p><div class="figures">{"".join(blocks)}</div></section>'
    )


def _by_part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
