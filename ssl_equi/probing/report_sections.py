"""Sections of a report that show one run or several over each other, made from what `arrays.npz` holds."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ssl_equi.probing.compared_runs import ComparedRun, class_names_of
from ssl_equi.probing.feature_map import MapMethod, map_coordinates
from ssl_equi.probing.report_figures import recall_bars
from ssl_equi.probing.report_maps import angle_legend, angle_map, class_legend, class_map, shown_classes
from ssl_equi.probing.report_overlays import orbit_rings, overlaid_angles, rank_histogram, spectrum_figure
from ssl_equi.probing.report_page import captioned_figure, escaped, picture_strip

MAX_RETRIEVAL_STRIPS = 4  # of each run
NONE = np.zeros(0)
MAP_NAMES: dict[MapMethod, str] = {"pca": "the first two principal components", "tsne": "t-SNE"}


def errors_section(runs: Sequence[ComparedRun]) -> str:
    """Rotation errors and recalls of several runs, a figure for each part that two runs or more have."""
    figures = []
    for index, (task, part) in enumerate(_keys(runs, "angle_errors_deg")):
        key = f"angle_errors_deg/{task}/{part}"
        found = _by_run(runs, key)
        constants = list(_by_run(runs, f"constant_{key}").values())
        constant = next((values for values in constants if len(values)), None)
        svg = overlaid_angles(f"angles-{index}", found, constant)
        caption = f"{_in_words(task)}, part {part}: error over the evaluated pairs"
        figures.append(captioned_figure(svg, caption + _absent(found)))
    for index, (task, part) in enumerate(_keys(runs, "per_class_recall")):
        found = _by_run(runs, f"per_class_recall/{task}/{part}")
        present = {run: recall for run, recall in found.items() if len(recall)}
        sizes = {len(recall) for recall in present.values()}
        if len(sizes) == 1:
            arrays = next(run.arrays for run in runs if len(found[run.name]))
            class_names = class_names_of(arrays, sizes.pop())
            svg = recall_bars(f"recall-{index}", present, class_names)
            figures.append(captioned_figure(svg, f"Recall of each class, part {part}" + _absent(found)))
    return _section("errors", "Where they are right", figures)


def retrieval_section(runs: Sequence[ComparedRun]) -> str:
    """Histograms of the rank of the true view, with chance, and strips of what each prediction retrieves."""
    figures: list[str] = []
    strips: list[str] = []
    for task, part in _keys(runs, "retrieval_ranks"):
        found = _by_run(runs, f"retrieval_ranks/{task}/{part}")
        sizes = {_gallery_size(run, task, part) for run in runs if len(found[run.name])}
        for size in sorted(sizes):
            same = {run.name: found[run.name] if _gallery_size(run, task, part) == size else NONE for run in runs}
            svg = rank_histogram(f"ranks-{len(figures)}", same, size)
            caption = f"{_in_words(task)}, part {part}: rank of the view asked for, 1 is the nearest"
            figures.append(captioned_figure(svg, caption + _absent(same)))
    for task, part in _keys(runs, "retrieval_images"):
        for run in runs:
            key = f"{task}/{part}"
            if f"retrieval_images/{key}" in run.arrays:
                named = f"{run.name}: " if len(runs) > 1 else ""
                strips.append(
                    f"<div><h3>{escaped(named)}part <code>{escaped(part)}</code></h3>{_strips(run, key)}</div>"
                )
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
        class_names = class_names_of(run.arrays, int(labels.max()) + 1 if len(labels) else 0)
        shown = shown_classes(labels) if len(labels) else []
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
    about = (
        f'<p class="muted">Up to {most} views of unseen objects, placed by {MAP_NAMES[method]} of the features; nearby '
        "points have similar features. Angle: that of the view's rotation from the upright pose.</p>"
    )
    angles = angle_legend() if has_angles else ""
    return (
        f'<section id="maps"><h2>Map of the features</h2>{about}{legend}{angles}'
        f'<div class="figures maps">{"".join(cells)}</div></section>'
    )


def spectrum_section(runs: Sequence[ComparedRun]) -> str:
    """Singular values of each part."""
    figures = []
    for index, part in enumerate(_plain_parts(runs, "singular_values")):
        found = _by_run(runs, f"singular_values/{part}")
        svg = spectrum_figure(f"spectrum-{index}", found)
        caption = f"Part {part}: singular values of the centred features; a cliff is a collapse to fewer dimensions"
        figures.append(captioned_figure(svg, caption + _absent(found)))
    return _section("spectrum", "Do the features use their dimensions?", figures)


def orbits_section(runs: Sequence[ComparedRun]) -> str:
    """Curves around the orbit of in-plane turns: how far features move, and how wrong the rotation head is."""
    figures: list[str] = []
    for kind, unit, what in (
        ("orbit", "", "1 - cosine between the features of the turned and the upright view; 0 does not change at all"),
        ("orbit_rotation_deg", "°", "error of the rotation read from the upright and the turned view; 0 is right"),
    ):
        for part in _plain_parts(runs, kind):
            found = _by_run(runs, f"{kind}/{part}")
            angles = [run.arrays["orbit_angles_deg"] for run in runs if len(found[run.name])]
            same = [np.array_equal(angles[0], others) for others in angles]
            if not all(same):
                figures.append(f'<p class="muted">Part {escaped(part)}: the runs were turned by other angles.</p>')
                continue
            svg = orbit_rings(f"orbit-{len(figures)}", angles[0], found, unit)
            figures.append(captioned_figure(svg, f"Part {part}: {what}{_absent(found)}"))
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


def _by_run(runs: Sequence[ComparedRun], key: str) -> dict[str, np.ndarray]:
    """The array of each run, empty where it has none: styles stay those of the run."""
    return {run.name: run.arrays.get(key, NONE) for run in runs}


def _absent(found: Mapping[str, np.ndarray]) -> str:
    missing = [run for run, values in found.items() if not len(values)]
    return f"; not measured: {', '.join(missing)}" if missing else ""


def _keys(runs: Sequence[ComparedRun], kind: str) -> list[tuple[str, str]]:
    """Tasks and parts for which a run has an array `KIND/TASK/PART`."""
    return _found(runs, kind, lambda rest: len(rest) == 2)  # type: ignore[return-value]


def _plain_parts(runs: Sequence[ComparedRun], kind: str) -> list[str]:
    """Parts for which a run has an array `KIND/PART`."""
    return [rest[0] for rest in _found(runs, kind, lambda rest: len(rest) == 1)]


def _found(runs: Sequence[ComparedRun], kind: str, wanted: Callable[[tuple[str, ...]], bool]) -> list[tuple[str, ...]]:
    keys = dict.fromkeys(tuple(key.split("/")) for run in runs for key in run.arrays)
    return [key[1:] for key in keys if key[0] == kind and wanted(key[1:])]


def _parts_to_map(run: ComparedRun) -> list[str]:
    """The invariant and the equivariant part, or whatever there is."""
    parts = _plain_parts([run], "map_features")
    return [part for part in ("inv", "equi") if part in parts] or parts


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
