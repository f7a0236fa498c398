"""One method of phase 6: measures its speed beside the others, then trains on as many images as they, and is probed.

Its options come from learning.py. It leaves METHOD.json with images and seconds, and its run folder METHOD.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from recipe_loops import configured, load_recipe, run_loop

from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.runtime.system import usable_cores

STEPS_FOR_SPEED, QUICK_STEPS = 150, 3
LONGEST_WAIT = 40.0  # for the others' speeds
CAUTION = 0.85  # a method that was measured while another had finished is slower in the end
NEVER = 10**9


class Clock:
    """What a loop tells of its steps."""

    def __init__(self) -> None:
        self.images_a_step = 0
        self.starts: list[float] = []

    def on_step(self, step: int, batch: ViewBatch) -> None:
        """See `recipe_loops.run_loop`."""
        self.images_a_step = batch.images.shape[0] * batch.images.shape[1]
        self.starts.append(time.perf_counter())

    def images_per_second(self) -> float:
        """Of the second half."""
        half = len(self.starts) // 2
        return self.images_a_step * (len(self.starts) - 1 - half) / (self.starts[-1] - self.starts[half])


def slowest(folder: Path, own: float, method: str, methods: int) -> float:
    """The lowest speed of all, once every method has written its own or has had the time to."""
    (folder / f"{method}.speed").write_text(str(own))
    until = time.monotonic() + LONGEST_WAIT
    while len(list(folder.glob("*.speed"))) < methods and time.monotonic() < until:
        time.sleep(0.1)
    speeds = [file.read_text() for file in folder.glob("*.speed")]
    return min(float(speed) for speed in speeds if speed)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", required=True)
    parser.add_argument("--methods", type=int, required=True)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    recipe = load_recipe(options.method)
    arguments = ["--data-dir", options.data_dir, "--no-compare-with-random"]
    workers = max(0, usable_cores() // options.methods - 1)  # the methods share the machine
    arguments += ["--image-size", "32", "--batch-size", "8"] if options.quick else ["--loader-workers", str(workers)]
    config = replace(configured(recipe, arguments), save_every=NEVER, log_every=50)
    clock = Clock()
    steps = QUICK_STEPS if options.quick else STEPS_FOR_SPEED
    run_loop(recipe, replace(config, steps=steps, out=options.folder / f"{options.method}-speed"), clock.on_step)
    speed = slowest(options.folder, clock.images_per_second(), options.method, 1 if options.quick else options.methods)
    trained(recipe, replace(config, out=options.folder / options.method), clock.images_a_step, speed, options)


def trained(recipe: Any, config: Any, images_a_step: int, speed: float, options: argparse.Namespace) -> None:
    """Trains for as many epochs as the slowest method has time for, and probes."""
    steps_per_epoch = number_of_objects(config) // config.batch_size
    images_an_epoch = images_a_step * steps_per_epoch
    epochs = max(1, round(CAUTION * speed * options.seconds / images_an_epoch))
    clock, started = Clock(), time.perf_counter()
    run_loop(recipe, replace(config, epochs=epochs), clock.on_step, with_ending=True)
    note = {
        "images": epochs * images_an_epoch, "seconds": clock.starts[-1] - clock.starts[0], "epochs": epochs,
        "seconds with probes": time.perf_counter() - started, "slowest": speed,
    }  # fmt: skip
    assert len(clock.starts) == epochs * steps_per_epoch, f"{len(clock.starts)} steps in {epochs} epochs"
    (options.folder / f"{options.method}.json").write_text(json.dumps(note))


def number_of_objects(config: Any) -> int:
    """Of the split that is trained on."""
    return ShardDataset(Path(config.data_dir), "train").num_objects


if __name__ == "__main__":
    main()
