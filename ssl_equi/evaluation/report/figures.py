"""Figures of the report: inline SVG whose colours follow the page (light or dark), and small inline JPEGs.

Matplotlib draws with marker colours, which are then replaced by the page's CSS variables. Figures are small (they are
shown side by side, or one below the other on a phone) so that their text stays readable at a phone's width.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_equi.errors import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE = "#010203", "#040506", "#070809"
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05")
CSS_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line"} | {
    color: f"--series-{index + 1}" for index, color in enumerate(SERIES)
}
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (2, 1)))
MARKERS = "osD^vPX"
MAX_CURVE_POINTS = 300
MAX_IMAGE_SIDE = 96
MAX_BARS = 60


def curve_figure(
    name: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], *, y_label: str, small: bool = False
) -> str:
    """Lines over training steps, `{label: (steps, values)}`; a logarithmic axis if values span two decades."""
    figure, axes = new_figure((2.3, 1.5) if small else (4.2, 2.6))
    for color, dashes, (label, (steps, values)) in zip(_cycle(SERIES), _cycle(DASHES), curves.items()):
        if len(steps):
            steps, values = _thinned(steps, values)
            axes.plot(steps, values, color=color, linestyle=dashes, linewidth=1.4, label=plain_text(label))
    all_values = np.concatenate([values for _, values in curves.values()])
    if all_values.min() > 0 and all_values.max() > 100 * all_values.min():
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        axes.yaxis.get_offset_text().set(color=MUTED, fontsize=8)
    axes.set_xlabel("" if small else "step")
    axes.set_ylabel("" if small else plain_text(y_label))
    axes.locator_params(axis="x", nbins=3 if small else 6)
    if small:
        axes.set_title(plain_text(y_label), fontsize=9, color=INK, loc="left")
    if len(curves) > 1:
        plain_legend(axes)
    return to_svg(figure, name)


def angle_histogram(
    name: str,
    errors_deg: Mapping[str, np.ndarray],
    random_errors_deg: Mapping[str, np.ndarray],
    constant_errors_deg: np.ndarray | None,
) -> str:
    """Share of pairs by rotation error: a filled step for each part, and the two baselines as outlines."""
    figure, axes = new_figure((4.2, 2.8))
    bins = np.linspace(0, 180, 37)

    def draw(errors: np.ndarray, color: str, label: str, **style: Any) -> None:
        shares = np.histogram(errors, bins)[0] / len(errors) * 100
        axes.stairs(shares, bins, color=color, label=f"{label} (median {np.median(errors):.0f}°)", **style)

    for color, (part, errors) in zip(_cycle(SERIES), errors_deg.items()):
        draw(errors, color, part, linewidth=1.6)
    if random_errors_deg:
        part = "all" if "all" in random_errors_deg else next(iter(random_errors_deg))
        draw(random_errors_deg[part], INK, f"random encoder, {part}", linewidth=1, linestyle=(0, (1, 1.5)))
    if constant_errors_deg is not None:
        draw(constant_errors_deg, MUTED, "constant", linewidth=1.2, linestyle="dashed")
    axes.set_xlabel("rotation error in degrees")
    axes.set_ylabel("pairs in %")
    axes.set_xlim(0, 180)
    axes.set_xticks(range(0, 181, 30))
    plain_legend(axes)
    return to_svg(figure, name)


def recall_bars(name: str, recalls: Mapping[str, np.ndarray], class_names: Mapping[int, str]) -> str:
    """Recall of each class, best first: bars for the first part, dots for the others; absent classes are left out.

    Of more than `MAX_BARS` classes so many are drawn, evenly spread from the best to the worst.
    """
    first_part, *other_parts = recalls
    present = np.flatnonzero(~np.isnan(recalls[first_part]))
    order = present[np.argsort(-recalls[first_part][present], kind="stable")]
    if len(order) > MAX_BARS:
        order = order[np.linspace(0, len(order) - 1, MAX_BARS).round().astype(int)]
    figure, axes = new_figure((4.2, 0.7 + 0.19 * len(order)))
    positions = np.arange(len(order))
    values = 100 * recalls[first_part][order]
    axes.barh(positions, values, color=SERIES[0], height=0.62, label=plain_text(first_part), alpha=0.75)
    for color, marker, part in zip(_cycle(SERIES[1:]), _cycle("oDs^"), other_parts):
        axes.plot(100 * recalls[part][order], positions, marker, color=color, markersize=4, label=plain_text(part))
    axes.set_yticks(positions, [plain_text(class_names[int(index)]) for index in order], fontsize=8)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 102)
    axes.set_xlabel("recall in %")
    axes.grid(axis="y", visible=False)
    if other_parts:
        # Bars come after lines in matplotlib's own order.
        order_of_parts = [plain_text(part) for part in recalls]
        handles = sorted(
            axes.get_legend_handles_labels()[0], key=lambda handle: order_of_parts.index(str(handle.get_label()))
        )
        plain_legend(axes, handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=1 + len(other_parts))
    return to_svg(figure, name)


def image_data_uri(image: np.ndarray, quality: int = 88) -> str:
    """uint8 `[H, W, 3]` as a `data:` URI (JPEG)."""
    import simplejpeg

    data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorsubsampling="444")
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def shrink(images: np.ndarray, max_side: int = MAX_IMAGE_SIDE) -> np.ndarray:
    """uint8 `[..., H, W, 3]` averaged over whole blocks of pixels until its longer side is at most `max_side`."""
    height, width = images.shape[-3:-1]
    factor = -(-max(height, width) // max_side)
    if factor == 1:
        return images
    images = images[..., : height // factor * factor, : width // factor * factor, :]
    blocks = images.reshape(*images.shape[:-3], height // factor, factor, width // factor, factor, 3)
    return blocks.mean(axis=(-4, -2)).round().astype(np.uint8)


def tile(images: np.ndarray, gap: int = 2) -> np.ndarray:
    """uint8 `[rows, columns, H, W, 3]` as one image with mid-grey gaps."""
    rows, columns, height, width, _ = images.shape
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 128, dtype=np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + gap), column * (width + gap)
            sheet[top : top + height, left : left + width] = images[row, column]
    return sheet


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


def plain_text(text: str) -> str:
    """Text for matplotlib: an unescaped dollar would begin a formula, a first underscore hide a label."""
    text = " ".join(visible(text).split()).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def plain_legend(axes: "Axes", **placement: Any) -> None:
    """A small legend without a frame."""
    axes.legend(fontsize=8, labelcolor=INK, frameon=False, handlelength=1.4, **placement)


def _cycle(values: Sequence[Any]) -> list[Any]:
    """The values again and again; long enough for any number of curves that a figure can show."""
    return list(values) * 50


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_CURVE_POINTS` points, each the mean of a run of neighbours."""
    count = -(-len(steps) // MAX_CURVE_POINTS)
    if count == 1:
        return steps, values
    starts = np.arange(0, len(steps), count)
    sizes = np.diff(np.append(starts, len(steps)))
    return np.add.reduceat(steps, starts) / sizes, np.add.reduceat(values, starts) / sizes


def to_svg(figure: "Figure", name: str) -> str:
    """SVG that stands inside HTML: no XML header, metadata or namespaces, unique ids, the page's colours."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    # Text stays text (searchable, and in the page's font); the salt makes the ids the same in every run.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "axes.unicode_minus": False}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", svg, count=3)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'id="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    for color, variable in CSS_VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg.strip()
