"""Builds the data sets of the proof, the small one first, beside the phases that need none; and waits for one of them.

`small` is for runs of a few steps, `pairs64` the embedded set as it is, `pairs256` fewer and larger images.
"""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from measurements import Phase, run_phase

from ssl_equi.data.rendering.procedural import ProceduralConfig, build_procedural
from ssl_equi.runtime.system import usable_cores

MOST_WORKERS = 12  # the other cores are for the phases
TINY = ProceduralConfig(
    families=("chair", "teapot", "dog"), held_out_families=("mug",), train_objects=12, val_objects=2, test_objects=4,
    views=6, image_size=32,
)  # fmt: skip
SETS = {
    "small": replace(ProceduralConfig(), train_objects=4, val_objects=1, test_objects=2, views=8),
    "pairs64": ProceduralConfig(),
    "pairs256": replace(
        ProceduralConfig(), train_objects=16, val_objects=1, test_objects=1, views=12, image_size=256
    ),
}  # fmt: skip


def folder_of(phase: Phase, name: str) -> Path:
    """Where a set is built; with `quick` one tiny set stands for all."""
    return phase.work / "sets" / ("tiny" if phase.quick else name)


def wait_for_set(phase: Phase, name: str) -> Path:
    """The folder of a set, once it is whole.

    Raises:
        TimeoutError: it isn't before the phase has to end.
    """
    folder = folder_of(phase, name)
    while not folder.with_suffix(".done").exists():
        if phase.seconds_left() < 0:
            raise TimeoutError(f"the set {folder.name} is not built yet: call again with --resume")
        time.sleep(0.1)
    return folder


def build(phase: Phase) -> None:
    """Builds all of them, unless an earlier call has."""
    configs = {"tiny": TINY} if phase.quick else SETS
    workers = max(1, min(MOST_WORKERS, usable_cores() - 2))
    os.nice(5)
    for name, config in configs.items():
        folder, started = folder_of(phase, name), time.perf_counter()
        build_procedural(folder, config, ("train", "val", "test"), workers=workers, show_progress=False)
        folder.with_suffix(".done").touch()
        print(f"{name}: {time.perf_counter() - started:.1f} s, {workers} processes", flush=True)


if __name__ == "__main__":
    run_phase(build)
