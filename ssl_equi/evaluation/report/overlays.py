"""Figures in which several runs lie over each other: each has a colour and a dash pattern, and is named in words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssl_equi.evaluation.metrics import effective_rank
from ssl_equi.evaluation.report.figures import (
    DASHES,
    INK,
    LINE,
    MARKERS,
    MUTED,
    SERIES,
    new_figure,
    plain_legend,
    plain_text,
    to_svg,
)

MAX_SINGLE_RANKS = 60  # galleries up to this size have a bin for each rank
SMALLEST_SHARE_SHOWN = 1e-6  # of the largest singular value
MAX_RUNS_WITH_OBJECTS = 3  # orbits of single objects are drawn for so many runs
LONGEST_LABEL = 26
LEGEND_LINE_INCHES = 0.17


def run_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the run at a place; the pairs repeat after 20 runs."""
    return {"color": SERIES[index % len(SERIES)], "linestyle": DASHES[index % len(DASHES)]}


def overlaid_angles(name: str, errors_deg: Mapping[str, np.ndarray | None], constant_deg: np.ndarray | None) -> str:
    """Share of pairs by rotation error, a step line for each run, and the constant answer.

    Args:
        name: unique on the page.
        errors_deg: by label, each `[n]`; None draws nothing, but takes a style, so that a run keeps its own.
    """
    figure, axes = new_figure((4.2, 2.8))
    bins = np.linspace(0, 180, 37)
    for index, (run, errors) in enumerate(errors_deg.items()):
        if errors is not None:
            shares = np.histogram(errors, bins)[0] / len(errors) * 100
            label = f"{shortened(run)} ({np.median(errors):.0f}°)"
            axes.stairs(shares, bins, label=label, linewidth=1.5, **run_style(index))
    if constant_deg is not None:
        shares = np.histogram(constant_deg, bins)[0] / len(constant_deg) * 100
        label = f"constant ({np.median(constant_deg):.0f}°)"
        axes.stairs(shares, bins, label=label, color=MUTED, linewidth=1.1, linestyle=(0, (1, 1.5)))
    axes.set_xlabel("rotation error in degrees (legend: median)")
    axes.set_ylabel("pairs in %")
    axes.set_xlim(0, 180)
    axes.set_xticks(range(0, 181, 30))
    _legend_above(axes)
    return to_svg(figure, name)


def rank_histogram(name: str, ranks: Mapping[str, np.ndarray | None], gallery_size: int) -> str:
    """Share of queries by the rank of the true view, 1 being the nearest, and the line of a random order.

    Args:
        ranks: by label, each int `[n]` from 1 to `gallery_size`; None as in `overlaid_angles`.
    """
    figure, axes = new_figure((4.2, 2.8))
    count = gallery_size if gallery_size <= MAX_SINGLE_RANKS else MAX_SINGLE_RANKS
    bins = np.linspace(0.5, gallery_size + 0.5, count + 1)
    for index, (run, found) in enumerate(ranks.items()):
        if found is not None:
            shares = np.histogram(found, bins)[0] / len(found) * 100
            label = f"{shortened(run)} (median {np.median(found):.0f})"
            axes.stairs(shares, bins, label=label, linewidth=1.5, **run_style(index))
    axes.axhline(100 / count, color=MUTED, linewidth=1.1, linestyle=(0, (1, 1.5)), label="chance")
    axes.set_xlabel(f"rank of the true view among {gallery_size}")
    axes.set_ylabel("queries in %")
    axes.set_xlim(0.5, gallery_size + 0.5)
    step = max(1, round(gallery_size / 8))
    axes.set_xticks(sorted({1, *range(step, gallery_size + 1, step)} - ({step} if step < 3 else set())))
    axes.set_ylim(bottom=0)
    _legend_above(axes)
    return to_svg(figure, name)


def spectrum_figure(name: str, deviations: Mapping[str, np.ndarray | None]) -> str:
    """Singular values of the centred features, as shares of the largest; a cliff is a collapse to fewer dimensions.

    Args:
        deviations: by label, descending, each `[D]`; None as in `overlaid_angles`.
    """
    figure, axes = new_figure((4.2, 2.8))
    for index, (run, values) in enumerate(deviations.items()):
        if values is None:
            continue
        label = f"{shortened(run)} ({effective_rank(values):.1f} of {len(values)})"
        if values[0] <= 0:
            axes.plot([], [], label=f"{shortened(run)} (constant)", **run_style(index))
            continue
        shares = np.maximum(values / values[0], SMALLEST_SHARE_SHOWN)
        axes.plot(np.arange(1, len(values) + 1), shares, label=label, linewidth=1.5, **run_style(index))
    if any(values is not None and values[0] > 0 for values in deviations.values()):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(top=1.3)
    axes.minorticks_off()
    axes.set_xlabel("number of the principal axis (legend: effective rank)")
    axes.set_ylabel("share of the largest")
    _legend_above(axes)
    return to_svg(figure, name)


