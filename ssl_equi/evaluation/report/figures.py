"""Figures of the report, as inline SVG whose colours follow the page, light or dark, or as pixels; text fits a phone.

Matplotlib draws with the page's light colours, which `to_svg` replaces by the page's CSS variables. Where several runs
or parts lie over each other, each has a colour and a dash pattern; one that has nothing to show is None, and takes a
style all the same, so that the others keep theirs in all figures of a page.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_equi.errors import visible
from ssl_equi.evaluation.metrics import effective_rank
from ssl_equi.evaluation.samples import evenly_spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[np.ndarray, np.ndarray]  # places on the horizontal axis, and values

INK, MUTED, LINE = "#1b1f24", "#5b6570", "#dde1e6"
SERIES = ("#2f6fdd", "#c2571a", "#16806a", "#8a4fc7", "#a8762a")
CSS_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line"} | {
    color: f"--series-{index + 1}" for index, color in enumerate(SERIES)
}
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (2, 1)))
DOTTED = (0, (1, 1.5))
MARKERS = "osD^vPX"
HOVER = "hover:"  # begins the id of what shows the rest of the id when it is pointed at
MAX_CURVE_POINTS = 300
MAX_HOVER_COLUMNS, MAX_SMALL_HOVER_COLUMNS = 40, 16
MAX_BARS = 60
MAX_SINGLE_RANKS = 60  # galleries up to this size have a bin for each rank
SMALLEST_SHARE_SHOWN = 1e-6  # of the largest singular value
MAX_RUNS_WITH_OBJECTS = 3  # orbits of single objects are drawn for so many runs
LONGEST_LABEL, LONGEST_OF_TWO_LABELS = 26, 24  # characters of any label, and of one that has another beside it
LEGEND_LINE_INCHES = 0.17
PIXELS_PER_INCH = 180


def series_colour(index: int) -> str:
    """CSS colour of the run, part or class at a place."""
    return f"var(--series-{index % len(SERIES) + 1})"


def series_style(index: int) -> dict[str, Any]:
    """Matplotlib's colour and dashes of the run or part at a place; the pairs repeat after 20."""
    return {"color": SERIES[index % len(SERIES)], "linestyle": DASHES[index % len(DASHES)]}


def curve_figure(curves: Mapping[str, Curve | None], *, y_label: str, small: bool = False) -> "Figure":
    """Lines over training steps; a logarithmic axis if values span two decades.

    Args:
        curves: by label, steps and values.
    """
    figure, axes = new_figure((2.3, 1.5) if small else (4.2, 2.6))
    drawn = {label: _thinned(*curve) for label, curve in curves.items() if curve is not None and len(curve[0])}
    for index, label in enumerate(curves):
        if label in drawn:
            axes.plot(*drawn[label], linewidth=1.4, label=shortened(label), **series_style(index))
    values = np.concatenate([values for _, values in drawn.values()])
    if values.min() > 0 and values.max() > 100 * values.min():
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        axes.yaxis.get_offset_text().set(color=MUTED, fontsize=8)
    axes.locator_params(axis="x", nbins=3 if small else 6)
    if small:
        axes.set_title(shortened(y_label), fontsize=9, color=INK, loc="left")
    else:
        axes.set_xlabel("step")
        axes.set_ylabel(shortened(y_label))
        if len(curves) > 1:
            legend_above(axes)
    steps = np.unique(np.concatenate([steps for steps, _ in drawn.values()]))
    steps = steps[evenly_spread(len(steps), MAX_SMALL_HOVER_COLUMNS if small else MAX_HOVER_COLUMNS)]
    _hover_columns(axes, steps, [f"step {step:.0f}" for step in steps], drawn)
    return figure


def angle_histogram(errors_deg: Mapping[str, np.ndarray | None], baselines_deg: Mapping[str, np.ndarray]) -> "Figure":
    """Share of samples by error in degrees: a step line for each run or part, and thin ones for the baselines."""
    figure, axes = new_figure((4.2, 2.8))
    axes.set_xlabel("error in degrees (legend: median)")
    axes.set_ylabel("samples in %")
    axes.set_xticks(range(0, 181, 30))
    bins = np.linspace(0, 180, 37)
    heads = [f"{low:.0f}° to {high:.0f}°" for low, high in pairwise(bins)]
    _draw_shares(axes, errors_deg, baselines_deg, bins, heads, "°")
    return figure


