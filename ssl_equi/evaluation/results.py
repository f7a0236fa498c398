"""Results: records, the files `results.json` and `arrays.npz` of a folder, and how tasks' results become both.

Keys of the arrays are `KIND/TASK/PART`, such as `angle_errors_deg/relative_rotation/equi`,
`constant_angle_errors_deg/...`, `per_class_recall/...`, `retrieval_ranks/...`, `object_scores.METRIC/...`
and other statistics over objects (`ssl_equi.evaluation.bootstrap`) and, without a task, `map_features/PART`. Arrays are
those of the first seed.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ssl_equi.checkpoint import require_writable
from ssl_equi.data.npy import read_stored_npz
from ssl_equi.errors import CheckpointError, UserError, visible_values
from ssl_equi.evaluation.bootstrap import MeanStatistic, bootstrap_interval
from ssl_equi.evaluation.metrics import class_of_metric
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.task import TaskResult
from ssl_equi.files import read_json_object, sha256_of_file, write_atomically

RESULTS_FILE, ARRAYS_FILE = "results.json", "arrays.npz"
ARRAYS_HASH = "arrays_sha256"
_ANEW = "move it away and run the evaluation again"


@dataclass(frozen=True)
class ProbeRecord:
    """One number, with everything that is needed to compare it.

    Attributes:
        part: slice of the features that was probed: "all", "inv", "equi"; of sequences "agg@M", the aggregate of M
            views, "all@M", the encoder's features beside it, and "pred@M", what is predicted from it.
        metric: a name of `ssl_equi.evaluation.metrics.METRICS`, which says which values are better.
        baseline: what is reached without an image, or by features without relation to it.
        baseline_name: who reaches it: "majority class", "1 / classes", "constant", "shuffled images", ...
        random_encoder: the same probe on a freshly initialised encoder of the same architecture; None if not measured.
        n: evaluated views or pairs.
        num_objects: objects that these come from; the independent units.
        seed: of the heads and of the random encoder's probes.
        object_standard_error: standard error of `value` over the evaluated objects, for metrics that are means of
            their scores; None for the others.
        interval_low, interval_high: percentiles of `value` over resampled objects (95 % lie between), which the
            protocol says how many of; None where objects can't be resampled.
    """

    task: str
    part: str
    metric: str
    value: float
    baseline: float
    baseline_name: str
    random_encoder: float | None
    n: int
    num_objects: int
    split: str
    protocol: str
    seed: int
    object_standard_error: float | None = None
    interval_low: float | None = None
    interval_high: float | None = None


# ---------------------------------------------------------------- from tasks' results


def records_of(
    results: Mapping[str, Mapping[str, TaskResult]],
    random_results: Mapping[str, Mapping[str, TaskResult]] | None,
    *,
    split: str,
    protocol: ProbeProtocol | str,
    seed: int,
    num_objects: int,
) -> list[ProbeRecord]:
    """Records in the order of the printed table: task by task, part by part; a task may be absent from a part.

    Args:
        results: by part, then task.
        random_results: the same of the random encoder; None if there was none.
        split, num_objects: of results that don't say so themselves.
        protocol: its name alone if objects are not resampled.
    """
    resamples = 0 if isinstance(protocol, str) else protocol.bootstrap_resamples
    records = []
    for task in dict.fromkeys(task for tasks in results.values() for task in tasks):
        for part, result in ((part, tasks[task]) for part, tasks in results.items() if task in tasks):
            random = None if random_results is None else random_results[part].get(task)
            for metric, value in result.metrics.items():
                low, high = _object_interval(result, metric, resamples) or (None, None)
                records.append(
                    ProbeRecord(
                        task=task,
                        part=part,
                        metric=metric,
                        value=value,
                        baseline=result.baselines[metric].value,
                        baseline_name=result.baselines[metric].name,
                        random_encoder=None if random is None else random.metrics.get(metric),
                        n=result.num_samples,
                        num_objects=result.num_objects or num_objects,
                        split=result.split or split,
                        protocol=protocol if isinstance(protocol, str) else protocol.name,
                        seed=seed,
                        object_standard_error=_object_standard_error(result, metric),
                        interval_low=low,
                        interval_high=high,
                    )
                )
    return records


def _object_standard_error(result: TaskResult, metric: str) -> float | None:
    """Over the evaluated objects; None where the metric is no mean of their scores."""
    scores = (result.object_scores or {}).get(metric)
    scores = None if scores is None else scores[np.isfinite(scores)]
    if scores is None or len(scores) < 2:
        return None
    return float(scores.std(ddof=1) / np.sqrt(len(scores)))


def _object_interval(result: TaskResult, metric: str, resamples: int) -> tuple[float, float] | None:
    """Over resampled objects; None where the result doesn't say how the metric follows from them."""
    scores = (result.object_scores or {}).get(metric)
    of_scores = None if scores is None else MeanStatistic(scores)
    statistic = (result.statistics or {}).get(metric, of_scores)
    return None if statistic is None else bootstrap_interval(statistic, resamples)


