"""What an evaluation leaves behind: `results.json` (records, notes, what was evaluated) and `arrays.npz`.

Keys of the arrays are `KIND/TASK/PART`, such as `angle_errors_deg/relative_rotation/equi`,
`constant_angle_errors_deg/...`, `per_class_recall/...`, `retrieval_ranks/...`, `object_scores.METRIC/...` and, without
a task, `map_features/PART`. Arrays are those of the first seed.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_equi.data.npy import read_stored_npz
from ssl_equi.errors import CheckpointError, UserError
from ssl_equi.evaluation.records import ProbeRecord, read_records, read_results, write_records
from ssl_equi.files import sha256_of_file, write_atomically

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
    """Write both files, the numbers first; an earlier evaluation in the folder is replaced.

    Raises:
        UserError: the folder has results of another kind, such as those of a run.
        CheckpointError: the folder can't be written.
        ValueError: an array holds objects, not numbers or text.
    """
    refuse_results_of_a_run(folder)
    content = _npz_bytes(arrays)
    write_records(folder / RESULTS_FILE, records, run, notes)
    write_atomically(folder / ARRAYS_FILE, content, CheckpointError)
    described = dict(run) | {ARRAYS_HASH: hashlib.sha256(content).hexdigest()}
    write_records(folder / RESULTS_FILE, records, described, notes)


def refuse_results_of_a_run(folder: Path) -> None:
    """Raises UserError if an evaluation in this folder would replace other results, or a damaged file."""
    if (folder / RESULTS_FILE).exists() and "notes" not in read_results(folder / RESULTS_FILE):
        raise UserError(
            f"{folder} has a {RESULTS_FILE} of a run, which an evaluation would replace: give another --out"
        )


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write `arrays.npz`, atomically; returns its SHA-256, which belongs into `run` under `ARRAYS_HASH`.

    Raises:
        CheckpointError: the folder can't be written.
        ValueError: an array holds objects, not numbers or text.
    """
    content = _npz_bytes(arrays)
    write_atomically(folder / ARRAYS_FILE, content, CheckpointError)
    return hashlib.sha256(content).hexdigest()


def read_evaluation(folder: Path) -> Evaluation:
    """What `write_evaluation` wrote.

    Raises:
        UserError: a file is missing, damaged, or the two are not of the same evaluation.
    """
    results = read_results(folder / RESULTS_FILE)
    records = read_records(folder / RESULTS_FILE)
    file = folder / ARRAYS_FILE
    arrays = read_stored_npz(file, UserError, "evaluate again")
    if results["run"].get(ARRAYS_HASH) != sha256_of_file(file):
        raise UserError(f"{file} is not of the same evaluation as {RESULTS_FILE} beside it: evaluate again")
    return Evaluation(records, [str(note) for note in results.get("notes", [])], results["run"], arrays)


# Dimensions, and NumPy's letters for the types, of arrays by kind: what figures rely on.
_NUMBERS, _TEXT, _PICTURES = "fiu", "U", "u"
DRAWN: dict[str, tuple[int, str]] = {
    "class_names": (1, _TEXT), "map_labels": (1, "iu"), "map_angle_deg": (1, _NUMBERS), "map_features": (2, _NUMBERS),
    "view_sheet": (5, _PICTURES), "neighbour_images": (5, _PICTURES), "neighbour_captions": (2, _TEXT),
    "retrieval_images": (5, _PICTURES), "retrieval_hits": (2, "b"), "retrieval_strip_ranks": (1, "iu"),
    "retrieval_ranks": (1, "iu"), "retrieval_gallery_size": (0, "iu"), "singular_values": (1, _NUMBERS),
    "angle_errors_deg": (1, _NUMBERS), "random_angle_errors_deg": (1, _NUMBERS),
    "constant_angle_errors_deg": (1, _NUMBERS), "per_class_recall": (1, _NUMBERS),
    "orbit": (2, _NUMBERS), "orbit_angles_deg": (1, _NUMBERS), "orbit_rotation_deg": (2, _NUMBERS),
}  # fmt: skip


def drawable(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays that have what figures of their kind rely on, and a sentence for each one that has not."""
    fitting = {key: array for key, array in arrays.items() if _can_be_drawn(key, array)}
    notes = [
        f"{ARRAYS_FILE}: {key} is {array.dtype} {array.shape}, which can't be drawn"
        for key, array in arrays.items()
        if key not in fitting
    ]
    return fitting, notes


def _can_be_drawn(key: str, array: np.ndarray) -> bool:
    """Arrays of kinds that no figure knows can."""
    dimensions, types = DRAWN.get(key.partition("/")[0], (array.ndim, array.dtype.kind))
    if array.ndim != dimensions or array.dtype.kind not in types:
        return False
    return types != _PICTURES or (array.dtype == np.uint8 and array.shape[-1] == 3 and array.size > 0)


def _npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    for key, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise ValueError(f"array {key!r} holds objects: give numbers or text")
    buffer = io.BytesIO()
    np.savez(buffer, **dict(arrays))  # type: ignore[arg-type]
    return buffer.getvalue()
