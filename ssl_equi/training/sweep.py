"""Sweeps over seeds: `ssl-equi train METHOD --seeds 0 1 2`, one run after another, then their table."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ssl_equi.errors import UserError
from ssl_equi.options import taken_out

SEEDS = "--seeds"
EVERY_RUNS_OWN = ("--seed", "--resume")


def seeds_of(options: Sequence[str]) -> tuple[list[str], list[str]]:
    """The seeds that options name, and the other options; UserError for what isn't a seed, or is one twice."""
    if SEEDS not in options:
        return [], list(options)
    start = options.index(SEEDS)
    end = start + 1
    while end < len(options) and not options[end].startswith("-"):
        end += 1
    seeds = list(options[start + 1 : end])
    if not seeds or not all(seed.isdecimal() for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(
            f"{SEEDS} is {' '.join(seeds) or 'empty'}: give whole numbers, each once, such as {SEEDS} 0 1 2"
        )
    others = [*options[:start], *options[end:]]
    refused = [option for option in others if option.partition("=")[0] in EVERY_RUNS_OWN]
    if refused:
        raise UserError(f"{refused[0]} is given beside {SEEDS}, which gives each run its own: leave it out")
    return seeds, others


def train_seeds(call: Sequence[str], method: str, options: Sequence[str]) -> list[Path]:
    """Trains a method with each of the seeds that options name in OUT-seedN, and returns the folders.

    What is finished stays, what was stopped goes on, so that the same command again completes the sweep. The first run
    that fails or is stopped ends the process with its status.

    Args:
        call: what Python is given to train a method of this name.
        options: `--seeds`, and those of every run; `--out` is what folders begin with, runs/METHOD when not given.

    Raises UserError for a folder whose run had other options.
    """
    seeds, others = seeds_of(options)
    base, others = taken_out("--out", others)
    folders = [Path(f"{base or f'runs/{method}'}-seed{seed}") for seed in seeds]
    for seed, folder in zip(seeds, folders, strict=True):
        own = [*others, "--seed", seed, "--out", str(folder), "--resume"]
        if (folder / "results.json").exists():
            _check_options(folder, own)
            print(f"{folder} is finished", flush=True)
            continue
        print(f"{method}, seed {seed}: {folder}", flush=True)
        status = _called([*call, method, *own])
        if status != 0:
            raise SystemExit(status)
    return folders


def _check_options(folder: Path, options: Sequence[str]) -> None:
    recorded = json.loads((folder / "versions.json").read_text(encoding="utf-8"))["command"]
    if not recorded.endswith(" ".join(options)):
        raise UserError(
            f"{folder} holds a finished run with other options ({recorded}): choose another --out, or delete the folder"
        )


def _called(command: Sequence[str]) -> int:
    """The status of a run. Ctrl-C reaches the run too, which saves and leaves: it is waited for."""
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        return subprocess.run([sys.executable, *command], check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)
