"""Mean and standard deviation over seeds, from the results.json of several runs, as a table.

    ssl-equi table runs/sie-seed0 runs/sie-seed1 runs/sie-seed2 runs/vicreg-seed0 ...
    python evaluation/table.py runs/*-seed? --layout methods      one row a method, with the commands below
    python evaluation/table.py runs/*-seed? --layout sequences    the same, of what aggregates of views know
    python evaluation/table.py runs/*-seed? --layout poses        the same, of rotations and translations
    python evaluation/table.py runs/*-seed? --layout methods --columns knn:top1 relative_azimuth:r2_uniform
    python evaluation/table.py runs/*-seed? --layout methods --format latex > table.tex

In these layouts, `gamma_f` has in brackets what the same features give if nothing relates the images.

Runs whose folders differ in a trailing -seedN only are one method, and must differ in their seed only. The number of a
run that was probed with several seeds is their mean. Random encoders are those that runs were compared with, one of
each architecture; the constant is the best answer that looks at no image.
"""

import csv
import dataclasses
import json
import re
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.errors import UserError
from ssl_equi.evaluation.metrics import fixed
from ssl_equi.evaluation.results import ProbeRecord, read_records
from ssl_equi.evaluation.tables import LARGEST_SHARE, markdown_table, spread
from ssl_equi.files import read_json_object
from ssl_equi.options import ActsWhen
from ssl_equi.training.config import FREE_OPTIONS, flattened

METRICS = ("top1", "r2_uniform", "r2_pooled", "angle_deg_median")
Column = tuple[str, str]  # task and metric
Format = Literal["markdown", "latex", "csv"]
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
BY_TASKS = ActsWhen(lambda options: options.layout == "tasks", "choose --layout tasks")
BY_METHODS = ActsWhen(lambda options: options.layout != "tasks", "add --layout methods")
COLUMNS = {"methods": METHOD_COLUMNS, "sequences": SEQUENCE_COLUMNS, "poses": POSE_COLUMNS}
RunRecords = dict[str, list[list[ProbeRecord]]]  # by method: the records of each of its runs
RandomEncoders = dict[str, list[ProbeRecord]]  # by name of the random encoder: the records that were compared with it


@dataclass(frozen=True)
class Config:
    """Which runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders."""
    layout: Literal["tasks", "methods", "sequences", "poses"] = "tasks"
    """tasks: a row for each task, metric and part. methods: a row for each method and part, main metrics only.
    sequences: the same, with what leaks into aggregates. poses: the same, with translations in both frames, and
    without the columns that no run has."""
    columns: Annotated[tuple[str, ...], BY_METHODS] = ()
    """Columns in place of those of the layout, each TASK:METRIC."""
    metrics: Annotated[tuple[str, ...], BY_TASKS] = METRICS
    """Metrics to show in the layout by tasks."""
    format: Format = "markdown"
    """latex: a tabular with the rules of booktabs. csv: the table alone, and what must be known of it as errors."""
    intervals: Annotated[bool, BY_TASKS] = False
    """Show behind each number the 95 % bootstrap interval over the judged objects, its ends averaged over the runs."""


def main(config: Config) -> None:
    records_by_name: RunRecords = defaultdict(list)
    for folder in config.runs:
        records_by_name[method_name(folder)].append(read_run(folder)[0])
    randoms = random_encoders(config.runs)
    check_options_of_methods(config.runs)
    check_origins(records_by_name)
    tell(origins(records_by_name), config.format)
    if config.layout == "tasks":
        print_table(tasks_table(records_by_name, randoms, config.metrics, config.intervals), config.format)
    else:
        shown = tuple(column_of(text) for text in config.columns) or COLUMNS[config.layout]
        shown = present(shown, records_by_name) if config.layout == "poses" else shown
        if config.columns and len(present(shown, records_by_name)) < len(shown):
            absent = next(column for column in shown if column not in present(shown, records_by_name))
            raise UserError(f"no run has a record of --columns {':'.join(absent)}: name a task and a metric of theirs")
        print_table(methods_table(records_by_name, randoms, shown), config.format)
        tell(commands(config.runs), config.format)


def column_of(text: str) -> Column:
    """Task and metric of TASK:METRIC. Raises UserError for anything else."""
    task, _, metric = text.partition(":")
    if not task or not metric:
        raise UserError(f"--columns is {text!r}: give TASK:METRIC, such as relative_azimuth:r2_uniform")
    return task, metric


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


