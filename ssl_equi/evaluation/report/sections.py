"""Sections of a report that show one run or several over each other, made from what `arrays.npz` holds."""

from collections.abc import Sequence

import numpy as np

from ssl_equi.evaluation.report.compared_runs import ComparedRun, class_names_of
from ssl_equi.evaluation.report.feature_map import MapMethod, map_coordinates
from ssl_equi.evaluation.report.figures import recall_bars
from ssl_equi.evaluation.report.maps import angle_legend, angle_map, class_legend, class_map, shown_classes
from ssl_equi.evaluation.report.overlays import orbit_rings, overlaid_angles, rank_histogram, spectrum_figure
from ssl_equi.evaluation.report.page import captioned_figure, escaped, picture_strip
from ssl_equi.evaluation.report.part_choices import EQUIVARIANT_FIRST, INVARIANT_FIRST, absent_in_words, choose_parts

MAX_RETRIEVAL_STRIPS = 4  # of each run
NONE = np.zeros(0)
MAP_NAMES: dict[MapMethod, str] = {"pca": "the first two principal components", "tsne": "t-SNE"}


def errors_section(runs: Sequence[ComparedRun]) -> str:
    """Rotation errors and recalls, of several runs or of one run's parts."""
    figures: list[str] = []
    for task in _tasks(runs, "angle_errors_deg"):
        constants = _by_part(runs, f"constant_angle_errors_deg/{task}/").values()
        constant = next((values for parts in constants for values in parts.values()), None)
        for choice in choose_parts(_by_part(runs, f"angle_errors_deg/{task}/"), EQUIVARIANT_FIRST):
            svg = overlaid_angles(f"angles-{len(figures)}", choice.shown, constant)
            caption = f"{_in_words(task)}, {choice.title}: error over the evaluated pairs"
            figures.append(captioned_figure(svg, caption + absent_in_words(choice)))
    for task in _tasks(runs, "per_class_recall"):
        for choice in choose_parts(_by_part(runs, f"per_class_recall/{task}/"), INVARIANT_FIRST):
            present = {label: recall for label, recall in choice.shown.items() if recall is not None}
            sizes = {len(recall) for recall in present.values()}
            if len(sizes) == 1:
                arrays = next(run.arrays for run in runs if "class_names" in run.arrays or run is runs[-1])
                svg = recall_bars(f"recall-{len(figures)}", present, class_names_of(arrays, range(sizes.pop())))
                caption = f"{_in_words(task)}, {choice.title}: recall of each class on unseen objects"
                figures.append(captioned_figure(svg, caption + absent_in_words(choice)))
    return _section("errors", "Where they are right", figures)


def retrieval_section(runs: Sequence[ComparedRun]) -> str:
    """Histograms of the rank of the true view, with chance, and strips of what each prediction retrieves."""
    figures: list[str] = []
    strips: list[str] = []
    for task in _tasks(runs, "retrieval_ranks"):
        for size, found in _ranks_by_gallery(runs, task).items():
            for choice in choose_parts(found, EQUIVARIANT_FIRST):
                svg = rank_histogram(f"ranks-{len(figures)}", choice.shown, size)
                caption = f"{_in_words(task)}, {choice.title}: rank of the view asked for, 1 is the nearest"
                figures.append(captioned_figure(svg, caption + absent_in_words(choice)))
    for task in _tasks(runs, "retrieval_images"):
        for run in runs:
            for part in _by_part([run], f"retrieval_images/{task}/")[run.name]:
                named = f"{run.name}, " if len(runs) > 1 else ""
                heading = f"<h3>{escaped(named)}{escaped(task)}, part <code>{escaped(part)}</code></h3>"
                strips.append(f"<div>{heading}{_strips(run, f'{task}/{part}')}</div>")
    explained = (
        '<p class="muted">Framed: the view that the prediction starts from. Then the view asked for, with its rank, '
        "and the views nearest to the prediction; ✓ is the one asked for.</p>"
    )
    shown = f'{explained}<div class="figures">{"".join(strips)}</div>' if strips else ""
    return _section("retrieval", "Retrieval by the predictor", figures, shown)


def maps_section(runs: Sequence[ComparedRun], method: MapMethod) -> str:
    """A map of each run's and part's features, once coloured by class and once by the angle of the view's rotation."""
    cells, has_angles, legend = [], False, ""
    for run in runs:
        labels = run.arrays.get("map_labels", NONE)
        shown = shown_classes(labels) if len(labels) else []
        class_names = class_names_of(run.arrays, shown)
        for part in _parts_to_map(run):
            name = f"{run.name}, part {part}" if len(runs) > 1 else f"part {part}"
            components = run.arrays[f"map_features/{part}"]
            if components.shape[1] == 0:
                cells.append(f'<p class="muted">{escaped(name)}: the features are constant, there is no map.</p>')
                continue
            places = map_coordinates(components, method)
            share = _share_of_two(run.arrays.get(f"singular_values/{part}", NONE)) if method == "pca" else ""
            cells.append(captioned_figure(class_map(places, labels, shown), f"{name}, by class{share}"))
            legend = class_legend(shown, class_names, len(np.unique(labels)))
            if "map_angle_deg" in run.arrays:
                has_angles = True
                cells.append(captioned_figure(angle_map(places, run.arrays["map_angle_deg"]), f"{name}, by angle"))
    if not cells:
        return ""
    most = max(len(run.arrays.get("map_labels", NONE)) for run in runs)
    angle_told = " Angle: that of the view's rotation from the upright pose." if has_angles else ""
    about = (
        f'<p class="muted">Up to {most} views of unseen objects, placed by {MAP_NAMES[method]} of the features; nearby '
        f"points have similar features.{angle_told}</p>"
    )
    angles = angle_legend() if has_angles else ""
    return (
        f'<section id="maps"><h2>Map of the features</h2>{about}{legend}{angles}'
        f'<div class="figures maps">{"".join(cells)}</div></section>'
    )


