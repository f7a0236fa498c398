"""Mean and standard deviation over seeds, from the results.json of several runs, as a Markdown table.

    python tools/summarise_runs.py runs/sie-seed0 runs/sie-seed1 runs/sie-seed2 runs/vicreg-seed0 ...

Runs of one recipe make one column. The random encoder is the one that each run was compared with; the constant is the
best answer that looks at no image.
"""

import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.errors import UserError
from ssl_equi.probing.records import ProbeRecord, read_records

METRICS = ("top1", "r2_uniform", "r2_pooled", "angle_deg_median")
PARTS = ("all", "inv", "equi")


@dataclass(frozen=True)
class Config:
    """Which runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders."""
    metrics: tuple[str, ...] = METRICS
    """Metrics to show."""


def main(config: Config) -> None:
    records_by_name: dict[str, list[list[ProbeRecord]]] = defaultdict(list)
    for folder in config.runs:
        records_by_name[run_name(folder)].append(read_records(folder / "results.json"))
    origins = {
        (record.protocol, record.split, record.num_objects)
        for runs in records_by_name.values()
        for records in runs
        for record in records
    }
    if len(origins) != 1:
        raise UserError(f"the runs were judged by {len(origins)} protocols or splits: summarise one at a time")
    protocol, split, num_objects = origins.pop()
    seeds = ", ".join(f"{name}: {len(runs)} seeds" for name, runs in records_by_name.items())
    print(f"Protocol `{protocol}`, split `{split}` ({num_objects} objects); {seeds}; mean ± standard deviation.\n")
    print("| task | metric | part | constant | random encoder | " + " | ".join(records_by_name) + " |")
    print("|---|---|---|---|---|" + "---|" * len(records_by_name))
    first = next(iter(records_by_name.values()))[0]
    for task in dict.fromkeys(record.task for record in first):
        for metric in config.metrics:
            for part in PARTS:
                print_row(task, metric, part, records_by_name)


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
    """Mean ± standard deviation, angles with one decimal."""
    decimals = 1 if max(values) > 5 else 3
    mean = f"{statistics.mean(values):.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{decimals}f}"


def run_name(folder: Path) -> str:
    """The recipe's name, from results.json."""
    file = folder / "results.json"
    if not file.is_file():
        raise UserError(f"{folder} has no results.json: let the run end, or leave it out")
    return json.loads(file.read_text())["run"]["name"]


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