def orbit_rings(name: str, angles_deg: np.ndarray, values: Mapping[str, np.ndarray | None], unit: str) -> str:
    """A closed curve around the circle for each run: the mean over objects, with thin lines for single objects.

    Args:
        angles_deg: of the orbit, ascending, `[A]`.
        values: by label, each `[n_objects, A]`, 0 in the centre; None as in `overlaid_angles`.
        unit: of the values, written at the rings: "°" or nothing.
    """
    from matplotlib.ticker import MaxNLocator

    figure, cartesian = new_figure((3.6, 3.9))
    figure.delaxes(cartesian)
    axes: Any = figure.add_subplot(projection="polar")
    axes.patch.set_visible(False)
    axes.grid(color=LINE, linewidth=0.6)
    axes.spines["polar"].set_color(LINE)
    axes.set_theta_zero_location("N")
    around = np.deg2rad(np.append(angles_deg, angles_deg[0] + 360))
    drawn = [found for found in values.values() if found is not None]
    for index, (run, found) in enumerate(values.items()):
        if found is None:
            continue
        closed = np.concatenate([found, found[:, :1]], axis=1)
        style = run_style(index)
        if len(drawn) <= MAX_RUNS_WITH_OBJECTS:
            for curve in closed:
                axes.plot(around, curve, color=style["color"], linewidth=0.6, alpha=0.3)
        label = f"{shortened(run)} (mean {found.mean():.2g}{unit})"
        axes.plot(around, closed.mean(axis=0), label=label, linewidth=2, **style)
    largest = max(float(np.quantile(found, 0.98)) for found in drawn)
    axes.set_ylim(0, 1.05 * largest if largest > 0 else 1)
    axes.tick_params(colors=MUTED, labelsize=8, pad=1)
    ticks = [tick for tick in MaxNLocator(4).tick_values(0, axes.get_ylim()[1]) if 0 < tick < axes.get_ylim()[1]]
    axes.set_rgrids(ticks, [f"{tick:g}{unit}" for tick in ticks], angle=22, fontsize=8, color=MUTED)
    axes.set_xticks(np.deg2rad(np.arange(0, 360, 45)), [f"{angle}°" for angle in range(0, 360, 45)], color=MUTED)
    _make_room(figure, len(drawn))
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=1, fontsize=8, labelcolor=INK,
        frameon=False, handlelength=2.2,
    )  # fmt: skip
    return to_svg(figure, name)


def overview_figure(
    name: str,
    points: Mapping[str, tuple[float, float]],
    labels: tuple[str, str],
    baselines: tuple[float, float],
) -> str:
    """What stays against what changes: one point a run, named beside it, and the baselines as lines.

    Args:
        points: by run, the values of both axes.
        labels, baselines: of both axes.
    """
    figure, axes = new_figure((4.2, 3.0))
    axes.axvline(baselines[0], color=MUTED, linewidth=1, linestyle=(0, (1, 1.5)))
    axes.axhline(baselines[1], color=MUTED, linewidth=1, linestyle=(0, (1, 1.5)))
    middle = (min(x for x, _ in points.values()) + max(x for x, _ in points.values())) / 2
    for index, (run, (x, y)) in enumerate(points.items()):
        axes.plot([x], [y], MARKERS[index % len(MARKERS)], color=run_style(index)["color"], markersize=7)
        left = x > middle
        axes.annotate(
            shortened(run), (x, y), (-7 if left else 7, 0), textcoords="offset points", fontsize=8.5, color=INK,
            ha="right" if left else "left", va="center",
        )  # fmt: skip
    axes.margins(0.12)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    return to_svg(figure, name)


def shortened(run: str) -> str:
    """A run's name as matplotlib can write it, its middle left out if it is long."""
    name = plain_text(run)
    if len(name) <= LONGEST_LABEL:
        return name
    half = (LONGEST_LABEL - 1) // 2
    return plain_text(f"{run[:half]}…{run[-half:]}")


def styles_in_words(runs: Sequence[str]) -> dict[str, str]:
    """CSS variable of each run's colour, by its name."""
    return {run: f"var(--series-{index % len(SERIES) + 1})" for index, run in enumerate(runs)}


def _legend_above(axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    longest = max((len(label) for label in labels), default=0)
    columns = 1 if longest > 24 or len(handles) < 2 else 2
    _make_room(axes.figure, -(-len(handles) // columns))
    plain_legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns)


def _make_room(figure: Any, legend_lines: int) -> None:
    """A higher figure for a legend of many lines, so that the axes keep their size."""
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE_INCHES * max(0, legend_lines - 2))
