"""What the benchmark scripts share: rows of figures, the machine they were measured on, the JSON file."""

import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch
from rich.console import Console
from rich.table import Table


class Row(TypedDict):
    """One figure: the median of its measurements, their range, and what it should reach (None: nothing)."""

    name: str
    ratio: float
    low: float
    high: float
    target: float | None


def row_of(name: str, values: Sequence[float], target: float | None = None) -> Row:
    """The row of some measurements."""
    return {"name": name, "ratio": statistics.median(values), "low": min(values), "high": max(values), "target": target}


def machine_of(device: str) -> dict[str, str | int]:
    """What the figures were measured on; `device` is cpu or cuda."""
    on_gpu = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU",
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def print_rows(title: str, rows: Sequence[Row], formats: Sequence[str]) -> None:
    """A table of 80 columns; `formats` has a format such as "{:.2f}" for each row."""
    table = Table(title=title, width=80)
    for header in ("", "median", "range", "target"):
        table.add_column(header, justify="left" if not header else "right")
    for row, style in zip(rows, formats, strict=True):
        target = "" if row["target"] is None else style.format(row["target"])
        between = f"{style.format(row['low'])} - {style.format(row['high'])}"
        table.add_row(row["name"], style.format(row["ratio"]), between, target)
    Console(width=80).print(table)


def write_rows(file: Path | None, rows: Sequence[Row], device: str) -> None:
    """Writes {"rows": [...], "machine": {...}}, unless there is no file to write."""
    if file is not None:
        file.write_text(json.dumps({"rows": list(rows), "machine": machine_of(device)}, indent=1) + "\n")
