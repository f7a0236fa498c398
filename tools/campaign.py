"""Runs a campaign: many pretraining runs as data, several at once, kept as one small JSON file each.

    python tools/campaign.py docs/campaigns/rotation --work WORK                      all runs that have no file yet
    python tools/campaign.py docs/campaigns/rotation --work WORK --jobs 2 --hours 1.5     as far as that goes
    python tools/campaign.py docs/campaigns/rotation --work WORK --only 'sie-*-seed0'
    python tools/campaign.py docs/campaigns/rotation --work WORK --only sie-30-seed0 --again

`tools/campaign_files.py` describes campaign.toml. Data sets are built in WORK/data, and runs lie in WORK/runs.
Interrupted, or out of hours, it stops its runs, which leave a checkpoint and go on when the same command is given
again; on another machine a run that has no file begins anew. A GPU is used where there is one, by all `--jobs`.

--again repeats finished runs and compares their figures with those that are kept: equal to the bit on the same kind of
CPU. tools/campaign_page.py makes tables and curves of the files.
"""

import dataclasses
import fnmatch
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from campaign_files import Campaign, Judge, PlannedRun, read_campaign, write_run

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.errors import UserError
from ssl_equi.evaluation.bootstrap import resampled_values, stored_statistic
from ssl_equi.evaluation.report.runs import read_curves
from ssl_equi.evaluation.results import ARRAYS_FILE, RESULTS_FILE, ProbeRecord, read_records
from ssl_equi.files import read_json_object
from ssl_equi.options import ActsWhen, Count, Positive

ROOT = Path(__file__).parents[1]
RESAMPLES = 200  # of the judged objects, kept with each figure
PARTS_OF_TRAINING = 10
FOLLOWED = ("loss", "action_gain")  # of metrics.jsonl, kept as means over the parts
SECONDS_BETWEEN_LOOKS = 0.5
SIGNIFICANT_DIGITS = 4


@dataclass(frozen=True)
class Config:
    """Which runs of which campaign."""

    campaign: Annotated[Path, tyro.conf.Positional]
    """Folder with campaign.toml."""
    work: Path
    """Folder of data sets, checkpoints and logs; it can be deleted when all runs have their files."""
    jobs: Count = 1
    """Runs at a time."""
    only: tuple[str, ...] = ()
    """Names of runs, METHOD-EPOCHS-seedSEED, in which * stands for anything; all when not given."""
    hours: Positive | None = None
    """Stop after this time; without it when all is done."""
    data: tuple[str, ...] = ()
    """NAME=FOLDER of data sets that are there already and need not be built; those without a command are given so."""
    again: Annotated[bool, ActsWhen(lambda options: options.only, "name the runs with --only")] = False
    """Repeat runs that have a file, and compare."""


def main(config: Config) -> None:
    campaign = read_campaign(config.campaign)
    runs = [run for run in campaign.runs() if not config.only or _matches(run.name, config.only)]
    if not runs:
        raise UserError(
            f"--only {' '.join(config.only)} names no run of {config.campaign}, such as {campaign.runs()[0].name}"
        )
    there = [run for run in runs if campaign.file_of(run.name).exists()]
    wanted = there if config.again else [run for run in runs if run not in there]
    print(f"{campaign.title}: {len(wanted)} of {len(runs)} runs to do", flush=True)
    work = Work(campaign, config.work.absolute(), config.again, given_data(campaign, config.data))
    deadline = None if config.hours is None else time.monotonic() + 3600 * config.hours
    failed = run_all(wanted, work, config.jobs, deadline)
    if failed:
        raise UserError(f"{len(failed)} runs failed: {', '.join(failed)}; their logs are in {work.folder / 'runs'}")