def arrays_of_result(task: str, part: str, result: TaskResult) -> dict[str, np.ndarray]:
    """What a result holds besides numbers, by the keys of `arrays.npz`."""
    found = {
        kind: getattr(result, kind)
        for kind in (
            "angle_errors_deg", "constant_angle_errors_deg", "per_class_recall", "singular_values", "retrieval_ranks",
        )
    }  # fmt: skip
    found |= {f"{MeanStatistic.kind}.{metric}": scores for metric, scores in (result.object_scores or {}).items()}
    found |= result.arrays or {}
    for metric, statistic in (result.statistics or {}).items():
        # Single classes are never compared, and would double what is stored.
        if class_of_metric(metric) is None:
            found.setdefault(f"{statistic.kind}.{metric}", statistic.as_array())
    return {f"{kind}/{task}/{part}": array for kind, array in found.items() if array is not None}


# ---------------------------------------------------------------- results.json


def append_records(
    path: Path, records: Sequence[ProbeRecord], run: Mapping[str, Any] | None = None, notes: Sequence[str] = ()
) -> None:
    """Add records and notes to `results.json`, atomically; `run` (what describes the whole run) is merged.

    Numbers that are not finite are left out, and a note names each of them. The file is made if it does not exist. A
    process that is killed on the way leaves the old file as it was, and processes that append at the same time wait
    for each other.
    """
    finite, undefined = _finite_records(records)
    notes = [*notes, *undefined]
    with _locked(path):
        content = read_results(path) if path.exists() else {"records": [], "run": {}}
        content["records"] += [asdict(record) for record in finite]
        content["run"] |= dict(run or {})
        if notes:
            content["run"]["notes"] = list(dict.fromkeys([*content["run"].get("notes", []), *notes]))
        write_atomically(path, _as_json(content), CheckpointError)


def write_records(
    path: Path, records: Sequence[ProbeRecord], run: Mapping[str, Any], notes: Sequence[str] = ()
) -> None:
    """Replace `results.json` as a whole, atomically; numbers that are not finite are left out, and notes name them."""
    finite, undefined = _finite_records(records)
    content = {"records": [asdict(record) for record in finite], "notes": [*notes, *undefined], "run": dict(run)}
    with _locked(path):
        write_atomically(path, _as_json(content), CheckpointError)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Inside, no other process writes the file, whose folder is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def refuse_other_content(path: Path) -> None:
    """Raises, before an evaluation, unless its records can be added to `results.json` in the end."""
    if path.exists():
        read_results(path)
    require_writable(path.parent)


def read_records(path: Path) -> list[ProbeRecord]:
    """The records of a `results.json`, oldest first. Raises UserError if there is none, or it is something else."""
    return [_record_of(entry, path) for entry in read_results(path)["records"]]


def read_results(path: Path) -> dict[str, Any]:
    """All of a `results.json` as it stands there: "records", "run" and, of an evaluation, "notes"; raises likewise."""
    if not path.exists():
        raise UserError(f"there is no results file {path}: run an evaluation of this run first")
    content = read_json_object(path, UserError, _ANEW)
    if not (isinstance(content.get("records"), list) and isinstance(content.get("run"), dict)):
        raise _corrupt(path, "it has no list 'records' and object 'run'")
    if not all(isinstance(each.get("notes", []), list) for each in (content, content["run"])):
        raise _corrupt(path, "its notes are no list")
    return content


