"""Runs whose weights are shared out learn, save and export what others do, whatever the number of processes."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import byol
from ssl_equi import load_encoder
from ssl_equi.checkpoint import list_checkpoints, read_state
from ssl_equi.errors import EncoderError
from ssl_equi.training.pretraining import Pretraining
from tests.fakes import forget_processes, losses
from tests.launched import ROOT, clean_environment
from tests.recipes import sharded_runs

MEANS: dict[str, dict[str, Any]] = {
    "alone": {},
    "bf16, activations computed again": {"mixed_precision": "bf16", "checkpoint_activations": True},
    "lars": {"optimizer": "lars"},
}


@pytest.fixture
def train(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, torch.Tensor]]:
    """train(folder, **options): goes on with a run in this process; the weights that its ending would export."""
    exported: dict[str, torch.Tensor] = {}

    def note_weights(trained: Pretraining[Any]) -> None:
        with trained.run.ending():
            weights = trained.run.whole(trained.objective).state_dict()
            exported.update({name: value.clone() for name, value in weights.items()})

    monkeypatch.setattr(Pretraining, "finish", note_weights)

    def go_on(folder: str, **options: Any) -> dict[str, torch.Tensor]:
        forget_processes()
        byol.main(sharded_runs.configuration(tiny_data, out=tmp_path / folder, **options))
        return dict(exported)

    return go_on


@pytest.mark.parametrize("means", MEANS)
def test_a_run_of_one_process_may_begin_and_end_sharded(
    means: str, train: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    expected = train("whole", **MEANS[means])
    train("begun", steps=3, sharding="full", **MEANS[means])
    train("begun", **MEANS[means])
    train("ended", steps=3, **MEANS[means])
    found = train("ended", sharding="full", **MEANS[means])
    assert len(losses(tmp_path / "whole")) == 6
    assert losses(tmp_path / "begun") == losses(tmp_path / "ended") == losses(tmp_path / "whole")
    saved = read_state(list_checkpoints(tmp_path / "ended" / "checkpoints")[-1], "objective")
    assert found.keys() == expected.keys() == saved.keys()
    assert all(torch.equal(value, expected[name]) and torch.equal(value, saved[name]) for name, value in found.items())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_shares_are_updated_by_fused_kernels_where_there_are_such(
    optimizer: str, train: Callable[..., Any], tmp_path: Path
) -> None:
    train("whole", steps=3, optimizer=optimizer)
    train("sharded", steps=3, optimizer=optimizer, sharding="full")
    assert losses(tmp_path / "sharded") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    groups = read_state(list_checkpoints(tmp_path / "sharded" / "checkpoints")[-1], "optimizer")["param_groups"]
    assert groups[0]["fused"] is (optimizer == "adam")


@pytest.mark.slow
def test_two_processes_begin_and_end_runs_of_one(
    train: Callable[..., dict[str, torch.Tensor]], tiny_data: Path, tmp_path: Path
) -> None:
    expected = train("whole")
    train("ended", steps=3)
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        port = first.getsockname()[1]
        second.bind(("127.0.0.1", port + 1))
    script, folders = sharded_runs.__file__, [str(tmp_path / name) for name in ("begun", "ended")]
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(port), str(tiny_data), *folders],
            cwd=ROOT, env=os.environ | clean_environment(),
        )
        for rank in (0, 1)
    ]  # fmt: skip
    assert [process.wait() for process in processes] == [0, 0]
    train("begun")
    for name in ("begun", "ended"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    encoder = load_encoder(tmp_path / "ended" / "encoder")
    for name, value in encoder.state_dict().items():
        assert torch.allclose(value, expected[f"encoder.{name}"], rtol=1e-4, atol=1e-5), name
    assert (tmp_path / "ended" / "report.html").is_file()


def test_convolutional_encoders_are_refused(train: Callable[..., dict[str, torch.Tensor]], tmp_path: Path) -> None:
    changes = {"encoder": "strided_cnn_pooled", "encoder_arguments": {}}
    with pytest.raises(EncoderError, match=r"--sharding full .* PooledStridedCNN has no transformer blocks"):
        train("run", sharding="full", **changes)
    assert not (tmp_path / "run").exists()
