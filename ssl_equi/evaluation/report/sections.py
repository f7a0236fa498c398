"""Sections of a report that are drawn from what `arrays.npz` holds, of one run or of several over each other."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ssl_equi.evaluation.report.compared_runs import ComparedRun, class_names_of
from ssl_equi.evaluation.report.comparison import Row
from ssl_equi.evaluation.report.drawings import (
    HAS_POSES,
    HAS_SEVERAL_VIEWS,
    error_drawings,
    recall_drawings,
    sheet_of_views,
    spectrum_drawings,
)
from ssl_equi.evaluation.report.feature_map import (
    MapMethod,
    angle_groups,
    class_groups,
    drawn_map,
    map_coordinates,
    map_legend,
    shown_classes,
)
from ssl_equi.evaluation.report.figures import orbit_rings, overview_figure, rank_histogram, to_svg
from ssl_equi.evaluation.report.page import captioned_figure, escaped, figure_grid, page_section, picture_strip
from ssl_equi.evaluation.report.part_choices import (
    EQUIVARIANT_FIRST,
    INVARIANT_FIRST,
    arrays_by_part,
    choose_parts,
    tasks_with,
)
from ssl_equi.evaluation.report.pictures import image_data_uri
from ssl_equi.evaluation.report.tables import answers_of_meant_parts, in_words
from ssl_equi.evaluation.tasks.latents import RELATIVE

MAX_RETRIEVAL_STRIPS = 4  # of each run
NEIGHBOUR_STRIPS_OF_A_RUN = 3  # of each part, where several runs are compared
NONE = np.zeros(0)
MAP_NAMES: dict[MapMethod, str] = {"pca": "the first two principal components", "tsne": "t-SNE"}


def overview_section(runs: Sequence[ComparedRun], rows: Sequence[Row]) -> str:
    """What stays (the class) against what changes, if two runs or more have both numbers and these can be compared.

    What changes is the rotation between two views, or the first latent of the data's own whose change was asked for.
    """
    relative = list(dict.fromkeys(row.task for row in rows if row.task.startswith(RELATIVE)))
    changing = next((task for task in ("relative_rotation", *relative) if task in relative), "")
    comparable = [row for row in rows if not row.why_not_ranked or "not meant to" in row.why_not_ranked]
    stays = answers_of_meant_parts(comparable, "classification", "top1")
    changes = answers_of_meant_parts(comparable, changing, "r2_uniform")
    both = {index: run.name for index, run in enumerate(runs) if index in stays and index in changes}
    conditions = [[found[index][1].conditions for index in both] for found in (stays, changes)]
    if len(both) < 2 or any(others != same[0] for same in conditions for others in same):
        return ""
    what = changing.removeprefix(RELATIVE)
    points = {name: (stays[index][1].mean, changes[index][1].mean) for index, name in both.items()}
    first = next(iter(both))
    baselines = (stays[first][1].baseline, changes[first][1].baseline)
    figure = overview_figure(points, ("class (top1)", f"{what} (r2_uniform)"), baselines)
    used = "; ".join(
        f"{name}: class from {stays[index][0].part}, {what} from {changes[index][0].part}"
        for index, name in both.items()
    )
    caption = (
        f"What stays and what changes: up and to the right is better. Dotted: baselines without an image. Parts: {used}"
    )
    drawing = captioned_figure(to_svg(figure, "overview"), caption)
    return page_section("overview", "At a glance", figure_grid([drawing], "single"))


def errors_section(runs: Sequence[ComparedRun]) -> str:
    """Errors in degrees and recalls, of several runs or of one run's parts."""
    drawings = [*error_drawings(runs), *recall_drawings(runs)]
    figures = [drawing.html(f"errors-{number}") for number, drawing in enumerate(drawings)]
    return page_section(
        "errors", "Where they are right" if len(runs) > 1 else "Where it is right", figure_grid(figures)
    )


