"""What a run writes and someone spoils: a sentence or equal weights, never a traceback, a hang or other numbers."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from ssl_equi.checkpoint import CheckpointError, list_checkpoints
from ssl_equi.errors import UserError
from ssl_equi.run import Run
from tests.mutations import json_mutations, mutations
from tests.test_run import ToyConfig, ToyObjective, loss_lines, train

NUM_MUTATIONS = 200


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps with checkpoints after 5 and 6."""
    return train(ToyConfig(out=tmp_path_factory.mktemp("trained") / "run", steps=6)).folder


@pytest.fixture
def spoilt(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def newest_checkpoint(run: Path) -> Path:
    return list_checkpoints(run / "checkpoints")[-1]


def about_to_resume(folder: Path) -> Run:
    """The run as it is before `Run.resume`."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = Run(ToyConfig(out=folder, steps=7, resume=True), "toy")
    run.prepare(ToyObjective(4), lambda module: torch.optim.AdamW(module.parameters(), lr=0.05))
    return run


def mutated(content: bytes, rng: np.random.Generator, is_json: bool) -> bytes:
    """Other bytes than `content`."""
    while True:
        damaged = (json_mutations if is_json and rng.integers(2) else mutations)(content, rng)
        if damaged != content:
            return damaged


def only_user_errors(action: Callable[[], Any]) -> Any:
    """What `action` returns, or the `UserError` that it raised, which must be one sentence."""
    try:
        return action()
    except UserError as error:
        assert ": " in str(error), "the sentence ends with a cure, after a colon"
        return error


# ---------------------------------------------------------------- checkpoints


def test_every_mutation_of_a_checkpoint_is_found(spoilt: Path, trained: Path) -> None:
    """Half of the mutations of JSON files are edits that leave them valid JSON."""
    rng = np.random.default_rng(16)
    run = about_to_resume(spoilt)
    files = sorted(newest_checkpoint(spoilt).iterdir())
    assert len(files) == 7
    for number in range(NUM_MUTATIONS):
        file = files[number % len(files)]
        content = file.read_bytes()
        file.write_bytes(mutated(content, rng, file.suffix == ".json"))
        assert isinstance(only_user_errors(run.resume), CheckpointError), file
        file.write_bytes(content)
    assert run.resume() == 6
    assert loss_lines(spoilt) == loss_lines(trained)


HOSTILE_STATES = [
    "[]",
    "null",
    "{}",
    "1",
    '"text"',
    "{",
    "",
    "[" * 100_000,
    '{"step": null}',
    '{"step": [6]}',
    '{"step": 5}',
]


@pytest.mark.parametrize("content", HOSTILE_STATES, ids=lambda content: content[:14])
@pytest.mark.parametrize("name", ["run", "objective", "optimizer"])
def test_a_state_of_an_earlier_version_that_is_none_is_named(spoilt: Path, name: str, content: str) -> None:
    """Without checksums the content alone can tell."""
    checkpoint = newest_checkpoint(spoilt)
    (checkpoint / "checksums.json").unlink()
    (checkpoint / f"{name}.json").write_text(content)
    found = only_user_errors(about_to_resume(spoilt).resume)
    assert isinstance(found, CheckpointError) and str(checkpoint) in str(found)


def test_a_checkpoint_of_an_earlier_version_resumes_with_a_notice(
    spoilt: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about_to_resume(spoilt).resume()
    assert "checksums" not in capsys.readouterr().out
    (newest_checkpoint(spoilt) / "checksums.json").unlink()
    assert about_to_resume(spoilt).resume() == 6
    assert "is of an earlier version, without checksums" in capsys.readouterr().out
    assert loss_lines(spoilt) == loss_lines(trained)


def test_weights_of_an_earlier_version_that_are_not_finite_are_named(spoilt: Path) -> None:
    checkpoint = newest_checkpoint(spoilt)
    (checkpoint / "checksums.json").unlink()
    weights = load_file(checkpoint / "objective.safetensors")
    weights["/encoder.0.bias"][2] = float("nan")
    save_file(weights, checkpoint / "objective.safetensors")
    with pytest.raises(CheckpointError, match=r"weight 'encoder\.0\.bias' in checkpoint .*step-00000006 is not finite"):
        about_to_resume(spoilt).resume()


@pytest.mark.parametrize("file", ["optimizer.safetensors", "objective.safetensors", "run.json"])
def test_a_file_of_another_step_is_named(spoilt: Path, file: str) -> None:
    earlier, newest = list_checkpoints(spoilt / "checkpoints")
    shutil.copy(earlier / file, newest / file)
    with pytest.raises(CheckpointError, match=rf"step-00000006 is damaged \({file} is not the file that was saved"):
        about_to_resume(spoilt).resume()


def test_a_checkpoint_renamed_to_another_step_is_named(spoilt: Path) -> None:
    newest_checkpoint(spoilt).rename(spoilt / "checkpoints" / "step-00000009")
    with pytest.raises(CheckpointError, match=r"step-00000009 was saved after step 6"):
        about_to_resume(spoilt).resume()


# ---------------------------------------------------------------- metrics.jsonl, on resume


def test_every_mutation_of_the_log_resumes(spoilt: Path, trained: Path) -> None:
    """Lines that can't be read are dropped; the others stay as they are."""
    rng = np.random.default_rng(17)
    log, whole = spoilt / "metrics.jsonl", (trained / "metrics.jsonl").read_bytes()
    run = about_to_resume(spoilt)
    lines = set(whole.split(b"\n"))
    hostile = [
        b"[1]",
        b"null",
        b"{}",
        b'{"step": "x"}',
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"step": 1e999}',
        b'{"step": -1}',
    ]
    for number in range(NUM_MUTATIONS):
        middle = hostile[number % len(hostile)]
        log.write_bytes(whole + middle + b"\n" + whole if number % 2 else mutated(whole, rng, False))
        assert run.resume() == 6
        kept = log.read_bytes().splitlines()
        assert number % 2 == 0 or {line for line in kept if b"-1" not in line} <= lines
    log.write_bytes(whole)
    run.resume()
    assert log.read_bytes() == whole
