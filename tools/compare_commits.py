"""Compares what two commits compute: losses, records, exported weights and written shards must be equal to the bit.

    python tools/compare_commits.py HEAD~1 HEAD                   two commits
    python tools/compare_commits.py main .                        a commit and the working tree
    python tools/compare_commits.py main . --only sie probe       cases whose names contain one of the words
    python tools/compare_commits.py main . --jobs 2 --work DIR    processes at a time; keeps what they write
    python tools/compare_commits.py main . --adds action_gain     a term or task that only the second commit has

Run before a change that must not change numbers is landed. Each commit gets a checkout and a folder of its own, and
the same commands on this machine's CPU: it writes a small set, trains every recipe for some steps, probes an encoder by
every protocol, and goes on with a run that the first commit began. What users rely on is compared: lines `loss` and
`online_probe` of metrics.jsonl, records of results.json, exported configurations and tensors, and all files of the
set. Equal values are only expected of equal versions of PyTorch on the same kind of CPU.
"""

import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from safetensors.torch import load_file

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.errors import UserError
from ssl_equi.options import Threads

ROOT = Path(__file__).parents[1]
SMALL_SET = [
    "--set.families", "chair", "teapot", "dog", "--set.held-out-families", "mug", "--set.train-objects", "8",
    "--set.val-objects", "2", "--set.test-objects", "4", "--set.views", "6", "--set.image-size", "32", "--workers", "1",
]  # fmt: skip
STEPS = ["--image-size", "32", "--batch-size", "8", "--epochs", "2", "--log-every", "1", "--threads", "1"]
AUGMENTED = ["--views.source", "augmented"]
IN_CHUNKS = ["--objective.chunk-size", "4"]  # which divide a batch
WITH_ACTIONS = [*AUGMENTED, "--actions", "augmentation"]
RECIPES = (
    "sie", "equicaps", "capsie", "seq_jepa", "seq_jepa_saccades", "conv_jepa", "essl", "care", "equimod", "sen",
    "conditional_byol", "augself", "simclr", "moco", "byol", "simsiam", "barlow_twins", "vicreg", "vicreg_traj",
    "supervised",
)  # fmt: skip
VARIANTS = {
    "sie, colour": ["sie", "--actions", "rotation_color"],
    "sie, augmented": ["sie", *WITH_ACTIONS],
    "sie, rendered": ["sie", "--render-views", "--fresh-views"],
    "sie, octic": ["sie", "--encoder", "octic_vit_small_patch16_224", "--encoder-arguments", "depth", "2"],
    "sie, d4": ["sie", "--encoder", "d4_resnet10_small_images"],
    "equicaps, translated": ["equicaps", "translated"],
    "seq_jepa, augmented": ["seq_jepa", "--views.preset", "seq_jepa", *WITH_ACTIONS],
    "care": ["care", *IN_CHUNKS],
    "care on moco, augmented": ["care", "--base", "moco", *AUGMENTED, *IN_CHUNKS],
    "essl on simsiam, augmented": ["essl", "--base", "simsiam", *AUGMENTED],
    "equimod, augmented": ["equimod", *WITH_ACTIONS],
    "simclr, augmented": ["simclr", *AUGMENTED],
    "vicreg, skipping bad records": ["vicreg", "--on-bad-record", "skip"],
}
PROTOCOLS = ("ssl_equi", "sie", "seq_jepa", "equicaps", "care", "essl")


@dataclass(frozen=True)
class Case:
    """A script with its options, in which `{set}`, `{moving}`, `{out}` and `{runs}` stand for folders."""

    name: str
    command: tuple[str, ...]


def sets() -> list[Case]:
    """Stored sets; what follows reads them."""
    build = ("datasets/procedural.py", *SMALL_SET, "--out", "{out}")
    return [Case("set", build), Case("moving set", (*build, "--set.translation", "0.5"))]


def runs() -> list[Case]:
    """Every recipe as it is by default, and variants that take other ways through the code."""
    cases = []
    for name, (recipe, *options) in ({recipe: [recipe] for recipe in RECIPES} | VARIANTS).items():
        named = options[:1] if options and not options[0].startswith("-") else []
        data = "{moving}" if "translated" in named else "{set}"
        rest = [*options[len(named) :], "--data-dir", data, *STEPS, "--out", "{out}"]
        cases.append(Case(name, (f"recipes/{recipe}.py", *named, *rest)))
    return cases


