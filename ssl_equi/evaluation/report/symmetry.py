"""What is shown of errors under symmetries: records, a table of layers, and a page with two figures for each set.

The figure of orbits follows NERO plots (Zhuang et al. 2024, "Non-equivariance Revealed on Orbits"): what an encoder
says of one image, over all transformed copies of that image.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ssl_equi.errors import CheckpointError
from ssl_equi.evaluation.records import ProbeRecord, fixed
from ssl_equi.evaluation.report.compared_runs import ComparedRun, EvaluatedFolder
from ssl_equi.evaluation.report.comparison import compare_runs
from ssl_equi.evaluation.report.figures import (
    INK,
    LINE,
    MUTED,
    SERIES,
    image_data_uri,
    new_figure,
    plain_legend,
    shrink,
    to_svg,
)
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
from ssl_equi.evaluation.symmetry.errors import PartErrors, SymmetryErrors
from ssl_equi.evaluation.symmetry.layer_errors import LayerErrors
from ssl_equi.files import write_atomically

TASK = "symmetry"
SMALLEST_ERROR_SHOWN = 1e-8
LOWEST_SIMILARITY_SHOWN = -0.5
NUM_ORBITS = 4
LONGEST_LAYER_NAME = 30
EXPLANATIONS = (
    "errors: 0 exact, 1 as different as another image; root of the mean squared distance of the features of g x from "
    "those of x, over that between different images",
    "invariance_error: the features of g x are those of x; of layers after the mean over the map",
    "equivariance_error: they are those of x, acted on as the encoder states",
    "spatial_error: the map of g x is that of x, its cells moved like the pixels",
    "consistency: share of images and elements whose predicted class stays the same (the class whose mean is nearest)",
)
_ERROR_NAMES = ("spatial_error", "equivariance_error", "invariance_error")
_ERROR_LABELS = ("map, cells moved", "the encoder's own action", "unchanged (layers: after pooling)")


@dataclass(frozen=True)
class Measurement:
    """What was measured under one set of symmetries.

    Attributes:
        errors: of the encoder.
        random_parts: the same of an encoder with fresh weights, by part; None if it was not measured.
    """

    errors: SymmetryErrors
    random_parts: Mapping[str, PartErrors] | None = None


def symmetry_records(measurement: Measurement, split: str, seed: int) -> list[ProbeRecord]:
    """Records of the features' parts, task "symmetry_SET", and of the layers, task "symmetry_SET_layers".

    Args:
        split: that the images are of.
        seed: of the random encoder.
    """
    errors, records = measurement.errors, []
    elements = len(errors.symmetries.elements)
    task, pairs = f"{TASK}_{errors.symmetries.name}", errors.num_images * elements
    shared: dict[str, Any] = {
        "num_objects": errors.num_images, "split": split, "protocol": f"{task}, {elements} elements", "seed": seed
    }  # fmt: skip
    for part, measured in errors.parts.items():
        random = None if measurement.random_parts is None else measurement.random_parts[part]
        for metric in ("invariance_error", "equivariance_error", "consistency"):
            value = getattr(measured, metric)
            if value is None:
                continue
            baseline = measured.chance_consistency if metric == "consistency" else 1.0
            other = None if random is None else getattr(random, metric)
            records.append(
                ProbeRecord(task, part, metric, value, baseline, "other images", other, n=pairs, **shared)  # type: ignore[arg-type]
            )
    for layer in errors.layers:
        for metric in _ERROR_NAMES:
            value = getattr(layer, metric)
            if value is not None:
                n = errors.num_images * (layer.compared_elements if metric == "spatial_error" else elements)
                records.append(
                    ProbeRecord(f"{task}_layers", layer.name, metric, value, 1.0, "other images", None, n=n, **shared)
                )
    return records


def print_layers(measurement: Measurement) -> None:
    """Print the errors of every layer, why others are left out, and notes; no line is wider than 80 characters."""
    errors = measurement.errors
    if errors.layers:
        print(f"\nlayers under {errors.symmetries.name}")
        width = max(len(_short_name(layer)) for layer in errors.layers)
        print("".ljust(width + 2) + "".join(name.rjust(13) for name in ("spatial", "own action", "pooled", "elements")))
        for layer in errors.layers:
            values = [_shown(getattr(layer, metric)) for metric in _ERROR_NAMES]
            count = f"{layer.compared_elements}/{len(errors.symmetries.elements)}"
            print("  " + _short_name(layer).ljust(width) + "".join(text.rjust(13) for text in (*values, count)))
        print("spatial: cells moved like pixels, for so many elements; pooled: invariance_error")
    for line in notes_of(measurement):
        print(textwrap.fill(line, width=80, subsequent_indent="  ", break_on_hyphens=False))


def notes_of(measurement: Measurement) -> list[str]:
    """What is missing or not exact, a sentence each; layers that share a reason share the sentence."""
    errors = measurement.errors
    layers_by_reason: dict[str, list[str]] = {}
    for layer, reason in errors.left_out.items():
        layers_by_reason.setdefault(reason, []).append(layer)
    left_out = [f"layer {', '.join(layers)}: {reason}" for reason, layers in layers_by_reason.items()]
    return [f"{errors.symmetries.name}: {note}" for note in (*errors.notes, *left_out)]


def write_page(
    path: Path,
    *,
    title: str,
    measurements: Sequence[Measurement],
    images: np.ndarray,
    records: Sequence[ProbeRecord],
    config: Mapping[str, Any],
    command: str,
) -> None:
    """Write one self-contained page, atomically.

    Args:
        images: uint8 [N, H, W, 3], those that were measured, in their order.
        records: of the features and of the layers.
        config: the options that were given.
        command: what was typed.
    """
    of_features = [record for record in records if not record.task.endswith("_layers")]
    explained = "".join(f"<li>{escaped(line)}</li>" for line in EXPLANATIONS)
    folder = EvaluatedFolder(path.parent, of_features, (), {"command": command}, {}, {}, {}, None)
    runs = [ComparedRun(title, (folder,))]
    sections: Sections = {
        "header": lambda: page_header(title, runs),
        "runs": lambda: runs_section(runs),
        **{measurement.errors.symmetries.name: partial(_section, measurement, images) for measurement in measurements},
        "results": lambda: results_section(runs, compare_runs(runs)),
        "notes": lambda: f'<ul class="notes">{explained}</ul>',
        "configuration": lambda: settings_table("configuration", "Configuration", {"": config}, list(config)),
    }
    write_atomically(path, page_document(title, drawn_sections(sections)), CheckpointError)


def layer_figure(errors: SymmetryErrors) -> str:
    """Errors of every layer from the first to the features, on a logarithmic axis, as inline SVG."""
    names = [_short_name(layer) for layer in errors.layers]
    rows: list[tuple[float | None, ...]] = [
        tuple(getattr(layer, metric) for metric in _ERROR_NAMES) for layer in errors.layers
    ]
    for part, measured in errors.parts.items():
        names.append("features" if part == "all" else f"features, {part}")
        rows.append((None, measured.equivariance_error, measured.invariance_error))
    figure, axes = new_figure((5.2, 1.1 + 0.21 * len(rows)))
    positions = np.arange(len(rows))
    num_layers = len(errors.layers)
    axes.axvline(1, color=MUTED, linewidth=1, linestyle="dashed")
    if num_layers:
        axes.axhline(num_layers - 0.5, color=LINE, linewidth=1)
    smallest = 0.1
    for column, (color, marker, label) in enumerate(zip(SERIES, "osD", _ERROR_LABELS)):
        values = np.array([np.nan if row[column] is None else row[column] for row in rows], dtype=float)
        if np.isnan(values).all():
            continue
        shown = np.maximum(values, SMALLEST_ERROR_SHOWN)
        smallest = min(smallest, float(np.nanmin(shown)))
        axes.plot(shown[:num_layers], positions[:num_layers], color=color, linewidth=1.1, alpha=0.6)
        axes.plot(shown, positions, marker, color=color, markersize=4.2, label=label)
    axes.set_xscale("log")
    axes.set_xlim(left=10 ** np.floor(np.log10(smallest) - 0.2))
    axes.set_yticks(positions, names, fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("error; 1: another image")
    axes.minorticks_off()
    plain_legend(axes, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, columnspacing=1.2)
    return to_svg(figure, f"layers-{errors.symmetries.name}")


def orbit_figure(errors: SymmetryErrors, rows: Sequence[int], name: str) -> str:
    """Similarity of f(g x) with f(x) over the orbit, as closed curves around a circle; inline SVG.

    Args:
        rows: images; with several, the curve is their mean, and a band holds the middle 80 % of them.
        name: unique on the page.
    """
    figure, cartesian = new_figure((2.3, 2.3))
    figure.delaxes(cartesian)
    axes: Any = figure.add_subplot(projection="polar")
    axes.patch.set_visible(False)
    axes.grid(color=LINE, linewidth=0.6)
    axes.spines["polar"].set_color(LINE)
    axes.set_theta_zero_location("N")
    axes.set_ylim(LOWEST_SIMILARITY_SHOWN, 1.02)
    axes.set_rgrids([0, 0.5, 1], ["0", "", ""], angle=22, fontsize=7, color=MUTED)
    degrees = range(0, 360, 90)
    axes.set_xticks(np.deg2rad(degrees), _around(errors), fontsize=7.5, color=MUTED)
    axes.tick_params(pad=-1)
    # Between its points a curve follows the circle: straight lines would cut the corners of four equal values.
    circle = np.linspace(0, 2 * np.pi, 181)
    axes.plot(circle, np.zeros(len(circle)), color=MUTED, linewidth=0.9, linestyle="dashed")
    for color, curve in zip(SERIES * 2, _curves(errors)):
        places, similar = _closed_curve(errors, errors.similarities.numpy()[list(rows)], curve)
        if len(rows) > 1:
            low, high = (np.interp(circle, places, edge) for edge in np.quantile(similar, (0.1, 0.9), axis=0))
            axes.fill_between(circle, low, high, color=color, alpha=0.16, linewidth=0)
        axes.plot(circle, np.interp(circle, places, similar.mean(axis=0)), color=color, linewidth=1.2)
        axes.plot(places, similar.mean(axis=0), "o", color=color, markersize=2.8)
    if errors.similarities_of_action is not None:
        for curve in _curves(errors):
            places, similar = _closed_curve(errors, errors.similarities_of_action.numpy()[list(rows)], curve)
            moved = np.interp(circle, places, similar.mean(axis=0))
            axes.plot(circle, moved, color=INK, linewidth=1.1, linestyle=(0, (1, 1.5)))
    return to_svg(figure, name)


def _section(measurement: Measurement, images: np.ndarray) -> str:
    errors = measurement.errors
    name, elements = errors.symmetries.name, len(errors.symmetries.elements)
    kind = "they only move pixels" if errors.symmetries.exact else "not exact: bilinear interpolation within a circle"
    caption = f"Errors from the first layer down to the features: {errors.num_images} images x {elements} elements"
    cells = [_orbit_cell(errors, list(range(errors.num_images)), None)]
    chosen = np.linspace(0, errors.num_images - 1, min(NUM_ORBITS, errors.num_images)).round().astype(int)
    cells += [_orbit_cell(errors, [int(row)], images[row]) for row in chosen]
    notes = "".join(f"<li>{escaped(note)}</li>" for note in notes_of(measurement))
    return (
        f'<section id="{name}"><h2>{name}, {elements} elements; {kind}</h2>'
        f'<div style="max-width: 640px">{captioned_figure(layer_figure(errors), caption)}</div>'
        f'<h3 style="margin-top: 22px">Over the orbit</h3><p class="muted">{_orbit_legend(errors)}</p>'
        f'<div class="figures small">{"".join(cells)}</div>'
        f'<ul class="notes">{notes}</ul></section>'
    )


def _orbit_cell(errors: SymmetryErrors, rows: list[int], image: np.ndarray | None) -> str:
    """A curve, and the image that it is of, or how many it is the mean of."""
    lowest = float(errors.similarities.numpy()[rows].min())
    which = f"all {len(rows)} images, mean and middle 80 %" if image is None else f"image {rows[0] + 1}"
    label = escaped(f"{which}; lowest similarity {fixed(lowest, 2)}")
    svg = orbit_figure(errors, rows, f"orbit-{errors.symmetries.name}-{'all' if image is None else rows[0]}")
    picture = ""
    if image is not None:
        picture = f'<img alt="{escaped(which)}" style="width: 40px" src="{image_data_uri(shrink(image))}">'
    return (
        f'<figure><div role="img" aria-label="{label}">{svg}</div>'
        f'<div style="display: flex; gap: 8px; align-items: center; min-height: 44px">{picture}'
        f"<figcaption>{label}</figcaption></div></figure>"
    )


def _orbit_legend(errors: SymmetryErrors) -> str:
    colored = [
        f'<span style="color: var(--series-{1 + number % len(SERIES)})">●</span> {escaped(curve)}'
        for number, curve in enumerate(_curves(errors))
    ]
    text = (
        "How similar the features of a transformed image are to those of the image itself: on the outer circle the "
        "same, on the dashed one no more than another image's (cosine, seen from the mean of all features; what is "
        f"below {LOWEST_SIMILARITY_SHOWN} lies outside). {', '.join(colored)}."
    )
    if errors.similarities_of_action is not None:
        text += " Dotted: similar to what the encoder's own action makes of the image's features."
    if errors.symmetries.name == "circular_shifts":
        text += " Once around is a shift by the whole side."
    return text


def _curves(errors: SymmetryErrors) -> list[str]:
    found = dict.fromkeys(element.curve for element in errors.symmetries.elements)
    return [curve for curve in found if curve != "other shifts"]


def _closed_curve(errors: SymmetryErrors, similarities: np.ndarray, curve: str) -> tuple[np.ndarray, np.ndarray]:
    """Angles [P] around the circle and similarities [n, P]; the first point comes again as the last one."""
    elements = errors.symmetries.elements
    columns = [index for index, element in enumerate(elements) if element.curve == curve]
    places = [elements[index].place_deg for index in columns]
    values = similarities[:, columns]
    if 0 not in places:
        # The identity, at which every image is similar to itself.
        places, values = [0.0, *places], np.concatenate([np.ones((len(values), 1)), values], axis=1)
    order = np.argsort(places, kind="stable")
    order = np.append(order, order[0])
    angles = np.deg2rad(np.array(places)[order])
    angles[-1] += 2 * np.pi
    return angles, np.clip(values[:, order], LOWEST_SIMILARITY_SHOWN, 1)


def _around(errors: SymmetryErrors) -> list[str]:
    """What stands at the four sides of the circle."""
    if errors.symmetries.name == "circular_shifts":
        return ["0", "1/4", "1/2", "3/4"]
    return ["0°", "90°", "180°", "270°"]


def _short_name(layer: LayerErrors) -> str:
    too_long = len(layer.name) > LONGEST_LAYER_NAME
    return f"...{layer.name[3 - LONGEST_LAYER_NAME :]}" if too_long else layer.name


def _shown(value: float | None) -> str:
    return "-" if value is None else fixed(value, 3) if value >= 0.001 or value == 0 else f"{value:.0e}"
