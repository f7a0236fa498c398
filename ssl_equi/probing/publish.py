"""From probe results to what a run leaves behind: records in `results.json`, `arrays.npz`, the table, `report.html`."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ssl_equi.data.collection import ViewCollection
from ssl_equi.probing.evaluation_folder import ARRAYS_HASH, RESULTS_FILE, write_arrays
from ssl_equi.probing.evaluation_report import write_evaluation_report
from ssl_equi.probing.feature_map import map_arrays
from ssl_equi.probing.records import append_records, print_records
from ssl_equi.probing.report_pictures import neighbour_arrays, view_sheet
from ssl_equi.probing.suite import ProbeResults


def publish_results(
    run_folder: Path,
    results: ProbeResults,
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
    described = dict(run or {}) | {
        "title": title,
        "command": command,
        "protocol": asdict(results.protocol),
        ARRAYS_HASH: write_arrays(run_folder, result_arrays(results, test)),
    }
    append_records(run_folder / RESULTS_FILE, results.records, described, results.notes)
    print_records(results.records, results.notes)
    return write_evaluation_report([run_folder], run_folder / "report.html", title=title)


def result_arrays(results: ProbeResults, test: ViewCollection) -> dict[str, np.ndarray]:
    """All that a report draws of probe results, by the keys of `arrays.npz`.

    Args:
        test: the evaluated split.
    """
    arrays: dict[str, np.ndarray] = {"class_names": np.array(results.class_names, dtype=np.str_)}
    for part, tasks in results.results.items():
        for task, result in tasks.items():
            for kind in ("angle_errors_deg", "constant_angle_errors_deg", "per_class_recall"):
                values = getattr(result, kind)
                if values is not None:
                    arrays[f"{kind}/{task}/{part}"] = values
    for part, errors_deg in results.random_angle_errors_deg.items():
        arrays[f"random_angle_errors_deg/relative_rotation/{part}"] = errors_deg
    arrays |= map_arrays(results.test_features, results.parts)
    arrays |= neighbour_arrays(results.test_features, results.parts, test, results.class_names)
    return arrays | {"view_sheet": view_sheet(test)}
