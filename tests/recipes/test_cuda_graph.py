"""Every recipe with steps that are CUDA graphs, simulated ones: equal to ordinary steps to the bit, resumed or not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_equi.checkpoint import list_checkpoints, read_state
from ssl_equi.errors import RunError, UserError
from ssl_equi.options import check_options
from ssl_equi.runtime import cuda_graphs
from ssl_equi.training import run as run_module
from ssl_equi.training.config import PretrainingConfig
from ssl_equi.training.devices import check_cuda_graph
from ssl_equi.views.options import ViewOptions
from tests.fakes import RECIPES, SmallConfig, event_lines, forget_processes, load_recipe
from tests.recorded_graph import RecordedGraph, simulate_graphs

# Replayed are the steps that follow an ordinary one and aren't logged: 2, 3, 5, 6, 7, 9, 10 and 11; in a run that goes
# on after 8 steps not 9, its first one. Online probes train at 1, 5 and 9, of which it replays 5, others 9, too.
ORDINARY_CALLS, LOG_EVERY, STOPPED_AFTER, STEPS = 1, 4, 8, 12
RESUMED = ("sie", "moco", "seq_jepa", "capsie")
AUGMENTED = {"views": ViewOptions(source="augmented", preset="mocov2")}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{name: (name, "embedded", {}) for name in RECIPES},
    "care_moco_augmented": ("care", "embedded", {**AUGMENTED, "base": "moco"}),
    "sie_separate_batch_norm": ("sie", "embedded", {"objective.separate_batch_norm": True, "clip_norm": 1.0}),
    "sie_bf16": ("sie", "embedded", {"mixed_precision": "bf16"}),
    "seq_jepa_augmented": ("seq_jepa", "embedded", {**AUGMENTED, "actions": ("augmentation",), "observed_views": 2}),
    "simsiam_sgd": ("simsiam", "embedded", {"optimizer": "sgd"}),
    "byol_layer_decay": ("byol", "embedded", {"frozen_layers": 1, "layer_decay": 0.5, "optimizer": "adamw"}),
}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets runs on a CPU capture their steps."""
    simulate_graphs(monkeypatch)
    monkeypatch.setattr(cuda_graphs, "ORDINARY_CALLS", ORDINARY_CALLS)

    def check(config: Any, device: torch.device, world_size: int) -> None:
        check_cuda_graph(config, torch.device("cuda"), world_size)

    monkeypatch.setattr(run_module, "check_cuda_graph", check)


@pytest.mark.parametrize("case", CASES)
def test_captured_steps_are_ordinary_steps(
    case: str, small_config: SmallConfig, graphs: None, without_ending: None, tmp_path: Path
) -> None:
    name, configuration, changes = CASES[case]
    recipe = load_recipe(name)

    def run(folder: Path, **options: Any) -> None:
        sizes = {"out": folder, "steps": STEPS, "log_every": LOG_EVERY, "epochs": 4}
        recipe.main(small_config(recipe, configuration, **sizes | changes | options))
        forget_processes()

    run(tmp_path / "ordinary")
    assert RecordedGraph.replays == 0
    if case in RESUMED:
        run(tmp_path / "captured", cuda_graph=True, steps=STOPPED_AFTER)
    run(tmp_path / "captured", cuda_graph=True, resume=True)
    probes = 2 if name.startswith("seq_jepa") else 1  # of the features, and of aggregates
    assert RecordedGraph.replays == (7 + probes if case in RESUMED else 8 + 2 * probes)
    for event in ("loss", "online_probe"):
        lines = event_lines(tmp_path / "ordinary", event)
        assert lines and event_lines(tmp_path / "captured", event) == lines
    expected, found = (
        read_state(list_checkpoints(tmp_path / folder / "checkpoints")[-1], "objective")
        for folder in ("ordinary", "captured")
    )
    assert expected.keys() == found.keys()
    assert [key for key, value in expected.items() if not torch.equal(value, found[key])] == []


def test_graphs_need_steps_that_are_not_logged() -> None:
    with pytest.raises(UserError, match=r"--cuda-graph .* has no effect: give a log_every above 1"):
        check_options(PretrainingConfig(cuda_graph=True, log_every=1), PretrainingConfig())


@pytest.mark.parametrize(
    ("options", "device", "world_size", "sentence"),
    [
        ({}, "cpu", 1, "needs an NVIDIA GPU, and PyTorch sees none: leave it out"),
        ({}, "cuda", 2, "this run has 2: start one"),
        ({"sharding": "full"}, "cuda", 1, "--sharding full does: leave one of them out"),
        ({"checkpoint_activations": True}, "cuda", 1, "--checkpoint-activations does: leave one out"),
        ({"optimizer": "lars"}, "cuda", 1, "--optimizer lars: choose another one"),
    ],
)
def test_what_cannot_be_captured_is_refused(
    options: dict[str, Any], device: str, world_size: int, sentence: str
) -> None:
    config = PretrainingConfig(cuda_graph=True, **options)
    with pytest.raises(RunError, match=f"--cuda-graph .*{sentence}"):
        check_cuda_graph(config, torch.device(device), world_size)
