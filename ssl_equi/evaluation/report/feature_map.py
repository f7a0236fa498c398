"""Maps of the features in two dimensions, from the features to the drawing, and their singular values.

The map's input are principal components (Pearson, 1901), whose first two are the plain map; t-SNE (van der Maaten and
Hinton, JMLR 2008) starts from them. A map is hand-written SVG with one path for all points of a colour, which is small.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ssl_equi.errors import UserError
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.report.figures import series_colour
from ssl_equi.evaluation.report.page import escaped
from ssl_equi.evaluation.samples import evenly_spread, feature_matrix
from ssl_equi.geometry.rotations import rotation_angle

MAX_POINTS = 1500
MAX_COMPONENTS = 50
CONSTANT = 1e-6  # smallest singular value that counts, as a share of the features' own size
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

MapMethod = Literal["pca", "tsne"]
Mark = tuple[str, str, str]  # a shape, its colour and what it stands for


def map_arrays(cache: FeatureCache, parts: Mapping[str, slice], seed: int = 0) -> dict[str, np.ndarray]:
    """What the report needs for maps and spectra, by the keys of an evaluation's `arrays.npz`.

    Args:
        cache: every view of the evaluated split.
        parts: columns of the features.
        seed: of the views that are drawn where there are more than `MAX_POINTS`; the same for all parts and encoders.

    Returns:
        `map_labels` int64 `[n]`, n <= 1500 views; `map_angle_deg` float32 `[n]`, the angle of each view's rotation
        from the upright pose, absent where poses are unknown; `map_features/PART` float32 `[n, k]`, the first
        k <= 50 principal components, no columns if the part is constant; `singular_values/PART` float32 `[<= D]`, the
        standard deviations of all views' features along their principal axes, descending.
    """
    drawn = np.arange(cache.num_images)
    if len(drawn) > MAX_POINTS:
        drawn = np.sort(np.random.default_rng(seed).permutation(len(drawn))[:MAX_POINTS])
    arrays = {"map_labels": cache.labels.cpu().numpy()[cache.has_view.nonzero()[:, 0].cpu().numpy()[drawn]]}
    if cache.quats_xyzw is not None:
        quats_xyzw = cache.rows(cache.quats_xyzw).cpu()[torch.from_numpy(drawn)].double()
        arrays["map_angle_deg"] = torch.rad2deg(rotation_angle(quats_xyzw)).float().numpy()
    for part, columns in parts.items():
        deviations, components = _principal_components(feature_matrix(cache.part(columns)).cpu())
        arrays[f"singular_values/{part}"] = deviations.float().numpy()
        arrays[f"map_features/{part}"] = components[torch.from_numpy(drawn)].float().numpy()
    return arrays


def map_coordinates(components: np.ndarray, method: MapMethod) -> np.ndarray:
    """Where the points stand on the map, `[n, 2]`, from one or more principal components `[n, k]`.

    A second axis of zeros is added if there is one component only. Raises UserError if t-SNE is asked for and
    scikit-learn is not installed.
    """
    if method == "pca" or components.shape[1] == 1 or len(components) < 5:
        return np.pad(components[:, :2], ((0, 0), (0, max(0, 2 - components.shape[1]))))
    try:
        from sklearn import manifold
    except ImportError as error:
        raise UserError("t-SNE needs scikit-learn: pip install 'ssl-equi[maps]', or take --map pca") from error
    # Below a third of the points, as scikit-learn asks; the start is the map by principal components.
    perplexity = min(30.0, (len(components) - 1) / 3)
    return manifold.TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(components)


def class_groups(labels: np.ndarray, class_names: Mapping[int, str]) -> tuple[np.ndarray, list[Mark]]:
    """The place of each point's mark `[n]`, and the marks: of the named classes, after one of all others if any."""
    others: list[Mark] = [(DOT, GREY, "another class")] if set(labels.tolist()) - set(class_names) else []
    named = [(SHAPES[n % len(SHAPES)], series_colour(n), name) for n, name in enumerate(class_names.values())]
    places = {label: place for place, label in enumerate(class_names, start=len(others))}
    return np.array([places.get(label, 0) for label in labels.tolist()]), [*others, *named]


