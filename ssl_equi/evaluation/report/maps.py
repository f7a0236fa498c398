"""Maps of the features as hand-written SVG: one path for all points of a colour, which keeps the page small."""

from collections.abc import Mapping, Sequence

import numpy as np

from ssl_equi.evaluation.report.page import escaped

SIDE = 300  # of the drawing, in its own units
MARGIN = 8
MAX_CLASSES = 10  # are coloured; the points of all others are grey
ANGLE_STEP_DEG = 30
NUM_RAMP_COLOURS = 6
DOT = "h.1"  # a line of hardly any length, whose round ends are a disc: the shortest path for a point
# Paths of closed shapes around the present point, of about the same area.
SHAPES = (
    DOT,
    "m-2.4-2.4h4.8v4.8h-4.8z",
    "m0-3.4l3 5.6h-6z",
    "m0-3.3l3.3 3.3l-3.3 3.3l-3.3-3.3z",
)
GREY = "var(--line)"


def class_colour(place: int) -> str:
    """CSS colour of the class at this place of the legend."""
    return f"var(--series-{place % 5 + 1})"


def class_map(coordinates: np.ndarray, labels: np.ndarray, shown: Sequence[int]) -> str:
    """The map `[n, 2]` with colours and shapes for the classes `shown`; all other points are grey dots."""
    points = _scaled(coordinates)
    others = ~np.isin(labels, list(shown))
    paths = [_path(points[others], SHAPES[0], GREY)]
    paths += [
        _path(points[labels == label], SHAPES[place % len(SHAPES)], class_colour(place))
        for place, label in enumerate(shown)
    ]
    return _svg(paths)


def angle_map(coordinates: np.ndarray, angle_deg: np.ndarray) -> str:
    """The map `[n, 2]` with a ramp of colours for the angle `[n]` of each view's rotation, 0 to 180 degrees."""
    points = _scaled(coordinates)
    bins = np.clip(angle_deg // ANGLE_STEP_DEG, 0, NUM_RAMP_COLOURS - 1).astype(int)
    return _svg([_path(points[bins == index], SHAPES[0], f"var(--ramp-{index + 1})") for index in range(6)])


def shown_classes(labels: np.ndarray) -> list[int]:
    """The classes that get a colour: all, or `MAX_CLASSES` spread evenly over those that are present."""
    present = np.unique(labels)
    chosen = np.linspace(0, len(present) - 1, min(MAX_CLASSES, len(present))).round().astype(int)
    return [int(label) for label in present[chosen]]


def class_legend(shown: Sequence[int], class_names: Mapping[int, str], num_classes: int) -> str:
    """The coloured classes with their shapes, as HTML."""
    items = [
        _key(SHAPES[place % len(SHAPES)], class_colour(place), class_names[label]) for place, label in enumerate(shown)
    ]
    if num_classes > len(shown):
        items.append(_key(SHAPES[0], GREY, f"{num_classes - len(shown)} other classes"))
    return f'<p class="keys">{"".join(items)}</p>'


def angle_legend() -> str:
    """The ramp of angles, as HTML."""
    items = [
        _key(SHAPES[0], f"var(--ramp-{index + 1})", f"{index * ANGLE_STEP_DEG} to {(index + 1) * ANGLE_STEP_DEG}°")
        for index in range(NUM_RAMP_COLOURS)
    ]
    return f'<p class="keys">{"".join(items)}</p>'


def _key(shape: str, colour: str, text: str) -> str:
    drawing = f'<svg viewBox="-5 -5 10 10" aria-hidden="true">{_drawn(f"M0 0{shape}", shape, colour)}</svg>'
    return f'<span class="key">{drawing}{escaped(text)}</span> '


def _scaled(coordinates: np.ndarray) -> np.ndarray:
    """Into the drawing, with the same scale on both axes; the second axis points upwards."""
    low, high = coordinates.min(axis=0), coordinates.max(axis=0)
    extent = max(float((high - low).max()), np.finfo(np.float64).tiny)
    centred = (coordinates.astype(np.float64) - (low + high) / 2) / extent
    return SIDE / 2 + (SIDE - 2 * MARGIN) * centred * np.array([1, -1])


def _path(points: np.ndarray, shape: str, colour: str) -> str:
    if not len(points):
        return ""
    data = "".join(f"M{x:.0f} {y:.0f}{shape}" for x, y in points)
    return _drawn(data, shape, colour)


def _drawn(data: str, shape: str, colour: str) -> str:
    if shape == DOT:
        # As style, because matplotlib's figures bring a rule for the whole page, which is stronger than attributes.
        return f'<path d="{data}" stroke="{colour}" stroke-width="5" style="stroke-linecap:round" opacity=".8"/>'
    return f'<path d="{data}" fill="{colour}" opacity=".8"/>'


def _svg(paths: Sequence[str]) -> str:
    frame = f'<rect x=".5" y=".5" width="{SIDE - 1}" height="{SIDE - 1}" fill="none" stroke="{GREY}"/>'
    return f'<svg viewBox="0 0 {SIDE} {SIDE}">{frame}{"".join(paths)}</svg>'