def rank_histogram(ranks: Mapping[str, np.ndarray | None], gallery_size: int) -> "Figure":
    """Share of queries by the rank of the true view, from 1, the nearest, to `gallery_size`; and a random order's."""
    figure, axes = new_figure((4.2, 2.8))
    count = min(gallery_size, MAX_SINGLE_RANKS)
    axes.axhline(100 / count, color=MUTED, linewidth=1.1, linestyle=DOTTED, label="chance")
    axes.set_xlabel(f"rank of the true view among {gallery_size} (legend: median)")
    axes.set_ylabel("queries in %")
    step = max(1, round(gallery_size / 8))
    axes.set_xticks(sorted({1, *range(step, gallery_size + 1, step)} - ({step} if step < 3 else set())))
    bins = np.linspace(0.5, gallery_size + 0.5, count + 1)
    ranks_of_bins = [(int(np.ceil(low)), int(np.floor(high))) for low, high in pairwise(bins)]
    heads = [f"rank {low}" if low >= high else f"ranks {low} to {high}" for low, high in ranks_of_bins]
    _draw_shares(axes, ranks, {}, bins, heads, "")
    return figure


def recall_bars(recalls: Mapping[str, np.ndarray], class_names: Mapping[int, str]) -> "Figure":
    """Recall of each class, best first: bars for the first part, dots for the others; absent classes are left out.

    Of more than `MAX_BARS` classes so many are drawn, evenly spread from the best to the worst.
    """
    first_part, *other_parts = recalls
    present = np.flatnonzero(~np.isnan(recalls[first_part]))
    order = present[np.argsort(-recalls[first_part][present], kind="stable")]
    order = order[evenly_spread(len(order), MAX_BARS)]
    figure, axes = new_figure((4.2, 0.7 + 0.19 * len(order)))
    positions = np.arange(len(order))
    bars = axes.barh(
        positions,
        100 * recalls[first_part][order],
        color=SERIES[0],
        height=0.62,
        label=shortened(first_part),
        alpha=0.75,
    )
    dots = []
    for index, part in enumerate(other_parts, 1):
        marker, color = MARKERS[index % len(MARKERS)], SERIES[index % len(SERIES)]
        dots += axes.plot(
            100 * recalls[part][order], positions, marker, color=color, markersize=4, label=shortened(part)
        )
    names = [plain_text(class_names[int(index)]) for index in order]
    axes.set_yticks(positions, names, fontsize=8)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 102)
    axes.set_xlabel("recall in %")
    axes.grid(axis="y", visible=False)
    if other_parts:
        legend_above(axes, [bars, *dots])
    for position, index in enumerate(order):
        values = "".join(f"\n{part}: {100 * values[index]:.0f} %" for part, values in recalls.items())
        _show_when_pointed_at(
            axes.axhspan(position - 0.5, position + 0.5, alpha=0), f"{class_names[int(index)]}{values}"
        )
    return figure


def spectrum_figure(deviations: Mapping[str, np.ndarray | None]) -> "Figure":
    """Singular values of the centred features, as shares of the largest; a cliff is a collapse to fewer dimensions.

    Args:
        deviations: by label, descending, each `[D]`.
    """
    figure, axes = new_figure((4.2, 2.8))
    drawn: dict[str, Curve] = {}
    for index, (label, values) in enumerate(deviations.items()):
        if values is None:
            continue
        if values[0] <= 0:
            axes.plot([], [], label=f"{shortened(label)} (constant)", **series_style(index))
            continue
        drawn[label] = np.arange(1, len(values) + 1), np.maximum(values / values[0], SMALLEST_SHARE_SHOWN)
        described = f"{shortened(label)} ({effective_rank(values):.1f} of {len(values)})"
        axes.plot(*drawn[label], label=described, linewidth=1.5, **series_style(index))
    if drawn:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(top=1.3)
    axes.minorticks_off()
    axes.set_xlabel("number of the principal axis (legend: effective rank)")
    axes.set_ylabel("share of the largest")
    legend_above(axes)
    most = max((len(values) for values, _ in drawn.values()), default=0)
    if most > 1:
        axes_numbers = np.unique(np.geomspace(1, most, MAX_HOVER_COLUMNS).round())
        _hover_columns(axes, axes_numbers, [f"axis {number:.0f}" for number in axes_numbers], drawn)
    return figure


