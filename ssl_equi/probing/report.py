"""`report.html`: one self-contained page about a run, readable on a phone, printable, in light and dark.

The page needs no network and no JavaScript: style, figures and images are inside it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_equi.checkpoint import write_text_atomically
from ssl_equi.probing.records import ProbeRecord, describe_columns, describe_origins, format_value
from ssl_equi.probing.report_figures import (
    MAX_BARS,
    angle_histogram,
    curve_figure,
    image_data_uri,
    recall_bars,
    shrink,
    tile,
)
from ssl_equi.probing.report_page import captioned_figure, details_table, escaped, page_document

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
    "capsule_rotation": "the rotation between two views, read from all capsules' poses in closed form, without a head",
    "capsule_equivariance": "whether the poses of view 1, multiplied by the true action, are those of view 2",
}
METRIC_NOTES = {
    "top1": "share of views whose class is right",
    "balanced_top1": "mean of the recalls of the classes",
    "r2_uniform": "R² of each component around its own mean, averaged",
    "r2_pooled": "R² around one mean over all components, as in SIE; a constant scores above 0",
    "angle_deg_median": "median angle between predicted and true rotation; lower is better",
    "distance_median": "median distance between predicted and true displacement, in world units; lower is better; the "
    "diagonal of an object's bounding box is 1 in 3DIEBench-T and 1.3 in the embedded set",
    "pose_error": "squared distance between poses whose turned columns have norm 1; 0: they follow the action; lower "
    "is better; baseline: actions between views of other objects",
    "gamma_f": "how much an augmentation changes the distances between images, relative to how far it moves them; "
    "0: all move alike; lower is better; baseline: each image moved as another one was",
    "wahba_error": "distance that the best rotation leaves between features before and after an augmentation; lower is "
    "better; baseline: features of other images",
    "composition_error": "distance of the rotation of two augmentations in a row from their rotations in a row; lower "
    "is better; baseline: rotations to features of other images",
}


@dataclass(frozen=True)
class Neighbours:
    """One query view and its nearest views of other objects.

    Attributes:
        query: uint8 `[H, W, 3]`.
        query_name: what it shows.
        images: uint8 `[k, H, W, 3]`, nearest first.
        captions: one short text for each neighbour.
    """

    query: np.ndarray
    query_name: str
    images: np.ndarray
    captions: Sequence[str]


@dataclass(frozen=True)
class ReportFigures:
    """What the report draws; anything that is empty or None is left out.

    Attributes:
        view_sheet: uint8 `[rows, columns, H, W, 3]`; with poses, a row holds the views of one object.
        neighbours: strips by part.
        angle_errors_deg, random_angle_errors_deg: rotation error of each pair, by part.
        constant_angle_errors_deg: the same for the constant rotation.
        per_class_recall: `[C]` by part, NaN for classes without objects.
        has_poses: False for ordinary images, which are one view each.
    """

    view_sheet: np.ndarray | None = None
    neighbours: Mapping[str, Sequence[Neighbours]] = field(default_factory=dict)
    angle_errors_deg: Mapping[str, np.ndarray] = field(default_factory=dict)
    random_angle_errors_deg: Mapping[str, np.ndarray] = field(default_factory=dict)
    constant_angle_errors_deg: np.ndarray | None = None
    per_class_recall: Mapping[str, np.ndarray] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    has_poses: bool = True


def write_report(
    run_folder: Path,
    *,
    title: str,
    records: Sequence[ProbeRecord],
    figures: ReportFigures,
    metrics_path: Path | None,
    protocol: Mapping[str, Any],
    config: Mapping[str, Any],
    versions: Mapping[str, str],
    command: str,
    notes: Sequence[str] = (),
) -> Path:
    """Write `report.html` into the run folder, atomically, and return its path.

    Args:
        metrics_path: `metrics.jsonl` of the run; its curves are left out if it is None or does not exist.
        protocol: every number of the probe protocol.
        command: what was typed to make the run.
        notes: why numbers are missing or incomplete, shown under the table.
    """
    sections = [
        page_header(title, records, command),
        _headlines(records),
        result_table(records, notes),
        _rotation_and_classes(figures),
        _training(metrics_path),
        _views(figures.view_sheet, figures.has_poses),
        _neighbours(figures.neighbours, figures.has_poses),
        details_table("Probe protocol", protocol),
        details_table("Configuration", config),
        details_table("Versions", versions),
    ]
    path = run_folder / "report.html"
    write_text_atomically(path, page_document(title, sections))
    return path


def nearest_neighbours(features: Tensor, queries: Tensor, k: int) -> Tensor:
    """The `k` nearest other objects of each query view by cosine, each by its nearest view.

    Args:
        features: `[n_objects, n_views, D]`.
        queries: int64 `[Q, 2]`, object and view.

    Returns:
        int64 `[Q, k, 2]`, object and view, nearest first.

    Raises:
        ValueError: there are fewer than `k` other objects.
    """
    if k > len(features) - 1:
        raise ValueError(
            f"{k} neighbours were asked for, but there are {len(features) - 1} other objects: ask for fewer"
        )
    unit = torch.nn.functional.normalize(features, dim=-1)
    query_objects, query_views = queries.unbind(dim=1)
    similarity = torch.einsum("qd,ovd->qov", unit[query_objects, query_views], unit)
    best_similarity, best_view = similarity.max(dim=2)
    best_similarity[torch.arange(len(queries)), query_objects] = -torch.inf
    objects = best_similarity.topk(k, dim=1).indices
    return torch.stack([objects, best_view.gather(1, objects)], dim=-1)


def read_curves(metrics_path: Path, event: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Numbers of one kind of line of `metrics.jsonl`, `{name: (steps, values)}`; broken lines are passed over."""
    points: dict[str, list[tuple[float, float]]] = {}
    for line in metrics_path.read_text(encoding="utf-8").splitlines():
        try:
            numbers = json.loads(line)
        except ValueError:
            continue
        if not isinstance(numbers, dict) or numbers.get("event") != event:
            continue
        for name, value in numbers.items():
            if name not in ("event", "step") and isinstance(value, int | float) and np.isfinite(value):
                points.setdefault(name, []).append((numbers["step"], value))
    return {name: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) for name, pairs in points.items()}


