"""What is shown of errors under symmetries: two figures for each set, of the layers and of orbits.

The figure of orbits follows NERO plots (Zhuang et al. 2024, "Non-equivariance Revealed on Orbits"): what an encoder
says of one image, over all transformed copies of that image.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ssl_equi.evaluation.metrics import fixed
from ssl_equi.evaluation.report.compared_runs import ComparedRun, in_last_setting
from ssl_equi.evaluation.report.figures import (
    DOTTED,
    INK,
    LINE,
    MUTED,
    SERIES,
    legend_above,
    new_figure,
    new_ring_figure,
    plain_text,
    series_colour,
    to_svg,
)
from ssl_equi.evaluation.report.page import captioned_figure, escaped, figure_grid, listed, page_section
from ssl_equi.evaluation.report.part_choices import arrays_by_part
from ssl_equi.evaluation.report.pictures import image_data_uri, shrink
from ssl_equi.evaluation.results import ProbeRecord
from ssl_equi.evaluation.symmetry.results import LAYER_METRICS, TASK, short_name
from ssl_equi.evaluation.tables import LAYERS

SMALLEST_ERROR_SHOWN = 1e-8
LOWEST_SIMILARITY_SHOWN = -0.5
EXPLANATIONS = (
    "errors: 0 exact, 1 as different as another image; root of the mean squared distance of the features of g x from "
    "those of x, over that between different images",
    "invariance_error: the features of g x are those of x; of layers after the mean over the map",
    "equivariance_error: they are those of x, acted on as the encoder states",
    "spatial_error: the map of g x is that of x, its cells moved like the pixels",
    "consistency: share of images and elements whose predicted class stays the same (the class whose mean is nearest)",
)
_ERROR_LABELS = ("map, cells moved", "the encoder's own action", "unchanged, layers pooled")
_NOT_DRAWN = "other shifts"  # a curve of nothing but these would have no order


def symmetry_section(runs: Sequence[ComparedRun]) -> str:
    """Layers and orbits of each run and set of symmetries; nothing if none was measured."""
    blocks = []
    for index, run in enumerate(runs):
        for name in arrays_by_part([run], f"{TASK}_similarity/")[run.name]:
            heading = f"{run.name}: {name}" if len(runs) > 1 else name
            blocks.append(_one_set(run, name, heading, f"{index}-{name}"))
    heading = "What symmetries of the image do to the features"
    return page_section(TASK, heading, *blocks, listed(EXPLANATIONS)) if blocks else ""


def _one_set(run: ComparedRun, name: str, heading: str, svg_name: str) -> str:
    """The figures of one run under one set of symmetries."""
    kinds = ("similarity", "similarity_of_action", "curves", "places_deg", "rows", "images")
    arrays = {kind: run.arrays[key] for kind in kinds if (key := f"{TASK}_{kind}/{name}") in run.arrays}
    num_images, elements = arrays["similarity"].shape
    exact = "not exact: bilinear interpolation within a circle" if name == "rotations" else "they only move pixels"
    caption = f"Errors from the first layer down to the features: {num_images} images x {elements} elements"
    layers = captioned_figure(_layer_figure(run.folders[0].records, name, f"layers-{svg_name}"), caption)
    cells = [_orbit_cell(arrays, name, svg_name, list(range(num_images)), None)]
    cells += [_orbit_cell(arrays, name, svg_name, [row], image) for row, image in zip(arrays["rows"], arrays["images"])]
    colored = ", ".join(
        f'<span style="color: {series_colour(number)}">●</span> {escaped(curve)}'
        for number, curve in enumerate(_drawn_curves(arrays["curves"]))
    )
    about = (
        "How similar the features of a transformed image are to those of the image itself: on the outer circle the "
        "same, on the dashed one no more than another image's (cosine, seen from the mean of all features; what is "
        f"below {LOWEST_SIMILARITY_SHOWN} lies outside). {colored}."
    )
    if "similarity_of_action" in arrays:
        about += " Dotted: similar to what the encoder's own action makes of the image's features."
    if name == "circular_shifts":
        about += " Once around is a shift by the whole side."
    return (
        f"<h3>{escaped(heading)}, {elements} elements; {exact}</h3>"
        f'<div style="max-width: 640px">{layers}</div><p class="muted">{about}</p>'
        f"{figure_grid(cells, 'small')}"
    )


def _layer_figure(records: Sequence[ProbeRecord], name: str, svg_name: str) -> str:
    """Errors of every layer from the first to the features, on a logarithmic axis, as inline SVG."""
    asked = [record for record in records if record.task in (f"{TASK}_{name}", f"{TASK}_{name}{LAYERS}")]
    rows: dict[tuple[bool, str], dict[str, float]] = {}
    # Of several measurements the last one is shown, as in the arrays.
    for record in in_last_setting(asked):
        rows.setdefault((record.task.endswith(LAYERS), record.part), {})[record.metric] = record.value
    ordered = sorted(rows, key=lambda row: not row[0])  # layers come before features
    of_features = {part: "features" if part == "all" else f"features, {part}" for _, part in ordered}
    names = [plain_text(short_name(part) if of_layer else of_features[part]) for of_layer, part in ordered]
    num_layers = sum(of_layer for of_layer, _ in ordered)
    figure, axes = new_figure((5.2, 1.1 + 0.21 * len(ordered)))
    positions = np.arange(len(ordered))
    axes.axvline(1, color=MUTED, linewidth=1, linestyle="dashed")
    if num_layers:
        axes.axhline(num_layers - 0.5, color=LINE, linewidth=1)
    smallest = 0.1
    for metric, color, marker, label in zip(LAYER_METRICS, SERIES, "osD", _ERROR_LABELS):
        values = np.array([rows[row].get(metric, np.nan) for row in ordered])
        if np.isnan(values).all():
            continue
        shown = np.maximum(values, SMALLEST_ERROR_SHOWN)
        smallest = min(smallest, float(np.nanmin(shown)))
        axes.plot(shown[:num_layers], positions[:num_layers], color=color, linewidth=1.1, alpha=0.6)
        axes.plot(shown, positions, marker, color=color, markersize=4.2, label=label)
    axes.set_xscale("log")
    axes.set_xlim(left=10 ** np.floor(np.log10(smallest) - 0.2))
    axes.set_yticks(positions, names, fontsize=8)
    axes.set_ylim(len(ordered) - 0.5, -0.5)
    axes.set_xlabel("error; 1: another image")
    axes.minorticks_off()
    legend_above(axes)
    return to_svg(figure, svg_name)


def _orbit_cell(
    arrays: Mapping[str, np.ndarray], name: str, svg_name: str, rows: list[int], image: np.ndarray | None
) -> str:
    """A curve, and the image that it is of, or how many it is the mean of."""
    lowest = float(arrays["similarity"][rows].min())
    which = f"all {len(rows)} images, mean and middle 80 %" if image is None else f"image {rows[0] + 1}"
    label = escaped(f"{which}; lowest similarity {fixed(lowest, 2)}")
    svg = _orbit_figure(arrays, name, rows, f"orbit-{svg_name}-{'all' if image is None else rows[0]}")
    picture = ""
    if image is not None:
        picture = f'<img alt="{escaped(which)}" style="width: 40px" src="{image_data_uri(shrink(image))}">'
    return (
        f'<figure><div role="img" aria-label="{label}">{svg}</div>'
        f'<div style="display: flex; gap: 8px; align-items: center; min-height: 44px">{picture}'
        f"<figcaption>{label}</figcaption></div></figure>"
    )


def _orbit_figure(arrays: Mapping[str, np.ndarray], name: str, rows: list[int], svg_name: str) -> str:
    """Similarity of f(g x) with f(x) over the orbit of some images, as closed curves around a circle; inline SVG.

    Of several images the curve is their mean, and a band holds the middle 80 % of them.
    """
    figure, axes = new_ring_figure((2.3, 2.3))
    axes.set_ylim(LOWEST_SIMILARITY_SHOWN, 1.02)
    axes.set_rgrids([0, 0.5, 1], ["0", "", ""], angle=22, fontsize=7, color=MUTED)
    around = ["0", "1/4", "1/2", "3/4"] if name == "circular_shifts" else ["0°", "90°", "180°", "270°"]
    axes.set_xticks(np.deg2rad(range(0, 360, 90)), around, fontsize=7.5, color=MUTED)
    axes.tick_params(pad=-1)
    # Between its points a curve follows the circle: straight lines would cut the corners of four equal values.
    circle = np.linspace(0, 2 * np.pi, 181)
    axes.plot(circle, np.zeros(len(circle)), color=MUTED, linewidth=0.9, linestyle="dashed")
    for color, curve in zip(SERIES * 2, _drawn_curves(arrays["curves"])):
        columns = arrays["curves"] == curve
        places_deg = arrays["places_deg"][columns]
        angles, similar = _closed_curve(places_deg, arrays["similarity"][rows][:, columns])
        if len(rows) > 1:
            low, high = (np.interp(circle, angles, edge) for edge in np.quantile(similar, (0.1, 0.9), axis=0))
            axes.fill_between(circle, low, high, color=color, alpha=0.16, linewidth=0)
        axes.plot(circle, np.interp(circle, angles, similar.mean(axis=0)), color=color, linewidth=1.2)
        axes.plot(angles, similar.mean(axis=0), "o", color=color, markersize=2.8)
        if "similarity_of_action" in arrays:
            angles, similar = _closed_curve(places_deg, arrays["similarity_of_action"][rows][:, columns])
            moved = np.interp(circle, angles, similar.mean(axis=0))
            axes.plot(circle, moved, color=INK, linewidth=1.1, linestyle=DOTTED, zorder=3)
    return to_svg(figure, svg_name)


def _drawn_curves(curves: np.ndarray) -> list[str]:
    return [str(curve) for curve in dict.fromkeys(curves.tolist()) if curve != _NOT_DRAWN]


def _closed_curve(places_deg: np.ndarray, similarities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angles [P] around the circle and similarities [n, P]; the first point comes again as the last one."""
    if 0 not in places_deg:
        # The identity, at which every image is similar to itself.
        places_deg = np.append(0.0, places_deg)
        similarities = np.concatenate([np.ones((len(similarities), 1)), similarities], axis=1)
    order = np.argsort(places_deg, kind="stable")
    order = np.append(order, order[0])
    angles = np.deg2rad(places_deg[order])
    angles[-1] += 2 * np.pi
    return angles, np.clip(similarities[:, order], LOWEST_SIMILARITY_SHOWN, 1)
