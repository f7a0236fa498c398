"""How many pictures a second the renderer draws.

    python tools/bench_render.py [--json FILE] [--device cuda] [--seed N]

On a CPU: pictures per CPU-second of one thread (process time, so other programs hardly disturb it) at 64, 128 and
256 pixels over the default object families, 2 x 2 supersampling. Targets: 250, 80 and 20. On a GPU: pictures per
second of wall time, synchronised, without targets. The sizes take turns, round
after round; printed are the median over the rounds and the range. Takes about 15 seconds on one core.

Two more rows compare what a run with and without `--render-views` gets, batches of 64 pairs at 64 pixels, in wall time:
`rendered_loader` ("rendered while training") and `stored_loader` on shards of the same, with `--threads` threads each.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from benchmarks import Row, machine_of, print_rows, row_of, seconds_of, write_rows

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.loading.rendered import RenderedViews, rendered_loader
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.rendering.procedural import ProceduralConfig, build_procedural
from ssl_equi.data.shards.reader import ShardDataset
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
PAIRS = 64  # a batch while training


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
    threads: int = 2
    """of either loader"""


def measure(meshes: list[Mesh], config: Config) -> list[Row]:
    """Pictures a second at each size."""
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
    unit = "images per CPU-second" if on_cpu else "images per second"
    return [row_of(f"{resolution} px, {unit}", values, targets.get(resolution)) for resolution, values in rates.items()]


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


def measure_loaders(config: Config) -> list[Row]:
    """Pictures a second of wall time that reach the device, rendered and read from shards."""
    embedded = ProceduralConfig(train_objects=OBJECTS_PER_FAMILY)
    batches = {"rendered while training": 4, "read from shards": 100}  # a round
    if config.device == "cuda":
        batches = dict.fromkeys(batches, 100)
    rates: dict[str, list[float]] = {name: [] for name in batches}
    with tempfile.TemporaryDirectory(prefix="bench_render_") as folder:
        build_procedural(Path(folder), embedded, ("train",), show_progress=False)
        rendered, stored = RenderedViews(embedded, "train", config.device), ShardDataset(Path(folder), "train")
        options = {"global_batch_size": PAIRS, "seed": config.seed, "threads": config.threads}
        with rendered_loader(rendered, **options) as rendering, stored_loader(stored, **options) as reading:
            iterators = dict(zip(batches, (rendering.batches(), reading.batches()), strict=True))
            for round_number in range(config.rounds + 1):
                for name, count in batches.items():
                    work = taking(iterators[name], count, config.device)
                    seconds = seconds_of(work, config.device)
                    if round_number > 0:
                        rates[name].append(2 * PAIRS * count / seconds)
    return [row_of(f"64 px, {name}, images per second", values) for name, values in rates.items()]


def taking(batches: Iterator[ViewBatch], count: int, device: str) -> Callable[[], None]:
    """Takes so many batches to the device."""

    def take() -> None:
        for _ in range(count):
            next(batches).to(device)

    return take


def main(config: Config) -> None:
    torch.set_num_threads(1)
    meshes = [build_object(family, seed) for family in DEFAULT_FAMILIES for seed in range(OBJECTS_PER_FAMILY)]
    rows = measure(meshes, config) + measure_loaders(config)
    print_rows(f"Rendering ({machine_of(config.device)['device']})", rows, ["{:,.0f}"] * len(rows))
    write_rows(config.json, rows, config.device)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
