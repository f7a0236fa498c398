"""The proof on a GPU: what it measures within minutes, phase by phase, and what was asked of it.

    PYTHONPATH=SITE:. python tools/gpu/proof.py --out DIR                        everything, 560 seconds
    ... --out DIR2 --resume DIR/proof.jsonl --budget 170                         what is missing or failed
    ... --out DIR --phases 5,3                                                   some of it, in this order
    ... --out DIR --quick                                                        on a CPU, tiny: does it work at all

Each phase is a process with a limit of seconds, which --quick lifts; one that fails or is late is noted and the next
begins. Measurements stand in DIR/proof.jsonl as soon as they are known, and in DIR/proof.md at the end; DIR/logs.txt
has the ends of the logs. `tools/gpu/README.md` says how a machine is prepared.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from measurements import (
    Measurement,
    Phase,
    append_measurement,
    phase_command,
    process_environment,
    read_measurements,
)

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
WHOLE_PHASE = "the phase as a whole"
LEAST_SECONDS = 8.0  # below this a phase is not begun: its imports alone take as long
ENDING_SECONDS = 5.0  # for the table and the logs
TABLE_LINES = 60
LOG_CHARACTERS = 60_000  # of each phase


@dataclass(frozen=True)
class Planned:
    """A phase of the plan: a script of this folder, and the most seconds that it gets."""

    number: int
    title: str
    script: Path
    limit: float


PLAN = (
    Planned(0, "ceilings of the machine", FOLDER / "ceilings.py", 25),
    Planned(1, "tests marked cuda", FOLDER / "cuda_tests.py", 100),
    Planned(2, "waits of the host", FOLDER / "waits.py", 35),
    Planned(3, "training steps", FOLDER / "steps.py", 200),
    Planned(4, "processes", FOLDER / "processes.py", 64),
    Planned(5, "data", FOLDER / "loading.py", 75),
    Planned(6, "learning", FOLDER / "learning.py", 130),
    Planned(7, "vision transformers", FOLDER / "vision_transformers.py", 170),
)
SETS_SCRIPT = FOLDER / "sets.py"
PHASES_WITH_SETS = {2, 5, 6}


@dataclass(frozen=True)
class Settings:
    """What the command line asks for."""

    out: Path
    work: Path
    quick: bool = False
    budget: float = 560.0
    phases: tuple[int, ...] | None = None
    resume: Path | None = None

    @property
    def file(self) -> Path:
        """Where the measurements are appended."""
        return self.out / "proof.jsonl"


def run_proof(settings: Settings, plan: Sequence[Planned] = PLAN, sets_script: Path = SETS_SCRIPT) -> bool:
    """Runs the phases that are asked for and not done; returns whether all of them ended well and met their targets."""
    ends_at = time.monotonic() + settings.budget - ENDING_SECONDS
    for folder in (settings.out, settings.work):
        folder.mkdir(parents=True, exist_ok=True)
    take_over(settings)
    by_number = {planned.number: planned for planned in plan}
    wanted = [by_number[number] for number in (by_number if settings.phases is None else settings.phases)]
    waiting = [planned for planned in wanted if not is_done(settings.file, planned.number)]
    needs_sets = any(planned.number in PHASES_WITH_SETS for planned in waiting)
    with building_sets(settings, sets_script, ends_at) if needs_sets else nullcontext():
        for planned in waiting:
            left = ends_at - time.monotonic()
            if left < LEAST_SECONDS:
                print(f"phase {planned.number}, {planned.title}: {left:.0f} s are left, not begun", flush=True)
                continue
            run_planned(planned, settings, left if settings.quick else min(planned.limit, left))
    measurements = read_measurements(settings.file)
    (settings.out / "proof.md").write_text(markdown(measurements, plan))
    write_logs(settings, plan)
    print("\n".join(table(measurements)), flush=True)
    ended = {m.phase for m in measurements if m.name == WHOLE_PHASE}
    return ended >= {planned.number for planned in wanted} and all(m.passed is not False for m in measurements)


def take_over(settings: Settings) -> None:
    """Copies from an earlier file what was measured; what failed is left out, so that it is tried again."""
    if settings.resume is None:
        return
    earlier = read_measurements(settings.resume)
    if settings.resume.resolve() == settings.file.resolve():
        settings.file.unlink(missing_ok=True)
    for measurement in earlier:
        if measurement.value is not None and (measurement.name != WHOLE_PHASE or measurement.passed):
            append_measurement(settings.file, measurement)


def is_done(file: Path, number: int) -> bool:
    """Whether a phase came to its end and nothing of it failed."""
    return any(m.name == WHOLE_PHASE and m.phase == number and m.passed for m in read_measurements(file))


@contextmanager
def building_sets(settings: Settings, script: Path, ends_at: float) -> Iterator[None]:
    """Builds the data sets beside the first phases, and stops if they are still not done at the end."""
    phase = Phase(-1, settings.file, settings.work, settings.quick, ends_at)
    process = start(script, phase, settings.work / "sets.log")
    try:
        yield
    finally:
        end(process)


def run_planned(planned: Planned, settings: Settings, seconds: float) -> None:
    """Runs one phase for at most so many seconds, and notes how it ended."""
    print(f"phase {planned.number}, {planned.title}: at most {seconds:.0f} s", flush=True)
    started = time.monotonic()
    phase = Phase(planned.number, settings.file, settings.work, settings.quick, started + seconds)
    process = start(planned.script, phase, log_of(settings, planned))
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    late = process.poll() is None
    end(process)
    took = round(time.monotonic() - started, 1)
    own = [m for m in read_measurements(settings.file) if m.phase == planned.number]
    ending = "late" if late else "ended" if process.returncode == 0 else f"failed with status {process.returncode}"
    failed = [m.name for m in own if m.value is None]
    passed = ending == "ended" and not failed
    print(f"phase {planned.number} {ending} after {took} s; failed: {', '.join(failed) or 'nothing'}", flush=True)
    details = {"ending": ending, "failed": failed}
    if not passed:
        details["log"] = log_of(settings, planned).read_text(errors="replace")[-1500:].replace(f"{ROOT}/", "")
    limit = f"<= {planned.limit:g}"
    whole = Measurement(planned.number, WHOLE_PHASE, took, "s", limit, passed, took, details)
    append_measurement(settings.file, whole)


def start(script: Path, phase: Phase, log: Path) -> subprocess.Popen[bytes]:
    """A script as a process with a session of its own, so that it ends with all that it started."""
    environment = process_environment(phase.quick) | {"XDG_CACHE_HOME": str(phase.work / "cache")}
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, str(script), *phase_command(phase)],
            stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all of its session; what has ended already stays as it is."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def log_of(settings: Settings, planned: Planned) -> Path:
    """What a phase prints."""
    return settings.work / f"phase-{planned.number}.log"


def write_logs(settings: Settings, plan: Sequence[Planned]) -> None:
    """The ends of all logs in one file."""
    with (settings.out / "logs.txt").open("w") as logs:
        for file in [settings.work / "sets.log", *(log_of(settings, planned) for planned in plan)]:
            if file.exists():
                logs.write(f"==== {file.name}\n{file.read_text(errors='replace')[-LOG_CHARACTERS:]}\n")


def figure(value: float | None) -> str:
    """Three digits that count, at least."""
    if value is None:
        return "failed"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(measurements: Sequence[Measurement]) -> list[str]:
    """At most 60 lines of 100 columns: what missed its target or failed, then targets met, then all else."""
    order = sorted(measurements, key=lambda m: (m.passed is not False, m.passed is None))
    lines = [
        f"{m.phase} {m.name[:58]:58} {figure(m.value):>10} {m.unit[:10]:10} {m.target or '':>9} {verdict(m)}"
        for m in order
    ]
    if len(lines) > TABLE_LINES - 1:
        left_out = len(lines) - (TABLE_LINES - 2)
        lines = [*lines[: TABLE_LINES - 2], f"and {left_out} more in proof.md"]
    met = sum(bool(m.passed) for m in measurements)
    missed = sum(m.passed is False for m in measurements)
    return [*lines, f"{met} passed, {missed} did not, {len(measurements) - met - missed} have no target"]


def verdict(measurement: Measurement) -> str:
    """One word on whether a measurement met its target."""
    return {None: "", True: "yes", False: "NO"}[measurement.passed]


def markdown(measurements: Sequence[Measurement], plan: Sequence[Planned]) -> str:
    """All measurements, a table a phase."""
    lines = ["# Proof on a GPU", ""]
    for planned in plan:
        own = [m for m in measurements if m.phase == planned.number]
        if not own:
            continue
        lines += [f"## {planned.number}. {planned.title.capitalize()}", ""]
        lines += ["| what | value | unit | target | passed | details |", "|---|---|---|---|---|---|"]
        for m in own:
            details = "; ".join(f"{name}: {value}" for name, value in m.details.items() if name != "log")
            details = " ".join(details.replace("|", "/").split())[:400]
            lines.append(f"| {m.name} | {figure(m.value)} | {m.unit} | {m.target or ''} | {verdict(m)} | {details} |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of proof.jsonl, proof.md and logs.txt")
    parser.add_argument("--work", type=Path, help="folder for data sets; one of the temporary folder by default")
    parser.add_argument("--budget", type=float, default=560.0, help="seconds for everything")
    parser.add_argument("--phases", help="numbers such as 5,3, in the order to run them; all by default")
    parser.add_argument("--resume", type=Path, help="proof.jsonl of an earlier call, whose values are kept")
    parser.add_argument("--quick", action="store_true", help="on the CPU, at tiny sizes")
    options = parser.parse_args(arguments)
    work = options.work or Path(tempfile.gettempdir()) / f"ssl-equi-proof{'-quick' if options.quick else ''}"
    phases = None if options.phases is None else tuple(int(number) for number in options.phases.split(","))
    if set(phases or ()) - {planned.number for planned in PLAN}:
        parser.error(f"--phases {options.phases}: there are phases 0 to {PLAN[-1].number}")
    settings = Settings(options.out, work, options.quick, options.budget, phases, options.resume)
    raise SystemExit(0 if run_proof(settings) else 1)


if __name__ == "__main__":
    main()
