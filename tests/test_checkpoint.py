"""Checkpoints: exact round trips, atomic writes, and one-sentence errors that lose nothing."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from ssl_equi import checkpoint
from ssl_equi.errors import CheckpointError


def nested_state() -> dict:
    shared = torch.arange(6.0).view(2, 3)
    return {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": shared.t()}, 1: {"exp_avg": shared}},
        "param_groups": [{"lr": 1e-3, "betas": [0.9, 0.999], "fused": None, "params": [0, 1]}],
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "empty": {},
    }


def plain(state: object) -> object:
    """With types and numbers in place of tensors, and with the order of keys."""
    if isinstance(state, torch.Tensor):
        return state.dtype, state.tolist()
    if isinstance(state, dict):
        return [(key, plain(value)) for key, value in state.items()]
    return [plain(value) for value in state] if isinstance(state, list) else state


def test_nested_state_comes_back_equal(tmp_path: Path) -> None:
    checkpoint.write_checkpoint(tmp_path / "step-00000001", {"optimizer": nested_state()})
    assert plain(checkpoint.read_state(tmp_path / "step-00000001", "optimizer")) == plain(nested_state())


def test_an_optimizer_goes_on_exactly_after_a_round_trip(tmp_path: Path) -> None:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer)
    checkpoint.write_checkpoint(tmp_path / "c", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    step(model, optimizer)

    again = nn.Linear(3, 2)
    again_optimizer = torch.optim.AdamW(again.parameters(), lr=0.5)
    again.load_state_dict(checkpoint.read_state(tmp_path / "c", "model"))
    again_optimizer.load_state_dict(checkpoint.read_state(tmp_path / "c", "optimizer"))
    step(again, again_optimizer)
    assert torch.equal(model.weight, again.weight)


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    checkpoint.write_checkpoint(tmp_path / "c", {"a": nested_state()})
    assert sorted(file.name for file in (tmp_path / "c").iterdir()) == ["a.json", "a.safetensors", "checksums.json"]
    json.loads((tmp_path / "c" / "a.json").read_text())
    assert not (tmp_path / "c" / "a.safetensors").read_bytes().startswith(b"\x80")


@pytest.mark.parametrize(("value", "shown"), [({1, 2}, "of type set"), (float("nan"), "nan"), (float("inf"), "inf")])
def test_what_is_neither_tensor_nor_json_is_refused(tmp_path: Path, value: object, shown: str) -> None:
    with pytest.raises(CheckpointError, match=rf"can't hold /x {shown}: keep tensors, finite numbers"):
        checkpoint.write_checkpoint(tmp_path / "c", {"a": {"x": value}})


@pytest.mark.parametrize("failing_file", [0, 1, 2])
def test_a_full_disk_leaves_the_previous_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_file: int
) -> None:
    folder = tmp_path / "step-00000005"
    checkpoint.write_checkpoint(folder, {"a": {"x": torch.ones(3)}, "b": {}})
    calls = 0
    real_fsync = os.fsync

    def full_disk(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > failing_file:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CheckpointError, match=r"the disk is full while writing .*step-00000005: free some space"):
        checkpoint.write_checkpoint(folder, {"a": {"x": torch.zeros(3)}, "b": {}})
    monkeypatch.undo()
    assert torch.equal(checkpoint.read_state(folder, "a")["x"], torch.ones(3))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_a_half_written_checkpoint_is_never_listed(tmp_path: Path) -> None:
    checkpoint.write_checkpoint(tmp_path / "step-00000010", {"a": {}})
    (tmp_path / ".writing-step-00000020-123").mkdir()
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-00000010"]


def test_damage_is_named(tmp_path: Path) -> None:
    checkpoint.write_checkpoint(tmp_path / "c", {"a": nested_state()})
    content = (tmp_path / "c" / "a.safetensors").read_bytes()
    (tmp_path / "c" / "a.safetensors").write_bytes(content[:-4])
    with pytest.raises(CheckpointError, match=r"checkpoint .*/c is damaged .* resume from the one before"):
        checkpoint.read_state(tmp_path / "c", "a")
    (tmp_path / "c" / "a.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no a\.json"):
        checkpoint.read_state(tmp_path / "c", "a")


@pytest.mark.parametrize("file", ["a.json", "a.safetensors"])
def test_a_file_of_another_checkpoint_is_found(tmp_path: Path, file: str) -> None:
    for folder, number in (("one", 1.0), ("two", 2.0)):
        checkpoint.write_checkpoint(tmp_path / folder, {"a": {"x": torch.tensor(number), "y": number}})
    (tmp_path / "one" / file).write_bytes((tmp_path / "two" / file).read_bytes())
    with pytest.raises(CheckpointError, match=rf"one is damaged \({file} is not the file that was saved\): delete"):
        checkpoint.read_state(tmp_path / "one", "a")


def test_layers_that_share_their_weights_come_back_tied(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        module[1].weight = module[0].weight
        return module

    module, again = tied(), tied()
    checkpoint.write_checkpoint(tmp_path / "c", {"model": module.state_dict()})
    checkpoint.load_module_strictly(again, checkpoint.read_state(tmp_path / "c", "model"), tmp_path)
    assert torch.equal(again[0].weight, module[0].weight)
    assert again[1].weight is again[0].weight


def test_another_type_is_refused_but_another_precision_is_not(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match=r"weight is torch\.int32 there and torch\.float32 here"):
        checkpoint.load_module_strictly(
            model, {"weight": torch.ones(1, 1, dtype=torch.int32), "bias": torch.ones(1)}, tmp_path
        )
    checkpoint.load_module_strictly(model, {"weight": torch.ones(1, 1).half(), "bias": torch.ones(1)}, tmp_path)
    assert model.weight.dtype == torch.float32 and model.weight.item() == 1


def test_another_architecture_is_refused_and_nothing_is_loaded(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    other = {"weight": torch.ones(4, 3), "bias": torch.ones(2), "extra": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"another architecture \(2 tensors differ.*weight is \(4, 3\) there"):
        checkpoint.load_module_strictly(model, other, tmp_path / "objective.safetensors")
    assert torch.equal(model.weight, before)
