"""Phase 2: how often the host waits for the GPU in a training step, by the line that makes it wait.

PyTorch's own debug mode notes each operation that waits, its profiler what the driver was asked for. Lines of the log
and checkpoints, which have to wait, are left out.
"""

import contextlib
import functools
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from measurements import Phase, Value, run_phase
from recipe_loops import NEVER, configured, load_recipe, run_loop
from sets import wait_for_set

from ssl_equi.data.batch import ViewBatch

ROOT = Path(__file__).parents[2]
FIRST_COUNTED, FIRST_PROFILED, LAST, STEPS = 2, 5, 7, 8
PROCESSES = 6
AUGMENTED = ["--views.source", "augmented"]
OF_AUGMENTATION = [*AUGMENTED, "--actions", "augmentation"]
VARIANTS: dict[str, list[str]] = {
    "sie": ["sie"],
    "seq_jepa": ["seq_jepa"],
    "simclr, augmented": ["simclr", *AUGMENTED],
    "sie, rendered": ["sie", "--render-views"],
    "moco, augmented": ["moco", *AUGMENTED],
    "sie, augmented": ["sie", *OF_AUGMENTATION],
    "equicaps": ["equicaps"],
    "capsie": ["capsie"],
    "essl": ["essl"],
    "care": ["care"],
    "seq_jepa, augmented": ["seq_jepa", "--views.preset", "seq_jepa", *OF_AUGMENTATION],
    "seq_jepa_saccades": ["seq_jepa_saccades"],
    "conv_jepa": ["conv_jepa"],
    "sie, rotation and colour": ["sie", "--actions", "rotation_color"],
    "equimod": ["equimod"],
    "sen": ["sen"],
    "augself": ["augself"],
    "conditional_byol": ["conditional_byol"],
    "byol": ["byol"],
    "moco": ["moco"],
    "simclr": ["simclr"],
    "simsiam": ["simsiam"],
    "barlow_twins": ["barlow_twins"],
    "vicreg": ["vicreg"],
    "vicreg_traj": ["vicreg_traj"],
    "supervised": ["supervised"],
}
QUICK_VARIANTS = ("sie", "simclr, augmented")
RENDERING_MAY_WAIT = "<= 9"  # for shapes that depend on values, a pass of the rasteriser


class WaitCounter:
    """Counts waits from the second step on, by place."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.places: Counter[str] = Counter()
        self.asked_of_driver: Counter[str] = Counter()
        self.steps = 0

    def on_step(self, step: int, batch: ViewBatch) -> None:
        """Switches debug mode and profiler; see `recipe_loops.run_loop`."""
        self.steps = step + 1
        if not self.on_gpu:
            return
        if step == FIRST_COUNTED:
            torch.cuda.set_sync_debug_mode("warn")
        elif step == FIRST_PROFILED:
            torch.cuda.set_sync_debug_mode("default")
            activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
            self.profile = torch.profiler.profile(activities=activities)
            self.profile.__enter__()
        elif step == LAST:
            self.profile.__exit__(None, None, None)
            for event in self.profile.key_averages():
                if "Synchronize" in event.key and event.key.startswith("cuda"):
                    self.asked_of_driver[event.key] += event.count

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Counts PyTorch's warnings of waits instead of showing them."""
        always = torch.is_warn_always_enabled()
        torch.set_warn_always(True)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = self._count
            try:
                yield
            finally:
                torch.set_warn_always(always)
                if self.on_gpu:
                    torch.cuda.set_sync_debug_mode("default")

    def _count(self, message: object, *_: object, **__: object) -> None:
        if "called a synchronizing" not in str(message):  # switching the mode on warns, too
            return
        own = [f for f in traceback.extract_stack() if f.filename.startswith((f"{ROOT}/ssl_equi", f"{ROOT}/recipes"))]
        place = f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno}" if own else "elsewhere"
        self.places[place] += 1


def count_waits(label: str, data: Path, work: Path, quick: bool) -> Value:
    """Waits in a step of a variant."""
    name, *options = VARIANTS[label]
    recipe = load_recipe(name)
    sizes = ["--image-size", "32", "--batch-size", "16"] if quick else ["--batch-size", "16"]
    counter = WaitCounter(on_gpu=not quick)
    with tempfile.TemporaryDirectory(dir=work) as folder, counter.listening():
        config = configured(recipe, [
            *options, "--data-dir", str(data), *sizes, "--steps", str(STEPS), "--log-every", NEVER,
            "--save-every", NEVER, "--out", f"{folder}/run", "--loader-threads", "2",
        ])  # fmt: skip
        run_loop(recipe, config, counter.on_step)
    assert counter.steps == STEPS, f"{counter.steps} steps instead of {STEPS}"
    counted, profiled = FIRST_PROFILED - FIRST_COUNTED, LAST - FIRST_PROFILED
    places = {place: round(count / counted, 2) for place, count in counter.places.most_common()}
    driver = {name: count / profiled for name, count in counter.asked_of_driver.items()}
    return Value(sum(counter.places.values()) / counted, places | driver)


def run(phase: Phase) -> None:
    labels = [label for label in VARIANTS if not phase.quick or label in QUICK_VARIANTS]
    data = wait_for_set(phase, "small")
    count = functools.partial(count_waits, data=data, work=phase.work, quick=phase.quick)
    names = {label: f"host waits a step, {label}" for label in labels}
    waiting = [label for label in labels if phase.value_of(names[label]) is None]
    with contextlib.ExitStack() as stack:
        futures: dict[str, Future[Value]] = {}
        if not phase.quick and waiting:
            pool = stack.enter_context(ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")))
            futures = {label: pool.submit(count, label) for label in waiting}
        for label in waiting:
            target = RENDERING_MAY_WAIT if "rendered" in label else "<= 0"
            work = futures[label].result if label in futures else functools.partial(count, label)
            phase.measure(names[label], "waits", work, target)
    phase.measure("variants that ran", "variants", lambda: all_measured(phase, names), f">= {len(labels)}")


def all_measured(phase: Phase, names: dict[str, str]) -> int:
    """How many variants there are, once each has its figure."""
    missing = [label for label, name in names.items() if phase.value_of(name) is None]
    assert not missing, f"without a figure: {', '.join(missing)}"
    return len(names)


if __name__ == "__main__":
    run_phase(run)
