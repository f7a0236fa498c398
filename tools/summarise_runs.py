"""Mean and standard deviation over seeds, from the results.json of several runs, as a Markdown table.

    python tools/summarise_runs.py runs/sie-seed0 runs/sie-seed1 runs/sie-seed2 runs/vicreg-seed0 ...
    python tools/summarise_runs.py runs/*-seed? --layout methods      one row a method, with the commands below
    python tools/summarise_runs.py runs/*-seed? --layout sequences    the same, of what aggregates of views know
    python tools/summarise_runs.py runs/*-seed? --layout poses        the same, of rotations and translations

In these layouts, `gamma_f` has in brackets what the same features give if nothing relates the images.

Runs whose folders differ in a trailing -seedN only are one method. The random encoder is the one that runs were
compared with; the constant is the best answer that looks at no image.
"""

import json
import re
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.errors import UserError
from ssl_equi.probing.records import ProbeRecord, read_records

METRICS = ("top1", "r2_uniform", "r2_pooled", "angle_deg_median")
Column = tuple[str, str]  # task and metric
METHOD_COLUMNS: tuple[Column, ...] = (
    ("classification", "top1"),
    ("relative_rotation", "r2_uniform"),
    ("relative_rotation", "angle_deg_median"),
    ("colour", "r2_uniform"),
    ("augmentation_equivariance", "gamma_f"),
)
SEQUENCE_COLUMNS: tuple[Column, ...] = (
    ("classification", "top1"),
    ("relative_rotation", "r2_uniform"),
    ("relative_rotation", "angle_deg_median"),
    ("absolute_rotation", "r2_uniform"),
    ("leakage_rotation", "r2_uniform"),
)
POSE_COLUMNS: tuple[Column, ...] = (
    ("classification", "top1"),
    ("relative_rotation", "r2_uniform"),
    ("relative_rotation", "angle_deg_median"),
    ("absolute_rotation", "r2_uniform"),
    ("translation_object", "r2_uniform"),
    ("translation_base", "r2_uniform"),
    ("colour", "r2_uniform"),
    ("capsule_rotation", "angle_deg_median"),
)
COLUMNS = {"methods": METHOD_COLUMNS, "sequences": SEQUENCE_COLUMNS, "poses": POSE_COLUMNS}
RunRecords = dict[str, list[list[ProbeRecord]]]  # by method: the records of each of its runs


@dataclass(frozen=True)
class Config:
    """Which runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders."""
    layout: Literal["tasks", "methods", "sequences", "poses"] = "tasks"
    """tasks: a row for each task, metric and part. methods: a row for each method and part, main metrics only.
    sequences: the same, with what leaks into aggregates. poses: the same, with translations in both frames, and
    without the columns that no run has."""
    metrics: tuple[str, ...] = METRICS
    """Metrics to show in the layout by tasks."""


def main(config: Config) -> None:
    records_by_name: RunRecords = defaultdict(list)
    for folder in config.runs:
        records_by_name[method_name(folder)].append(read_run(folder)[0])
    check_origins(records_by_name)
    print_origins(records_by_name)
    if config.layout == "tasks":
        print_tasks(records_by_name, config.metrics)
    else:
        shown = COLUMNS[config.layout]
        print_methods(records_by_name, present(shown, records_by_name) if config.layout == "poses" else shown)
        print_commands(config.runs)


def check_origins(records_by_name: RunRecords) -> None:
    """Raises UserError if the same question was asked of two runs by different protocols or on different splits."""
    origins: dict[tuple[str, str, str], tuple[str, str, int]] = {}
    for record in (record for runs in records_by_name.values() for records in runs for record in records):
        origin = (record.protocol, record.split, record.num_objects)
        first = origins.setdefault((record.task, record.part, record.metric), origin)
        if first != origin:
            raise UserError(
                f"{record.task} of {record.part} was judged by {first[0]} on {first[1]} ({first[2]} objects) and by "
                f"{origin[0]} on {origin[1]} ({origin[2]} objects): summarise one protocol and split at a time"
            )


def print_origins(records_by_name: RunRecords) -> None:
    """Protocols, split and numbers of seeds."""
    records = [record for runs in records_by_name.values() for records in runs for record in records]
    protocols = ", ".join(f"`{name}`" for name in dict.fromkeys(record.protocol for record in records))
    splits = ", ".join(dict.fromkeys(f"`{record.split}` ({record.num_objects} objects)" for record in records))
    seeds = ", ".join(f"{name}: {len(runs)} seeds" for name, runs in records_by_name.items())
    print(f"Protocol {protocols}, split {splits}; {seeds}; mean ± standard deviation.\n")


def parts_of(records_by_name: RunRecords) -> list[str]:
    """All parts that any run has, in the order in which they turn up."""
    return list(dict.fromkeys(r.part for runs in records_by_name.values() for records in runs for r in records))


