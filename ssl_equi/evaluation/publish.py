"""From probe results to what a run leaves behind: records in `results.json`, `arrays.npz`, the table, `report.html`."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ssl_equi.data.collection import ViewCollection
from ssl_equi.errors import visible
from ssl_equi.evaluation.evaluation_folder import ARRAYS_HASH, RESULTS_FILE, write_arrays
from ssl_equi.evaluation.records import append_records, print_records
from ssl_equi.evaluation.report.feature_map import map_arrays
from ssl_equi.evaluation.report.pictures import neighbour_arrays, view_sheet
from ssl_equi.evaluation.report.write import write_report_or_warn
from ssl_equi.evaluation.skipping import noted_if_unanswered
from ssl_equi.evaluation.suite import Evaluation
from ssl_equi.evaluation.task import TASKS


def publish_results(
    run_folder: Path,
    results: Evaluation,
    test: ViewCollection,
    *,
    title: str,
    command: str,
    run: Mapping[str, Any] | None = None,
) -> Path:
    """Write `arrays.npz`, append the records to `results.json`, print their table, and write `report.html`.

    The page also shows `config.json`, `versions.json` and the curves of `metrics.jsonl`, if the folder has them.

    Args:
        test: the evaluated split, for the pictures.
        title, command: of the page; what was typed to make the run.
        run: what `results.json` shall say of the run as a whole.

    Returns:
        The report's path.
    """
    described = dict(run or {}) | {"title": title, "command": command, "protocol": asdict(results.protocol)}
    # The numbers first: nothing that is only drawn may cost them.
    append_records(run_folder / RESULTS_FILE, results.records, described, results.notes)
    print_records(results.records, results.notes)
    arrays, notes = result_arrays(results, test)
    append_records(run_folder / RESULTS_FILE, [], {ARRAYS_HASH: write_arrays(run_folder, arrays)}, notes)
    write_report_or_warn([run_folder], run_folder / "report.html", title=title)
    return run_folder / "report.html"


def result_arrays(results: Evaluation, test: ViewCollection) -> tuple[dict[str, np.ndarray], list[str]]:
    """All that a report draws of probe results, by the keys of `arrays.npz`, and a sentence for what can't be drawn.

    Args:
        test: the evaluated split.
    """
    class_names = [visible(name) for name in results.class_names]
    arrays: dict[str, np.ndarray] = {"class_names": np.array(class_names, dtype=np.str_)}
    if test.num_views > 1:
        arrays["views_per_object"] = np.array(test.num_views)
    notes: list[str] = []
    for part, tasks in results.results.items():
        for task, result in tasks.items():
            for kind in ("angle_errors_deg", "constant_angle_errors_deg", "per_class_recall"):
                values = getattr(result, kind)
                if values is not None:
                    arrays[f"{kind}/{task}/{part}"] = values
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