def orbit_rings(angles_deg: np.ndarray, values: Mapping[str, np.ndarray | None], unit: str) -> "Figure":
    """A closed curve around the circle for each run: the mean over objects, with thin lines for single objects.

    Args:
        angles_deg: of the orbit, ascending, `[A]`.
        values: by label, each `[n_objects, A]`, 0 in the centre.
        unit: of the values, written at the rings: "°" or nothing.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_ring_figure((3.6, 3.9))
    around = np.deg2rad(np.append(angles_deg, angles_deg[0] + 360))
    drawn = {label: found for label, found in values.items() if found is not None}
    for index, label in enumerate(values):
        if label in drawn:
            closed = np.concatenate([drawn[label], drawn[label][:, :1]], axis=1)
            style = series_style(index)
            for curve in closed if len(drawn) <= MAX_RUNS_WITH_OBJECTS else ():
                axes.plot(around, curve, color=style["color"], linewidth=0.6, alpha=0.3)
            described = f"{shortened(label)} (mean {drawn[label].mean():.2g}{unit})"
            axes.plot(around, closed.mean(axis=0), label=described, linewidth=2, **style)
    largest = max(float(np.quantile(found, 0.98)) for found in drawn.values())
    radius = 1.05 * largest if largest > 0 else 1.0
    for place, angle in enumerate(angles_deg):
        means = "".join(f"\n{label}: {found[:, place].mean():.3g}{unit}" for label, found in drawn.items())
        (wedge,) = axes.bar(np.deg2rad(angle), radius, width=2 * np.pi / len(angles_deg), alpha=0)
        _show_when_pointed_at(wedge, f"turned by {angle:g}°{means}")
    axes.set_ylim(0, radius)
    axes.tick_params(colors=MUTED, labelsize=8, pad=1)
    ticks = [tick for tick in MaxNLocator(4).tick_values(0, radius) if 0 < tick < radius]
    axes.set_rgrids(ticks, [f"{tick:g}{unit}" for tick in ticks], angle=22, fontsize=8, color=MUTED)
    axes.set_xticks(np.deg2rad(np.arange(0, 360, 45)), [f"{angle}°" for angle in range(0, 360, 45)], color=MUTED)
    _make_room(figure, len(drawn))
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=1, fontsize=8, labelcolor=INK,
        frameon=False, handlelength=2.2,
    )  # fmt: skip
    return figure


def overview_figure(
    points: Mapping[str, tuple[float, float]], labels: tuple[str, str], baselines: tuple[float, float]
) -> "Figure":
    """One point a run, named beside it, and the baselines of both axes as lines."""
    figure, axes = new_figure((4.2, 3.0))
    axes.axvline(baselines[0], color=MUTED, linewidth=1, linestyle=DOTTED)
    axes.axhline(baselines[1], color=MUTED, linewidth=1, linestyle=DOTTED)
    middle = (min(x for x, _ in points.values()) + max(x for x, _ in points.values())) / 2
    for index, (run, (x, y)) in enumerate(points.items()):
        (point,) = axes.plot([x], [y], MARKERS[index % len(MARKERS)], color=SERIES[index % len(SERIES)], markersize=7)
        _show_when_pointed_at(point, f"{run}\n{labels[0]}: {x:.3f}\n{labels[1]}: {y:.3f}")
        left = x > middle
        axes.annotate(
            shortened(run), (x, y), (-7 if left else 7, 0), textcoords="offset points", fontsize=8.5, color=INK,
            ha="right" if left else "left", va="center",
        )  # fmt: skip
    axes.margins(0.12)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    return figure


def new_figure(size_inches: tuple[float, float]) -> "tuple[Figure, Axes]":
    """An empty figure in the style of the report: inches wide and high."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size_inches, layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8, which="both", length=2)
    axes.xaxis.label.set(color=MUTED, fontsize=9)
    axes.yaxis.label.set(color=MUTED, fontsize=9)
    return figure, axes


def new_ring_figure(size_inches: tuple[float, float]) -> "tuple[Figure, Any]":
    """An empty figure of a circle, with angles counter-clockwise from its top."""
    figure, cartesian = new_figure(size_inches)
    figure.delaxes(cartesian)
    axes: Any = figure.add_subplot(projection="polar")
    axes.patch.set_visible(False)
    axes.grid(color=LINE, linewidth=0.6)
    axes.spines["polar"].set_color(LINE)
    axes.set_theta_zero_location("N")
    return figure, axes


def plain_text(text: str) -> str:
    """Text for matplotlib: an unescaped dollar would begin a formula, a first underscore hide a label."""
    text = " ".join(visible(text).split()).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def shortened(name: str) -> str:
    """A name as matplotlib can write it, its middle left out if it is long."""
    if len(plain_text(name)) <= LONGEST_LABEL:
        return plain_text(name)
    half = (LONGEST_LABEL - 1) // 2
    return plain_text(f"{name[:half]}…{name[-half:]}")