def page_header(title: str, records: Sequence[ProbeRecord], command: str) -> str:
    """Title, origin of the numbers, and the command that made them."""
    origin = "; ".join(describe_origins(records)) if records else "no probes were run"
    return (
        f"<header><h1>{escaped(title)}</h1><p>{escaped(origin)}</p><pre><code>{escaped(command)}</code></pre></header>"
    )


def _headlines(records: Sequence[ProbeRecord]) -> str:
    by_name = {(record.task, record.metric, record.part): record for record in records}
    cards = []
    for task, metric, parts, label in HEADLINES:
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
    for record in records:
        if record.task != previous_task:
            heading = f"{escaped(record.task)} <span class=muted>(n = {record.n})</span>"
            rows.append(f'<tr class="task"><th colspan="{len(columns)}" scope="colgroup">{heading}</th></tr>')
        previous_task = record.task
        note = METRIC_NOTES.get(record.metric, record.metric)
        rows.append(
            f"<tr><td>{escaped(record.part)}</td>"
            f'<td title="{escaped(note)}"><code>{escaped(record.metric)}</code></td>'
            f'<td class="number"><strong>{escaped(format_value(record.metric, record.value))}</strong></td>'
            f'<td class="number" title="{escaped(record.baseline_name)}">'
            f"{escaped(format_value(record.metric, record.baseline))}</td>"
            f'<td class="number">{escaped(format_value(record.metric, record.random_encoder))}</td></tr>'
        )
    used = dict.fromkeys([record.task for record in records] + [record.metric for record in records])
    explained = TASK_NOTES | METRIC_NOTES
    notes = [f"{name}: {explained[name]}" for name in used if name in explained]
    lines = [*describe_origins(records), *describe_columns(records), *notes, *missing]
    listed = "".join(f"<li>{escaped(line)}</li>" for line in lines)
    return (
        '<section id="results"><h2>Results</h2><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<ul class="notes">{listed}</ul></section>'
    )