def check_options_of_methods(folders: tuple[Path, ...]) -> None:
    """Raises UserError if runs that would be averaged differ in more than their seed, such as in their encoder."""
    first: dict[str, tuple[Path, dict[str, Any]]] = {}
    for folder in folders:
        file = folder / "config.json"
        if not file.is_file():  # an evaluation of an encoder alone
            continue
        options = {name: value for name, value in flattened(read_json_object(file, UserError)).items()
                   if name != "seed" and name not in FREE_OPTIONS}  # fmt: skip
        other, expected = first.setdefault(method_name(folder), (folder, options))
        differing = [name for name in {**expected, **options} if expected.get(name) != options.get(name)]
        if differing:
            name = differing[0]
            raise UserError(
                f"{other} has {name} {expected.get(name)!r} and {folder} {options.get(name)!r}, which are no seeds of "
                "one method: name their folders apart"
            )


def origins(records_by_name: RunRecords) -> str:
    """Protocols, split and numbers of seeds."""
    records = [record for runs in records_by_name.values() for records in runs for record in records]
    protocols = ", ".join(f"`{name}`" for name in dict.fromkeys(record.protocol for record in records))
    splits = ", ".join(dict.fromkeys(f"`{record.split}` ({record.num_objects} objects)" for record in records))
    seeds = ", ".join(f"{name}: {len(runs)} seeds" for name, runs in records_by_name.items())
    return f"Protocol {protocols}, split {splits}; {seeds}; mean ± standard deviation.\n"


def tell(text: str, form: Format) -> None:
    """What stands beside a table, as a comment where the format has some."""
    if form == "csv":
        print(text, file=sys.stderr)
    else:
        print("\n".join(f"% {line}".rstrip() for line in text.splitlines()) if form == "latex" else text)


