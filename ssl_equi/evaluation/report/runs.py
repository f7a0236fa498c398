"""Who is on the page and how it came about: names and colours, training curves, options and versions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_equi.evaluation.predictors.action_gain import METRIC as GAIN
from ssl_equi.evaluation.predictors.action_gain import gain_in_words
from ssl_equi.evaluation.report.compared_runs import ComparedRun
from ssl_equi.evaluation.report.figures import Curve, curve_figure, series_colour, to_svg
from ssl_equi.evaluation.report.page import (
    captioned_figure,
    escaped,
    figure_grid,
    page_section,
    settings_table,
    shown_setting,
)
from ssl_equi.evaluation.report.part_choices import EQUIVARIANT_FIRST, INVARIANT_FIRST, choose_parts

LARGEST_DRAWN = 1e100  # axes of matplotlib overflow far beyond
SEED_SETTINGS = ("seed", "out", "resume", "command")  # in which all runs differ


def page_header(title: str, runs: Sequence[ComparedRun]) -> str:
    """Title, and where the numbers come from."""
    records = [record for run in runs for folder in run.folders for record in folder.records]
    splits = ", ".join(dict.fromkeys(record.split for record in records))
    protocols = ", ".join(dict.fromkeys(record.protocol for record in records))
    origin = f"split {splits}; protocol {protocols}" if records else "no probes were run"
    return f"<header><h1>{escaped(title)}</h1><p>{escaped(origin)}</p></header>"


def runs_section(runs: Sequence[ComparedRun]) -> str:
    """A name and colour for each run, what it was trained and judged on, where it lies, and the command."""
    items = []
    for index, run in enumerate(runs):
        first = run.folders[0]
        facts = (
            f"{first.run['name']} recipe" if "steps" in first.run and "name" in first.run else "",
            str(first.run.get("encoder", first.config.get("encoder", ""))),
            f"{first.run['steps']} steps" if "steps" in first.run else "",
            f"data {first.run['data']}" if isinstance(first.run.get("data"), str) else "",
            f"{len(run.folders)} training seeds" if len(run.folders) > 1 else "",
        )
        command = first.run.get("command")
        shown = f"<pre><code>{escaped(command)}</code></pre>" if command else ""
        places = ", ".join(str(folder.path) for folder in run.folders)
        # In figures of one run the colours are those of its parts.
        swatch = f'<span class="swatch" style="background: {series_colour(index)}"></span>' if len(runs) > 1 else ""
        items.append(
            f"<li>{swatch}<strong>{escaped(run.name)}</strong> "
            f'<span class="muted">{escaped(" · ".join(fact for fact in facts if fact))}</span>'
            f'<details><summary>where from</summary><p class="wrap">{escaped(places)}</p>{shown}</details></li>'
        )
    heading = "Runs" if len(runs) > 1 else "Run"
    return page_section("runs", heading, f'<ul class="runs">{"".join(items)}</ul>')


def training_section(runs: Sequence[ComparedRun]) -> str:
    """Losses of runs of the same recipe, which mean the same, over each other; and online probes of all runs."""
    figures: list[str] = []
    small: list[str] = []
    for method in dict.fromkeys(run.method for run in runs):
        losses = {run.name: _curves(run, "loss") if run.method == method else {} for run in runs}
        for term in dict.fromkeys(name for curves in losses.values() for name in curves):
            whose = term if len(runs) == 1 else f"{method}: {term}"
            curves_of_term = {run: curves.get(term) for run, curves in losses.items()}
            is_total = term == "loss"
            svg = to_svg(
                curve_figure(curves_of_term, y_label=whose, small=not is_total), f"loss-{len(figures)}-{len(small)}"
            )
            caption = f"{whose} over training steps"
            if is_total:
                figures.append(captioned_figure(svg, caption))
            else:
                small.append(captioned_figure(svg, caption, "small"))
    probes = {run.name: _curves(run, "online_probe") for run in runs}
    for metric in dict.fromkeys(name.rpartition("/")[2] for curves in probes.values() for name in curves):
        by_part: dict[str, dict[str, Curve]] = {run: {} for run in probes}
        for run, curves in probes.items():
            for name, curve in curves.items():
                part, _, of_metric = name.rpartition("/")
                if of_metric == metric:
                    by_part[run][part or name] = curve
        for choice in choose_parts(by_part, INVARIANT_FIRST if metric.endswith("top1") else EQUIVARIANT_FIRST):
            svg = to_svg(curve_figure(choice.shown, y_label=metric), f"online-{len(figures)}")
            about = f"Online probe on training batches, linear head: {metric}, {choice.title}"
            figures.append(choice.figure(svg, about))
    return page_section("training", "Training", figure_grid(figures), figure_grid(small, "small"))


def actions_section(runs: Sequence[ComparedRun]) -> str:
    """Whether predictors use the actions that they are given, in words: on judged views, or else in training."""
    sentences = []
    for run in runs:
        found = _judged_gains(run) or _gains_in_training(run)
        for where, sentence in found.items():
            named = f"<strong>{escaped(run.name)}</strong>: {escaped(sentence)}." if len(runs) > 1 else ""
            alone = escaped(f"{sentence[0].upper()}{sentence[1:]}.")
            sentences.append(f'<p>{named or alone} <span class="muted">{escaped(where)}</span></p>')
    return page_section("actions", "Are the actions used?", *sentences)


def _judged_gains(run: ComparedRun) -> dict[str, str]:
    """A sentence for each part of the first folder whose gain was asked for."""
    sentences = {}
    for record in run.folders[0].records:
        if (record.task, record.metric) == (GAIN, GAIN):
            low, high = record.interval_low, record.interval_high
            interval = None if low is None or high is None else (low, high)
            where = f"split {record.split} ({record.num_objects} objects, part {record.part})"
            sentences[where] = gain_in_words(record.value, interval)
    return sentences


def _gains_in_training(run: ComparedRun) -> dict[str, str]:
    """A sentence on the last quarter of the steps that a run has logged; none where it doesn't measure its gain."""
    path = run.folders[0].metrics_path
    curve = None if path is None else read_curves(path, "loss").get(GAIN)
    if curve is None:
        return {}
    values = curve[1][-max(1, len(curve[1]) // 4) :]
    return {f"training (mean of the last {len(values)} logged steps)": gain_in_words(float(values.mean()))}


def settings_sections(runs: Sequence[ComparedRun]) -> str:
    """Folded tables of how the numbers were made; first of what differs, seeds and folders left out."""
    first = {run.name: run.folders[0] for run in runs}
    differing = {name: _flat(folder.config) | _flat(folder.versions) for name, folder in first.items()}
    known = {name: settings for name, settings in differing.items() if settings}
    names = [
        name
        for name in dict.fromkeys(name for settings in known.values() for name in settings)
        if name not in SEED_SETTINGS
        and len({shown_setting(settings.get(name, "-")) for settings in known.values()}) > 1
    ]
    heading = f"Options in which the runs differ ({len(names)})"
    tables = [settings_table("differences", heading, known, names)] if names else []
    for identity, title, content in (
        ("probe-protocol", "Probe protocol", {name: folder.run.get("protocol") for name, folder in first.items()}),
        ("options", "Options", {name: folder.run.get("options") for name, folder in first.items()}),
        ("configuration", "Configuration", {name: folder.config for name, folder in first.items()}),
        ("versions", "Versions",
         {name: folder.run.get("versions", folder.versions) for name, folder in first.items()}),
    ):  # fmt: skip
        found = {name: settings for name, settings in content.items() if isinstance(settings, dict) and settings}
        if found:
            names = list(dict.fromkeys(name for settings in found.values() for name in settings))
            tables.append(settings_table(identity, title, found, names))
    return page_section("settings", "Settings", *tables)


def read_curves(metrics_path: Path, event: str) -> dict[str, Curve]:
    """Numbers of one kind of line of `metrics.jsonl`, `{name: (steps, values)}`; broken lines are passed over."""
    points: dict[str, list[tuple[float, float]]] = {}
    for line in metrics_path.read_bytes().split(b"\n"):
        try:
            numbers = json.loads(line.decode())
        except (ValueError, RecursionError):
            continue
        if not isinstance(numbers, dict) or numbers.get("event") != event:
            continue
        # What axes have room for, which NaN is not.
        drawn = {
            name: value
            for name, value in numbers.items()
            if isinstance(value, int | float) and abs(value) < LARGEST_DRAWN
        }
        if "step" in drawn:
            step = drawn.pop("step")
            for name, value in drawn.items():
                points.setdefault(name, []).append((step, value))
    return {name: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) for name, pairs in points.items()}


def _curves(run: ComparedRun, event: str) -> Mapping[str, Curve]:
    path = run.folders[0].metrics_path
    return {} if path is None else read_curves(path, event)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": value}
    return flat
