"""Recipes in two CPU processes, started as users start them, against one process with the same global batch."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from recipes import sie
from ssl_equi import load_encoder
from ssl_equi.checkpoint import list_checkpoints
from ssl_equi.cli import parse_command_line
from tests.fakes import SmallConfig, load_recipe, numbers
from tests.launched import PATIENCE_SECONDS, clean_environment, launcher_command, seconds_now, started

# Adam divides by the size of the gradient, so rounding grows with every step: large steps would blur the comparison.
LEARNING_RATE = 1e-5


def launched(*words: str) -> tuple[int, str, str]:
    """Runs a script in two processes; status, output and errors of the launcher."""
    with started([*launcher_command(2), *words], clean_environment()) as launcher:
        output, errors = launcher.communicate(timeout=seconds_now(PATIENCE_SECONDS))
    return launcher.returncode, output, errors


def moved(encoder: nn.Module, start: nn.Module) -> torch.Tensor:
    """How far the training took every parameter, in one vector."""
    steps = [(now - before).flatten() for now, before in zip(encoder.parameters(), start.parameters(), strict=True)]
    return torch.cat(steps).detach()


@pytest.mark.usefixtures("quick_probes")
def test_two_processes_learn_what_one_does(small_config: SmallConfig, small_options: list[str], tmp_path: Path) -> None:
    rates = {"learning_rate": LEARNING_RATE, "final_learning_rate": LEARNING_RATE, "warmup_steps": 0}
    config = small_config(sie, out=tmp_path / "one", compare_with_random=False, **rates)
    sie.main(config)
    options = [word for name, value in rates.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    (tmp_path / "two").mkdir()
    # Batch norms are synchronised once more in the backward pass.
    options += ["--checkpoint-activations", "--no-compare-with-random"]
    out = str(tmp_path / "two" / "run")
    status, output, errors = launched("recipes/sie.py", "--out", out, *small_options, *options)
    assert status == 0, errors

    assert [path.name for path in (tmp_path / "two").iterdir()] == ["run"], "one folder, not one for each process"
    assert output.count("probing on the test split") == output.count("probed in") == 1, "the first process alone speaks"
    state = json.loads((list_checkpoints(tmp_path / "two/run/checkpoints")[-1] / "run.json").read_text())
    assert state == {"step": 6, "world_size": 2, "records_skipped": 0}
    records = json.loads((tmp_path / "two/run/results.json").read_text())["records"]
    names = [(record["task"], record["part"], record["metric"]) for record in records]
    assert len(set(names)) == len(names), "the first process alone writes"

    one, two = (numbers(tmp_path / run) for run in ("one", "two/run"))
    assert [line["step"] for line in two] == [line["step"] for line in one] == [1, 2, 3, 4, 5, 6]
    for ours, theirs in zip(one, two, strict=True):
        assert list(theirs) == list(ours)
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
        for name in ours.keys() - {"event", "step"}:
            # Before the first update, nothing but the order of sums differs.
            assert theirs[name] == pytest.approx(ours[name], rel=2e-5 if ours["step"] == 1 else 2e-3), name
    start = sie.build(config).encoder
    one_move, two_move = (moved(load_encoder(tmp_path / run / "encoder"), start) for run in ("one", "two/run"))
    assert one_move.abs().mean() > LEARNING_RATE / 2
    assert torch.cosine_similarity(one_move, two_move, dim=0) > 0.999


AUGMENTED_CASES = {
    # Augmented pairs, a small view under drawn elements, batch-norm statistics kept apart.
    # The third step has the 4 objects left over.
    "essl": "--views.source augmented --small-view.elements 2 --small-view.size 16 --objective.hidden-widths 32 32 "
    "--simclr.projector 32 32 32 --batch-size 10 --keep-incomplete-batch",
    # Views shared by chunks, a momentum target and a queue of everybody's keys.
    "care": "--views.source augmented --objective.chunk-size 4 --base moco --moco.projector 32 16 --moco.queue-size 16 "
    "--batch-size 8",
}


@pytest.mark.slow  # by default tests/views/test_makers.py compares the views of processes
@pytest.mark.usefixtures("quick_probes")
@pytest.mark.parametrize("name", ["care", "essl"])
def test_two_processes_see_the_augmented_views_of_one(name: str, tiny_data: Path, tmp_path: Path) -> None:
    rates = f"--learning-rate {LEARNING_RATE} --final-learning-rate {LEARNING_RATE}"
    words = (
        f"--data-dir {tiny_data} --image-size 32 --epochs 2 --log-every 1 {rates} "
        f"--no-compare-with-random --steps 4 {AUGMENTED_CASES[name]}"
    ).split()
    recipe = load_recipe(name)
    default = next(iter(recipe.CONFIGS.values()))()
    recipe.main(parse_command_line(recipe.Config, "", default, ["--out", str(tmp_path / "one"), *words]))
    status, _, errors = launched(f"recipes/{name}.py", "--out", str(tmp_path / "two"), *words)
    assert status == 0, errors
    one, two = (numbers(tmp_path / run) for run in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 3, 4]
    for ours, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=2e-5 if ours["step"] == 1 else 1e-3)


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_out_ends_both_processes_with_a_sentence(
    small_options: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    status, _, errors = launched("recipes/sie.py", "--out", str(run), *small_options, "--batch-size", "7")
    assert status != 0
    sentence = "error: global batch size 7 is not divisible by 2 processes: choose a multiple of 2"
    assert errors.splitlines().count(sentence) >= 1  # the launcher may end the second process before it speaks
    assert not list_checkpoints(run / "checkpoints")


@pytest.mark.slow
def test_two_processes_save_soon_after_a_signal_to_the_launcher_whatever_is_logged(
    small_options: list[str], tmp_path: Path
) -> None:
    """The launcher kills what has not left 30 seconds later."""
    run = tmp_path / "run"
    options = [*small_options, "--epochs", "90000", "--log-every", "20000", "--save-every", "100000"]
    command = [*launcher_command(2), "recipes/sie.py", "--out", str(run), *options]
    with started(command, clean_environment()) as launcher:
        while not (run / "versions.json").exists() and launcher.poll() is None:
            time.sleep(0.1)
        time.sleep(seconds_now(5))  # signals are handled from the first step on
        launcher.send_signal(signal.SIGINT)
        output, errors = launcher.communicate()
    assert "SIGINT: saved" in output, errors
    assert len(list_checkpoints(run / "checkpoints")) == 1