def retrieval_section(runs: Sequence[ComparedRun]) -> str:
    """Histograms of the rank of the true view, with chance, and strips of what each prediction retrieves."""
    figures: list[str] = []
    strips: list[str] = []
    for task in tasks_with(runs, "retrieval_ranks"):
        for size, found in _ranks_by_gallery(runs, task).items():
            for choice in choose_parts(found, EQUIVARIANT_FIRST):
                svg = to_svg(rank_histogram(choice.shown, size), f"ranks-{len(figures)}")
                about = f"{in_words(task)}, {choice.title}: rank of the view asked for, 1: the nearest"
                figures.append(choice.figure(svg, about))
    for task in tasks_with(runs, "retrieval_images"):
        for run in runs:
            for part in arrays_by_part([run], f"retrieval_images/{task}/")[run.name]:
                named = f"{run.name}, " if len(runs) > 1 else ""
                heading = f"<h3>{escaped(named)}{escaped(task)}, part <code>{escaped(part)}</code></h3>"
                strips.append(f"<div>{heading}{_strips(run, f'{task}/{part}')}</div>")
    explained = (
        '<p class="muted">Framed: the view that the prediction starts from. Then the view asked for, with its rank, '
        "and the views nearest to the prediction; ✓ is the one asked for.</p>"
    )
    shown = explained + figure_grid(strips) if strips else ""
    return page_section("retrieval", "Retrieval by the predictor", figure_grid(figures), shown)


def maps_section(runs: Sequence[ComparedRun], method: MapMethod) -> str:
    """A map of each run's and part's features, once coloured by class and once by the angle of the view's rotation."""
    cells, angle_legend = [], ""
    legends: dict[str, None] = {}  # one for all runs that were judged on the same classes
    for run in runs:
        labels = run.arrays.get("map_labels", NONE)
        classes, class_marks = class_groups(labels, class_names_of(run.arrays, shown_classes(labels)))
        parts = list(arrays_by_part([run], "map_features/")[run.name])
        for part in [part for part in ("inv", "equi") if part in parts] or parts:
            name = f"{run.name}, part {part}" if len(runs) > 1 else f"part {part}"
            components = run.arrays[f"map_features/{part}"]
            if components.shape[1] == 0:
                cells.append(f'<p class="muted">{escaped(name)}: the features are constant, there is no map.</p>')
                continue
            places = map_coordinates(components, method)
            share = _share_of_two(run.arrays.get(f"singular_values/{part}", NONE)) if method == "pca" else ""
            cells.append(captioned_figure(drawn_map(places, classes, class_marks), f"{name}, by class{share}"))
            legends[map_legend(class_marks)] = None
            if "map_angle_deg" in run.arrays:
                angles, angle_marks = angle_groups(run.arrays["map_angle_deg"])
                cells.append(captioned_figure(drawn_map(places, angles, angle_marks), f"{name}, by angle"))
                angle_legend = map_legend(angle_marks)
    if not cells:
        return ""
    most = max(len(run.arrays.get("map_labels", NONE)) for run in runs)
    angle_told = " Angle: that of the view's rotation from the upright pose." if angle_legend else ""
    about = (
        f'<p class="muted">Up to {most} views of unseen objects, placed by {MAP_NAMES[method]} of the features; nearby '
        f"points have similar features.{angle_told}</p>"
    )
    return page_section("maps", "Map of the features", about, *legends, angle_legend, figure_grid(cells, "maps"))


def spectrum_section(runs: Sequence[ComparedRun]) -> str:
    """Singular values of the features."""
    figures = [drawing.html(f"spectrum-{number}") for number, drawing in enumerate(spectrum_drawings(runs))]
    return page_section("spectrum", "Do the features use their dimensions?", figure_grid(figures))


def orbits_section(runs: Sequence[ComparedRun]) -> str:
    """Curves around the orbit of in-plane turns: how far features move, and how wrong the rotation head is."""
    figures: list[str] = []
    angles = [run.arrays["orbit_angles_deg"] for run in runs if "orbit_angles_deg" in run.arrays]
    if any(not np.array_equal(angles[0], others) for others in angles):
        apart = '<p class="muted">The runs were turned by different angles, so their orbits are not drawn.</p>'
        return page_section("orbits", "Around the orbit of turns", apart)
    moved = "1 - cosine between the features of the turned and of the upright view; 0: the same"
    judged = "error of the turn that is read from both views; 0: right"
    for kind, unit, preferred, what in (
        ("orbit", "", INVARIANT_FIRST, moved),
        ("orbit_rotation_deg", "°", EQUIVARIANT_FIRST, judged),
    ):
        for choice in choose_parts(arrays_by_part(runs, f"{kind}/"), preferred):
            svg = to_svg(orbit_rings(angles[0], choice.shown, unit), f"orbit-{len(figures)}")
            figures.append(choice.figure(svg, f"{choice.title[0].upper()}{choice.title[1:]}: {what}"))
    about = (
        '<p class="muted">Objects turned once around in the image plane, 0 in the centre of the circle. Thick: the '
        "mean over objects; thin: single objects. The corners of a turned picture hold its mirror image.</p>"
    )
    return page_section("orbits", "Around the orbit of turns", about, figure_grid(figures)) if figures else ""


