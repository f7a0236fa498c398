"""Results of runs and evaluations as files: `results.json`, `arrays.npz`, `report.html`; and the printed table."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.sets.table import DataSource
from ssl_equi.errors import visible
from ssl_equi.evaluation.encoders import EncoderSource
from ssl_equi.evaluation.predictors.two_views import strips_of_predictions
from ssl_equi.evaluation.report.feature_map import map_arrays
from ssl_equi.evaluation.report.pictures import neighbour_arrays, view_sheet
from ssl_equi.evaluation.report.write import write_report_or_warn
from ssl_equi.evaluation.results import ARRAYS_HASH, RESULTS_FILE, append_records, write_arrays, write_evaluation
from ssl_equi.evaluation.suite import Evaluation, noted_if_unanswered
from ssl_equi.evaluation.symmetry.orbits import orbit_errors
from ssl_equi.evaluation.tables import print_headline, print_records
from ssl_equi.evaluation.task import TASKS
from ssl_equi.runtime.progress import LiveProgress

DRAWING = "drawing the report"


def publish_results(
    run_folder: Path,
    results: Evaluation,
    test: ViewCollection,
    *,
    title: str,
    command: str,
    run: Mapping[str, Any] | None = None,
    verbose: bool = True,
) -> Path:
    """Write `arrays.npz`, append the records to `results.json`, print their table, and write `report.html`.

    The page also shows `config.json`, `versions.json` and the curves of `metrics.jsonl`, if the folder has them.

    Args:
        test: the evaluated split, for the pictures.
        command: what was typed to make the run.
        run: what `results.json` says of the run as a whole.
        verbose: whether the whole table is printed with all notes, or its headline.
    """
    described = dict(run or {}) | {"title": title, "command": command, "protocol": asdict(results.protocol)}
    # The numbers first: nothing that is only drawn may cost them.
    append_records(run_folder / RESULTS_FILE, results.records, described, results.notes)
    if verbose:
        print_records(results.records, results.notes)
    else:
        print_headline(results.records, results.warnings)
    with LiveProgress() as progress:
        progress.show(DRAWING)
        arrays, notes = result_arrays(results, test)
        append_records(run_folder / RESULTS_FILE, [], {ARRAYS_HASH: write_arrays(run_folder, arrays)}, notes)
        write_report_or_warn([run_folder], run_folder / "report.html", title=title)
    return run_folder / "report.html"


def result_arrays(results: Evaluation, test: ViewCollection) -> tuple[dict[str, np.ndarray], list[str]]:
    """All that a report draws of probe results, by the keys of `arrays.npz`, and a sentence for what can't be drawn."""
    class_names = [visible(name) for name in results.class_names]
    arrays: dict[str, np.ndarray] = {"class_names": np.array(class_names, dtype=np.str_)}
    if test.num_views > 1:
        arrays["views_per_object"] = np.array(test.num_views)
    notes: list[str] = []
    arrays |= results.arrays
    for part, tasks in (results.random_results or {}).items():
        for task, result in tasks.items():
            # Of rotations, one written as a quaternion stands for all.
            if result.angle_errors_deg is not None and (task not in TASKS or task == "relative_rotation"):
                arrays[f"random_angle_errors_deg/{task}/{part}"] = result.angle_errors_deg
    with noted_if_unanswered("maps of the features", notes):
        arrays |= map_arrays(results.test_features, results.parts)
    with noted_if_unanswered("nearest neighbours", notes):
        arrays |= neighbour_arrays(results.test_features, results.parts, test, class_names)
    with noted_if_unanswered("pictures of views", notes):
        arrays |= {"view_sheet": view_sheet(test)}
    return arrays, notes


def publish(
    out: Path, source: EncoderSource, data: DataSource, results: Evaluation, run: Mapping[str, Any], device: str
) -> None:
    """Writes `results.json`, which says `run` of the whole evaluation, `arrays.npz` and `report.html`."""
    # The numbers first: nothing that is only drawn may cost them.
    write_evaluation(out, results.records, results.notes, run, results.arrays)
    with LiveProgress() as progress:
        progress.show(DRAWING)
        drawn, why_not_drawn = pictures(source, data, results, device)
        shown, why_not_shown = result_arrays(results, data.evaluation)
        notes = (*results.notes, *why_not_drawn, *why_not_shown)
        write_evaluation(out, results.records, notes, run, shown | drawn)
        write_report_or_warn([out], out / "report.html", title=f"{source.name} on {data.name}")


def pictures(
    source: EncoderSource, data: DataSource, results: Evaluation, device: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Orbits, and strips of what is retrieved, which take the encoder or its predictor again; why others are missing.

    They are only drawn, so the images of the orbits aren't counted among those that were encoded for the numbers.
    """
    arrays: dict[str, np.ndarray] = {}
    notes: list[str] = []
    with noted_if_unanswered("orbits are not drawn", notes):
        arrays |= orbit_errors(
            source, data.evaluation, mean_rgb=data.mean_rgb, std_rgb=data.std_rgb,
            rotation_heads=results.rotation_heads, device=device,
        )  # fmt: skip
    if source.predictor is not None and any(record.task == "retrieval" for record in results.records):
        with noted_if_unanswered("strips of predictions are not drawn", notes):
            arrays |= strips_of_predictions(source.predictor.cpu(), results.test_features, data.evaluation)
    return arrays, notes