def _finite_records(records: Sequence[ProbeRecord]) -> tuple[list[ProbeRecord], list[str]]:
    """The records that are numbers, and a sentence for each one that is not, or whose baseline is not."""
    finite, notes = [], []
    for record in records:
        name = f"{record.task}, part {record.part}: {record.metric}"
        if not (math.isfinite(record.value) and math.isfinite(record.baseline)):
            notes.append(f"{name} is {record.value} and its baseline {record.baseline}, so it is left out")
            continue
        if record.random_encoder is not None and not math.isfinite(record.random_encoder):
            notes.append(f"{name} of the random encoder is {record.random_encoder}, so it is left out")
            record = replace(record, random_encoder=None)
        finite.append(record)
    return finite, notes


def _as_json(content: dict[str, Any]) -> str:
    # Text from outside, such as names of classes, is written as it is shown.
    return json.dumps(visible_values(content), indent=1, allow_nan=False) + "\n"


# Of the types of a record's fields: whether a JSON value, which is finite, is one.
_FITS: dict[str, Callable[[Any], bool]] = {
    str(str): lambda value: isinstance(value, str),
    str(int): lambda value: type(value) is int,
    str(float): lambda value: type(value) in (int, float),
    str(float | None): lambda value: value is None or type(value) in (int, float),
}


def _record_of(entry: Any, path: Path) -> ProbeRecord:
    if not isinstance(entry, dict):
        raise _corrupt(path, f"a record is {entry!r:.60}")
    values = {}
    for field in fields(ProbeRecord):
        # What earlier versions did not write has its default.
        if field.name not in entry and field.default is MISSING:
            raise _corrupt(path, f"a record lacks {field.name!r}")
        value = entry.get(field.name, field.default)
        if not _FITS[str(field.type)](value):
            raise _corrupt(path, f"{field.name!r} of a record is {value!r:.60}")
        values[field.name] = value
    return ProbeRecord(**values)


def _corrupt(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is not a results file ({reason}): {_ANEW}")


# ---------------------------------------------------------------- an evaluation's folder


@dataclass(frozen=True)
class Evaluation:
    """All that one evaluation left behind.

    Attributes:
        records: every number, of every seed.
        notes: one sentence each: what was skipped and why, and what a reader of the numbers must know.
        run: what was evaluated, how and by which command ("encoder", "data", "encoder_passes", ...).
        arrays: by `KIND/TASK/PART`.
    """

    records: list[ProbeRecord]
    notes: list[str]
    run: dict[str, Any]
    arrays: dict[str, np.ndarray]


def write_evaluation(
    folder: Path,
    records: Sequence[ProbeRecord],
    notes: Sequence[str],
    run: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Write both files; an earlier evaluation in the folder is replaced, results of another kind are refused."""
    refuse_results_of_a_run(folder)
    # The numbers first: an evaluation that is killed here has them, and arrays that are refused.
    write_records(folder / RESULTS_FILE, records, run, notes)
    write_records(folder / RESULTS_FILE, records, dict(run) | {ARRAYS_HASH: write_arrays(folder, arrays)}, notes)


def refuse_results_of_a_run(folder: Path) -> None:
    """Raises UserError if an evaluation in this folder would replace other results, or a damaged file."""
    if (folder / RESULTS_FILE).exists() and "notes" not in read_results(folder / RESULTS_FILE):
        raise UserError(
            f"{folder} has a {RESULTS_FILE} of a run, which an evaluation would replace: give another --out"
        )


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write `arrays.npz`, atomically; returns its SHA-256, which belongs into `run` under `ARRAYS_HASH`."""
    for key, array in arrays.items():
        assert not np.asarray(array).dtype.hasobject, f"array {key!r} holds objects, which files can't"
    buffer = io.BytesIO()
    np.savez(buffer, **dict(arrays))  # type: ignore[arg-type]
    content = buffer.getvalue()
    write_atomically(folder / ARRAYS_FILE, content, CheckpointError)
    return hashlib.sha256(content).hexdigest()


def read_evaluation(folder: Path) -> Evaluation:
    """What `write_evaluation` wrote. Raises UserError if a file is missing, damaged or of another evaluation."""
    results = read_results(folder / RESULTS_FILE)
    records = read_records(folder / RESULTS_FILE)
    file = folder / ARRAYS_FILE
    arrays = read_stored_npz(file, UserError, "evaluate again")
    if results["run"].get(ARRAYS_HASH) != sha256_of_file(file):
        raise UserError(f"{file} is not of the same evaluation as {RESULTS_FILE} beside it: evaluate again")
    return Evaluation(records, [str(note) for note in results.get("notes", [])], results["run"], arrays)