def spectrum_section(runs: Sequence[ComparedRun]) -> str:
    """Singular values of the features."""
    figures = []
    # Those of a task, TASK/PART, are of features that are not centred: another spectrum, whose rank is `rankme`.
    found = {
        run: {part: values for part, values in parts.items() if "/" not in part}
        for run, parts in _by_part(runs, "singular_values/").items()
    }
    for index, choice in enumerate(choose_parts(found, ("all",))):
        caption = f"Singular values of the centred features, {choice.title}; a cliff is a collapse to fewer dimensions"
        svg = spectrum_figure(f"spectrum-{index}", choice.shown)
        figures.append(captioned_figure(svg, caption + absent_in_words(choice)))
    return _section("spectrum", "Do the features use their dimensions?", figures)


def orbits_section(runs: Sequence[ComparedRun]) -> str:
    """Curves around the orbit of in-plane turns: how far features move, and how wrong the rotation head is."""
    figures: list[str] = []
    angles = [run.arrays["orbit_angles_deg"] for run in runs if "orbit_angles_deg" in run.arrays]
    if any(not np.array_equal(angles[0], others) for others in angles):
        apart = '<p class="muted">The runs were turned by different angles, so their orbits are not drawn.</p>'
        return _section("orbits", "Around the orbit of turns", figures, apart)
    for kind, unit, preferred, what in (
        (
            "orbit",
            "",
            INVARIANT_FIRST,
            "1 - cosine between the features of the turned and of the upright view; 0: the same",
        ),
        ("orbit_rotation_deg", "°", EQUIVARIANT_FIRST, "error of the turn that is read from both views; 0: right"),
    ):
        for choice in choose_parts(_by_part(runs, f"{kind}/"), preferred):
            svg = orbit_rings(f"orbit-{len(figures)}", angles[0], choice.shown, unit)
            caption = f"{choice.title[0].upper()}{choice.title[1:]}: {what}"
            figures.append(captioned_figure(svg, caption + absent_in_words(choice)))
    about = (
        '<p class="muted">Objects turned once around in the image plane, 0 in the centre of the circle. Thick: the '
        "mean over objects; thin: single objects. The corners of a turned picture hold its mirror image.</p>"
    )
    return _section("orbits", "Around the orbit of turns", figures, before=about)


def _strips(run: ComparedRun, key: str) -> str:
    images = run.arrays[f"retrieval_images/{key}"][:MAX_RETRIEVAL_STRIPS]
    hits, ranks = run.arrays[f"retrieval_hits/{key}"], run.arrays[f"retrieval_strip_ranks/{key}"]
    rows = []
    for row, pictures in enumerate(images):
        captions = ["from", f"rank {ranks[row]}", *(f"{'✓ ' if hit else ''}{n}" for n, hit in enumerate(hits[row], 1))]
        rows.append(picture_strip(pictures, captions, f"query {row + 1}"))
    return "".join(rows)


def _section(identity: str, heading: str, figures: Sequence[str], after: str = "", before: str = "") -> str:
    if not figures and not after:
        return ""
    drawn = f'<div class="figures">{"".join(figures)}</div>' if figures else ""
    return f'<section id="{identity}"><h2>{heading}</h2>{before}{drawn}{after}</section>'


def _by_part(runs: Sequence[ComparedRun], prefix: str) -> dict[str, dict[str, np.ndarray]]:
    """Arrays whose key is the prefix and a part, by run and part."""
    return {
        run.name: {key.removeprefix(prefix): array for key, array in run.arrays.items() if key.startswith(prefix)}
        for run in runs
    }


def _parts_to_map(run: ComparedRun) -> list[str]:
    """The invariant and the equivariant part, or whatever there is."""
    parts = list(_by_part([run], "map_features/")[run.name])
    return [part for part in ("inv", "equi") if part in parts] or parts


def _tasks(runs: Sequence[ComparedRun], kind: str) -> list[str]:
    """Tasks for which a run has an array `KIND/TASK/PART`."""
    keys = dict.fromkeys(tuple(key.split("/", 2)) for run in runs for key in run.arrays)
    return list(dict.fromkeys(key[1] for key in keys if key[0] == kind and len(key) == 3))


def _ranks_by_gallery(runs: Sequence[ComparedRun], task: str) -> dict[int, dict[str, dict[str, np.ndarray]]]:
    """Ranks by the size of the gallery, then run and part: ranks among other numbers of views are not the same."""
    found: dict[int, dict[str, dict[str, np.ndarray]]] = {}
    for run, parts in zip(runs, _by_part(runs, f"retrieval_ranks/{task}/").values(), strict=True):
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


def _in_words(task: str) -> str:
    return task.replace("_", " ").capitalize()