def evaluations() -> list[Case]:
    """Of what the runs left."""
    data, encoder = ("--data-dir", "{set}"), ("--encoder", "{runs}/sie")
    scripts = {
        "suite, robustness": ["suite.py", *encoder, *data, "--tasks", "robustness", "augmentation_parameters"],
        "probe, turned": ["probe.py", "{runs}/sie/encoder", *data, "--turns", "quarter"],
        "probe, capsules": ["probe.py", "{runs}/equicaps/capsule_network", *data],
        "probe, timm": ["probe.py", "random:resnet18", *data, "--image-size", "32"],
        "linear": ["linear.py", *encoder, *data],
        "knn": ["knn.py", *encoder, *data],
        "pose": ["pose.py", *encoder, *data],
        "retrieval": ["retrieval.py", "{runs}/sie", *data],
        "retrieval, sequences": ["retrieval.py", "{runs}/seq_jepa", *data],
        "sequences": ["sequences.py", "{runs}/seq_jepa", *data],
        "equivariance": ["equivariance.py", "{runs}/sie, d4/encoder", *data, "--symmetries", "d4"],
    }
    for protocol in PROTOCOLS:
        scripts[f"suite, {protocol}"] = ["suite.py", *encoder, *data, "--protocol", protocol]
    return [
        Case(name, (f"evaluation/{script}", *options, "--out", "{out}")) for name, (script, *options) in scripts.items()
    ]


# ---------------------------------------------------------------- running


@dataclass(frozen=True)
class Side:
    """One of the two commits: its checkout, and the folder that its commands write into."""

    name: str
    checkout: Path
    written: Path

    def out(self, case: str) -> Path:
        """What a case leaves."""
        return self.written / case

    def run(self, case: Case) -> str | None:
        """Runs a case's command; returns the end of what it has printed if it fails."""
        folders = {
            "set": self.out("set"), "moving": self.out("moving set"), "out": self.out(case.name), "runs": self.written,
        }  # fmt: skip
        ended = subprocess.run(
            [sys.executable, *(word.format(**folders) for word in case.command)], cwd=self.checkout, text=True,
            env=self.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if ended.returncode == 0:
            return None
        return f"{self.name} failed: {' '.join(ended.stdout.strip().splitlines()[-3:])}"

    def environment(self) -> dict[str, str]:
        """On the CPU, one thread, with a cache of its own."""
        return os.environ | {
            "PYTHONPATH": str(self.checkout), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "XDG_CACHE_HOME": str(self.written / "cache"), "NO_COLOR": "1",
        }  # fmt: skip


@contextmanager
def checkout(what: str, folder: Path) -> Iterator[Path]:
    """A commit's files in a folder; `.` is the working tree itself."""
    if what == ".":
        yield ROOT
        return
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(folder), what], cwd=ROOT, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=ROOT, check=True)


def resumed(old: Side, new: Side, adds: Sequence[str] = ()) -> list[str]:
    """Differences between SIE's losses at the old commit, and those of a run that it begins and the new one ends."""
    whole, half = (
        ("recipes/sie.py", "--data-dir", "{set}", *STEPS, "--steps", steps, "--out", "{out}") for steps in ("6", "3")
    )
    failures = [old.run(Case("whole run", whole)), old.run(Case("begun run", half))]
    if not any(failures):
        shutil.copytree(old.out("begun run"), new.out("begun run"))
        failures.append(new.run(Case("begun run", (*whole, "--resume"))))
    failed = [failure for failure in failures if failure is not None]
    lines = [losses(side.out(name), adds) for side, name in ((old, "whole run"), (new, "begun run"))]
    return failed or ([] if lines[0] == lines[1] else [first_difference("resumed losses", *lines)])


# ---------------------------------------------------------------- comparing


def differences(old: Path, new: Path, adds: Sequence[str] = ()) -> list[str]:
    """What differs between two folders that a case left, a sentence each; what users don't rely on is passed over.

    Args:
        adds: names of terms and tasks that count for nothing in the new one.
    """
    found = []
    if losses(old) != losses(new, adds):
        found.append(first_difference("metrics.jsonl", losses(old), losses(new, adds)))
    before, after = records(old), records(new, adds)
    if before != after:
        in_order = [sorted(found_records, key=json.dumps) for found_records in (before, after)]
        same = in_order[0] == in_order[1]
        found.append("results.json: another order" if same else first_difference("results.json", before, after))
    files = compared_files(old)
    if files != compared_files(new):
        found.append(f"other files: {sorted(set(files) ^ set(compared_files(new)))[:4]}")
    for name in set(files) & set(compared_files(new)):
        if name.suffix == ".safetensors":
            found += tensor_differences(name, load_file(old / name), load_file(new / name))
        elif not filecmp.cmp(old / name, new / name, shallow=False):
            found.append(f"{name} differs")
    if not files and not before and not losses(old):
        found.append("nothing was left that could be compared")
    return found


