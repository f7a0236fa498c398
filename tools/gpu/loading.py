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

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import torch
from benchmarks import wait_for
from measurements import Phase, Value, run_phase
from recipe_loops import NEVER, configured, load_recipe, run_loop
from sets import wait_for_set

from ssl_equi.data.loading.gpu import encoded_views, gpu_loader, nvjpeg_decoder
from ssl_equi.data.loading.loader import Loader
from ssl_equi.data.loading.rendered import RenderedViews, config_of_stored, rendered_loader
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.sources import DataSource, open_data
from ssl_equi.training.config import MOST_THREADS, LoaderSize, PretrainingConfig, loader_size
from ssl_equi.training.devices import on_device

WARM_UP_BATCHES = 6  # more than a loader makes ahead
SECONDS = 1.5
PAPER_LOOP = ["--encoder", "sie_resnet18", "--batch-size", "256", "--mixed-precision", "bf16", "--epochs", "1000"]
LOOP_STEPS, LINES_LEFT_OUT = 90, 1
EMBEDDED_LOOPS: dict[str, list[str]] = {
    "decoded by processes": ["--loader-workers", "12"], "default options": [], "as CUDA graphs": ["--cuda-graph"],
}  # fmt: skip
EMBEDDED_STEPS, EMBEDDED_IMAGES = 600, 128
BATCH_SIZES = {256: 128, 128: 256, 64: 256}
OBJECTS_PER_FAMILY = 16  # whose meshes are rendered: enough for a batch, and made in two seconds


def images_per_second(phase: Phase, make: Callable[[], Loader]) -> Value:
    """Of a loader whose batches are brought to the device as a run does it, and not used there."""
    made, device = time.perf_counter(), torch.device(phase.device)
    with make() as loader:
        images, started, details = 0, time.perf_counter(), {}
        for number, batch in enumerate(on_device(loader.batches(0), device)):
            images += batch.images.shape[0] * batch.images.shape[1]
            if number == 0:
                details = {"seconds to the first batch": round(time.perf_counter() - made, 2)}
            elif number == WARM_UP_BATCHES:
                wait_for(phase.device)
                images, started = 0, time.perf_counter()
            elif number > WARM_UP_BATCHES and time.perf_counter() - started > (0.2 if phase.quick else SECONDS):
                break
        wait_for(phase.device)
        return Value(images / (time.perf_counter() - started), details)


def open_set(phase: Phase, name: str, image_size: int) -> DataSource:
    """A set of the proof, at the asked-for size if that is another than it is stored in."""
    return open_data("3diebench-p", wait_for_set(phase, name), "test", 32 if phase.quick else image_size, "indexed")


def measure_loader(phase: Phase, name: str, image_size: int, way: str) -> None:
    """Pairs of views of a set, decoded at one size by processes, by threads or by nvJPEG."""

    def work() -> Value:
        data = open_set(phase, name, image_size).train
        options: dict[str, Any] = {"global_batch_size": 8 if phase.quick else BATCH_SIZES[image_size], "seed": 0}
        if way == "nvJPEG":
            device = torch.device(phase.device)
            options |= {"device": device, "decode": nvjpeg_decoder(device), "threads": MOST_THREADS}
            return images_per_second(phase, lambda: gpu_loader(encoded_views(data), **options))
        size = LoaderSize(2, 1) if phase.quick else loader_size(PretrainingConfig(), torch.device(phase.device))
        lanes = {"threads": size.threads, "workers": size.workers if way == "processes" else 0}
        found = images_per_second(phase, lambda: stored_loader(data, **lanes, **options))
        return Value(found.value, {**found.details, **lanes})

    phase.measure(f"loader, {image_size} px, {way}", "images/s", work, needs_seconds=SECONDS + 2)