def angle_groups(angle_deg: np.ndarray) -> tuple[np.ndarray, list[Mark]]:
    """The same by the angle of each view's rotation, in steps from 0 to 180 degrees."""
    groups = np.clip(angle_deg // ANGLE_STEP_DEG, 0, NUM_RAMP_COLOURS - 1).astype(int)
    steps = [index * ANGLE_STEP_DEG for index in range(NUM_RAMP_COLOURS)]
    return groups, [(DOT, f"var(--ramp-{n})", f"{low} to {low + ANGLE_STEP_DEG}°") for n, low in enumerate(steps, 1)]


def shown_classes(labels: np.ndarray) -> list[int]:
    """The classes that get a colour: all, or `MAX_CLASSES` spread evenly over those that are present."""
    present = np.unique(labels)
    return [int(label) for label in present[evenly_spread(len(present), MAX_CLASSES)]]


def drawn_map(coordinates: np.ndarray, groups: np.ndarray, marks: Sequence[Mark]) -> str:
    """SVG of points `[n, 2]` with the marks of their groups; both axes have one scale, the second points upwards."""
    low, high = coordinates.min(axis=0), coordinates.max(axis=0)
    extent = max(float((high - low).max()), np.finfo(np.float64).tiny)
    centred = (coordinates.astype(np.float64) - (low + high) / 2) / extent
    points = SIDE / 2 + (SIDE - 2 * MARGIN) * centred * np.array([1, -1])
    frame = f'<rect x=".5" y=".5" width="{SIDE - 1}" height="{SIDE - 1}" fill="none" stroke="{GREY}"/>'
    paths = [drawn_marks(points[groups == place], *mark) for place, mark in enumerate(marks)]
    return f'<svg viewBox="0 0 {SIDE} {SIDE}">{frame}{"".join(paths)}</svg>'


def map_legend(marks: Sequence[Mark]) -> str:
    """The marks and their names, as HTML."""
    items = []
    for shape, colour, name in marks:
        drawing = f'<svg viewBox="-5 -5 10 10" aria-hidden="true">{drawn_marks(np.zeros((1, 2)), shape, colour)}</svg>'
        items.append(f'<span class="key">{drawing}{escaped(name)}</span> ')
    return f'<p class="keys">{"".join(items)}</p>'


def drawn_marks(points: np.ndarray, shape: str, colour: str, name: str = "") -> str:
    """One path for marks at the points `[n, 2]`, which shows their name when it is pointed at."""
    if not len(points):
        return ""
    data = "".join(f"M{x:.0f} {y:.0f}{shape}" for x, y in points)
    # The end of a line has no area, so a dot is drawn by its stroke. page.css makes all other ends of lines butts.
    drawn = f'stroke="{colour}" stroke-width="5" style="stroke-linecap:round"' if shape == DOT else f'fill="{colour}"'
    title = f' class="hover"><title>{escaped(name)}</title></path>' if name else "/>"
    return f'<path d="{data}" {drawn} opacity=".8"{title}'


def _principal_components(features: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations `[D]` along the principal axes, and coordinates `[N, k]` on those that vary, float64.

    Of the two directions of an axis the one is taken whose largest entry is positive.
    """
    features = features.double()
    centred = features - features.mean(dim=0)
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    deviations = variances.flip(0).clamp(min=0).sqrt()[: len(centred)]
    size = float(features.square().sum(dim=1).mean().sqrt())
    count = min(MAX_COMPONENTS, int((deviations > CONSTANT * size).sum()))
    chosen = axes.flip(1)[:, :count]
    largest = chosen.gather(0, chosen.abs().argmax(dim=0, keepdim=True))
    return deviations, centred @ (chosen * largest.sign())
