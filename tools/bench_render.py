"""How many pictures a second the renderer draws.

    python tools/bench_render.py [--json FILE] [--device cuda] [--seed N]

On a CPU: pictures per CPU-second of one thread (process time, so other programs hardly disturb it) at 64, 128 and
256 pixels over the default object families, 2 x 2 supersampling. Targets: 250, 80 and 20. On a GPU: pictures per
second of wall time, synchronised, without targets (the ratios in the JSON file are null). The sizes take turns, round
after round; printed are the median over the rounds and the range. Takes about 15 seconds on one core.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from ssl_equi.scenes.families import DEFAULT_FAMILIES, build_object
from ssl_equi.scenes.mesh import Mesh
from ssl_equi.scenes.render import Renderer, SceneSettings
from ssl_equi.scenes.sampling import sample_latents

OBJECTS_PER_FAMILY = 4
# pictures per CPU-second of one thread
CPU_TARGETS = {64: 250.0, 128: 80.0, 256: 20.0}
# pictures a round, about half a second of work
CPU_IMAGES = {64: 384, 128: 128, 256: 32}
GPU_IMAGES = {64: 16384, 128: 4096, 256: 1024}


@dataclass(frozen=True)
class Config:
    json: Path | None = None
    """write the rows to this file too"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where to render"""
    rounds: int = 7
    """measurements of each size"""
    seed: int = 0
    """of the latents"""


@dataclass(frozen=True)
class Rate:
    """Pictures a second at one size."""

    resolution: int
    median: float
    low: float
    high: float
    target: float | None

    def as_row(self, unit: str) -> dict[str, object]:
        """For the JSON file: ratio, low and high are multiples of the target."""

        def of_target(rate: float) -> float | None:
            return rate / self.target if self.target else None

        return {
            "name": f"render {self.resolution} px, {unit}",
            "ratio": of_target(self.median),
            "low": of_target(self.low),
            "high": of_target(self.high),
            "target": self.target,
            "value": self.median,
        }


def measure(meshes: list[Mesh], config: Config) -> list[Rate]:
    """Rates of all sizes."""
    on_cpu = config.device == "cpu"
    counts = CPU_IMAGES if on_cpu else GPU_IMAGES
    clock = time.process_time if on_cpu else time.perf_counter
    renderers = {
        resolution: Renderer(meshes, SceneSettings(resolution=resolution), config.device) for resolution in counts
    }
    generator = np.random.default_rng(config.seed)
    rates: dict[int, list[float]] = {resolution: [] for resolution in counts}
    for round_number in range(config.rounds + 1):
        for resolution, renderer in renderers.items():
            seconds = seconds_to_render(renderer, counts[resolution], generator, clock)
            if round_number > 0:  # the first round warms up
                rates[resolution].append(counts[resolution] / seconds)
    targets = CPU_TARGETS if on_cpu else {}
    return [
        Rate(resolution, statistics.median(values), min(values), max(values), targets.get(resolution))
        for resolution, values in rates.items()
    ]


def seconds_to_render(
    renderer: Renderer, count: int, generator: np.random.Generator, clock: Callable[[], float]
) -> float:
    """Seconds, by the given clock, to draw `count` random pictures."""
    mesh_indices = torch.from_numpy(generator.integers(renderer.num_meshes, size=count))
    latents = torch.from_numpy(sample_latents(count, generator))
    start = clock()
    renderer.render(mesh_indices, latents)
    if renderer.device.type == "cuda":
        torch.cuda.synchronize(renderer.device)
    return clock() - start


def describe_machine(device: str) -> dict[str, str]:
    """What the numbers were measured on."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU, one thread",
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main(config: Config) -> None:
    torch.set_num_threads(1)
    meshes = [build_object(family, seed) for family in DEFAULT_FAMILIES for seed in range(OBJECTS_PER_FAMILY)]
    unit = "images per CPU-second" if config.device == "cpu" else "images per second"
    rates = measure(meshes, config)
    machine = describe_machine(config.device)

    table = Table(title=f"{unit} ({machine['device']})")
    for header in ("size", "median", "range", "target", "median / target"):
        table.add_column(header, justify="right")
    for rate in rates:
        table.add_row(
            f"{rate.resolution} px",
            f"{rate.median:.0f}",
            f"{rate.low:.0f} - {rate.high:.0f}",
            f"{rate.target:.0f}" if rate.target else "-",
            f"{rate.median / rate.target:.2f}" if rate.target else "-",
        )
    Console(width=80).print(table)
    if config.json:
        rows = [rate.as_row(unit) for rate in rates]
        config.json.write_text(json.dumps({"rows": rows, "machine": machine}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
