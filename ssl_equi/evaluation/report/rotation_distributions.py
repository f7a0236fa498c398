"""Distributions over rotations as maps of the sphere, in the manner of Murphy et al. (ICML 2021)."""

from collections.abc import Sequence

import numpy as np

from ssl_equi.evaluation.report.compared_runs import ComparedRun
from ssl_equi.evaluation.report.feature_map import DOT, drawn_marks
from ssl_equi.evaluation.report.page import captioned_figure, escaped, figure_grid, page_section
from ssl_equi.evaluation.report.part_choices import EQUIVARIANT_FIRST, arrays_by_part, choose_parts, tasks_with
from ssl_equi.evaluation.report.tables import in_words

WIDTH, HEIGHT, MARGIN = 300, 150, 10  # of a map, in its own units
NUM_HUES = 12  # one path for each, which keeps the page small
NEWTON_STEPS = 12


def distribution_section(runs: Sequence[ComparedRun]) -> str:
    """A few samples' distributions of every run, one map each."""
    blocks: list[str] = []
    for task in tasks_with(runs, "rotation_density"):
        true = arrays_by_part(runs, f"rotation_truth/{task}/")
        found = {
            run: {part: list(zip(rotations, true[run][part], strict=True)) for part, rotations in parts.items()}
            for run, parts in arrays_by_part(runs, f"rotation_density/{task}/").items()
        }
        for choice in choose_parts(found, EQUIVARIANT_FIRST):
            blocks.append(f"<h3>{escaped(in_words(task))}, {escaped(choice.caption(choice.title))}</h3>")
            for label, samples in choice.shown.items():
                maps = [
                    captioned_figure(distribution_map(*sample), f"{label}, number {number}")
                    for number, sample in enumerate(samples or [], start=1)
                ]
                blocks.append(figure_grid(maps, "maps"))
    about = (
        '<p class="muted">Each map shows one view or pair: rotations drawn from its distribution, at the direction to '
        "which they turn the z axis (0° in the centre), in the colour of their turn about it. Ring: the true rotation. "
        "Several heaps of one size belong to an object that looks the same under several rotations.</p>"
    )
    return page_section("distributions", "Distributions over rotations", about, *blocks) if blocks else ""


def distribution_map(quats_xyzw: np.ndarray, true_xyzw: np.ndarray) -> str:
    """Rotations `[n, 4]` as dots on Mollweide's equal-area map of the sphere, and the true one `[4]` as a ring."""
    places, hues = _places(quats_xyzw), _hues(quats_xyzw)
    ellipse = (
        f'<ellipse cx="{WIDTH / 2}" cy="{HEIGHT / 2}" rx="{WIDTH / 2 - MARGIN}" ry="{HEIGHT / 2 - MARGIN / 2}" '
        'fill="none" stroke="var(--line)"/>'
    )
    dots = [drawn_marks(places[hues == hue], DOT, _colour(hue)) for hue in np.unique(hues)]
    ((x, y),), (hue,) = _places(true_xyzw[None]), _hues(true_xyzw[None])
    # A wide ring of the page's ink below one of the hue is seen on dots of any colour.
    rings = "".join(
        f'<circle cx="{x:.0f}" cy="{y:.0f}" r="7" fill="none" stroke="{colour}" stroke-width="{width}"/>'
        for colour, width in (("var(--ink)", 4), (_colour(hue), 2))
    )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}">{ellipse}{"".join(dots)}{rings}</svg>'


def mollweide(directions: np.ndarray) -> np.ndarray:
    """Unit vectors `[n, 3]` -> `[n, 2]` in [-1, 1], x by the longitude (0 in the middle), y by the latitude.

    The auxiliary angle t solves 2 t + sin 2 t = pi sin(latitude).
    """
    longitude = np.arctan2(directions[:, 1], directions[:, 0])
    height = np.clip(directions[:, 2], -1, 1)
    angle = np.arcsin(height)
    for _ in range(NEWTON_STEPS):
        slope = np.maximum(2 + 2 * np.cos(2 * angle), 1e-9)  # 0 at the poles, where the start is right
        angle = angle - (2 * angle + np.sin(2 * angle) - np.pi * height) / slope
        angle = np.clip(angle, -np.pi / 2, np.pi / 2)
    return np.stack([longitude / np.pi * np.cos(angle), np.sin(angle)], axis=1)


def _places(quats_xyzw: np.ndarray) -> np.ndarray:
    """Where a map shows the directions to which rotations `[n, 4]` turn the z axis."""
    x, y, z, w = quats_xyzw.astype(np.float64).T
    directions = np.stack([2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)], axis=1)
    size = np.array([WIDTH / 2 - MARGIN, -(HEIGHT / 2 - MARGIN / 2)])
    return np.array([WIDTH / 2, HEIGHT / 2]) + mollweide(directions) * size


def _hues(quats_xyzw: np.ndarray) -> np.ndarray:
    """Number of the hue of each rotation's turn about the z axis, which it makes before it tilts that axis."""
    turn = 2 * np.arctan2(quats_xyzw[:, 2], quats_xyzw[:, 3])
    return np.floor(turn / (2 * np.pi) * NUM_HUES + 0.5).astype(int) % NUM_HUES


def _colour(hue: int) -> str:
    return f"hsl({360 * hue // NUM_HUES} 70% 50%)"