def losses(folder: Path, passed_over: Sequence[str] = ()) -> list[Any]:
    """The lines of metrics.jsonl that don't tell of the clock."""
    file = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    lines = [line for line in lines if line["event"] in ("loss", "online_probe")]
    return [{name: value for name, value in line.items() if name not in passed_over} for line in lines]


def records(folder: Path, passed_over: Sequence[str] = ()) -> list[Any]:
    """Every number of an evaluation, with its baseline and interval."""
    file = folder / "results.json"
    found = json.loads(file.read_text())["records"] if file.exists() else []
    return [record for record in found if record["task"] not in passed_over]


def compared_files(folder: Path) -> list[Path]:
    """Exports, one folder down, and the files of a set."""
    exported = [file for pattern in ("*/*.safetensors", "*/config.json") for file in folder.glob(pattern)]
    stored = [file for pattern in ("*.tar", "*.manifest.json", "*.index/*.npy") for file in folder.glob(pattern)]
    return sorted(file.relative_to(folder) for file in (*exported, *stored))


def tensor_differences(name: Path, old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> list[str]:
    """At most one sentence about the tensors of a file."""
    if old.keys() != new.keys():
        return [f"{name}: other tensors: {sorted(old.keys() ^ new.keys())[:4]}"]
    other = [key for key in old if old[key].dtype != new[key].dtype or not torch.equal(old[key], new[key])]
    return [f"{name}: {len(other)} of {len(old)} tensors differ, such as {other[0]}"] if other else []


def first_difference(what: str, old: Sequence[Any], new: Sequence[Any]) -> str:
    """Where two lists part."""
    for before, after in zip(old, new):
        if before != after:
            keys = [key for key in before | after if before.get(key) != after.get(key)]
            place = {key: before[key] for key in ("event", "step", "task", "part", "metric") if key in before}
            changes = ", ".join(f"{key} {before.get(key)} -> {after.get(key)}" for key in keys[:3])
            return f"{what}: {place}: {changes}"
    return f"{what}: {len(old)} entries before, {len(new)} after"


# ---------------------------------------------------------------- everything


def compare(old: Side, new: Side, only: Sequence[str], jobs: int, adds: Sequence[str] = ()) -> bool:
    """Runs and compares all cases whose names are asked for; what these need runs, too. Returns whether all agree."""

    def wanted(case: Case) -> bool:
        return not only or any(word in case.name for word in only)

    def compare_case(case: Case) -> list[str]:
        failed = [failure for side in (old, new) if (failure := side.run(case)) is not None]
        return failed or differences(old.out(case.name), new.out(case.name), adds)

    agree = True
    with ThreadPoolExecutor(jobs) as pool:
        asked = [case for case in evaluations() if wanted(case)]
        needed = {word.split("/")[1] for case in asked for word in case.command if word.startswith("{runs}/")}
        trained = [case for case in runs() if wanted(case) or case.name in needed]
        for cases in (sets(), trained, asked):
            for case, found in zip(cases, pool.map(compare_case, cases)):
                agree &= report(case.name, found)
    if not only or any(word in "resumed" for word in only):
        agree &= report("resumed", resumed(old, new, adds))
    return agree


def report(name: str, found: Sequence[str]) -> bool:
    """Prints a line a difference; returns whether there is none."""
    print(f"{name:28} {'equal' if not found else 'DIFFERS'}", flush=True)
    for difference in found:
        print(f"    {difference}", flush=True)
    return not found


@dataclass(frozen=True)
class Config:
    """What is compared."""

    old: Annotated[str, tyro.conf.Positional]
    """A commit."""
    new: Annotated[str, tyro.conf.Positional]
    """A commit, or . for the working tree."""
    only: tuple[str, ...] = ()
    """Cases whose names contain one of these words; all when not given."""
    adds: tuple[str, ...] = ()
    """Terms and tasks that the second commit adds, which are passed over."""
    jobs: Threads = 1
    """Commands at a time, with one thread each."""
    work: Path | None = None
    """New folder for what is written; a temporary one when not given."""


def main(config: Config) -> None:
    if config.work is not None and config.work.exists():
        raise UserError(f"--work {config.work} exists: name another folder, or delete it")
    with tempfile.TemporaryDirectory() as temporary:
        work = (config.work or Path(temporary)).absolute()
        with checkout(config.old, work / "old checkout") as old, checkout(config.new, work / "new checkout") as new:
            sides = Side("old", old, work / "old"), Side("new", new, work / "new")
            agree = compare(*sides, config.only, config.jobs, config.adds)
    raise SystemExit(0 if agree else 1)


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