def _rotation_and_classes(figures: ReportFigures) -> str:
    drawn = []
    if figures.angle_errors_deg:
        svg = angle_histogram(
            "angles",
            figures.angle_errors_deg,
            figures.random_angle_errors_deg,
            figures.constant_angle_errors_deg,
        )
        drawn.append(captioned_figure(svg, "Rotation error over the evaluated pairs, by part and for both baselines"))
    if figures.per_class_recall:
        svg = recall_bars("recall", figures.per_class_recall, figures.class_names)
        num_classes = int(np.isfinite(next(iter(figures.per_class_recall.values()))).sum())
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
    for metric in dict.fromkeys(name.rpartition("/")[2] for name in probes):
        curves = {name.rpartition("/")[0] or name: c for name, c in probes.items() if name.rpartition("/")[2] == metric}
        svg = curve_figure(f"online-{metric}", curves, y_label=metric)
        main_figures.append(captioned_figure(svg, f"Online probes on training batches, linear heads: {metric} by part"))
    if not main_figures and not small_figures:
        return ""
    return (
        f'<section id="training"><h2>Training</h2><div class="figures">{"".join(main_figures)}</div>'
        f'<div class="figures small">{"".join(small_figures)}</div></section>'
    )


def _views(view_sheet: np.ndarray | None, has_poses: bool) -> str:
    if view_sheet is None:
        return ""
    rows, columns = view_sheet.shape[:2]
    if has_poses:
        heading, description = "Views", f"{columns} views of each of {rows} unseen objects, one object a row"
    else:
        heading, description = "Images", f"{rows * columns} unseen images, as the encoder is given them"
    image = f'<img class="sheet" alt="{description}" src="{image_data_uri(tile(shrink(view_sheet)))}">'
    figure = f"<figure>{image}<figcaption>{description}</figcaption></figure>"
    return f'<section id="views"><h2>{heading}</h2>{figure}</section>'


def _neighbours(neighbours: Mapping[str, Sequence[Neighbours]], has_poses: bool) -> str:
    blocks = []
    for part, strips in neighbours.items():
        rows = "".join(_strip(part, strip) for strip in strips)
        blocks.append(f"<div><h3>by part <code>{escaped(part)}</code></h3>{rows}</div>")
    if not blocks:
        return ""
    what = "views (cosine) of other objects, at most one an object" if has_poses else "other images (cosine)"
    captions = "degrees: angle between the two poses" if has_poses else "the name is its class"
    return (
        '<section id="neighbours"><h2>Nearest neighbours</h2><p class="muted">Framed: the query. Then the nearest '
        f'{what}. ✓: same class; {captions}.</p><div class="figures">{"".join(blocks)}</div></section>'
    )


def _strip(part: str, strip: Neighbours) -> str:
    query_uri = image_data_uri(shrink(strip.query))
    cells = [
        f'<figure class="query"><img alt="query: {escaped(strip.query_name)}" src="{query_uri}">'
        f"<figcaption>{escaped(strip.query_name)}</figcaption></figure>"
    ]
    for rank, (image, caption) in enumerate(zip(strip.images, strip.captions, strict=True), start=1):
        alt = escaped(f"neighbour {rank} of {strip.query_name} by {part}: {caption}")
        cells.append(
            f'<figure><img alt="{alt}" src="{image_data_uri(shrink(image))}">'
            f"<figcaption>{escaped(caption)}</figcaption></figure>"
        )
    return f'<div class="strip" style="--cells:{len(cells)}">{"".join(cells)}</div>'
