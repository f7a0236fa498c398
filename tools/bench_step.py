"""What a training step spends its time on: the step itself, the online probes, waiting for data.

    python tools/bench_step.py                                 the embedded set's sizes, about two minutes on 2 cores
    python tools/bench_step.py --device cuda --batch-size 1024 --encoder resnet18 --json step.json

Trains SIE on the embedded set, step by step, and takes the time of each share. Rounds alternate between steps with
and without probes, so that a busy machine slows both. Shares are of the time of a step without probes; data wait is
the share of the loop that the loader made it wait.
"""

import json
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.actions import relative_rotation
from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.images import normalise_views
from ssl_equi.data.loader import ViewLoader
from ssl_equi.data.sources import DataSource, open_data
from ssl_equi.encoders import create_encoder
from ssl_equi.objectives.sie import SIE, SIEConfig
from ssl_equi.probing.online import OnlineProbes

TARGET_PROBE_SHARE = 0.02
WARMUP_STEPS = 5


@dataclass(frozen=True)
class Config:
    """Sizes of the step and length of the measurement."""

    batch_size: int = 64
    """Objects in a step, two views each."""
    encoder: str = "strided_cnn_tiny"
    """Any timm name."""
    projector_width: int = 1024
    """Width of SIE's two projectors together."""
    steps_per_round: int = 20
    """Steps in a round; probes train on every fourth."""
    rounds: int = 9
    """Rounds of each kind."""
    device: str = "cpu"
    """cpu or cuda."""
    json: Path | None = None
    """Also write the figures to this file."""


class Step:
    """One training step of SIE, and its online probes."""

    def __init__(self, config: Config, data: DataSource) -> None:
        torch.manual_seed(0)
        self.data, self.device = data, config.device
        width = config.projector_width
        encoder = create_encoder(config.encoder, data.train.image_size[0])
        self.objective = SIE(encoder, SIEConfig(projector=(width, width, width))).to(config.device)
        self.optimizer = torch.optim.Adam(self.objective.parameters(), lr=1e-3)
        parts = self.objective.parts
        self.probes = OnlineProbes(parts["all"].stop, parts, len(data.train.class_names), device=config.device)

    def run(self, batch: ViewBatch, with_probes: bool) -> None:
        batch = batch.to(self.device)
        actions = relative_rotation(batch.quat_xyzw)
        output = self.objective(normalise_views(batch.images, self.data.mean_rgb, self.data.std_rgb), actions)
        output.loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if with_probes:
            self.probes.update(output.features, batch.labels, batch.quat_xyzw)


def time_round(step: Step, batches: Iterator[ViewBatch], count: int, with_probes: bool) -> tuple[float, float]:
    """Seconds a step without the wait for data, and seconds of waiting a step."""
    started, waited = time.perf_counter(), 0.0
    for _ in range(count):
        batch = next(batches)
        waited += batch.seconds_waited
        step.run(batch, with_probes)
    if step.device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started - waited) / count, waited / count


def measure(config: Config) -> list[dict]:
    data = open_data("3diebench-p", None, "test", 64)
    step = Step(config, data)
    plain, probed, waits = [], [], []
    with ViewLoader(data.train, global_batch_size=config.batch_size, seed=0) as loader:
        batches = loader.batches()
        time_round(step, batches, WARMUP_STEPS, with_probes=True)
        for _ in range(config.rounds):
            for seconds, with_probes in ((plain, False), (probed, True)):
                busy, waited = time_round(step, batches, config.steps_per_round, with_probes)
                seconds.append(busy)
                waits.append(waited / (busy + waited))
    shares = [with_probes / without - 1 for without, with_probes in zip(plain, probed, strict=True)]
    return [
        {"name": "online probes, share of a step", "target": TARGET_PROBE_SHARE, **summary(shares)},
        {"name": "waiting for data, share of the loop", "target": None, **summary(waits)},
        {"name": "images a second", "target": None, **summary([2 * config.batch_size / s for s in plain])},
        {"name": "milliseconds a step", "target": None, **summary([1000 * s for s in plain])},
    ]


def summary(values: list[float]) -> dict[str, float]:
    return {"ratio": statistics.median(values), "low": min(values), "high": max(values)}


def main(config: Config) -> None:
    rows = measure(config)
    table = Table(title=f"SIE, {config.encoder}, {config.batch_size} pairs a step, {config.device}", width=80)
    for header in ("", "median", "range", "target"):
        table.add_column(header, justify="left" if not header else "right")
    for row in rows:
        style = "{:.1%}" if "share" in row["name"] else "{:,.0f}"
        low, high = style.format(row["low"]), style.format(row["high"])
        target = "" if row["target"] is None else style.format(row["target"])
        table.add_row(row["name"], style.format(row["ratio"]), f"{low} - {high}", target)
    Console(width=80).print(table)
    if config.json is not None:
        machine = {
            "device": torch.cuda.get_device_name() if config.device == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
        config.json.write_text(json.dumps({"rows": rows, "machine": machine}, indent=1) + "\n")


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
