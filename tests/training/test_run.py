"""The run: exact resume, checkpoints that survive, stops, NaNs, and errors of one sentence."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from filelock import FileLock

from ssl_equi.checkpoint import list_checkpoints
from ssl_equi.errors import CheckpointError, RunError, UserError
from ssl_equi.training.config import LoaderSize, default_threads
from ssl_equi.training.run import Run
from ssl_equi.training.stopping import EXIT_STOPPED
from tests.fakes import forget_processes
from tests.toy_recipe import EachStep, ToyConfig, ToyLoader, ToyObjective, loss_lines, train_toy

TOTAL_STEPS = 23


def started(config: ToyConfig) -> Run:
    forget_processes()
    return Run(config, "toy")


def train(config: ToyConfig, each_step: EachStep = lambda step, objective: None) -> Run:
    run = started(config)
    train_toy(run, TOTAL_STEPS, each_step)
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Killed(BaseException):
    """Stands in for a kill: nothing of the run gets to act on it."""


def kill_at(step_to_die: int) -> EachStep:
    def each_step(step: int, objective: ToyObjective) -> None:
        if step == step_to_die:
            raise Killed

    return each_step


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(ToyConfig(out=folder)).close()
    assert len(loss_lines(folder)) == TOTAL_STEPS
    return folder


@pytest.fixture
def whole(finished: Path) -> list[str]:
    """Its losses."""
    return loss_lines(finished)


@pytest.mark.parametrize(("died_at", "half_line"), [*((step, False) for step in (0, 4, 5, 6, 13, 22)), (12, True)])
def test_a_killed_and_resumed_run_logs_the_same_losses_to_the_bit(
    died_at: int, half_line: bool, whole: list[str], tmp_path: Path
) -> None:
    """Half a line that the kill has left is dropped."""
    with pytest.raises(Killed):
        train(ToyConfig(out=tmp_path / "killed"), kill_at(died_at))
    if half_line:
        with open(tmp_path / "killed" / "metrics.jsonl", "a") as file:
            file.write('{"event": "loss", "step": 13, "lo')
    train(ToyConfig(out=tmp_path / "killed", resume=True))
    assert loss_lines(tmp_path / "killed") == whole


@pytest.mark.parametrize(("name", "steps"), [("SIGTERM", 8), ("SIGUSR1", 8), ("SIGINT", 8), ("SIGTERM", TOTAL_STEPS)])
def test_signals_save_and_leave_with_a_status_of_their_own(
    name: str, steps: int, whole: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in the last step."""
    number = signal.Signals[name]

    def interrupt(step: int, objective: ToyObjective) -> None:
        if step == steps - 1:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        train(ToyConfig(out=tmp_path / "run"), interrupt)
    assert stop.value.code == EXIT_STOPPED
    assert signal.getsignal(number) == before
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == f"step-{steps:08d}"
    assert f"after step {steps} of 23; run the same command with --resume" in capsys.readouterr().out
    train(ToyConfig(out=tmp_path / "run", resume=True))
    assert loss_lines(tmp_path / "run") == whole


def test_a_signal_during_the_ending_leaves_it_to_the_resumed_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(ToyConfig(out=tmp_path / "run"))
    with pytest.raises(SystemExit) as stop, run.ending():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.value.code == EXIT_STOPPED
    stopped = json.loads((tmp_path / "run" / "stopped.json").read_text())
    assert stopped == {"signal": "SIGUSR1", "step": TOTAL_STEPS, "last_step": TOTAL_STEPS}
    assert "SIGUSR1: saved" in capsys.readouterr().out
    resumed = train(ToyConfig(out=tmp_path / "run", resume=True))
    with resumed.ending():
        assert not (tmp_path / "run" / "stopped.json").exists()


def poison(step: int, objective: ToyObjective) -> None:
    objective.poison = float("nan") if step == 12 else 0.0


def spoil(step: int, objective: ToyObjective) -> None:
    if step == 14:  # the last step before a checkpoint: its loss is still finite
        objective.encoder[0].bias.register_hook(lambda gradient: gradient * float("inf"))