def given_data(campaign: Campaign, texts: tuple[str, ...]) -> dict[str, Path]:
    """Folders by name. Raises UserError for another name, and for a data set that has neither folder nor command."""
    given = {}
    for text in texts:
        name, _, folder = text.partition("=")
        if name not in campaign.data or not folder:
            raise UserError(f"--data is {text!r}: give NAME=FOLDER with a name of {', '.join(campaign.data)}")
        given[name] = Path(folder).absolute()
    missing = [name for name, command in campaign.data.items() if not command and name not in given]
    if missing:
        raise UserError(f"{missing[0]} is not built by the campaign: give its folder with --data {missing[0]}=FOLDER")
    return given


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class Work:
    """Where a campaign's commands run, and what stands for {NAME} in them.

    Attributes:
        given: folders of data sets that need not be built, by name.
    """

    campaign: Campaign
    folder: Path
    again: bool
    given: dict[str, Path]

    def command(self, text: str, **names: Path | int) -> list[str]:
        """A script of this repository with its options. Raises UserError for a {NAME} that stands for nothing."""
        known = {name: self.folder / "data" / name for name in self.campaign.data} | self.given | names
        try:
            return [sys.executable, *(word.format_map(known) for word in shlex.split(text))]
        except KeyError as error:
            raise UserError(
                f"{text!r} has {{{error.args[0]}}}, which stands for nothing: choose from {', '.join(known)}"
            ) from None

    def build_data(self) -> None:
        """Builds what is missing; the builders go on where they were stopped."""
        for name, text in self.campaign.data.items():
            if name not in self.given:
                subprocess.run(self.command(text), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
                print(f"{name} is built", flush=True)


class RunInProgress:
    """A run as the sequence of its commands, each a process of its own with a common log."""

    def __init__(self, work: Work, planned: PlannedRun) -> None:
        self.work, self.planned = work, planned
        self.folder = work.folder / "runs" / (f"{planned.name}-again" if work.again else planned.name)
        self.log = self.folder.with_name(f"{self.folder.name}.log")
        if work.again:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.waiting = self.commands()
        self.process: subprocess.Popen[bytes] | None = None

    def commands(self) -> list[list[str]]:
        """Pretraining, unless that is over, and whatever judges it."""
        campaign, method = self.work.campaign, self.planned.method
        options = f"--epochs {method.epochs[self.planned.budget]} --seed {self.planned.seed} --no-evaluate --resume"
        text = f"{method.recipe} {campaign.options} {method.options} {options} --out {{run}}"
        commands = [] if (self.folder / "encoder").exists() else [self.work.command(text, run=self.folder)]
        for judge in campaign.judges_of(method):
            out = folder_of(judge, self.folder)
            shutil.rmtree(out, ignore_errors=True)  # of a run that was stopped while it was judged
            command = self.work.command(judge.command, run=self.folder, seed=self.planned.seed)
            commands.append([*command, "--out", str(out)])
        return commands

    def start_next(self) -> None:
        """Starts the next command."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches this program alone, which then stops its runs.
            self.process = subprocess.Popen(
                self.waiting.pop(0), cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    def failed(self) -> bool:
        """Whether its command has ended with an error."""
        return self.process is not None and self.process.poll() not in (None, 0)

    def runs(self) -> bool:
        """Whether a command is under way."""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """Lets the command leave a checkpoint, and waits for it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()

    def keep(self) -> None:
        """Writes the run's file, or compares with the one that is there."""
        content = content_of(self.work.campaign, self.planned, self.folder)
        path = self.work.campaign.file_of(self.planned.name)
        if self.work.again:
            print(f"{self.planned.name}: {compared(content, read_json_object(path, UserError))}", flush=True)
        else:
            write_run(path, content)
            print(f"{self.planned.name}: {content['images']:,} images, {content['hours']:.2f} h", flush=True)


def run_all(todo: list[PlannedRun], work: Work, jobs: int, deadline: float | None) -> list[str]:
    """Runs all, at most `jobs` at a time; names of those that failed. Stops them at the deadline or at a signal."""
    if todo:
        work.build_data()
    todo = list(todo)
    active: list[RunInProgress] = []
    failed: list[str] = []
    stopped = _Stopped()
    try:
        while todo or active:
            if stopped.asked or (deadline is not None and time.monotonic() > deadline):
                print(f"stopped: {len(todo) + len(active)} runs go on when the same command is given again")
                break
            while todo and len(active) < jobs:
                run = RunInProgress(work, todo.pop(0))
                # Another call on the same folder may have finished it meanwhile.
                if work.again or not work.campaign.file_of(run.planned.name).exists():
                    active.append(run)
            for run in list(active):
                if run.failed():
                    print(f"{run.planned.name} failed: see {run.log}", flush=True)
                    failed.append(run.planned.name)
                    active.remove(run)
                elif not run.runs():
                    if run.waiting:
                        run.start_next()
                    else:
                        run.keep()
                        active.remove(run)
            time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        for run in active:
            run.stop()
    return failed


class _Stopped:
    """Whether a signal has asked this program to stop."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True


# ---------------------------------------------------------------- what is kept of a run


def content_of(campaign: Campaign, run: PlannedRun, folder: Path) -> dict[str, Any]:
    """Of a finished run: what it was, on which machine, how the training went, and its figures."""
    versions = read_json_object(folder / "versions.json", UserError)
    options = read_json_object(folder / "config.json", UserError)
    curves, speeds = (read_curves(folder / "metrics.jsonl", event) for event in ("loss", "speed"))
    steps = int(max(folder.glob("checkpoints/step-*")).name.removeprefix("step-"))
    return {
        "run": run.name, "method": run.method.name, "budget": run.budget, "seed": run.seed, "steps": steps,
        "images": steps * int(options["batch_size"]) * run.method.images_per_object,
        "hours": round(float(speeds["window_seconds"][1].sum()) / 3600, 3),
        "cpu": cpu_name(), "device": versions["device"],
        "commit": versions["commit"], "torch": versions["torch"], "timm": versions["timm"],
        "training": {name: means_of_parts(curves[name][1]) for name in FOLLOWED if name in curves},
        "figures": [
            figure
            for judge in campaign.judges_of(run.method)
            for figure in figures_of(campaign, judge, folder_of(judge, folder))
        ],
    }  # fmt: skip


def folder_of(judge: Judge, run: Path) -> Path:
    """Where a judge leaves its results."""
    return run / f"judged-{judge.name}"


def figures_of(campaign: Campaign, judge: Judge, judged: Path) -> list[dict[str, Any]]:
    """The kept figures of one judge; those of claims with their values on resampled objects, if these decide them."""
    claimed = {claim.figure for claim in campaign.claim}
    with np.load(judged / ARRAYS_FILE) as file:
        arrays = {name: file[name] for name in file.files if file[name].dtype.kind == "f"}
    kept = []
    for record in read_records(judged / RESULTS_FILE):
        figure = f"{record.task}:{record.metric}"
        if figure in judge.figures:
            statistic = stored_statistic(arrays, record.task, record.part, record.metric)
            if statistic is None or f"{judge.name}/{figure}" not in claimed:
                values = []
            else:
                values = resampled_values(statistic, RESAMPLES).tolist()
            kept.append({"judge": judge.name} | _figure(record) | {"resampled": [_rounded(value) for value in values]})
    return kept


def _figure(record: ProbeRecord) -> dict[str, Any]:
    left_out = ("seed", "object_standard_error", "interval_low", "interval_high")
    return {name: value for name, value in dataclasses.asdict(record).items() if name not in left_out}


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def means_of_parts(values: np.ndarray) -> list[float]:
    """Means of a logged number over equal parts of the training; fewer parts of fewer lines."""
    return [_rounded(float(part.mean())) for part in np.array_split(values, min(PARTS_OF_TRAINING, len(values)))]


def compared(now: dict[str, Any], kept: dict[str, Any]) -> str:
    """How the figures of a repeated run differ from those that are kept."""
    places = ("judge", "task", "part", "metric")
    before = {tuple(figure[place] for place in places): figure["value"] for figure in kept["figures"]}
    after = {tuple(figure[place] for place in places): figure["value"] for figure in now["figures"]}
    if before.keys() != after.keys():
        return f"other figures: {sorted(before.keys() ^ after.keys())}"
    differences = {place: abs(after[place] - before[place]) for place in before}
    place = max(differences, key=lambda place: differences[place])
    if differences[place] == 0:
        return f"all {len(before)} figures equal to the bit"
    where = f"{'/'.join(place[:2])} {place[2]}"
    return f"figures differ by up to {differences[place]:.2g} ({where}), on {now['cpu']} after {kept['cpu']}"


def cpu_name() -> str:
    """The kind of the CPU, which rounding may depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    explain_errors(lambda: main(parse_command_line(Config, __doc__ or "")))
