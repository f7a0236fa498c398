"""What `arrays.npz` holds of evaluated runs as figures with captions, for the page and for experiment trackers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_equi.evaluation.report.compared_runs import ComparedRun, class_names_of, read_compared_runs
from ssl_equi.evaluation.report.figures import (
    INK,
    MAX_BARS,
    SERIES,
    angle_histogram,
    new_figure,
    recall_bars,
    shortened,
    spectrum_figure,
    to_pixels,
    to_svg,
)
from ssl_equi.evaluation.report.page import captioned_figure
from ssl_equi.evaluation.report.part_choices import (
    EQUIVARIANT_FIRST,
    INVARIANT_FIRST,
    arrays_by_part,
    choose_parts,
    tasks_with,
)
from ssl_equi.evaluation.report.pictures import shrink, tile
from ssl_equi.evaluation.report.tables import in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Arrays that are there if, and only if, the views' poses are known, and objects have several views.
HAS_POSES, HAS_SEVERAL_VIEWS = "map_angle_deg", "views_per_object"


@dataclass(frozen=True)
class Drawing:
    """A figure, its caption, and the name that it has outside of the page, such as `recall/classification`."""

    name: str
    caption: str
    figure: "Figure"

    def html(self, name_on_page: str) -> str:
        """The figure with its caption, as a block of the page."""
        return captioned_figure(to_svg(self.figure, name_on_page), self.caption)


@dataclass(frozen=True)
class Picture:
    """Pixels uint8 `[H, W, 3]` and what they show."""

    pixels: np.ndarray
    caption: str


def error_drawings(runs: Sequence[ComparedRun]) -> list[Drawing]:
    """Histograms of errors in degrees, of several runs or of one run's parts, beside the baselines."""
    drawings = []
    for task in tasks_with(runs, "angle_errors_deg"):
        baselines: dict[str, np.ndarray] = {}
        for parts in arrays_by_part(runs, f"constant_angle_errors_deg/{task}/").values():
            if parts:
                baselines["constant"] = next(iter(parts.values()))
        if len(runs) == 1:
            (randoms,) = arrays_by_part(runs, f"random_angle_errors_deg/{task}/").values()
            shown = "all" if "all" in randoms else next(iter(randoms), "")
            baselines |= {f"random encoder, {part}": values for part, values in randoms.items() if part == shown}
        for choice in choose_parts(arrays_by_part(runs, f"angle_errors_deg/{task}/"), EQUIVARIANT_FIRST):
            caption = choice.caption(f"{in_words(task)}, {choice.title}: error over the evaluated samples")
            drawings.append(Drawing(f"angle_errors/{task}", caption, angle_histogram(choice.shown, baselines)))
    return drawings


def recall_drawings(runs: Sequence[ComparedRun]) -> list[Drawing]:
    """Recall of each class; nothing where runs were judged on other numbers of classes."""
    drawings = []
    for task in tasks_with(runs, "per_class_recall"):
        for choice in choose_parts(arrays_by_part(runs, f"per_class_recall/{task}/"), INVARIANT_FIRST):
            present = {label: recall for label, recall in choice.shown.items() if recall is not None}
            sizes = {len(recall) for recall in present.values()}
            if len(sizes) > 1:
                continue
            num_classes = int(np.isfinite(next(iter(present.values()))).sum())
            which = "each class" if num_classes <= MAX_BARS else f"{MAX_BARS} of {num_classes} classes, best to worst,"
            arrays = next(run.arrays for run in runs if "class_names" in run.arrays or run is runs[-1])
            caption = choice.caption(f"{in_words(task)}, {choice.title}: recall of {which} on unseen objects")
            figure = recall_bars(present, class_names_of(arrays, range(sizes.pop())))
            drawings.append(Drawing(f"recall/{task}", caption, figure))
    return drawings


def spectrum_drawings(runs: Sequence[ComparedRun]) -> list[Drawing]:
    """Singular values of the features."""
    # Those of a task, TASK/PART, are of features that are not centred: another spectrum, whose rank is `rankme`.
    found = {
        run: {part: values for part, values in parts.items() if "/" not in part}
        for run, parts in arrays_by_part(runs, "singular_values/").items()
    }
    drawings = []
    for choice in choose_parts(found, ("all",)):
        about = f"Singular values of the centred features, {choice.title}; a cliff is a collapse to fewer dimensions"
        drawings.append(Drawing("singular_values", choice.caption(about), spectrum_figure(choice.shown)))
    return drawings


def sheet_of_views(arrays: Mapping[str, np.ndarray]) -> Picture:
    """The evaluated views in rows, with what the rows are."""
    sheet = arrays["view_sheet"]
    rows, columns = sheet.shape[:2]
    caption = f"{rows * columns} unseen images, as the encoder is given them"
    if HAS_POSES in arrays or HAS_SEVERAL_VIEWS in arrays:
        caption = f"{columns} views of each of {rows} unseen objects, one object a row"
    return Picture(tile(shrink(sheet)), caption)


def pictures_of_run(folder: Path) -> dict[str, Picture]:
    """What a tracker shows of a finished run, by name: views, nearest neighbours, errors, recalls and spectrum.

    Raises UserError for a folder without intact results.
    """
    (run,) = runs = read_compared_runs([folder])
    pictures = {"views": sheet_of_views(run.arrays)} if "view_sheet" in run.arrays else {}
    for part, images in arrays_by_part(runs, "neighbour_images/")[run.name].items():
        figure = _strips_figure(images, run.arrays[f"neighbour_captions/{part}"])
        caption = f"Framed: the query. Then the nearest others by part {part} (cosine). ✓: same class"
        pictures[f"nearest_neighbours/{part}"] = Picture(to_pixels(figure), caption)
    for drawing in (*error_drawings(runs), *recall_drawings(runs), *spectrum_drawings(runs)):
        pictures[drawing.name] = Picture(to_pixels(drawing.figure), drawing.caption)
    return pictures


def _strips_figure(pictures: np.ndarray, captions: np.ndarray) -> "Figure":
    """Rows of pictures with a caption under each, and a frame around the first of each row.

    Args:
        pictures: uint8 `[rows, columns, H, W, 3]`.
        captions: text `[rows, columns]`.
    """
    from matplotlib.patches import Rectangle

    rows, columns, height, width, _ = pictures.shape
    wide, high = 1.06, height / width + 0.24  # of a cell, where a picture's width is 1
    figure, axes = new_figure((0.8 * wide * columns, 0.8 * high * rows))
    axes.set_axis_off()
    for row, column in np.ndindex(rows, columns):
        left, top = column * wide, row * high
        bottom = top + height / width
        axes.imshow(pictures[row, column], extent=(left, left + 1, bottom, top))
        caption = shortened(str(captions[row, column]))
        axes.text(left + 0.5, bottom + 0.03, caption, ha="center", va="top", fontsize=7, color=INK)
        if column == 0:
            axes.add_patch(Rectangle((left, top), 1, height / width, fill=False, edgecolor=SERIES[0], linewidth=2.5))
    axes.set_xlim(-0.03, columns * wide)
    axes.set_ylim(rows * high, -0.03)
    return figure
