"""What an evaluation leaves behind: `results.json` (records, notes, what was evaluated) and `arrays.npz`.

Keys of the arrays are `KIND/TASK/PART`, such as `angle_errors_deg/relative_rotation/equi`,
`constant_angle_errors_deg/...`, `per_class_recall/...`, `retrieval_ranks/...`, `object_scores.METRIC/...` and, without
a task, `map_features/PART`. Arrays are those of the first seed.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_equi.checkpoint import CheckpointError, describe_os_error
from ssl_equi.files import replace_file
from ssl_equi.probing.records import ProbeRecord, ResultsError, read_records, read_results, write_records

RESULTS_FILE, ARRAYS_FILE = "results.json", "arrays.npz"
ARRAYS_HASH = "arrays_sha256"


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
    """Write both files; an earlier evaluation in the folder is replaced.

    Raises:
        ResultsError: a value is not finite, or the folder has results of another kind, such as those of a run.
        CheckpointError: the folder can't be written.
        ValueError: an array holds objects, not numbers or text.
    """
    if (folder / RESULTS_FILE).exists() and "notes" not in read_results(folder / RESULTS_FILE):
        raise ResultsError(
            f"{folder} has a {RESULTS_FILE} of a run, which an evaluation would replace: give another --out"
        )
    described = dict(run) | {ARRAYS_HASH: write_arrays(folder, arrays)}
    write_records(folder / RESULTS_FILE, records, described, notes)


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write `arrays.npz`, atomically; returns its SHA-256, which belongs into `run` under `ARRAYS_HASH`.

    Raises:
        CheckpointError: the folder can't be written.
        ValueError: an array holds objects, not numbers or text.
    """
    content = _npz_bytes(arrays)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / ARRAYS_FILE, content)
    except OSError as error:
        raise CheckpointError(describe_os_error(error, folder / ARRAYS_FILE)) from error
    return hashlib.sha256(content).hexdigest()


def read_evaluation(folder: Path) -> Evaluation:
    """What `write_evaluation` wrote.

    Raises:
        ResultsError: a file is missing, damaged, or the two are not of the same evaluation.
    """
    results = read_results(folder / RESULTS_FILE)
    records = read_records(folder / RESULTS_FILE)
    file = folder / ARRAYS_FILE
    try:
        content = file.read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except FileNotFoundError as error:
        raise ResultsError(f"there is no {file}: evaluate again") from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ResultsError(f"{file} is damaged ({error}): evaluate again") from error
    run = results["run"]
    if run.get(ARRAYS_HASH) != hashlib.sha256(content).hexdigest():
        raise ResultsError(f"{file} is not of the same evaluation as {RESULTS_FILE} beside it: evaluate again")
    return Evaluation(records, [str(note) for note in results.get("notes", [])], run, arrays)


def _npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    for key, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise ValueError(f"array {key!r} holds objects: give numbers or text")
    buffer = io.BytesIO()
    np.savez(buffer, **dict(arrays))  # type: ignore[arg-type]
    return buffer.getvalue()
