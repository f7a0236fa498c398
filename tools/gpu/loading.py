"""Phase 5: how fast views reach the GPU, however they are made, and how long a run waits for them."""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from measurements import Phase, Value, run_phase
from recipe_loops import NEVER, configured, load_recipe, run_loop
from sets import wait_for_set

from ssl_equi.benchmarks import wait_for
from ssl_equi.data.decoded_cache import CachedViews
from ssl_equi.data.device_decoding import DeviceDecodedLoader, encoded_views, nvjpeg_decoder
from ssl_equi.data.loader import ViewLoader
from ssl_equi.data.rendered_views import RenderedLoader, RenderedViews, config_of_stored
from ssl_equi.data.sources import DataSource, open_data
from ssl_equi.training_loader import TrainingLoader

WARM_UP_BATCHES = 6  # more than a loader makes ahead
SECONDS = 2.0
LANES: tuple[tuple[int, int], ...] = ((2, 0), (8, 0), (16, 0), (2, 12))  # threads, processes
PAPER_LOOP = ["--encoder", "sie_resnet18", "--batch-size", "256", "--mixed-precision", "bf16", "--epochs", "1000"]
LOOP_STEPS, LINES_LEFT_OUT = 90, 1


def images_per_second(phase: Phase, make: Callable[[], TrainingLoader]) -> float:
    """Of a loader whose batches are copied to the device and not used."""
    with make() as loader:
        images, started = 0, time.perf_counter()
        for number, batch in enumerate(loader.batches(0)):
            batch = batch.to(phase.device)
            images += batch.images.shape[0] * batch.images.shape[1]
            if number == WARM_UP_BATCHES:
                wait_for(phase.device)
                images, started = 0, time.perf_counter()
            elif number > WARM_UP_BATCHES and time.perf_counter() - started > (0.2 if phase.quick else SECONDS):
                break
        wait_for(phase.device)
        return images / (time.perf_counter() - started)


def open_set(phase: Phase, name: str, image_size: int) -> DataSource:
    """A set of the proof, at the asked-for size if that is another than it is stored in."""
    return open_data("3diebench-p", wait_for_set(phase, name), "test", 32 if phase.quick else image_size, "indexed")


def measure_loaders(phase: Phase, name: str, image_size: int, batch_size: int) -> None:
    """Threads, processes, the cache and nvJPEG at one size."""
    data, quick = open_set(phase, name, image_size), phase.quick
    common: dict[str, Any] = {"global_batch_size": 8 if quick else batch_size, "seed": 0}

    def measure(way: str, make: Callable[[], TrainingLoader]) -> None:
        work = partial(images_per_second, phase, make)
        phase.measure(f"loader, {image_size} px, {way}", "images/s", work, needs_seconds=SECONDS + 2)

    for threads, workers in LANES[:1] + LANES[-1:] if quick else LANES:
        way = f"{workers} processes" if workers else f"{threads} threads"
        workers = min(workers, 1) if quick else workers
        measure(way, partial(ViewLoader, data.train, threads=threads, workers=workers, **common))
    if image_size == 64:
        measure("cached", lambda: ViewLoader(CachedViews(data.train, show_progress=False), **common))
    if not quick and image_size != 128:
        device = torch.device(phase.device)
        measure("nvJPEG", lambda: DeviceDecodedLoader(
            encoded_views(data.train), device=device, decode=nvjpeg_decoder(device), views_per_object=2, threads=8,
            **common,
        ))  # fmt: skip


def measure_rendering(phase: Phase, image_size: int, target: str | None) -> None:
    """Views rendered on the device, in batches of 256 pairs."""

    def work() -> Value:
        stored = config_of_stored(open_set(phase, "pairs64", 64).train)
        started = time.perf_counter()
        size = 32 if phase.quick else image_size
        views = RenderedViews(replace(stored, image_size=size), "train", torch.device(phase.device))
        made = time.perf_counter() - started
        batch_size = 2 if phase.quick else 256
        make = partial(
            RenderedLoader, views, global_batch_size=batch_size, views_per_object=2, seed=0, fresh_views=True
        )
        return Value(images_per_second(phase, make), {"seconds for the meshes": round(made, 1)})

    phase.measure(f"rendered, {image_size} px", "images/s", work, target, needs_seconds=12)


def waiting_share(phase: Phase, options: list[str]) -> Value:
    """Of SIE's own loop: the part of its time in which no batch was ready; and its speed."""
    recipe = load_recipe("sie")
    data = wait_for_set(phase, "pairs256")
    sizes = ["--image-size", "32", "--batch-size", "8"] if phase.quick else ["--image-size", "256", *PAPER_LOOP]
    steps, log_every = (6, 3) if phase.quick else (LOOP_STEPS, LOOP_STEPS // 3)
    with tempfile.TemporaryDirectory(dir=phase.work) as folder:
        run_loop(recipe, configured(recipe, [
            "--data-dir", str(data), *sizes, *options, "--steps", str(steps), "--log-every", str(log_every),
            "--save-every", NEVER, "--out", f"{folder}/run",
        ]))  # fmt: skip
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    speeds = [line for line in lines if line["event"] == "speed"][LINES_LEFT_OUT:]
    seconds = sum(line["window_seconds"] for line in speeds)
    waited = sum(line["waiting_share"] * line["window_seconds"] for line in speeds)
    images = sum(line["images_per_second"] * line["window_seconds"] for line in speeds)
    return Value(waited / seconds, {"images/s": round(images / seconds), "steps": steps})


def run(phase: Phase) -> None:
    for way, options in (("default options", []), ("12 processes", ["--loader-workers", "1" if phase.quick else "12"])):
        share = partial(waiting_share, phase, options)
        phase.measure(f"share of waiting, SIE 256 px, {way}", "", share, "<= 0.05", needs_seconds=15)
    for name, image_size, batch_size in (("pairs256", 256, 128), ("pairs64", 64, 256), ("pairs256", 128, 256)):
        if not phase.quick or image_size != 128:
            measure_loaders(phase, name, image_size, batch_size)
    measure_rendering(phase, 64, ">= 15000")
    measure_rendering(phase, 128, ">= 15000")


if __name__ == "__main__":  # processes of the loader import this file
    run_phase(run)
