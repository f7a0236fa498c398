"""From errors under symmetries to what stays: records, arrays for the report, and a printed table of layers."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ssl_equi.evaluation.metrics import fixed
from ssl_equi.evaluation.results import (
    ARRAYS_FILE,
    ARRAYS_HASH,
    RESULTS_FILE,
    ProbeRecord,
    append_records,
    read_evaluation,
    write_arrays,
)
from ssl_equi.evaluation.samples import evenly_spread
from ssl_equi.evaluation.symmetry.errors import PartErrors, SymmetryErrors
from ssl_equi.evaluation.tables import LAYERS

TASK = "symmetry"
NUM_ORBITS = 4  # single images whose orbits are drawn
LONGEST_LAYER_NAME = 30
PART_METRICS = ("invariance_error", "equivariance_error", "consistency")
LAYER_METRICS = ("spatial_error", "equivariance_error", "invariance_error")


def symmetry_records(
    errors: SymmetryErrors, random_parts: Mapping[str, PartErrors] | None, split: str, seed: int
) -> list[ProbeRecord]:
    """Records of the features' parts, task "symmetry_SET", and of the layers, task "symmetry_SET_layers".

    Args:
        random_parts: of an encoder with fresh weights, if one was measured.
        split: that the images are of.
        seed: of the random encoder.
    """
    task, num_elements = f"{TASK}_{errors.symmetries.name}", len(errors.symmetries.elements)
    found: list[tuple[str, str, str, float | None, float | None, float | None, int]] = []
    for part, measured in errors.parts.items():
        for metric in PART_METRICS:
            baseline = measured.chance_consistency if metric == "consistency" else 1.0
            random = None if random_parts is None else getattr(random_parts[part], metric)
            found.append((task, part, metric, getattr(measured, metric), baseline, random, num_elements))
    for layer in errors.layers:
        for metric in LAYER_METRICS:
            elements = layer.compared_elements if metric == "spatial_error" else num_elements
            found.append((task + LAYERS, layer.name, metric, getattr(layer, metric), 1.0, None, elements))
    return [
        ProbeRecord(
            *(of_task, part, metric, value, baseline, "other images", random),
            n=errors.num_images * elements,
            num_objects=errors.num_images,
            split=split,
            protocol=f"{task}, {num_elements} elements",
            seed=seed,
        )
        for of_task, part, metric, value, baseline, random, elements in found
        if value is not None and baseline is not None
    ]


def symmetry_arrays(errors: SymmetryErrors, images: np.ndarray) -> dict[str, np.ndarray]:
    """What `ssl_equi.evaluation.report.symmetry` draws of the orbits, by keys `symmetry_KIND/SET`.

    Args:
        images: uint8 [N, H, W, 3], those that were measured, in their order.
    """
    elements = errors.symmetries.elements
    rows = evenly_spread(errors.num_images, NUM_ORBITS)
    arrays = {
        "similarity": errors.similarities.float().numpy(),
        "curves": np.array([element.curve for element in elements], dtype=np.str_),
        "places_deg": np.array([element.place_deg for element in elements]),
        "rows": rows,
        "images": images[rows],
    }
    if errors.similarities_of_action is not None:
        arrays["similarity_of_action"] = errors.similarities_of_action.float().numpy()
    return {f"{TASK}_{kind}/{errors.symmetries.name}": array for kind, array in arrays.items()}


def add_symmetry(
    folder: Path,
    measured: Sequence[SymmetryErrors],
    images: np.ndarray,
    records: Sequence[ProbeRecord],
    run: Mapping[str, Any],
) -> None:
    """Append the records and notes to `results.json` of a run or an evaluation, and put the arrays beside its own.

    Args:
        run: what `results.json` says of the whole run, if the folder has none.
    """
    results, file = folder / RESULTS_FILE, folder / ARRAYS_FILE
    notes = [note for errors in measured for note in notes_of(errors)]
    # The numbers first: nothing that is only drawn may cost them.
    append_records(results, records, None if results.exists() else run, notes)
    # Two measurements of one folder may end at the same time, and each keeps the other's arrays.
    with FileLock(folder / f".{ARRAYS_FILE}.lock"):
        arrays = read_evaluation(folder).arrays if file.exists() else {}
        for errors in measured:
            # Of an earlier measurement nothing may stay, such as an action that another encoder states.
            ending = f"/{errors.symmetries.name}"
            arrays = {
                key: array for key, array in arrays.items() if not (key.startswith(TASK) and key.endswith(ending))
            }
            arrays |= symmetry_arrays(errors, images)
        append_records(results, [], {ARRAYS_HASH: write_arrays(folder, arrays)})


def notes_of(errors: SymmetryErrors) -> list[str]:
    """What is missing or not exact, a sentence each; layers that share a reason share the sentence."""
    layers_by_reason: dict[str, list[str]] = {}
    for layer, reason in errors.left_out.items():
        layers_by_reason.setdefault(reason, []).append(layer)
    left_out = [f"layer {', '.join(layers)}: {reason}" for reason, layers in layers_by_reason.items()]
    return [f"{errors.symmetries.name}: {note}" for note in (*errors.notes, *left_out)]


def print_layers(errors: SymmetryErrors) -> None:
    """Print the errors of every layer, why others are left out, and notes; no line is wider than 80 characters."""
    if errors.layers:
        print(f"\nlayers under {errors.symmetries.name}")
        width = max(len(short_name(layer.name)) for layer in errors.layers)
        print("".ljust(width + 2) + "".join(name.rjust(13) for name in ("spatial", "own action", "pooled", "elements")))
        for layer in errors.layers:
            values = [_shown(getattr(layer, metric)) for metric in LAYER_METRICS]
            count = f"{layer.compared_elements}/{len(errors.symmetries.elements)}"
            print("  " + short_name(layer.name).ljust(width) + "".join(text.rjust(13) for text in (*values, count)))
        print("spatial: cells moved like pixels, for so many elements; pooled: invariance_error")
    for line in notes_of(errors):
        print(textwrap.fill(line, width=80, subsequent_indent="  ", break_on_hyphens=False))


def short_name(layer: str) -> str:
    """The end of a layer's name, which tells it from others."""
    return layer if len(layer) <= LONGEST_LAYER_NAME else f"...{layer[3 - LONGEST_LAYER_NAME :]}"


def _shown(value: float | None) -> str:
    return "-" if value is None else fixed(value, 3) if value >= 0.001 or value == 0 else f"{value:.0e}"
