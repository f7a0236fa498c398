"""Phase 6: methods that train at once on one GPU, on equally many images, and are then probed on unseen objects.

Each method is a process (learning_method.py). It first trains some steps beside the others to measure its speed; the
slowest one's tells how many images all of them can see in the seconds that there are.
"""

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from measurements import Phase, Value, process_environment, run_phase
from sets import wait_for_set

METHODS = ("sie", "vicreg", "simclr", "seq_jepa")
QUICK_METHODS = ("sie", "vicreg")
SECONDS_BESIDES = 50.0  # imports, the speed, and the probes at the end
LEAST_SECONDS = 15.0
METRICS = (("classification", "top1"), ("relative_rotation", "r2_uniform"), ("relative_rotation", "angle_deg_median"))


def learn(phase: Phase, folder: Path) -> Value:
    """Images per second of all methods together, once they are trained and probed.

    Raises:
        RuntimeError: one of them fails.
    """
    methods = QUICK_METHODS if phase.quick else METHODS
    seconds = 0.0 if phase.quick else phase.seconds_left() - SECONDS_BESIDES
    data = wait_for_set(phase, "pairs64")
    processes = {}
    for method in methods:
        command = [
            sys.executable, str(Path(__file__).with_name("learning_method.py")), "--method", method,
            "--methods", str(len(methods)), "--data-dir", str(data), "--folder", str(folder), "--seconds", str(seconds),
        ]  # fmt: skip
        quick = ["--quick"] if phase.quick else []
        processes[method] = subprocess.Popen([*command, *quick], env=process_environment(phase.quick))
        if phase.quick:
            processes[method].wait()
    failed = [method for method, process in processes.items() if process.wait() != 0]
    if failed:
        raise RuntimeError(f"{', '.join(failed)} failed, see the log")
    notes = {method: json.loads((folder / f"{method}.json").read_text()) for method in methods}
    rate = sum(note["images"] for note in notes.values()) / max(note["seconds"] for note in notes.values())
    return Value(rate, {"images a method": [note["images"] for note in notes.values()], "methods": list(methods)})


def scores(folder: Path, method: str) -> dict[str, float]:
    """Of the probes on unseen objects, by part, task and metric."""
    records: list[dict[str, Any]] = json.loads((folder / method / "results.json").read_text())["records"]
    return {
        f"{method} {record['part']}: {record['task']} {record['metric']}": record["value"]
        for record in records
        if (record["task"], record["metric"]) in METRICS
    }


def run(phase: Phase) -> None:
    with tempfile.TemporaryDirectory(dir=phase.work) as folder:
        work = partial(learn, phase, Path(folder))
        rate = phase.measure("training at once", "images/s", work, ">= 40000", LEAST_SECONDS + SECONDS_BESIDES)
        if rate is None or not (Path(folder) / "sie" / "results.json").exists():
            return  # it failed, or an earlier call has measured it
        found: dict[str, float] = {}
        for method in QUICK_METHODS if phase.quick else METHODS:
            found |= scores(Path(folder), method)
    for name, value in found.items():
        phase.measure(name, "", partial(float, value))
    rotation = "relative_rotation r2_uniform"
    margin = found[f"sie equi: {rotation}"] - found[f"vicreg all: {rotation}"]
    phase.measure("rotation: SIE's equivariant half above VICReg", "r2", partial(float, margin), ">= 0.1")


if __name__ == "__main__":
    run_phase(run)