def views_section(runs: Sequence[ComparedRun]) -> str:
    """The views that were evaluated, once for all runs that were judged on the same ones."""
    names_by_sheet: dict[tuple[Any, ...], list[str]] = {}
    with_sheet = {run.name: run for run in runs if "view_sheet" in run.arrays}
    for name, run in with_sheet.items():
        sheet = run.arrays["view_sheet"]
        names_by_sheet.setdefault((sheet.shape, sheet.tobytes()), []).append(name)
    figures, heading = [], "Images"
    for names in names_by_sheet.values():
        arrays = with_sheet[names[0]].arrays
        if HAS_POSES in arrays or HAS_SEVERAL_VIEWS in arrays:
            heading = "Views"
        picture = sheet_of_views(arrays)
        described = escaped(f"{picture.caption} ({', '.join(names)})" if len(names_by_sheet) > 1 else picture.caption)
        image = f'<img class="sheet" alt="{described}" src="{image_data_uri(picture.pixels)}">'
        figures.append(f"<figure>{image}<figcaption>{described}</figcaption></figure>")
    return page_section("views", heading, *figures)


def neighbours_section(runs: Sequence[ComparedRun]) -> str:
    """Strips of queries and their nearest neighbours."""
    blocks, has_poses, has_views = [], False, False
    for run in runs:
        for part, images in arrays_by_part([run], "neighbour_images/")[run.name].items():
            has_poses = has_poses or HAS_POSES in run.arrays
            has_views = has_views or has_poses or HAS_SEVERAL_VIEWS in run.arrays
            strips = list(zip(images, run.arrays[f"neighbour_captions/{part}"], strict=True))
            rows = "".join(
                picture_strip(pictures, [str(text) for text in texts], f"nearest by {part}, {texts[0]}")
                for pictures, texts in (strips if len(runs) == 1 else strips[:NEIGHBOUR_STRIPS_OF_A_RUN])
            )
            named = f"{escaped(run.name)}, " if len(runs) > 1 else ""
            blocks.append(f"<div><h3>{named}by part <code>{escaped(part)}</code></h3>{rows}</div>")
    if not blocks:
        return ""
    what = "views (cosine) of other objects, at most one an object" if has_views else "other images (cosine)"
    told = "degrees: angle between the two poses" if has_poses else "the name is its class"
    about = f'<p class="muted">Framed: the query. Then the nearest {what}. ✓: same class; {told}.</p>'
    return page_section("neighbours", "Nearest neighbours", about, figure_grid(blocks))


def _strips(run: ComparedRun, key: str) -> str:
    images = run.arrays[f"retrieval_images/{key}"][:MAX_RETRIEVAL_STRIPS]
    hits, ranks = run.arrays[f"retrieval_hits/{key}"], run.arrays[f"retrieval_strip_ranks/{key}"]
    rows = []
    for row, pictures in enumerate(images):
        captions = ["from", f"rank {ranks[row]}", *(f"{'✓ ' if hit else ''}{n}" for n, hit in enumerate(hits[row], 1))]
        rows.append(picture_strip(pictures, captions, f"query {row + 1}"))
    return "".join(rows)


def _ranks_by_gallery(runs: Sequence[ComparedRun], task: str) -> dict[int, dict[str, dict[str, np.ndarray]]]:
    """Ranks by the size of the gallery, then run and part: ranks among other numbers of views are not the same."""
    found: dict[int, dict[str, dict[str, np.ndarray]]] = {}
    for run, parts in zip(runs, arrays_by_part(runs, f"retrieval_ranks/{task}/").values(), strict=True):
        for part, ranks in parts.items():
            by_run = found.setdefault(_gallery_size(run, task, part), {other.name: {} for other in runs})
            by_run[run.name][part] = ranks
    return found


def _gallery_size(run: ComparedRun, task: str, part: str) -> int:
    """Views that are ranked, as stored; otherwise as chance tells: 1 / G hits at 1, or the lowest rank found."""
    stored = run.arrays.get(f"retrieval_gallery_size/{task}/{part}")
    if stored is not None:
        return int(stored)
    for record in run.folders[0].records:
        if (record.task, record.part, record.metric) == (task, part, "hit_at_1") and record.baseline > 0:
            return round(1 / record.baseline)
    return int(run.arrays[f"retrieval_ranks/{task}/{part}"].max())


def _share_of_two(deviations: np.ndarray) -> str:
    if not len(deviations) or deviations[0] <= 0:
        return ""
    variances = np.square(deviations, dtype=np.float64)
    return f"; {100 * variances[:2].sum() / variances.sum():.0f} % of the variance"