def present(columns: tuple[Column, ...], records_by_name: RunRecords) -> tuple[Column, ...]:
    """The columns that any run has a number for."""
    every = [record for runs in records_by_name.values() for records in runs for record in records]
    return tuple(column for column in columns if of_column(every, column))


def print_tasks(records_by_name: RunRecords, metrics: tuple[str, ...]) -> None:
    """A row for each task, metric and part; a column for each method."""
    print("| task | metric | part | constant | random encoder | " + " | ".join(records_by_name) + " |")
    print("|---|---|---|---|---|" + "---|" * len(records_by_name))
    first = next(iter(records_by_name.values()))[0]
    for task in dict.fromkeys(record.task for record in first):
        for metric in metrics:
            for part in parts_of(records_by_name):
                print_row(task, metric, part, records_by_name)


def print_methods(records_by_name: RunRecords, shown: tuple[Column, ...]) -> None:
    """A row for each method and part, one for the constant answer and one for the random encoder."""
    wholes = [
        record for runs in records_by_name.values() for records in runs for record in records if record.part == "all"
    ]
    print("| method | part | " + " | ".join(f"{task} `{metric}`" for task, metric in shown) + " |")
    print("|---|---|" + "---|" * len(shown))
    # What stands for "no relation" in augmentation_equivariance differs between encoders: it is shown in their cells.
    constants = [[r.baseline for r in of_column(wholes, column)[:1] if not own_baseline(r)] for column in shown]
    print_cells("without an image", "-", constants)
    randoms = [
        [r.random_encoder for r in of_column(wholes, column) if r.random_encoder is not None] for column in shown
    ]
    print_cells("random encoder", "`all`", randoms)
    for name, runs in records_by_name.items():
        for part in parts_of({name: runs}):
            found = [r for records in runs for r in records if r.part == part]
            columns = [of_column(found, column) for column in shown]
            if any(columns):
                nulls = [[r.baseline for r in records if own_baseline(r)] for records in columns]
                print_cells(name, f"`{part}`", [[r.value for r in records] for records in columns], nulls)


def of_column(records: list[ProbeRecord], column: tuple[str, str]) -> list[ProbeRecord]:
    return [record for record in records if (record.task, record.metric) == column]


def own_baseline(record: ProbeRecord) -> bool:
    """Whether the baseline was measured on the encoder's own features."""
    return record.task == "augmentation_equivariance"


def print_cells(name: str, part: str, values: list[list[float]], nulls: list[list[float]] | None = None) -> None:
    """A row; the mean of a cell's own baselines in brackets behind it."""
    cells = [spread(cell) for cell in values]
    for index, null in enumerate(nulls or []):
        if null:
            cells[index] += f" ({statistics.mean(null):.3f})"
    print(f"| {name} | {part} | " + " | ".join(cells) + " |")


def print_commands(folders: tuple[Path, ...]) -> None:
    """The command of each method's first run; an encoder that was only probed has none."""
    print()
    for name in dict.fromkeys(method_name(folder) for folder in folders):
        first = next(folder for folder in folders if method_name(folder) == name)
        if command := read_run(first)[1].get("command"):
            print(f"- {name}: `{command}`")


def print_row(task: str, metric: str, part: str, records_by_name: dict[str, list[list[ProbeRecord]]]) -> None:
    """One row; a dash where a method has no such part, nothing where no method has it."""
    chosen = {
        name: [r for records in runs for r in records if (r.task, r.metric, r.part) == (task, metric, part)]
        for name, runs in records_by_name.items()
    }
    found = [record for records in chosen.values() for record in records]
    if not found:
        return
    random_values = [record.random_encoder for record in found if record.random_encoder is not None]
    cells = [
        task,
        f"`{metric}`",
        f"`{part}`",
        spread([record.baseline for record in found[:1]]),
        spread(random_values) if random_values else "-",
        *(spread([record.value for record in records]) if records else "-" for records in chosen.values()),
    ]
    print("| " + " | ".join(cells) + " |")


def spread(values: list[float]) -> str:
    """Mean ± standard deviation, angles with one decimal; a dash for nothing."""
    if not values:
        return "-"
    decimals = 1 if max(values) > 5 else 3
    mean = f"{statistics.mean(values):.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{decimals}f}"


def method_name(folder: Path) -> str:
    """The folder's name without the seed."""
    return re.sub(r"-seed\d+$", "", folder.resolve().name)


def read_run(folder: Path) -> tuple[list[ProbeRecord], dict]:
    """Records and description of a finished run; of a question that was asked again, the last answer."""
    file = folder / "results.json"
    if not file.is_file():
        raise UserError(f"{folder} has no results.json: let the run end, or leave it out")
    last = {(record.task, record.part, record.metric): record for record in read_records(file)}
    return list(last.values()), json.loads(file.read_text())["run"]


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
