"""Results as records: appended to `results.json`, and printed as a table that is made from nothing else."""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from ssl_equi.checkpoint import require_writable
from ssl_equi.errors import CheckpointError, UserError, visible_values
from ssl_equi.files import read_json_object, write_atomically
from ssl_equi.latents.schema import KINDS

ANGLE, ANGLE_MEDIAN = "angle_deg", "angle_deg_median"  # the first begins the names of all angles

LOWER_IS_BETTER = (  # and the errors of kinds of latents
    "gamma_f", "wahba_error", "composition_error", "retrieval_error", "pose_error",
    "invariance_error", "equivariance_error", "spatial_error", "identity_error", "inverse_error", "sign_flip_error",
    "least_squares_error", "within_between_ratio", "dead_dimensions", "drop_of",
)  # fmt: skip

_ANEW = "move it away and run the evaluation again"


@dataclass(frozen=True)
class ProbeRecord:
    """One number, with everything that is needed to compare it.

    Attributes:
        task: "classification", "relative_rotation", "colour", "augmentation_equivariance", ...
        part: slice of the features that was probed: "all", "inv", "equi"; of sequences "agg@M", the aggregate of M
            views, "all@M", the encoder's features beside it, and "pred@M", what is predicted from it.
        metric: name that carries its definition ("top1", "r2_uniform", "angle_deg_median", ...).
        value: of the encoder; lower is better for angles and for `LOWER_IS_BETTER`.
        baseline: what is reached without an image, or by features without relation to it.
        baseline_name: who reaches it: "majority class", "1 / classes", "constant", "shuffled images", ...
        random_encoder: the same probe on a freshly initialised encoder of the same architecture; None if not measured.
        n: evaluated views or pairs.
        num_objects: objects that these come from; the independent units.
        split: evaluated split.
        protocol: name of the probe protocol.
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


def append_records(
    path: Path, records: Sequence[ProbeRecord], run: Mapping[str, Any] | None = None, notes: Sequence[str] = ()
) -> None:
    """Add records to `results.json`, atomically; `run` (what describes the whole run) is merged over what is there.

    Notes are added to those of the run. Numbers that are not finite are left out, and a note names each of them.

    The file is made if it does not exist. A process that is killed on the way leaves the old file as it was, and
    processes that append at the same time wait for each other.

    Raises:
        UserError: the existing file is not a results file.
    """
    finite, undefined = finite_records(records)
    notes = [*notes, *undefined]
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        content = read_results(path) if path.exists() else {"records": [], "run": {}}
        content["records"] += [asdict(record) for record in finite]
        content["run"] |= dict(run or {})
        if notes:
            content["run"]["notes"] = list(dict.fromkeys([*content["run"].get("notes", []), *notes]))
        write_atomically(path, _as_json(content), CheckpointError)


def write_records(
    path: Path, records: Sequence[ProbeRecord], run: Mapping[str, Any], notes: Sequence[str] = ()
) -> None:
    """Replace `results.json` as a whole, atomically, by these records, their notes, and what describes the run.

    Numbers that are not finite are left out; notes name them.
    """
    finite, undefined = finite_records(records)
    content = {"records": [asdict(record) for record in finite], "notes": [*notes, *undefined], "run": dict(run)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        write_atomically(path, _as_json(content), CheckpointError)


def refuse_other_content(path: Path) -> None:
    """Asks before an evaluation whether its records can be added to `results.json` in the end.

    Raises:
        UserError: the file there is not a results file.
        CheckpointError: the folder can't be written.
    """
    if path.exists():
        read_results(path)
    require_writable(path.parent)


def read_records(path: Path) -> list[ProbeRecord]:
    """The records of a `results.json`, oldest first.

    Raises:
        UserError: there is no such file, or it is not a results file.
    """
    return [_record_of(entry, path) for entry in read_results(path)["records"]]


def read_results(path: Path) -> dict[str, Any]:
    """All of a `results.json` as it stands there: "records", "run" and, of an evaluation, "notes".

    Raises:
        UserError: there is no such file, or it is not a results file.
    """
    if not path.exists():
        raise UserError(f"there is no results file {path}: run an evaluation of this run first")
    content = read_json_object(path, UserError, _ANEW)
    if not (isinstance(content.get("records"), list) and isinstance(content.get("run"), dict)):
        raise _corrupt(path, "it has no list 'records' and object 'run'")
    if not all(isinstance(each.get("notes", []), list) for each in (content, content["run"])):
        raise _corrupt(path, "its notes are no list")
    return content


def print_records(records: Sequence[ProbeRecord], notes: Sequence[str] = ()) -> None:
    """Print a table at most 80 columns wide, with the baselines beside each value; plain text if not a terminal.

    Args:
        notes: printed under the table, one a line.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("task", "part", "metric"):
        table.add_column(name, no_wrap=True)
    for name in ("value", "baseline", "random", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    shown_task = shown_part = ""
    records = in_short_tables(records)
    for record in records:
        if (record.task, record.part) != (shown_task, shown_part) and shown_task:
            table.add_row()
        new_task = record.task != shown_task
        new_part = new_task or record.part != shown_part
        shown_task, shown_part = record.task, record.part
        table.add_row(
            record.task if new_task else "",
            record.part if new_part else "",
            record.metric,
            format_value(record.metric, record.value),
            format_value(record.metric, record.baseline),
            format_value(record.metric, record.random_encoder),
            str(record.n),
        )
    # Narrower than 80 columns, rich would cut cells; a terminal or a log file had better wrap or scroll.
    console = Console(width=max(80, shutil.get_terminal_size().columns))
    console.print(table)
    for line in [*describe_origins(records), *describe_columns(records), *notes]:
        console.print(line, highlight=False, markup=False)


def in_short_tables(records: Sequence[ProbeRecord]) -> list[ProbeRecord]:
    """The records without those of single classes."""
    return [record for record in records if class_of_metric(record.metric) is None]


def name_of_class_metric(metric: str, class_name: str) -> str:
    """The metric of one class's samples."""
    return f"{metric}_of_{class_name}"


def class_of_metric(metric: str) -> tuple[str, str] | None:
    """Metric and class of a name that `name_of_class_metric` made of a kind's metric; None for all others."""
    for kind in KINDS.values():
        if metric.startswith(f"{kind.metric}_of_"):
            return kind.metric, metric.removeprefix(f"{kind.metric}_of_")
    return None


def describe_origins(records: Sequence[ProbeRecord]) -> list[str]:
    """A line for each protocol, split and seed that the records come from."""
    origins = {(record.protocol, record.split, record.num_objects, record.seed) for record in records}
    return [
        f"protocol {protocol}, split {split} ({num_objects} objects), probe seed {seed}"
        for protocol, split, num_objects, seed in sorted(origins)
    ]


def describe_columns(records: Sequence[ProbeRecord]) -> list[str]:
    """What "baseline" and "random" stand for."""
    metrics_by_name: dict[str, list[str]] = {}
    for metric, name in dict.fromkeys((each.metric, each.baseline_name) for each in in_short_tables(records)):
        metrics_by_name.setdefault(name, []).append(metric)
    metrics_by_name.pop("constant", None)
    named = "; ".join(f"{', '.join(metrics)}: {name}" for name, metrics in metrics_by_name.items())
    lines = [f"baseline: the best constant answer{f', or as named ({named})' if named else ''}"]
    all_metrics = dict.fromkeys(
        record.metric if of_class is None else name_of_class_metric(of_class[0], "CLASS")
        for record, of_class in ((record, class_of_metric(record.metric)) for record in records)
    )
    lower = [metric for metric in all_metrics if lower_is_better(metric)]
    if lower:
        lines.append(f"lower is better: {', '.join(lower)}")
    if any(record.interval_low is not None for record in records):
        lines.append("95 % intervals over resampled objects are in results.json and report.html")
    if any(record.part.startswith("agg@") for record in records):
        lines.append("agg@M: the aggregate of M views; all@M: the features of the views that it ends with")
    if any(record.random_encoder is not None for record in records):
        lines.append("random: same architecture with fresh weights, same probes")
    return lines


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of the metric is the better one."""
    errors = {kind.metric.removesuffix("_median") for kind in KINDS.values() if kind.metric.endswith("_median")}
    return metric.startswith((*LOWER_IS_BETTER, *errors))


def format_value(metric: str, value: float | None) -> str:
    """Degrees with one decimal and the sign of degrees, everything else with three decimals; a dash for None."""
    if value is None:
        return "-"
    return f"{fixed(value, 1)}°" if metric.startswith(ANGLE) else fixed(value, 3)


def fixed(value: float, decimals: int) -> str:
    """A number with so many decimals; what rounds to zero has no sign."""
    return f"{value:z.{decimals}f}"


def finite_records(records: Sequence[ProbeRecord]) -> tuple[list[ProbeRecord], list[str]]:
    """The records that are numbers, and a sentence for each one that is NaN or infinite or has such a baseline.

    A random encoder whose number is not finite is as one that was not measured.
    """
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
    """Text from outside, such as names of classes, is written as it is shown."""
    return json.dumps(visible_values(content), indent=1, allow_nan=False) + "\n"


def _record_of(entry: Any, path: Path) -> ProbeRecord:
    """The record that an entry of the file is; what earlier versions did not write has its default."""
    if not isinstance(entry, dict):
        raise _corrupt(path, f"a record is {entry!r:.60}")
    values = {}
    for field in fields(ProbeRecord):
        if field.name not in entry and field.default is MISSING:
            raise _corrupt(path, f"a record lacks {field.name!r}")
        value = entry.get(field.name, field.default)
        if not _FITS[str(field.type)](value):
            raise _corrupt(path, f"{field.name!r} of a record is {value!r:.60}")
        values[field.name] = value
    return ProbeRecord(**values)


# Of the types of a record's fields: whether a JSON value, which is finite, is one.
_FITS: dict[str, Callable[[Any], bool]] = {
    str(str): lambda value: isinstance(value, str),
    str(int): lambda value: type(value) is int,
    str(float): lambda value: type(value) in (int, float),
    str(float | None): lambda value: value is None or type(value) in (int, float),
}


def _corrupt(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is not a results file ({reason}): {_ANEW}")
