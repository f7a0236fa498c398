"""Sweeps over seeds: one run after another, completed by the same command, and their table."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssl_equi.__main__ import run_or_sweep
from ssl_equi.errors import UserError
from ssl_equi.training.sweep import seeds_of, train_seeds

CALL = ["-m", "ssl_equi", "train"]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[list[str]]]:
    """runs(status): what Python is given for each run from now on; those of status 0 leave what a run does."""

    def called(status: int) -> list[list[str]]:
        calls: list[list[str]] = []

        def run(command: Sequence[str], check: bool) -> SimpleNamespace:
            calls.append(list(command[1:]))
            if status == 0:
                folder = Path(command[command.index("--out") + 1])
                folder.mkdir(parents=True)
                (folder / "results.json").write_text("{}")
                (folder / "versions.json").write_text(json.dumps({"command": f"ssl-equi {' '.join(command[3:])}"}))
            return SimpleNamespace(returncode=status)

        monkeypatch.setattr(subprocess, "run", run)
        return calls

    return called


def test_seeds_stand_between_other_options() -> None:
    assert seeds_of(["paper", "--seeds", "0", "2", "--epochs", "3"]) == (["0", "2"], ["paper", "--epochs", "3"])
    assert seeds_of(["--epochs", "3"]) == ([], ["--epochs", "3"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--seeds"], "--seeds is empty"),
        (["--seeds", "1", "1"], "each once"),
        (["--seeds", "one"], "whole numbers"),
        (["--seeds", "1", "--seed", "2"], "--seed is given beside --seeds"),
        (["--resume", "--seeds", "1"], "--resume is given beside --seeds"),
    ],
)
def test_what_is_no_sweep_is_refused(options: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        seeds_of(options)


def test_runs_that_are_not_probed_have_no_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [Path("runs/sie-seed0"), Path("runs/sie-seed1")]
    monkeypatch.setattr("ssl_equi.training.sweep.train_seeds", lambda *_: folders)
    run_or_sweep("train", Path("recipes/sie.py"), ["--seeds", "0", "1", "--no-evaluate"])
    assert capsys.readouterr().out == (
        "not probed, so there is no table: ssl-equi evaluate --encoder runs/sie-seed0 probes the first run\n"
    )


def test_a_sweep_goes_on_where_it_was_stopped(runs: Callable[[int], list[list[str]]], tmp_path: Path) -> None:
    out = str(tmp_path / "sie")
    options = ["--epochs", "3", "--seeds", "0", "1", "--out", out]
    stopped = runs(75)
    with pytest.raises(SystemExit, match="75"):
        train_seeds(CALL, "sie", options)
    assert stopped == [[*CALL, "sie", "--epochs", "3", "--seed", "0", "--out", f"{out}-seed0", "--resume"]]
    done = runs(0)
    folders = train_seeds(CALL, "sie", options)
    assert folders == [Path(f"{out}-seed{seed}") for seed in (0, 1)] and len(done) == 2
    assert train_seeds(CALL, "sie", options) == folders and len(done) == 2
    with pytest.raises(UserError, match="seed0 holds a finished run with other options"):
        train_seeds(CALL, "sie", ["--epochs", "4", *options[2:]])