def measure_rendering(phase: Phase, image_size: int, target: str | None) -> None:
    """Views rendered on the device, in batches of 256 pairs."""

    def work() -> Value:
        stored = config_of_stored(open_set(phase, "pairs64", 64).train)
        started = time.perf_counter()
        if not phase.quick:
            stored = replace(stored, train_objects=OBJECTS_PER_FAMILY, image_size=image_size)
        views = RenderedViews(stored, "train", torch.device(phase.device))
        details = {"objects": views.num_objects, "seconds for the meshes": round(time.perf_counter() - started, 1)}
        batch_size = 2 if phase.quick else 256
        make = partial(rendered_loader, views, global_batch_size=batch_size, views=2, seed=0, fresh_views=True)
        found = images_per_second(phase, make)
        return Value(found.value, {**found.details, **details})

    phase.measure(f"rendered, {image_size} px", "images/s", work, target, needs_seconds=SECONDS + 5)


def loop(phase: Phase, name: str, options: list[str], all_steps: int) -> dict[str, float]:
    """Images a second and the share of waiting in SIE's own loop on a set, after its first line of the log."""
    recipe = load_recipe("sie")
    data = wait_for_set(phase, name)
    sizes = ["--image-size", "32", "--batch-size", "8"] if phase.quick else options
    steps = 6 if phase.quick else all_steps
    log_every = steps // 3
    with tempfile.TemporaryDirectory(dir=phase.work) as folder:
        run_loop(recipe, configured(recipe, [
            "--data-dir", str(data), *sizes, "--steps", str(steps), "--log-every", str(log_every),
            "--save-every", NEVER, "--out", f"{folder}/run", *(["--loader-workers", "1"] if phase.quick else []),
        ]))  # fmt: skip
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
        processes = json.loads((Path(folder) / "run" / "config.json").read_text())["loader_workers"]
    speeds = [line for line in lines if line["event"] == "speed"][LINES_LEFT_OUT:]
    seconds = sum(line["window_seconds"] for line in speeds)
    waited = sum(line["waiting_share"] * line["window_seconds"] for line in speeds)
    images = sum(line["images_per_second"] * line["window_seconds"] for line in speeds)
    rate = images / seconds
    return {"images/s": round(rate), "waiting": waited / seconds, "steps": steps, "processes": processes}


def waiting_share(phase: Phase, image_size: int) -> Value:
    """The part of the time in which no batch was ready, with as many processes as a larger set has; and its speed."""
    workers = str(loader_size(PretrainingConfig(), torch.device(phase.device)).workers)
    options = ["--image-size", str(image_size), *PAPER_LOOP, "--loader-workers", workers]
    found = loop(phase, "pairs256", options, LOOP_STEPS)
    return Value(found.pop("waiting"), found)


def embedded_speed(phase: Phase, options: list[str]) -> Value:
    """Images a second in the loop of 64 pairs of 64 pixels."""
    found = loop(phase, "pairs64", ["--epochs", "1000", *options], EMBEDDED_STEPS)
    milliseconds = 0.0 if phase.quick else 1e3 * EMBEDDED_IMAGES / found["images/s"]
    return Value(found.pop("images/s"), {"ms a step": round(milliseconds, 2), **found})


def run(phase: Phase) -> None:
    """What a default run waits for first; left out is what docs/gpu has settled, such as threads at 256 pixels."""
    for image_size, target in ((256, "<= 0.05"), (128, None)):  # the set's images of 256 pixels are shrunk to 128
        name = f"share of waiting, SIE {image_size} px, default processes"
        phase.measure(name, "", partial(waiting_share, phase, image_size), target, needs_seconds=15)
    for name, options in EMBEDDED_LOOPS.items():
        target = ">= 60000" if name == "as CUDA graphs" else None
        work = partial(embedded_speed, phase, options)
        phase.measure(f"SIE embedded, 64 pairs in the loop, {name}", "images/s", work, target, needs_seconds=10)
    measure_rendering(phase, 128, ">= 15000")
    for name, image_size, way in (
        ("pairs256", 128, "processes"), ("pairs64", 64, "nvJPEG"), ("pairs256", 256, "processes"),
    ):  # fmt: skip
        if not phase.quick or way != "nvJPEG":
            measure_loader(phase, name, image_size, way)
    measure_rendering(phase, 64, ">= 15000")
    measure_loader(phase, "pairs64", 64, "processes")
    measure_loader(phase, "pairs256", 128, "threads")


if __name__ == "__main__":
    run_phase(run)