def print_table(rows: list[list[str]], form: Format) -> None:
    """A table whose first row is its head."""
    if form == "csv":
        csv.writer(sys.stdout).writerows([[cell.replace("`", "") for cell in row] for row in rows])
    elif form == "markdown":
        print(markdown_table(rows[0], rows[1:]), end="")
    else:
        lines = [" & ".join(in_latex(cell) for cell in row) + r" \\" for row in rows]
        columns = "l" * len(rows[0])
        print("\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:]]))
        print("\\bottomrule\n\\end{tabular}")


def in_latex(cell: str) -> str:
    """A cell with LaTeX's own signs escaped, and names of metrics and parts in typewriter."""
    escaped = re.sub(r"([_%&#$])", r"\\\1", cell).replace("±", r"$\pm$")
    return re.sub(r"`([^`]*)`", r"\\texttt{\1}", escaped)


def parts_of(records_by_name: RunRecords) -> list[str]:
    """All parts that any run has, in the order in which they turn up."""
    return list(dict.fromkeys(r.part for runs in records_by_name.values() for records in runs for r in records))


def present(columns: tuple[Column, ...], records_by_name: RunRecords) -> tuple[Column, ...]:
    """The columns that any run has a number for."""
    every = [record for runs in records_by_name.values() for records in runs for record in records]
    return tuple(column for column in columns if of_column(every, column))


def random_encoders(folders: tuple[Path, ...]) -> RandomEncoders:
    """Records by the random encoder that they were compared with; its architecture is named if there are several."""
    found: RandomEncoders = defaultdict(list)
    for folder in folders:
        records, described = read_run(folder)
        compared = [record for record in records if record.random_encoder is not None]
        if compared:
            found[architecture(folder, described)] += compared
    return {f"random {name}".strip() if len(found) > 1 else "random encoder": found[name] for name in found}


def architecture(folder: Path, described: dict) -> str:
    """Name and arguments of a run's encoder: as an evaluation notes them, or as the run was configured."""
    if "architecture" in described:
        name, arguments = json.loads(described["architecture"])
    else:
        file = folder / "config.json"
        config = json.loads(file.read_text()) if file.is_file() else {}
        name, arguments = config.get("encoder", ""), config.get("encoder_arguments", {})
    return " ".join([name, *(f"{key}={value}" for key, value in sorted(arguments.items()))])


def tasks_table(
    records_by_name: RunRecords, randoms: RandomEncoders, metrics: tuple[str, ...], intervals: bool
) -> list[list[str]]:
    """A row for each task, metric and part; a column for each method and each random encoder."""
    rows = [["task", "metric", "part", "constant", *(randoms or ["random encoder"]), *records_by_name]]
    first = next(iter(records_by_name.values()))[0]
    for task in dict.fromkeys(record.task for record in first):
        for metric in metrics:
            for part in parts_of(records_by_name):
                rows += task_row(task, metric, part, records_by_name, randoms, intervals)
    return rows


def methods_table(records_by_name: RunRecords, randoms: RandomEncoders, shown: tuple[Column, ...]) -> list[list[str]]:
    """A row for each method and part, one for the constant answer and one for each random encoder."""
    wholes = [
        record for runs in records_by_name.values() for records in runs for record in records if record.part == "all"
    ]
    rows = [["method", "part", *(f"{task} `{metric}`" for task, metric in shown)]]
    # What stands for "no relation" in augmentation_equivariance differs between encoders: it is shown in their cells.
    constants = [[r.baseline for r in of_column(wholes, column)[:1] if not own_baseline(r)] for column in shown]
    rows.append(method_row("without an image", "-", constants))
    for name, compared in (randoms or {"random encoder": []}).items():
        of_whole = [record for record in compared if record.part == "all"]
        rows.append(method_row(name, "`all`", [random_values(of_column(of_whole, column)) for column in shown]))
    for name, runs in records_by_name.items():
        for part in parts_of({name: runs}):
            found = [r for records in runs for r in records if r.part == part]
            columns = [of_column(found, column) for column in shown]
            if any(columns):
                nulls = [[r.baseline for r in records if own_baseline(r)] for records in columns]
                values = [[r.value for r in records] for records in columns]
                rows.append(method_row(name, f"`{part}`", values, nulls))
    return rows


def of_column(records: list[ProbeRecord], column: tuple[str, str]) -> list[ProbeRecord]:
    return [record for record in records if (record.task, record.metric) == column]


def random_values(records: list[ProbeRecord]) -> list[float]:
    return [record.random_encoder for record in records if record.random_encoder is not None]


def own_baseline(record: ProbeRecord) -> bool:
    """Whether the baseline was measured on the encoder's own features."""
    return record.task == "augmentation_equivariance"


def method_row(name: str, part: str, values: list[list[float]], nulls: list[list[float]] | None = None) -> list[str]:
    """A row; the mean of a cell's own baselines in brackets behind it."""
    cells = [spread(cell) for cell in values]
    for index, null in enumerate(nulls or []):
        if null:
            cells[index] += f" ({fixed(statistics.mean(null), 3)})"
    return [name, part, *cells]


def commands(folders: tuple[Path, ...]) -> str:
    """The command of each method's first run; an encoder that was only probed has none."""
    lines = [""]
    for name in dict.fromkeys(method_name(folder) for folder in folders):
        first = next(folder for folder in folders if method_name(folder) == name)
        if command := read_run(first)[1].get("command"):
            lines.append(f"- {name}: `{command}`")
    return "\n".join(lines)


def task_row(
    task: str, metric: str, part: str, records_by_name: RunRecords, randoms: RandomEncoders, intervals: bool
) -> list[list[str]]:
    """One row; a dash where a method has no such part, and none where no method has it."""

    def asked(records: list[ProbeRecord]) -> list[ProbeRecord]:
        return [record for record in records if (record.task, record.metric, record.part) == (task, metric, part)]

    chosen = {name: [r for records in runs for r in asked(records)] for name, runs in records_by_name.items()}
    found = [record for records in chosen.values() for record in records]
    if not found:
        return []
    return [[
        task,
        f"`{metric}`",
        f"`{part}`",
        spread([record.baseline for record in found[:1]]),
        *(spread(random_values(asked(records))) for records in (randoms or {"": []}).values()),
        *(
            spread([record.value for record in records]) + (mean_interval(records) if intervals else "")
            for records in chosen.values()
        ),
    ]]  # fmt: skip


def mean_interval(records: list[ProbeRecord]) -> str:
    """The means of the lower and of the upper ends, in brackets; nothing where a record has no interval."""
    ends = [(record.interval_low, record.interval_high) for record in records]
    known = [(low, high) for low, high in ends if low is not None and high is not None]
    if not known or len(known) < len(ends):
        return ""
    low, high = (statistics.mean(values) for values in zip(*known, strict=True))
    decimals = 1 if high > LARGEST_SHARE else 3
    return f" [{fixed(low, decimals)}, {fixed(high, decimals)}]"


def method_name(folder: Path) -> str:
    """The folder's name without the seed."""
    return re.sub(r"-seed\d+$", "", folder.resolve().name)


def read_run(folder: Path) -> tuple[list[ProbeRecord], dict]:
    """Records and description of a finished run, a record for each question: the mean over the seeds of the probes.

    Of a question that was asked again with a seed, the last answer counts; where protocol or split differ, those of
    the last answer do.
    """
    file = folder / "results.json"
    if not file.is_file():
        raise UserError(f"{folder} has no results.json: let the run end, or leave it out")
    questions: dict[tuple[str, str, str], dict[int, ProbeRecord]] = {}
    for record in read_records(file):
        answers = questions.setdefault((record.task, record.part, record.metric), {})
        if any((record.protocol, record.split) != (other.protocol, other.split) for other in answers.values()):
            answers.clear()
        answers[record.seed] = record
    return [mean_record(list(answers.values())) for answers in questions.values()], json.loads(file.read_text())["run"]


def mean_record(answers: list[ProbeRecord]) -> ProbeRecord:
    """One record for the same question of the same encoder, asked with several seeds of the probes."""
    randoms = random_values(answers)
    return dataclasses.replace(
        answers[-1],
        value=statistics.mean(record.value for record in answers),
        baseline=statistics.mean(record.baseline for record in answers),
        random_encoder=statistics.mean(randoms) if randoms else None,
    )


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
