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
        path: of the folder.
        records: oldest first.
        notes: what was skipped and why.
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
    named = [_name_and_folders(text) for text in texts]
    read = [tuple(read_evaluated_folder(folder) for folder in folders) for _, folders in named]
    unnamed = [folders[0] for (name, _), folders in zip(named, read, strict=True) if not name]
    own_names = iter(_own_names(unnamed))
    runs = [ComparedRun(name or next(own_names), folders) for (name, _), folders in zip(named, read, strict=True)]
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two columns are named {name!r}: give names, such as first={name} second=OTHER")
    return runs


def read_evaluated_folder(folder: Path) -> EvaluatedFolder:
    """All that a folder holds about its numbers. Raises UserError if there are none, or a file is damaged."""
    arrays: Mapping[str, np.ndarray] = {}
    if (folder / ARRAYS_FILE).exists():
        evaluation = read_evaluation(folder)
        records, run = evaluation.records, evaluation.run
        arrays, why_not_drawn = _drawable(evaluation.arrays)
        notes = [*evaluation.notes, *why_not_drawn]
    else:
        content = read_results(folder / RESULTS_FILE)
        records, run = read_records(folder / RESULTS_FILE), content["run"]
        notes = [str(note) for note in content.get("notes", [])]
    notes = [*notes, *(str(note) for note in run.get("notes", []))]
    # An evaluation lies in RUN/evaluation/NAME, unless it was told otherwise.
    places = (folder, folder.parent.parent) if "encoder" in run else (folder,)
    run_folder = next((place for place in places if (place / "config.json").exists()), folder)
    metrics_path = run_folder / "metrics.jsonl"
    return EvaluatedFolder(
        path=folder,
        records=records,
        notes=notes,
        run=run,
        arrays=arrays,
        config=_json_object(run_folder / "config.json"),
        versions=_json_object(run_folder / "versions.json"),
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


def _drawable(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
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
    dimensions, types = _DRAWN.get(key.partition("/")[0].partition(".")[0], (array.ndim, array.dtype.kind))
    if array.ndim != dimensions or array.dtype.kind not in types:
        return False
    return types != _PICTURES or (array.dtype == np.uint8 and array.shape[-1] == 3 and array.size > 0)


def class_names_of(arrays: Mapping[str, np.ndarray], labels: Iterable[int]) -> dict[int, str]:
    """The names that an evaluation stored for these classes; their numbers if it stored none."""
    labels, names = list(labels), arrays.get("class_names", np.zeros(0))
    if all(0 <= label < len(names) for label in labels):
        return {label: str(names[label]) for label in labels}
    return {label: f"class {label}" for label in labels}


def _name_and_folders(text: str | Path) -> tuple[str, list[Path]]:
    """The name, empty if none is given, and the folders. Raises UserError if there are none."""
    if isinstance(text, Path) or Path(text).exists() or "=" not in text:
        return "", [Path(text)]
    name, _, folders = text.partition("=")
    named = [Path(folder) for folder in folders.split(",") if folder]
    if not named:
        raise UserError(f"{text!r} names no folder: give NAME=FOLDER or NAME=FOLDER,FOLDER")
    return name, named


def _own_names(folders: Sequence[EvaluatedFolder]) -> list[str]:
    """Names of the encoders if they tell all folders apart, otherwise those of the folders."""
    names = [str(folder.run["name"]) if "encoder" in folder.run and "name" in folder.run else "" for folder in folders]
    if all(names) and len(set(names)) == len(names):
        return names
    return _shortest_names([folder.path for folder in folders])


def _shortest_names(folders: Sequence[Path]) -> list[str]:
    """The last components of each path: as few as make all of them different, or all of them."""
    resolved = [folder.resolve() for folder in folders]
    for count in range(1, max((len(folder.parts) for folder in resolved), default=1) + 1):
        names = ["/".join(folder.parts[-count:]) for folder in resolved]
        if len(set(names)) == len(names):
            break
    return names if folders else []


def _json_object(path: Path) -> Mapping[str, Any]:
    return read_json_object(path, UserError, "restore it or move it away") if path.exists() else {}