def legend_above(axes: "Axes", handles: Iterable[Any] | None = None) -> None:
    """A legend over the axes, in two columns if they fit; the figure grows with its lines."""
    handles = list(axes.get_legend_handles_labels()[0] if handles is None else handles)
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    columns = 1 if longest > LONGEST_OF_TWO_LABELS or len(handles) < 2 else 2
    _make_room(axes.figure, -(-len(handles) // columns))
    axes.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, fontsize=8, labelcolor=INK,
        frameon=False, handlelength=1.4,
    )  # fmt: skip


def to_pixels(figure: "Figure") -> np.ndarray:
    """uint8 `[H, W, 3]` on white, for whatever shows no SVG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.patch.set(visible=True, facecolor="white")
    figure.set_dpi(PIXELS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def to_svg(figure: "Figure", name: str) -> str:
    """SVG that stands inside HTML: no XML header, metadata or namespaces, unique ids, the page's colours.

    Args:
        name: unique on the page.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    # Text stays text (searchable, and in the page's font); the salt makes the ids the same in every run.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "axes.unicode_minus": False}):
        # `savefig` would lay the figure out and draw it twice, for the same result.
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Inside HTML a style sheet, even that of a drawing, is one of the whole page; page.css has these rules.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::xlink)?|version|width|height)="[^"]*"', "", svg, count=5)
    svg = svg.replace("xlink:href=", "href=")
    pointed_at = rf'<g id="{HOVER}([^"]*)">\s*<path d="([^"]*)"[^>]*/>\s*</g>'
    svg = re.sub(pointed_at, r'<path class="hover" d="\2"><title>\1</title></path>', svg)
    svg = re.sub(rf'<g id="{HOVER}([^"]*)">', r'<g class="hover"><title>\1</title>', svg)
    svg = re.sub(r'id="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for color, variable in CSS_VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg.strip()


def _draw_shares(
    axes: "Axes", samples: Mapping[str, np.ndarray | None], baselines: Mapping[str, np.ndarray], bins: np.ndarray,
    heads: Sequence[str], unit: str,
) -> None:  # fmt: skip
    """The share of samples in each bin, in percent, as step lines; a bin shows its head and values when pointed at."""
    drawn: dict[str, Curve] = {}
    styles = [series_style(index) | {"linewidth": 1.5} for index in range(len(samples))]
    styles += [{"color": (MUTED, INK)[i % 2], "linestyle": DOTTED, "linewidth": 1.1} for i in range(len(baselines))]
    for (label, found), style in zip((*samples.items(), *baselines.items()), styles, strict=True):
        if found is not None:
            shares = np.histogram(found, bins)[0] / len(found) * 100
            axes.stairs(shares, bins, label=f"{shortened(label)} ({np.median(found):.0f}{unit})", **style)
            drawn[label] = (bins[1:] + bins[:-1]) / 2, shares
    axes.set_xlim(bins[0], bins[-1])
    axes.set_ylim(bottom=0)
    legend_above(axes)
    _hover_columns(axes, (bins[1:] + bins[:-1]) / 2, heads, drawn, " %")


def _hover_columns(
    axes: "Axes", places: np.ndarray, heads: Sequence[str], curves: Mapping[str, Curve], unit: str = ""
) -> None:
    """Columns around the places; pointed at, each shows every curve's value at the nearest of its points."""
    limits = axes.get_xlim()
    between = np.sqrt(places[1:] * places[:-1]) if axes.get_xscale() == "log" else (places[1:] + places[:-1]) / 2
    edges = [limits[0], *between, limits[1]]
    for place, head, (low, high) in zip(places, heads, pairwise(edges), strict=True):
        values = "".join(
            f"\n{label}: {values[np.abs(points - place).argmin()]:.3g}{unit}"
            for label, (points, values) in curves.items()
        )
        _show_when_pointed_at(axes.axvspan(low, high, alpha=0), f"{head}{values}")
    # The outer columns end at the limits, around which matplotlib would leave room again.
    axes.set_xlim(limits)


def _show_when_pointed_at(artist: Any, text: str) -> None:
    # Matplotlib writes no titles into SVG, but an id as it is: to_svg makes a title of it.
    lines = [" ".join(visible(line).split()) for line in text.split("\n")]
    artist.set(gid=HOVER + "\n".join(lines), zorder=10)


def _thinned(steps: np.ndarray, values: np.ndarray) -> Curve:
    """At most `MAX_CURVE_POINTS` points, each the mean of a run of neighbours."""
    count = -(-len(steps) // MAX_CURVE_POINTS)
    if count == 1:
        return steps, values
    starts = np.arange(0, len(steps), count)
    sizes = np.diff(np.append(starts, len(steps)))
    return np.add.reduceat(steps, starts) / sizes, np.add.reduceat(values, starts) / sizes


def _make_room(figure: Any, legend_lines: int) -> None:
    """A higher figure for a legend of many lines, so that the axes keep their size."""
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE_INCHES * max(0, legend_lines - 2))