@pytest.mark.parametrize(
    ("each_step", "named"),
    [(poison, "the term 'covariance' is not finite at step 13"),
     (spoil, r"the weight 'encoder\.0\.bias' is not finite at step 15")],
)  # fmt: skip
def test_what_is_not_finite_is_named_with_step_and_checkpoint_and_never_saved(
    each_step: EachStep, named: str, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=rf"{named} .*checkpoint is .*step-00000010; lower"):
        train(ToyConfig(out=tmp_path / "run"), each_step)
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == [
        "step-00000005", "step-00000010",
    ]  # fmt: skip


def test_a_full_disk_while_saving_keeps_the_last_checkpoint(
    tmp_path: Path, whole: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_disk(step: int, objective: ToyObjective) -> None:
        if step == 8:

            def full(descriptor: int) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(CheckpointError, match=r"the disk is full while writing .*step-00000010.*--resume"):
        train(ToyConfig(out=tmp_path / "run"), fill_disk)
    monkeypatch.undo()
    train(ToyConfig(out=tmp_path / "run", resume=True))
    assert loss_lines(tmp_path / "run") == whole


def test_the_newest_checkpoints_and_config_and_versions_are_kept(finished: Path) -> None:
    names = [path.name for path in list_checkpoints(finished / "checkpoints")]
    assert names == ["step-00000020", "step-00000023"]
    assert json.loads((finished / "config.json").read_text())["width"] == 4
    versions = json.loads((finished / "versions.json").read_text())
    assert versions["torch"] in (torch.__version__.split("+")[0], torch.__version__)
    assert {"commit", "command", "accelerate", "device"} <= set(versions)


def test_a_folder_that_holds_a_run_is_never_overwritten(finished: Path) -> None:
    before = contents(finished)
    with pytest.raises(RunError, match="already holds a run: add --resume"):
        train(ToyConfig(out=finished))
    assert contents(finished) == before


def test_the_default_folder_takes_the_next_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [train(ToyConfig(steps=1)).folder for _ in range(3)] == [
        Path("runs/toy"), Path("runs/toy-2"), Path("runs/toy-3"),
    ]  # fmt: skip
    assert train(ToyConfig(steps=2, resume=True)).folder == Path("runs/toy-3")


def test_a_folder_that_another_run_is_using_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    """Also before the first checkpoint, and if the other run started while this one was opening its data."""
    run = train(ToyConfig(out=tmp_path / "run", steps=3))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    run.close()
    before = contents(tmp_path / "run")
    late = started(ToyConfig(out=tmp_path / "run", seed=1))
    with FileLock(tmp_path / "run" / ".lock"):
        owner = rf"run is in use by another run \(process {os.getpid()} on .+\): wait until it has ended, or choose"
        for resume in (False, True):
            with pytest.raises(RunError, match=owner):
                started(ToyConfig(out=tmp_path / "run", seed=1, resume=resume))
        with pytest.raises(RunError, match=owner):
            late.resume()
        assert contents(tmp_path / "run") == before


def test_the_default_folder_is_one_that_no_run_is_using(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "toy").mkdir(parents=True)
    with FileLock(tmp_path / "runs" / "toy" / ".lock"):
        assert train(ToyConfig(steps=1)).folder == Path("runs/toy-2")


def test_a_run_that_is_refused_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracker is the last to refuse a run, when its folder is there already."""
    monkeypatch.setattr("ssl_equi.training.trackers.version", lambda name: "1")
    monkeypatch.setattr(Accelerator, "init_trackers", failing(ValueError("api_key not\nconfigured")))
    with pytest.raises(RunError, match=r"--tracker wandb does not start \(api_key not configured\): run `wandb login`"):
        train(ToyConfig(out=tmp_path / "new" / "run", tracker="wandb"))
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_fails_later_costs_a_warning_and_nothing_else(
    tmp_path: Path, whole: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TensorBoardTracker, "log", failing(ConnectionError("no route")))
    run = train(ToyConfig(out=tmp_path / "run", tracker="tensorboard"))
    run.track_results(lambda: pytest.fail("a tracker that has failed is told no more"))
    run.close()
    errors = capsys.readouterr().err
    assert errors.count("warning: the tracker tensorboard failed (no route) and is told no more: the run goes on") == 1
    assert loss_lines(tmp_path / "run") == whole


def failing(error: Exception) -> Callable[..., None]:
    """A method that raises."""

    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


def test_a_run_of_an_earlier_version_had_the_default_of_a_later_option(tmp_path: Path) -> None:
    train(ToyConfig(out=tmp_path / "run", steps=6))
    config_file = tmp_path / "run" / "config.json"
    earlier = json.loads(config_file.read_text())
    del earlier["clip_norm"], earlier["width"]
    # What earlier versions recorded though it was not used.
    earlier |= {"mixed_precision": "no", "max_skipped": 7, "objective": {"action_dim": 4}}
    config_file.write_text(json.dumps(earlier))
    with pytest.raises(RunError, match=r"made with clip_norm = None and this command asks for 1\.0"):
        train(ToyConfig(out=tmp_path / "run", clip_norm=1.0, resume=True))
    train(ToyConfig(out=tmp_path / "run", steps=7, resume=True))
    assert json.loads(config_file.read_text())["width"] == 4


def test_resuming_with_another_option_or_architecture_is_refused(tmp_path: Path) -> None:
    train(ToyConfig(out=tmp_path / "run", steps=6))
    with pytest.raises(RunError, match="made with width = 4 and this command asks for 5"):
        train(ToyConfig(out=tmp_path / "run", width=5, resume=True))
    config_file = tmp_path / "run" / "config.json"
    config_file.write_text(config_file.read_text().replace('"width": 4', '"width": 5'))
    with pytest.raises(CheckpointError, match=r"objective\.safetensors holds another architecture"):
        train(ToyConfig(out=tmp_path / "run", width=5, resume=True))


def test_steps_stops_early_and_a_later_resume_goes_on(tmp_path: Path, whole: list[str]) -> None:
    train(ToyConfig(out=tmp_path / "run", steps=9))
    assert loss_lines(tmp_path / "run") == whole[:9]
    train(ToyConfig(out=tmp_path / "run", resume=True))
    assert loss_lines(tmp_path / "run") == whole


def test_a_launched_process_takes_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_equi.runtime.system.usable_cores", lambda: 8)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert default_threads() == torch.get_num_threads()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert default_threads() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert default_threads() == 2


def test_threads_are_those_asked_for(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    train(ToyConfig(out=tmp_path / "run", steps=1, threads=before + 1))
    assert torch.get_num_threads() == before + 1
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixed_precision": "fp8"}, "--mixed-precision is 'fp8'"),
        ({"log_every": 0}, "--log-every is 0"),
        ({"steps": 0}, "--steps is 0"),
        ({"tracker": "excel"}, "--tracker is 'excel': choose from tensorboard, wandb, trackio, mlflow"),
        ({"threads": 1_000_000}, "--threads is 1000000: give a number from 1 to 1,024"),
        ({"clip_norm": 0.0}, r"--clip-norm is 0\.0: give a number above 0"),
        ({"clip_norm": float("nan")}, "--clip-norm is nan: give a number above 0"),
    ],
)
def test_impossible_options_are_named(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(ToyConfig(out=tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_package(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("ssl_equi.training.trackers.version", no_package)
    with pytest.raises(RunError, match="uv sync --extra trackers"):
        train(ToyConfig(out=tmp_path / "run", tracker="wandb"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file/run can't be written"):
        train(ToyConfig(out=tmp_path / "file" / "run"))


@pytest.mark.parametrize(
    ("size", "recorded"),
    [
        (LoaderSize(threads=2, workers=0), {"loader_threads": 2, "loader_workers": 0}),
        (LoaderSize(threads=8, workers=14), {"loader_workers": 14}),
    ],
)
def test_what_was_chosen_for_the_loader_is_recorded(
    size: LoaderSize, recorded: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr("ssl_equi.training.run.loader_size", lambda config, device: size)
    monkeypatch.setattr("ssl_equi.training.run.start_server", lambda: started.append("server"))
    train(ToyConfig(out=tmp_path / "run", steps=1))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert {name: value for name, value in config.items() if name.startswith("loader")} == recorded
    assert started == ["server"] * (size.workers > 0)


def test_gradients_are_clipped_to_the_given_norm(tmp_path: Path) -> None:
    run = started(ToyConfig(out=tmp_path / "run", clip_norm=1e-3))
    objective = ToyObjective(4)
    model = run.prepare(objective, lambda module: torch.optim.SGD(module.parameters(), lr=1.0))
    output = model(next(ToyLoader().batches()).images)
    run.backward(output)
    norms = [parameter.grad.norm() for parameter in objective.parameters() if parameter.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(1e-3, rel=1e-4)
