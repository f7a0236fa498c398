"""What the phases of the proof share: measurements that are appended to a file at once, and a phase's own process."""

import argparse
import json
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ENDING_SECONDS = 2.0  # left over when a phase's own time is shared out, so that it ends by itself


class Value(NamedTuple):
    """What a piece of work found: a figure, and anything else that is worth keeping."""

    value: float
    details: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Measurement:
    """One line of the file."""

    phase: int
    name: str
    value: float | None
    """None: it failed, and `details` has the error."""
    unit: str
    target: str | None
    """Such as ">= 12000" or "<= 0.05"; None if nothing is asked."""
    passed: bool | None
    """None if there is no target."""
    seconds: float
    """What it took to measure."""
    details: Mapping[str, Any] = field(default_factory=dict)


def meets(value: float, target: str) -> bool:
    """Whether a value meets a target such as ">= 12000"."""
    sense, _, number = target.partition(" ")
    return value >= float(number) if sense == ">=" else value <= float(number)


def read_measurements(file: Path) -> list[Measurement]:
    """Those of a file, in order; a last line that was cut off is left out, and so is what isn't there."""
    measurements = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            measurements.append(Measurement(**json.loads(line)))
        except json.JSONDecodeError:
            continue
    return measurements


def append_measurement(file: Path, measurement: Measurement) -> None:
    """One more line."""
    with file.open("a") as lines:
        lines.write(json.dumps(asdict(measurement)) + "\n")


@dataclass(frozen=True)
class Phase:
    """One phase in its own process: where it writes, what it may use, how long it has."""

    number: int
    file: Path
    """The measurements of all phases."""
    work: Path
    """Data sets and whatever else is made on the way."""
    quick: bool
    """On the CPU, at tiny sizes."""
    ends_at: float
    """By `time.monotonic`, which all processes of a machine share."""

    @property
    def device(self) -> str:
        """cpu or cuda."""
        return "cpu" if self.quick else "cuda"

    def seconds_left(self) -> float:
        """Until this phase is ended from outside, less what ending by itself takes."""
        return self.ends_at - time.monotonic() - ENDING_SECONDS

    def value_of(self, name: str, phase: int | None = None) -> float | None:
        """The last value of a measurement of this phase or another one; None if there is none."""
        number = self.number if phase is None else phase
        values = [m.value for m in read_measurements(self.file) if (m.phase, m.name) == (number, name)]
        return next((value for value in reversed(values) if value is not None), None)

    def measure(
        self,
        name: str,
        unit: str,
        work: Callable[[], Value | float | None],
        target: str | None = None,
        needs_seconds: float = 0.0,
    ) -> float | None:
        """Does a piece of work and appends what it found; what an earlier process of this phase found is not repeated.

        Work that raises an error is noted as failed, and the phase goes on. Targets are for a GPU: with `quick` none is
        asked.

        Args:
            work: returns None if it turns out that there is nothing to measure.
            needs_seconds: with less left, the work is noted as failed without being begun.
        """
        known = self.value_of(name)
        if known is not None:
            return known
        target = None if self.quick else target
        started = time.perf_counter()
        try:
            if not self.quick and self.seconds_left() < needs_seconds:
                raise TimeoutError(f"{self.seconds_left():.0f} s are left and {needs_seconds:.0f} needed")
            result = work()
            if result is None:
                return None
            found = result if isinstance(result, Value) else Value(float(result))
            value, passed, details = found.value, None if target is None else meets(found.value, target), found.details
        except Exception as error:  # of any kind: one failure must not cost the rest of a GPU's minutes
            traceback.print_exc()
            value, passed, details = None, False, {"error": f"{type(error).__name__}: {error}"[:600]}
        seconds = round(time.perf_counter() - started, 2)
        self.note(Measurement(self.number, name, value, unit, target, passed, seconds, details))
        return value

    def note(self, measurement: Measurement) -> None:
        """Appends a measurement, and prints it for the log."""
        append_measurement(self.file, measurement)
        print(f"{measurement.name}: {measurement.value} {measurement.unit} {dict(measurement.details)}", flush=True)


def phase_command(phase: Phase) -> list[str]:
    """The options from which `run_phase` makes the same phase in another process."""
    options = [
        "--number", str(phase.number), "--file", str(phase.file), "--work", str(phase.work),
        "--ends-at", str(phase.ends_at),
    ]  # fmt: skip
    return [*options, "--quick"] if phase.quick else options


def run_phase(run: Callable[[Phase], None]) -> None:
    """Runs a phase in this process, with what its command line says; without a GPU only `--quick`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--ends-at", type=float, required=True)
    parser.add_argument("--quick", action="store_true")
    run(Phase(**vars(parser.parse_args())))


def process_environment(quick: bool) -> dict[str, str]:
    """For processes of the proof: this clone, one CPU thread, no launcher around; with `quick` no GPU either."""
    root = str(Path(__file__).parents[2])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != root]
    launcher = ("ACCELERATE_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launcher)}
    kept |= {"PYTHONPATH": os.pathsep.join([*paths, root]), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    return kept | {"CUDA_VISIBLE_DEVICES": ""} if quick else kept
