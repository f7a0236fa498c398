"""What is on disk about evaluated runs, read for a comparison: records, notes, arrays, curves, configuration.

A compared run is one folder, or several folders of the same method trained from different seeds. A folder is a run's or
an evaluation's; older runs have no `arrays.npz`, and their pictures are left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_equi.errors import UserError
from ssl_equi.evaluation.results import (
    ARRAYS_FILE,
    RESULTS_FILE,
    ProbeRecord,
    read_evaluation,
    read_records,
    read_results,
)
from ssl_equi.files import read_json_object


@dataclass(frozen=True)
class EvaluatedFolder:
    """One folder with results.

    Attributes:
        records: oldest first.
        run: what `results.json` says of the whole run.
        arrays: of `arrays.npz`; empty without one.
        config, versions: of the run that trained the encoder; empty if they are not there.
        metrics_path: its `metrics.jsonl`; None if there is none.
    """

    path: Path
    records: Sequence[ProbeRecord]
    notes: Sequence[str]
    run: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    config: Mapping[str, Any]
    versions: Mapping[str, Any]
    metrics_path: Path | None

    def fingerprint(self, split: str) -> str | None:
        """SHA-256 of the files that a split's numbers come from; None if the folder does not say.

        A run notes that of the split it was evaluated on when it ended; numbers of other splits came later.
        """
        splits = {record.split for record in self.records}
        noted_split = next(iter(splits)) if len(splits) == 1 else self.config.get("evaluation_split")
        found = self.run.get("evaluation_fingerprint")
        return str(found) if found is not None and split == noted_split else None


@dataclass(frozen=True)
class ComparedRun:
    """One column of a comparison.

    Attributes:
        name: shown to the reader; no two of a comparison are equal.
        folders: one, or one for each training seed; pictures are those of the first.
    """

    name: str
    folders: tuple[EvaluatedFolder, ...]

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """Arrays of the first folder."""
        return self.folders[0].arrays

    @property
    def method(self) -> str:
        """Name of the recipe that trained it; of the column, where that is not noted."""
        return str(self.folders[0].run.get("name", self.name))


def read_compared_runs(texts: Sequence[str | Path]) -> list[ComparedRun]:
    """Columns from what was typed: FOLDER, or NAME=FOLDER,FOLDER,... for one method trained from several seeds.

    Columns without a name have that of the encoder that was evaluated; where these are not all different, that of the
    folder, with as many folders above it as tell them apart. Raises UserError for folders without intact results.
    """
    if not texts:
        raise UserError("no folder was given: name at least one folder with a results.json")
    named: list[tuple[str, tuple[EvaluatedFolder, ...]]] = []
    for text in texts:
        name, paths = "", [Path(text)]
        # A folder's own name may hold the sign, too.
        if "=" in str(text) and not Path(text).exists():
            name, _, listed = str(text).partition("=")
            paths = [Path(folder) for folder in listed.split(",") if folder]
        if not paths:
            raise UserError(f"{text!r} names no folder: give NAME=FOLDER or NAME=FOLDER,FOLDER")
        named.append((name, tuple(read_evaluated_folder(path) for path in paths)))
    own_names = iter(_own_names([folders[0] for name, folders in named if not name]))
    runs = [ComparedRun(name or next(own_names), folders) for name, folders in named]
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two columns are named {name!r}: give names, such as first={name} second=OTHER")
    return runs


def _own_names(folders: Sequence[EvaluatedFolder]) -> list[str]:
    """Names of the encoders if they tell all folders apart, otherwise the ends of their paths that do, if any does."""
    names = [str(folder.run["name"]) if "encoder" in folder.run and "name" in folder.run else "" for folder in folders]
    if all(names) and len(set(names)) == len(names):
        return names
    parts = [folder.path.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def read_evaluated_folder(folder: Path) -> EvaluatedFolder:
    """All that a folder holds about its numbers. Raises UserError if there are none, or a file is damaged."""
    content, records = read_results(folder / RESULTS_FILE), read_records(folder / RESULTS_FILE)
    run = content["run"]
    stored = read_evaluation(folder).arrays if (folder / ARRAYS_FILE).exists() else {}
    arrays = {key: array for key, array in stored.items() if _can_be_drawn(key, array)}
    not_drawn = [
        f"{ARRAYS_FILE}: {key} is {array.dtype} {array.shape}, which can't be drawn"
        for key, array in stored.items()
        if key not in arrays
    ]
    # An evaluation lies in RUN/evaluation/NAME, unless it was told otherwise.
    places = (folder, folder.parent.parent) if "encoder" in run else (folder,)
    run_folder = next((place for place in places if (place / "config.json").exists()), folder)
    config, versions = (
        read_json_object(file, UserError, "restore it or move it away") if file.exists() else {}
        for file in (run_folder / "config.json", run_folder / "versions.json")
    )
    metrics_path = run_folder / "metrics.jsonl"
    return EvaluatedFolder(
        path=folder,
        records=records,
        notes=[str(note) for note in (*content.get("notes", []), *not_drawn, *run.get("notes", []))],
        run=run,
        arrays=arrays,
        config=config,
        versions=versions,
        metrics_path=metrics_path if metrics_path.exists() else None,
    )


# Dimensions, and NumPy's letters for the types, of arrays by kind: what figures and intervals rely on.
_NUMBERS, _TEXT, _PICTURES = "fiu", "U", "u"
_DRAWN: dict[str, tuple[int, str]] = {
    "class_names": (1, _TEXT), "map_labels": (1, "iu"), "map_angle_deg": (1, _NUMBERS), "map_features": (2, _NUMBERS),
    "view_sheet": (5, _PICTURES), "neighbour_images": (5, _PICTURES), "neighbour_captions": (2, _TEXT),
    "retrieval_images": (5, _PICTURES), "retrieval_hits": (2, "b"), "retrieval_strip_ranks": (1, "iu"),
    "retrieval_ranks": (1, "iu"), "retrieval_gallery_size": (0, "iu"), "singular_values": (1, _NUMBERS),
    "angle_errors_deg": (1, _NUMBERS), "random_angle_errors_deg": (1, _NUMBERS),
    "constant_angle_errors_deg": (1, _NUMBERS), "per_class_recall": (1, _NUMBERS),
    "object_scores": (1, "f"), "object_values": (2, "f"), "object_moments": (2, "f"),
    "rotation_density": (3, _NUMBERS), "rotation_truth": (2, _NUMBERS),
    "orbit": (2, _NUMBERS), "orbit_angles_deg": (1, _NUMBERS), "orbit_rotation_deg": (2, _NUMBERS),
}  # fmt: skip


def _can_be_drawn(key: str, array: np.ndarray) -> bool:
    """Whether an array has what figures of its kind rely on; those of kinds that no figure knows have."""
    dimensions, types = _DRAWN.get(key.partition("/")[0].partition(".")[0], (array.ndim, array.dtype.kind))
    if array.ndim != dimensions or array.dtype.kind not in types:
        return False
    return types != _PICTURES or (array.dtype == np.uint8 and array.shape[-1] == 3 and array.size > 0)


def in_last_setting(records: Sequence[ProbeRecord]) -> list[ProbeRecord]:
    """Those of the protocol, split and seed that were asked last."""
    settings = [(record.protocol, record.split, record.seed) for record in records]
    return [record for record, setting in zip(records, settings, strict=True) if setting == settings[-1]]


def class_names_of(arrays: Mapping[str, np.ndarray], labels: Iterable[int]) -> dict[int, str]:
    """The names that an evaluation stored for these classes; their numbers if it stored none."""
    labels, names = list(labels), arrays.get("class_names", np.zeros(0))
    if all(0 <= label < len(names) for label in labels):
        return {label: str(names[label]) for label in labels}
    return {label: f"class {label}" for label in labels}
